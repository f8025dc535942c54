#if defined(__linux__)

#include "recording.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <unistd.h>

#include "export.h"
#include "ggml_layout.h"

namespace {

constexpr uint8_t HAS_TOKENS = 1, HAS_ROWS = 2;
constexpr int     F32 = 0;

const char LOGITS[] = "ffn_moe_logits";   // of build_moe_ffn, and of the graphs that compute them
const char PROBS[]  = "ffn_moe_probs-";   // themselves; "ffn_moe_logits_biased" begins alike

bool wide_ids(const localmoe_recorded_layer * layers, int32_t n) {
    return std::any_of(layers, layers + n, [](const localmoe_recorded_layer & l) { return l.experts > 255; });
}

}  // namespace

recording::recording(int fd, const localmoe_recorded_layer * layers, int32_t n, bool logits, op_name_fn op_name,
                     to_half_fn to_half)
    : fd_(fd), logits_(logits), wide_(wide_ids(layers, n)), add_(op_named(op_name, "ADD")),
      mul_mat_(op_named(op_name, "MUL_MAT")), to_half_(to_half) {
    for (int32_t i = 0; i < n; i++) {
        places_.resize(std::max(places_.size(), size_t(layers[i].index) + 1), -1);
        places_[size_t(layers[i].index)] = i;
        layers_.push_back({layers[i].experts, layers[i].used, 0, {}, {}, {}});
    }
}

recording::layer * recording::at(int index) {
    if (index < 0 || index >= int(places_.size()) || places_[size_t(index)] < 0) {
        return nullptr;
    }
    return &layers_[size_t(places_[size_t(index)])];
}

void recording::begin(const int32_t * tokens, int64_t n, bool prefill) {
    tokens_.assign(tokens, tokens + n);
    prefill_ = prefill;
    for (auto & l : layers_) {
        l.rows = 0;
        l.ids.clear();
        l.weights.clear();
        l.logits.clear();
    }
}

void recording::ids(int index, const ggml_tensor * chosen) {
    layer * l = at(index);
    if (!l || chosen->ne[0] != l->used) {
        return;
    }
    for (int64_t row = 0; row < chosen->ne[1]; row++) {
        const char * from = static_cast<const char *>(chosen->data) + row * int64_t(chosen->nb[1]);
        for (int64_t rank = 0; rank < l->used; rank++) {
            l->ids.push_back(*reinterpret_cast<const int32_t *>(from + rank * int64_t(chosen->nb[0])));
        }
    }
    l->rows += chosen->ne[1];
}

// After the ids of the same tokens, or before them where weights multiply the experts' input.
void recording::weights(int index, const ggml_tensor * applied) {
    layer * l = at(index);
    if (!l || applied->type != F32 || applied->ne[1] != l->used) {
        return;
    }
    for (int64_t row = 0; row < applied->ne[2]; row++) {
        const char * from = static_cast<const char *>(applied->data) + row * int64_t(applied->nb[2]);
        for (int64_t rank = 0; rank < l->used; rank++) {
            l->weights.push_back(*reinterpret_cast<const float *>(from + rank * int64_t(applied->nb[1])));
        }
    }
}

// Always before the ids. Where a bias is added first, the later call has it and replaces the other.
void recording::logits(const ggml_tensor * values) {
    layer * l = at(layer_of(values));
    if (!l || values->type != F32 || values->ne[0] != l->experts || values->nb[0] != sizeof(float)) {
        return;
    }
    l->logits.resize(size_t(l->rows * l->experts), NAN);
    for (int64_t row = 0; row < values->ne[1]; row++) {
        auto from = reinterpret_cast<const float *>(static_cast<const char *>(values->data) + row * int64_t(values->nb[1]));
        l->logits.insert(l->logits.end(), from, from + l->experts);
    }
}

const ggml_tensor * recording::logits_in(const ggml_tensor * op) const {
    const ggml_tensor * from = logits_ ? op->src[0] : nullptr;
    if (!from || from->name[0] != 'f') {
        return nullptr;
    }
    // Where no function comes before the choice (gpt-oss), the logits themselves are called probs.
    bool raw = (from->op == add_ || from->op == mul_mat_) && begins(from, PROBS);
    return raw || begins(from, LOGITS) ? from : nullptr;
}

template <typename T> void recording::append(T value) {
    auto bytes = reinterpret_cast<const char *>(&value);
    out_.insert(out_.end(), bytes, bytes + sizeof value);
}

void recording::append_halves(const std::vector<float> & values) {
    size_t at = out_.size();
    std::vector<uint16_t> halves(values.size());
    to_half_(values.data(), halves.data(), int64_t(values.size()));
    out_.resize(at + 2 * values.size());
    memcpy(out_.data() + at, halves.data(), 2 * values.size());
}

int recording::end() {
    int64_t n = int64_t(tokens_.size()), most = 0, fewest = n;
    for (auto & l : layers_) {
        most   = std::max(most, l.rows);
        fewest = std::min(fewest, l.rows);
    }
    if (most == 0) {
        return 0;
    }
    if (most > n) {
        return EINVAL;
    }
    out_.clear();
    append('S');
    append<uint8_t>(0);
    append<uint16_t>(0);
    append<uint32_t>(0);  // the length, known at the end
    size_t head = out_.size();
    append(uint32_t(n));
    append(uint8_t(prefill_ ? 0 : 1));
    append(uint8_t(HAS_TOKENS | (fewest < n ? HAS_ROWS : 0)));
    append<uint16_t>(0);
    for (int32_t token : tokens_) {
        append(token);
    }
    for (auto & l : layers_) {
        if (fewest < n) {
            append(uint32_t(l.rows));
        }
        l.weights.resize(size_t(l.rows * l.used), NAN);
        l.logits.resize(size_t(l.rows * l.experts), NAN);
    }
    for (auto & l : layers_) {
        for (int32_t id : l.ids) {
            if (wide_) {
                append(uint16_t(id));
            } else {
                append(uint8_t(id));
            }
        }
    }
    for (auto & l : layers_) {
        append_halves(l.weights);
    }
    for (auto & l : layers_) {
        if (logits_) {
            append_halves(l.logits);
        }
    }
    uint32_t length = uint32_t(out_.size() - head);
    memcpy(out_.data() + head - sizeof length, &length, sizeof length);
    for (size_t done = 0; done < out_.size();) {
        ssize_t written = write(fd_, out_.data() + done, out_.size() - done);
        if (written < 0 && errno != EINTR) {
            return errno;
        }
        done += size_t(std::max<ssize_t>(written, 0));
    }
    return 0;
}

// ---- for Python ----------------------------------------------------------------------------------

// Null: without memory, or for layers that no model has.
EXPORT void * localmoe_recording_open(int32_t fd, const localmoe_recorded_layer * layers, int32_t n, bool logits,
                                      void * op_name, void * to_half) {
    return guarded(static_cast<void *>(nullptr), [&]() -> void * {
        bool sound = std::all_of(layers, layers + std::max(n, 0), [](const localmoe_recorded_layer & l) {
            return l.index >= 0 && l.index <= UINT16_MAX && l.experts > 0 && l.experts <= UINT16_MAX && l.used > 0;
        });
        return sound && n > 0 ? new recording(fd, layers, n, logits, reinterpret_cast<op_name_fn>(op_name),
                                              reinterpret_cast<to_half_fn>(to_half))
                              : nullptr;
    });
}

EXPORT void localmoe_recording_close(void * r) { delete static_cast<recording *>(r); }

// False: without memory for it; nothing is recorded of this step.
EXPORT bool localmoe_recording_begin(void * r, const int32_t * tokens, int64_t n, bool prefill) {
    return guarded(false, [&] { return static_cast<recording *>(r)->begin(tokens, n, prefill), true; });
}

EXPORT int32_t localmoe_recording_end(void * r) {
    return guarded(ENOMEM, [&] { return static_cast<recording *>(r)->end(); });
}

#endif  // __linux__

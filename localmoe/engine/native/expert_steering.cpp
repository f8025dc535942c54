// Other experts than the router chose: a recorded routing imposed, and resident ones preferred.

#if defined(__linux__)

#include "expert_cache.h"

#include <algorithm>

namespace localmoe {

// A recorded routing to impose: expert ids [steps][layers][k], layers as in the model, -1 for none.
// The first `prefill` steps are for prompts, by position, the others for decoded tokens.
// A prediction of it is to be right for the share `predicted` of the ids.
// False: these are no such counts.
bool expert_cache::impose(const int32_t * ids, int64_t prefill, int64_t steps, int64_t layers, int64_t k, float predicted) {
    int64_t count;
    if (steps < 0 || layers < 0 || k < 0 || prefill < 0 || prefill > steps || __builtin_mul_overflow(steps, layers, &count) ||
        __builtin_mul_overflow(count, k, &count)) {
        return false;
    }
    std::lock_guard<std::mutex> lock(mutex_);
    imposed_.assign(ids, ids + count);
    imposed_layers_ = layers;
    imposed_predicted_ = predicted;
    imposed_prefill_ = prefill;
    imposed_steps_ = steps;
    imposed_k_ = k;
    steering_ = steps > 0 || prefer_ > 0;
    return true;
}

// What a prediction takes an imposed choice for: itself, or what any token of the same kind chose; -1
// where nothing is imposed.
int expert_cache::predicted_of_imposed(const group & h, int64_t token, int64_t rank) {
    int64_t step = step_ + first_row(h.rows, scored_) + token, before = decoding_ ? imposed_prefill_ : 0;
    if (imposed_.empty() || h.layer >= imposed_layers_ || step >= last_ || rank >= imposed_k_) {
        return -1;
    }
    auto roll = [&] { return (dice_ = dice_ * 1664525 + 1013904223) >> 8; };  // Numerical Recipes' generator
    bool right = float(roll()) < imposed_predicted_ * float(1 << 24);
    int64_t from = right ? step : before + int64_t(roll()) % (last_ - before);
    int e = imposed_[size_t((from * imposed_layers_ + h.layer) * imposed_k_ + rank)];
    return e < int(h.experts.size()) ? e : -1;
}

// How much less probable than the chosen one an expert may be that is taken because it is there.
void expert_cache::prefer(float share) {
    prefer_ = share;
    steering_ = share > 0 || !imposed_.empty();
}

void expert_cache::steer(group & g, const ggml_tensor * probabilities, ggml_tensor * ids) {
    std::lock_guard<std::mutex> lock(mutex_);
    int64_t k = ids->ne[0], n = ids->ne[1];
    if (!imposed_.empty() && g.layer < imposed_layers_) {
        int64_t first = step_ + first_row(g.rows, n);
        for (int64_t token = 0; token < n && first + token < last_; token++) {
            int64_t at = ((first + token) * imposed_layers_ + g.layer) * imposed_k_;
            for (int64_t rank = 0; rank < std::min(k, imposed_k_); rank++) {
                int e = imposed_[size_t(at + rank)];
                if (e >= 0 && e < int(g.experts.size())) {
                    id_at(ids, token, rank) = e;
                }
            }
        }
    }
    if (prefer_ > 0 && decoding_ && how_ == PRIVATE) {
        prefer_resident(g, probabilities, ids);
    }
}

// Lossy: the last-ranked chosen experts that are not in memory give way to resident ones that
// the router finds nearly as good. Probabilities are [1, experts, 1].
void expert_cache::prefer_resident(group & g, const ggml_tensor * probabilities, ggml_tensor * ids) {
    auto p = [&](int e) {
        return *reinterpret_cast<const float *>(static_cast<const char *>(probabilities->data) + size_t(e) * probabilities->nb[1]);
    };
    int64_t k = ids->ne[0];
    for (int64_t rank = k - 1; rank >= 1; rank--) {  // the first choice is always kept
        int chosen = id_at(ids, 0, rank);
        if (there(g, g.experts[size_t(chosen)])) {
            continue;
        }
        int best = -1;
        for (int e = 0; e < int(g.experts.size()); e++) {
            bool taken = false;
            for (int64_t r = 0; r < k; r++) {
                taken = taken || id_at(ids, 0, r) == e;
            }
            if (!taken && there(g, g.experts[size_t(e)]) && (best < 0 || p(e) > p(best))) {
                best = e;
            }
        }
        if (best >= 0 && p(best) >= (1 - prefer_) * p(chosen)) {
            id_at(ids, 0, rank) = best;
            stats_.preferred++;
        }
    }
}

}  // namespace localmoe

#endif  // __linux__

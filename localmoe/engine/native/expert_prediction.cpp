// Which experts the next layer will choose, foretold from what this layer's router looks at.
//
// From layer to layer the hidden state changes little, so the next router, applied to this one's input,
// names most of the experts that it will choose from its own. (Eliseev and Mazur, "Fast inference of
// mixture-of-experts language models with offloading", 2023, arXiv:2312.17238, section 3.2.) They are read
// while this layer computes. A wrong guess costs a read and a place; it never changes a result. The first,
// second … guess of a token is believed while it is right often enough.

#if defined(__linux__)

#include "expert_cache.h"

#include <algorithm>
#include <numeric>

namespace localmoe {

namespace {

const char ROUTER[] = "ffn_moe_logits-", PROBABILITIES[] = "ffn_moe_probs";

// A tensor of the model, which stays where it is: nothing computed, no copy for this graph.
bool of_model(const ggml_tensor * t) { return t && t->data && begins(t, "blk."); }

const float * floats(const ggml_tensor * t) { return static_cast<const float *>(t->data); }

}  // namespace

// Whether a node is what experts are chosen by: the router's multiplication, or a bias added to its result
// (which is claimed for `learn` alone, as the graph is planned: llama.cpp computes it as it is).
bool expert_cache::routes(const ggml_tensor * op) const {
    return (op->op == mul_mat_ && begins(op, ROUTER)) || (op->op == add_ && begins(op, "ffn_moe_"));
}

// What a graph that is going to be computed tells.
void expert_cache::plan(const ggml_tensor * op) {
    group * g;
    int     t;
    if (how_ != PRIVATE) {
        return;
    }
    if (op->op == mul_mat_id_ && find(op->src[0], g, t)) {
        if (g->planned < 0) {
            g->order.clear();
        }
        if (std::find(g->order.begin(), g->order.end(), t) == g->order.end()) {
            g->order.push_back(t);
        }
        g->planned = op->src[2]->ne[1];
        buffers_ = op->buffer;
    }
    learn(op);
}

// The tensor of a layer that is multiplied after t; after the last one, the first. One that no graph has shown is last.
int expert_cache::after(const group & g, int t) {
    auto at = std::find(g.order.begin(), g.order.end(), t);
    return at == g.order.end() || at + 1 == g.order.end() ? g.order.front() : at[1];
}

// Whether the layer after `g` may be read for before it is asked: it routes no fewer tokens. Many
// architectures drop all but a prompt's last token in their last layer.
bool expert_cache::reads_ahead(const group & g, int64_t n) const {
    return how_ == PRIVATE && &g != &groups_.back() && ((&g)[1].planned < 0 || (&g)[1].planned >= n);
}

// Notes the model's tensors in such a node of llama.cpp's build_moe_ffn.
void expert_cache::learn(const ggml_tensor * op) {
    group * g = routes(op) ? group_of(layer_of(op)) : nullptr;
    if (!g || !of_model(op->src[op->op == add_])) {
        return;
    }
    router & r = g->chooses;
    if (op->op == mul_mat_) {
        const ggml_tensor * input = op->src[1];
        bool scaled = input->op == mul_ && of_model(input->src[1]) && input->src[1]->type == GGML_TYPE_F32 &&
                      input->src[1]->ne[0] == op->src[0]->ne[0];
        r.weights = op->src[0];
        r.norm    = scaled ? input->src[1] : nullptr;
    } else if (op->src[1]->type != GGML_TYPE_F32 || op->src[1]->ne[0] != int64_t(g->experts.size())) {
        return;
    } else if (op->src[0]->op == mul_mat_) {
        r.bias = op->src[1];
    } else if (begins(op, PROBABILITIES)) {
        int by   = op->src[0]->op;
        r.select = op->src[1];
        r.by     = by == soft_max_ ? router::SOFTMAX : by == sqrt_ ? router::SQRT_SOFTPLUS : router::SIGMOID;
    }
}

// The next layer's logits, by all threads: each has a part of its experts. `op` is this layer's router.
void expert_cache::score(const ggml_compute_params * params, const ggml_tensor * op) {
    group * g = group_of(layer_named(op, ROUTER));
    if (!g || g == &groups_.back()) {
        return;
    }
    const group & h = g[1];
    const ggml_tensor * input = op->src[1], * weights = h.chooses.weights;
    int64_t n = input->ne[1], width = input->ne[0], experts = int64_t(h.experts.size());
    if (!weights || clock_ < h.doubted_until || weights->ne[0] != width || weights->ne[1] != experts || n > MAX_SCORED ||
        input->type != GGML_TYPE_F32 || input->nb[0] != sizeof(float) || n * input->ne[2] != n) {
        return;
    }
    auto * traits = type_traits_(weights->type);
    auto   convert = traits->vec_dot_type == GGML_TYPE_F32 ? nullptr : type_traits_(traits->vec_dot_type)->from_float;
    static thread_local std::vector<float> scaled, converted;
    scaled.resize(size_t(width));
    converted.resize(2 * size_t(width));
    const float * from = g->chooses.norm ? floats(g->chooses.norm) : nullptr;
    const float * to   = h.chooses.norm ? floats(h.chooses.norm) : nullptr;
    int64_t begin = experts * params->ith / params->nth, end = experts * (params->ith + 1) / params->nth;
    for (int64_t token = 0; token < n; token++) {
        auto x = reinterpret_cast<const float *>(static_cast<const char *>(input->data) + token * int64_t(input->nb[1]));
        for (int64_t i = 0; i < width; i++) {
            scaled[size_t(i)] = from && to && from[i] != 0 ? x[i] / from[i] * to[i] : x[i];
        }
        const void * operand = scaled.data();
        if (convert) {
            convert(scaled.data(), converted.data(), width);
            operand = converted.data();
        }
        for (int64_t e = begin; e < end; e++) {
            const char * row = static_cast<const char *>(weights->data) + e * int64_t(weights->nb[1]);
            traits->vec_dot(int(width), &scores_[size_t(token * experts + e)], 0, row, 0, operand, 0, 1);
        }
    }
    if (params->ith == 0) {  // the others are done when a barrier has ended the node
        scored_     = n;
        scored_for_ = &h;
    }
}

bool expert_cache::there(const group & g, const expert & x) {
    return std::all_of(x.pieces, x.pieces + g.tensors.size(), [](auto & p) { return p.state == READY; });
}

// Whether all that this visit needs of a layer is in memory.
bool expert_cache::complete(const group & g) const {
    return std::all_of(g.experts.begin(), g.experts.end(), [&](auto & x) { return x.pinned != visit_ || there(g, x); });
}

// What the scores are compared by: what llama.cpp makes of logits before it chooses.
void expert_cache::weigh(const router & r, float * scores, size_t n) {
    float greatest = -INFINITY, sum = 0;
    for (size_t e = 0; e < n; e++) {
        scores[e] += r.bias ? floats(r.bias)[e] : 0;
        greatest = std::max(greatest, scores[e]);
    }
    for (size_t e = 0; e < n; e++) {
        sum += std::exp(scores[e] - greatest);
    }
    for (size_t e = 0; r.select && e < n; e++) {  // without it only their order counts
        float x = scores[e];
        scores[e] = floats(r.select)[e] + (r.by == router::SOFTMAX   ? std::exp(x - greatest) / sum
                                           : r.by == router::SIGMOID ? 1 / (1 + std::exp(-x))
                                                                     : std::sqrt(std::log1p(std::exp(x))));
    }
}

// Reads the best experts of each token, as far down as predictions have been right, in place of others
// of their layer.
void expert_cache::foretell_predicted(group & h, int64_t k) {
    size_t experts = h.experts.size();
    k = std::min({k, int64_t(experts), MAX_RANK});
    std::vector<int> order(experts);
    predicted_.clear();
    for (int64_t token = 0; token < scored_; token++) {
        float * scores = &scores_[size_t(token) * experts];
        weigh(h.chooses, scores, experts);
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
        for (int64_t rank = 0; rank < k; rank++) {
            int e = predicted_of_imposed(h, token, rank);
            predicted_.push_back(e < 0 ? order[size_t(rank)] : e);
        }
    }
    predicted_for_ = &h;
    predicted_each_ = size_t(k);
    for (int e : predicted_) {
        h.experts[size_t(e)].pinned = visit_;  // not the one to give way
    }
    std::vector<int> coming;
    auto & trust = scored_ > 1 ? batch_trust_ : h.trust;
    float  least = scored_ > 1 ? WORTHWHILE_IN_BATCH : WORTHWHILE;
    for (size_t i = 0; i < predicted_.size(); i++) {
        int e = predicted_[i];
        if (h.experts[size_t(e)].resident || trust[i % size_t(k)] < least) {
            continue;
        }
        if (!expect(h, e, NEEDED)) {
            break;
        }
        coming.push_back(e);
    }
    share_zeroing(h, coming);
    bool handed = false;
    for (int e : coming) {
        for (size_t t = 0; t < h.tensors.size(); t++) {
            if (h.experts[size_t(e)].from != DIRECT || !h.direct || !read_async(h, e, int(t))) {
                ask(foretold_, h, e, int(t));
                handed = true;
            }
        }
    }
    if (handed) {
        work_.notify_all();
    }
}

// A layer's choice is known: how good was what had been predicted? In a batch a guess is right if any of
// its tokens needs the expert, and all layers are judged alike: a prompt passes each of them only once.
void expert_cache::judge(group & g) {
    if (predicted_for_ != &g || predicted_.empty()) {
        return;
    }
    bool batch = predicted_.size() > predicted_each_;
    auto & trust = batch ? batch_trust_ : g.trust;
    for (size_t i = 0; i < predicted_.size(); i++) {
        bool right = g.experts[size_t(predicted_[i])].pinned == visit_;
        trust[i % predicted_each_] += (float(right) - trust[i % predicted_each_]) / 32;
    }
    predicted_.clear();
    if (!batch && trust[0] < WORTHWHILE) {
        g.doubted_until = clock_ + DOUBT;
        trust[0] = 1;  // to be tried again then
    }
}

}  // namespace localmoe

#endif  // __linux__

// How the experts of each layer are used: what a profile is made of (localmoe/routing/profile.py).

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

struct ggml_tensor;

struct localmoe_usage_totals {
    uint64_t tokens;   // all, those of prompts too
    uint64_t decoded;  // the rest counts these
    uint64_t lookups;  // experts wanted
    uint64_t follow;   // of those, by a token that came right after the one seen before
    uint64_t again;    // of those, wanted by that one too
};

// One layer. Beside the counts it keeps the experts in the order in which caches of every size at
// once hold them, when the least frequently used is evicted and a use counts half after a half-life:
// a cache of c experts holds the first c (Mattson et al., 1970, on priority replacement).
class layer_usage {
  public:
    explicit layer_usage(size_t experts) : uses(experts), found_at(experts), experts_(experts) {}

    // The chosen experts i32 [k, n] of n tokens, the first of which is number `first`.
    void add(const ggml_tensor * chosen, int64_t first, bool decoded, double half_life);

    std::vector<uint64_t> uses;      // per expert
    std::vector<uint64_t> found_at;  // decoded lookups by place: a cache of c finds those below c
    localmoe_usage_totals totals = {};

  private:
    struct state {
        double  worth = -1e300;  // log2 of the fading count, as of token 0
        double  last  = -1;      // when it was used last, less a little for a lower rank
        int64_t token = -2;      // the same as a token
    };

    void add_token(int64_t token, bool decoded, double half_life);
    void look_up(int64_t token);
    void bring_up(int32_t expert, int64_t token);
    bool stays(int32_t a, int32_t b, int64_t token) const;

    std::vector<state>   experts_;
    std::vector<int32_t> order_, ids_;
    int64_t              last_ = -2;  // the token seen before
};

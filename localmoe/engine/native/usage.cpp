#if defined(__linux__)

#include "usage.h"

#include <algorithm>
#include <cmath>

#include "ggml_layout.h"

void layer_usage::add(const ggml_tensor * chosen, int64_t first, bool decoded, double half_life) {
    for (int64_t row = 0; row < chosen->ne[1]; row++) {
        const char * from = static_cast<const char *>(chosen->data) + row * int64_t(chosen->nb[1]);
        ids_.clear();
        for (int64_t rank = 0; rank < chosen->ne[0]; rank++) {
            int32_t id = *reinterpret_cast<const int32_t *>(from + rank * int64_t(chosen->nb[0]));
            if (id >= 0 && id < int32_t(experts_.size())) {
                ids_.push_back(id);
            }
        }
        add_token(first + row, decoded, half_life);
    }
}

void layer_usage::add_token(int64_t token, bool decoded, double half_life) {
    totals.tokens++;
    if (decoded) {
        look_up(token);
    }
    double now = double(token) / half_life;
    for (size_t rank = 0; rank < ids_.size(); rank++) {
        auto & expert = experts_[size_t(ids_[rank])];
        uses[size_t(ids_[rank])]++;
        expert.worth = now + std::log2(std::exp2(expert.worth - now) + 1);
        expert.last  = double(token) + 1 - double(rank + 1) / double(ids_.size() + 1);
        expert.token = token;
    }
    for (int32_t id : ids_) {
        bring_up(id, token);
    }
    last_ = token;
}

void layer_usage::look_up(int64_t token) {
    totals.decoded++;
    totals.lookups += ids_.size();
    totals.follow += last_ == token - 1 ? ids_.size() : 0;
    for (int32_t id : ids_) {
        totals.again += last_ == token - 1 && experts_[size_t(id)].token == last_;
        auto place = std::find(order_.begin(), order_.end(), id);
        if (place != order_.end()) {
            found_at[size_t(place - order_.begin())]++;
        }
    }
}

// To the front, or behind what its token uses too; from place to place, what the smaller cache evicts
// stays in the larger one if it is worth more than what that one would evict.
void layer_usage::bring_up(int32_t expert, int64_t token) {
    int32_t carried = expert;
    for (size_t place = 0; place < order_.size(); place++) {
        if (order_[place] == expert) {
            order_[place] = carried;
            return;
        }
        if (stays(carried, order_[place], token)) {
            std::swap(carried, order_[place]);
        }
    }
    order_.push_back(carried);
}

bool layer_usage::stays(int32_t a, int32_t b, int64_t token) const {
    auto & x = experts_[size_t(a)];
    auto & y = experts_[size_t(b)];
    if ((x.token == token) != (y.token == token)) {  // none is evicted for another of its token
        return x.token == token;
    }
    return x.worth > y.worth || (x.worth == y.worth && x.last > y.last);
}

#endif  // __linux__

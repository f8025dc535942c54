// What the routers chose, written as steps of the trace format (localmoe/routing/recorder.py).

#pragma once

#include <cstdint>
#include <vector>

struct ggml_tensor;

struct localmoe_recorded_layer {
    int32_t index;    // in the model
    int32_t experts;
    int32_t used;     // top-k
};

using op_name_fn = const char * (*)(int op);
using to_half_fn = void (*)(const float * from, uint16_t * to, int64_t n);

// One step is one llama_decode: begin, what thread 0 of the computation sees, end. A layer may be
// computed in several parts (micro batches), and for the last tokens of a step only.
class recording {
  public:
    recording(int fd, const localmoe_recorded_layer * layers, int32_t n, bool logits, op_name_fn op_name,
              to_half_fn to_half);

    void begin(const int32_t * tokens, int64_t n, bool prefill);
    void ids(int layer, const ggml_tensor * chosen);       // i32 [k, n]
    void weights(int layer, const ggml_tensor * applied);  // f32 [1, k, n]
    void logits(const ggml_tensor * values);               // f32 [experts, n]

    // The operand of a node that holds a router's logits; null if it has none, or none are wanted.
    const ggml_tensor * logits_in(const ggml_tensor * op) const;

    // Writes the step; an errno, 0 if all went well.
    int end();

  private:
    struct layer {
        int32_t              experts, used;
        int64_t              rows;
        std::vector<int32_t> ids;
        std::vector<float>   weights, logits;
    };

    layer * at(int index);
    template <typename T> void append(T value);
    void append_halves(const std::vector<float> & values);

    const int            fd_;
    const bool           logits_, wide_;  // wide: expert ids of two bytes
    const int            add_, mul_mat_;
    const to_half_fn     to_half_;
    std::vector<layer>   layers_;
    std::vector<int>     places_;  // in layers_, by index in the model; -1: none
    std::vector<int32_t> tokens_;
    bool                 prefill_ = false;
    std::vector<char>    out_;
};

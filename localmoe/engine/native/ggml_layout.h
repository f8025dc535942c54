// What our sources share of ggml: the layouts of ggml.h, ggml-cpu-impl.h, ggml-backend-impl.h and
// traits.h, and the numbers of operations, which are looked up by name because they move from
// version to version.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

constexpr int GGML_TYPE_F32 = 0, GGML_TYPE_I32 = 26;

struct ggml_tensor {
    int           type;
    void *        buffer;
    int64_t       ne[4];
    size_t        nb[4];
    int           op;
    int32_t       op_params[16];
    int32_t       flags;
    ggml_tensor * src[10];
    ggml_tensor * view_src;
    size_t        view_offs;
    void *        data;
    char          name[64];
    void *        extra;
    char          padding[8];
};

struct ggml_compute_params {
    int    ith, nth;
    size_t wsize;
    void * wdata;
    void * threadpool;
    bool   use_ref;
};

struct ggml_type_traits_cpu {
    void (*from_float)(const float * from, void * to, int64_t n);
    void (*vec_dot)(int n, float * sum, size_t bs, const void * x, size_t bx, const void * y, size_t by, int nrc);
    int     vec_dot_type;  // what the other operand is to be
    int64_t nrows;
};

struct ggml_backend_buffer_type {
    void * iface[6];
    void * device;
    void * context;
};

namespace ggml::cpu {
class tensor_traits {
  public:
    virtual ~tensor_traits() = default;
    virtual bool work_size(int n_threads, const ggml_tensor * op, size_t & size)      = 0;
    virtual bool compute_forward(ggml_compute_params * params, ggml_tensor * op)      = 0;
};

class extra_buffer_type {
  public:
    virtual ~extra_buffer_type() = default;
    virtual bool            supports_op(void * dev, const ggml_tensor * op) = 0;
    virtual tensor_traits * get_tensor_traits(const ggml_tensor * op)       = 0;
};
}  // namespace ggml::cpu

using op_name_fn     = const char * (*)(int op);
using extra_types_fn = std::vector<ggml_backend_buffer_type *> & (*)();
using type_traits_fn = const ggml_type_traits_cpu * (*)(int type);
using buffer_base_fn = void * (*)(void * buffer);
using buffer_size_fn = size_t (*)(void * buffer);

// -1 if it is not among the first operations of enum ggml_op, where all that we need are.
inline int op_named(op_name_fn name_of, const char * name) {
    for (int op = 0; op < 64; op++) {
        if (strcmp(name_of(op), name) == 0) {
            return op;
        }
    }
    return -1;
}

inline bool begins(const ggml_tensor * t, const char * with) { return strncmp(t->name, with, strlen(with)) == 0; }

// llama.cpp ends the names of a layer's nodes with its number: "ffn_moe_logits_biased-12" → 12; -1: none.
inline int layer_of(const ggml_tensor * t) {
    const char * dash = strchr(t->name, '-');
    return dash ? atoi(dash + 1) : -1;
}

// -1: the node is called otherwise.
inline int layer_named(const ggml_tensor * t, const char * prefix) { return begins(t, prefix) ? layer_of(t) : -1; }

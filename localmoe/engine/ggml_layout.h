// What our sources share of ggml: a tensor's layout (ggml.h), and the numbers of operations, which
// are looked up by name because they move from version to version.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

struct ggml_tensor {
    int           type;  // 0: 32-bit floats
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

using op_name_fn = const char * (*)(int op);

// -1 if it is not among the first operations of enum ggml_op, where all that we need are.
inline int op_named(op_name_fn name_of, const char * name) {
    for (int op = 0; op < 64; op++) {
        if (strcmp(name_of(op), name) == 0) {
            return op;
        }
    }
    return -1;
}

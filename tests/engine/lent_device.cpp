// A device without hardware: memory of its own, which no other backend may touch, and the processor's kernels.
// As GPUs do, it takes multiplications by weights in host memory from 32 tokens on. LENT_REFUSES: a part of the names
// of tensors by which it does not multiply.

#include "ggml-backend-impl.h"

#include <cstdlib>
#include <cstring>

static ggml_backend_reg_t registry();
static ggml_backend_dev_t device(ggml_backend_reg_t, size_t);
static ggml_backend_dev_t processor() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

static const char * name(ggml_backend_dev_t) { return "CUDA0"; }
static const char * description(ggml_backend_dev_t) { return "a lent device"; }
static enum ggml_backend_dev_type type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }
static void memory(ggml_backend_dev_t, size_t * free, size_t * total) { *free = *total = size_t(1) << 30; }

static void properties(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name = name(dev);
    props->description = description(dev);
    memory(dev, &props->memory_free, &props->memory_total);
    props->type = type(dev);
}

// ---- memory: what was not written there is no number ---------------------------------------------

static const char * buffer_name(ggml_backend_buffer_type_t) { return "CUDA0"; }
static size_t alignment(ggml_backend_buffer_type_t) { return 64; }
static bool no_host(ggml_backend_buffer_type_t) { return false; }

static ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_dev_buffer_type(processor()), size);
    buffer->buft = type;
    memset(ggml_backend_buffer_get_base(buffer), 0xff, size);
    return buffer;
}

static ggml_backend_buffer_type_t buffers(ggml_backend_dev_t dev) {
    static ggml_backend_buffer_type one = { { buffer_name, allocate, alignment, nullptr, nullptr, no_host }, dev, nullptr };
    return &one;
}

// ---- computing -----------------------------------------------------------------------------------

static const char * backend_name(ggml_backend_t) { return "CUDA0"; }

static void end(ggml_backend_t backend) {
    ggml_backend_free(static_cast<ggml_backend_t>(backend->context));
    delete backend;
}

static enum ggml_status compute(ggml_backend_t backend, ggml_cgraph * graph) {
    return ggml_backend_graph_compute(static_cast<ggml_backend_t>(backend->context), graph);
}

static ggml_backend_t start(ggml_backend_dev_t dev, const char *) {
    static ggml_guid guid = { 1, 2, 3 };
    ggml_backend_i calls = {};
    calls.get_name = backend_name;
    calls.free = end;
    calls.graph_compute = compute;
    return new ggml_backend{ &guid, calls, dev, ggml_backend_dev_init(processor(), nullptr) };
}

static bool supports(ggml_backend_dev_t, const ggml_tensor * op) {
    const char * refused = getenv("LENT_REFUSES");
    if (refused && op->op == GGML_OP_MUL_MAT_ID && strstr(op->src[0]->name, refused)) {
        return false;
    }
    return ggml_backend_dev_supports_op(processor(), op);
}

static bool supports_memory(ggml_backend_dev_t dev, ggml_backend_buffer_type_t type) { return type == buffers(dev); }

static bool takes(ggml_backend_dev_t, const ggml_tensor * op) {
    return (op->op == GGML_OP_MUL_MAT && op->ne[1] >= 32) || (op->op == GGML_OP_MUL_MAT_ID && op->ne[2] >= 32);
}

static ggml_backend_dev_t device(ggml_backend_reg_t, size_t) {
    static ggml_backend_device one = {
        { name, description, memory, type, properties, start, buffers, nullptr, nullptr, supports, supports_memory, takes,
          nullptr, nullptr, nullptr },
        registry(), nullptr,
    };
    return &one;
}

static const char * registry_name(ggml_backend_reg_t) { return "CUDA"; }
static size_t count(ggml_backend_reg_t) { return 1; }

static ggml_backend_reg_t registry() {
    static ggml_backend_reg one = {
        GGML_BACKEND_API_VERSION, { registry_name, count, device, nullptr }, nullptr,
    };
    return &one;
}

GGML_BACKEND_DL_IMPL(registry)

// A backend of ggml with one device, as small as one can be. TINY says how it fails:
// load-crash, load-hang (when it is loaded), time-crash, time-hang (when its device is used).

#include "ggml-backend-impl.h"

#include <cstdlib>
#include <cstring>
#include <unistd.h>

static void fail_if(const char * stage) {
    const char * how = getenv("TINY");
    if (how == nullptr || strncmp(how, stage, strlen(stage)) != 0) return;
    if (strstr(how, "hang") != nullptr) while (true) pause();
    abort();
}

static ggml_backend_reg_t registry();

static const char * name(ggml_backend_dev_t) { return "Tiny0"; }
static const char * description(ggml_backend_dev_t) { return "a tiny card"; }
static enum ggml_backend_dev_type type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }
static bool no(ggml_backend_dev_t, const ggml_tensor *) { return false; }
static bool not_there(ggml_backend_dev_t, ggml_backend_buffer_type_t) { return false; }

static void memory(ggml_backend_dev_t, size_t * free, size_t * total) {
    *free = *total = size_t(1) << 30;
}

static void properties(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name = name(dev);
    props->description = description(dev);
    memory(dev, &props->memory_free, &props->memory_total);
    props->type = type(dev);
}

static ggml_backend_t start(ggml_backend_dev_t, const char *) {
    fail_if("time");
    return nullptr;
}

static ggml_backend_buffer_type_t buffers(ggml_backend_dev_t) { return nullptr; }

static ggml_backend_dev_t device(ggml_backend_reg_t, size_t) {
    static ggml_backend_device one = {
        { name, description, memory, type, properties, start, buffers, nullptr, nullptr, no,
          not_there, nullptr, nullptr, nullptr, nullptr },
        registry(), nullptr,
    };
    return &one;
}

static const char * registry_name(ggml_backend_reg_t) { return "CUDA"; }
static size_t count(ggml_backend_reg_t) { return getenv("TINY") == nullptr ? 0 : 1; }

static ggml_backend_reg_t registry() {
    static ggml_backend_reg one = {
        GGML_BACKEND_API_VERSION, { registry_name, count, device, nullptr }, nullptr,
    };
    return &one;
}

static ggml_backend_reg_t loaded() {
    fail_if("load");
    return registry();
}

GGML_BACKEND_DL_IMPL(loaded)

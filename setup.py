"""Only the optional native helper is declared here; everything else is in pyproject.toml.

It is built with the compiler that llama-cpp-python needs anyway. If the build fails, the
package installs without it and the engine uses its slower Python paths.
"""

from setuptools import Extension, setup

NATIVE = "localmoe/engine/native"
SOURCES = (
    "native",
    "experts",
    "expert_memory",
    "expert_prediction",
    "expert_reading",
    "expert_steering",
    "recording",
    "usage",
)
HEADERS = (
    "direct_queue",
    "expert_cache",
    "ggml_layout",
    "prefault_list",
    "recording",
    "usage",
)

setup(
    ext_modules=[
        Extension(
            "localmoe.engine.native._native",
            sources=[f"{NATIVE}/{name}.cpp" for name in SOURCES],
            depends=[f"{NATIVE}/{name}.h" for name in HEADERS],
            extra_compile_args=["-std=c++17", "-O2"],
            optional=True,
        )
    ]
)

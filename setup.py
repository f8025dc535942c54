"""Only the optional native helper is declared here; everything else is in pyproject.toml.

It is built with the compiler that llama-cpp-python needs anyway. If the build fails, the
package installs without it and the engine uses its slower Python paths.
"""

import sys

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
    "export",
    "ggml_layout",
    "prefault_list",
    "recording",
    "usage",
)

LINUX = sys.platform.startswith("linux")
EXPORTS = f"{NATIVE}/exports.map"  # it is preloaded, so no symbol may be seen that is not meant to

setup(
    ext_modules=[
        Extension(
            "localmoe.engine.native._native",
            sources=[f"{NATIVE}/{name}.cpp" for name in SOURCES],
            depends=[*(f"{NATIVE}/{name}.h" for name in HEADERS), EXPORTS],
            extra_compile_args=["-std=c++17", "-O2", "-fvisibility=hidden"],
            extra_link_args=[f"-Wl,--version-script={EXPORTS}"] if LINUX else [],
            optional=True,
        )
    ]
)

"""The same run as flags of llama.cpp's own programs, to compare with or to leave for.

Source of the names: ``common/arg.cpp`` of the llama.cpp in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from localmoe.planning.memory import EngineSettings


def llama_args(settings: EngineSettings) -> list[str]:
    """``llama-server`` flags that ask for exactly these settings; ``-m FILE`` is not among them.

    ``--fit off`` and ``-np 1``: llama-server would otherwise move things by itself and plan for
    four conversations at once.
    """
    args = ["--fit", "off", "-np", "1"]
    args += ["-c", str(settings.context), "-b", str(settings.batch), "-ub", str(settings.ubatch)]
    args += ["-ctk", settings.type_k, "-ctv", settings.type_v]
    if settings.flash_attention is not None:
        args += ["-fa", "on" if settings.flash_attention else "off"]
    if settings.swa_full:
        args.append("--swa-full")
    if settings.remotes:
        args += ["--rpc", ",".join(dict.fromkeys(settings.remotes))]
    args += ["-dev", ",".join(settings.devices) or "none"]
    if len(settings.devices) > 1 and settings.tensor_split:
        args += ["-ts", ",".join(f"{share:g}" for share in settings.tensor_split)]
    args += ["-ngl", "all" if settings.gpu_layers < 0 else str(settings.gpu_layers)]
    for pattern, device in settings.overrides:
        args += ["-ot", f"{pattern}={buffer_type(device, settings)}"]
    if not settings.op_offload:
        args.append("--no-op-offload")
    args += ["-lm", settings.load_mode]
    if not settings.repack:
        args.append("--no-repack")
    if settings.threads:
        args += ["-t", str(settings.threads)]
    if settings.threads_batch:
        args += ["-tb", str(settings.threads_batch)]
    return args


def buffer_type(device: str, settings: EngineSettings) -> str:
    """What ``-ot`` and llama.cpp's log call a device: of a worker's first one ``RPC0[host:port]``.

    They name buffer types. Source: ``ggml_backend_rpc_buffer_type``. The number in it is the
    device's within its worker, while the name of the device counts over all workers.
    """
    if not device.startswith("RPC") or not settings.remotes:
        return device
    number = int(device.removeprefix("RPC"))
    endpoint = settings.remotes[number]
    return f"RPC{settings.remotes[:number].count(endpoint)}[{endpoint}]"

"""``engine``: how llama.cpp was built here, and how to build it for other devices."""

from __future__ import annotations

import time
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.text import Text

from localmoe.app.engine_builds import installed, kept_builds, planned_build, require_tools
from localmoe.app.idle_gpus import idle_gpus, idle_line
from localmoe.cli.arguments import Options
from localmoe.cli.output import Output
from localmoe.engine import builds
from localmoe.engine.builds import BACKENDS, Build
from localmoe.engine.devices import EngineInfo, engine_info
from localmoe.engine.rpc_build import build_rpc_library, find_rpc_library
from localmoe.errors import UsageError
from localmoe.facts import hardware
from localmoe.terminal.live_line import LiveLine
from localmoe.terminal.tables import pairs
from localmoe.text import format_bytes, format_duration

RPC = "rpc"


def engine_command(options: Options, output: Output) -> int:
    """Exit code 1 when the engine does not work or could not be built."""
    words = options.words + (options.after_dashes or ())
    if not words:
        return _show(output)
    if words[0] != "install" or len(words) != 2 or words[1] not in (*BACKENDS, RPC):
        raise UsageError(
            f"engine: {' '.join(words)}: not understood",
            hint=f"localmoe engine, or localmoe engine install {'|'.join((*BACKENDS, RPC))}",
        )
    if words[1] == RPC:
        return _install_rpc(options, output)
    return _install(words[1], options, output)


def _show(output: Output) -> int:
    info = engine_info()
    machine = hardware.detect(info.gpus)
    idle = idle_gpus(machine)
    if output.as_json:
        output.json(document(info) | {"idle_gpus": [asdict(gpu) for gpu in idle]})
        return 0
    output.print(screen(info))
    for gpu in idle:
        output.note(idle_line(gpu))
    return 0


def document(info: EngineInfo) -> dict[str, object]:
    """``engine --json``."""
    return {
        "binding": builds.binding_version(),
        **asdict(info),
        "kept_builds": kept_builds(),
    }


def screen(info: EngineInfo) -> RenderableType:
    """What was built, and what could be."""
    rows: list[tuple[str, str | Text]] = [
        ("llama.cpp", f"{info.version}, of llama-cpp-python {builds.binding_version()}"),
        ("backends", ", ".join(info.backends)),
        ("processor", ", ".join(info.cpu_features) or "no special features"),
        ("other machines", "yes (RPC)" if info.rpc else "no: localmoe engine install rpc"),
        ("native helper", "present" if info.native_helper else "missing (localmoe doctor)"),
    ]
    for gpu in info.gpus:
        memory = f"{format_bytes(gpu.free)} free of {format_bytes(gpu.total)}"
        rows.append((gpu.device or "GPU", f"{gpu.name}, {memory}"))
    kept = kept_builds()
    rows.append(("kept builds", ", ".join(kept) or "none yet"))
    lines: list[RenderableType] = [pairs(rows), Text()]
    lines += [
        pairs(
            (f"localmoe engine install {name}", about)
            for name, about in (*((b.name, b.about) for b in BACKENDS.values()), _RPC_ABOUT)
        )
    ]
    return Group(*lines)


_RPC_ABOUT = (RPC, "workers on other machines; added to any build in seconds")


def _install(name: str, options: Options, output: Output) -> int:
    build = planned_build(name, anew=options.yes)
    if options.dry_run:
        if output.as_json:
            output.json(build_document(build))
        else:
            output.print(explanation(build))
        return 0 if not build.missing or build.kept else 1
    require_tools(build)
    if not output.as_json and not output.quiet:
        output.stderr.print(explanation(build))
    started = time.monotonic()
    with LiveLine(output.stderr) as line:
        for share in builds.execute(build):
            line.show(f"building for {name} · {100 * share:.0f} %" if share < 1 else "installing")
    info = installed(build)
    seconds = time.monotonic() - started
    if output.as_json:
        output.json(build_document(build) | {"seconds": round(seconds, 1), **document(info)})
    else:
        devices = ", ".join(gpu.name for gpu in info.gpus) or "the processor"
        done = "installed" if build.kept else "built and installed"
        output.print(Text(f"{done} for {name} in {format_duration(seconds)}: {devices}"))
    return 0


def explanation(build: Build) -> RenderableType:
    """What will be done, what for, how long it takes; for a dry run too."""
    if build.kept is not None:
        takes = "seconds: the wheel of an earlier build is kept"
    else:
        rough = "" if build.backend.name == "cpu" else "roughly "
        takes = (
            f"{rough}{format_duration(60 * build.minutes)} with {_jobs(build)} compilers at once"
        )
    tools = ", ".join(tool.name for tool in build.missing)
    rows: list[tuple[str, str | Text]] = [
        ("builds", f"llama.cpp of llama-cpp-python {build.version} for {build.backend.about}"),
        ("takes", takes),
        ("keeps", f"the wheel in {build.folder}; the present engine until it is complete"),
    ]
    if tools:
        rows.append(("missing", Text(tools, "bold red")))
        rows += [("", tool.get) for tool in build.missing]
    lines: list[RenderableType] = [pairs(rows)]
    lines += [Text(f"  {command}", style="cyan", overflow="fold") for command in build.commands]
    return Group(*lines)


def _jobs(build: Build) -> str:
    return build.environment["CMAKE_BUILD_PARALLEL_LEVEL"]


def build_document(build: Build) -> dict[str, object]:
    """``engine install BACKEND --json``."""
    return {
        "backend": build.backend.name,
        "binding": build.version,
        "kept": str(build.kept) if build.kept else None,
        "missing": [asdict(tool) for tool in build.missing],
        "expected_seconds": round(60 * build.minutes),
        "commands": build.commands,
    }


def _install_rpc(options: Options, output: Output) -> int:
    """The RPC backend alone, beside the engine that is there."""
    there = find_rpc_library()
    if options.dry_run:
        text = (
            f"there already: {there}"
            if there
            else "compiles two files of llama.cpp's source (fetched by pip) beside the engine, in "
            "some seconds; the engine itself stays as it is"
        )
        if output.as_json:
            output.json(
                {"backend": RPC, "path": str(there) if there else None, "explanation": text}
            )
        else:
            output.print(Text(text))
        return 0
    started = time.monotonic()
    with LiveLine(output.stderr) as line:
        line.show("fetching llama.cpp's source and compiling its RPC backend")
        path = build_rpc_library(anew=options.yes)
    seconds = time.monotonic() - started
    if output.as_json:
        output.json({"backend": RPC, "path": str(path), "seconds": round(seconds, 1)})
    else:
        words = "there already" if there and not options.yes else f"built in {seconds:.0f} s"
        output.print(Text(f"{words}: {path}"), Text("localmoe worker and --remote work now"))
    return 0

"""``engine``: how llama.cpp was built here, and how to add or build what other devices need."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from localmoe.app import engine_builds
from localmoe.app.idle_gpus import idle_gpus, idle_line
from localmoe.cli.arguments import Options
from localmoe.cli.output import Output
from localmoe.engine import modules
from localmoe.engine.backends import BACKENDS, Backend
from localmoe.engine.builds import Build
from localmoe.engine.devices import EngineInfo, engine_info
from localmoe.engine.package import binding_version
from localmoe.errors import UsageError
from localmoe.facts import hardware
from localmoe.terminal.live_line import LiveLine
from localmoe.terminal.tables import pairs
from localmoe.text import format_bytes, format_duration, format_size

MODULE = ".so"  # ends the name of a module's file


def engine_command(options: Options, output: Output) -> int:
    """Exit code 1 when the engine does not work or could not be built."""
    words = options.words + (options.after_dashes or ())
    if not words:
        return _show(output)
    action, *names = words
    if action == "install" and len(names) == 1:
        if names[0] in BACKENDS:
            return _install(names[0], options, output)
        if names[0].endswith(MODULE):
            return _install_file(Path(names[0]), options, output)
    if action == "remove" and len(names) == 1 and names[0] in modules.NAMES:
        removed = modules.remove(names[0])
        if output.as_json:
            output.json({"backend": names[0], "removed": str(removed)})
        else:
            output.print(Text(f"removed {removed}"))
        return 0
    raise UsageError(
        f"engine: {' '.join(words)}: not understood",
        hint=f"localmoe engine, localmoe engine install {'|'.join(BACKENDS)}, "
        f"or localmoe engine remove {'|'.join(modules.NAMES)}",
    )


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
        "binding": binding_version(),
        **asdict(info),
        "kept_builds": engine_builds.kept_builds(),
    }


def screen(info: EngineInfo) -> RenderableType:
    """What was built, and what could be."""
    rows: list[tuple[str, str | Text]] = [
        ("llama.cpp", f"{info.version}, of llama-cpp-python {binding_version()}"),
        ("backends", ", ".join(info.backends)),
        ("processor", ", ".join(info.cpu_features) or "no special features"),
        ("other machines", "yes (RPC)" if info.rpc else "no: localmoe engine install rpc"),
        ("native helper", "present" if info.native_helper else "missing (localmoe doctor)"),
    ]
    rows += [(f"{name} module", problem or "in use") for name, problem in info.modules.items()]
    for gpu in info.gpus:
        memory = f"{format_bytes(gpu.free)} free of {format_bytes(gpu.total)}"
        rows.append((gpu.device or "GPU", f"{gpu.name}, {memory}"))
    rows.append(("kept builds", ", ".join(engine_builds.kept_builds()) or "none yet"))
    commands = [(f"localmoe engine install {b.name}", b.about) for b in BACKENDS.values()]
    return Group(pairs(rows), Text(), *(pairs([command]) for command in commands))


def _install(name: str, options: Options, output: Output) -> int:
    build = engine_builds.planned_build(name, anew=options.yes)
    if options.dry_run:
        if output.as_json:
            output.json(build_document(build))
        else:
            output.print(explanation(build))
        return 0 if not build.missing or build.kept else 1
    engine_builds.require_tools(build)
    if not output.as_json and not output.quiet:
        output.stderr.print(explanation(build))
    started = time.monotonic()
    with LiveLine(output.stderr) as line:
        for share in build.execute():
            line.show(f"building for {name} · {100 * share:.0f} %" if share < 1 else "installing")
    info = engine_builds.installed(build.backend)
    seconds = time.monotonic() - started
    if output.as_json:
        output.json(build_document(build) | {"seconds": round(seconds, 1), **document(info)})
    else:
        done = "installed" if build.kept else "built and installed"
        output.print(_done(build.backend, f"{done} for {name} in {format_duration(seconds)}", info))
    return 0


def _install_file(path: Path, options: Options, output: Output) -> int:
    """A module that was built elsewhere, as on a machine without a network."""
    if options.dry_run:
        raise UsageError("a module's file is only copied", hint="leave --dry-run out")
    backend = engine_builds.install_file(path)
    info = engine_builds.installed(backend)
    if output.as_json:
        output.json({"backend": backend.name, **document(info)})
    else:
        output.print(_done(backend, f"installed for {backend.name}", info))
    return 0


def _done(backend: Backend, what: str, info: EngineInfo) -> Text:
    own = [gpu.name for gpu in info.gpus if gpu.backend == backend.registry_name.lower()]
    if backend.name == "rpc":
        return Text(f"{what}; localmoe worker and --remote work now")
    devices = ", ".join(own) if own else "no device of it is seen here (localmoe doctor)"
    return Text(f"{what}: {'the processor' if backend.name == 'cpu' else devices}")


def explanation(build: Build) -> RenderableType:
    """What will be done, what for, how long it takes; for a dry run too."""
    backend = build.backend
    if build.kept is not None:
        takes = f"seconds: {build.kept} is there ({format_size(build.kept.stat().st_size)})"
    else:
        rough = "" if backend.name == "cpu" else "roughly "
        expected = format_duration(60 * build.minutes)
        takes = f"{rough}{expected} with {build.jobs} compilers at once"
    what = "a module" if backend.module else "llama.cpp"
    rows: list[tuple[str, str | Text]] = [
        ("builds", f"{what} of llama-cpp-python {build.version} for {backend.about}"),
        ("takes", takes),
        ("keeps", f"{build.target}; the present engine until it is complete"),
    ]
    if build.missing:
        rows.append(("missing", Text(", ".join(tool.name for tool in build.missing), "bold red")))
        rows += [("", tool.get) for tool in build.missing]
    lines: list[RenderableType] = [pairs(rows)]
    lines += [Text(f"  {command}", style="cyan", overflow="fold") for command in build.commands]
    return Group(*lines)


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

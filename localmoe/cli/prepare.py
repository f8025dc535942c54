"""From options to facts to a plan: the thin shell around header, hardware, engine and planner."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from localmoe import ledger
from localmoe.cli.arguments import Options
from localmoe.cli.config import defaults as configured
from localmoe.cli.documents import machine_from_document
from localmoe.cli.output import Output
from localmoe.engine.devices import engine_info
from localmoe.engine.oracle import Oracle
from localmoe.engine.process import WorkerProcess
from localmoe.errors import DoesNotFitError, ModelFileError, UsageError
from localmoe.facts import catalog, hardware
from localmoe.facts.hardware import Gpu, Machine
from localmoe.facts.model import Model, read_model
from localmoe.hub import names
from localmoe.hub.cache import RepoCache
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import ExpertsOn, Plan, Wishes
from localmoe.routing import profile
from localmoe.text import clean_line, format_bytes

BUNDLED = catalog.BUNDLED
MACHINE_FILE_LIMIT = 1 << 20  # bytes; a real one has about 2 KB


def open_model(name: str | None, output: Output, options: Options | None = None) -> Model:
    """The model of that name; without one the bundled model, announced in one line.

    With ``options`` it is to be run, and downloaded first if need be. Raises UnknownModelError
    (with the nearest names), ModelFileError, and for downloads what ``download_model`` does.
    """
    if name is None:
        name, why = configured.default_model()
        output.note(
            f"no MODEL given: using {clean_line(name)}, {why} "
            "(`localmoe list` shows what else is here)"
        )
    try:
        path = catalog.resolve(name)
        to_finish = path.is_relative_to(catalog.hub_cache()) and not catalog.is_whole(path)
        if options is not None and to_finish and not catalog.is_path(name):
            path = download_model(name, options, output)
    except catalog.NotHereError:
        if options is None:
            raise
        path = download_model(name, options, output)
    if name != BUNDLED and not name.endswith(path.name):
        output.note(f"{name}: using {path.name}")
    model = read_model(path)
    if path.name.startswith("sha256-"):  # a blob of Ollama's
        model = dataclasses.replace(model, name=name)
    return model


def download_model(name: str, options: Options, output: Output) -> Path:
    """Verdict, question, download: the first file of a model that is not here yet.

    Raises UsageError when there is nobody to ask, DoesNotFitError when it would not run here,
    TransferError, UnknownModelError.
    """
    from localmoe.cli.fit import screens as fit_screens
    from localmoe.cli.fitting import Search, best_of
    from localmoe.cli.pull import command as pull

    reference = names.parse(name)
    assert reference is not None  # or it would not be "not here"
    search = Search(reference, options, output)
    machine = find_machine(options, imagined=False)
    files, why = best_of(search, options)
    (found,) = search.fit(machine, [files], imagined=False)
    output.note(fit_screens.before_download(found, why if search.chosen is None else ""))
    if not found.fits:
        hint = f"localmoe fit {clean_line(reference.repo)} shows what would"
        raise DoesNotFitError(f"{found.label}: {found.reason}", hint=hint)
    if doubt := pull.doubt_about(found, options.min_tps):
        output.warn(f"{found.label} {doubt}")
    wanted = pull.Wanted(reference, search.listing, files)
    if wanted.missing and not options.yes:
        if output.as_json or not pull.somebody_there(output):
            raise UsageError(
                f"{clean_line(name)} is not on this machine: {format_bytes(wanted.missing)}",
                hint=f"--yes downloads it; or first: localmoe pull {clean_line(name)}",
            )
        if not pull.confirm("Download it?", output):
            raise UsageError("not downloaded", hint=f"localmoe fit {clean_line(reference.repo)}")
    return pull.fetch(wanted, output).paths[0]


@contextlib.contextmanager
def header_of(
    name: str, options: Options, output: Output
) -> Iterator[tuple[Model, tuple[Path, ...]]]:
    """The model of that name, here or on the Hub, to look at but not to load.

    And where its files are, or would be after a download. Raises what ``open_model`` does, and
    TransferError.
    """
    try:
        model = open_model(name, output)
        yield model, model.paths
        return
    except catalog.NotHereError:
        reference = names.parse(name)
        if reference is None:
            raise
    from localmoe.cli.fitting import Search, best_of

    search = Search(reference, options, output)
    files, why = best_of(search, options)
    if search.chosen is None:
        output.note(f"{clean_line(name)}: looking at {clean_line(files.label)} ({why})")
    with search.skeletons([files]) as found:
        remote = found[files]
        if isinstance(remote, ModelFileError):
            raise remote
        cache, commit = RepoCache.of(search.listing.repo), search.listing.commit
        yield remote, tuple(cache.pointer(commit, file) for file in files.files)


def find_machine(options: Options, *, imagined: bool) -> Machine:
    """This machine, or the one of ``--machine``, with ``--ram`` and ``--vram`` applied.

    ``imagined``: nothing will be loaded, so devices that the engine does not have may be planned
    for. Raises UsageError for a ``--machine`` that cannot be read or cannot be used here.
    """
    devices = engine_info(options.remotes).gpus
    if options.machine is None:
        machine = hardware.detect(devices)
    elif imagined:
        machine = _as_seen_from_here(read_machine(Path(options.machine)), devices)
    else:
        raise UsageError(
            f"--machine plans for another machine; {options.command} loads the model on this one",
            hint="localmoe fit MODEL --machine FILE, localmoe plan MODEL --machine FILE",
        )
    return apply_limits(machine, options, imagined=imagined)


def apply_limits(machine: Machine, options: Options, *, imagined: bool) -> Machine:
    """The machine with the free memory that ``--ram`` and ``--vram`` name. Pure.

    Raises UsageError for GPU memory that a run could not use.
    """
    if options.ram is not None and imagined:
        total = max(machine.ram_total, options.ram)
        machine = dataclasses.replace(machine, ram_total=total, ram_available=options.ram)
    if not options.vram or any(gpu.device for gpu in machine.gpus):
        return machine
    if not imagined:
        raise UsageError(
            "--vram: this engine build has no GPU to use",
            hint="`localmoe doctor` says why; `localmoe plan MODEL --vram 8` supposes one",
        )
    # --vram on a machine without a usable GPU asks what one of that size would change.
    seen = machine.gpus[0] if machine.gpus else None
    supposed = Gpu(
        name=seen.name if seen else "supposed GPU",
        total=options.vram,
        free=options.vram,
        in_engine=False,
        device="GPU0",
        backend=seen.backend if seen else None,
    )
    return dataclasses.replace(machine, gpus=(supposed,))


def wishes(options: Options) -> Wishes:
    """The part of the options that the planner decides by. Pure."""
    return Wishes(
        context=options.context,
        type_k=options.type_k,
        type_v=options.type_v,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        n_cpu_moe=options.n_cpu_moe,
        ram=options.ram,
        vram=options.vram,
        batch=options.batch,
        experts_on=tuple(ExpertsOn(tier, spans) for tier, spans in options.experts_on),
        overrides=options.overrides,
        cache=options.cache,
        cache_ram=options.cache_ram,
        experts=options.experts,
        prefer_cached=options.prefer_cached,
    )


def plan_for(model: Model, machine: Machine, options: Options, *, imagined: bool) -> Plan:
    """Ask the engine and decide. Raises ModelFileError, EngineError or EngineCrashError.

    What loaded models have been promised is not planned with, unless ``imagined``
    and the free memory was stated.
    """
    return plans_for(model, machine, None, options, imagined=imagined)[0]


def plans_for(
    model: Model,
    machine: Machine,
    other: Machine | None,
    options: Options,
    *,
    imagined: bool,
    worker: WorkerProcess | None = None,
) -> tuple[Plan, Plan | None]:
    """The plans for one machine and, if given, for another, by the same answers of the engine."""
    promised = 0
    if options.machine is None and not (imagined and options.ram is not None):
        promised = sum(promise.outstanding_ram for promise in ledger.promises())
    wanted = wishes(options)
    used = profile.load(profile.key_of(model)) if model.is_moe else None
    with Oracle(model, worker) as measure:
        plan = make_plan(model, machine, wanted, measure, promised, used)
        if other is None:
            return plan, None
        return plan, make_plan(model, other, wanted, measure, promised, used)


def with_gpu_build(machine: Machine, options: Options) -> Machine | None:
    """The machine as an engine build with its GPUs would see it; None if nothing would change."""
    idle = [gpu for gpu in machine.gpus if gpu.device is None and not gpu.unified]
    if not idle or options.vram is not None:
        return None
    gpus = tuple(
        dataclasses.replace(gpu, device=f"GPU{i}") if gpu.device is None else gpu
        for i, gpu in enumerate(machine.gpus)
    )
    return dataclasses.replace(machine, gpus=gpus)


def read_machine(path: Path) -> Machine:
    """The machine that ``doctor --json`` described. Raises UsageError."""
    hint = "write one with `localmoe doctor --json > machine.json` on that machine"
    try:
        with path.open("rb") as file:
            text = file.read(MACHINE_FILE_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"--machine {path}: {error.strerror}", hint=hint) from error
    if len(text) > MACHINE_FILE_LIMIT:
        raise UsageError(f"--machine {path}: larger than any machine document", hint=hint)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--machine {path} is not JSON", hint=hint) from error
    return machine_from_document(document, f"--machine {path}")


def _as_seen_from_here(machine: Machine, devices: Sequence[Gpu]) -> Machine:
    """Another machine's GPUs, marked by whether this engine build could be asked about them.

    The workers that ``--remote`` names are added: they are as near to that machine as to this one.
    """
    here = {gpu.device for gpu in devices}
    gpus = tuple(dataclasses.replace(g, in_engine=g.device in here) for g in machine.gpus)
    workers = tuple(gpu for gpu in devices if gpu.remote is not None)
    return dataclasses.replace(machine, gpus=(*workers, *gpus))

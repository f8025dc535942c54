"""The options there are: how each is typed, what it means, and which commands take it.

A command takes the options that change what it does (docs/decisions/0006): those of placement where
a plan is made, those of the answer where tokens are made. Parser, help, completion and settings are
all made from this table.
"""

from __future__ import annotations

from localmoe.cli import placement_options
from localmoe.cli.commands import COMMANDS
from localmoe.cli.option import FILES, MODELS, SESSIONS, group, option
from localmoe.cli.option_types import (
    MAX_INT,
    alias,
    duration,
    each,
    gib,
    layers,
    limits,
    names,
    number,
    overflow,
    ram,
    seed,
    token_limit,
    tokens,
    whole,
)

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
CACHES = ("auto", "off", "page", "private")
REPACKING = ("off", "on")
THINK_LEVELS = ("auto", "off", "low", "medium", "high")
OVERFLOWS = ("ask", "drop", "summarise", "stop")  # chat/context.py

PLANS = ("fit", "pull", "plan", "run", "chat", "serve", "show", "bench", "experts record")
LOADS = ("run", "chat", "serve", "bench", "experts record")
WRITES = ("run", "chat", "experts record")
SAMPLES = (*WRITES, "serve")
TALKS = ("run", "chat")
REPLAYS = ("experts simulate", "experts report")
EVERY = (*COMMANDS, *(f"{c.name} {action}" for c in COMMANDS.values() for action in c.actions))
ANSWERS = tuple(name for name in EVERY if name != "completion")


GROUPS = (
    group(
        "memory and placement",
        PLANS,
        option("-c --ctx N", "context in tokens (8k = 8192)", tokens, field="context"),
        option(
            "-t --threads N",
            "processor threads",
            whole(1, 4096),
            commands=(*PLANS, "worker", *REPLAYS),
        ),
        option("--kv-type TYPE", "KV cache type: " + ", ".join(KV_TYPES), choices=KV_TYPES),
        option(
            "-ctk --cache-type-k TYPE", "type of the keys alone", field="type_k", choices=KV_TYPES
        ),
        option(
            "-ctv --cache-type-v TYPE", "type of the values alone", field="type_v", choices=KV_TYPES
        ),
        option(
            "--ram GIB",
            "plan with this much free RAM; worker: give so much",
            ram,
            commands=(*PLANS, "worker", "experts simulate"),
        ),
        option("--vram GIB", "plan with this much free GPU memory", gib),
        option(
            "--machine FILE",
            "plan for another machine: its `doctor --json`",
            commands=("fit", "pull", "plan", "show", *REPLAYS),
            proposes=FILES,
            setting=False,
            why="plans for another machine",
        ),
        option("-ngl --gpu-layers N", "layers on the GPU (all: every one)", layers),
        option(
            "-ncmoe --n-cpu-moe N",
            "keep the experts of the first N layers off the GPU",
            whole(0, MAX_INT),
        ),
        option("-b --batch N", "tokens per prefill batch", whole(1, MAX_INT)),
        option(
            "--cache HOW", "experts that do not fit in RAM: " + ", ".join(CACHES), choices=CACHES
        ),
        option(
            "--cache-ram GIB",
            "RAM that experts may take at most",
            ram,
            commands=(*PLANS, "experts simulate"),
        ),
        option(
            "--repack HOW",
            "weights that are all in RAM in the order of the processor's kernels (off, on): "
            "answers are written faster, prompts of an MoE read more slowly",
            choices=REPACKING,
        ),
        option(
            "--experts N",
            "experts per token (fewer than the model's own: faster, and worse answers)",
            whole(1, 4096),
        ),
        option(
            "--prefer-cached X",
            "take an expert in memory that the router likes up to X (0 to 1) less: faster, and "
            "other answers",
            number(0, 1),
        ),
        option(
            "--experts-on TIER[:LAYERS]",
            "gpu, ram or disk for the experts of some layers (ram:0-11,15) or of all; repeatable",
            each(placement_options.experts_on),
            repeatable=True,
        ),
        option(
            "-ot --override --override-tensor REGEX=DEVICE",
            "put tensors by name: -ot 'blk.3.*exps=CPU'; before every other rule; repeatable",
            placement_options.override,
            field="overrides",
            repeatable=True,
        ),
        option(
            "--remote --rpc HOST:PORT",
            "use the memory of a `localmoe worker` on another machine; repeatable",
            placement_options.remote,
            field="remotes",
            commands=(*PLANS, "doctor"),
            repeatable=True,
        ),
        settings=True,
    ),
    group(
        "the network",
        ("serve",),
        option(
            "--host ADDRESS",
            "where to listen (127.0.0.1: this machine only)",
            commands=("worker", "serve"),
        ),
        option(
            "--port N",
            f"and at which port (worker: {placement_options.DEFAULT_PORT}; serve: 8080, 0: any)",
            whole(0, 65535),
            commands=("worker", "serve"),
        ),
        option("--api-key KEY", "clients have to know it"),
        option(
            "--api-key-file FILE", "the same, one key a line (not seen by `ps`)", proposes=FILES
        ),
        option(
            "--allow-host NAME",
            "a name by which clients call this machine, beside its own; repeatable",
            each(str),
            repeatable=True,
        ),
        option(
            "--cors ORIGIN",
            "pages of this origin may use the server (https://chat.example); repeatable",
            each(str),
            repeatable=True,
        ),
        option(
            "--alias NAME=MODEL",
            "requests for NAME are answered by MODEL; repeatable",
            each(alias),
            repeatable=True,
        ),
        option("--idle TIME", "unload the model after so long without a request", duration),
        option("--allow-pull", "a request may download the model that it names"),
    ),
    group(
        "the answer",
        SAMPLES,
        option("--system TEXT", "system prompt", commands=WRITES),
        option("--plain", "no chat template: the model continues the text", commands=WRITES),
        option(
            "-v --verbose",
            "say first where the model lives, and how fast it should be",
            commands=("run",),
        ),
        option(
            "--trace FILE",
            "record which experts every token used",
            commands=TALKS,
            proposes=FILES,
            setting=False,
        ),
        option("--logits", "with --trace: the routers' logits too (larger)", commands=TALKS),
        option("-n --max-tokens --tokens N", "stop after N tokens", token_limit, commands=LOADS),
        option("--temp X", "0: greedy, repeatable", number(0, 100), field="temperature"),
        option("--top-k N", "sample from the N likeliest; 0: all", whole(0, MAX_INT)),
        option("--top-p X", "sample from the likeliest that sum to X", number(0, 1)),
        option("--min-p X", "drop tokens below X times the likeliest", number(0, 1)),
        option(
            "--repeat-penalty X", "make tokens of the last N less likely; 1: off", number(0.01, 100)
        ),
        option("--repeat-last-n N", "how far the penalties look back (64)", whole(0, 1 << 20)),
        option("--presence-penalty X", "against words used; 0: off", number(-2, 2)),
        option("--frequency-penalty X", "against words used often; 0: off", number(-2, 2)),
        option("--seed N", "repeat the same random choices", seed),
        option(
            "-r --stop TEXT",
            "end the answer where TEXT would come (repeatable)",
            each(str),
            repeatable=True,
        ),
        option(
            "--schema FILE",
            "answer in JSON that a JSON schema describes",
            commands=TALKS,
            proposes=FILES,
            setting=False,
        ),
        option(
            "--tools FILE",
            "functions that the model may call, as a JSON list; --json has the calls",
            commands=("run",),
            proposes=FILES,
            setting=False,
        ),
        option(
            "--tool-choice CHOICE",
            "auto, none, required, or the name of the tool that must be called",
            commands=("run",),
            setting=False,
        ),
        option(
            "--think LEVEL",
            "how much the model reasons first: " + ", ".join(THINK_LEVELS),
            choices=THINK_LEVELS,
        ),
        settings=True,
    ),
    group(
        "the conversation",
        TALKS,
        option(
            "-f --file FILE",
            "attach a text file to the first message (repeatable); experts record: its paragraphs "
            "are the prompts",
            each(str),
            field="files",
            commands=WRITES,
            repeatable=True,
            proposes=FILES,
            setting=False,
        ),
        option("--continue", "go on with the last conversation", field="resume", setting=False),
        option(
            "--session NAME",
            "go on with this conversation, or begin it",
            proposes=SESSIONS,
            setting=False,
        ),
        option("--no-history", "leave no trace: no session, no typed lines", commands=SAMPLES),
        option(
            "--overflow CHOICE",
            "when the next turn does not fit the context: "
            + ", ".join(OVERFLOWS)
            + " (serve: drop, "
            "error)",
            overflow,
            commands=(*TALKS, "serve"),
            choices=OVERFLOWS,
        ),
        settings=True,
    ),
    group(
        "the measurement",
        ("bench",),
        option(
            "--memory LIST",
            "hard limits: 0.4x of the model's size, or GiB; separated by commas",
            limits,
        ),
        option("--runs N", "runs of each kind (3), alternating", whole(1, 1000)),
        option(
            "--regimes LIST",
            "of plain, off, page, private, auto; plain is llama.cpp's own mapping",
            names,
        ),
        option("--prompt-tokens N", "tokens to read (32)", whole(1, MAX_INT)),
        option("--replay TRACE", "impose a recorded routing on every run", proposes=FILES),
        option("--sweep", "eight limits between 0.3x and 1.2x"),
        option("--log FILE", "remember runs there, and make only what is missing", proposes=FILES),
        option(
            "--vs COMMAND", "the same runs of a llama.cpp program: llama-server, or llama-bench"
        ),
        option(
            "--tune SECONDS",
            "look for faster settings at the end, for so long at most (180; 0: not at all)",
            number(0, 86400),
        ),
    ),
    group(
        "this machine",
        ("doctor",),
        option("--measure", "measure how fast it is once more, which takes some seconds"),
    ),
    group(
        "the routing",
        ("experts record",),
        option(
            "-o --output FILE",
            "where the trace or the page is written",
            commands=("experts record", "experts report"),
            proposes=FILES,
        ),
        option("--domains", "the bundled prompts, by domain"),
        option(
            "--png FOLDER",
            "the plots as pictures too",
            commands=("experts report",),
            proposes=FILES,
        ),
    ),
    group(
        "output",
        ANSWERS,
        option(
            "--json",
            "one JSON document on stdout",
            commands=tuple(name for name in ANSWERS if name != "chat"),
            setting=False,
        ),
        option("-q --quiet", "no notes, no warnings"),
        option(
            "--jsonl",
            "JSON, one document per line; run, pull, bench: events as they happen",
            commands=tuple(name for name in ANSWERS if name != "chat"),
            setting=False,
        ),
        settings=True,
    ),
    group(
        "speed",
        PLANS,
        option(
            "--min-tps X",
            "what is too slow: fewer than X tok/s to be expected (pull asks below 2)",
            number(0.001, 1e6),
        ),
    ),
    group(
        "building",
        ("engine install",),
        option("--dry-run", "say what would be done, and do nothing"),
    ),
    group(
        "downloads",
        ("pull", *LOADS, "engine install"),
        option(
            "-y --yes --force",
            "download without a question, even what does not fit here; engine install: build anew",
        ),
    ),
    group(
        "the model",
        (
            *(command.name for command in COMMANDS.values() if command.takes_model),
            "experts record",
            *REPLAYS,
            "config set",
            "config unset",
        ),
        option(
            "-m --model -hf --hf-repo MODEL",
            "the model, when in doubt (-hf as llama.cpp has it)",
            proposes=MODELS,
        ),
    ),
    group("other", EVERY, option("-h --help", "this text"), option("--version", "the version")),
)

OPTIONS = tuple(option for group in GROUPS for option in group.options)
FLAGS = {flag: option for option in OPTIONS for flag in option.flags}

"""Seconds that a model takes under a plan: processor, devices and disk. Pure.

Rates are those of bare kernels and reads; the constants say by how much llama.cpp and our engine
are slower. They were found on models that are not in the table of docs/speed.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from localmoe.facts.bandwidth import DeviceRate, DiskRate, Rates, TypeRate, value_at
from localmoe.facts.model import Model
from localmoe.planning.cache import dense_ranges, looked_up
from localmoe.planning.kernels import multiplying, typed
from localmoe.planning.layout import expert_bytes_on_host
from localmoe.planning.memory import CPU, OFFLOADED
from localmoe.planning.places import holder, is_remote
from localmoe.planning.plan import Plan
from localmoe.planning.prefill import Passing, attention_work, batches, passing
from localmoe.planning.seconds import NOTHING, Seconds, Spread, beside, ms, per_second
from localmoe.planning.work import Matrices, work_of
from localmoe.routing.profile import Profile, expected_hit_rate
from localmoe.text import counted, format_bytes

RAM_BOUND = 0.75  # share of the memory's bandwidth; a faster decode is limited by it
ROW_S = 2.6e-7  # seconds of one thread to find a row of the KV cache: the latency of memory
WEIGH_S = 3.5e-9  # seconds of one thread to weigh a value of an expert: ggml takes one by one
CONVOLVE_S = 1.9e-8  # … to bring a channel's value to its short convolution, and to convolve it
SORT_S = 6e-9  # … for a step of sorting a token's experts by what the router says
EXPERTS = 1.12  # one token through experts takes so many times the kernels' own time
PREFILL = 1.12  # a batch takes so many times the kernels' own time
ELEMENTS = 3  # an operation reads or writes a token's values so many times
NEAR = 2 << 20  # bytes; a smaller KV cache stays in the processor's caches
NEAR_LAYER = 8 << 20  # … and while a batch attends, so much of a layer's
TOKEN_S = 0.0002  # seconds per token to sample it and to hand it on
WORD_S = 6e-9  # seconds per entry of the vocabulary to choose among them
START_S = 0.3  # seconds to start the worker and make a context
WORD_READ_S = 1.5e-6  # seconds per entry of the vocabulary to read it at load
HASHED = 7e8  # bytes per second of weights that llama.cpp hashes before it sends them to a worker
REPACKING = 6e8  # bytes per second of weights that llama.cpp copies into another order
LOADING = 0.6  # a load takes so many times as long as the timed, shorter read
# Reads of experts take so many times as long as timed direct reads, by cache regime:
MISS = {"private": 1.2, "page": 5.0, "off": 12.0}  # in decoding; some are read in vain
BATCH_MISS = {"private": 1.0, "mapped": 1.3, "page": 1.6, "off": 1.3}  # in a prompt
# Share of the shorter one of computing and reading that costs no time, by cache regime:
HIDDEN = {"private": 0.7, "page": 0.0, "off": 0.0}  # in decoding: the next layer's are predicted
BATCH_HIDDEN = {"private": 0.95, "mapped": 0.5, "page": 0.0, "off": 0.0}  # in a prompt
TOGETHER = 0.65  # tokens of one text choose as many experts as tokens ** TOGETHER independent ones
PAGED = 2.3  # weights that are pushed out of memory and read again take so many times a load's read
TILED = 64  # tokens; from here on ggml attends with its tiled kernel, whose tiles are as large

COMPUTE: Spread = (0.85, 1.22)
BATCH: Spread = (0.65, 1.4)
READ: Spread = (0.5, 1.8)
LOAD: Spread = (0.6, 1.6)
DEVICE: Spread = (0.6, 1.7)
ASSUMED: Spread = (0.4, 2.5)

_DISK = DiskRate("", ((1.0, 1e9),), 0.7e9)  # stands in where no disk was measured
_TYPE = TypeRate(((1.0, 3e11),), ((1.0, 3e11),), ((1.0, 1e13),), ((1.0, 5e12),))
_GPU = DeviceRate("", {"Q4_K": _TYPE}, 3e-6, 3e-5, 1e10, 1e10)  # a small one, stands in likewise
_WORKER = DeviceRate("", {"Q4_K": _TYPE}, 3e-4, 1e-3, 1.1e8, 1.1e8)  # at a gigabit per second


class Clock:
    """The time of one model under one plan, by the rates of a machine.

    ``profile``: how the model's experts were used before; None: a real trace of another model
    stands in for it.
    """

    def __init__(self, model: Model, plan: Plan, rates: Rates, profile: Profile | None) -> None:
        self._model, self._plan, self._rates = model, plan, rates
        settings = plan.settings
        self._threads = settings.threads or int(rates.ram[-1][0])
        self._batch_threads = settings.threads_batch or self._threads
        self._attention = attention_work(model, settings)
        self._work = work_of(model, settings)
        self._routed = [m for m in self._work.matrices if m.experts and m.home == CPU]
        self._dense = [m for m in self._work.matrices if not m.experts and m.home == CPU]
        self._disk = rates.disk[0] if rates.disk else _DISK
        self._devices = {
            name: rates.on_device(name) or (_WORKER if is_remote(name) else _GPU)
            for name in settings.devices
            if any(m.home == name for m in self._work.matrices)
        }
        experts = sum(expert_bytes_on_host(model, settings).values())
        self._active_experts = sum(m.nbytes * m.share for m in self._routed)
        self._regime = plan.cache.regime if plan.tiers.disk > 0 and experts else ""
        # Nobody needs all rows of an embedding: the system keeps in their place what is used.
        rows = sum(tensor.nbytes for tensor in looked_up(model))
        # Every pass over the weights pushes out what the next one begins with: all are read again.
        self._again = sum(m.nbytes for m in self._dense) if plan.paged > rows else 0
        # How a prompt's experts come; "mapped": the cache has no room for them to pass.
        self._passing = self._regime
        self._kept = self._hit_rate = 1.0  # share of the experts, and of a token's lookups
        self._profile, self._used_share = profile, 1.0
        self._way: Passing | None = None  # how a batch's experts pass through the cache's memory
        if self._regime in MISS:
            room = plan.cache.budget
            if self._regime == "page":
                room = max(0, room + rows - plan.paged)
            self._kept = min(1.0, room / experts)
            self._used_share = self._active_experts / experts
            self._hit_rate = self._found(self._kept)
        if self._regime == "private":
            host = expert_bytes_on_host(model, settings)
            layers = [layer for layer, size in host.items() if size]
            self._way = passing(model, layers, settings.ubatch, settings.experts_used)
            if not self._way.fits(settings.cache_bytes - settings.cache_lent):
                self._passing = "mapped"

    # -- answers -----------------------------------------------------------------------------

    def decode(self, context: int) -> Seconds:
        """Decoding one token after ``context`` others."""
        seconds = self.computing(context)
        if self._regime in MISS:
            reading = self.reading(self._missed_token(), self._regime)
            seconds = beside(seconds, reading, HIDDEN[self._regime])
        return seconds + self._paging()

    def computing(self, context: int) -> Seconds:
        """Decoding one token after ``context`` others when all its experts are in memory."""
        processor = self._processor(1, context, self._threads) + self._choosing()
        return Seconds.of(processor, COMPUTE) + self._apart(1, context)

    def reading(self, size: float, regime: str = "private") -> Seconds:
        """How long ``size`` bytes of experts are read while a token is decoded."""
        return Seconds.of(size / self._read_speed() * MISS[regime], READ)

    def prefill(self, tokens: int, *, cold: bool = False) -> Seconds:
        """Reading a prompt of ``tokens`` tokens; the experts that the plan keeps are in memory, or,
        when ``cold``, come there as the prompt needs them.
        """
        return self._prefill(tokens, self._batch_threads, cold=cold)

    def prompt_bytes(self, tokens: int, *, cold: bool = False) -> float:
        """Bytes that are read from the disk while a prompt of ``tokens`` tokens is; ``cold`` as for
        ``prefill``.
        """
        return sum(
            self._again + self._missed(size, self._there(size, before, tokens, cold=cold))
            for size, before in self._batches(tokens)
        )

    def fastest_threads(self, context: int, tokens: int) -> tuple[int, int]:
        """The numbers of threads, up to those planned, with which decoding after ``context`` tokens
        and reading ``tokens`` tokens take least: every operation waits for its slowest thread, so
        more are not always faster.
        """
        decode = min(range(1, self._threads + 1), key=lambda n: (self._processor(1, context, n), n))
        prefill = min(
            range(1, self._batch_threads + 1), key=lambda n: (self._prefill(tokens, n).expected, n)
        )
        return decode, prefill

    def start(self, *, sent: bool = False) -> Seconds:
        """From the command to a loaded model, when no part of its files is in the page cache.

        ``sent``: the workers have kept their weights from an earlier load.
        """
        if self._plan.settings.read_ahead:
            size = self._model.size
        else:
            size = sum(end - start for _, start, end in dense_ranges(self._model))
        fixed = START_S + WORD_READ_S * self._work.vocabulary
        if self._plan.settings.repack:
            fixed += self._model.size / REPACKING
        here = Seconds.of(fixed, LOAD) + Seconds.of(LOADING * size / self._disk.cached, LOAD)
        return here + self._sending(sent)

    @property
    def sent_bytes(self) -> int:
        """Weights that live on workers: sent over the network by the first load."""
        return sum(m.nbytes for m in self._work.matrices if is_remote(m.home))

    def _sending(self, sent: bool) -> Seconds:
        """Every load hashes what is for a worker; what it has not kept is sent."""
        seconds = self.sent_bytes / HASHED
        if not sent:
            for name in filter(is_remote, self._devices):
                size = sum(m.nbytes for m in self._work.matrices if m.home == name)
                seconds += size / self._devices[name].to_device
        return Seconds.of(seconds, LOAD)

    def limit(self, context: int) -> str:
        """What most of a decoded token's time goes to: an entry of ``Forecast.limit``."""
        remote = {name for name in self._devices if is_remote(name)}
        apart = {name: self._device(name, 1, context) for name in self._devices}
        parts = {
            "disk": self._reading(),
            "worker": sum(s for name, s in apart.items() if name in remote),
            "gpu": sum(s for name, s in apart.items() if name not in remote),
            "compute": self._processor(1, context, self._threads),
        }
        if remote:
            parts["network"] = self._crossing()
        most = max(parts, key=lambda name: parts[name])
        if most == "compute":
            speed = self._host_bytes() / max(parts["compute"], 1e-12)
            if speed >= RAM_BOUND * value_at(self._rates.ram, self._threads):
                return "ram"
        return most

    def why(self, context: int) -> str:
        """What the time of ``decode`` is made of, as figures that add up to it:
        ``148 ms a token: 95 ms for 997 MiB of weights at 11.0 GB/s (2 threads), …``.
        """
        total = self.decode(context).expected
        processor = self._processor(1, context, self._threads) + self._choosing()
        threads = counted(self._threads, "thread")
        parts = [f"{ms(processor)} for {per_second(self._host_bytes(), processor)} ({threads})"]
        on_devices = sum(m.nbytes * m.share for m in self._work.matrices if m.home != CPU)
        if self._devices:
            known = all(self._rates.on_device(name) for name in self._devices)
            told = "" if known else ", its speed assumed"
            place = holder(tuple(self._devices))
            seconds = self._apart(1, context).expected
            parts.append(f"{ms(seconds)} for {per_second(on_devices, seconds)} on {place}{told}")
        if self._again:
            size = format_bytes(int(self._again))
            parts.append(f"{ms(self._paging().expected)} to read {size} of weights again")
        if self._regime in MISS:
            missed = format_bytes(int(self._missed_token()))
            more = total - self.computing(context).expected - self._paging().expected
            parts.append(
                f"{ms(more)} more for {missed} from the disk "
                f"({self._hit_rate:.0%} of the experts found in memory)"
            )
        return f"{ms(total)} a token: {', '.join(parts)}"

    # -- tiers -------------------------------------------------------------------------------

    def _prefill(self, tokens: int, threads: int, *, cold: bool = False) -> Seconds:
        total = NOTHING
        for size, before in self._batches(tokens):
            computing = Seconds.of(self._processor(size, before, threads), BATCH)
            computing += self._apart(size, before)
            if self._regime in MISS:
                kept = self._there(size, before, tokens, cold=cold)
                how, missed = self._passing, self._missed(size, kept)
                reading = Seconds.of(missed / self._read_speed() * BATCH_MISS[how], READ)
                computing = beside(computing, reading, BATCH_HIDDEN[how])
            total += computing + self._paging()
        return total

    def _there(self, size: int, before: int, tokens: int, *, cold: bool) -> float:
        """Share of the experts in memory when a batch of ``size`` of a prompt's ``tokens`` begins
        after ``before`` others.
        """
        found, settings = self._kept, self._plan.settings
        if self._passing != self._regime:
            return 0.0
        if self._way is not None:
            room = settings.cache_bytes - settings.cache_lent * size // settings.ubatch
            found = self._way.kept(room, last=before + size == tokens) / self._way.every
        return min(found, self._touched(before)) if cold else found

    def _batches(self, tokens: int) -> Sequence[tuple[int, int]]:
        most = self._plan.settings.ubatch
        return batches(tokens, most, self._attention, self._batch_threads)

    def _touched(self, tokens: int) -> float:
        """Share of the host's expert bytes that so many tokens of one text use."""
        whole = sum(m.nbytes for m in self._routed)
        used = sum(m.nbytes * m.touched(tokens**TOGETHER) for m in self._routed)
        return used / max(1, whole)

    def _missed(self, tokens: int, kept: float) -> float:
        """Bytes of experts that a batch finds missing when the share ``kept`` is in memory.

        What is kept is what is chosen most, so a single token finds more there than ``kept``; a
        batch that uses every expert finds just that.
        """
        if self._regime not in MISS:
            return 0.0
        found, size = self._found(kept) - kept, 0.0
        for m in self._routed:
            touched = m.touched(tokens**TOGETHER)
            favourites = found * (1 - touched) / max(1e-9, 1 - m.share)
            size += m.nbytes * touched * (1 - min(1.0, kept + max(0.0, favourites)))
        return size

    def _found(self, kept: float) -> float:
        """Share of a token's lookups that finds its expert in memory, where ``kept`` of all are."""
        return expected_hit_rate(self._profile, kept, used_share=self._used_share)

    def _choosing(self) -> float:
        """Seconds to sample a token and to hand it on."""
        return TOKEN_S + WORD_S * self._work.vocabulary

    def _processor(self, tokens: int, before: int, threads: int) -> float:
        """Seconds that the processor computes for one batch, after ``before`` tokens."""
        work, rates, one = self._work, self._rates, tokens == 1
        seconds = sum(
            multiplying(m, tokens, rates.types, threads, tiles=True)
            * (EXPERTS if one and m.experts else 1.0)
            for m in work.matrices
            if m.home == CPU and not self._offloads(m, tokens)
        )
        context = before + (tokens - 1) / 2
        tile = TILED if tokens >= TILED else 0
        multiplications, rows = work.attention(CPU, context, tile)
        attending = rates.attention_batch if tile else rates.attention
        seconds += tokens * multiplications / value_at(attending, threads)
        if one and work.cached_bytes(CPU, context) > NEAR:
            seconds += rows * ROW_S / threads
        if tile:
            seconds += tokens / tile * work.far_rows(CPU, context, NEAR_LAYER) * ROW_S / threads
        seconds += tokens * work.state.get(CPU, 0) / value_at(rates.scan, threads)
        seconds += tokens * work.delta.get(CPU, 0) / value_at(rates.delta, threads)
        seconds += tokens * work.weighed.get(CPU, 0) * WEIGH_S / threads
        seconds += tokens * work.sorting.get(CPU, 0) * SORT_S / threads
        seconds += tokens * work.convolved.get(CPU, 0) * CONVOLVE_S / threads
        passing = ELEMENTS * 4 * work.width * (tokens - 1) / value_at(rates.ram, threads)
        seconds += work.nodes.get(CPU, 0) * (value_at(rates.node_s, threads) + passing)
        return seconds if one else seconds * PREFILL

    def _apart(self, tokens: int, before: int) -> Seconds:
        """The devices' computing, with the copies of a token's values between them."""
        if not self._devices:
            return NOTHING
        seconds = sum(self._device(name, tokens, before) for name in self._devices)
        seconds += self._crossing(tokens)
        known = all(self._rates.on_device(name) for name in self._devices)
        return Seconds.of(seconds, DEVICE if known else ASSUMED)

    def _device(self, name: str, tokens: int, before: int) -> float:
        """Seconds that one device computes."""
        rate, work = self._devices[name], self._work
        seconds = sum(
            multiplying(m, tokens, rate.types, 1, tiles=False)
            for m in work.matrices
            if m.home == name
        )
        for m in work.matrices:
            if self._offloads(m, tokens) and name == self._offloader():
                seconds += m.nbytes * m.touched(tokens) / rate.to_device
                seconds += multiplying(m, tokens, rate.types, 1, tiles=False)
        attending = tokens * work.attention(name, before + (tokens - 1) / 2)[0]
        seconds += 2 * attending / value_at(typed(rate.types, "F16").vector, 1)  # f16 from memory
        return seconds + work.nodes.get(name, 0) * rate.node_s

    def _crossing(self, tokens: int = 1) -> float:
        """Seconds that values travel between devices for one batch."""
        if not self._devices:
            return 0.0
        slowest = max(self._devices.values(), key=lambda rate: rate.sync_s)
        size = 4 * self._work.width * tokens
        return self._work.crossings * (slowest.sync_s + size / slowest.from_device)

    def _missed_token(self) -> float:
        """Bytes of experts that a decoded token finds missing."""
        return (1 - self._hit_rate) * self._active_experts

    def _reading(self) -> float:
        """Seconds that the disk is read for a decoded token."""
        paging = self._paging().expected
        if self._regime not in MISS:
            return paging
        return self.reading(self._missed_token(), self._regime).expected + paging

    def _paging(self) -> Seconds:
        """How long a pass over the weights waits for those that RAM cannot keep."""
        return Seconds.of(PAGED * self._again / self._disk.cached, READ)

    # -- figures -----------------------------------------------------------------------------

    def _offloads(self, m: Matrices, tokens: int) -> bool:
        """Whether llama.cpp copies these weights to a GPU for a batch of so many tokens."""
        if not self._plan.settings.op_offload:
            return False
        many = tokens >= OFFLOADED and not m.last_only
        return m.home == CPU and many and self._offloader() is not None

    def _offloader(self) -> str | None:
        return next((name for name in self._devices if not is_remote(name)), None)

    def _host_bytes(self) -> float:
        return sum(m.nbytes * m.share for m in self._work.matrices if m.home == CPU)

    def _read_speed(self) -> float:
        """Bytes per second of reads that are as large as one expert's matrix; of all the model's
        experts, wherever they are, so that placing one elsewhere does not change it.
        """
        routed = [m for m in self._work.matrices if m.experts]
        sizes = sum(m.nbytes * m.nbytes / m.experts / max(1, m.count) for m in routed)
        return value_at(self._disk.reads, sizes / max(1, sum(m.nbytes for m in routed)))

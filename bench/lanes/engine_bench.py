"""Lanes in this process, and servers beside them, under the same requests.

Within a round every case is measured once, and ratios are those of neighbours in one round, so that a machine whose
speed drifts, or that others use, does not decide them.
"""

from __future__ import annotations

import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Literal

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loraplex.bench.errors import Interrupted, OptionsInvalid
from loraplex.bench.lanes.engine_table import LaneName
from loraplex.bench.lanes.random_adapter import with_random_adapters
from loraplex.bench.lanes.wave import Ask, in_lane, over_http, prompts
from loraplex.bench.load.benchmark import reckon
from loraplex.bench.load.options import Report
from loraplex.bench.machine import machine, versions
from loraplex.bench.peers.peer import cpu_seconds, free_port, started
from loraplex.bench.results.configuration import Configuration
from loraplex.bench.results.result import Run
from loraplex.server.bundle import Bundle
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.messages import Device, Weights
from loraplex.server.settings import Settings

Server = tuple[str, int]
"""URL and process id."""
RANDOM_ADAPTERS = 8
"""Made where --random-adapters does not come with a number of adapters."""


class LaneOptions(Struct, frozen=True):
    """Settings of `loraplex serve` that a lane has here too."""

    threads: int = 0
    device: Device = "auto"
    weights: Weights = "auto"
    kv_cache_mib: int = 0


class Case(Struct, frozen=True):
    """What is measured once a round."""

    lane: LaneName
    over: Literal["engine", "HTTP"]
    adapters: int
    """How many the streams are spread over; 0 is the base alone."""
    streams: int

    @property
    def label(self) -> str:
        spread = {0: "base", 1: "1 adapter"}.get(self.adapters, f"{self.adapters} adapters")
        return f"{self.lane}, {spread}" + (", HTTP" if self.over == "HTTP" else "")


class Bench:
    """One bundle, and the cases to measure on it."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        lanes: Sequence[LaneName],
        counts: Sequence[int],
        streams: Sequence[int],
        lengths: tuple[int, int],
        options: LaneOptions,
        rank: int | None = None,
        modules: Sequence[str] = (),
        http: bool = False,
        cpu_time: bool = False,
        seed: int = 0,
    ) -> None:
        """Raises OptionsInvalid."""
        base, own = bundle.manifest.base, len(bundle.manifest.adapters)
        known = {projection.rpartition(".")[2] for projection in base.projections}
        if unknown := [each for each in modules if each not in known]:
            raise OptionsInvalid(f"--modules {unknown[0]}: the base has {', '.join(sorted(known))}")
        if modules and rank is None:
            raise OptionsInvalid("--modules is for random adapters: give their rank with --random-adapters")
        if rank is None and max(counts, default=0) > own:
            raise OptionsInvalid(
                f"--adapters {max(counts)}, but the bundle has {own}: have some made with --random-adapters RANK"
            )
        if sum(lengths) > base.context_length:
            raise OptionsInvalid(
                f"--input-len and --output-len are {sum(lengths)} together: the base takes {base.context_length}"
            )
        self._bundle = bundle
        self._counts = tuple(counts) or ((RANDOM_ADAPTERS if rank else own,) if rank or own else ())
        self._rank = rank
        self._modules = modules
        self._streams = streams
        self._lengths = lengths
        self._options = options
        self._clock = time.process_time if cpu_time else time.perf_counter
        self._cpu_time = cpu_time
        self._seed = seed
        self._http = http
        self._lanes = tuple(lanes) or self._available()
        self._opened: dict[str, Lane] = {}
        self.interrupted: str | None = None
        """After how many rounds SIGINT came, where it did."""
        self._machine = machine()

    def _available(self) -> tuple[LaneName, ...]:
        from loraplex.server.engine.generator import choose_device

        if choose_device(self._options.device) == "cpu":
            return ("batched", "generator")
        return ("routed", "generator") if "paged" in self._bundle.manifest.variants else ("generator",)

    def run(self, rounds: int) -> list[Run]:
        """Every case once a round; SIGINT ends it after the last whole round. Raises LoraplexError, and Interrupted
        where no round was whole."""
        cases = [
            Case(lane, over, adapters, streams)
            for streams in self._streams
            for lane in self._lanes
            # More adapters than streams cannot be asked for at once.
            for adapters in dict.fromkeys((0, *(min(count, streams) for count in self._counts)))
            for over in (("engine", "HTTP") if self._http else ("engine",))
        ]
        found = []
        with ExitStack() as stack:
            folder = Path(stack.enter_context(_scratch(self._bundle)))
            bundle = self._bundle
            if self._rank is not None:
                bundle = with_random_adapters(
                    bundle, folder / "bundle", max(self._counts), rank=self._rank, modules=self._modules
                )
            servers = {
                lane: stack.enter_context(self._server(bundle, lane, folder)) for lane in self._lanes if self._http
            }
            self._opened = {lane: self._open(bundle, lane) for lane in self._lanes}
            bar = stack.enter_context(_progress())
            task = bar.add_task("warming up", total=len(cases) * (rounds + 1))
            try:
                for number in range(rounds + 1):
                    whole = []
                    # A round in each direction, so that nothing is always measured after the same neighbour.
                    for case in cases if number % 2 else reversed(cases):
                        whole.append(self._measure(bundle, case, number, servers))
                        done = f"round {number} of {rounds}" if number else "warming up"
                        bar.update(task, advance=1, description=done)
                    if number:
                        found += whole
            except KeyboardInterrupt:
                self.interrupted = f"interrupted after {len(found) // len(cases)} of {rounds} rounds"
                if not found:
                    raise Interrupted(self.interrupted) from None
            self._opened = {}
        return sorted(found, key=lambda run: run.configuration.max_concurrency or 0)

    def _measure(self, bundle: Bundle, case: Case, number: int, servers: dict[LaneName, Server]) -> Run:
        base, names = bundle.manifest.base, list(bundle.manifest.adapters)[: case.adapters]
        length, output = self._lengths
        # No other prompt of a lane begins like it, so that no cache has anything of it.
        key = f"{self._seed}, {number}, {case.adapters}, {case.streams}"
        first = min(base.vocab_size // 8, 260)
        asks = []
        for index, prompt in enumerate(prompts(key, case.streams, length, first, base.vocab_size)):
            adapter = names[index % len(names)] if names else None
            asks.append(Ask(adapter or base.name, adapter, prompt, output))
        if case.over == "HTTP":
            url, pid = servers[case.lane]
            before = cpu_seconds(pid)
            measured = over_http(url, asks)
            if self._cpu_time:
                measured = msgspec.structs.replace(measured, duration=cpu_seconds(pid) - before)
        else:
            measured = in_lane(self._opened[case.lane], asks, self._clock)
        configuration = Configuration(
            date=datetime.now().strftime("%Y%m%d-%H%M%S"),
            backend="openai" if case.over == "HTTP" else "engine",
            label=case.label,
            model_id=base.name,
            num_prompts=case.streams,
            max_concurrency=case.streams,
            command=shlex.join(["loraplex", *sys.argv[1:]]),
            dataset="random",
            seed=self._seed,
            adapters=names,
            adapter_mix="round-robin" if names else "",
            server=versions(),
            machine=self._machine,
        )
        told = {"lane": case.lane, "over": case.over, "spread": str(case.adapters), "clock": self._clock.__name__}
        return msgspec.structs.replace(reckon(configuration, measured, Report()), metadata=told)

    def _settings(self, lane: LaneName) -> Settings:
        return Settings(engine=lane, max_running=max(self._streams), **msgspec.structs.asdict(self._options))

    def _open(self, bundle: Bundle, name: LaneName) -> Lane:
        # Imported late: the lanes' libraries take a second, and options are checked first.
        from loraplex.server.engine.adapter_file import check_adapter
        from loraplex.server.engine.opening import open_lane
        from loraplex.server.serving import engine_start

        lane = open_lane(engine_start(self._settings(name), bundle))
        for adapter in list(bundle.manifest.adapters)[: max(self._counts, default=0)]:
            folder = bundle.adapter(adapter)
            lane.load_adapter(adapter, folder, check_adapter(folder, bundle.manifest.base))
        return lane

    @contextmanager
    def _server(self, bundle: Bundle, lane: LaneName, folder: Path) -> Iterator[Server]:
        url = f"http://127.0.0.1:{(port := free_port())}"
        flags = {"engine": lane, "port": port, "max_running": max(self._streams), "log_level": "warning"}
        command = [sys.executable, "-m", "loraplex.server", "serve", str(bundle.folder)]
        for name, value in (flags | msgspec.structs.asdict(self._options)).items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        with started(command, url, folder / f"{lane}.log") as pid:
            yield url, pid

    def setup(self) -> str:
        """What was measured on what, in one line."""
        length, output = self._lengths
        adapters = "the bundle's adapters" if self._rank is None else f"random adapters of rank {self._rank}"
        if self._rank is not None:
            adapters += f" on {', '.join(self._modules) or 'all linear layers'}"
        told = [f"{name} {value}" if name in ("Python", "cores") else value for name, value in self._machine.items()]
        packages = [f"{name} {number}" for name, number in versions().items()]
        clock = "CPU time" if self._cpu_time else "wall time"
        return (
            f"{self._bundle.manifest.base.name}, {length} prompt and {output} output tokens, {adapters}; {clock}; "
            f"{', '.join([*told, *packages])}; {datetime.now():%Y-%m-%d}"
        )


@contextmanager
def _scratch(bundle: Bundle) -> Iterator[str]:
    """A folder beside the bundle, where weights can be hard-linked, or wherever there is room for temporary files."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=".bench-", dir=bundle.folder.resolve().parent)
    except OSError:
        folder = tempfile.TemporaryDirectory(prefix="loraplex-bench-")
    before = signal.signal(signal.SIGTERM, _leave)  # a process that it ends would leave the folder behind
    try:
        with folder as name:
            yield name
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

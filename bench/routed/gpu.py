"""The routed lane's tables: what adapters cost, what HTTP costs, what a change of adapters costs.

    python -m loraplex.bench.routed.gpu WORK [--parts engine,http,churn,generator] [--weights int4,float16] ...

Makes a bundle of Phi-3.5-mini's shape with random weights in the folder WORK and adapters of rank 16 on all seven
linear layers. Prints every figure and writes them to WORK/routed.json. Needs a CUDA device and loraplex[build,cuda];
takes about 25 GB of disk and 100 GB of GPU memory. With --tiny it tries itself, on a CPU too.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from cyclopts import App

from loraplex.bench.routed.http import server, wave
from loraplex.bench.routed.load import Load, Result, median
from loraplex.bench.routed.model import make_bundle
from loraplex.server.bundle import read_adapter_manifest
from loraplex.server.engine.expansion import expand
from loraplex.server.engine.generator import GeneratorLane
from loraplex.server.engine.lora_operator import find_operator
from loraplex.server.engine.messages import Sampling
from loraplex.server.engine.routed import RoutedLane
from loraplex.server.engine.routed_engine import EngineOptions

MOST = 64
"""Adapters in the bundle."""
KV_BYTES = 26 * 10**9
"""KV cache of each engine: some 256 blocks of 256 tokens."""
LONG_PROMPT = 1024
GENERATOR_OUTPUT = 64
"""Tokens of an answer of the generator lane, which gives some 270 a second to all together."""

app = App(help=__doc__)


class Bench:
    """One bundle on one machine, and what has been measured."""

    def __init__(self, work: Path, *, tiny: bool, device: str, rounds: int, operator: bool) -> None:
        self.work = work
        self.device = device
        self.rounds = rounds
        self.found: dict[str, Any] = {}
        start = time.perf_counter()
        self.bundle = make_bundle(work, 8 if tiny else MOST, tiny=tiny, device=device)
        self.note("bundle, s", time.perf_counter() - start)
        self.operator = find_operator(work / "operator") if operator and device == "cuda" else None
        self.names = list(self.bundle.manifest.adapters)

    def note(self, name: str, value: Any) -> None:
        self.found[name] = value
        text = f"{value:.2f}" if isinstance(value, float) else value
        print(f"{name}: {text}", flush=True)
        (self.work / "routed.json").write_bytes(msgspec.json.format(msgspec.json.encode(self.found)))

    def lane(self, weights: str, adapters: Sequence[str], *, slots: int, streams: int = 128) -> RoutedLane:
        """A lane with these adapters; without any it is the base alone."""
        folder = self.bundle.variant("paged" if self.device == "cuda" else "generator")
        if weights == "float16":
            start = time.perf_counter()
            folder = expand(folder, self.work / "float16").folder
            self.note("float16: expanded, s", time.perf_counter() - start)
        manifests = [read_adapter_manifest(self.bundle.adapter(name)) for name in adapters]
        start = time.perf_counter()
        lane = RoutedLane(
            folder,
            device=self.device,
            threads=2,
            cache=self.work / "linked",
            options=EngineOptions(max_batch_size=streams, kv_bytes=KV_BYTES),
            max_linked=slots,
            operator=self.operator,
            ranks=manifests[0].ranks if manifests else None,
        )
        what = f"{weights}, {len(adapters)} adapters, {slots} slots"
        self.note(f"{what}: linked and loaded, s", time.perf_counter() - start)
        if self.operator:
            start = time.perf_counter()
            lane.capture_graphs()
            self.note(f"{what}: CUDA graphs captured, s", time.perf_counter() - start)
        for name, manifest in zip(adapters, manifests, strict=True):
            lane.load_adapter(name, self.bundle.adapter(name), manifest)
        if adapters:
            start = time.perf_counter()
            Load(lane, self.vocab_size, prompt=8, output=1).wave(len(adapters), adapters)
            self.note(f"{what}: one token of each adapter, s", time.perf_counter() - start)
            if layout := lane.layout:
                self.note(f"{what}: GPU memory of an adapter, MB", layout.slot_bytes / 1e6)
        return lane

    @property
    def vocab_size(self) -> int:
        return self.bundle.manifest.base.vocab_size

    def median(self, measure: Callable[[], Result]) -> Result:
        """After a round that warms up, which captures CUDA graphs where the lane has not yet."""
        measure()
        return median([measure() for _ in range(self.rounds)])


def engine(bench: Bench, weights: str, count: int, levels: Sequence[int], long: Sequence[int]) -> None:
    """Tokens/s of base alone and with adapters, in turns, since the machine's speed drifts."""
    base = bench.lane(weights, [], slots=1)
    own = bench.lane(weights, bench.names[:count], slots=max(count, 2))
    for prompt, some in ((128, levels), (LONG_PROMPT, long)):
        loads = [Load(lane, bench.vocab_size, prompt=prompt) for lane in (base, own)]
        for level in some:
            found: list[list[Result]] = [[], []]
            for turn in range(bench.rounds + 1):
                for load, results, names in zip(loads, found, ([], bench.names[:count]), strict=True):
                    result = load.wave(level, names or [None])
                    if turn:
                        results.append(result)
            alone, mixed = map(median, found)
            share = mixed.tokens_per_second / alone.tokens_per_second
            name = f"{weights}, {prompt}+128, {count} adapters, {level} requests"
            bench.note(f"{name}: base", alone)
            bench.note(f"{name}: adapters", mixed)
            bench.note(f"{name}: share", share)


def http(bench: Bench, weights: str, count: int, levels: Sequence[int]) -> None:
    """The same through a server and clients in other processes."""
    flags = ["--engine", "routed", "--device", bench.device, "--weights", weights, "--max-running", "128"]
    flags += ["--link-cache", str(bench.work)]
    start = time.perf_counter()
    with server(bench.bundle.folder, bench.work / f"server-{weights}.log", *flags) as url:
        bench.note(f"{weights}, HTTP: server ready, s", time.perf_counter() - start)
        for level in levels:
            result = bench.median(lambda level=level: wave(url, level, bench.names[:count]))  # type: ignore[misc]
            bench.note(f"{weights}, HTTP, 128+128, {count} adapters, {level} requests", result)


def churn(bench: Bench, weights: str, seconds: float, streams: int = 32) -> None:
    """As many adapters as slots, then twice as many in turns, for few slots and for as many as there are streams."""
    for slots in sorted({streams // 4, streams}):
        names = bench.names[: 2 * slots]
        lane = bench.lane(weights, names[:slots], slots=slots)
        load = Load(lane, bench.vocab_size)
        load.loop(streams, names[:slots], seconds / 2)
        bench.note(
            f"{weights}, {streams} streams, {slots} adapters on {slots} slots",
            load.loop(streams, names[:slots], seconds)[0],
        )
        for name in names[slots:]:
            lane.load_adapter(name, bench.bundle.adapter(name), read_adapter_manifest(bench.bundle.adapter(name)))
        result, seen = load.loop(streams, [*names[: slots - 1], names[slots]], seconds)
        what = f"{weights}, {streams} streams, {slots} slots"
        bench.note(f"{what}, one adapter takes another's place", result)
        bench.note(f"{what}, first token of the new adapter, s", seen[names[slots]])
        bench.note(f"{what}, {len(names)} adapters in turns", load.loop(streams, names, seconds)[0])
        del lane, load


def generator(bench: Bench, streams: int) -> None:
    """One og.Generator for each sequence, with as few tokens as its speed allows."""
    device: Any = bench.device
    lane = GeneratorLane(bench.bundle.variant("generator"), device=device, threads=2, prefill_chunk=0)
    for name in bench.names[:8]:
        lane.load_adapter(name, bench.bundle.adapter(name), read_adapter_manifest(bench.bundle.adapter(name)))
    load = Load(lane, bench.vocab_size, output=GENERATOR_OUTPUT, sampling=Sampling(temperature=0.0))
    load.wave(1, bench.names[:8])
    bench.note(
        f"generator, 128+{GENERATOR_OUTPUT}, 8 adapters, {streams} requests", load.wave(streams, bench.names[:8])
    )


@app.default
def main(
    work: Path,
    *,
    parts: str = "engine,http,churn,generator",
    weights: str = "int4,float16",
    adapters: str = "1,8,32",
    concurrency: str = "1,8,32,64,128",
    rounds: int = 3,
    operator: bool = True,
    tiny: bool = False,
    device: str = "cuda",
) -> None:
    """Measure. `--no-operator` makes branches of stock operators, as where there is no nvcc."""
    levels = [int(level) for level in concurrency.split(",")]
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, tiny=tiny, device=device, rounds=rounds, operator=operator)
    bench.note("machine", _machine(device))
    bench.note("operator", str(bench.operator))
    for each in weights.split(","):
        if "engine" in parts:
            for count in map(int, adapters.split(",")):
                engine(bench, each, count, levels, [level for level in levels if level in (8, 32)])
        if "http" in parts:
            http(bench, each, 8, levels)
        if "churn" in parts:
            churn(bench, each, 0.5 if tiny else 8.0, 4 if tiny else 32)
    if "generator" in parts:
        generator(bench, 4 if tiny else 64)


def _machine(device: str) -> str:
    name = "CPU"
    if device == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    packages = ("onnxruntime-gpu", "onnxruntime-genai-cuda") if device == "cuda" else ("onnxruntime",)
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{name}, {versions}, Python {platform.python_version()}"


if __name__ == "__main__":
    app()

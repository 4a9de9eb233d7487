"""The routed lane under load while its adapters change: what the streams feel, and how soon a new adapter answers.

    python -m loraplex.bench.routed_swap WORK [--precision int4] [--streams 32]

Works in the folder that `loraplex.bench.routed_gpu` made. A closed loop keeps that many requests running, 128 random
prompt tokens and 128 generated ones, each for the next adapter. Three scenes on one lane with room for 8 adapters:
8 adapters and nothing changes; one more is loaded, in the middle of it; 16 adapters take turns, 2 for each slot.
"""

from __future__ import annotations

import time
from itertools import count, cycle
from pathlib import Path

import numpy as np
from cyclopts import App

from loraplex.bench.routed_gpu import KV_BLOCKS, Result, make_adapters, percentiles
from loraplex.server.bundle import AdapterManifest
from loraplex.server.engine.messages import Sampling, Submit
from loraplex.server.engine.routed import RoutedLane
from loraplex.server.engine.routed_engine import EngineOptions

SLOTS = 8
GREEDY = Sampling(temperature=0.0, ignore_eos=True)

app = App(help=__doc__)


class Load:
    """A closed loop of requests against one lane."""

    def __init__(self, lane: RoutedLane, streams: int) -> None:
        self.lane = lane
        self.streams = streams
        self.numbers = count()
        self.random = np.random.default_rng(0)

    def request(self, adapter: str) -> int:
        number = next(self.numbers)
        prompt = self.random.integers(2, 31999, 128).tolist()
        self.lane.submit(Submit(number, adapter, prompt, 128, GREEDY))
        return number

    def run(self, adapters: list[str], seconds: float) -> tuple[Result, dict[str, float]]:
        """Run for so long and then to the end; also when the first token of each adapter came, in seconds."""
        turns = cycle(adapters)
        begun: dict[int, tuple[str, float]] = {}
        last: dict[int, float] = {}
        first: list[float] = []
        between: list[float] = []
        seen: dict[str, float] = {}
        tokens = 0
        start = time.perf_counter()

        def begin() -> None:
            adapter = next(turns)
            now = time.perf_counter()
            begun[self.request(adapter)] = adapter, now

        for _ in range(self.streams):
            begin()
        while begun:
            for output in self.lane.step():
                if output.error:
                    raise RuntimeError(output.error)
                now, (adapter, since) = time.perf_counter(), begun[output.sequence]
                if output.sequence in last:
                    between.append(1000 * (now - last[output.sequence]))
                else:
                    first.append(1000 * (now - since))
                    seen.setdefault(adapter, now - start)
                last[output.sequence] = now
                tokens += len(output.tokens)
                if output.finish:
                    del begun[output.sequence], last[output.sequence]
                    if now - start < seconds:
                        begin()
        total = time.perf_counter() - start
        print(f"  longest wait between two tokens {max(between):.0f} ms, for a first one {max(first):.0f} ms")
        return Result(tokens / total, percentiles(first), percentiles(between)), seen


def show(name: str, result: Result) -> None:
    first, between = result.first_token, result.inter_token
    print(
        f"{name}: {result.tokens_per_second:.0f} tokens/s, TTFT p50/p99 {first[0]:.0f}/{first[1]:.0f} ms, "
        f"ITL p50/p99 {between[0]:.1f}/{between[1]:.1f} ms",
        flush=True,
    )


@app.default
def main(work: Path, *, precision: str = "int4", streams: int = 32, seconds: float = 8.0, drain: float = 5.0) -> None:
    """Print what the three scenes measured."""
    start = time.perf_counter()
    options = EngineOptions(kv_blocks=KV_BLOCKS)
    lane = RoutedLane(
        work / precision,
        device="cuda",
        threads=1,
        cache=work / "cache",
        options=options,
        max_linked=SLOTS,
        drain_seconds=drain,
    )
    print(f"lane loaded in {time.perf_counter() - start:.2f} s")
    files = make_adapters(work / "adapters", 2 * SLOTS)

    def register(name: str) -> None:
        file = files[name]
        fingerprint = "sha256:" + "0" * 64
        manifest = AdapterManifest(1, file.name, "0" * 64, fingerprint, "float16", {}, {})
        lane.load_adapter(name, file.parent, manifest)

    names = list(files)
    for name in names[:SLOTS]:
        register(name)
    load = Load(lane, streams)
    start = time.perf_counter()
    load.run(names[:SLOTS], 0)
    print(f"{SLOTS} adapters linked, loaded and answering in {time.perf_counter() - start:.2f} s")
    # CUDA graphs are captured for each batch size that comes up.
    load.run(names[:SLOTS], seconds / 2)
    show("steady", load.run(names[:SLOTS], seconds)[0])
    register(names[SLOTS])
    result, seen = load.run([*names[: SLOTS - 1], names[SLOTS]], seconds)
    show("swap", result)
    print(f"  first token of the new adapter {seen[names[SLOTS]]:.2f} s after it was loaded")
    for name in names[SLOTS + 1 :]:
        register(name)
    show("churn", load.run(names, 2 * seconds)[0])


if __name__ == "__main__":
    app()

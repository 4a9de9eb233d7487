"""Tokens per second of the batched lane and the generator lane side by side, in one process, without HTTP.

    python -m loraplex.bench.experiments.batched_lane BUNDLE [--threads 2] [--rounds 5] [--cpu-time]

Random adapters of rank 16 on every projection are made for the bundle's base. The cases of a round run one after the
other, each on both lanes; printed are medians over the rounds, and their ratios. On a machine with busy neighbours,
`--cpu-time --threads 1` counts this process's seconds on the CPU instead of the wall's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
from onnxruntime import AdapterFormat, OrtValue

from loraplex.server.bundle import AdapterManifest, Base, Bundle, sha256
from loraplex.server.engine.batched import BatchedLane
from loraplex.server.engine.generator import GeneratorLane
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.linear_operator import find_linear_operator, user_cache
from loraplex.server.engine.messages import Sampling, Submit

Clock = Callable[[], float]

RANK = 16
CASES: dict[str, list[str | None]] = {
    "base, 1 stream": [None],
    "one adapter, 1 stream": ["0"],
    "base, 8 streams": [None] * 8,
    "one adapter, 8 streams": ["0"] * 8,
    "4 base + 4 of one adapter": [None, "0"] * 4,
    "8 adapters, 8 streams": [str(index) for index in range(8)],
}


def make_adapter(folder: Path, base: Base, seed: int) -> AdapterManifest:
    """Write a random adapter small enough to leave the base's answers sane."""
    random = np.random.default_rng(seed)
    values = {}
    for projection, (rows, columns) in base.projections.items():
        for side, shape in (("A", (rows, RANK)), ("B", (RANK, columns))):
            weight = random.standard_normal(shape, np.float32) * 0.01
            values[f"model.layers.{projection}.lora_{side}.weight"] = OrtValue.ortvalue_from_numpy(weight)
    path = folder / f"{seed}.onnx_adapter"
    file = AdapterFormat()
    file.set_parameters(values)
    file.export_adapter(str(path))
    ranks = dict.fromkeys(base.projections, RANK)
    return AdapterManifest(1, path.name, sha256(path), base.fingerprint, base.dtype, ranks, {})


def run(
    lane: Lane, adapters: list[str | None], prompt: int, answer: int, round_: int, clock: Clock
) -> tuple[float, float]:
    """Answer tokens per second over all, and while every sequence decodes. Every round has prompts of its own."""
    random = np.random.default_rng(round_)
    decoding: dict[int, int] = {}
    start = clock()
    for index, adapter in enumerate(adapters):
        ids = [int(token) for token in random.integers(5, 150, prompt)]
        lane.submit(Submit(index, adapter, ids, answer, Sampling(temperature=0)))
    done = 0
    steady, steady_tokens = 0.0, 0
    while lane.busy:
        before = clock()
        full = len(decoding) == len(adapters)
        outputs = lane.step()
        if full:
            steady += clock() - before
            steady_tokens += len(outputs)
        for output in outputs:
            assert output.error is None, output.error
            decoding[output.sequence] = decoding.get(output.sequence, 0) + len(output.tokens)
            done += len(output.tokens)
            if output.finish:
                adapters = adapters[:-1]
    return done / (clock() - start), steady_tokens / max(steady, 1e-9)


@contextmanager
def lanes(bundle: Bundle, threads: int) -> Iterator[dict[str, Lane]]:
    folder, base = bundle.variant("generator"), bundle.manifest.base
    both: dict[str, Lane] = {
        "generator": GeneratorLane(folder, device="cpu", threads=threads, prefill_chunk=0),
        "batched": BatchedLane(
            folder, threads=threads, prefill_chunk=0, operator=lambda: find_linear_operator(user_cache())
        ),
    }
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(8):
            manifest = make_adapter(Path(scratch), base, seed)
            for lane in both.values():
                lane.load_adapter(str(seed), Path(scratch), manifest)
        yield both


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    for name, default in (("threads", 2), ("rounds", 5), ("prompt", 64), ("answer", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with lanes(Bundle.open(options.bundle), options.threads) as both:
        for round_ in range(options.rounds + 1):
            for case, adapters in CASES.items():
                for name, lane in both.items():
                    speeds = run(lane, adapters, options.prompt, options.answer, round_, clock)
                    if round_:  # the first round warms up
                        found.setdefault((case, name), []).append(speeds)
    speed = {key: [median(column) for column in zip(*values, strict=True)] for key, values in found.items()}
    print(f"{'tokens/s, all (while all decode)':34}{'generator':>18}{'batched':>18}{'ratio':>14}")
    for case in CASES:
        old, new = speed[case, "generator"], speed[case, "batched"]
        cells = "".join(f"{f'{all_:.0f} ({steady:.0f})':>18}" for all_, steady in (old, new))
        print(f"{case:34}{cells}{f'{new[0] / old[0]:.2f} ({new[1] / old[1]:.2f})':>14}")
    base = speed["base, 8 streams", "batched"]
    for case in list(CASES)[3:]:
        all_, steady = (new / old for new, old in zip(speed[case, "batched"], base, strict=True))
        print(f"batched, {case}: {all_:.2f} ({steady:.2f}) of base, 8 streams")


if __name__ == "__main__":
    main()

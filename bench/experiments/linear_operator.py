"""Forward passes with the compiled operator of 4-bit layers and with onnxruntime's own, in one process, in turn.

    python -m loraplex.bench.experiments.linear_operator BUNDLE [--threads 2] [--rounds 15] [--cpu-time]

The operator for each instruction set that the CPU has. Random adapters of rank 16 on every projection. Printed are
milliseconds of a pass, the least and the median, and the median of the ratios of neighbouring passes to onnxruntime's.
On a machine with busy neighbours `--cpu-time --threads 1` counts this process's time on the CPU instead of the wall's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from loraplex.bench.lanes.random_adapter import write_random
from loraplex.server.bundle import Bundle
from loraplex.server.engine.forward import Forward
from loraplex.server.engine.linear_operator import INSTRUCTION_SETS, cpu_flags, find_linear_operator, user_cache
from loraplex.server.engine.row_adapters import Adapter

ADAPTERS = 8
RANK = 16
CONTEXT = 100
"""Tokens of a row that decodes."""
CASES: dict[str, tuple[int, int, int]] = {
    "1 row": (1, 1, 0),
    "1 row, an adapter": (1, 1, 1),
    "8 rows": (8, 1, 0),
    "8 rows, one adapter": (8, 1, 1),
    "8 rows, 8 adapters": (8, 1, 8),
    "64 prompt tokens": (1, 64, 0),
    "64 prompt tokens, an adapter": (1, 64, 1),
}
"""Rows, tokens of each, adapters that they are spread over."""


def run(forward: Forward, adapters: list[Adapter], case: tuple[int, int, int]) -> None:
    rows, tokens, spread = case
    random = np.random.default_rng(rows + tokens)
    if tokens > 1:
        forward.prefill(0, random.integers(5, 150, tokens), 0, adapters[0] if spread else None)
    else:
        chosen = [adapters[row % spread] if spread else None for row in range(rows)]
        forward.decode(random.integers(5, 150, rows), np.full(rows, CONTEXT), chosen)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    bundle = Bundle.open(options.bundle)
    folder, base = bundle.variant("generator"), bundle.manifest.base
    libraries = {
        name: find_linear_operator(user_cache(), frozenset(needed))
        for name, needed in INSTRUCTION_SETS.items()
        if cpu_flags().issuperset(needed)
    }
    if not any(libraries.values()):
        raise SystemExit("the operator is not used on this machine")
    forwards = {"onnxruntime": Forward(folder, options.threads)}
    for name, library in libraries.items():
        forwards[name] = Forward(folder, options.threads, partial(_same, library))
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(seed) for seed in range(ADAPTERS)]
        files = [
            folder / write_random(base, folder, folder.name, rank=RANK, seed=seed).file
            for seed, folder in enumerate(folders)
        ]
        adapters = {name: [Adapter(file.stem, file) for file in files] for name in forwards}
        for forward in forwards.values():
            forward.reserve(ADAPTERS, 2 * CONTEXT, ())
        for case, what in CASES.items():
            for round_ in range(options.rounds):
                for name in list(forwards)[:: 1 if round_ % 2 else -1]:
                    run(forwards[name], adapters[name], what)  # brings its weights into the cache, and what it binds
                    start = clock()
                    run(forwards[name], adapters[name], what)
                    found[case, name].append((clock() - start) * 1000)
    print(f"| least (median), ms | {' | '.join(forwards)} |\n|{'---|' * (len(forwards) + 1)}")
    for case in CASES:
        stock, cells = found[case, "onnxruntime"], []
        for name in forwards:
            ratio = median(new / old for old, new in zip(stock, found[case, name], strict=True))
            times = found[case, name]
            cells.append(f"{min(times):.1f} ({median(times):.1f}) {ratio:.2f}")
        print(f"| {case} | {' | '.join(cells)} |")


def _same(library: Path | None) -> Path | None:
    return library


if __name__ == "__main__":
    main()

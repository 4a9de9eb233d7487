"""Memory of the batched lane: the base, each adapter, each token of KV, each running stream.

    python -m loraplex.bench.experiments.batched_memory BUNDLE [--threads 2] [--prompt 64] [--answer 48]

Every case has a process of its own. Its memory is what the kernel counts: its own, and pages of files that it has
mapped and touched, the base's weights and libraries, which the kernel may drop when memory is short. Adapters are
random, of rank 16 on every projection.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from loraplex.bench.lanes.random_adapter import write_random
from loraplex.server.bundle import Bundle
from loraplex.server.engine.batched import BatchedLane
from loraplex.server.engine.linear_operator import find_linear_operator, user_cache
from loraplex.server.engine.messages import Sampling, Submit

MEGABYTE = 1e6
RANK = 16
CASES = {
    "no adapters loaded": (0, 0, 0),
    "8 adapters loaded": (8, 0, 0),
    "1 stream, base": (8, 1, 0),
    "8 streams, base": (8, 8, 0),
    "8 streams, 1 adapter": (8, 8, 1),
    "8 streams, 8 adapters": (8, 8, 8),
}
"""Adapters that are loaded, streams that run together, adapters that they are spread over; 0 is the base."""


def measure(arguments: argparse.Namespace) -> None:
    """One case, in this process: prints [own, mapped, KV] bytes at the peak of its steps."""
    bundle = Bundle.open(arguments.bundle)
    operator = None if arguments.stock else lambda: find_linear_operator(user_cache())
    lane = BatchedLane(bundle.variant("generator"), threads=arguments.threads, prefill_chunk=0, operator=operator)
    loaded, streams, spread = CASES[arguments.case]
    for seed in range(loaded):
        folder = Path(arguments.adapters) / str(seed)
        manifest = write_random(bundle.manifest.base, folder, str(seed), rank=RANK, seed=seed)
        lane.load_adapter(str(seed), folder, manifest)
    peak = usage()
    for index in range(streams):
        ids = [5 + (7 * index + 3 * place) % 140 for place in range(arguments.prompt)]
        name = str(index % spread) if spread else None
        lane.submit(Submit(index, name, ids, arguments.answer, Sampling(temperature=0, ignore_eos=True)))
    while lane.busy:
        for output in lane.step():
            assert output.error is None, output.error
        peak = max(peak, usage())
    kv = streams * (arguments.prompt + arguments.answer) * lane._forward.kv.token_bytes
    print(json.dumps([*peak, kv]))


def usage() -> tuple[int, int]:
    """Bytes of this process, its own and of mapped files."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared, memory.shared


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    for name, default in (("threads", 2), ("prompt", 64), ("answer", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--stock", action="store_true", help="without the compiled operator")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--adapters", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        measure(arguments)
        return
    print("| | own, MB | mapped, MB | of it KV, MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as adapters:
        for case in CASES:
            command = [sys.executable, "-m", "loraplex.bench.experiments.batched_memory", *sys.argv[1:]]
            command += ["--case", case, "--adapters", adapters]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            cells = [f"{value / MEGABYTE:.0f}" for value in json.loads(found)]
            print(f"| {case} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Which attention kernels a step of the routed lane runs, by head size, and by the settings that choose them.

    python -m loraplex.bench.experiments.attention_kernels WORK [--heads 48/48x64,32/32x96,24/24x128,...]

Makes bundles of a few layers with random weights, 3072 wide as Phi-3.5-mini or as `--hidden` says, whose heads are
QUERY/KVxSIZE. For each, and for each of SETTINGS in a process of its own, it runs waves of sequences and prints the
time of a decode step with all of them, the time of attention a layer by torch.profiler, and the names of those kernels.
Needs a CUDA device and loraplex[build,cuda]; with --device cpu it tries itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from cyclopts import App, Parameter

from loraplex.bench.routed.model import make_bundle
from loraplex.server.bundle import Bundle
from loraplex.server.engine.expansion import expand
from loraplex.server.engine.lora_operator import find_operator
from loraplex.server.engine.messages import Sampling, Submit
from loraplex.server.engine.routed import RoutedLane
from loraplex.server.engine.routed_engine import EngineOptions

HEADS = "48/48x64,48/8x64,32/32x96,24/24x128,24/8x128"
LAYERS = 8
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "cuDNN off": {"ORT_ENABLE_CUDNN_FLASH_ATTENTION": "0"},
    "cuDNN on": {"ORT_ENABLE_CUDNN_FLASH_ATTENTION": "1"},
    "no flash attention": {"ORT_DISABLE_FLASH_ATTENTION": "1", "ORT_ENABLE_CUDNN_FLASH_ATTENTION": "0"},
    "no paged decode": {"ORT_DISABLE_DECODER_ATTENTION": "1"},
    "XQA": {"ORT_ENABLE_XQA": "1", "ORT_ENABLE_XQA_NATIVE_KV": "1"},
}
"""Environment variables of onnxruntime 1.31's PagedAttention."""
LOADS = ((1, 128), (64, 128), (8, 1024), (32, 1024))
"""Sequences at once, and tokens of their prompts."""
OUTPUT = 32
PROFILED = 5
"""Steps."""
ATTENTION = re.compile("attention|flash|fmha|sdpa|mha|xqa|pageddecode|combine", re.IGNORECASE)
GREEDY = Sampling(temperature=0.0, ignore_eos=True)

app = App(help=__doc__)


class Lane:
    """A routed lane over the base alone, and the times of its steps."""

    def __init__(self, bundle: Bundle, work: Path, device: str) -> None:
        paged = bundle.variant("paged" if device == "cuda" else "generator")
        self.lane = RoutedLane(
            expand(paged, work / "float16").folder if device == "cuda" else paged,
            device=device,
            threads=2,
            cache=work / "linked",
            options=EngineOptions(max_batch_size=64, kv_bytes=8 * 10**9, prefix_cache=False),
            operator=find_operator(work / "operator") if device == "cuda" else None,
        )
        self.lane.capture_graphs()
        self._number = 0

    def steps(self, count: int, prompt: int, profile: bool) -> tuple[float, Counter[str]]:
        """Milliseconds of a step that gives each of so many sequences a token, and microseconds of its kernels."""
        for _ in range(count):
            self._number += 1
            ids = [3 + (self._number * 7919 + index * 104729) % 397 for index in range(prompt)]
            self.lane.submit(Submit(self._number, None, ids, OUTPUT, GREEDY))
        left, profiler = count, None
        steps: list[tuple[int, float]] = []
        kernels: Counter[str] = Counter()
        while left:
            full = sum(size == count for size, _ in steps)
            if profile and full == OUTPUT // 4 and profiler is None:
                profiler = _profiler()
                profiler.start()
            if profiler and full == OUTPUT // 4 + PROFILED and not kernels:
                profiler.stop()
                kernels = _kernels(profiler)
            start = time.perf_counter()
            outputs = self.lane.step()
            steps.append((len(outputs), time.perf_counter() - start))
            left -= sum(output.finish is not None for output in outputs)
        most = max(size for size, _ in steps)  # on a CPU a batch is made of those that have come by then
        return 1000 * median(seconds for size, seconds in steps if size == most), kernels


def _profiler() -> Any:
    from torch.profiler import ProfilerActivity, profile

    return profile(activities=[ProfilerActivity.CUDA])


def _kernels(profiler: Any) -> Counter[str]:
    """Microseconds a step, by name: the profiler sees the kernels of the whole process."""
    found: Counter[str] = Counter({"": 0})
    for event in profiler.events():
        if event.device_type.name == "CUDA":
            found[event.name] += event.time_range.elapsed_us() / PROFILED
    return found


def measure(bundle: Bundle, work: Path, device: str) -> None:
    """Print a line of JSON for each load."""
    lane = Lane(bundle, work, device)
    for count, prompt in LOADS:
        times = [lane.steps(count, prompt, False)[0] for _ in range(3)]
        _, kernels = lane.steps(count, prompt, device == "cuda")
        attention = {name: spent for name, spent in kernels.most_common() if ATTENTION.search(name)}
        print(json.dumps([count, prompt, median(times), attention]), flush=True)


@app.default
def main(
    work: Path,
    *,
    heads: str = HEADS,
    hidden: int = 3072,
    device: str = "cuda",
    settings: str = ",".join(SETTINGS),
    only: Annotated[str, Parameter(show=False)] = "",
) -> None:
    """Measure every setting; `--settings` chooses some."""
    if only:
        measure(Bundle.open(work / only / "bundle"), work / only, device)
        return
    for each in heads.split(","):
        query, kv, size = map(int, re.split("[/x]", each))
        shape = {"num_attention_heads": query, "num_key_value_heads": kv, "hidden_size": query * size}
        if query * size != hidden:
            raise SystemExit(f"{each}: {query} heads of {size} are {query * size} wide, not {hidden}")
        name = each.replace("/", "-")
        few = {"num_hidden_layers": LAYERS, "intermediate_size": 1024}
        make_bundle(work / name, 0, device=device, shape=shape | few)
        for setting in settings.split(","):
            _print(each, setting, _run(work, name, device, SETTINGS[setting]))


def _run(work: Path, name: str, device: str, setting: dict[str, str]) -> list[Any]:
    command = [sys.executable, "-m", "loraplex.bench.experiments.attention_kernels", str(work), "--only", name]
    command += ["--device", device]
    run = subprocess.run(command, env=os.environ | setting, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
    if run.returncode:
        print(run.stderr.strip()[-500:])
    return rows


def _print(heads: str, setting: str, rows: list[Any]) -> None:
    for count, prompt, step, attention in rows:
        layer = sum(attention.values()) / (LAYERS + 1)  # the routing layer has attention as well
        print(
            f"{heads}, {setting}, {count} x {prompt}: {step:.2f} ms a step, attention {layer:.1f} us a layer",
            flush=True,
        )
        for name, spent in attention.items():
            print(f"    {spent / (LAYERS + 1):6.1f} us  {name[:110]}", flush=True)


if __name__ == "__main__":
    app()

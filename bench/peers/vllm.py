"""The routed lane beside vLLM on one GPU: the same AWQ weights and adapters, in turns, engine alone and through HTTP.

    python -m loraplex.bench.peers.vllm WORK --vllm /opt/vllm/bin/python [--parts engine,http] [--weights int4,float16]

`--vllm` is the command of a Python that has vLLM. All engines are up at once and only one has work at a time: within a
round each answers the same wave, so that the machine's drift falls on all alike. Either side runs the AWQ weights in
int4 and in float16 (`--weights float16`; for vLLM a checkpoint of the dequantized values). Every figure is printed and
goes to WORK/vllm.json. Takes 20 GB of disk and, up to 64 requests, 140 GB of GPU memory, with more --no-base; with
--tiny less, --device cpu without vLLM.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cyclopts import App

from loraplex.bench.peers import vllm_engine
from loraplex.bench.peers.awq_model import Model
from loraplex.bench.peers.vllm_server import environment, vllm_server
from loraplex.bench.routed.http import server, wave
from loraplex.bench.routed.load import Load, Result, median
from loraplex.server.bundle import read_adapter_manifest
from loraplex.server.engine.expansion import expand
from loraplex.server.engine.lora_operator import find_operator
from loraplex.server.engine.routed import RoutedLane
from loraplex.server.engine.routed_engine import EngineOptions

ADAPTERS = 8
OUTPUT = 128
KV_BYTES = 17 * 10**9
"""KV cache of each engine: 160 blocks of 256 tokens, what 32 requests of 1024 + 128 tokens take."""
SHORT_KV_BYTES = 14 * 10**9
"""What 128 requests of 128 + 128 tokens take, for engines that get no others."""
app = App(help=__doc__)


class Ours:
    """A routed lane in this process."""

    def __init__(self, model: Model, weights: str, work: Path, device: str, most: int, adapters: bool) -> None:
        folder = model.bundle.variant("paged" if device == "cuda" else "generator")
        folder = expand(folder, work / "expanded").folder if weights == "float16" and device == "cuda" else folder
        names = model.names if adapters else []
        manifests = [read_adapter_manifest(model.bundle.adapter(name)) for name in names]
        operator = find_operator(work / "operator") if device == "cuda" else None
        lane = RoutedLane(
            folder,
            device=device,
            threads=2,
            cache=work / "linked",
            options=EngineOptions(max_batch_size=most, kv_bytes=KV_BYTES if adapters else SHORT_KV_BYTES),
            max_linked=max(len(names), 2),
            operator=operator,
            ranks=manifests[0].ranks if manifests else None,
        )
        if operator:
            lane.capture_graphs()
        for name, manifest in zip(names, manifests, strict=True):
            lane.load_adapter(name, model.bundle.adapter(name), manifest)
        self._load = Load(lane, model.shape["vocab_size"], output=OUTPUT)

    def wave(self, adapters: list[str | None], prompts: list[list[int]]) -> Result:
        return self._load.wave(len(prompts), adapters, prompts)


class Theirs:
    """vLLM's engine in a process of its own (`vllm_engine`)."""

    def __init__(self, python: list[str], checkpoint: Path, model: Model, log: Path, most: int) -> None:
        options = {
            "max_num_seqs": most,
            "max_model_len": 2048,
            "kv_cache_memory_bytes": KV_BYTES,
            "gpu_memory_utilization": 0.1,
            "seed": 0,
        }
        peft = {name: str(folder) for name, folder in model.peft.items()}
        command = [*python, "-P", vllm_engine.__file__, str(checkpoint), json.dumps(peft), json.dumps(options)]
        self._log = log
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            text=True,
            env=environment(),
        )

    def wait(self) -> None:
        self._read()

    def wave(self, adapters: list[str | None], prompts: list[list[int]]) -> Result:
        requests = list(zip(islice(cycle(adapters), len(prompts)), prompts, strict=True))
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"output": OUTPUT, "requests": requests}) + "\n")
        self._process.stdin.flush()
        found = json.loads(self._read())
        if found["tokens"] != len(prompts) * OUTPUT:
            raise RuntimeError(f"vLLM gave {found['tokens']} tokens instead of {len(prompts) * OUTPUT}")
        return Result.of(found["tokens"], found["seconds"], found["first"], found["between"])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def _read(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(vllm_engine.PREFIX):
                return line.removeprefix(vllm_engine.PREFIX)
        raise RuntimeError(f"vLLM ended:\n{self._log.read_text()[-3000:]}")


class Bench:
    def __init__(
        self, work: Path, model: Model, python: list[str], device: str, rounds: int, weights: list[str]
    ) -> None:
        self.work = work
        self.model = model
        self.python = python
        self.device = device
        self.rounds = rounds
        self.weights = weights
        self._found: dict[str, Any] = {}
        self._random = np.random.default_rng(0)

    def note(self, name: str, value: Any) -> None:
        self._found[name] = value
        print(f"{name}: {f'{value:.2f}' if isinstance(value, float) else value}", flush=True)
        (self.work / "vllm.json").write_bytes(msgspec.json.format(msgspec.json.encode(self._found)))

    def engines(self, levels: list[int], long: list[int], base: bool, vllm_base: bool) -> None:
        """Every engine with the same waves, in turns; those with adapters, then those without."""
        most, model = max(levels), self.model
        with ExitStack() as stack:
            start = time.perf_counter()
            theirs: dict[str, Theirs] = {}
            for weights, checkpoint in self._checkpoints().items():
                log = self.work / f"vllm-{weights}.log"
                theirs[weights] = Theirs(self.python, checkpoint, model, log, most)
                stack.callback(theirs[weights].close)
            ours = {weights: Ours(model, weights, self.work, self.device, most, True) for weights in self.weights}
            alone = {weights: Ours(model, weights, self.work, self.device, most, False) for weights in ours if base}
            self.note("loraplex's engines ready, s", time.perf_counter() - start)
            for weights, their in list(theirs.items()):
                try:
                    their.wait()
                except RuntimeError as error:
                    self.note(f"vLLM {weights}, engine", str(error))
                    del theirs[weights]
            self.note("all engines ready, s", time.perf_counter() - start)
            everyone: list[tuple[str, Any, list[str | None]]] = []
            for weights in ours:
                everyone.append((f"loraplex {weights}, {ADAPTERS} adapters", ours[weights], [*model.names]))
                if weights in theirs:
                    everyone.append((f"vLLM {weights}, {ADAPTERS} adapters", theirs[weights], [*model.names]))
                if base:
                    everyone.append((f"loraplex {weights}, base", alone[weights], [None]))
                if weights in theirs and base and vllm_base:
                    everyone.append((f"vLLM {weights}, base", theirs[weights], [None]))
            for level in levels:
                self._rounds(everyone, 128, level)
            for level in long:
                self._rounds([each for each in everyone if each[2] != [None]], 1024, level)

    def _rounds(self, everyone: list[tuple[str, Any, list[str | None]]], prompt: int, level: int) -> None:
        found: dict[str, list[Result]] = {name: [] for name, _, _ in everyone}
        for turn in range(self.rounds + 1):
            prompts = self._random.integers(3, 400, (len(everyone), level, prompt)).tolist()
            for (name, engine, adapters), own in zip(everyone, prompts, strict=True):
                result = engine.wave(adapters, own)
                # The first round warms up.
                if turn:
                    found[name].append(result)
        for name, results in found.items():
            self.note(f"{prompt}+{OUTPUT}, {level} requests, {name}", median(results))

    def http(self, levels: list[int], long: list[int]) -> None:
        """`loraplex serve` and `vllm serve`, the same clients, in turns."""
        most, model = max(levels), self.model
        with ExitStack() as stack:
            start = time.perf_counter()
            starting = []
            for weights, checkpoint in self._checkpoints().items():
                log = self.work / f"vllm-serve-{weights}.log"
                server_of = vllm_server(self.python, checkpoint, model, log, most=most, kv_bytes=KV_BYTES)
                starting.append((weights, stack.enter_context(server_of)))
            urls = {}
            flags = ["--engine", "routed", "--device", self.device, "--max-running", str(most)]
            flags += ["--link-cache", str(self.work / "cache"), "--kv-cache-mib", str(KV_BYTES >> 20)]
            for weights in self.weights if self.device == "cuda" else ("auto",):
                log = self.work / f"serve-{weights}.log"
                own = [*flags, "--weights", weights]
                urls[f"loraplex {weights}"] = stack.enter_context(server(model.bundle.folder, log, *own))
            self.note("loraplex serve ready, s", time.perf_counter() - start)
            for weights, pending in starting:
                try:
                    pending.wait()
                    urls[f"vLLM {weights}"] = pending.url
                except RuntimeError as error:
                    self.note(f"vLLM {weights}, server", str(error))
            self.note("all servers ready, s", time.perf_counter() - start)
            for prompt, some in ((128, levels), (1024, long)):
                for level in some:
                    self._waves(urls, prompt, level)

    def _checkpoints(self) -> dict[str, Path]:
        """What vLLM serves, where there is one."""
        every = {"int4": self.model.awq, "float16": self.model.float16}
        return {weights: every[weights] for weights in self.weights} if self.python else {}

    def _waves(self, urls: dict[str, str], prompt: int, level: int) -> None:
        found: dict[str, list[Result]] = {name: [] for name in urls}
        for turn in range(self.rounds + 1):
            for name, url in urls.items():
                result = wave(url, level, self.model.names, prompt=prompt, output=OUTPUT, seed=1000 * turn)
                if turn:
                    found[name].append(result)
        for name, results in found.items():
            self.note(f"HTTP, {prompt}+{OUTPUT}, {level} requests, {name}, {ADAPTERS} adapters", median(results))


@app.default
def main(
    work: Path,
    *,
    vllm: str = "",
    parts: str = "engine,http",
    weights: str = "int4,float16",
    concurrency: str = "1,8,32,64,128",
    long: str = "8,32",
    http: str = "1,8,32,64,128",
    rounds: int = 3,
    base: bool = True,
    vllm_base: bool = True,
    tiny: bool = False,
    device: str = "cuda",
) -> None:
    """Measure; without `--vllm` the routed lane alone."""
    work.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    model = Model(work, ADAPTERS, tiny=tiny, device=device)
    bench = Bench(work, model, shlex.split(vllm), device, rounds, weights.split(","))
    bench.note("checkpoints, s", time.perf_counter() - start)
    if "engine" in parts:
        bench.engines(_numbers(concurrency), _numbers(long), base, vllm_base)
    if "http" in parts:
        bench.http(_numbers(http), _numbers(long))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in filter(None, text.split(","))]


if __name__ == "__main__":
    app()

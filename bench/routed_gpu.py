"""The routed lane's table: tokens/s of og.Engine over a base alone and over the same base with adapters linked to it.

    python -m loraplex.bench.routed_gpu WORK [--precisions int4,float16] [--adapters 1,8,32] [--concurrency 1,8,32,64]

Makes a checkpoint of Phi-3.5-mini's shape with random weights in the folder WORK, exports it, makes adapters of rank
16 on all seven linear layers, links, and measures the engine alone, without HTTP: that many requests at once, each
for the next adapter, 128 random prompt tokens and 128 generated ones. Needs a CUDA device and loraplex[build,cuda].
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from cyclopts import App
from msgspec import Struct

from loraplex.build.paged import Precision, export_paged
from loraplex.server.engine.linker import Linked, link
from loraplex.server.engine.routed import KERNELS

SHAPE = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
    "tie_word_embeddings": False,
}
"""Phi-3.5-mini's, but for its RoPE scaling, which does not change what a step costs."""
KV_BLOCKS = 256
DISTINCT = 8
"""Adapter files made; where more adapters are linked they repeat, which changes nothing about the time."""

app = App(help=__doc__)


class Result(Struct, frozen=True):
    """One measurement: tokens/s of all requests together, time to first token and between tokens in milliseconds."""

    tokens_per_second: float
    first_token: tuple[float, float]
    """p50, p99."""
    inter_token: tuple[float, float]


def make_checkpoint(folder: Path) -> Path:
    """Write the checkpoint, float16, 7.6 GB, unless it is there."""
    if (folder / "config.json").is_file():
        return folder
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    config = AutoConfig.for_model("phi3", sliding_window=None, **SHAPE)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model = model.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.02)
            elif name.endswith("norm.weight"):
                parameter.fill_(1)
    model.save_pretrained(folder, max_shard_size="100GB")
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(SHAPE["vocab_size"])}, "w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w1", eos_token="w32000").save_pretrained(folder)
    return folder


def make_adapters(folder: Path, count: int, rank: int = 16) -> dict[str, Path]:
    """Write random float16 adapter files for all seven linear layers; return `count` of them by name."""
    from onnxruntime import AdapterFormat, OrtValue

    hidden, middle = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    shapes = {f"attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (hidden, middle), "mlp.up_proj": (hidden, middle), "mlp.down_proj": (middle, hidden)}
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(min(count, DISTINCT)):
        file = folder / f"{index}.onnx_adapter"
        if file.is_file():
            continue
        generator = np.random.default_rng(index)
        values = {}
        for layer in range(SHAPE["num_hidden_layers"]):
            for module, (rows, columns) in shapes.items():
                for side, shape in (("A", (rows, rank)), ("B", (rank, columns))):
                    weights = (generator.random(shape, np.float32) * 0.02 - 0.01).astype(np.float16)
                    name = f"model.layers.{layer}.{module}.lora_{side}.weight"
                    values[name] = OrtValue.ortvalue_from_numpy(weights)
        adapter = AdapterFormat()
        adapter.set_adapter_version(1)
        adapter.set_model_version(1)
        adapter.set_parameters(values)
        adapter.export_adapter(str(file))
    return {f"adapter-{index}": folder / f"{index % DISTINCT}.onnx_adapter" for index in range(count)}


class Runner:
    """An og.Engine over one linked folder."""

    def __init__(
        self,
        linked: Linked,
        options: dict[str, Any] | None = None,
        max_batch_size: int = 64,
        provider: dict[str, str] | None = None,
    ) -> None:
        import onnxruntime_genai as og

        self.og = og
        self.linked = linked
        config = og.Config(str(linked.folder))
        config.clear_providers()
        config.append_provider("cuda")
        for key, value in {"enable_cuda_graph": "1", **(provider or {})}.items():
            config.set_provider_option("cuda", key, value)
        batching = {"num_blocks": KV_BLOCKS, "max_batch_size": max_batch_size}
        overlay = {"engine": {"dynamic_batching": batching}, "model": {"decoder": {"session_options": options or {}}}}
        config.overlay(json.dumps(overlay))
        self.model = og.Model(config)
        self.engine = og.Engine(self.model)
        self.buffer = self.engine.create_event_buffer(4 * max_batch_size)

    def measure(self, concurrency: int, *, prompt: int = 128, output: int = 128, seed: int = 0) -> Result:
        """Run that many requests at once; adapters take turns."""
        names: list[str | None] = list(self.linked.slots) or [None]
        generator = np.random.default_rng(seed)
        begins: dict[Any, float] = {}
        times: dict[Any, list[float]] = {}
        start = time.perf_counter()
        for index in range(concurrency):
            ids = generator.integers(2, 31999, prompt).tolist()
            options = self.og.RequestOptions()
            options.set_max_session_tokens(prompt + output)
            request = self.engine.create_request(options=options)
            turn = self.og.TurnOptions(request)
            turn.set_do_sample(False)
            turn.set_max_generated_tokens(output)
            turn.set_min_generated_tokens(output)
            begins[request] = time.perf_counter()
            times[request] = []
            request.begin_turn(np.asarray(self.linked.tag(ids, names[index % len(names)]), np.int32), turn)
        while self.engine.has_pending_requests():
            for event in self.engine.run(self.buffer):
                if event.flags.value & self.og.EngineEventFlags.TOKEN.value:
                    times[event.request].append(time.perf_counter())
        total = time.perf_counter() - start
        for request in begins:
            request.close()
        tokens = sum(map(len, times.values()))
        if tokens != concurrency * output:
            raise RuntimeError(f"{tokens} tokens came back instead of {concurrency * output}")
        first = [1000 * (stamps[0] - begins[request]) for request, stamps in times.items()]
        between = [1000 * float(gap) for stamps in times.values() for gap in np.diff(stamps)]
        return Result(tokens / total, percentiles(first), percentiles(between))


def percentiles(values: list[float]) -> tuple[float, float]:
    return float(np.percentile(values, 50)), float(np.percentile(values, 99))


def measure_beside(
    runner: Runner, base: Runner, levels: Iterable[int], rounds: int
) -> dict[int, tuple[Result, Result]]:
    """Rounds of median throughput of both for each concurrency, in turns, since the machine's speed drifts.

    A round before them captures the CUDA graphs.
    """
    results = {}
    for level in levels:
        found: tuple[list[Result], list[Result]] = ([], [])
        for turn in range(rounds + 1):
            for which, side in zip((runner, base), found, strict=True):
                result = which.measure(level, seed=turn)
                if turn:
                    side.append(result)
        results[level] = (_median(found[0]), _median(found[1]))
    return results


def _median(results: list[Result]) -> Result:
    return sorted(results, key=lambda result: result.tokens_per_second)[len(results) // 2]


@app.default
def main(
    work: Path,
    *,
    precisions: str = "int4,float16",
    adapters: str = "1,8,32",
    concurrency: str = "1,8,32,64",
    rounds: int = 3,
    fused: bool = True,
) -> None:
    """Print the table. Takes about 15 GB of disk, 20 GB of memory and 70 GB of GPU memory.

    `fused` makes branches of the operator in loraplex/server/engine/kernels, which has to be compiled for that; where
    it is not, and with --no-fused, they are made of stock operators.
    """
    levels = [int(level) for level in concurrency.split(",")]
    kernels = KERNELS if fused and KERNELS.is_file() else None
    print(_machine(), "| branches:", "fused" if kernels else "stock operators")
    checkpoint = make_checkpoint(work / "checkpoint")
    for precision in precisions.split(","):
        base = work / precision
        if not (base / "model.onnx").is_file():
            start = time.perf_counter()
            export_paged(checkpoint, base, precision=_precision(precision))
            print(f"\n{precision}: exported in {time.perf_counter() - start:.0f} s")
        alone = Runner(link(base, {}, work / "cache"))
        print(f"\n| {precision}: tokens/s, of base only | link s | load s | bank MB |", end="")
        print("".join(f" {level} |" for level in levels) + "\n|---|---|---|---|" + "---|" * len(levels))
        for count in map(int, adapters.split(",")):
            files = make_adapters(work / "adapters", count)
            start = time.perf_counter()
            linked = link(base, files, work / "cache", kernels)
            linking = time.perf_counter() - start
            start = time.perf_counter()
            runner = Runner(linked)
            loading = time.perf_counter() - start
            size = (linked.folder / "bank.data").stat().st_size / 1e6
            results = measure_beside(runner, alone, levels, rounds)
            print(f"| {count} adapters | {linking:.2f} | {loading:.2f} | {size:.0f} |", end="")
            for own, plain in results.values():
                share = own.tokens_per_second / plain.tokens_per_second
                print(f" {own.tokens_per_second:.0f} of {plain.tokens_per_second:.0f}, {share:.0%} |", end="")
            print("\n| TTFT; ITL p50/p99 ms | | | |", end="")
            for own, _ in results.values():
                first, between = own.first_token, own.inter_token
                print(f" {first[0]:.0f}/{first[1]:.0f}; {between[0]:.1f}/{between[1]:.1f} |", end="")
            print(flush=True)
            del runner


def _precision(name: str) -> Precision:
    return "float16" if name == "float16" else "int4"


def _machine() -> str:
    import torch

    packages = ("onnxruntime-gpu", "onnxruntime-genai-cuda")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{torch.cuda.get_device_name()}, {versions}, Python {platform.python_version()}"


if __name__ == "__main__":
    app()

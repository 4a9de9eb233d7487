"""AWQ beside rounding to nearest, on a base of the demo's shape that was trained with neither in mind.

    python -m loraplex.bench.experiments.awq_perplexity WORK [--documents 60000] [--steps 700]

Trains the base in the folder WORK, quantizes it by AutoAWQ, and prints perplexities on held-out text of the same
generator. Two minutes on an H200. Needs loraplex[build].
"""

from __future__ import annotations

from pathlib import Path

import torch
from cyclopts import App

from loraplex.build.demo import base, corpus, tokenizer
from loraplex.build.reference import Reference, perplexity, round_to_nearest
from loraplex.build.twin import load_twin

app = App(help=__doc__)


@app.default
def main(
    work: Path, /, *, documents: int = 60_000, steps: int = 700, groups: tuple[int, ...] = (32, 128), texts: int = 1500
) -> None:
    """Print a table of perplexities, one line for each group size."""
    (work / "base").mkdir(parents=True, exist_ok=True)
    corpus.write(work, documents)
    base.train(work, steps=steps)
    words = tokenizer.load(work / "base")
    held_out = [words.encode(text, add_special_tokens=False) for text in corpus.documents(texts, seed=31337)]

    def measure(folder: Path, group: int | None = None) -> float:
        model = load_twin(folder)
        reference = Reference(round_to_nearest(model, group) if group else model, {})
        return perplexity(held_out, lambda ids: reference.logits(ids, None))[0]

    print("| groups | float | rounded | AWQ |\n|---|---|---|---|")
    for group in groups:
        quantized = _quantize(work, group)
        print(f"| {group} | {measure(work / 'base'):.4f} | {measure(work / 'base', group):.4f} | ", end="")
        print(f"{measure(quantized):.4f} |", flush=True)


@torch.no_grad()
def _quantize(work: Path, group: int) -> Path:
    from awq import AutoAWQForCausalLM

    from loraplex.build.passes.awq_search import Search

    words = tokenizer.load(work / "base")
    samples = [words.encode(text, add_special_tokens=False)[:512] for text in corpus.documents(512, seed=977)]
    model = AutoAWQForCausalLM.from_pretrained(str(work / "base"), torch_dtype=torch.float32, safetensors=True)
    config = {"zero_point": True, "q_group_size": group, "w_bit": 4, "version": "gemm", "modules_to_not_convert": []}
    model.quantize(
        words,
        quant_config=config,
        calib_data=samples,
        max_calib_samples=128,
        max_calib_seq_len=512,
        quantizer_cls=Search,
    )
    folder = work / f"awq{group}"
    model.save_quantized(str(folder))
    words.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    app()

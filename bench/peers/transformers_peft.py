"""Hugging Face transformers and PEFT behind a minimal server, its adapters by name.

    python -m loraplex.bench.peers.transformers_peft WORK [--threads 2] [--dtype float32] [--batch 64]

starts it on the checkpoint and adapters of `python -m loraplex.bench.peers.model WORK` and stays up. transformers
batches as `generate` does: a batch of what waits when the last one ended, padded on the left, in which PEFT computes
each row under the adapter of its own (`adapter_names`); it runs until its longest answer ends, and who comes meanwhile
waits for that. The continuous batching of transformers takes no adapters by row.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from loraplex.bench.machine import versions
from loraplex.bench.peers.completion_server import Job, serve
from loraplex.bench.peers.peer import Peer, free_port, started, stay

Dtype = Literal["float32", "bfloat16"]

app = App(help=__doc__)


@contextmanager
def transformers_peft(
    work: Path, *, threads: int, dtype: Dtype = "float32", batch: int = 64, port: int = 0
) -> Iterator[Peer]:
    """The server on WORK/checkpoint with the adapters of WORK/adapters, while the block runs."""
    port = port or free_port()
    command = [sys.executable, "-m", "loraplex.bench.peers.transformers_peft", "serve", str(work), "--port", str(port)]
    command += ["--threads", str(threads), "--dtype", dtype, "--batch", str(batch)]
    url = f"http://127.0.0.1:{port}"
    notes = f"{dtype} weights; static batches of at most {batch}, mixed adapters by PEFT's adapter_names"
    with started(command, url, work / "transformers-peft.log") as pid:
        yield Peer("transformers + PEFT", url, command, versions(("transformers", "peft", "torch")), notes, pid)


class Transformers:
    """The model with its adapters; see the module for how it batches."""

    def __init__(self, checkpoint: Path, adapters: dict[str, Path], *, threads: int, dtype: Dtype, batch: int) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
        self.longest: int = model.config.max_position_embeddings
        for index, (name, folder) in enumerate(adapters.items()):
            if index:
                model.load_adapter(folder, name)
            else:
                model = PeftModel.from_pretrained(model, folder, name)
        self._model: Any = model.eval()
        self.adapters = list(adapters)
        self.most = batch

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text)
        return ids

    def decode(self, token: int) -> str:
        # The word of a token that is a part of a character, or special, has no text.
        return self._tokenizer.decode([token]) or str(self._tokenizer.convert_ids_to_tokens(token))

    def run(self, jobs: Sequence[Job]) -> None:
        import torch

        width = max(len(job.prompt) for job in jobs)
        ids = torch.tensor([[0] * (width - len(job.prompt)) + job.prompt for job in jobs])
        mask = torch.tensor([[0] * (width - len(job.prompt)) + [1] * len(job.prompt) for job in jobs])
        options: dict[str, Any] = {"pad_token_id": 0}
        if any(job.ignore_eos for job in jobs):
            options["eos_token_id"] = None
        if self.adapters:
            options["adapter_names"] = [job.adapter or "__base__" for job in jobs]
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(job.max_tokens for job in jobs),
                do_sample=False,
                streamer=_Reports(jobs, self._end_tokens()),
                **options,
            )

    def _end_tokens(self) -> frozenset[int]:
        end = self._model.generation_config.eos_token_id
        return frozenset([end] if isinstance(end, int) else end or ())


class _Reports:
    """What `generate` calls a streamer: it gets the prompts first, then one token of every row at a time."""

    def __init__(self, jobs: Sequence[Job], end_tokens: frozenset[int]) -> None:
        self._left = {row: job.max_tokens for row, job in enumerate(jobs)}
        self._jobs = jobs
        self._end_tokens = end_tokens
        self._prompts = True

    def put(self, values: Any) -> None:
        if self._prompts:
            self._prompts = False
            return
        for row, token in enumerate(values.tolist()):
            if row not in self._left:
                continue
            job = self._jobs[row]
            job.report(token)
            self._left[row] -= 1
            if not self._left[row] or (token in self._end_tokens and not job.ignore_eos):
                del self._left[row]
                job.report(None)

    def end(self) -> None:
        for row in self._left:
            self._jobs[row].report(None)
        self._left = {}


@app.command(name="serve", show=False)
def serve_here(work: Path, /, *, port: int, threads: int, dtype: Dtype, batch: int) -> None:
    """Be the server."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folders = {folder.name: folder for folder in sorted((work / "adapters").iterdir())}
    library = Transformers(work / "checkpoint", folders, threads=threads, dtype=dtype, batch=batch)
    serve(library, "base", port)


@app.default
def main(work: Path, /, *, threads: int = 2, dtype: Dtype = "float32", batch: int = 64, port: int = 0) -> None:
    """Start it and stay up."""
    stay(transformers_peft(work, threads=threads, dtype=dtype, batch=batch, port=port))


if __name__ == "__main__":
    app()

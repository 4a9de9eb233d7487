"""The loop of Olive's lab behind a minimal server: one og.Generator after another, its adapter from og.Adapters.

    python -m loraplex.bench.peers.olive_loop WORK [--threads 2]

starts it on WORK/bundle, as `python -m loraplex.bench.peers.model WORK` makes it, and stays up. The lab's program (in
Olive's and onnxruntime-genai's multi-LoRA tutorials) answers one prompt; served, it answers one at a time, in the order
in which they came. --threads 0 leaves the number of threads to onnxruntime-genai, as the lab does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cyclopts import App

from loraplex.bench.machine import versions
from loraplex.bench.peers.completion_server import Job, serve
from loraplex.bench.peers.peer import Peer, free_port, started, stay
from loraplex.server.bundle import Bundle, read_adapter_manifest

app = App(help=__doc__)


@contextmanager
def olive_loop(work: Path, *, threads: int, port: int = 0) -> Iterator[Peer]:
    """The server on WORK/bundle while the block runs."""
    port = port or free_port()
    command = [sys.executable, "-m", "loraplex.bench.peers.olive_loop", "serve", str(work / "bundle")]
    command += ["--port", str(port), "--threads", str(threads)]
    url = f"http://127.0.0.1:{port}"
    quantization = Bundle.open(work / "bundle").manifest.base.quantization
    notes = f"the weights of our bundle ({quantization.method}, {quantization.bits} bits); one request at a time"
    with started(command, url, work / "olive-loop.log") as pid:
        found = versions(("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime", "onnxruntime-gpu"))
        yield Peer("Olive's loop", url, command, found, notes, pid, Bundle.open(work / "bundle").manifest.base.name)


class Loop:
    """og.Generator, one request at a time."""

    most = 1

    def __init__(self, bundle: Bundle, threads: int) -> None:
        import onnxruntime_genai as og

        self._og = og
        config = og.Config(str(bundle.variant("generator")))
        if threads:
            config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._model = og.Model(config)
        self._tokenizer = og.Tokenizer(self._model)
        self._adapters = og.Adapters(self._model)
        self.adapters = list(bundle.manifest.adapters)
        for name in self.adapters:
            folder = bundle.adapter(name)
            self._adapters.load(str(folder / read_adapter_manifest(folder).file), name)
        self.longest = bundle.manifest.base.context_length

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text)]

    def decode(self, token: int) -> str:
        return self._tokenizer.decode([token]) or f"<{token}>"

    def run(self, jobs: Sequence[Job]) -> None:
        (job,) = jobs
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=len(job.prompt) + job.max_tokens, do_sample=False, top_k=1)
        if job.ignore_eos:
            params.set_search_options(min_length=len(job.prompt) + job.max_tokens)
        generator = self._og.Generator(self._model, params)
        if job.adapter is not None:
            generator.set_active_adapter(self._adapters, job.adapter)
        generator.append_tokens(job.prompt)
        while not generator.is_done():
            generator.generate_next_token()
            job.report(int(generator.get_next_tokens()[0]))
            # A pass keeps the interpreter to itself: the thread that answers HTTP gets it between two.
            time.sleep(0)
        job.report(None)


@app.command(name="serve", show=False)
def serve_here(bundle: Path, /, *, port: int, threads: int) -> None:
    """Be the server."""
    opened = Bundle.open(bundle)
    serve(Loop(opened, threads), opened.manifest.base.name, port)


@app.default
def main(work: Path, /, *, threads: int = 2, port: int = 0) -> None:
    """Start it and stay up."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    stay(olive_loop(work, threads=threads, port=port))


if __name__ == "__main__":
    app()

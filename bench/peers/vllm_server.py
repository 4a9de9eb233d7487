"""`vllm serve` with the benchmark's adapters, on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loraplex.bench.peers.awq_model import Model

START = 400.0
"""Seconds that a server may take to be ready."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}


class Pending:
    """A server that is starting."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.url = url
        self._process = process
        self._log = log

    def wait(self) -> None:
        deadline = time.monotonic() + START
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"vllm serve did not start:\n{self._log.read_text()[-3000:]}") from None
            time.sleep(0.2)


@contextmanager
def vllm_server(
    python: Sequence[str], checkpoint: Path, model: Model, log: Path, *, most: int, kv_bytes: int
) -> Iterator[Pending]:
    """Start it with room for `most` requests of 2048 tokens at a time; it is stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*python, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048", "--max-num-seqs", str(most)]
    command += ["--kv-cache-memory-bytes", str(kv_bytes), "--gpu-memory-utilization", "0.1"]
    command += ["--enable-lora", "--max-loras", str(len(model.peft)), "--max-lora-rank", "16"]
    command += ["--disable-uvicorn-access-log"]
    command += ["--lora-modules", *(f"{name}={folder}" for name, folder in model.peft.items())]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment())
    try:
        yield Pending(process, f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(60)


def environment() -> dict[str, str]:
    """For vLLM's Python: nothing that points to this process's packages."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return own | ENVIRONMENT

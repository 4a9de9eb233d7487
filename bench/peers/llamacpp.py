"""llama.cpp's llama-server: its files from the shared checkpoint, and the server on them.

    python -m loraplex.bench.peers.model WORK
    python -m loraplex.bench.peers.llamacpp convert WORK LLAMA_CPP LLAMA_QUANTIZE
    python -m loraplex.bench.peers.llamacpp serve WORK LLAMA_SERVER [--threads 2]
    python -m loraplex.bench.peers.llamacpp compare WORK LLAMA_SERVER [--rounds 5] [--threads 2]

LLAMA_CPP is llama.cpp's source tree, the other two are its programs. `compare` measures it beside `loraplex serve` on
the batched lane: both servers run all the time, and only one has work at a time.
"""

from __future__ import annotations

import importlib
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cyclopts import App

from loraplex.bench.peers.comparison import Case, Comparison
from loraplex.bench.peers.model import ADAPTERS
from loraplex.bench.peers.ours import loraplex
from loraplex.bench.peers.peer import Peer, free_port, started, stay

SLOTS = 8
CONTEXT = 1024
"""Tokens of a slot."""

app = App(help=__doc__)


@contextmanager
def llama_server(
    work: Path, program: Path, *, threads: int, slots: int = SLOTS, context: int = CONTEXT, port: int = 0
) -> Iterator[Peer]:
    """The server on WORK/gguf with all eight adapters while the block runs."""
    port = port or free_port()
    adapters = ",".join(str(work / "gguf" / f"{index}.gguf") for index in range(ADAPTERS))
    command = [str(program), "-m", str(work / "gguf" / "q4_0.gguf"), "-t", str(threads), "-np", str(slots)]
    command += ["-c", str(slots * context), "--lora", adapters, "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    notes = "Q4_0 with a Q8_0 head, adapters f16; requests for different adapters run one after another"
    with started(command, url, work / "llama-server.log") as pid:
        yield Peer("llama-server", url, command, _version(program), notes, pid, scales=ADAPTERS)


def _version(program: Path) -> dict[str, str]:
    """Its build number and compiler, as it prints them."""
    found = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False)
    text = found.stdout + found.stderr
    version, compiler = re.search(r"version: (.+)", text), re.search(r"built with (.+?) for", text)
    return {"llama.cpp": version[1] if version else "unknown", "compiler": compiler[1] if compiler else "unknown"}


@app.command
def convert(work: Path, llama_cpp: Path, llama_quantize: Path, /) -> None:
    """Write WORK/gguf/q4_0.gguf and the adapters 0.gguf to 7.gguf with llama.cpp's own scripts."""
    sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
    # The scripts know tokenizers by their hash, and ours is home-made: its ids are sent, only its texts come back.
    importlib.import_module("conversion.base").TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
    folder = work / "gguf"
    folder.mkdir(exist_ok=True)

    def script(name: str, *arguments: object) -> None:
        path = str(llama_cpp / name)
        sys.argv = [path, *map(str, arguments)]
        runpy.run_path(path, run_name="__main__")

    half = folder / "f16.gguf"
    script("convert_hf_to_gguf.py", work / "checkpoint", "--outfile", half, "--outtype", "f16")
    for index in range(ADAPTERS):
        target, adapter = folder / f"{index}.gguf", work / "adapters" / str(index)
        script(
            "convert_lora_to_gguf.py", adapter, "--base", work / "checkpoint", "--outfile", target, "--outtype", "f16"
        )
    subprocess.run([str(llama_quantize), str(half), str(folder / "q4_0.gguf"), "Q4_0", "2"], check=True)
    half.unlink()


@app.command
def serve(work: Path, llama_server_program: Path, /, *, threads: int = 2, slots: int = SLOTS, port: int = 0) -> None:
    """Start it and stay up."""
    stay(llama_server(work, llama_server_program, threads=threads, slots=slots, port=port))


@app.command
def compare(
    work: Path,
    llama_server_program: Path,
    /,
    *,
    rounds: int = 5,
    threads: int = 2,
    prompt: int = 64,
    answer: int = 48,
    load_seconds: float = 20,
) -> None:
    """Measure it beside our server and print the tables after every round."""
    cases = [
        Case("base", 1, 0, prompt, answer),
        Case("one adapter", 1, 1, prompt, answer),
        Case("base", SLOTS, 0, prompt, answer),
        Case("one adapter", SLOTS, 1, prompt, answer),
        Case("8 adapters", SLOTS, ADAPTERS, prompt, answer),
    ]
    with ExitStack() as stack:
        ours = stack.enter_context(loraplex(work, threads=threads))
        theirs = stack.enter_context(llama_server(work, llama_server_program, threads=threads))
        comparison = Comparison([ours, theirs], cases)
        comparison.warm_up()
        for number in range(1, rounds + 1):
            comparison.round()
            comparison.starve(load_seconds, prompt, answer)
            print(f"Round {number} of {rounds}:\n\n{comparison.markdown()}\n", flush=True)
        print(comparison.provenance())


if __name__ == "__main__":
    app()

"""The CPU tables of docs/benchmarks.md: our server beside every peer, through HTTP, in Markdown.

    python -m loraplex.bench.peers.model WORK
    python -m loraplex.bench.peers.llamacpp convert WORK LLAMA_CPP LLAMA_QUANTIZE
    python -m loraplex.bench.peers.cpu WORK --llama-server PROGRAM [--minutes 10]

Rounds go on while there is time for another, one at least; Ctrl-C prints what there is. Without --llama-server the
other peers are measured alone.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path

from cyclopts import App

from loraplex.bench.peers.comparison import Case, Comparison
from loraplex.bench.peers.llamacpp import llama_server as started_llama_server
from loraplex.bench.peers.olive_loop import olive_loop
from loraplex.bench.peers.ours import loraplex
from loraplex.bench.peers.transformers_peft import transformers_peft
from loraplex.server.errors import LoraplexError

STREAMS = 64
SHORT, LONG, ANSWER = 64, 1024, 32
CASES = [
    Case("base", 1, 0, SHORT, ANSWER),
    Case("one adapter", 1, 1, SHORT, ANSWER),
    Case("base", 8, 0, SHORT, ANSWER),
    Case("one adapter", 8, 1, SHORT, ANSWER),
    Case("8 adapters", 8, 8, SHORT, ANSWER),
    Case("one adapter", 32, 1, SHORT, ANSWER),
    Case("8 adapters", 32, 8, SHORT, ANSWER),
    Case("one adapter", STREAMS, 1, SHORT, ANSWER),
    Case("8 adapters", STREAMS, 8, SHORT, ANSWER),
    Case("one adapter", 1, 1, LONG, ANSWER),
    Case("8 adapters", 8, 8, LONG, ANSWER),
]
MOST = {"transformers + PEFT": LONG, "Olive's loop": LONG}
"""Prompt tokens: the one takes minutes for more, the other gives as many tokens/s to more, which wait longer."""

app = App(help=__doc__)


@app.default
def main(
    work: Path,
    /,
    *,
    llama_server: Path | None = None,
    threads: int = 2,
    minutes: float = 10,
    load_seconds: float = 8,
    results: Path | None = None,
) -> None:
    """Measure and print the tables; with --results also write the runs as JSON into that folder."""
    start = time.monotonic()
    try:
        with ExitStack() as stack:
            peers = [stack.enter_context(loraplex(work, threads=threads, streams=STREAMS))]
            if llama_server is not None:
                context = LONG + 2 * ANSWER
                theirs = started_llama_server(work, llama_server, threads=threads, slots=STREAMS, context=context)
                peers.append(stack.enter_context(theirs))
            peers.append(stack.enter_context(transformers_peft(work, threads=threads)))
            peers.append(stack.enter_context(olive_loop(work, threads=threads)))
            comparison = Comparison(peers, CASES, MOST)
            comparison.warm_up()
            try:
                while True:
                    begun = time.monotonic()
                    comparison.round()
                    comparison.starve(load_seconds, SHORT, ANSWER)
                    now = time.monotonic()
                    print(f"A round took {now - begun:.0f} s.", file=sys.stderr, flush=True)
                    if now - start + (now - begun) > 60 * minutes:
                        break
            except KeyboardInterrupt:
                print("Interrupted: what there is so far.", file=sys.stderr)
            print(f"{comparison.markdown()}\n\n{comparison.provenance()}")
            if results is not None:
                comparison.save(results)
    except (LoraplexError, OSError) as error:
        sys.exit(f"loraplex: {error}")


if __name__ == "__main__":
    app()

"""The CPU tables of docs/benchmarks.md: our server beside every peer, through HTTP, in Markdown.

    python -m loraplex.bench.peers.model WORK
    python -m loraplex.bench.peers.llamacpp convert WORK LLAMA_CPP LLAMA_QUANTIZE
    python -m loraplex.bench.peers.cpu WORK --llama-server PROGRAM [--minutes 11] [--results FOLDER]

It ends after --minutes, or one more. Every case is measured once on every server, those with less work first, and then
as often as there is time for. What would not end in time is left out and named. Ctrl-C prints what there is; with
--results the table and the runs are written after every case. Without --llama-server its rows are missing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from loraplex.bench.errors import INTERRUPTED, ServerFailed
from loraplex.bench.load.flags import AtLeastOne, NotNegative, OverZero
from loraplex.bench.peers.comparison import Case, Comparison
from loraplex.bench.peers.llamacpp import llama_server as started_llama_server
from loraplex.bench.peers.model import ADAPTERS
from loraplex.bench.peers.olive_loop import olive_loop
from loraplex.bench.peers.ours import loraplex
from loraplex.bench.peers.transformers_peft import transformers_peft
from loraplex.server.errors import LoraplexError

GRACE = 60.0
"""Seconds that a measurement may take after the time is over, before it is given up."""
TABLE = "table.md"
Numbers = Annotated[tuple[AtLeastOne, ...], Parameter(consume_multiple=True, negative="")]

app = App(help=__doc__)


def cases(streams: Sequence[int], prompts: Sequence[int], answer: int, most: int) -> list[Case]:
    """Every number of streams with the base, one adapter and all, as far as `most` prompt tokens at once allow."""
    spreads = (("base", 0), ("one adapter", 1), (f"{ADAPTERS} adapters", ADAPTERS))
    return [
        Case(name, count, adapters, prompt, answer)
        for prompt in prompts
        for count in streams
        for name, adapters in spreads
        if count * prompt <= most and adapters <= count
    ]


class Session:
    """A comparison, and the time that is left for it."""

    def __init__(self, comparison: Comparison, began: float, seconds: float, results: Path | None) -> None:
        """`began` is of time.monotonic()."""
        self._comparison = comparison
        self._began = began
        self._seconds = seconds
        self._results = results
        self._failed = False
        """Whether anything did; then no round follows the first."""

    @property
    def left(self) -> float:
        return self._began + self._seconds - time.monotonic()

    def run(self, load_seconds: float, rounds: int) -> None:
        """Measure until every case was, and on while there is time for another, up to so many rounds."""
        comparison = self._comparison
        ordered = sorted(comparison.cases, key=lambda case: case.work)
        for number in range(rounds):
            if self._failed:
                return
            first = not number
            if load_seconds and (first or self.left > 8 * load_seconds):
                with self._told("the wait for another adapter"):
                    comparison.starve(load_seconds, ordered[0].prompt, ordered[0].answer)
            for case in ordered:
                expected = sum(comparison.seconds(case, peer) or 0 for peer in comparison.peers(case))
                if not first and expected > self.left:
                    return
                self._measure(case, whole=not first)

    def _measure(self, case: Case, *, whole: bool) -> None:
        """On every server, or unless `whole` on those for which there is time."""
        comparison = self._comparison
        for peer in comparison.peers(case):
            name = f"{case.name}, {peer.name}"
            expected = comparison.seconds(case, peer) or 1.0
            if self.left < expected and not whole:
                comparison.notes.append(f"{name}: left out, as there was no time for it (about {expected:.0f} s).")
                continue
            with self._told(name):
                run = comparison.measure(case, peer, max(self.left, 0) + GRACE)
                self._say(f"{name}: {run.duration:.1f} s, {run.totals.output_throughput:.1f} tokens/s")
        comparison.next_round(case)
        if self._results is not None:
            self.save(self._results)

    def save(self, folder: Path) -> None:
        """Write the table and the runs."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TABLE).write_text(f"{self.text()}\n", encoding="utf-8")
        self._comparison.save(folder)

    def text(self) -> str:
        return f"{self._comparison.markdown()}\n\n{self._comparison.provenance()}"

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """One server that fails does not lose what the others did."""
        try:
            yield
        except ServerFailed as error:
            self._say(f"{name}: {error.message}")
            self._comparison.notes.append(f"{name}: failed, {error.message.splitlines()[0]}")
            self._failed = True

    def _say(self, line: str) -> None:
        print(f"[{time.monotonic() - self._began:4.0f} of {self._seconds:.0f} s] {line}", file=sys.stderr, flush=True)


@app.default
def main(
    work: Path,
    /,
    *,
    llama_server: Path | None = None,
    threads: int = 2,
    minutes: OverZero = 11,
    rounds: AtLeastOne = 10,
    streams: Numbers = (1, 8, 32, 64),
    prompts: Numbers = (64, 1024),
    answer: AtLeastOne = 32,
    most: AtLeastOne = 8192,
    most_slow: AtLeastOne = 2048,
    load_seconds: NotNegative = 8,
    results: Path | None = None,
) -> None:
    """Measure and print the tables.

    Parameters
    ----------
    work
        Folder that `python -m loraplex.bench.peers.model` and `llamacpp convert` have filled.
    llama_server
        llama.cpp's program.
    threads
        Of each server.
    minutes
        Time for everything, the servers' starts included.
    rounds
        How often each case is measured at most.
    streams
        Requests at once.
    prompts
        Tokens of a prompt.
    answer
        Tokens of an answer.
    most
        Prompt tokens of all streams together: cases with more are left out.
    most_slow
        The same for transformers + PEFT, which takes minutes for more, and Olive's loop, which gets no faster.
    load_seconds
        How long an adapter is under load while another one waits for a first token; 0 leaves that out.
    results
        Folder for the table and the runs.
    """
    began = time.monotonic()
    wanted = cases(streams, prompts, answer, most)
    if not wanted:
        sys.exit("loraplex: --most leaves no case: raise it")
    try:
        with ExitStack() as stack:
            peers = [stack.enter_context(loraplex(work, threads=threads, streams=max(streams)))]
            if llama_server is not None:
                context = max(prompts) + 2 * answer
                theirs = started_llama_server(work, llama_server, threads=threads, slots=max(streams), context=context)
                peers.append(stack.enter_context(theirs))
            slow = [stack.enter_context(transformers_peft(work, threads=threads))]
            slow.append(stack.enter_context(olive_loop(work, threads=threads)))
            comparison = Comparison([*peers, *slow], wanted, {peer.name: most_slow for peer in slow})
            session = Session(comparison, began, 60 * minutes, results)
            interrupted = False
            try:
                comparison.warm_up()
                session.run(load_seconds, rounds)
            except KeyboardInterrupt:
                print("Interrupted: what there is so far.", file=sys.stderr)
                interrupted = True
            print(session.text())
            if results is not None:
                session.save(results)
            if interrupted:
                sys.exit(INTERRUPTED)
    except (LoraplexError, OSError) as error:
        sys.exit(f"loraplex: {error}")


if __name__ == "__main__":
    app()

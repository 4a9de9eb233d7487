"""Servers under the same requests, one at a time, in an order that changes from round to round."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median

from msgspec import Struct

from loraplex.bench.lanes.wave import TIMEOUT, Ask, over_http, prompts
from loraplex.bench.load.benchmark import reckon
from loraplex.bench.load.options import Report
from loraplex.bench.machine import machine
from loraplex.bench.peers.model import SHAPE, SPECIAL
from loraplex.bench.peers.peer import Peer
from loraplex.bench.peers.starvation import Starvation, starve
from loraplex.bench.results.configuration import Configuration
from loraplex.bench.results.result import Run
from loraplex.bench.results.result_file import write
from loraplex.bench.table import markdown


class Case(Struct, frozen=True):
    """Streams that begin together, one request each."""

    spread_name: str
    streams: int
    adapters: int
    """That the streams are spread over; 0 is the base."""
    prompt: int
    answer: int
    """Tokens."""

    @property
    def tokens(self) -> int:
        """Of the prompts, all together."""
        return self.streams * self.prompt

    @property
    def work(self) -> int:
        """Tokens to compute."""
        return self.streams * (self.prompt + self.answer)

    @property
    def name(self) -> str:
        streams = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return f"{self.spread_name}, {streams}, {self.prompt}+{self.answer}"


class Comparison:
    """What has been measured of some servers; the first is ours."""

    def __init__(self, peers: Sequence[Peer], cases: Sequence[Case], most: Mapping[str, int] | None = None) -> None:
        """`most` are the prompt tokens, of all streams, that a server is measured with at most, by its name."""
        self._peers = list(peers)
        self.cases = list(cases)
        self._most = most or {}
        self._found: dict[tuple[Case, str], list[Run]] = defaultdict(list)
        self._waited: dict[str, list[Starvation]] = defaultdict(list)
        self._idle: list[float] = []
        self._rounds: dict[Case, int] = defaultdict(int)
        self._machine = machine()
        self.notes: list[str] = []
        """What the tables have to say besides: cases that failed, or that there was no time for."""

    def warm_up(self) -> None:
        """Ask each server for all of its adapters once. Raises ServerFailed."""
        for peer in self._peers:
            over_http(peer.url, self._asks(peer, Case("", 8, 8, 32, 8), "warm-up"))

    def peers(self, case: Case) -> list[Peer]:
        """Those that are measured with a case, in the order of its next round."""
        able = [peer for peer in self._peers if case.tokens <= self._most.get(peer.name, case.tokens)]
        return able[:: -1 if self._rounds[case] % 2 else 1]

    def round(self) -> None:
        """Measure every case on every server once. Raises ServerFailed."""
        for case in self.cases:
            for peer in self.peers(case):
                self.measure(case, peer)
            self.next_round(case)

    def next_round(self, case: Case) -> None:
        """The case has been measured on every server: its next prompts are others, and the order turns."""
        self._rounds[case] += 1

    def measure(self, case: Case, peer: Peer, limit: float = TIMEOUT) -> Run:
        """Measure one case on one server, which has `limit` seconds. Raises ServerFailed."""
        # The same prompts for all servers, and never again, so that no cache has anything of them.
        asks = self._asks(peer, case, f"{self._rounds[case]} {case.name}")
        with self._idling(peer):
            measured = over_http(peer.url, asks, limit)
        configuration = Configuration(
            date=datetime.now().strftime("%Y%m%d-%H%M%S"),
            label=peer.name,
            model_id=peer.base,
            num_prompts=case.streams,
            max_concurrency=case.streams,
            command=" ".join(peer.command),
            url=peer.url,
            server=peer.versions,
            machine=self._machine,
            dataset="random",
        )
        run = reckon(configuration, measured, Report())
        self._found[case, peer.name].append(run)
        return run

    def seconds(self, case: Case, peer: Peer) -> float | None:
        """What a case takes a server: as it did, or by its tokens as the largest smaller one did; None if none did."""
        if own := self._found.get((case, peer.name)):
            return median(run.duration for run in own)
        smaller = [
            (other.work, runs)
            for (other, name), runs in self._found.items()
            if name == peer.name and runs and other.work <= case.work
        ]
        if not smaller:
            return None
        work, runs = max(smaller, key=lambda each: each[0])
        return median(run.duration for run in runs) * case.work / work

    def starve(self, seconds: float, prompt: int, answer: int) -> None:
        """Measure how long an adapter's first token takes while another adapter is under load for so long.

        Raises ServerFailed.
        """
        number = max(map(len, self._waited.values()), default=0)
        for peer in self._peers[:: -1 if number % 2 else 1]:
            ids = prompts(f"{number} starvation", 1000, prompt, len(SPECIAL), int(SHAPE["vocab_size"]))
            asks = (
                [_ask(peer, 1, each, answer) for each in ids[:2]],
                [_ask(peer, 0, each, answer) for each in ids[2:]],
            )
            with self._idling(peer):
                self._waited[peer.name].append(starve(peer.url, *asks, seconds))

    def markdown(self) -> str:
        """Medians over the rounds; of ratios, their range too."""
        rows: list[tuple[str, ...]] = []
        for case in self.cases:
            ours = self._found.get((case, self._peers[0].name), [])
            rows += [
                (case.name, peer.name, str(len(runs)), *_cells(runs, ours if peer is not self._peers[0] else []))
                for peer in self._peers
                if (runs := self._found.get((case, peer.name)))
            ]
        head = (
            "case",
            "server",
            "rounds",
            "tokens/s",
            "ours / theirs (range)",
            "TTFT, ms",
            "TTFT p99",
            "TPOT, ms",
            "ITL p99",
        )
        parts = [markdown(head, rows, left=2)]
        if self._waited:
            parts.append(markdown(WAITED, [_waited(name, found) for name, found in self._waited.items()]))
        parts.append(
            "Medians over the rounds. All servers run, one works at a time; those without work took at most "
            f"{max(self._idle, default=0.0):.3f} of a core."
        )
        for tokens in sorted(set(self._most.values())):
            names = " and ".join(name for name, most in self._most.items() if most == tokens)
            parts.append(f"Measured with at most {tokens} prompt tokens at once: {names}.")
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in dict.fromkeys(self.notes)))
        return "\n\n".join(parts)

    def provenance(self) -> str:
        """Machine, date, and each server's versions and command."""
        told = [f"{name} {value}" if name in ("Python", "cores") else value for name, value in self._machine.items()]
        servers = "\n".join(f"- {peer.describe()}" for peer in self._peers)
        return f"{', '.join(told)}; {datetime.now():%Y-%m-%d}\n\n{servers}"

    def save(self, folder: Path) -> None:
        """Write a file of runs for each case, for `bench compare`."""
        for case in self.cases:
            path = folder / f"{case.name.replace(', ', '-').replace(' ', '-')}.json"
            path.unlink(missing_ok=True)
            for run in (run for peer in self._peers for run in self._found.get((case, peer.name), [])):
                write(run, path, append=True)

    def _asks(self, peer: Peer, case: Case, key: str) -> list[Ask]:
        ids = prompts(key, case.streams, case.prompt, len(SPECIAL), int(SHAPE["vocab_size"]))
        adapters = [index % case.adapters if case.adapters else None for index in range(case.streams)]
        return [_ask(peer, adapter, each, case.answer) for adapter, each in zip(adapters, ids, strict=True)]

    @contextmanager
    def _idling(self, busy: Peer) -> Iterator[None]:
        """Note the cores that the servers without work take meanwhile."""
        others = [peer for peer in self._peers if peer is not busy]
        start, before = time.perf_counter(), [peer.cpu_seconds() for peer in others]
        yield
        seconds = time.perf_counter() - start
        self._idle += [(peer.cpu_seconds() - was) / seconds for peer, was in zip(others, before, strict=True)]


MEASURED = (
    *("case", "server", "rounds", "tokens/s", "ours / theirs (range)"),
    *("TTFT, ms", "TTFT p99", "TPOT, ms", "ITL p99"),
)
WAITED = ("first token of another adapter", "unloaded, ms", "under load, ms", "ratio (range)")


def _ask(peer: Peer, adapter: int | None, prompt: list[int], answer: int) -> Ask:
    return Ask(peer.model(adapter), None, prompt, answer, peer.fields(adapter))


def _cells(runs: Sequence[Run], ours: Sequence[Run]) -> tuple[str, ...]:
    totals = [run.totals for run in runs]
    ratio = ""
    if ours:
        pairs = zip(ours, totals, strict=False)  # an interrupted round may lack one
        ratio = spread([mine.totals.output_throughput / other.output_throughput for mine, other in pairs])
    first = [each.latencies["ttft"] for each in totals]
    between = [each.latencies for each in totals]
    return (
        f"{median(each.output_throughput for each in totals):.1f}",
        ratio,
        f"{median(each.median for each in first):.0f}",
        f"{median(each.percentiles['99'] for each in first):.0f}",
        f"{median(each['tpot'].median for each in between):.1f}",
        f"{median(each['itl'].percentiles['99'] for each in between):.1f}",
    )


def _waited(name: str, found: Sequence[Starvation]) -> tuple[str, ...]:
    unloaded = median(each.unloaded for each in found) * 1000
    loaded = median(each.loaded for each in found) * 1000
    return name, f"{unloaded:.0f}", f"{loaded:.0f}", spread([each.loaded / each.unloaded for each in found])


def spread(values: Sequence[float]) -> str:
    """Median, and from the least to the most."""
    return f"**{median(values):.2f}** ({min(values):.2f} - {max(values):.2f})"

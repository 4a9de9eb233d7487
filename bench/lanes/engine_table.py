"""The tables of `bench engine`: each case, what adapters cost, what HTTP costs. Markdown that reads well as it is."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

from loraplex.bench.results.result import Run
from loraplex.bench.table import markdown

LaneName = Literal["batched", "generator", "routed"]
FEWEST_ROUNDS = 3
"""Of which a median ratio stands out in bold: with fewer, one of them that was disturbed is the result."""
Key = tuple[str, str, int, int]
"""Lane, engine or HTTP, adapters, streams."""


def tables(runs: Sequence[Run]) -> str:
    """Medians over the rounds; of ratios, the medians of the rounds' ratios and their range."""
    rounds = rounds_by_case(runs)
    ratios = [part for part in (_adapters(rounds), _http(rounds)) if part]
    count = min(len(some) for some in rounds.values())
    few = (
        f"Ratios of {count} {'round' if count == 1 else 'rounds'} may be noise: take --rounds {FEWEST_ROUNDS} or more."
    )
    return "\n\n".join([_cases(rounds), *ratios, *[few] * bool(ratios and count < FEWEST_ROUNDS)])


def rounds_by_case(runs: Sequence[Run]) -> dict[Key, list[Run]]:
    """What was measured of each case, round by round."""
    rounds: dict[Key, list[Run]] = {}
    for run in runs:
        rounds.setdefault(_key(run), []).append(run)
    return rounds


def share(some: Sequence[Run], whole: Sequence[Run]) -> list[float]:
    """Round by round, output tokens/s of the one as a share of the other's."""
    pairs = zip(some, whole, strict=True)
    return [one.totals.output_throughput / other.totals.output_throughput for one, other in pairs]


def pace(some: Sequence[Run], whole: Sequence[Run]) -> list[float]:
    """The same of the median TPOT, turned so that under 1 is slower: speed once a prompt is computed."""
    return [_tpot(other) / _tpot(one) for one, other in zip(some, whole, strict=True) if _tpot(one)]


def _key(run: Run) -> Key:
    told = run.metadata
    return told["lane"], told["over"], int(told["spread"]), run.configuration.max_concurrency or 0


def _cases(rounds: dict[Key, list[Run]]) -> str:
    rows = []
    for (lane, over, adapters, streams), runs in rounds.items():
        latencies = [run.totals.latencies for run in runs]
        rows.append(
            (
                lane,
                over,
                str(streams),
                str(adapters) if adapters else "base",
                f"{median(run.totals.output_throughput for run in runs):.1f}",
                f"{median(each['ttft'].median for each in latencies):.1f}",
                f"{median(each['ttft'].percentiles['99'] for each in latencies):.1f}",
                f"{median(each['tpot'].median for each in latencies):.2f}",
                f"{median(each['itl'].percentiles['99'] for each in latencies):.2f}",
            )
        )
    head = ("lane", "over", "streams", "adapters", "tokens/s", "TTFT, ms", "TTFT p99", "TPOT, ms", "ITL p99")
    return markdown(head, rows, left=2)


def _adapters(rounds: dict[Key, list[Run]]) -> str:
    rows = []
    for (lane, over, adapters, streams), runs in rounds.items():
        if adapters:
            base = rounds[lane, over, 0, streams]
            cells = (_spread(share(runs, base)), _spread(pace(runs, base)))
            rows.append((lane, over, str(streams), str(adapters), *cells))
    head = ("lane", "over", "streams", "adapters", "tokens/s of the base's (range)", "while decoding (range)")
    return markdown(head, rows, left=2) if rows else ""


def _http(rounds: dict[Key, list[Run]]) -> str:
    rows = []
    for (lane, over, adapters, streams), runs in rounds.items():
        if over == "HTTP":
            without = rounds[lane, "engine", adapters, streams]
            # Times of CPU and wall have no ratio.
            waited = "" if runs[0].metadata.get("clock") == "process_time" else _spread(pace(runs, without))
            spread = str(adapters) if adapters else "base"
            rows.append((lane, str(streams), spread, _spread(share(runs, without)), waited))
    head = ("lane", "streams", "adapters", "tokens/s over HTTP of the engine's (range)", "while decoding (range)")
    return markdown(head, rows, left=1) if rows else ""


def _tpot(run: Run) -> float:
    return run.totals.latencies["tpot"].median


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = f"{median(values):.2f}"
    return f"{middle if len(values) < FEWEST_ROUNDS else f'**{middle}**'} ({min(values):.2f} - {max(values):.2f})"

"""A run as text: the lines that `vllm bench serve` prints, and what we measure besides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from loraplex.bench.results.remarks import notes, warnings
from loraplex.bench.results.result import METRICS, QUEUE_METRICS, Distribution, Metric, Run, Summary

WIDTH = 50
MOST_TURNS = 10
"""Turns of a conversation that have a line of their own."""
NAMES = {"client_queue_time": "Client Queue Time", "e2el_including_client_queue": "E2EL incl. Client Queue"}


def text(run: Run) -> str:
    """Everything; ends with a line for each warning and each note."""
    measured = [*_totals(run), *_probes(run), *_errors(run), *_conversations(run), *_adapters(run)]
    parts = [*measured, *_churn(run), *_cold(run), *_server(run), *_client(run), "=" * WIDTH]
    told = [*(f"warning: {each}" for each in warnings(run)), *(f"note: {each}" for each in notes(run))]
    return "\n".join([*parts, *told])


def _line(name: str, value: float | int | str) -> str:
    return f"{name:<40} {f'{value:.2f}' if isinstance(value, float) else value:<10}".rstrip()


def _totals(run: Run) -> list[str]:
    asked, totals = run.configuration, run.totals
    lines = [
        f"{' Serving Benchmark Result ':=^{WIDTH}}",
        _line("Successful requests:", totals.completed),
        _line("Failed requests:", totals.failed),
    ]
    if asked.max_concurrency is not None:
        lines.append(_line("Maximum request concurrency:", asked.max_concurrency))
    if math.isfinite(asked.request_rate):
        lines.append(_line("Request rate configured (RPS):", float(asked.request_rate)))
    if asked.max_seconds is not None:
        lines.append(_line("Time to send in (s):", float(asked.max_seconds)))
        lines.append(_line("Requests not sent:", run.unsent))
    lines += [
        _line("Benchmark duration (s):", run.duration),
        _line("Total input tokens:", totals.total_input_tokens),
        *_cached(totals),
        _line("Total generated tokens:", totals.total_output_tokens),
        _line("Request throughput (req/s):", totals.request_throughput),
    ]
    if totals.request_goodput is not None:
        lines.append(_line("Request goodput (req/s):", totals.request_goodput))
    lines += [
        _line("Output token throughput (tok/s):", totals.output_throughput),
        *_steady(run),
        _line("Peak output token throughput (tok/s):", totals.max_output_tokens_per_s),
        _line("Peak concurrent requests:", float(totals.max_concurrent_requests)),
        _line("Total token throughput (tok/s):", totals.total_token_throughput),
    ]
    for metric, found in totals.latencies.items():
        lines += _metric((METRICS | QUEUE_METRICS)[metric], NAMES.get(metric, metric.upper()), found)
    return lines


def _cached(totals: Summary) -> list[str]:
    share = cached_share(totals)
    told = "" if share is None else f"{totals.total_cached_tokens} ({share:.0%})"
    return [_line("Of them from the prefix cache:", told)] if told else []


def cached_share(found: Summary) -> float | None:
    """The part of the input tokens that the server had in its prefix cache; None where it does not say."""
    if found.total_cached_tokens is None or not found.total_input_tokens:
        return None
    return found.total_cached_tokens / found.total_input_tokens


def _steady(run: Run) -> list[str]:
    found = run.steady_state
    if found is None:
        return []
    window = f"from {found.begin_s:.2f} to {found.begin_s + found.duration_s:.2f} s"
    return [_line("Steady output token throughput (tok/s):", f"{found.output_throughput:.2f} {window}")]


def _metric(header: str, name: str, found: Distribution) -> list[str]:
    return [
        f"{header:-^{WIDTH}}",
        _line(f"Mean {name} (ms):", found.mean),
        _line(f"Median {name} (ms):", found.median),
        *(_line(f"P{percentile} {name} (ms):", value) for percentile, value in found.percentiles.items()),
    ]


def _errors(run: Run) -> list[str]:
    errors = run.totals.errors_by_kind
    if not errors:
        return []
    lines = [f"{'Errors':-^{WIDTH}}"]
    for kind, count in sorted(errors.items(), key=lambda each: -each[1]):
        example = next((each.error for each in run.requests if each.error_kind == kind), "")
        lines.append(_line(f"{kind}:", count))
        if example:
            lines.append(f"  {example.splitlines()[0][:200]}")
    return lines


def _conversations(run: Run) -> list[str]:
    found = run.conversations
    if found is None:
        return []
    lines = [
        f"{'Conversations':-^{WIDTH}}",
        _line("Completed:", found.conversations_completed),
        _line("Failed:", found.conversations_failed),
        _line("Turns not sent after a failure:", found.turns_given_up),
        _line("Mean turns answered:", found.avg_turns_completed),
        _line("Mean duration (ms):", found.avg_conversation_duration_ms),
    ]
    named = {f"turn {number}": each for number, each in enumerate(run.turns[:MOST_TURNS], 1)}
    if run.later_turns is not None and len(run.turns) > 2:
        named |= {f"turns 2 to {len(run.turns)}": run.later_turns}
    return [*lines, f"{'By turn (latencies: mean)':-^{WIDTH}}", *columns(_table(run, named, turns=True))]


def _adapters(run: Run) -> list[str]:
    if len(run.adapters) < 2:
        return []
    lines = [f"{'By adapter (latencies: mean)':-^{WIDTH}}", *columns(_table(run, run.adapters))]
    fair = run.fairness
    if fair.jain_stream_rate is not None:
        lines.append(f"{'Fairness between adapters (1 is even)':-^{WIDTH}}")
        lines.append(_line("Jain index of tokens/s per request:", f"{fair.jain_stream_rate:.4f}"))
    if fair.jain_mean_ttft is not None:
        lines.append(_line("Jain index of mean TTFT:", f"{fair.jain_mean_ttft:.4f}"))
    if fair.ttft_spread is not None:
        lines.append(_line("Largest mean TTFT / smallest:", fair.ttft_spread))
    return lines


def _table(run: Run, named: Mapping[str, Summary], *, turns: bool = False) -> list[list[str]]:
    """A row for each; of turns with the mean length of their prompts, and how much of it was cached."""
    shown = [metric for metric in METRICS if metric in run.totals.latencies]
    tail = "99" in run.totals.latencies["ttft"].percentiles if "ttft" in shown else False
    goodput = run.totals.request_goodput is not None
    lengths = ["input", "cached"] if turns else ["tok/s"]
    titles = [*(f"{name.upper()} ms" for name in shown), *["TTFT p99"] * tail, *["in time"] * goodput]
    rows = [["", "done", "failed", *lengths, *titles]]
    for name, found in named.items():
        if turns:
            share = cached_share(found)
            length = f"{found.total_input_tokens / found.completed:.0f}" if found.completed else ""
            lengths = [length, "" if share is None else f"{share:.0%}"]
        else:
            lengths = [f"{found.output_throughput:.1f}"]
        counts = [str(found.completed), str(found.failed)]
        rows.append([name, *counts, *lengths, *_latencies(found, shown, run.duration, tail=tail)])
    return rows


def _latencies(found: Summary, shown: Sequence[Metric], duration: float, *, tail: bool) -> list[str]:
    times = [found.latencies[metric].mean for metric in shown]
    if tail:
        times.append(found.latencies["ttft"].percentiles["99"])
    row = [f"{time:.2f}" if found.completed else "" for time in times]
    if found.request_goodput is not None:
        share = in_time(found, duration)
        row.append("" if share is None else f"{share:.0%}")
    return row


def in_time(found: Summary, duration: float) -> float | None:
    """The share of the requests of a run of so many seconds that met all objectives; None if there is none to give."""
    asked = found.completed + found.failed
    return None if found.request_goodput is None or not asked else found.request_goodput * duration / asked


def _probes(run: Run) -> list[str]:
    found = run.probes
    if found is None:
        return []
    lines = [
        f"{'Probe Requests':-^{WIDTH}}",
        _line("Probe requests completed:", found.completed),
        _line("Probe requests failed:", found.failed),
    ]
    if found.completed:
        lines += [
            _line("Median probe E2EL (ms):", found.median_e2el_ms),
            _line("P99 probe E2EL (ms):", found.p99_e2el_ms),
            _line("Max probe E2EL (ms):", found.max_e2el_ms),
        ]
    return lines


def _churn(run: Run) -> list[str]:
    if not run.churn:
        return []
    rows = [["", "loads", "failed", "median ms", "longest ms"]]
    for name in dict.fromkeys(each.adapter for each in run.churn):
        found = [each for each in run.churn if each.adapter == name]
        times = [each.seconds * 1000 for each in found if not each.error]
        cells = [f"{median(times):.2f}", f"{max(times):.2f}"] if times else ["", ""]
        rows.append([name, str(len(found)), str(len(found) - len(times)), *cells])
    return [f"{'Adapters loaded during the run':-^{WIDTH}}", *columns(rows)]


def _cold(run: Run) -> list[str]:
    if not run.cold:
        return []
    rows = [["", "load ms", "first TTFT ms", "resident TTFT ms", "switch ms"]]
    for name in dict.fromkeys(each.adapter for each in run.cold):
        found = [each for each in run.cold if each.adapter == name]
        values = (
            [each.load_seconds * 1000 for each in found],
            [each.cold_ttft_ms for each in found],
            [each.resident_ttft_ms for each in found],
            [each.switch_ms for each in found],
        )
        rows.append([name, *(f"{median(each):.2f}" for each in values)])
    return [f"{'Cold adapters (medians)':-^{WIDTH}}", *columns(rows)]


def _server(run: Run) -> list[str]:
    figures = {} if run.server_metrics is None else run.server_metrics.figures()
    return [f"{'Server':-^{WIDTH}}", *(_line(*each) for each in figures.items())] if figures else []


def _client(run: Run) -> list[str]:
    return [
        f"{'Client':-^{WIDTH}}",
        _line("Share of one core:", f"{run.client.core_share:.0%}"),
        _line("Chunks read per second:", run.client.chunks_per_second),
    ]


def columns(rows: list[list[str]]) -> list[str]:
    """Rows as lines with aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]

"""A run as text: the lines that `vllm bench serve` prints, and what we measure besides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from loraplex.bench.results.result import METRICS, QUEUE_METRICS, Distribution, Metric, Run, Summary

WIDTH = 50
BUSY = 0.8
"""Share of a core above which the client may be what is measured."""
SEVERAL = 2.0
"""Tokens a chunk from which ITL is too far from a time between tokens to be compared as one."""
UNLIKE = 1.5
"""Longest mean answer of an adapter by the shortest from which their tokens/s a request differ for that reason."""
NAMES = {"client_queue_time": "Client Queue Time", "e2el_including_client_queue": "E2EL incl. Client Queue"}


def text(run: Run) -> str:
    """Everything; ends with a line for each warning and each note."""
    measured = [*_totals(run), *_probes(run), *_errors(run), *_adapters(run), *_churn(run), *_cold(run), *_client(run)]
    parts = [*measured, "=" * WIDTH]
    told = [*(f"warning: {each}" for each in warnings(run)), *(f"note: {each}" for each in notes(run))]
    return "\n".join([*parts, *told])


def warnings(run: Run) -> list[str]:
    """What makes the figures doubtful."""
    found = []
    share, tokens = run.client.core_share, run.tokens
    done, failed = run.totals.completed, run.totals.failed
    if run.interrupted:
        ended = done + failed
        found.append(f"interrupted: only the {ended} of {ended + run.unfinished} requests that had ended by then count")
    if done and failed:
        found.append(f"{failed} of {done + failed} requests failed: latencies are of the others")
    if share > BUSY:
        found.append(
            f"the client took {share:.0%} of a core: the latencies may be its own; lower the load, or run two clients"
        )
    if broken := [each for each in run.churn if each.error]:
        found.append(f"{len(broken)} of {len(run.churn)} loads during the run failed: {broken[0].error}")
    if run.cold_error:
        found.append(f"adapters of --cold were not all measured: {run.cold_error}")
    if tokens.without_usage:
        found.append(f"{tokens.without_usage} of {done} answers came without usage: their tokens were counted here")
    if tokens.more_chunks:
        found.append(
            f"{tokens.more_chunks} of {done} answers had more chunks with text than usage has tokens: "
            "one of the two is wrong"
        )
    if tokens.fewer_chunks and tokens.usage_tokens >= SEVERAL * tokens.chunks:
        found.append(
            f"the server sends several tokens in one chunk ({tokens.usage_tokens} tokens in {tokens.chunks} chunks): "
            "ITL is the time between chunks and the peak throughput counts them, so compare TPOT, which goes by tokens"
        )
    return found


def notes(run: Run) -> list[str]:
    """What a reader of the figures should know, though nothing is wrong with them."""
    found = []
    tokens = run.tokens
    if tokens.fewer_chunks and tokens.usage_tokens < SEVERAL * tokens.chunks:
        found.append(
            f"{tokens.fewer_chunks} of {run.totals.completed} answers came in fewer chunks with text than they have "
            f"tokens ({tokens.chunks} chunks, {tokens.usage_tokens} tokens). That is no error: a token may have no "
            "text of its own, such as an end token that ignore_eos passes over, and a server may send two at once. "
            "ITL is the time between chunks and the peak throughput counts them; TPOT, E2EL and tokens/s go by tokens"
        )
    lengths = {
        name: each.total_output_tokens / each.completed
        for name, each in run.adapters.items()
        if each.total_output_tokens
    }
    if len(lengths) > 1 and max(lengths.values()) >= UNLIKE * min(lengths.values()):
        longest, shortest = max(lengths, key=lambda name: lengths[name]), min(lengths, key=lambda name: lengths[name])
        found.append(
            f"answers of {longest} have {lengths[longest]:.1f} tokens on average, those of {shortest} "
            f"{lengths[shortest]:.1f}: the first token is a larger part of a short answer, so the index of tokens/s "
            "per request is lower without anyone being served worse; --ignore-eos makes them as long as asked for"
        )
    if run.configuration.max_seconds is not None and not run.unsent and not run.unfinished:
        found.append(
            f"all requests were sent within --max-seconds {run.configuration.max_seconds:g}, which cut nothing short: "
            "raise --num-prompts for a run as long as that"
        )
    return found


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


def _adapters(run: Run) -> list[str]:
    if len(run.adapters) < 2:
        return []
    shown = [metric for metric in METRICS if metric in run.totals.latencies]
    tail = "99" in run.totals.latencies["ttft"].percentiles if "ttft" in shown else False
    goodput = run.totals.request_goodput is not None
    titles = [*(f"{name.upper()} ms" for name in shown), *["TTFT p99"] * tail, *["in time"] * goodput]
    rows = [["", "done", "failed", "tok/s", *titles]]
    rows += [[name, *_row(found, shown, run.duration, tail=tail)] for name, found in run.adapters.items()]
    fair = run.fairness
    lines = [f"{'By adapter (latencies: mean)':-^{WIDTH}}", *columns(rows)]
    if fair.jain_stream_rate is not None:
        lines.append(f"{'Fairness between adapters (1 is even)':-^{WIDTH}}")
        lines.append(_line("Jain index of tokens/s per request:", f"{fair.jain_stream_rate:.4f}"))
    if fair.jain_mean_ttft is not None:
        lines.append(_line("Jain index of mean TTFT:", f"{fair.jain_mean_ttft:.4f}"))
    if fair.ttft_spread is not None:
        lines.append(_line("Largest mean TTFT / smallest:", fair.ttft_spread))
    return lines


def _row(found: Summary, shown: Sequence[Metric], duration: float, *, tail: bool) -> list[str]:
    """The figures of an adapter."""
    times = [found.latencies[metric].mean for metric in shown]
    if tail:
        times.append(found.latencies["ttft"].percentiles["99"])
    row = [str(found.completed), str(found.failed), f"{found.output_throughput:.1f}"]
    row += [f"{time:.2f}" if found.completed else "" for time in times]
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

"""Runs as JSON: the keys of `vllm bench serve --save-result`, and ours beside them.

The keys and their order are those of vllm/benchmarks/serve.py (`main_async` and `benchmark`), so scripts that read its
files read ours. Ours come after them: `adapters`, `fairness`, `errors_by_kind`, `token_check`, `client`, `timeline`,
`steady_state`, `cold`, `cold_error`, `churn`, `interrupted`, `unfinished`, `unsent`, `configuration`, and with
--save-detailed the lists of `DETAILED_OURS`, parallel to vLLM's `ttfts`.
"""

from __future__ import annotations

import math
import re
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loraplex.bench.errors import ResultInvalid
from loraplex.bench.results.result import (
    METRICS,
    QUEUE_METRICS,
    ChurnLoad,
    ClientCost,
    ColdLoad,
    Configuration,
    Distribution,
    Fairness,
    Probes,
    RateChange,
    Request,
    Run,
    SteadyState,
    Summary,
    Timeline,
    TokenCheck,
)

DETAILED = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors")
"""vLLM's lists with an entry for each request that are written with --save-detailed alone."""
DETAILED_OURS = ("models", "error_kinds", "finish_reasons", "usage_tokens")
RAMP_UP = ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")
SETUP = ("date", "backend", "label", "model_id", "tokenizer_id", "num_prompts")
TRAFFIC = ("request_rate", "burstiness", "max_concurrency")
OURS = ("command", "url", "server", "machine", "dataset", "seed", "adapters", "adapter_mix", "goodput", "max_seconds")
"""Fields of the configuration that vLLM's file has no place for."""
PROBE = "probe_"
"""vLLM's, before the fields of `Probes`."""
STATISTIC = re.compile(rf"(mean|median|std|p(\d+(?:\.\d+)?))_({'|'.join((*METRICS, *QUEUE_METRICS))})_ms")

Kind = TypeVar("Kind")


def document(run: Run, *, detailed: bool = True) -> dict[str, Any]:
    """The run as one JSON object, without the lists of `DETAILED` unless asked for."""
    asked = run.configuration
    found: dict[str, Any] = {
        "date": asked.date,
        "endpoint_type": asked.backend,
        "backend": asked.backend,
        "label": asked.label,
        "model_id": asked.model_id,
        "tokenizer_id": asked.tokenizer_id,
        "num_prompts": asked.num_prompts,
        **run.metadata,
        "request_rate": _finite(asked.request_rate),
        "burstiness": _finite(asked.burstiness),
        "max_concurrency": asked.max_concurrency,
    }
    if asked.ramp_up_strategy is not None:
        found |= {name: getattr(asked, name) for name in RAMP_UP}
    throughput, peaks, latencies = _summary(run.totals)
    found |= {"duration": run.duration, **throughput, **_lists(run.requests), **peaks, "rtfx": 0.0}
    if run.probes is not None:
        told = msgspec.to_builtins(run.probes)
        found |= {f"{PROBE}{name}": told[name] for name in told if run.probes.completed or not name.endswith("_ms")}
    if run.rate_changes:
        found["rps_change_events"] = msgspec.to_builtins(run.rate_changes)
    found |= latencies
    found |= {
        "adapters": {
            name: {key: value for part in _summary(each) for key, value in part.items()}
            | {"errors_by_kind": each.errors_by_kind}
            for name, each in run.adapters.items()
        },
        "fairness": msgspec.to_builtins(run.fairness),
        "errors_by_kind": run.totals.errors_by_kind,
        "token_check": msgspec.to_builtins(run.tokens),
        "client": msgspec.to_builtins(run.client)
        | {"core_share": run.client.core_share, "chunks_per_second": run.client.chunks_per_second},
        "timeline": msgspec.to_builtins(run.timeline),
        "steady_state": msgspec.to_builtins(run.steady_state),
        "cold": [msgspec.to_builtins(each) | {"switch_ms": each.switch_ms} for each in run.cold],
        "cold_error": run.cold_error,
        "churn": msgspec.to_builtins(run.churn),
        "interrupted": run.interrupted,
        "unfinished": run.unfinished,
        "unsent": run.unsent,
        "configuration": {name: getattr(asked, name) for name in OURS},
        "models": [each.model for each in run.requests],
        "error_kinds": [each.error_kind for each in run.requests],
        "finish_reasons": [each.finish_reason for each in run.requests],
        "usage_tokens": [each.usage_tokens for each in run.requests],
    }
    if not detailed:
        for key in (*DETAILED, *DETAILED_OURS):
            del found[key]
    return found


def write(run: Run, path: Path, *, detailed: bool = False, append: bool = False) -> None:
    """Save a run as one line of JSON; with `append` after those that the file has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = msgspec.json.encode(document(run, detailed=detailed))
    with path.open("ab" if append else "wb") as file:
        if append and file.tell():
            file.write(b"\n")
        file.write(line)


def read(path: Path) -> list[Run]:
    """The runs of a file that `write` or vLLM made. Raises ResultInvalid, naming the file, and the line of several."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultInvalid(f"{path}: {error.strerror}") from error
    try:
        found = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        lines = [(number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
        if len(lines) < 2:
            raise ResultInvalid(f"{path} is no result of `bench serve`: {error}") from error
    else:
        if isinstance(found, dict) and "points" in found:
            raise ResultInvalid(f"{path} is the summary of a sweep: give the files of its steps, which are beside it")
        try:
            return [_run(msgspec.convert(found, dict[str, Any]))]
        except (msgspec.ValidationError, KeyError, TypeError, ValueError) as error:
            raise ResultInvalid(f"{path} is no result of `bench serve`: {_reason(error)}") from error
    runs = []
    for number, line in lines:
        try:
            runs.append(_run(msgspec.json.decode(line, type=dict[str, Any])))
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise ResultInvalid(f"{path}, line {number}, is no result of `bench serve`: {_reason(error)}") from error
    return runs


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else "inf"


def _summary(summary: Summary) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Counts and rates, peaks, and statistics, which vLLM's file has in three places."""
    throughput = {
        name: getattr(summary, name)
        for name in (
            "completed",
            "failed",
            "total_input_tokens",
            "total_output_tokens",
            "request_throughput",
            "request_goodput",
            "output_throughput",
            "total_token_throughput",
        )
    }
    peaks = {name: getattr(summary, name) for name in ("max_output_tokens_per_s", "max_concurrent_requests")}
    latencies: dict[str, float] = {}
    for metric, found in summary.latencies.items():
        latencies |= {f"{name}_{metric}_ms": getattr(found, name) for name in ("mean", "median", "std")}
        latencies |= {f"p{percentile}_{metric}_ms": value for percentile, value in found.percentiles.items()}
    return throughput, peaks, latencies


def _lists(requests: list[Request]) -> dict[str, Any]:
    return {
        "input_lens": [each.input_tokens for each in requests],
        "output_lens": [each.output_tokens for each in requests],
        "ttfts": [each.ttft for each in requests],
        "itls": [each.itls for each in requests],
        "latencies": [each.latency for each in requests],
        "start_times": [each.start for each in requests],
        "queue_times": [each.queue for each in requests],
        "generated_texts": [each.text for each in requests],
        "errors": [each.error for each in requests],
    }


def _run(found: dict[str, Any]) -> Run:
    ours = found.get("configuration", {})
    asked = {name: found[name] for name in (*SETUP, *TRAFFIC, *RAMP_UP) if name in found}
    asked |= {name: math.inf for name in ("request_rate", "burstiness") if asked.get(name) == "inf"}
    known = {*SETUP, *TRAFFIC, *RAMP_UP, "endpoint_type", "cold_error"}
    return Run(
        configuration=_convert(asked | {name: ours[name] for name in OURS if name in ours}, Configuration),
        metadata={key: value for key, value in found.items() if isinstance(value, str) and key not in known},
        duration=found["duration"],
        totals=_read_summary(found),
        adapters={name: _read_summary(each) for name, each in found.get("adapters", {}).items()},
        fairness=_convert(found.get("fairness", {}), Fairness),
        tokens=_convert(found.get("token_check", {}), TokenCheck),
        client=_convert(found.get("client", {}), ClientCost),
        timeline=_convert(found.get("timeline", {}), Timeline),
        steady_state=_convert(steady, SteadyState) if (steady := found.get("steady_state")) else None,
        cold=_convert(found.get("cold", []), list[ColdLoad]),
        cold_error=found.get("cold_error", ""),
        churn=_convert(found.get("churn", []), list[ChurnLoad]),
        rate_changes=_convert(found.get("rps_change_events", []), list[RateChange]),
        requests=_read_requests(found),
        interrupted=found.get("interrupted", False),
        unfinished=found.get("unfinished", 0),
        unsent=found.get("unsent", 0),
        probes=_read_probes(found),
    )


def _convert(found: Any, kind: type[Kind]) -> Kind:
    return msgspec.convert(found, kind, strict=False)


def _read_summary(found: dict[str, Any]) -> Summary:
    statistics: dict[str, dict[str, Any]] = {}
    for key, value in found.items():
        if match := STATISTIC.fullmatch(key):
            name, percentile, metric = match.groups()
            each = statistics.setdefault(metric, {"percentiles": {}})
            (each["percentiles"] if percentile else each)[percentile or name] = value
    latencies = {
        metric: _convert(statistics[metric], Distribution)
        for metric in (*METRICS, *QUEUE_METRICS)
        if metric in statistics
    }
    plain = {"failed": 0, "request_goodput": None, "max_output_tokens_per_s": 0.0, "max_concurrent_requests": 0} | found
    names = set(Summary.__struct_fields__) - {"latencies"}
    made: Summary = _convert({key: value for key, value in plain.items() if key in names} | {"latencies": {}}, Summary)
    return msgspec.structs.replace(made, latencies=latencies)


def _read_probes(found: dict[str, Any]) -> Probes | None:
    told = {name: found[f"{PROBE}{name}"] for name in Probes.__struct_fields__ if f"{PROBE}{name}" in found}
    return _convert(told, Probes) if "completed" in told else None


def _read_requests(found: dict[str, Any]) -> list[Request]:
    if "ttfts" not in found or "itls" not in found:
        return []
    count = len(found["ttfts"])

    def column(name: str, default: object) -> Any:
        return found[name] if name in found else repeat(default, count)

    rows = zip(
        column("models", found.get("model_id", "")),
        column("start_times", 0.0),
        column("queue_times", 0.0),
        found["ttfts"],
        found["itls"],
        column("latencies", None),
        column("input_lens", 0),
        column("output_lens", 0),
        column("generated_texts", ""),
        column("errors", ""),
        column("error_kinds", None),
        column("finish_reasons", None),
        column("usage_tokens", None),
        strict=True,
    )
    requests = []
    for model, start, queue, ttft, itls, latency, inputs, outputs, text, error, kind, finish, usage in rows:
        requests.append(
            Request(
                model=model,
                start=start,
                queue=queue,
                ttft=ttft,
                itls=itls,
                latency=ttft + math.fsum(itls) if latency is None else latency,
                input_tokens=inputs,
                output_tokens=outputs,
                text=text,
                error=error,
                # vLLM's file tells no kinds.
                error_kind=kind or ("error" if error else None),
                finish_reason=finish,
                usage_tokens=usage,
            )
        )
    return requests

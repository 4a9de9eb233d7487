"""Files of runs as JSON, written and read back; `document` says what stands in them."""

from __future__ import annotations

import math
import re
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loraplex.bench.errors import ResultInvalid
from loraplex.bench.results.configuration import Configuration
from loraplex.bench.results.document import OURS, PROBE, RAMP_UP, document
from loraplex.bench.results.result import (
    METRICS,
    QUEUE_METRICS,
    ChurnLoad,
    ClientCost,
    ColdLoad,
    Conversations,
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
from loraplex.bench.results.server_metrics import ServerMetrics

SETUP = ("date", "backend", "label", "model_id", "tokenizer_id", "num_prompts")
TRAFFIC = ("request_rate", "burstiness", "max_concurrency")
STATISTIC = re.compile(rf"(mean|median|std|p(\d+(?:\.\d+)?))_({'|'.join((*METRICS, *QUEUE_METRICS))})_ms")

Kind = TypeVar("Kind")


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
        conversations=_convert(found, Conversations) if "conversations_completed" in found else None,
        turns=[_read_summary(each) for each in found.get("per_turn_metrics", [])],
        later_turns=_read_summary(later) if (later := found.get("later_turns")) else None,
        cold=_convert(found.get("cold", []), list[ColdLoad]),
        cold_error=found.get("cold_error", ""),
        churn=_convert(found.get("churn", []), list[ChurnLoad]),
        rate_changes=_convert(found.get("rps_change_events", []), list[RateChange]),
        requests=_read_requests(found),
        interrupted=found.get("interrupted", False),
        unfinished=found.get("unfinished", 0),
        unsent=found.get("unsent", 0),
        probes=_read_probes(found),
        server_metrics=_convert(seen, ServerMetrics) if (seen := found.get("server_metrics")) else None,
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
        column("cached_tokens", None),
        column("conversations", None),
        column("turns", 1),
        column("thinking", 0),
        strict=True,
    )
    requests = []
    for model, start, queue, ttft, itls, latency, inputs, outputs, text, error, kind, finish, usage, *ours in rows:
        cached, conversation, turn, thinking = ours
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
                cached_tokens=cached,
                conversation=conversation,
                turn=turn,
                thinking=thinking,
            )
        )
    return requests

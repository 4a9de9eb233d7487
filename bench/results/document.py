"""A run as one JSON object: the keys of `vllm bench serve --save-result`, and ours beside them.

The keys and their order are those of vllm/benchmarks/serve.py (`main_async` and `benchmark`), so scripts that read its
files read ours. Ours come after them: `adapters`, `fairness`, `errors_by_kind`, `token_check`, `client`, `timeline`,
`steady_state`, `cold`, `cold_error`, `churn`, `interrupted`, `unfinished`, `unsent`, `configuration`, and with
--save-detailed the lists of `DETAILED_OURS`, parallel to vLLM's `ttfts`. Those of conversations are those of vLLM's
`vllm-bench --multi-turn` (rust/src/bench in its repository), and `turns_given_up` and `later_turns`.
`server_metrics` is there where it was asked for.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from loraplex.bench.results.result import Request, Run, Summary

DETAILED = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors")
"""vLLM's lists with an entry for each request that are written with --save-detailed alone."""
DETAILED_OURS = (
    "models",
    "error_kinds",
    "finish_reasons",
    "usage_tokens",
    "cached_tokens",
    "conversations",
    "turns",
    "thinking",
)
RAMP_UP = ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")
OURS = (
    *("command", "url", "server", "machine", "dataset", "seed", "adapters", "adapter_mix", "goodput", "max_seconds"),
    *("multi_turn", "multi_turn_concurrency", "multi_turn_delay_ms"),
)
"""Fields of the configuration that vLLM's file has no place for."""
PROBE = "probe_"
"""vLLM's, before the fields of `Probes`."""


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
        "total_cached_tokens": run.totals.total_cached_tokens,
        **_conversations(run),
        "adapters": {name: _part(each) for name, each in run.adapters.items()},
        **({} if run.server_metrics is None else {"server_metrics": msgspec.to_builtins(run.server_metrics)}),
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
        "cached_tokens": [each.cached_tokens for each in run.requests],
        "conversations": [each.conversation for each in run.requests],
        "turns": [each.turn for each in run.requests],
        "thinking": [each.thinking for each in run.requests],
    }
    if not detailed:
        for key in (*DETAILED, *DETAILED_OURS):
            del found[key]
    return found


def _part(summary: Summary) -> dict[str, Any]:
    """What stands of an adapter, or of a turn."""
    found = {key: value for part in _summary(summary) for key, value in part.items()}
    return found | {"total_cached_tokens": summary.total_cached_tokens, "errors_by_kind": summary.errors_by_kind}


def _conversations(run: Run) -> dict[str, Any]:
    """Nothing of a run that had none."""
    if run.conversations is None:
        return {}
    found: dict[str, Any] = msgspec.to_builtins(run.conversations)
    return found | {
        "per_turn_metrics": [
            {"turn_index": index, "num_samples": each.completed + each.failed} | _part(each)
            for index, each in enumerate(run.turns)
        ],
        "later_turns": None if run.later_turns is None else _part(run.later_turns),
    }


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

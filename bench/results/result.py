"""What a run of `loraplex bench serve` measured.

Lengths are in tokens, times in seconds, except in `Distribution`, which is in milliseconds as reports of latency are.
`result_file` writes these structs with the keys of `vllm bench serve --save-result`, and reads such files back.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from loraplex.bench.results.configuration import Configuration
from loraplex.bench.results.server_metrics import ServerMetrics

Metric = Literal["ttft", "tpot", "itl", "e2el", "client_queue_time", "e2el_including_client_queue"]
METRICS: dict[Metric, str] = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
"""TTFT: from sending a request to its first chunk with a token. E2EL: to its last. TPOT: (E2EL - TTFT) / (output
tokens - 1), of requests with two tokens or more. ITL: between one chunk with tokens and the next."""
QUEUE_METRICS: dict[Metric, str] = {
    "client_queue_time": "Client-side Queueing",
    "e2el_including_client_queue": "Queue-inclusive End-to-end Latency",
}
"""vLLM's too, reported where they are asked for."""


class Distribution(Struct, frozen=True):
    """One metric over the requests that succeeded, in milliseconds; zeros where there is no sample, as in vLLM."""

    mean: float
    median: float
    std: float
    """Of the population."""
    percentiles: dict[str, float]
    """By the percentile as in the file's keys: "90", "99", "99.9"."""


class Summary(Struct, frozen=True):
    """What the requests of a run, or of one of its adapters, got. Rates are over the duration of the whole run."""

    completed: int
    failed: int
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    """Successful requests a second, as are the next three."""
    request_goodput: float | None
    """Requests a second within every objective that `--goodput` sets for them; None where it sets none for anybody."""
    output_throughput: float
    total_token_throughput: float
    max_output_tokens_per_s: float
    """Chunks with tokens in the fullest second."""
    max_concurrent_requests: int
    latencies: dict[Metric, Distribution]
    errors_by_kind: dict[str, int] = {}
    """`http_429:queue_full`, `connection`, `timeout`, `stream:engine_failed`, `broken_stream`, `no_token`, ..."""
    total_cached_tokens: int | None = None
    """Input tokens that the server says it took from its prefix cache; None where it says nothing of them."""


class Fairness(Struct, frozen=True):
    """How evenly the adapters were served: Jain's index, 1 when all got the same and 1/n when one of n got everything.

    R. Jain, D. Chiu, W. Hawe, "A Quantitative Measure of Fairness and Discrimination for Resource Allocation in Shared
    Computer Systems", DEC-TR-301, 1984. None where fewer than two adapters had a successful request.
    """

    jain_stream_rate: float | None = None
    """Over the adapters' output tokens per second of request: all its output tokens / the sum of its E2ELs. So an
    adapter that is asked for less often is not for that reason served worse."""
    jain_mean_ttft: float | None = None
    """Over the adapters' mean TTFTs."""
    ttft_spread: float | None = None
    """The largest of the adapters' mean TTFTs over the smallest."""


class TokenCheck(Struct, frozen=True):
    """The server's `usage.completion_tokens` beside the chunks that carried tokens, over the successful requests."""

    usage_tokens: int = 0
    chunks: int = 0
    without_usage: int = 0
    """Requests whose tokens had to be counted otherwise: by the tokenizer, or one a chunk where there is none."""
    fewer_chunks: int = 0
    """Requests with fewer chunks with text than tokens: some had none of their own, or shared a chunk."""
    more_chunks: int = 0
    """Requests with more chunks than tokens: usage, or the stream, is wrong."""


class ClientCost(Struct, frozen=True):
    """What the measuring itself took: near one core, latencies are the client's and not the server's."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    chunks: int = 0

    @property
    def core_share(self) -> float:
        return self.cpu_seconds / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def chunks_per_second(self) -> float:
        return self.chunks / self.wall_seconds if self.wall_seconds else 0.0


class Series(Struct, frozen=True):
    """One adapter over the run, a number for each interval of the timeline."""

    output_tokens: list[int]
    """Chunks with tokens that came."""
    running: list[float]
    """Requests under way, time average."""
    started: list[int]
    failed: list[int]
    mean_ttft_ms: list[float | None]
    """Of the requests whose first token came in the interval; None where none did."""


class Timeline(Struct, frozen=True):
    interval: float = 1.0
    """Width of an interval in seconds; the first begins with the run."""
    adapters: dict[str, Series] = {}


class SteadyState(Struct, frozen=True):
    """The part of a run in which as many requests were under way as should be; `steady_state.py` defines it."""

    begin_s: float
    """From the beginning of the run."""
    duration_s: float
    output_throughput: float
    """Output tokens a second, of successful requests."""
    request_throughput: float
    """Successful requests that ended, a second."""


class ChurnLoad(Struct, frozen=True):
    """An adapter that was loaded anew while the run went on."""

    adapter: str
    start: float
    """From the beginning of the run."""
    seconds: float
    """The management call, from sending it to its answer."""
    error: str = ""


class ColdLoad(Struct, frozen=True):
    """One adapter unloaded and loaded again on the running server, and a first token before and after."""

    adapter: str
    load_seconds: float
    """The management call, from sending it to its answer."""
    cold_ttft_ms: float
    """Of the first request after the load."""
    resident_ttft_ms: float
    """Of requests after that one: the median of several, with prompts of the same kind."""

    @property
    def switch_ms(self) -> float:
        """What being the first to use an adapter costs."""
        return self.cold_ttft_ms - self.resident_ttft_ms


class Probes(Struct, frozen=True):
    """Requests for one token that were sent one after another beside the run, and are no part of its figures."""

    completed: int
    failed: int
    median_e2el_ms: float = 0.0
    """This and the next two of those that succeeded; 0 where none did."""
    p99_e2el_ms: float = 0.0
    max_e2el_ms: float = 0.0


class Conversations(Struct, frozen=True):
    """How they went, by the keys of `vllm-bench --multi-turn`; those that were cut short are in neither count."""

    num_conversations: int
    """Planned."""
    conversations_completed: int
    """Every turn of which was answered."""
    conversations_failed: int
    """That ended with a turn that failed."""
    avg_turns_completed: float
    """Turns that were answered, over the conversations that had begun; 0 where none had."""
    avg_conversation_duration_ms: float
    """From sending the first turn to the end of the last answer, pauses included; of those that completed."""
    turns_given_up: int = 0
    """Turns that were not sent because one before them had failed."""


class Request(Struct, kw_only=True):
    """One request as it went. What did not come to pass is 0, empty or None."""

    model: str
    """The adapter's name, or the base's."""
    start: float = 0.0
    """When it was sent, from the beginning of the run."""
    queue: float = 0.0
    """How long it waited in the client for a place under --max-concurrency."""
    ttft: float = 0.0
    itls: list[float] = field(default_factory=list)
    latency: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    """All that it wrote; see `thinking`."""
    thinking: int = 0
    """Characters of `text` that were reasoning, which comes first and is no part of the conversation."""
    error: str = ""
    error_kind: str | None = None
    """None of a request that succeeded; else a key of `Summary.errors_by_kind`."""
    finish_reason: str | None = None
    """As the server gave it."""
    usage_tokens: int | None = None
    """The server's own count of output tokens; None where it sent none."""
    cached_tokens: int | None = None
    """Input tokens that the server says it took from its prefix cache; None where it says nothing of them."""
    conversation: int | None = None
    """Which conversation it is a turn of, from 0; None of a request by itself."""
    turn: int = 1
    """Of its conversation, from 1."""


class RateChange(Struct, frozen=True):
    """A ramp-up came to another whole number of requests a second."""

    rps: int
    timestamp: str
    """ISO 8601, local time."""


class Run(Struct, kw_only=True):
    """One run: what was asked for, and what came."""

    configuration: Configuration
    metadata: dict[str, str] = {}
    """--metadata, which stands beside vLLM's own keys in the file."""
    duration: float
    totals: Summary
    adapters: dict[str, Summary] = {}
    """By the model name of the requests, the base's among them."""
    fairness: Fairness = Fairness()
    tokens: TokenCheck = TokenCheck()
    client: ClientCost = ClientCost()
    timeline: Timeline = Timeline()
    steady_state: SteadyState | None = None
    """None where there is none of a second or more."""
    conversations: Conversations | None = None
    """None where requests were no turns of one."""
    turns: list[Summary] = []
    """Of conversations, in the order of their turns: all first turns, all second ones."""
    later_turns: Summary | None = None
    """Of all turns after the first; None where there are none."""
    cold: list[ColdLoad] = []
    cold_error: str = ""
    """Why no more adapters than those were loaded after the run, where a load failed."""
    churn: list[ChurnLoad] = []
    rate_changes: list[RateChange] = []
    requests: list[Request] = []
    """In the order in which they were made; empty in a file that was saved without --save-detailed."""
    interrupted: bool = False
    """Ended by SIGINT; what has ended by then is all that counts."""
    unfinished: int = 0
    """Requests that were under way then, or not sent yet."""
    unsent: int = 0
    """Requests whose turn did not come within `max_seconds`."""
    probes: Probes | None = None
    """None where none were asked for."""
    server_metrics: ServerMetrics | None = None
    """None where nobody asked for them."""

    @property
    def failure(self) -> str | None:
        """Why most requests failed, where that is so: the kind of error that most of them met, and the first of it."""
        done, failed, kinds = self.totals.completed, self.totals.failed, self.totals.errors_by_kind
        if failed <= done or not kinds:
            return None
        kind = max(kinds, key=lambda each: kinds[each])
        told = next((each.error for each in self.requests if each.error_kind == kind and each.error), "")
        share = f"{failed} of {done + failed} requests" if done else "every request"
        return f"{share} failed: {kind}" + (f": {told.splitlines()[0]}" if told else "")

"""The flags of `bench serve` and `bench sweep`: vLLM's names and defaults, and a few of ours.

Names, defaults and meanings are those of `vllm bench serve` (vllm/benchmarks/serve.py and datasets/arg_utils.py), so
its command lines run here. What differs: more percentiles and E2EL are reported unless flags say otherwise.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from loraplex.bench.errors import OptionsInvalid
from loraplex.bench.load.flags import AtLeastOne, Flag, NotNegative, OverZero, Several
from loraplex.bench.load.objectives import limits
from loraplex.bench.results.result import METRICS, QUEUE_METRICS, Metric

Dataset = Literal["random", "sharegpt", "custom", "prefix_repetition", "trace", "timed_trace"]


@Parameter(name="*", group="Dataset")
@dataclass(frozen=True, kw_only=True)
class Data:
    """What is asked."""

    dataset_name: Dataset = "random"
    "Where prompts come from; trace is timed_trace."

    dataset_path: Path | None = None
    "File of sharegpt, custom and trace."

    num_prompts: AtLeastOne = 1000
    "Requests to send; a shorter dataset is repeated, but not a trace."

    seed: NotNegative = 0
    "Of prompts, arrivals and the adapter mix."

    tokenizer: str | None = None
    "Folder with tokenizer.json, a bundle, or a name on the Hugging Face hub; --model unless given."

    tokenizer_mode: Literal["auto", "hf"] = "auto"
    "Of vLLM; both are the same here."

    trust_remote_code: Flag = False
    "Of vLLM; tokenizers run no code here."

    skip_tokenizer_init: Flag = False
    "Use no tokenizer: the dataset must need none."

    input_len: AtLeastOne | None = None
    "Sets --random-input-len."

    output_len: AtLeastOne | None = None
    "Sets the output length of any dataset but a trace."

    random_input_len: AtLeastOne = 1024
    "Tokens of a random prompt."

    random_output_len: AtLeastOne = 128
    "Tokens to ask for."

    random_range_ratio: Annotated[float, Parameter(validator=Number(gte=0, lt=1))] = 0.0
    "Lengths are spread evenly over length * (1 - ratio) to length * (1 + ratio)."

    random_prefix_len: NotNegative = 0
    "Tokens before the random ones, the same in all prompts."

    sharegpt_output_len: AtLeastOne | None = None
    "Tokens to ask for; those of the recorded answer unless given."

    custom_output_len: Annotated[int, Parameter(validator=Number(gte=-1))] = 256
    "Tokens to ask for; -1 takes each line's own output_tokens."

    prefix_repetition_prefix_len: AtLeastOne = 256
    "Tokens of a shared prefix."

    prefix_repetition_suffix_len: AtLeastOne = 256
    "Tokens after it."

    prefix_repetition_num_prefixes: AtLeastOne = 10
    "How many prefixes there are."

    prefix_repetition_output_len: AtLeastOne = 128
    "Tokens to ask for."

    trace_unit: Literal["ms", "s"] = "ms"
    "Unit of a trace's timestamps; Mooncake's are in milliseconds."

    trace_speed: OverZero = 1.0
    "Plays a trace so many times as fast."

    no_oversample: Flag = False
    "Do not repeat a dataset that has fewer prompts than --num-prompts."

    disable_shuffle: Flag = False
    "Keep the dataset's order."

    skip_chat_template: Flag = False
    "Of vLLM; prompts are sent as they are here. --backend openai-chat leaves the template to the server."

    request_id_prefix: str = field(default_factory=lambda: f"bench-{uuid.uuid4().hex[:8]}-")
    "Of the header x-request-id, before the request's number."


@Parameter(name="*", group="Traffic")
@dataclass(frozen=True, kw_only=True)
class Traffic:
    """When requests are sent."""

    request_rate: OverZero = math.inf
    "Requests a second; inf sends all at once."

    burstiness: OverZero = 1.0
    "Shape of the gamma distribution of the intervals: 1 is a Poisson process, less comes in bursts, more is steadier."

    max_concurrency: AtLeastOne | None = None
    "Requests under way at the same time; more wait in the client."

    max_seconds: OverZero | None = None
    "Send no other request after so long; those under way end."

    probe_request_rate: Annotated[float, Parameter(validator=Number(gte=0))] = 0.0
    "Probes a second: requests for one token, one after another beside the run, to see how long others wait; 0: none."

    num_warmups: NotNegative = 0
    "Requests before the run, which do not count; they go round the adapters."

    ramp_up_strategy: Literal["linear", "exponential"] | None = None
    "How the rate rises from --ramp-up-start-rps to --ramp-up-end-rps over the run."

    ramp_up_start_rps: AtLeastOne | None = None
    "Requests a second at the start."

    ramp_up_end_rps: AtLeastOne | None = None
    "Requests a second at the end."

    self_timed: bool | None = None
    "Whether the times of a trace are kept, which they are unless told otherwise."

    def check(self, data: Data) -> None:
        """Raises OptionsInvalid."""
        if self.ramp_up_strategy is not None:
            if self.request_rate != math.inf:
                raise OptionsInvalid("--ramp-up-strategy sets the rate: leave out --request-rate")
            if self.ramp_up_start_rps is None or self.ramp_up_end_rps is None:
                raise OptionsInvalid("--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps")
            if self.ramp_up_start_rps > self.ramp_up_end_rps:
                raise OptionsInvalid("--ramp-up-start-rps is above --ramp-up-end-rps: exchange them")
        elif self.ramp_up_start_rps is not None or self.ramp_up_end_rps is not None:
            raise OptionsInvalid("--ramp-up-start-rps and --ramp-up-end-rps need --ramp-up-strategy")
        if self.self_timed is not None and data.dataset_name not in ("trace", "timed_trace"):
            raise OptionsInvalid("--self-timed needs times: give --dataset-name trace")


@Parameter(name="*", group="Adapters")
@dataclass(frozen=True, kw_only=True)
class Adapters:
    """Which model each request asks for."""

    adapters: Annotated[Several, Parameter(alias="--lora-modules")] = ()
    "Names in the requests, the base's too if it shall be asked; the model alone unless given."

    adapter_mix: str | None = None
    "random, round-robin, zipf[:EXPONENT], split:NAME=SHARE,..., bursts[:LENGTH]. random unless given."

    lora_assignment: Literal["random", "round-robin"] | None = None
    "vLLM's name for the first two."


@Parameter(name="*", group="Results")
@dataclass(frozen=True, kw_only=True)
class Report:
    """What is reported, and where to."""

    percentile_metrics: str = "ttft,tpot,itl,e2el"
    "Metrics to report, of these four, client_queue_time and e2el_including_client_queue."

    metric_percentiles: str = "90,95,99"
    "Their percentiles."

    goodput: Several = ()
    "Objectives NAME:MILLISECONDS, of ttft, tpot and e2el: ttft:200 tpot:20; for one adapter travel:ttft:200."

    save_result: Flag = False
    "Write a JSON file."

    save_detailed: Flag = False
    "With an entry for each request."

    append_result: Flag = False
    "Add to the file instead of replacing it."

    result_dir: Path = Path()
    "Folder of the JSON file."

    result_filename: str | None = None
    "Its name; LABEL-RATEqps[-concurrencyN]-MODEL-DATE.json unless given."

    csv: Path | None = None
    "Write a CSV file with a row for each request."

    html: Path | None = None
    "Write an HTML page with plots."

    plots: Path | None = None
    "Write the plots as PNGs into this folder."

    label: str | None = None
    "Of the run; the backend unless given."

    metadata: Several = ()
    "KEY=VALUE to keep in the JSON file."

    disable_tqdm: Flag = False
    "Show no progress."

    @property
    def metrics(self) -> list[Metric]:
        """Raises OptionsInvalid."""
        wanted = [each.strip() for each in self.percentile_metrics.split(",")]
        known = METRICS | QUEUE_METRICS
        for each in wanted:
            if each not in known:
                raise OptionsInvalid(f"--percentile-metrics has {each!r}: take of {', '.join(known)}")
        return [metric for metric in known if metric in wanted]

    @property
    def percentiles(self) -> list[float]:
        """Raises OptionsInvalid."""
        try:
            found = [float(each) for each in self.metric_percentiles.split(",")]
        except ValueError:
            found = [math.nan]
        if not all(0 <= each <= 100 for each in found):
            raise OptionsInvalid(
                f"--metric-percentiles {self.metric_percentiles} is not a list of numbers from 0 to 100, as 90,95,99"
            )
        return found

    @property
    def objectives(self) -> dict[str, float]:
        """Milliseconds by metric, or by ADAPTER:METRIC. Raises OptionsInvalid."""
        return limits(self.goodput)


@Parameter(name="*", group="Loading adapters")
@dataclass(frozen=True, kw_only=True)
class Cold:
    """Loads adapters while the run goes on, and unloads and loads some after it."""

    churn: Several = ()
    "NAME or NAME=PATH of each adapter to load anew during the run, in turn."

    churn_interval: OverZero = 2.0
    "Seconds from the beginning of one such load to that of the next."

    cold: Several = ()
    "NAME or NAME=PATH of each adapter to unload and load after it, PATH as the server's management API takes it."

    cold_rounds: AtLeastOne = 3
    "How often each."

    cold_api: Literal["loraplex", "vllm"] = "loraplex"
    "Management API: /v1/adapters, or /v1/load_lora_adapter."

    admin_key: Annotated[str | None, Parameter(env_var="LORAPLEX_ADMIN_KEY")] = None
    "Key for the management API; --api-key unless given."

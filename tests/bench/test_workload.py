"""Who is asked what, and when."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from statistics import mean, pstdev

import pytest

from loraplex.bench.errors import OptionsInvalid
from loraplex.bench.load.arrivals import arrivals, rates
from loraplex.bench.load.mix import assign
from loraplex.bench.load.options import Adapters, Data, Traffic
from loraplex.bench.load.prompt import Prompt
from loraplex.bench.load.sampling import Sampling
from loraplex.bench.load.target import Target
from loraplex.bench.load.workload import Workload

NAMES = ["a", "b", "c"]


def intervals(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise([0.0, *times])]


def test_without_a_rate_all_are_sent_at_once() -> None:
    assert arrivals(Traffic(), 5, 0) == [0.0] * 5


def test_a_rate_holds_over_the_run_whatever_the_seed() -> None:
    for seed in range(5):
        times = arrivals(Traffic(request_rate=4.0), 100, seed)
        assert times == sorted(times)
        assert times[-1] == pytest.approx(25)
    assert arrivals(Traffic(request_rate=4.0), 9, 1) == arrivals(Traffic(request_rate=4.0), 9, 1)
    assert arrivals(Traffic(request_rate=4.0), 9, 1) != arrivals(Traffic(request_rate=4.0), 9, 2)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_burstiness_is_the_shape_of_the_intervals(burstiness: float) -> None:
    """A gamma distribution of shape k has a coefficient of variation of 1 / sqrt(k)."""
    found = intervals(arrivals(Traffic(request_rate=10.0, burstiness=burstiness), 20_000, 0))
    assert pstdev(found) / mean(found) == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_infinite_burstiness_is_a_metronome() -> None:
    assert intervals(arrivals(Traffic(request_rate=2.0, burstiness=math.inf), 4, 0)) == [pytest.approx(0.5)] * 4


def test_a_ramp_up_goes_from_one_rate_to_the_other() -> None:
    linear = Traffic(ramp_up_strategy="linear", ramp_up_start_rps=1, ramp_up_end_rps=5, burstiness=math.inf)
    assert rates(linear, 5) == [1, 2, 3, 4, 5]
    assert intervals(arrivals(linear, 5, 0)) == [pytest.approx(1 / rate) for rate in (1, 2, 3, 4, 5)]
    exponential = Traffic(ramp_up_strategy="exponential", ramp_up_start_rps=1, ramp_up_end_rps=16)
    assert rates(exponential, 5) == [pytest.approx(each) for each in (1, 2, 4, 8, 16)]


def test_mixes_ask_for_the_adapters_as_they_say() -> None:
    assert assign("round-robin", NAMES, 5, 0) == ["a", "b", "c", "a", "b"]
    assert assign("bursts:2", NAMES, 7, 0) == ["a", "a", "b", "b", "c", "c", "a"]
    assert len(set(assign("bursts", NAMES, 10, 0))) == 1
    random = Counter(assign("random", NAMES, 9000, 0))
    assert all(count == pytest.approx(3000, rel=0.1) for count in random.values())
    assert assign("random", NAMES, 50, 7) == assign("random", NAMES, 50, 7)


def test_zipf_asks_for_rank_k_in_proportion_to_a_power_of_k() -> None:
    found = Counter(assign("zipf:2", NAMES, 20_000, 0))
    assert found["a"] / found["b"] == pytest.approx(4, rel=0.1)
    assert found["a"] / found["c"] == pytest.approx(9, rel=0.15)


def test_split_gives_exact_shares_in_random_order() -> None:
    found = assign("split:a=0.7,b=0.3", (), 10, 0)
    assert Counter(found) == {"a": 7, "b": 3}
    assert found != sorted(found)
    assert Counter(assign("split:a=1,b=1,c=1", NAMES, 8, 0)).most_common()[-1][1] == 2


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        ("often", "take random"),
        ("zipf:x", "not a number"),
        ("bursts:0", "whole number"),
        ("bursts:1.5", "whole number"),
        ("split:a", "NAME=SHARE"),
        ("split:a=-1", "NAME=SHARE"),
        ("split:a=1,x=1", "leave out --adapters"),
        ("random:3", "take random"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(mix: str, reason: str) -> None:
    with pytest.raises(OptionsInvalid, match=reason):
        assign(mix, NAMES, 4, 0)


def workload(
    backend: str = "openai",
    sampling: Sampling | None = None,
    adapters: Adapters | None = None,
    extra: str | None = None,
) -> Workload:
    target = Target(backend=backend, extra_body=extra)  # type: ignore[arg-type]
    data = Data(dataset_name="custom")
    return Workload(target, data, sampling or Sampling(), adapters or Adapters(), "base")


def test_a_body_has_what_the_flags_say() -> None:
    sampling = Sampling(temperature=0.0, top_k=5, ignore_eos=True)
    prompt = Prompt(content="Hello", tokens=2, output_tokens=9)
    body = json.loads(workload(sampling=sampling, extra='{"seed": 3, "top_k": 6}').body(prompt, "a"))
    assert body == {
        "model": "a",
        "prompt": "Hello",
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_k": 6,
        "seed": 3,
        "ignore_eos": True,
    }
    chat = json.loads(workload("openai-chat", Sampling(logprobs=2)).body(prompt, "a"))
    assert chat["messages"] == [{"role": "user", "content": "Hello"}]
    assert (chat["max_completion_tokens"], chat["logprobs"], chat["top_logprobs"]) == (9, True, 2)
    assert "ignore_eos" not in chat


def test_a_prompt_may_name_its_model_and_its_time() -> None:
    prompts = [
        Prompt(content="x", output_tokens=1, at=2.0),
        Prompt(content="y", output_tokens=1, at=1.0, model="special"),
    ]
    adapters = Adapters(adapters=("a",))
    plan = workload(adapters=adapters).plan(prompts, Traffic(request_rate=9.0))
    assert [(each.at, each.model) for each in plan] == [(1.0, "special"), (2.0, "a")]


def test_without_adapters_the_model_is_asked() -> None:
    prompts = [Prompt(content="x", output_tokens=1)] * 3
    assert workload().models(prompts) == ["base"] * 3
    with pytest.raises(OptionsInvalid, match="needs --adapters"):
        workload(adapters=Adapters(adapter_mix="zipf")).models(prompts)
    assert workload(adapters=Adapters(adapters=("a", "b"), lora_assignment="round-robin")).models(prompts) == [
        "a",
        "b",
        "a",
    ]
    with pytest.raises(OptionsInvalid, match="exclude each other"):
        workload(adapters=Adapters(adapters=("a",), adapter_mix="zipf", lora_assignment="random")).models(prompts)

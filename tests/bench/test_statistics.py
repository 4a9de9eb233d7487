"""Figures of requests whose every time is given."""

from __future__ import annotations

import math

import pytest

from loraplex.bench.results.result import Distribution, Fairness, Request, TokenCheck
from loraplex.bench.results.statistics import (
    check_tokens,
    chunks,
    distribution,
    fairness,
    jain,
    samples,
    summarize,
    timeline,
    tpot,
)


def request(
    model: str = "a", start: float = 0.0, ttft: float = 0.1, itls: tuple[float, ...] = (), **more: object
) -> Request:
    given = {
        "latency": ttft + math.fsum(itls),
        "input_tokens": 10,
        "output_tokens": len(itls) + 1,
        "usage_tokens": len(itls) + 1,
        "text": "x",
        "finish_reason": "length",
    } | more
    return Request(model=model, start=start, ttft=ttft, itls=list(itls), **given)  # type: ignore[arg-type]


FAILED = request(model="b", start=0.5, ttft=0.0, latency=0.0, output_tokens=0, error_kind="http_429:queue_full")
RUN = [
    request("a", 0.0, 0.1, (0.1, 0.2, 0.3)),  # 0.0 to 0.7 s, TPOT 0.2
    request("a", 0.5, 0.2, (0.1,)),  # 0.5 to 0.8 s, TPOT 0.1
    request("b", 1.0, 0.6),  # 1.0 to 1.6 s, one token
    FAILED,
]


def test_a_summary_has_the_figures_that_the_times_give() -> None:
    found = summarize(
        RUN,
        2.0,
        metrics=("ttft", "tpot", "itl", "e2el"),
        percentiles=(50.0, 99.9),
        objectives={"ttft": 200.0, "tpot": 150.0},
    )
    assert (found.completed, found.failed) == (3, 1)
    assert (found.total_input_tokens, found.total_output_tokens) == (30, 7)
    assert found.request_throughput == 1.5
    assert found.output_throughput == 3.5
    assert found.total_token_throughput == 18.5
    assert found.request_goodput == 0.5  # the second: the first's TPOT and the third's TTFT are too long
    assert found.max_concurrent_requests == 2
    assert found.max_output_tokens_per_s == 6  # in the first second: four and two
    assert found.errors_by_kind == {"http_429:queue_full": 1}
    ttft, per_token = found.latencies["ttft"], found.latencies["tpot"]
    assert ttft.mean == pytest.approx(300)
    assert ttft.median == pytest.approx(200)
    assert ttft.std == pytest.approx(1000 * math.sqrt((0.04 + 0.01 + 0.09) / 3))
    assert ttft.percentiles == {"50": pytest.approx(200), "99.9": pytest.approx(599.2)}
    assert per_token.mean == pytest.approx(150)  # an answer of one token has none
    assert found.latencies["itl"].mean == pytest.approx(175)
    assert found.latencies["e2el"].mean == pytest.approx(1000 * (0.7 + 0.3 + 0.6) / 3)


def test_goodput_is_none_without_objectives_and_counts_e2el() -> None:
    plain = summarize(RUN, 2.0, metrics=(), percentiles=(), objectives={})
    assert plain.request_goodput is None
    assert plain.latencies == {}
    assert summarize(RUN, 2.0, metrics=(), percentiles=(), objectives={"e2el": 650.0}).request_goodput == 1.0


def test_an_adapters_own_objective_takes_the_place_of_the_general_one() -> None:
    def goodput(**objectives: float) -> float | None:
        given = {name.replace("_", ":"): limit for name, limit in objectives.items()}
        return summarize(RUN, 2.0, metrics=(), percentiles=(), objectives=given).request_goodput

    # TTFTs are 100 and 200 ms for a and 600 ms for b, E2ELs 700 and 300 ms, and 600 ms.
    assert goodput(ttft=150) == 0.5
    assert goodput(ttft=150, b_ttft=600) == 1.0  # more lenient
    assert goodput(ttft=600, a_ttft=150) == 1.0  # stricter
    assert goodput(a_ttft=150) == 1.0  # there is none for b, whose request succeeded
    assert goodput(ttft=600, b_e2el=500) == 1.0  # of another metric, so both count
    assert goodput(ttft=150, b_e2el=700) == 0.5
    assert goodput(ttft=600, c_ttft=0) == 1.5


def test_a_run_without_success_is_all_zeros() -> None:
    found = summarize([FAILED], 1.0, metrics=("ttft", "itl"), percentiles=(99.0,), objectives={"ttft": 1.0})
    assert (found.completed, found.failed, found.output_throughput) == (0, 1, 0.0)
    assert found.max_output_tokens_per_s == found.max_concurrent_requests == 0
    assert found.latencies["ttft"] == Distribution(0.0, 0.0, 0.0, {"99": 0.0})


def test_time_in_the_clients_queue_is_counted_apart() -> None:
    queued = [request(ttft=0.1, queue=0.4)]
    assert samples("client_queue_time", queued) == [0.4]
    assert samples("e2el_including_client_queue", queued) == [0.5]
    assert samples("e2el", queued) == [0.1]


def test_percentiles_are_interpolated() -> None:
    found = distribution([0.001, 0.002, 0.003, 0.004], (0, 50, 90, 100))
    assert found.percentiles == {
        key: pytest.approx(value) for key, value in {"0": 1, "50": 2.5, "90": 3.7, "100": 4}.items()
    }
    assert found.median == pytest.approx(2.5)


def test_tpot_of_one_token_is_zero() -> None:
    assert tpot(request()) == 0
    assert tpot(request(itls=(0.2, 0.4))) == pytest.approx(0.3)


def test_jains_index_is_one_for_equals_and_one_nth_for_a_monopoly() -> None:
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1)
    assert jain([5.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([1.0, 3.0]) == pytest.approx(16 / 20)


def test_fairness_does_not_punish_an_adapter_that_is_asked_for_less() -> None:
    often = [request("a", index, 0.1, (0.1,)) for index in range(9)]
    seldom = [request("b", 0, 0.1, (0.1,))]
    found = fairness([*often, *seldom])
    assert (found.jain_stream_rate, found.jain_mean_ttft, found.ttft_spread) == pytest.approx((1, 1, 1))


def test_fairness_tells_an_adapter_that_waits() -> None:
    found = fairness([request("a", 0, 0.1, (0.1,)), request("b", 0, 0.3, (0.1,)), FAILED])
    assert found.jain_mean_ttft == pytest.approx(jain([0.1, 0.3]))
    assert found.jain_stream_rate == pytest.approx(jain([2 / 0.2, 2 / 0.4]))
    assert found.ttft_spread == pytest.approx(3)


def test_fairness_counts_an_adapter_that_got_nothing() -> None:
    assert fairness([request("a"), FAILED]) == Fairness(0.5, None, None)
    assert fairness([request("a")]) == fairness([FAILED]) == Fairness(None, None, None)


def test_tokens_are_checked_against_chunks() -> None:
    found = check_tokens(
        [
            request(itls=(0.1, 0.1)),
            request(itls=(0.1,), usage_tokens=3, finish_reason="stop"),  # the last token ends the answer
            request(itls=(0.1,), usage_tokens=4, finish_reason="stop"),
            request(itls=(0.1,), usage_tokens=4),
            request(itls=(0.1, 0.1), usage_tokens=1),
            request(itls=(0.1,), usage_tokens=None),
            FAILED,
        ]
    )
    assert found == TokenCheck(usage_tokens=15, chunks=14, without_usage=1, fewer_chunks=2, more_chunks=1)


def test_an_answer_without_text_has_no_chunk() -> None:
    assert chunks(request(text="", ttft=0.1)) == 0
    assert chunks(request(text="a", ttft=0.1)) == 1


def test_a_timeline_has_every_model_in_each_interval() -> None:
    found = timeline(RUN, 1.6)
    assert found.interval == 0.1
    a, b = found.adapters["a"], found.adapters["b"]
    assert len(a.running) == len(b.output_tokens) == 16
    assert sum(a.output_tokens) == 6
    assert sum(b.output_tokens) == 1
    assert (sum(a.started), sum(b.started), sum(a.failed), sum(b.failed)) == (2, 2, 0, 1)
    assert a.running[6] == pytest.approx(2)
    assert a.running[9] == 0
    assert sum(a.running) * 0.1 == pytest.approx(0.7 + 0.3)
    assert b.mean_ttft_ms[-1] == pytest.approx(600)
    assert [each for each in a.mean_ttft_ms if each is not None] == [pytest.approx(100), pytest.approx(200)]
    assert timeline(RUN, 600).interval == 5

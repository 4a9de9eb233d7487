"""Our histogram tells what prometheus_client's own would."""

from __future__ import annotations

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loraplex.server.histogram import Histogram

BOUNDS = (0.001, 0.5, 1, 30)


def samples(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """What a scrape reads, but for the times of creation."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(st.lists(st.tuples(st.sampled_from(["a", 'b"\n']), st.one_of(st.sampled_from(BOUNDS), st.floats(0, 100)))))
def test_it_tells_what_prometheus_own_does(observed: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = Histogram("seconds", "Time", "adapter", BOUNDS)
    ours.register(fast)
    slow = prometheus_client.Histogram("seconds", "Time", ["adapter"], buckets=BOUNDS, registry=theirs)
    for label, value in observed:
        fast.labels(label).observe(value)
        slow.labels(label).observe(value)
    assert samples(ours) == samples(theirs)
    fast.remove_by_labels({"adapter": "a"})
    slow.remove_by_labels({"adapter": "a"})
    assert samples(ours) == samples(theirs)

"""When requests are sent: as vLLM's `get_request` has it (vllm/benchmarks/serve.py)."""

from __future__ import annotations

import math

import numpy as np

from loraplex.bench.load.options import Traffic


def rates(traffic: Traffic, count: int) -> list[float]:
    """Requests a second at each request: one rate, or one that rises over the run."""
    start, end = traffic.ramp_up_start_rps, traffic.ramp_up_end_rps
    if traffic.ramp_up_strategy is None or start is None or end is None:
        return [traffic.request_rate] * count
    progress = [index / max(count - 1, 1) for index in range(count)]
    if traffic.ramp_up_strategy == "linear":
        return [start + (end - start) * each for each in progress]
    return [float(start * (end / start) ** each) for each in progress]


def arrivals(traffic: Traffic, count: int, seed: int) -> list[float]:
    """Seconds from the beginning of the run to each request, in order.

    Intervals are drawn from a gamma distribution with the shape --burstiness. With one rate they are scaled so that the
    last request comes at count / rate, whatever the seed.
    """
    wanted = rates(traffic, count)
    if math.isinf(wanted[0]):
        return [0.0] * count
    random = np.random.RandomState(seed % 2**32)
    shape = traffic.burstiness
    intervals = [1 / rate if math.isinf(shape) else float(random.gamma(shape, 1 / (rate * shape))) for rate in wanted]
    times = np.cumsum(intervals)
    if traffic.ramp_up_strategy is None and times[-1] > 0:
        times *= count / traffic.request_rate / times[-1]
    return [float(each) for each in times]

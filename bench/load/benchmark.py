"""One run, from the flags to its result."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec
from rich.console import Console

from loraplex.bench.errors import Interrupted, OptionsInvalid, ServerFailed
from loraplex.bench.load.client import Client, opened
from loraplex.bench.load.cold import churning, measure_cold, paths
from loraplex.bench.load.conversations import load_conversations
from loraplex.bench.load.dataset import load_prompts
from loraplex.bench.load.discovery import model_of, version_of, wait_until_ready
from loraplex.bench.load.driver import Measured, Tally, drive, warm_up
from loraplex.bench.load.flags import pairs
from loraplex.bench.load.interruption import interruption
from loraplex.bench.load.mix import assign, named
from loraplex.bench.load.objectives import check_asked
from loraplex.bench.load.open_files import make_room
from loraplex.bench.load.options import Adapters, Cold, Data, Report, Traffic
from loraplex.bench.load.probe import probing, summarize_probes
from loraplex.bench.load.progress import shown
from loraplex.bench.load.sampling import Sampling
from loraplex.bench.load.server_metrics import watching
from loraplex.bench.load.target import Target
from loraplex.bench.load.turns import Turns
from loraplex.bench.load.vocabulary import Vocabulary
from loraplex.bench.load.workload import Planned, Workload, mix_of
from loraplex.bench.machine import machine
from loraplex.bench.results import output, statistics
from loraplex.bench.results.configuration import Configuration
from loraplex.bench.results.result import ChurnLoad, ColdLoad, Request, Run, Summary
from loraplex.bench.results.steady_state import steady_state


@dataclass(frozen=True, kw_only=True)
class Options:
    """All flags of one run."""

    target: Target = field(default_factory=Target)
    data: Data = field(default_factory=Data)
    traffic: Traffic = field(default_factory=Traffic)
    turns: Turns = field(default_factory=Turns)
    sampling: Sampling = field(default_factory=Sampling)
    adapters: Adapters = field(default_factory=Adapters)
    report: Report = field(default_factory=Report)
    cold: Cold = field(default_factory=Cold)


def check(options: Options) -> None:
    """What can be known to be wrong without the server. Raises OptionsInvalid."""
    report = options.report
    _ = report.metrics, report.percentiles, report.objectives, pairs(report.metadata, "--metadata")
    _ = options.target.headers, options.target.extra, mix_of(options.adapters)
    _ = paths(options.cold.cold, "--cold"), paths(options.cold.churn, "--churn")
    if options.adapters.adapters or options.adapters.adapter_mix:
        assign(mix_of(options.adapters), options.adapters.adapters, 1, options.data.seed)
    options.target.check()
    options.traffic.check(options.data)
    options.turns.check(options.target, options.data)
    output.check(report)


async def benchmark(options: Options) -> Run:
    """Send the requests and reckon; SIGINT ends the run early.

    Raises OptionsInvalid and WorkloadInvalid before, OptionsInvalid also where `max_seconds` let nothing be sent,
    ServerFailed, and Interrupted where no request had ended then.
    """
    check(options)
    target, data, traffic, turns = options.target, options.data, options.traffic, options.turns
    name, model = await model_of(target)
    vocabulary = _vocabulary(data, model)
    if turns.multi_turn:
        prompts = load_conversations(data, turns, vocabulary)
    else:
        prompts = load_prompts(data, vocabulary, timed=traffic.self_timed is not False, chat=target.chat)
    workload = Workload(target, data, options.sampling, options.adapters, name)
    plan = workload.plan(prompts, traffic)
    asked = dict.fromkeys([*named(mix_of(options.adapters), options.adapters.adapters), *(each.model for each in plan)])
    check_asked(options.report.objectives, list(asked))
    if warning := make_room(traffic, min(len(plan), turns.at_once(traffic) or len(plan))):
        print(f"warning: {warning}", file=sys.stderr)
    async with opened(
        target.url + target.path, target.headers, target.request_timeout, insecure=target.insecure
    ) as client:
        await _prepare(client, plan, options)
        with interruption() as stop:
            rate = traffic.probe_request_rate
            async with probing(client, workload, name, rate, stop) as probes, watching(target) as watched:
                measured, churn = await _run(client, plan, options, stop)
            cold: list[ColdLoad] = []
            cold_error = ""
            if options.cold.cold and not stop.is_set():
                cold, cold_error = await measure_cold(client, workload, prompts, target, options.cold, stop)
    if not measured.requests and not stop.is_set():
        raise OptionsInvalid(f"--max-seconds {traffic.max_seconds:g} is over before the first request: raise it")
    if not measured.requests:
        raise Interrupted("interrupted before any request had ended")
    if options.cold.churn and not churn:
        print("warning: the run was over before any load of --churn: shorten --churn-interval", file=sys.stderr)
    count_tokens(measured.requests, vocabulary)
    configuration = Configuration(
        date=datetime.now().strftime("%Y%m%d-%H%M%S"),
        backend=target.backend,
        label=options.report.label,
        model_id=model,
        tokenizer_id=vocabulary.source if vocabulary else None,
        num_prompts=data.num_prompts,
        request_rate=traffic.request_rate,
        burstiness=traffic.burstiness,
        max_concurrency=traffic.max_concurrency,
        ramp_up_strategy=traffic.ramp_up_strategy,
        ramp_up_start_rps=traffic.ramp_up_start_rps,
        ramp_up_end_rps=traffic.ramp_up_end_rps,
        command=output.command_line(target.api_key, options.cold.admin_key, *target.headers.values()),
        url=target.url + target.path,
        server=await version_of(target),
        machine=machine(),
        dataset=data.dataset_name,
        seed=data.seed,
        adapters=list(dict.fromkeys([*options.adapters.adapters, *(each.model for each in plan)])),
        adapter_mix=mix_of(options.adapters) if options.adapters.adapters or options.adapters.adapter_mix else "",
        goodput=options.report.objectives,
        max_seconds=traffic.max_seconds,
        multi_turn=turns.multi_turn,
        multi_turn_concurrency=turns.at_once(traffic),
        multi_turn_delay_ms=turns.multi_turn_delay_ms,
    )
    run = reckon(configuration, measured, options.report, cold)
    return msgspec.structs.replace(
        run,
        cold_error=cold_error,
        churn=churn,
        interrupted=stop.is_set(),
        probes=summarize_probes(probes) if traffic.probe_request_rate else None,
        server_metrics=watched(),
    )


def reckon(configuration: Configuration, measured: Measured, report: Report, cold: Sequence[ColdLoad] = ()) -> Run:
    """Every figure of a run, from its requests."""
    requests, duration = measured.requests, measured.duration
    of_model: dict[str, list[Request]] = {name: [] for name in configuration.adapters}
    for each in requests:
        of_model.setdefault(each.model, []).append(each)

    def summary(some: Sequence[Request]) -> Summary:
        return statistics.summarize(
            some,
            duration,
            metrics=report.metrics,
            percentiles=report.percentiles,
            objectives=report.objectives,
        )

    of_turn: list[list[Request]] = [[] for _ in range(max(measured.turns, default=0))]
    for each in requests if of_turn else ():
        of_turn[each.turn - 1].append(each)
    later = [each for each in requests if each.turn > 1]
    return Run(
        configuration=configuration,
        metadata=pairs(report.metadata, "--metadata"),
        duration=duration,
        totals=summary(requests),
        adapters={name: summary(some) for name, some in of_model.items()},
        fairness=statistics.fairness(requests),
        tokens=statistics.check_tokens(requests),
        client=measured.cost,
        timeline=statistics.timeline(requests, duration),
        # Of requests that were given up nobody knows how long they were under way.
        steady_state=None if measured.unfinished else steady_state(requests, configuration),
        conversations=statistics.summarize_conversations(requests, measured.turns) if measured.turns else None,
        turns=[summary(some) for some in of_turn],
        later_turns=summary(later) if later else None,
        cold=list(cold),
        rate_changes=measured.rate_changes,
        requests=requests,
        unfinished=measured.unfinished,
        unsent=measured.unsent,
    )


def count_tokens(requests: Sequence[Request], vocabulary: Vocabulary | None) -> None:
    """Where the server sent no usage: by the tokenizer, or one a chunk where there is none."""
    for each in requests:
        if each.usage_tokens is None and each.error_kind is None:
            each.output_tokens = len(vocabulary.encode(each.text)) if vocabulary else statistics.chunks(each)


async def _prepare(client: Client, plan: Sequence[Planned], options: Options) -> None:
    """What comes before the run and does not count."""
    traffic, patience = options.traffic, options.target.ready_check_timeout_sec
    if patience:
        await wait_until_ready(client, plan[0], patience)
    if traffic.num_warmups:
        await warm_up(client, plan, traffic.num_warmups, traffic.max_concurrency)


async def _run(
    client: Client, plan: Sequence[Planned], options: Options, stop: asyncio.Event
) -> tuple[Measured, list[ChurnLoad]]:
    tally = Tally(began=time.perf_counter())
    console = Console(stderr=True, quiet=options.report.disable_tqdm)
    async with shown(tally, console), churning(options.target, options.cold, tally) as churn:
        limit = math.inf if options.traffic.max_seconds is None else options.traffic.max_seconds
        at_once = options.turns.at_once(options.traffic)
        measured = await drive(client, plan, options.traffic.max_concurrency, tally, stop, limit, at_once)
    refused = [each for each in measured.requests if each.error_kind == "connection"]
    if refused and len(refused) == len(measured.requests) and not measured.unfinished:
        raise ServerFailed(f"{options.target.url} cannot be reached: {refused[0].error}")
    return measured, churn


def _vocabulary(data: Data, model: str) -> Vocabulary | None:
    """The tokenizer of the flags, or that of the model where the dataset needs one or the model is a folder."""
    if data.skip_tokenizer_init:
        return None
    if data.tokenizer is not None:
        return Vocabulary(data.tokenizer)
    if data.dataset_name in ("random", "prefix_repetition", "trace", "timed_trace") or Path(model).is_dir():
        if "/" not in model and not Path(model).exists():
            raise OptionsInvalid(
                f"no tokenizer for {model}: that is neither a folder nor the OWNER/NAME of a model on the Hugging Face "
                "hub. Give --tokenizer a folder with tokenizer.json, a bundle, or a model of the hub"
            )
        return Vocabulary(model)
    return None

"""`loraplex bench`: measurements of a server under load."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeVar

from cyclopts import App

from loraplex.bench.errors import INTERRUPTED, Interrupted, OptionsInvalid, WorkloadInvalid
from loraplex.bench.load.event_loop import run
from loraplex.bench.load.foreign_flags import explained
from loraplex.bench.load.options import Adapters, Cold, Data, Report, Traffic
from loraplex.bench.load.sampling import Sampling
from loraplex.bench.load.steps import Steps
from loraplex.bench.load.target import Target
from loraplex.bench.load.turns import Turns
from loraplex.server.errors import LoraplexError

Result = TypeVar("Result")

# Variables of the server's settings are not meant here: LORAPLEX_PORT is where one listens, not where one is asked.
bench = App(name="bench", help="Measure a server of the OpenAI API under load.", config=())


@bench.command(error_formatter=explained)
def serve(
    *,
    target: Target | None = None,
    data: Data | None = None,
    traffic: Traffic | None = None,
    turns: Turns | None = None,
    sampling: Sampling | None = None,
    adapters: Adapters | None = None,
    report: Report | None = None,
    cold: Cold | None = None,
) -> None:
    """Send requests to a server and report latencies and throughput, of all and of each adapter.

    Flags and files of results are those of `vllm bench serve`.
    """
    try:
        from loraplex.bench.load.benchmark import Options, benchmark
        from loraplex.bench.results.output import save
        from loraplex.bench.results.summary import text
    except ImportError as error:
        sys.exit(f"loraplex: {error}; install loraplex[bench]")
    options = Options(
        target=target or Target(),
        data=data or Data(),
        traffic=traffic or Traffic(),
        turns=turns or Turns(),
        sampling=sampling or Sampling(),
        adapters=adapters or Adapters(),
        report=report or Report(),
        cold=cold or Cold(),
    )
    _warn_of_unheeded(options.target)
    if options.report.save_detailed and not (options.report.save_result or options.report.append_result):
        print("warning: --save-detailed writes no file without --save-result", file=sys.stderr)
    found = finish(lambda: benchmark(options))
    # Saved before it is printed: whoever reads this may stop reading, as `head` does.
    failure, written = "", list[Path]()
    try:
        written = save(found, options.report)
    except (OSError, LoraplexError) as error:
        failure = f"loraplex: {error}"
    print(text(found), *(f"wrote {path}" for path in written), sep="\n")
    if failure:
        sys.exit(failure)
    if found.interrupted:
        sys.exit(INTERRUPTED)
    if not found.totals.completed:
        sys.exit(f"loraplex: {found.failure}")
    if found.cold_error:
        sys.exit(f"loraplex: {found.cold_error}")


@bench.command(error_formatter=explained)
def sweep(
    *,
    steps: Steps | None = None,
    target: Target | None = None,
    data: Data | None = None,
    traffic: Traffic | None = None,
    turns: Turns | None = None,
    sampling: Sampling | None = None,
    adapters: Adapters | None = None,
    report: Report | None = None,
) -> None:
    """Run `bench serve` under heavier and heavier load until throughput rises no more, or objectives are missed.

    Each run is a JSON file in --result-dir, and sweep.json there is the summary.
    """
    try:
        from loraplex.bench.load.benchmark import Options
        from loraplex.bench.load.sweep import HEADER, SUMMARY, Point
        from loraplex.bench.load.sweep import sweep as measure
        from loraplex.bench.results.output import write_plots
    except ImportError as error:
        sys.exit(f"loraplex: {error}; install loraplex[bench]")
    options = Options(
        target=target or Target(),
        data=data or Data(),
        traffic=traffic or Traffic(),
        turns=turns or Turns(),
        sampling=sampling or Sampling(),
        adapters=adapters or Adapters(),
        report=report or Report(),
    )
    wanted = steps or Steps()
    begun: list[float] = []

    def done(point: Point) -> None:
        if not begun:
            print(f"{wanted.over}{HEADER[len(wanted.over) :]}")
        begun.append(point.value)
        print(point.line(), flush=True)

    _warn_of_unheeded(options.target)
    found, runs = finish(lambda: measure(options, wanted, options.report.result_dir, done))
    print(f"\n{found.stopped}; best at {found.over} {found.best:g}" if found.best else f"\n{found.stopped}")
    try:
        for path in (options.report.result_dir / SUMMARY, *write_plots(runs, options.report)):
            print(f"wrote {path}")
    except OSError as error:
        sys.exit(f"loraplex: {error}")
    if found.interrupted:
        sys.exit(INTERRUPTED)
    if found.failed or found.best is None:
        sys.exit(1)


bench.command("loraplex.bench.results.compare:compare", help="Put results side by side, as ratios to the first.")
bench.command("loraplex.bench.build:build", help="Put what builds cost side by side, step by step.")
bench.command("loraplex.bench.scripted.cost:http", help="Measure what the HTTP layer costs by itself.")
bench.command("loraplex.bench.lanes.engine:engine", help="Measure lanes without HTTP: what adapters and HTTP cost.")


def finish(work: Callable[[], Coroutine[None, None, Result]]) -> Result:
    """Run to the end on the fastest event loop there is.

    Ends the command with status 2 where what was asked for is wrong, with 1 where it failed, with 130 after SIGINT.
    """
    try:
        return run(work())
    except (OptionsInvalid, WorkloadInvalid) as error:
        print(f"loraplex: {error.message}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        print(f"loraplex: {error.message}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except LoraplexError as error:
        sys.exit(f"loraplex: {error.message}")
    except MemoryError as error:
        sys.exit(f"loraplex: not enough memory: {error}; send fewer or shorter prompts")
    except KeyboardInterrupt:
        print("loraplex: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _warn_of_unheeded(target: Target) -> None:
    if target.unheeded:
        print(f"warning: --base-url {target.base_url} is asked, not {' '.join(target.unheeded)}", file=sys.stderr)

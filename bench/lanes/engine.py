"""`loraplex bench engine`: what adapters cost, and what HTTP costs, as ratios."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from loraplex.bench.errors import INTERRUPTED, Interrupted, OptionsInvalid
from loraplex.bench.lanes.engine_table import LaneName, tables
from loraplex.bench.load.flags import AtLeastOne, Flag, NotNegative, Several
from loraplex.bench.results.output import prepare
from loraplex.bench.results.result_file import write
from loraplex.server.bundle import Bundle
from loraplex.server.errors import BundleInvalid, LoraplexError
from loraplex.server.machine import usable_cores

Numbers = Annotated[tuple[AtLeastOne, ...], Parameter(consume_multiple=True, negative="")]


def engine(
    bundle: Path,
    /,
    *,
    lane: Annotated[tuple[LaneName, ...], Parameter(consume_multiple=True, negative="")] = (),
    adapters: Numbers = (),
    concurrency: Numbers = (1, 8),
    input_len: AtLeastOne = 64,
    output_len: AtLeastOne = 48,
    rounds: AtLeastOne = 3,
    random_adapters: AtLeastOne | None = None,
    modules: Several = (),
    http: Flag = False,
    threads: NotNegative = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    weights: Literal["auto", "int4", "float16"] = "auto",
    kv_cache_mib: NotNegative = 0,
    cpu_time: Flag = False,
    seed: int = 0,
    json: Path | None = None,
    html: Path | None = None,
    plots: Path | None = None,
) -> None:
    """Measure lanes without HTTP, base alone against adapters; with --http also a server beside them.

    Parameters
    ----------
    bundle
        Folder written by `loraplex build`.
    lane
        Lanes to measure; every one that this machine has unless given.
    adapters
        Numbers of adapters that the streams are spread over, no more than there are streams; all of the bundle's
        unless given.
    concurrency
        Numbers of streams, which all begin together.
    input_len
        Tokens of a prompt, random ones.
    output_len
        Tokens of an answer; end tokens do not end it.
    rounds
        How often every case is measured, after one round that does not count.
    random_adapters
        Rank of random adapters to take instead of the bundle's.
    modules
        Linear layers that random adapters cover, such as q_proj; all unless given.
    http
        Also start `loraplex serve` on each lane, and measure the same through it.
    threads
        CPU threads; 0 takes every physical core.
    device
        Where lanes run; auto is cuda where it is to be had.
    weights
        Of the routed lane's base.
    kv_cache_mib
        Memory for keys and values of each lane; 0 leaves it to the lane.
    cpu_time
        Count seconds that processes take on the CPU, not the wall's, for machines with busy neighbours; with
        --threads 1. Over HTTP those of the server's processes, and for tokens/s only.
    seed
        Of the prompts.
    json
        File to write the runs to, one in a line, with the keys of `bench serve`.
    html
        Page to write, with plots.
    plots
        Folder for the plots as PNGs.
    """
    try:
        from loraplex.bench.lanes.engine_bench import Bench, LaneOptions
    except ImportError as error:
        sys.exit(f"loraplex: {error}; install loraplex[bench]")
    if threads > (cores := usable_cores()):
        print(f"warning: --threads {threads} wait for each other on the {cores} cores of this process", file=sys.stderr)
    try:
        prepare(*filter(None, (json, html, plots and plots / "latency.png")))
        bench = Bench(
            Bundle.open(bundle),
            lanes=lane,
            counts=adapters,
            rank=random_adapters,
            modules=modules,
            streams=concurrency,
            lengths=(input_len, output_len),
            http=http,
            options=LaneOptions(threads, device, weights, kv_cache_mib),
            cpu_time=cpu_time,
            seed=seed,
        )
        runs = bench.run(rounds)
        print(f"\n{tables(runs)}\n\n{bench.setup()}")
        if json is not None:
            json.unlink(missing_ok=True)
            for run in runs:
                write(run, json, detailed=True, append=True)
        if html is not None or plots is not None:
            from loraplex.bench.results.report import write_report

            write_report(runs, html=html, plots=plots)
        if bench.interrupted:
            print(f"warning: {bench.interrupted}", file=sys.stderr)
            sys.exit(INTERRUPTED)
    except Interrupted as error:
        print(f"loraplex: {error.message}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (OptionsInvalid, BundleInvalid) as error:
        print(f"loraplex: {error.message}", file=sys.stderr)
        sys.exit(2)
    except LoraplexError as error:
        print(f"loraplex: {error.message}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        sys.exit(f"loraplex: {error}")

"""`loraplex bench build`: what builds cost, step by step, side by side."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from msgspec import Struct

from loraplex.bench.errors import BenchFailed, OptionsInvalid, ResultInvalid
from loraplex.bench.results.output import prepare
from loraplex.bench.table import markdown
from loraplex.build.findings import FINDINGS, read_findings
from loraplex.build.record import StepRecord, folder_bytes

TOTAL = "all steps"


class BuildCost(Struct, frozen=True):
    """What one bundle cost, as its verification.json says, and what it takes on disk."""

    bundle: str
    base: str
    machine: dict[str, str]
    steps: list[StepRecord]
    seconds: float
    """Of all steps together, as the rest is."""
    peak_bytes: int
    """Of the step with the most."""
    peak_device_bytes: int
    bundle_bytes: int
    adapter_bytes: int
    """Of it, the adapters."""


def build(
    bundles: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    /,
    *,
    run: Path | None = None,
    output: Path | None = None,
    json: Path | None = None,
) -> None:
    """Print what bundles cost to build: time, memory and size of every step; the first is the baseline.

    Parameters
    ----------
    bundles
        Folders that `loraplex build` wrote.
    run
        Recipe to build first, from scratch.
    output
        Folder for its bundle, which is told with the others.
    json
        File to write the figures to.
    """
    try:
        if (run is None) != (output is None):
            raise OptionsInvalid("--run and --output belong together: the recipe, and the folder for its bundle")
        if json is not None:
            prepare(json)
        if run is not None and output is not None:
            _build(run, output)
            bundles = (*bundles, output)
        if not bundles:
            raise OptionsInvalid("name a bundle, or a recipe with --run")
        costs = [build_cost(bundle) for bundle in bundles]
    except (OptionsInvalid, ResultInvalid) as error:
        print(f"loraplex: {error.message}", file=sys.stderr)
        sys.exit(2)
    except BenchFailed as error:
        sys.exit(f"loraplex: {error.message}")
    print(tables(costs))
    for line in differences(costs):
        print(f"warning: {line}", file=sys.stderr)
    if json is not None:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(costs), indent=2) + b"\n")


def build_cost(bundle: Path) -> BuildCost:
    """Read what a build left in its bundle. Raises ResultInvalid."""
    try:
        found = read_findings(bundle)
    except OSError:
        raise ResultInvalid(
            f"{bundle} has no {FINDINGS}: name a bundle that `loraplex build` wrote, of a recipe or of --base"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultInvalid(f"{bundle / FINDINGS} is not what a build writes: {error}") from None
    return BuildCost(
        str(bundle),
        found.base.name,
        found.machine,
        found.steps,
        sum(step.seconds for step in found.steps),
        max((step.peak_bytes for step in found.steps), default=0),
        max((step.peak_device_bytes for step in found.steps), default=0),
        folder_bytes(bundle),
        folder_bytes(bundle / "adapters"),
    )


def tables(costs: Sequence[BuildCost]) -> str:
    """The steps of each bundle, then bundles side by side."""
    parts = [
        f"{cost.bundle} ({cost.base})\n\n"
        + markdown(
            ("step", "seconds", "peak memory", "of the GPU", "files left"),
            [_step(step) for step in cost.steps]
            + [(TOTAL, f"{cost.seconds:.1f}", size(cost.peak_bytes), _device(cost.peak_device_bytes), "")],
        )
        + f"\n\nThe bundle has {size(cost.bundle_bytes)}, of it adapters {size(cost.adapter_bytes)}.\n"
        + ", ".join(f"{name} {value}" for name, value in cost.machine.items())
        for cost in costs
    ]
    if len(costs) > 1:
        parts.append(_beside(costs))
    return "\n\n".join(parts)


def differences(costs: Sequence[BuildCost]) -> list[str]:
    """What makes the first bundle's build another work than the others', or work elsewhere; a line each."""
    first, *others = costs
    own = {"base": first.base, **first.machine}
    found = []
    for cost in others:
        theirs = {"base": cost.base, **cost.machine}
        for name in dict.fromkeys((*own, *theirs)):
            one, other = own.get(name, "nothing"), theirs.get(name, "nothing")
            if one != other:
                found.append(f"{name}: {first.bundle} has {one}, {cost.bundle} has {other}")
    return found


def size(count: float) -> str:
    """Bytes with three digits and a unit."""
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} GB"


def _beside(costs: Sequence[BuildCost]) -> str:
    """Seconds of each step, and their ratio to the first bundle's."""
    names = dict.fromkeys(step.name for cost in costs for step in cost.steps)
    seconds = [{step.name: step.seconds for step in cost.steps} | {TOTAL: cost.seconds} for cost in costs]
    head = ["seconds", costs[0].bundle]
    for cost in costs[1:]:
        head += [cost.bundle, "ratio"]
    rows = []
    for name in (*names, TOTAL):
        first = seconds[0].get(name)
        row = [name, "" if first is None else f"{first:.1f}"]
        for found in seconds[1:]:
            own = found.get(name)
            row += ["", ""] if own is None else [f"{own:.1f}", f"{own / first:.2f}" if first else ""]
        rows.append(row)
    return markdown(head, rows)


def _step(step: StepRecord) -> tuple[str, ...]:
    cells = (size(step.peak_bytes), _device(step.peak_device_bytes), size(step.output_bytes))
    return (step.name, f"{step.seconds:.1f}", *cells)


def _device(count: int) -> str:
    return size(count) if count else ""


def _build(recipe: Path, output: Path) -> None:
    """Raises BenchFailed with the build's status; what it says is on the terminal already."""
    if not recipe.is_file():
        raise OptionsInvalid(f"--run {recipe} is no file: name a recipe, see docs/build.md")
    command = [sys.executable, "-m", "loraplex.server", "build", str(recipe), "--output", str(output)]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise BenchFailed(f"the build of {recipe} ended with status {status}")

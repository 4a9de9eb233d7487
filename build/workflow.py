"""Runs the steps of a plan one after another, keeps what each one left, and puts the bundle in its place.

A finished step has a record.json beside its output, with a digest of everything that decides the result. A later build
in the same work folder leaves out the steps whose digest is still the same.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console

from loraplex.build.assembly import put_in_place
from loraplex.build.errors import StepFailed, first_line
from loraplex.build.exhaustion import disk_full
from loraplex.build.failure import lack_of_room, missing, reason, size
from loraplex.build.passes.registry import package_config
from loraplex.build.plan import Plan
from loraplex.build.planned_step import RECORD, SPEC, Step, digest, digest_of_base
from loraplex.build.record import FinishedStep, StepRecord, folder_bytes
from loraplex.build.step import LOG, OUTCOME, PASSES, WORKFLOW, Outcome
from loraplex.build.step_process import resident, running, server

_DIGEST = "digest.txt"
_CHECKPOINTS = "checkpoints"
_LINKED = 1_000_000
"""Bytes."""


def write_workflows(plan: Plan) -> None:
    """Write what `olive run --config STEP/workflow.json --package-config passes.json` needs for every step."""
    plan.work.mkdir(parents=True, exist_ok=True)
    plan.write_data()
    (plan.work / PASSES).write_bytes(msgspec.json.format(msgspec.json.encode(package_config())))
    for step in plan.steps:
        _write_workflow(step)


def run_steps(plan: Plan, command: str) -> list[StepRecord]:
    """Run the steps that are not finished yet; `command` is what to tell people for going on after a failure.

    Returns a record of every step. Raises StepFailed; whatever else is raised meanwhile ends the running step too.
    """
    console = Console(stderr=True)
    plan.work.mkdir(parents=True, exist_ok=True)
    plan.write_data()
    (plan.work / PASSES).write_bytes(msgspec.json.encode(package_config()))
    known = {"base": digest_of_base(Path(plan.job.base))}
    for step in plan.steps:
        known[step.name] = digest(step, plan.work, known)
    done = all(finished(step, known[step.name]) for step in plan.steps)
    records = []
    with contextlib.nullcontext() if done else server():
        for number, step in enumerate(plan.steps, 1):
            title = f"{number}/{len(plan.steps)} {step.name}"
            # Asked again: a step that runs once more may take with it what a later one left.
            if (record := finished(step, known[step.name])) is not None:
                console.print(f"{title}: kept from an earlier run", highlight=False)
            else:
                record = _run(step, known[step.name], title, command, console)
                console.print(f"{title}: {describe(record)}", highlight=False)
            records.append(record)
    return records


def place(bundle: Path, output: Path, command: str) -> None:
    """Put a finished bundle where it was asked for. The work folder keeps its own, which shares the big files.

    Raises StepFailed, with `command` as in `run_steps`; `output` is then what it was before.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            _place(bundle, output, Path(scratch))
    except OSError as error:
        # Of a tree, shutil tells every file that it could not copy.
        listed = isinstance(error, shutil.Error) and isinstance(error.args[0], list)
        said = error.args[0][0][-1] if listed else first_line(error)
        free, needed = shutil.disk_usage(output.parent).free, folder_bytes(bundle)
        why = f": {size(free)} are free, the bundle has {size(needed)}" if disk_full(error) else ""
        raise StepFailed(f"{output} cannot be written: {said}{why}\n  again from here: {command}") from error


def _place(bundle: Path, output: Path, scratch: Path) -> None:
    draft = scratch / "bundle"
    shutil.copytree(bundle, draft, copy_function=_link_or_copy)
    put_in_place(draft, output, scratch / "replaced")


def _link_or_copy(source: str, target: str) -> None:
    """Small files may be edited in place later, so they are copied."""
    if Path(source).stat().st_size > _LINKED:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def finished(step: Step, wanted: str) -> StepRecord | None:
    """The record of a step whose result is there and comes from the same inputs."""
    try:
        found = msgspec.json.decode((step.folder / RECORD).read_bytes(), type=FinishedStep)
    except (OSError, msgspec.MsgspecError):
        return None
    return found.record if found.digest == wanted and not missing(step) else None


def describe(record: StepRecord) -> str:
    device = f", {size(record.peak_device_bytes)} on the GPU" if record.peak_device_bytes else ""
    return (
        f"{record.seconds:.1f} s, {size(record.peak_bytes)} of memory at most{device}, "
        f"{size(record.output_bytes)} written"
    )


def _run(step: Step, wanted: str, title: str, command: str, console: Console) -> StepRecord:
    _clear(step, wanted)
    _write_workflow(step)
    (step.folder / _DIGEST).write_text(wanted)
    log, peak = step.folder / LOG, 0
    if why := lack_of_room(step):
        raise StepFailed(f"step {title} cannot run: {why}\n  again from here: {command}")
    with running(step, console, title) as process:
        while process.is_alive():
            peak = max(peak, resident(process))
            process.join(0.5)
    outcome, status = None, process.exitcode
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        outcome = msgspec.json.decode((step.folder / OUTCOME).read_bytes(), type=Outcome)
    if why := reason(step, outcome, status, peak):
        raise StepFailed(f"step {title} failed: {why}\n  log: {log}\n  again from here: {command}")
    assert outcome is not None
    record = StepRecord(
        name=step.name,
        seconds=outcome.seconds,
        peak_bytes=outcome.peak_bytes,
        peak_device_bytes=outcome.peak_device_bytes,
        output_bytes=folder_bytes(step.result),
    )
    draft = step.folder / f".{RECORD}"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(FinishedStep(wanted, record))))
    draft.rename(step.folder / RECORD)
    return record


def _clear(step: Step, wanted: str) -> None:
    """Remove what an unfinished run left, except for checkpoints of a training with the same inputs."""
    before = step.folder / _DIGEST
    same = before.is_file() and before.read_text() == wanted
    if step.folder.is_dir():
        for path in step.folder.iterdir():
            if same and path.name == _CHECKPOINTS:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_workflow(step: Step) -> None:
    step.folder.mkdir(parents=True, exist_ok=True)
    (step.folder / WORKFLOW).write_bytes(msgspec.json.format(msgspec.json.encode(step.workflow), indent=2))
    if step.spec is not None:
        (step.folder / SPEC).write_bytes(msgspec.json.format(msgspec.json.encode(step.spec), indent=2))

"""Why a step failed, for people: what was wrong, how much was needed and how much was there."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from loraplex.build import awq
from loraplex.build.errors import BuildFailed
from loraplex.build.planned_step import Step
from loraplex.build.record import folder_bytes
from loraplex.build.specification import BaseSpec
from loraplex.build.step import Outcome
from loraplex.server.machine import available_memory, total_memory

_FULL = 1_000_000
"""Bytes: with fewer than these left, a process that said nothing could not write what it had to say."""


def reason(step: Step, outcome: Outcome | None, status: int | None, peak: int) -> str:
    """Why a step failed, in one line; empty if it did not.

    `outcome` is None where its process left none; `status` is how that ended, `peak` the most memory it was seen with.
    """
    free = shutil.disk_usage(step.folder).free
    if outcome is None:
        if status == -signal.SIGKILL:
            return f"it was killed at {size(peak)} of memory, of which {_memory()}: it needs more"
        if free < _FULL:
            return _disk_full(step, free)
        return f"its process ended with status {status}"
    if outcome.disk_full:
        return _disk_full(step, free)
    if outcome.out_of_memory:
        device = f" and {size(outcome.peak_device_bytes)} of the GPU's" if outcome.peak_device_bytes else ""
        return f"out of memory: it had {size(outcome.peak_bytes)}{device} and wanted more; {_memory()}: {outcome.error}"
    if outcome.error:
        return outcome.error
    if lacking := missing(step):
        return f"it ended without writing {step.result / lacking}"
    return ""


def missing(step: Step) -> str | None:
    """The first of a step's files that is not there."""
    return next((name for name in step.files if not (step.result / name).is_file()), None)


def lack_of_room(step: Step) -> str:
    """Why a step that has not run yet cannot: its disk has no room for what it surely writes; else empty."""
    needed, free = _least(step), shutil.disk_usage(step.folder).free
    if free >= needed:
        return ""
    return f"the disk has too little room: {size(free)} are free, {step.result} needs {size(needed)} or more"


def size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _disk_full(step: Step, free: int) -> str:
    """The exporter writes a graph, then the same with its layers fused, for each variant."""
    base = folder_bytes(_base(step))
    return f"the disk is full: {size(free)} are free, the step needs up to {size(max(3 * base, _least(step)))}"


def _least(step: Step) -> int:
    """Bytes of weights that a step writes, the base's being in two bytes each or more."""
    base = folder_bytes(_base(step))
    if step.name == "merge":
        return base
    if step.name == "quantize":
        return base // 8  # from float32
    if isinstance(step.spec, BaseSpec):
        try:
            whole = step.spec.precision != "int4" or awq.group_size(_base(step)) is not None
        except BuildFailed:
            whole = False
        variants = 2 if step.spec.device == "cuda" else 1
        return variants * base // (2 if whole else 8)
    return 0


def _base(step: Step) -> Path:
    return Path(step.workflow["input_model"]["model_path"])


def _memory() -> str:
    return f"this machine has {size(total_memory())}, {size(available_memory())} of them free"

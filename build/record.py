"""What one step of a build cost, as kept in the work folder and written into the bundle's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One finished step."""

    name: str
    """Such as `quantize`, `train travel`, `export` or `verify`."""
    seconds: float
    """Wall-clock time."""
    peak_bytes: int
    """Largest resident memory of the process that ran it."""
    peak_device_bytes: int = 0
    """Largest memory that torch had allocated on the GPU; 0 where the step used none."""
    output_bytes: int
    """Size of the files that it left."""


class FinishedStep(msgspec.Struct, frozen=True):
    """The record.json beside what a step left."""

    digest: str
    """Of everything that decides the result."""
    record: StepRecord


def read_records(files: Sequence[Path]) -> list[StepRecord]:
    """What is in those record.json files that are there."""
    return [msgspec.json.decode(file.read_bytes(), type=FinishedStep).record for file in files if file.is_file()]


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder; of the file, if it is one; 0 if there is nothing."""
    if folder.is_file():
        return folder.stat().st_size
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())

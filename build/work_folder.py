"""The work folder of a build, which belongs to one build at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from loraplex.build.errors import WorkFolderBusy
from loraplex.build.step import WORKFLOW

_LOCK = "lock"


def has_steps(work: Path) -> bool:
    """Whether a work folder holds steps of an earlier build."""
    return any(work.glob(f"*/{WORKFLOW}"))


@contextlib.contextmanager
def held(work: Path) -> Iterator[None]:
    """Make a work folder, if there is none, and keep other builds out of it. Raises WorkFolderBusy and OSError.

    The system lets go of it when this process ends, however it ends.
    """
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise WorkFolderBusy(f"another build runs in {work}: wait for it, or give another --work") from None
    try:
        yield
    finally:
        lock.release()


def check_free(work: Path) -> None:
    """Raise WorkFolderBusy where another build holds the folder; write nothing."""
    if (work / _LOCK).is_file():
        with held(work):
            pass

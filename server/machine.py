"""What this process may use of its machine: cores and memory, within the limits of its container.

A container sees the whole machine in /proc; its limits stand in the files of Linux's control groups, version 2 or 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores this process may run on. Hyperthreads count; of a limit of 2.5 CPUs, 2: a thread more would have all of
    them stand still for a part of every period."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        try:
            quota, period = _words(group / "cpu.max") or (
                _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
            )
            if int(quota) > 0:  # -1 is no limit in version 1
                cores = min(cores, int(quota) // int(period))
        except ValueError:  # "max" is no limit in version 2, and the outermost group has no file
            continue
    return max(1, cores)


def physical_cores() -> int:
    """Cores this process may run on; hyperthreads do not count, since decoding waits for memory, not for arithmetic."""
    usable = usable_cores()
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def total_memory() -> int:
    """Bytes that its machine, or its container, lets this process have."""
    return min([psutil.virtual_memory().total, *(limit for _, limit in _memory_limits())])


def available_memory() -> int:
    """Bytes that this process can take until its machine or its container has no more."""
    available = psutil.virtual_memory().available
    for group, limit in _memory_limits():
        try:
            (used,) = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
            available = min(available, limit - int(used) + _file_cache(group))
        except ValueError:
            continue
    return max(0, available)


def _memory_limits() -> Iterator[tuple[Path, int]]:
    """Groups that limit memory, each with its limit in bytes."""
    for group in _groups("memory"):
        try:
            (limit,) = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
            yield group, int(limit)
        except ValueError:  # "max" is no limit, and the outermost group has no file
            continue


def _file_cache(group: Path) -> int:
    """Bytes of files that nobody read lately: they count as used, and are given up for whoever asks."""
    words = _words(group / "memory.stat")
    values = dict(zip(words[::2], words[1::2], strict=True))
    return int(values.get("total_inactive_file") or values.get("inactive_file") or 0)  # the first is version 1's


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that limit this process: its own, and those around it as far as they are seen."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = CONTROL_GROUPS / controller if controllers else CONTROL_GROUPS
            own = root / path.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _words(file: Path) -> list[str]:
    """Of a control group's file; none where there is no such file."""
    try:
        return file.read_text().split()
    except OSError:
        return []

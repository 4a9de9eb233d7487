"""Cores and memory within a container's limits, from control groups as Linux writes them."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from loraplex.server import machine

MIB = 2**20


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of control groups without a limit."""
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "own").write_text("0::/\n")
    return tmp_path / "cgroup"


def write(group: Path, **files: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        controller, _, rest = name.partition("_")
        (group / f"{controller}.{rest}").write_text(text)


def test_without_limits_all_of_the_machine(groups: Path) -> None:
    write(groups, cpu_max="max 100000\n", memory_max="max\n", memory_current=f"{MIB}\n")
    assert machine.usable_cores() == 8
    assert machine.available_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert machine.total_memory() == psutil.virtual_memory().total


def test_without_control_groups_all_of_the_machine(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "OWN_GROUPS", groups / "nowhere")
    assert machine.usable_cores() == 8
    assert machine.available_memory() > 0


@pytest.mark.parametrize(("limit", "cores"), [("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1)])
def test_cores_of_version_2(groups: Path, limit: str, cores: int) -> None:
    write(groups, cpu_max=limit)
    assert machine.usable_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", 8)])
def test_cores_of_version_1(groups: Path, tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "own").write_text("2:cpu,cpuacct:/docker/abc\n0::/\n")
    write(groups / "cpu", cpu_cfs_quota_us=quota, cpu_cfs_period_us="100000")
    assert machine.usable_cores() == cores


def test_memory_of_version_2(groups: Path) -> None:
    stat = f"anon {20 * MIB}\ninactive_file {4 * MIB}\nactive_file {MIB}\n"
    write(groups, memory_max=f"{64 * MIB}", memory_current=f"{30 * MIB}", memory_stat=stat)
    assert machine.available_memory() == 38 * MIB
    assert machine.total_memory() == 64 * MIB


def test_memory_of_version_1(groups: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("4:memory:/docker/abc\n")
    stat = f"inactive_file 0\ntotal_inactive_file {4 * MIB}\n"
    write(
        groups / "memory",
        memory_limit_in_bytes=f"{64 * MIB}",
        memory_usage_in_bytes=f"{30 * MIB}",
        memory_stat=stat,
    )
    assert machine.available_memory() == 38 * MIB
    assert machine.total_memory() == 64 * MIB


def test_the_tightest_of_the_groups_around_counts(groups: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/pod/container\n")
    write(groups / "pod", cpu_max="300000 100000", memory_max=f"{64 * MIB}", memory_current=f"{60 * MIB}")
    write(groups / "pod/container", cpu_max="max 100000", memory_max=f"{48 * MIB}", memory_current=f"{8 * MIB}")
    assert machine.usable_cores() == 3
    assert machine.available_memory() == 4 * MIB
    assert machine.total_memory() == 48 * MIB


def test_more_used_than_allowed_is_nothing_left(groups: Path) -> None:
    write(groups, memory_max=f"{MIB}", memory_current=f"{2 * MIB}")
    assert machine.available_memory() == 0

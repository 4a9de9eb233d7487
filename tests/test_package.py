"""The wheel holds our packages and their data, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "build", "bench", "adapters")


@pytest.mark.slow
def test_the_wheel_holds_exactly_our_packages_and_the_demo(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools writes beside what it builds, where other tests' processes read
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
            *("--wheel-dir", str(tmp_path), str(source)),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    wanted = {
        f"loraplex/{name}"
        for name in tracked
        if name.endswith((".py", "py.typed", ".cpp", ".cu", ".cuh", ".h", ".jinja", "baseline.json"))
        or name.startswith("adapters/demo/")
    }
    assert held == wanted
    assert "loraplex/adapters/demo/bundle.json" in held

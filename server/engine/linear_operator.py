"""The compiled operator of `kernels/linear.cpp`: 4-bit linear layers with LoRA, on CPUs where it is the faster one.

No binary comes with loraplex: a C++ compiler of the machine makes it when a batched lane first starts, in some seconds.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

logger = logging.getLogger("loraplex.batched")

SOURCES = Path(__file__).parent / "kernels"
PREBUILT = SOURCES / "liblinear.so"
"""Where an image or a package may have put the operator; it is taken as it is."""
FILES = ("linear.cpp", "linear_kernels.h", "onnxruntime_custom_op.h")
OPTIONS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-mavx2", "-mfma", "-mf16c"]
COMPILE_TIMEOUT = 120.0
NEEDED = {"avx2", "fma", "f16c"}
BETTER = {"avx_vnni", "avx512_vnni", "avx512vnni"}
"""With instructions for 8-bit dot products onnxruntime has kernels that use them, and this operator does not."""


def user_cache() -> Path:
    """Where it is kept: what is made for a machine does not go with a bundle."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loraplex" / "operator"


def find_linear_operator(cache: Path, cpu_flags: frozenset[str] | None = None) -> Path | None:
    """The operator's library, compiled into `cache` unless it is there; None where it cannot be or should not be used.

    Without it onnxruntime's own operators compute the same, slower. `cpu_flags` are those of this CPU.
    """
    flags = _cpu_flags() if cpu_flags is None else cpu_flags
    if not flags >= NEEDED or flags & BETTER:
        return None
    if PREBUILT.is_file():
        return PREBUILT
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        logger.warning("no C++ compiler: int4 bases run on onnxruntime's own operators, which are slower on this CPU")
        return None
    try:
        return compile_linear_operator(compiler, cache)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning("the operator of 4-bit layers cannot be compiled, slower ones do: %s", reason.strip()[-500:])
        return None


def compile_linear_operator(compiler: str, cache: Path) -> Path:
    """Raises OSError and subprocess.SubprocessError."""
    digest = hashlib.sha256(f"{compiler} {OPTIONS}".encode())
    for name in FILES:
        digest.update((SOURCES / name).read_bytes())
    library = cache / f"liblinear-{digest.hexdigest()[:16]}.so"
    if library.is_file():
        return library
    logger.info("compiling the operator of 4-bit layers for this CPU, once")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compile-", dir=cache) as folder:
        draft = Path(folder) / library.name
        subprocess.run(
            [compiler, *OPTIONS, "-o", str(draft), str(SOURCES / "linear.cpp")],
            check=True,
            capture_output=True,
            text=True,
            timeout=COMPILE_TIMEOUT,
        )
        draft.replace(library)
    return library


def _cpu_flags() -> frozenset[str]:
    """As Linux names them; empty elsewhere."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))

"""The compiled operator of `kernels/linear.cpp`: 4-bit linear layers with LoRA, for x86-64 with AVX2 or AVX-512.

No binary comes with the package: a C++ compiler of the machine makes it when a lane first starts on a 4-bit base, in
some seconds. An image may bring it, as PREBUILT says.
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

logger = logging.getLogger("loraplex.operator")

SOURCES = Path(__file__).parent / "kernels"
PREBUILT = "liblinear-{}.so"
"""Beside the sources, by the name of an instruction set: taken as it is."""
FILES = (
    "linear.cpp",
    "linear_call.h",
    "linear_kernels.h",
    "linear_avx2.h",
    "linear_avx512.h",
    "huge_pages.h",
    "onnxruntime_custom_op.h",
)
OPTIONS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden"]
AVX2 = ("avx2", "fma", "f16c")
INSTRUCTION_SETS = {
    "avx512": (*AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    "avx2": AVX2,
}
"""What each needs, by Linux's names, the fastest first."""
COMPILE_TIMEOUT = 120.0


def user_cache() -> Path:
    """Where it is kept: what is made for a machine does not go with a bundle."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loraplex" / "operator"


def find_linear_operator(cache: Path, flags: frozenset[str] | None = None) -> Path | None:
    """The operator's library, compiled into `cache` unless it is there; None where it cannot be or should not be used.

    Without it onnxruntime's own operators compute the same, slower. `flags` are a CPU's; None means this one's.
    """
    flags = cpu_flags() if flags is None else flags
    name = next((name for name, needed in INSTRUCTION_SETS.items() if flags.issuperset(needed)), None)
    if name is None:
        logger.info("4-bit layers run on onnxruntime's own operators: ours need Linux on x86-64 with AVX2")
        return None
    library = SOURCES / PREBUILT.format(name)
    if not library.is_file():
        names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
        compiler = next((found for each in names if each and (found := shutil.which(each))), None)
        if compiler is None:
            logger.warning(
                "no C++ compiler: 4-bit layers run on onnxruntime's own operators, which take up to twice as long "
                "(apt install g++, and start again)"
            )
            return None
        try:
            library = compile_linear_operator(compiler, cache, name)
        except (OSError, subprocess.SubprocessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            logger.warning("the operator of 4-bit layers cannot be compiled, slower ones do: %s", reason.strip()[-500:])
            return None
    logger.info("4-bit layers run on the compiled operator, with %s", name)
    return library


def compile_linear_operator(compiler: str, cache: Path, name: str) -> Path:
    """The operator for one of INSTRUCTION_SETS. Raises OSError and subprocess.SubprocessError."""
    options = [*OPTIONS, *(f"-m{flag.replace('_', '')}" for flag in INSTRUCTION_SETS[name])]
    digest = hashlib.sha256(f"{compiler} {options}".encode())
    for file in FILES:
        digest.update((SOURCES / file).read_bytes())
    library = cache / f"liblinear-{name}-{digest.hexdigest()[:16]}.so"
    if library.is_file():
        return library
    logger.info("compiling the operator of 4-bit layers for this CPU, once")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compile-", dir=cache) as folder:
        draft = Path(folder) / library.name
        subprocess.run(
            [compiler, *options, "-o", str(draft), str(SOURCES / "linear.cpp")],
            check=True,
            capture_output=True,
            text=True,
            timeout=COMPILE_TIMEOUT,
        )
        draft.replace(library)
    return library


def cpu_flags() -> frozenset[str]:
    """Of this CPU, as Linux names them; empty elsewhere."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))

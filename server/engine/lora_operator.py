"""The compiled LoRA operator of `kernels/lora.cu`: compiling it, and writing adapters into it.

No binary comes with loraplex: the operator is compiled for the GPUs at hand when a routed lane first starts on them, in
some seconds, by the nvcc of a CUDA toolkit (on the PATH, in CUDA_HOME or from NVIDIA's Python packages).
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import weakref
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loraplex.server.engine.gpu import compute_capabilities

logger = logging.getLogger("loraplex.routed")

SOURCES = Path(__file__).parent / "kernels"
PREBUILT = SOURCES / "liblora.so"
"""Where an image or a package may have put the operator, compiled for its GPUs; it is taken as it is."""
COMPILE_TIMEOUT = 300.0
LEAST_CAPABILITY = 8.0
"""The kernels' tensor core instruction came with it."""


def find_operator(cache: Path) -> Path | None:
    """The operator's library, compiled into `cache` unless it is there; None, with a line in the log, where it cannot.

    Without it branches are made of stock operators, which compute the same.
    """
    capabilities = compute_capabilities()
    if old := [capability for capability in capabilities if float(capability) < LEAST_CAPABILITY]:
        logger.warning(
            "a GPU of compute capability %s: the LoRA operator needs %s, stock operators take its place, slower and "
            "with a relink for every new adapter",
            old[0],
            LEAST_CAPABILITY,
        )
        return None
    if PREBUILT.is_file():
        return PREBUILT
    if (nvcc := _find_nvcc()) is None:
        logger.warning(
            "no nvcc: LoRA branches are made of stock operators, slower and with a relink for every new adapter; "
            "install the CUDA toolkit, or add its nvcc to the PATH, and a C++ compiler"
        )
        return None
    try:
        return compile_operator(nvcc, cache, capabilities)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning(
            "the LoRA operator cannot be compiled, stock operators take its place: %s", reason.strip()[-500:]
        )
        return None


def compile_operator(nvcc: Path, cache: Path, capabilities: list[str]) -> Path:
    """Compile for these compute capabilities ("9.0"), or for the GPUs that nvcc sees where none is given.

    Raises OSError and subprocess.SubprocessError.
    """
    digest = hashlib.sha256(f"{nvcc} {nvcc.stat().st_mtime_ns} {capabilities}".encode())
    for file in (*sorted(SOURCES.glob("lora*.cu*")), SOURCES / "onnxruntime_custom_op.h"):
        digest.update(file.read_bytes())
    library = cache / f"liblora-{digest.hexdigest()[:16]}.so"
    if library.is_file():
        return library
    logger.info("compiling the LoRA operator for compute capability %s, once", ", ".join(capabilities) or "native")
    numbers = [capability.replace(".", "") for capability in capabilities]
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers] or ["-arch=native"]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compile-", dir=cache) as folder:
        draft = Path(folder) / library.name
        options = ["-O3", "-std=c++17", "-shared", "-Xcompiler=-fPIC,-fvisibility=hidden", *targets]
        subprocess.run(
            [str(nvcc), *options, "-o", str(draft), str(SOURCES / "lora.cu")],
            check=True,
            capture_output=True,
            text=True,
            timeout=COMPILE_TIMEOUT,
        )
        draft.replace(library)
    return library


def _find_nvcc() -> Path | None:
    homes = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = shutil.which("nvcc") or next((path for home in homes if (path := shutil.which("nvcc", path=home))), None)
    if found:
        return Path(found)
    nvidia = find_spec("nvidia")
    locations = list(nvidia.submodule_search_locations or ()) if nvidia else []
    packages = [file for location in locations for file in Path(location).glob("*/bin/nvcc")]
    return max([*packages, *Path("/usr/local").glob("cuda*/bin/nvcc")], default=None)


class Bank:
    """The slots of the model that was loaded last, which must outlive this object."""

    def __init__(self, library: Path) -> None:
        """`library` is the file that the model's folder names. Raises RuntimeError where nothing was loaded with it."""
        self._library = ctypes.CDLL(str(library))
        self._library.LoraplexAdoptBank.restype = ctypes.c_void_p
        self._library.LoraplexDropBank.argtypes = (ctypes.c_void_p,)
        self._library.LoraplexSlotBytes.argtypes = (ctypes.c_void_p,)
        self._library.LoraplexSlotBytes.restype = ctypes.c_uint64
        self._library.LoraplexWriteSlot.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
        self._library.LoraplexAllocateHost.argtypes = (ctypes.c_uint64,)
        self._library.LoraplexAllocateHost.restype = ctypes.c_void_p
        self._library.LoraplexFreeHost.argtypes = (ctypes.c_void_p,)
        self._library.LoraplexErrorText.argtypes = (ctypes.c_int,)
        self._library.LoraplexErrorText.restype = ctypes.c_char_p
        self._bank = self._library.LoraplexAdoptBank()
        self.slot_bytes: int = self._library.LoraplexSlotBytes(self._bank) if self._bank else 0
        if not self.slot_bytes:
            raise RuntimeError("the model has no LoRA operators")

    def __del__(self) -> None:
        if getattr(self, "_bank", None):
            self._library.LoraplexDropBank(self._bank)

    def allocate(self) -> npt.NDArray[np.float16]:
        """Host memory for one slot, pinned if there is any left, which `write` copies from several times as fast.

        Like `write`, and like dropping the last reference to the array, not while the engine runs a step.
        """
        if not (address := self._library.LoraplexAllocateHost(self.slot_bytes)):
            return np.empty(self.slot_bytes // 2, np.float16)
        memory = (ctypes.c_uint16 * (self.slot_bytes // 2)).from_address(address)
        weakref.finalize(memory, self._library.LoraplexFreeHost, address).atexit = False
        return np.ctypeslib.as_array(memory).view(np.float16)

    def write(self, slot: int, adapter: npt.NDArray[np.float16]) -> None:
        """Copy an adapter, as `fused.Layout.pack` lays it out, into a slot, from 1 on. Raises RuntimeError."""
        if adapter.nbytes != self.slot_bytes or not adapter.flags.c_contiguous:
            raise RuntimeError(f"an adapter of {adapter.nbytes} bytes does not fit a slot of {self.slot_bytes}")
        if error := self._library.LoraplexWriteSlot(self._bank, slot, adapter.ctypes.data):
            raise RuntimeError(self._library.LoraplexErrorText(error).decode())

"""The checks an adapter passes before any lane sees it.

onnxruntime verifies that an `.onnx_adapter` file is a well-formed flatbuffer and nothing more: weights trained for
another base of the same shapes run silently wrong, a flipped byte in a weight loads, and a wrong name or shape fails
only inside the first forward pass. Everything that can be told without a forward pass is therefore told here.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loraplex.server.bundle import AdapterManifest, Base, Dtype, inside, read_adapter_manifest, sha256
from loraplex.server.errors import AdapterInvalid, BundleInvalid

if TYPE_CHECKING:
    from onnxruntime import OrtValue

_ELEMENT_TYPES: dict[str, Dtype] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
}


def check_adapter(folder: Path, base: Base) -> AdapterManifest:
    """Read and check the adapter in `folder` for this base; return its manifest.

    Checked in this order: adapter.json; its file and chat template lie in the folder and exist; base fingerprint and
    dtype; the file's SHA-256; that it is an adapter file; and of its tensors: names, that A and B come in pairs,
    shapes against the base, the rank of A, of B and of adapter.json, dtype, finite values. A 100 MB file takes about
    0.2 s. Raises AdapterInvalid with one line that names the adapter and the reason.
    """
    manifest = read_adapter_manifest(folder)
    name = folder.name
    try:
        path = inside(folder, manifest.file)
        template = inside(folder, manifest.chat_template) if manifest.chat_template is not None else None
    except BundleInvalid as error:
        raise AdapterInvalid(f"adapter {name}: {error.message}") from None
    for wanted in (path, template):
        if wanted is None:
            continue
        if not wanted.is_file():
            raise AdapterInvalid(f"adapter {name}: adapter.json names {wanted.name}, but there is no such file")
        if not wanted.resolve().is_relative_to(folder.resolve()):
            raise AdapterInvalid(f"adapter {name}: {wanted.name} is a link that leads out of the adapter's folder")
    if manifest.base_fingerprint != base.fingerprint:
        raise AdapterInvalid(
            f"adapter {name}: made for another base ({_short(manifest.base_fingerprint)}) than {base.name} "
            f"({_short(base.fingerprint)})"
        )
    if manifest.dtype != base.dtype:
        raise AdapterInvalid(f"adapter {name}: its dtype is {manifest.dtype}, the base's is {base.dtype}")
    try:
        digest = sha256(path)
    except OSError as error:
        raise AdapterInvalid(f"adapter {name}: {path.name} cannot be read: {error.strerror}") from None
    if digest != manifest.sha256:
        raise AdapterInvalid(
            f"adapter {name}: {path.name} is damaged or was replaced: its SHA-256 is {digest[:12]}..., "
            f"adapter.json says {manifest.sha256[:12]}..."
        )
    _check_tensors(name, path, manifest, base)
    return manifest


def _check_tensors(name: str, path: Path, manifest: AdapterManifest, base: Base) -> None:
    # Imported late: whoever starts the process decides about onnxruntime's telemetry before it is loaded.
    from onnxruntime import AdapterFormat

    try:
        # The values are views of memory that the returned object owns.
        tensors = AdapterFormat.read_adapter(str(path)).get_parameters()
    # A file that is wrong in its tables raises RuntimeError, one with names that are no UTF-8 UnicodeDecodeError.
    except (RuntimeError, ValueError):
        raise AdapterInvalid(f"adapter {name}: {path.name} is not an adapter file of onnxruntime") from None
    if not tensors:
        raise AdapterInvalid(f"adapter {name}: {path.name} has no tensors")
    sides: dict[str, dict[str, OrtValue]] = {}
    for tensor, value in tensors.items():
        projection, side = _parse(tensor)
        if projection not in base.projections:
            raise AdapterInvalid(f"adapter {name}: {tensor} belongs to no projection of {base.name}")
        sides.setdefault(projection, {})[side] = value
    if sides.keys() != manifest.ranks.keys():
        odd = min(sides.keys() ^ manifest.ranks.keys())
        where = (
            "in adapter.json but not in its file" if odd in manifest.ranks else "in its file but not in adapter.json"
        )
        raise AdapterInvalid(f"adapter {name}: {odd} is {where}")
    for projection, pair in sides.items():
        if missing := {"A", "B"} - pair.keys():
            raise AdapterInvalid(f"adapter {name}: {projection} has no lora_{missing.pop()}")
        rank, (rows, columns) = manifest.ranks[projection], base.projections[projection]
        for side, expected in (("A", (rows, rank)), ("B", (rank, columns))):
            _check_tensor(name, f"{projection}.lora_{side}", pair[side], expected, base.dtype)


def _check_tensor(name: str, tensor: str, value: OrtValue, expected: tuple[int, int], dtype: Dtype) -> None:
    found = _ELEMENT_TYPES.get(value.data_type(), value.data_type())
    if found != dtype:
        raise AdapterInvalid(f"adapter {name}: {tensor} is {found}, the base needs {dtype}")
    shape = tuple(value.shape())
    if shape != expected:
        raise AdapterInvalid(
            f"adapter {name}: {tensor} has the shape {list(shape)}, base and adapter.json need {list(expected)}"
        )
    if not _is_finite(value, dtype):
        raise AdapterInvalid(f"adapter {name}: {tensor} has values that are not finite")


def _is_finite(value: OrtValue, dtype: Dtype) -> bool:
    if dtype != "bfloat16":
        return bool(np.isfinite(value.numpy()).all())
    # numpy has no bfloat16. An exponent of ones only, below the sign, is an infinity or NaN.
    size = math.prod(value.shape())
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * size).from_address(value.data_ptr()))
    return bool(((bits & 0x7F80) != 0x7F80).all())


def _parse(tensor: str) -> tuple[str, str]:
    """Projection and side of a tensor name; two empty strings where it is of another form."""
    for side in ("A", "B"):
        if tensor.startswith("model.layers.") and tensor.endswith(f".lora_{side}.weight"):
            return tensor.removeprefix("model.layers.").removesuffix(f".lora_{side}.weight"), side
    return "", ""


def _short(fingerprint: str) -> str:
    return f"{fingerprint[:19]}..."

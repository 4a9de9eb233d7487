"""A base checkpoint on disk: where it is, what its config says and which tensors its safetensors files hold.

Only the headers of the weight files are read here, so everything in this module is quick at any size.
"""

from __future__ import annotations

import json
import operator
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraplex.build.errors import CheckpointUnsupported, first_line

_DOWNLOADED = ["*.json", "*.jinja", "*.model", "*.txt", "model*.safetensors"]
_HEADER_LIMIT = 100_000_000
"""Bytes; the limit that the safetensors library itself sets."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: `dtype` as the file spells it (F32, BF16, ...), `start` and `end` in bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def locate(checkpoint: Path | str, *, revision: str | None = None) -> Path:
    """Folder of a checkpoint: a local folder as it is, or a Hugging Face id, downloaded into the Hugging Face cache.

    Code that a repository brings along is neither downloaded nor run. Raises CheckpointUnsupported.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    if isinstance(checkpoint, Path) or checkpoint.count("/") > 1 or checkpoint.startswith((".", "/", "~")):
        raise CheckpointUnsupported(f"there is no checkpoint folder {checkpoint}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(checkpoint, revision=revision, allow_patterns=_DOWNLOADED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointUnsupported(
            f"{checkpoint} is neither a folder nor a checkpoint that can be downloaded: {first_line(error)}"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json. Raises CheckpointUnsupported where it is missing or not a JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointUnsupported(f"{folder} is not a checkpoint: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise CheckpointUnsupported(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointUnsupported(f"{path} is not a JSON object")
    return config


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by name, from the files that transformers would load.

    That is `model.safetensors` or else the shards of `model.safetensors.index.json`; other safetensors files, such as
    Mistral's `consolidated.safetensors`, are second copies. Raises CheckpointUnsupported where there are none (pickle
    files are refused), where one is damaged and where two hold one name.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        files = [folder / name for name in sorted(_shards(index))]
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise CheckpointUnsupported(f"{folder} has only pickled weights, which can run code: save it as safetensors")
    else:
        raise CheckpointUnsupported(f"{folder} has no model.safetensors and no model.safetensors.index.json")
    found: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in found:
                raise CheckpointUnsupported(f"{folder}: {name} is both in {found[name].file.name} and in {file.name}")
            found[name] = tensor
    return found


def _shards(index: Path) -> set[str]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointUnsupported(f"{index} has no readable weight_map: {error}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointUnsupported(f"{index}: {name!r} is not the name of a safetensors file beside it")
    return names


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file by name. Raises CheckpointUnsupported where it is missing or damaged."""
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > _HEADER_LIMIT:
                raise ValueError(f"a header of {length} bytes")
            header: Mapping[str, Any] = json.loads(handle.read(length))
        size = file.stat().st_size
        tensors = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            if not 8 + length <= start <= end <= size:
                raise ValueError(f"{name} lies outside the file")
            shape = tuple(operator.index(size) for size in entry["shape"])
            tensors[name] = StoredTensor(file, str(entry["dtype"]), shape, start, end)
    except FileNotFoundError:
        raise CheckpointUnsupported(f"{file.parent} is incomplete: {file.name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointUnsupported(f"{file} is not a whole safetensors file: {error}") from None
    return tensors

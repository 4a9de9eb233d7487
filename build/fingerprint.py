"""The fingerprint of a base checkpoint: adapters carry it, and one trained for another checkpoint is refused by it.

Definition: the SHA-256 of

1. config.json without the keys of `NOT_DEFINING` and, in its quantization_config, of `NOT_QUANTIZING`, as JSON with
   sorted keys and no spaces, in UTF-8, and a newline;
2. for every tensor, in the order of the names' code points: the JSON list `[name, dtype, shape]` in the same form and
   a newline, then the tensor's bytes as they are stored.

So it does not depend on file names, on how the weights are sharded, on the order inside a file or on file times. It
does depend on the stored dtype: a float16 copy of a float32 checkpoint is another checkpoint, because adapters trained
on one are not exact on the other, and so is a quantized one, whose `quantization_config` is part of the config.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from loraplex.build.checkpoint import read_config, read_tensors

NOT_DEFINING = frozenset({"_name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype", "use_cache"})
"""Keys of config.json that tell how a checkpoint was saved or is run, not what it computes.

The dtype is among them because its key was renamed between transformers versions; the tensors' own dtypes count.
"""

NOT_QUANTIZING = frozenset(
    {"backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "meta", "modules_to_fuse", "pack_dtype"}
)
"""Keys of quantization_config that tell which program quantized, or which kernels are to be used."""

_BLOCK = 1 << 22


def fingerprint(folder: Path) -> str:
    """Fingerprint of a checkpoint folder as "sha256:" and 64 hex digits. Reads every weight once (about 1 GB/s).

    Raises CheckpointUnsupported where config.json or safetensors weights are missing or damaged.
    """
    config = {key: value for key, value in read_config(folder).items() if key not in NOT_DEFINING}
    if isinstance(quantization := config.get("quantization_config"), dict):
        config["quantization_config"] = {k: v for k, v in quantization.items() if k not in NOT_QUANTIZING}
    digest = hashlib.sha256(_canonical(config))
    block = memoryview(bytearray(_BLOCK))
    for name, tensor in sorted(read_tensors(folder).items()):
        digest.update(_canonical([name, tensor.dtype, tensor.shape]))
        with tensor.file.open("rb", buffering=0) as handle:
            handle.seek(tensor.start)
            left = tensor.end - tensor.start
            while left and (count := handle.readinto(block[: min(left, _BLOCK)])):
                digest.update(block[:count])
                left -= count
    return f"sha256:{digest.hexdigest()}"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

"""AWQ-format checkpoints made from float ones, by asymmetric rounding to nearest instead of AWQ's search.

The packing is written from the format's description, independently of `loraplex.build.awq`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

COLUMN_OF_NIBBLE = [0, 2, 4, 6, 1, 3, 5, 7]


def pack(values: Any) -> Any:
    """Integers [rows, columns] below 16 to int32 [rows, columns / 8] as `WQLinear_GEMM.from_linear` packs them."""
    import numpy as np

    packed = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
    for nibble, column in enumerate(COLUMN_OF_NIBBLE):
        packed |= values[:, column::8].astype(np.uint32) << np.uint32(4 * nibble)
    return packed.view(np.int32)


def make_awq(checkpoint: Path, folder: Path, group_size: int = 32, **config: Any) -> Path:
    """Write an AWQ checkpoint of a float one; `config` goes into its quantization_config. Returns folder."""
    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors.pop(name).float().numpy().T
        groups = weight.reshape(-1, group_size, weight.shape[1])
        low, high = np.minimum(groups.min(1), 0), np.maximum(groups.max(1), 0)
        scales = np.maximum((high - low) / 15, 1e-4).astype(np.float16)
        zeros = np.clip(np.rint(-low / scales), 0, 15)
        steps = np.clip(np.rint(groups / scales[:, None]) + zeros[:, None], 0, 15).reshape(weight.shape)
        prefix = name.removesuffix("weight")
        for part, values in (("qweight", pack(steps)), ("qzeros", pack(zeros)), ("scales", scales)):
            tensors[prefix + part] = torch.from_numpy(np.ascontiguousarray(values))
    save_file(
        {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    fields["quantization_config"] = {
        **{"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm"},
        **config,
    }
    fields["dtype"] = "float16"
    path.write_text(json.dumps(fields, indent=2))
    return folder

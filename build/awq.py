"""AWQ checkpoints: what is in them, and the float weights that their int4 weights stand for.

The format is AutoAWQ's `gemm` (`awq/modules/linear/gemm.py`, `awq/utils/packing_utils.py`), which gptqmodel writes too:
a linear layer has

    qweight  int32 [in_features, out_features / 8]
    qzeros   int32 [in_features / group_size, out_features / 8]
    scales   float [in_features / group_size, out_features]

and weight = (q - zero) * scale. Eight columns share an int32: the i-th four bits, from the lowest, are those of column
`_ORDER[i]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loraplex.build.checkpoint import StoredTensor, read_config, read_tensors
from loraplex.build.errors import CheckpointUnsupported

if TYPE_CHECKING:
    import torch

PARTS = ("qweight", "qzeros", "scales")
"""The tensors of a linear layer."""

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_FORMAT_KEYS = ("version", "checkpoint_format", "format")
"""AutoAWQ's name of the key, then gptqmodel's, older and newer."""
_LINEAR = re.compile(r"model\.layers\.\d+\.(?:self_attn|mlp)\.\w+_proj")


def group_size(folder: Path) -> int | None:
    """Weights to a scale where a checkpoint is quantized by AWQ; None where it is not quantized at all.

    Reads no weights, only their headers. Raises CheckpointUnsupported for other quantizations, for other AWQ formats
    than gemm, and where not all linear layers of the decoder are quantized.
    """
    quantization = read_config(folder).get("quantization_config")
    if not quantization:
        return None
    if (method := quantization.get("quant_method")) != "awq":
        raise CheckpointUnsupported(
            f"{folder} is quantized already ({method}); give the checkpoint it was made from, or one quantized by AWQ"
        )
    format_ = next((str(quantization[key]).lower() for key in _FORMAT_KEYS if quantization.get(key)), "gemm")
    if format_ != "gemm" or quantization.get("bits", 4) != 4 or quantization.get("desc_act"):
        raise CheckpointUnsupported(
            f"{folder} is AWQ of format {format_} with {quantization.get('bits', 4)} bits"
            f"{' in activation order' if quantization.get('desc_act') else ''}; bundles take gemm with 4 bits"
        )
    size = quantization.get("group_size")
    if not isinstance(size, int) or size <= 0:
        raise CheckpointUnsupported(f"{folder} has group_size {size}; bundles take a fixed number of weights")
    _check_linears(folder, read_tensors(folder), size)
    return size


def _check_linears(folder: Path, tensors: Mapping[str, StoredTensor], size: int) -> None:
    for name in sorted({match[0] for name in tensors if (match := _LINEAR.match(name))}):
        parts = [tensors.get(f"{name}.{part}") for part in PARTS]
        if None in parts or f"{name}.g_idx" in tensors:
            raise CheckpointUnsupported(
                f"{folder}: {name} is not quantized as AWQ does it; bundles take checkpoints with every linear layer "
                "of the decoder in int4"
            )
        qweight, qzeros, scales = (part.shape for part in parts if part)
        rows, packed = qweight if len(qweight) == 2 else (0, 0)
        if rows % size or qzeros != (rows // size, packed) or scales != (rows // size, 8 * packed):
            raise CheckpointUnsupported(
                f"{folder}: {name} has qweight {list(qweight)}, qzeros {list(qzeros)} and scales {list(scales)}, which "
                f"do not fit groups of {size}"
            )


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """int32 [rows, columns / 8] to uint8 [rows, columns], values 0 to 15."""
    import torch

    shifts = torch.empty(8, dtype=torch.int32)
    shifts[list(_ORDER)] = torch.arange(0, 32, 4, dtype=torch.int32)
    return ((packed[:, :, None] >> shifts) & 15).to(torch.uint8).flatten(1)


def dequantize(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 weight [out_features, in_features], exactly: a product of a small integer and a float16 fits."""
    size = qweight.shape[0] // qzeros.shape[0]
    steps = unpack(qweight).float().unflatten(0, (-1, size)) - unpack(qzeros).float()[:, None]
    weight: torch.Tensor = (steps * scales.float()[:, None]).flatten(0, 1).T.contiguous()
    return weight

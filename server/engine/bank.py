"""The bank: the LoRA weights of all linked adapters, merged branch by branch.

A *branch* is what the linear layers of a graph that read the same tensor have in common: their A matrices stand side
by side in one matrix, so one product serves all of them and all adapters. Each column of the merged A belongs to one
adapter, which is what the routing mask goes by.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loraplex.server.errors import AdapterInvalid

Matrix = npt.NDArray[Any]
NOBODY = -1
"""Owner of the columns that only fill a branch up to a multiple of ALIGNMENT."""
ALIGNMENT = 8
"""Tensor cores take float16 matrices whose sides are multiples of 8; others go through slower kernels."""


class AdapterWeights:
    """The matrices of one `.onnx_adapter` file, as views of memory that this object owns."""

    def __init__(self, file: Path) -> None:
        """Raises AdapterInvalid where the file cannot be read as an adapter."""
        from onnxruntime import AdapterFormat

        try:
            self._format = AdapterFormat.read_adapter(str(file))
            self._tensors = self._format.get_parameters()
        except (RuntimeError, ValueError) as error:  # ValueError of names that are no UTF-8
            raise AdapterInvalid(f"{file} cannot be read as an adapter: {error}") from None

    def find(self, projection: str) -> tuple[Matrix, Matrix] | None:
        """A [in_features, rank] and B [rank, out_features] of a projection, None where the adapter leaves it alone."""
        names = [f"model.layers.{projection}.lora_{side}.weight" for side in "AB"]
        if names[0] not in self._tensors:
            return None
        a, b = (_array(self._tensors[name]) for name in names)
        return a, b


def is_adapter(file: Path) -> bool:
    """Whether a file can be read as an adapter."""
    try:
        AdapterWeights(file)
    except (OSError, AdapterInvalid):
        return False
    return True


@dataclass(frozen=True)
class Merged:
    """One branch over all adapters.

    `down` is [in_features, columns]. `ups` has one [columns, out_features] matrix for each linear layer of the branch,
    or None where no adapter touches it. `owners` gives the adapter of each column, by its index.
    """

    down: Matrix
    ups: list[Matrix | None]
    owners: tuple[int, ...]


def merge(linears: Sequence[Mapping[str, int]], adapters: Sequence[AdapterWeights]) -> Merged | None:
    """Merge the branch of some linear layers, each given as its projections with their out_features, in order.

    Projections of one adapter whose A matrices are equal, as those of a layer that is packed in the checkpoint, share
    their columns. None where no adapter touches the branch.
    """
    downs: list[Matrix] = []
    owners: list[int] = []
    # (linear, first output feature, first column, B)
    blocks: list[tuple[int, int, int, Matrix]] = []
    for owner, adapter in enumerate(adapters):
        own: list[tuple[Matrix, int]] = []
        for index, projections in enumerate(linears):
            feature = 0
            for projection, width in projections.items():
                if pair := adapter.find(projection):
                    a, b = pair
                    column = next((column for known, column in own if np.array_equal(known, a)), None)
                    if column is None:
                        column = len(owners)
                        own.append((a, column))
                        downs.append(a)
                        owners += [owner] * a.shape[1]
                    blocks.append((index, feature, column, b))
                feature += width
    if not blocks:
        return None
    if fill := -len(owners) % ALIGNMENT:
        downs.append(np.zeros((downs[0].shape[0], fill), downs[0].dtype))
        owners += [NOBODY] * fill
    ups: list[Matrix | None] = [None] * len(linears)
    for index, feature, column, b in blocks:
        if (up := ups[index]) is None:
            up = ups[index] = np.zeros((len(owners), sum(linears[index].values())), b.dtype)
        up[column : column + b.shape[0], feature : feature + b.shape[1]] = b
    return Merged(np.concatenate(downs, axis=1), ups, tuple(owners))


def _array(value: Any) -> Matrix:
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    # numpy has no bfloat16 of its own, so the value can only be reached through its address.
    import ml_dtypes

    shape = tuple(value.shape())
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * math.prod(shape)).from_address(value.data_ptr()))
    return bits.reshape(shape).view(ml_dtypes.bfloat16)

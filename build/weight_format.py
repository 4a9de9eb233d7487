"""How an export stores the weights of linear layers: as options of the model builder, and as a check of its graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from loraplex.build.builder import HEAD_NODE, Device, Precision
from loraplex.build.errors import CheckpointUnsupported, ExportFailed
from loraplex.build.support import check_quantizable, is_quantizable
from loraplex.server.bundle import Dtype, Quantization

Algorithm = Literal["rtn", "k_quant", "awq"]
Head = Literal["float", "int8", "int4"]
AccuracyLevel = Literal[0, 1, 4]


@dataclass(frozen=True)
class WeightFormat:
    """Precision and, for int4, group size (weights to a scale), algorithm and precision of the LM head.

    `awq` takes a checkpoint's own int4 weights as they are. The embedding is never quantized. `accuracy_level` 4 lets
    the CPU round activations to int8 block by block, 1 compute in float32, 0 leaves it to onnxruntime; CUDA has no use
    for it.
    """

    precision: Precision
    device: Device
    group_size: int
    algorithm: Algorithm
    head: Head
    accuracy_level: AccuracyLevel

    @classmethod
    def choose(
        cls,
        folder: Path,
        precision: Precision,
        device: Device,
        *,
        awq_group_size: int | None,
        group_size: int | None = None,
        algorithm: Algorithm | None = None,
        head: Head = "int8",
        accuracy_level: AccuracyLevel | None = None,
    ) -> WeightFormat:
        """Fill in what is not given: k_quant, groups of 32 on a CPU and of 128 on CUDA (64 or 32 where k_quant cannot
        pack so many), level 4 on a CPU and 0 on CUDA.

        `awq_group_size` is that of an AWQ checkpoint, which decides both group size and algorithm; None otherwise.
        Raises CheckpointUnsupported where the checkpoint in `folder` cannot be stored so.
        """
        if awq_group_size is not None:
            given = {"precision": precision, "algorithm": algorithm or "awq", "group_size": group_size}
            kept = {"precision": "int4", "algorithm": "awq", "group_size": group_size and awq_group_size}
            for option, value in kept.items():
                if given[option] != value:
                    raise CheckpointUnsupported(
                        f"{folder} is quantized by AWQ in groups of {awq_group_size}, so {option} {given[option]} "
                        "cannot be had from it: leave the option out or give the checkpoint it was made from"
                    )
            group_size, algorithm = awq_group_size, "awq"
        elif algorithm == "awq":
            raise CheckpointUnsupported(f"{folder} is not quantized by AWQ: quantize it first")
        algorithm = algorithm or "k_quant"
        if (precision == "float16") != (device == "cuda") and precision != "int4":
            own = "float32" if device == "cpu" else "float16"
            raise CheckpointUnsupported(f"precision {precision} is not made for {device}: take {own} or int4")
        sizes = (group_size,) if group_size else (32,) if device == "cpu" else (128, 64, 32)
        group_size = sizes[-1]
        if precision == "int4":
            group_size = next((size for size in sizes if is_quantizable(folder, size, algorithm)), group_size)
            check_quantizable(folder, group_size, algorithm)
        if accuracy_level is None or device == "cuda":
            accuracy_level = 4 if device == "cpu" else 0
        return cls(precision, device, group_size, algorithm, head, accuracy_level)

    @property
    def dtype(self) -> Dtype:
        """Of activations, and so of LoRA inputs."""
        return "float32" if self.device == "cpu" else "float16"

    @property
    def quantization(self) -> Quantization:
        """As the bundle's manifest has it."""
        if self.precision == "int4":
            return Quantization(self.algorithm, 4, self.group_size)
        return Quantization("none", 32 if self.precision == "float32" else 16)

    def options(self) -> dict[str, object]:
        """Options of the model builder, in the spelling of 0.18."""
        if self.precision != "int4":
            return {}
        options: dict[str, object] = {
            # Of an AWQ checkpoint this quantizes the head alone.
            "algo_config": "rtn" if self.algorithm == "awq" else self.algorithm,
            "block_size": self.group_size,
            "accuracy_level": self.accuracy_level,
        }
        match self.head:
            case "float":
                options["nodes_to_exclude"] = HEAD_NODE
            case "int8":
                options["matmul_mixed_precision"] = "last_matmul:int8"
        return options

    def check(self, graph: onnx.GraphProto) -> None:
        """Compare every linear layer with what was asked for. Raises ExportFailed."""
        constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
        for node in graph.node:
            is_head = node.name.startswith(HEAD_NODE)
            plain = self.precision != "int4" or (is_head and self.head == "float")
            if node.op_type == "MatMul" and not plain and node.input[1] in constants:
                raise ExportFailed(f"{node.name} was not quantized")
            if node.op_type != "MatMulNBits":
                continue
            if plain:
                raise ExportFailed(f"{node.name} was quantized, although it was to stay {self.dtype}")
            found = {attribute.name: attribute.i for attribute in node.attribute}
            wanted = {"bits": 8 if is_head and self.head == "int8" else 4, "block_size": self.group_size}
            # The operator's defaults: bits 4, accuracy_level 0, no default for block_size.
            for option, value in (wanted | {"accuracy_level": self.accuracy_level}).items():
                if (actual := found.get(option, 4 if option == "bits" else 0)) != value:
                    raise ExportFailed(f"{node.name} has {option} {actual}, {value} was asked for")
            if constants[node.input[2]] != onnx.TensorProto.DataType.Value(_ONNX_NAMES[self.dtype]):
                raise ExportFailed(f"{node.name} has scales of another dtype than {self.dtype}")


_ONNX_NAMES: dict[Dtype, str] = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}

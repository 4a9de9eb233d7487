"""What a recipe says: the fields of the YAML file, with their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from loraplex.build.builder import Device, Precision
from loraplex.build.weight_format import Head
from loraplex.server.bundle import Sampling

Algorithm = Literal["awq", "rtn", "k_quant", "none"]
Method = Literal["lora", "qlora"]
Positive = Annotated[int, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class Dataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A dataset of the Hugging Face hub, or a folder that `datasets.load_dataset` takes."""

    dataset: str
    subset: str | None = None
    split: str = "train"


Source = str | Dataset
"""A .json or .jsonl file, relative to the recipe, or a URL that fsspec opens (azureml:// with azureml-fsspec)."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Text that AWQ looks at to find out which weights matter."""

    data: Source
    text_template: str | None = None
    """As for an adapter; without it every row has a `text`."""
    samples: Positive = 128
    sequence_length: Positive = 512
    """Tokens."""


class QuantizationRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    algorithm: Algorithm = "k_quant"
    group_size: Literal[16, 32, 64, 128, 256] | None = None
    """Weights to a scale; 32 on a CPU and 128 on CUDA unless given."""
    calibration: Calibration | None = None
    """For awq alone; the adapters' training rows unless given."""


class AdapterRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One adapter: a folder that PEFT saved (`peft`), or rows to train it on (`data`)."""

    peft: str | None = None
    data: Source | None = None
    text_template: str | None = None
    """The whole text of a row, special tokens included, with {column} where a column goes."""
    chat_template: bool = False
    """Instead of a text_template: rows have `messages`, put together by the base's chat template."""
    response_template: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    """Text that every answer begins with: only what follows its last occurrence in a row is learned."""
    add_special_tokens: bool = False
    """Put BOS, a space, the text, a space and EOS together, as Olive does."""
    max_seq_len: Positive = 1024
    """Tokens of a row at most; what is longer is cut."""
    method: Method = "lora"
    rank: Positive = 16
    alpha: Annotated[float, msgspec.Meta(gt=0)] = 32.0
    dropout: Share = 0.05
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    use_rslora: bool = False
    training: dict[str, Any] = {}
    """Arguments of transformers.TrainingArguments, by their names."""
    evaluation_data: Source | None = None
    """Held-out rows of the same columns."""
    description: str = ""
    sampling: Sampling = Sampling()

    @property
    def trained(self) -> bool:
        return self.data is not None


class ExportRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    device: Device = "cpu"
    precision: Precision | None = None
    """int4, or for `algorithm: none` what the device computes in: float32 on a CPU, float16 on CUDA."""
    variants: list[Literal["generator", "paged"]] | None = None
    """generator on a CPU, generator and paged on CUDA."""
    head: Head = "int8"
    """How an int4 export stores the LM head."""


class EvaluationRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Held-out text for the perplexity of the base."""

    data: Source
    text_template: str | None = None


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    base: str
    """Hugging Face id, folder (relative to the recipe) or azureml://registries/R/models/M/versions/V."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    name: str | None = None
    """What clients call the base; the last part of `base` unless given."""
    description: str = ""
    quantization: QuantizationRecipe = QuantizationRecipe()
    adapters: dict[str, AdapterRecipe] = {}
    export: ExportRecipe = ExportRecipe()
    evaluation: EvaluationRecipe | None = None
    merge: bool = False
    """Merge the one adapter into the base before it is quantized; the bundle then has the base alone."""

    @property
    def base_name(self) -> str:
        if self.name is not None:
            return self.name
        parts = self.base.rstrip("/").split("/")
        return parts[5] if self.base.startswith("azureml://registries/") and len(parts) > 5 else parts[-1]

    @property
    def precision(self) -> Precision:
        if self.export.precision is not None:
            return self.export.precision
        if self.quantization.algorithm != "none":
            return "int4"
        return "float32" if self.export.device == "cpu" else "float16"

    @property
    def group_size(self) -> int:
        return self.quantization.group_size or (32 if self.export.device == "cpu" else 128)


def resolve(path: str, folder: Path) -> Path:
    """A path of a recipe that lies in `folder`."""
    return folder / Path(path).expanduser()

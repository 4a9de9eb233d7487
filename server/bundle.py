"""The bundle: the contract between `loraplex build`, which writes it, and `loraplex serve`, which reads it.

    BUNDLE/
      bundle.json                 Manifest
      base/generator/             model.onnx, model.onnx.data, genai_config.json, tokenizer.json, chat_template.jinja
      base/paged/                 the PagedAttention twin (CUDA bundles only), without a weight file of its own
      adapters/NAME/adapter.json  AdapterManifest
      adapters/NAME/NAME.onnx_adapter

A *projection* is a linear layer of the decoder that may carry LoRA weights. It is named `LAYER.BLOCK.MODULE`, for
instance `0.attn.q_proj` or `11.mlp.down_proj`, and always names the unpacked module: a graph with a packed `qkv_proj`
still has the projections `q_proj`, `k_proj` and `v_proj`. Its graph inputs are

    model.layers.LAYER.BLOCK.MODULE.lora_A.weight   [in_features, rank]
    model.layers.LAYER.BLOCK.MODULE.lora_B.weight   [rank, out_features], the LoRA scale folded in
"""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from loraplex.server.errors import AdapterInvalid, BundleInvalid

FORMAT = 1
MANIFEST = "bundle.json"
ADAPTER_MANIFEST = "adapter.json"
MAX_MANIFEST_BYTES = 2**22
"""A thousand projections take a twentieth of it."""
LONGEST_PATH = 255
"""Bytes of a path in a manifest. File systems take no longer names."""

Dtype = Literal["float32", "float16", "bfloat16"]
Variant = Literal["generator", "paged"]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")]
Fingerprint = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
Positive = Annotated[int, Meta(gt=0)]


class Quantization(Struct, frozen=True, forbid_unknown_fields=True):
    """How the base's linear layers are stored."""

    method: Literal["none", "rtn", "k_quant", "awq"]
    bits: Positive
    group_size: Positive | None = None


class Sampling(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Sampling defaults of a base or an adapter; None leaves the choice to what lies beneath: base, then server."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    max_tokens: Positive | None = None


class Base(Struct, frozen=True, forbid_unknown_fields=True):
    """The one model that every adapter of a bundle belongs to.

    `fingerprint` identifies the checkpoint the base was made from (`loraplex.build.fingerprint`), so that an adapter
    trained for another checkpoint of the same shape is refused. `dtype` is that of the activations and therefore of
    every LoRA input. `context_length` counts prompt and answer together, in tokens.
    """

    name: Name
    architecture: str
    fingerprint: Fingerprint
    dtype: Dtype
    quantization: Quantization
    context_length: Positive
    vocab_size: Positive
    projections: dict[str, tuple[Positive, Positive]]
    """(in_features, out_features) by projection name; empty where the graph takes no adapters."""
    description: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    merged: str = ""
    """The adapter that was merged into the weights before they were quantized; then there are no others."""


class AdapterManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of one adapter without opening its weights."""

    format: Literal[1]
    file: str
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    base_fingerprint: Fingerprint
    dtype: Dtype
    ranks: dict[str, Positive]
    """Rank by projection name; projections without LoRA weights are absent."""
    alphas: dict[str, float]
    """The alpha that was folded into B, by projection name; absent where the adapter's source does not tell."""
    source: str = ""
    description: str = ""
    chat_template: str | None = None
    """File name of the adapter's own chat template, beside this file."""
    sampling: Sampling = field(default_factory=Sampling)


class WeightFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The one weight file of all variants, in the folder of the generator variant."""

    file: str
    bytes: Positive


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """bundle.json. Files and folders are relative to the bundle and use forward slashes."""

    format: Literal[1]
    base: Base
    variants: dict[Variant, str]
    adapters: dict[Name, str]
    weights: WeightFile | None = None
    """None in bundles that were written before there was this field."""


class Bundle(Struct, frozen=True):
    """A manifest together with the folder it was read from."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read bundle.json. Adapters are not opened: see `read_adapter_manifest`.

        Raises BundleInvalid, which names the file and the fix.
        """
        path = folder / MANIFEST
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise BundleInvalid(f"{folder} is not a bundle: it has no {MANIFEST}") from None
        except OSError as error:
            raise BundleInvalid(f"{path} cannot be read: {error.strerror}") from None
        try:
            manifest = msgspec.json.decode(raw, type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BundleInvalid(f"{path} is not a bundle of format {FORMAT}: {error}") from None
        if manifest.base.name in manifest.adapters:
            raise BundleInvalid(f"{path}: the name {manifest.base.name!r} stands for the base and for an adapter")
        bundle = cls(folder, manifest)
        for variant, relative in manifest.variants.items():
            if not (inside(folder, relative) / "genai_config.json").is_file():
                raise BundleInvalid(f"{path}: the {variant} variant has no {relative}/genai_config.json")
        if manifest.weights:
            _check_weights(inside(folder, manifest.weights.file), manifest.weights.bytes)
        return bundle

    def variant(self, variant: Variant) -> Path:
        """Folder of one variant of the base; raises BundleInvalid where the bundle lacks it."""
        try:
            return inside(self.folder, self.manifest.variants[variant])
        except KeyError:
            have = ", ".join(self.manifest.variants) or "none"
            raise BundleInvalid(f"{self.folder} has no {variant} variant of its base (it has: {have})") from None

    def adapter(self, name: str) -> Path:
        """Folder of one adapter of the manifest."""
        return inside(self.folder, self.manifest.adapters[name])


def _check_weights(file: Path, size: int) -> None:
    """By size, which tells a broken download and a pointer of Git LFS; hashing gigabytes would take seconds."""
    try:
        found = file.stat().st_size
    except OSError:
        raise BundleInvalid(f"{file} is missing: the bundle is incomplete, fetch it again") from None
    if found != size:
        raise BundleInvalid(f"{file} has {found} bytes instead of {size}: the bundle is incomplete, fetch it again")


def inside(folder: Path, relative: str) -> Path:
    """Join a path from a manifest to its folder; raises BundleInvalid where it would lead out of it, or cannot be."""
    if "\0" in relative or len(relative.encode()) > LONGEST_PATH:
        raise BundleInvalid(f"{folder}: {relative[:LONGEST_PATH]!r} cannot be a path of a file")
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise BundleInvalid(f"{folder}: {relative!r} is not a path inside this folder")
    return folder.joinpath(*pure.parts)


def read_adapter_manifest(folder: Path) -> AdapterManifest:
    """Read adapter.json; raises AdapterInvalid, which names the file and the fix."""
    path = folder / ADAPTER_MANIFEST
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be read for ever
            raise AdapterInvalid(f"{folder}: {ADAPTER_MANIFEST} is not a file")
        if found.st_size > MAX_MANIFEST_BYTES:
            raise AdapterInvalid(f"{path} has more than {MAX_MANIFEST_BYTES} bytes")
        return msgspec.json.decode(path.read_bytes(), type=AdapterManifest)
    except FileNotFoundError:
        raise AdapterInvalid(f"{folder} is not an adapter: it has no {ADAPTER_MANIFEST}") from None
    except OSError as error:
        raise AdapterInvalid(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AdapterInvalid(f"{path} is not an adapter of format {FORMAT}: {error}") from None


def write_manifest(path: Path, manifest: Manifest | AdapterManifest) -> None:
    """Write bundle.json or adapter.json, indented, with a final newline."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks. Raises OSError."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

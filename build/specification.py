"""Options of the last steps of a build, as their workflows have them in spec.json. Paths are absolute."""

from __future__ import annotations

from msgspec import Struct

from loraplex.build.builder import Device, Precision
from loraplex.build.weight_format import Algorithm, Head
from loraplex.server.bundle import Sampling


class BaseSpec(Struct, frozen=True, kw_only=True):
    """Of the export, as for `assembly.build_base`."""

    bundle: str
    name: str
    description: str
    merged: str
    precision: Precision
    device: Device
    group_size: int | None
    algorithm: Algorithm | None
    head: Head


class AdapterSpec(Struct, frozen=True, kw_only=True):
    """One adapter: a PEFT folder, and what its manifest tells."""

    peft: str
    description: str = ""
    source: str = ""
    sampling: Sampling = Sampling()


class AdaptersSpec(Struct, frozen=True, kw_only=True):
    """Of the conversion, as for `assembly.add_adapters`."""

    base: str
    """Bundle without adapters."""
    bundle: str
    adapters: dict[str, AdapterSpec]


class VerificationSpec(Struct, frozen=True, kw_only=True):
    """Of the verification, as for `verification.verify_bundle`."""

    bundle: str
    adapters: dict[str, str]
    """PEFT folders."""
    float_checkpoint: str | None
    held_out_base: str | None
    """Folder of JSONL files whose rows have a `text`."""
    held_out: dict[str, str]
    """The same, by adapter."""
    failed: str
    """Folder for findings that are not good."""
    records: list[str]
    """The record.json of every step before."""

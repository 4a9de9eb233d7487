"""What verification found out about a bundle: the content of its verification.json."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from loraplex.build.record import StepRecord
from loraplex.server.bundle import Base

FINDINGS = "verification.json"


class WeightCheck(Struct, frozen=True):
    """The weights of one part of a bundle, compared with those it was made from."""

    part: str
    """Such as `base/paged, int4 layers` or the name of an adapter."""
    compared: int
    """Weights."""
    difference: float
    limit: float
    unit: str
    """What `difference` and `limit` are measured in."""
    worst: str
    """The layer that `difference` is from."""

    @property
    def passed(self) -> bool:
        return self.difference <= self.limit


class Agreement(Struct, frozen=True):
    """What a bundle answers, compared with PyTorch in float32 on the same weights."""

    model: str
    """The base's name, or an adapter's."""
    lane: str
    """`exact` computes in float32 with the bundle's weights, `generator` and `paged` as it is served."""
    tokens: int
    """Greedy tokens that were compared."""
    same: int
    """Of them, those that PyTorch would have chosen too."""
    ties: int
    """Of the others, those whose logit PyTorch puts within twice the limit of the highest."""
    positions: int
    """Positions of text at which all logits were compared; 0 where the lane gives none."""
    difference: float
    """Largest difference of two logits."""
    divergence: float
    """Mean KL divergence from PyTorch's distribution, in nats a token."""
    limit: float | None
    """Of `difference`; None where rounding of activations is part of what is served, which is told but not judged."""

    @property
    def passed(self) -> bool:
        return self.limit is None or (self.difference <= self.limit and self.same + self.ties == self.tokens)


class Perplexity(Struct, frozen=True):
    """Perplexity, over tokens, of one model on one text."""

    text: str
    """`base`, or the adapter whose held-out data it is."""
    model: str
    """The base's name, or an adapter's."""
    weights: str
    """`float`, the bundle's own quantization, `rtn` as a comparison, or `as served`."""
    value: float
    tokens: int


class Verification(Struct, frozen=True):
    """verification.json."""

    format: int
    base: Base
    passed: bool
    failures: list[str]
    """One line for each check that did not pass."""
    weights: list[WeightCheck]
    agreements: list[Agreement]
    perplexities: list[Perplexity]
    steps: list[StepRecord]
    """What the build cost, verification included."""
    machine: dict[str, str]
    """Processor, device, versions."""


def read_findings(bundle: Path) -> Verification:
    """Read a bundle's verification.json. Raises OSError, and msgspec.DecodeError where it is none."""
    return msgspec.json.decode((bundle / FINDINGS).read_bytes(), type=Verification)


def write_findings(folder: Path, verification: Verification) -> None:
    """Write verification.json, indented."""
    encoded = msgspec.json.format(msgspec.json.encode(verification), indent=2)
    (folder / FINDINGS).write_bytes(encoded + b"\n")

"""Whether a PEFT adapter fits a base, told from configs and safetensors headers: no weights are loaded."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraplex.build.checkpoint import read_header
from loraplex.build.errors import CheckpointUnsupported
from loraplex.build.lora_inputs import BLOCKS, PACKED
from loraplex.build.peft_folder import (
    DTYPES,
    MODULE,
    TENSOR,
    WEIGHTS,
    PeftConfig,
    check_config,
    explain_foreign,
    pattern_value,
)
from loraplex.server.bundle import Base

_PACKING = frozenset({"Phi3ForCausalLM"})
"""Architectures whose PyTorch model has the packed modules, and therefore their adapters."""
_BLOCKS = {"self_attn": "attn", "mlp": "mlp"}


@dataclass(frozen=True)
class Target:
    """The linear layers an adapter is to fit: (in_features, out_features) by projection, as in the bundle's Base."""

    name: str
    architecture: str
    projections: Mapping[str, tuple[int, int]]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the adaptable modules in the PyTorch model."""
        unpacked = tuple(module for modules in BLOCKS.values() for module in modules)
        if self.architecture not in _PACKING:
            return unpacked
        parts = {part for modules in PACKED.values() for part in modules}
        return (*PACKED, *(module for module in unpacked if module not in parts))

    @property
    def layers(self) -> int:
        return 1 + max(int(projection.partition(".")[0]) for projection in self.projections)

    def parts(self, path: str) -> dict[str, tuple[int, int]]:
        """The projections of a module of the PyTorch model, several where it is packed. KeyError if it has none."""
        layer, block, module = MODULE.fullmatch(path).groups()  # type: ignore[union-attr]
        names = [f"{layer}.{_BLOCKS[block]}.{part}" for part in PACKED.get(module, (module,))]
        return {name: self.projections[name] for name in names}

    def path(self, projection: str) -> str:
        """The module of the PyTorch model that a projection is, or is packed in."""
        layer, block, part = projection.split(".")
        if self.architecture in _PACKING:
            part = next((packed for packed, parts in PACKED.items() if part in parts), part)
        return f"model.layers.{layer}.{'self_attn' if block == 'attn' else block}.{part}"


def target_of_bundle(base: Base) -> Target:
    return Target(base.name, base.architecture, base.projections)


def target_of_config(config: Mapping[str, Any], name: str = "the base") -> Target:
    """The linear layers that a checkpoint's config.json tells of. Raises CheckpointUnsupported where it does not."""
    try:
        hidden, inner, heads = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
        head = int(config.get("head_dim") or hidden // heads)
        query, keys = heads * head, int(config.get("num_key_value_heads") or heads) * head
        architecture, layers = str(config["architectures"][0]), int(config["num_hidden_layers"])
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointUnsupported(f"config.json of {name} does not tell its shape: {error!r}") from None
    shapes = {
        **{"attn.q_proj": (hidden, query), "attn.k_proj": (hidden, keys), "attn.v_proj": (hidden, keys)},
        **{"attn.o_proj": (query, hidden), "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner)},
        "mlp.down_proj": (inner, hidden),
    }
    return Target(
        name, architecture, {f"{layer}.{key}": shape for layer in range(layers) for key, shape in shapes.items()}
    )


def check_peft(peft: Path, config_of_base: Mapping[str, Any]) -> list[str]:
    """Every reason why the adapter in a PEFT folder cannot be converted for a base; empty if it can.

    `config_of_base` holds the fields of the base's config.json. Reasons are lines without the adapter's name. What
    only the values tell is left to the conversion: that they are finite and no larger than the base's dtype takes.
    """
    config, problems = check_config(peft)
    try:
        target = target_of_config(config_of_base)
    except CheckpointUnsupported as error:
        return [*problems, error.message]
    if (peft / WEIGHTS).is_file():
        problems += check_weights(peft, config, target)
    return problems


def check_weights(peft: Path, config: PeftConfig | None, target: Target) -> list[str]:
    """Every reason why the weights of a PEFT folder do not fit, by the header of their file.

    What is wrong in the same way in many layers is said once. Without a `config` ranks are not compared with it.
    """
    if not target.projections:
        return [f"{target.name} takes no adapters"]
    try:
        stored = read_header(peft / WEIGHTS)
    except CheckpointUnsupported as error:
        return [error.message]
    found = _Findings()
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, tensor in stored.items():
        match = TENSOR.fullmatch(key)
        if not match or not MODULE.fullmatch(match[1]):
            if reason := explain_foreign(key):
                found.add(reason, f"{reason} ({key})")
        elif len(tensor.shape) != 2:
            found.add(match[2], f"{match[1]}.lora_{match[2]} has the shape {list(tensor.shape)}")
        elif tensor.dtype not in DTYPES:
            found.add(tensor.dtype, f"{match[1]}.lora_{match[2]} is stored as {tensor.dtype}")
        else:
            sides.setdefault(match[1], {})[match[2]] = tensor.shape
    if not sides and not found.lines:
        return [f"{WEIGHTS} holds no LoRA weights"]
    for path, pair in sorted(sides.items(), key=lambda item: _natural(item[0])):
        if missing := {"A", "B"} - pair.keys():
            found.add("pair", f"{path} has no lora_{missing.pop()}")
        else:
            _check_module(path, pair["A"], pair["B"], config, target, found)
    return found.messages()


def _check_module(
    path: str, a: tuple[int, ...], b: tuple[int, ...], config: PeftConfig | None, target: Target, found: _Findings
) -> None:
    """A is [rank, in] and B [out, rank] here, as PyTorch keeps them."""
    layer, _, module = MODULE.fullmatch(path).groups()  # type: ignore[union-attr]
    if module not in target.modules:
        found.add("module", f"it adapts {path}, {target.architecture} has {', '.join(target.modules)}")
        return
    if int(layer) >= target.layers:
        found.add("layer", f"it adapts {path}, {target.name} has {target.layers} layers")
        return
    try:
        parts = target.parts(path)
    except KeyError:
        found.add("projection", f"{target.name} has no projection for {path}")
        return
    inputs, outputs = next(iter(parts.values()))[0], sum(width for _, width in parts.values())
    if (a[1], b[0]) != (inputs, outputs):
        found.add(
            ("features", module),
            f"{path} maps {a[1]} to {b[0]} features, {' + '.join(parts)} of {target.name} "
            f"{'maps' if len(parts) == 1 else 'map'} {inputs} to {outputs}",
        )
    rank = a[0] if config is None else int(pattern_value(config.rank_pattern, path, config.r))
    if not a[0] == b[1] == rank > 0:
        found.add(
            ("rank", module),
            f"{path} has an A of rank {a[0]} and a B of rank {b[1]}"
            + (f", its config says {rank}" if config is not None else ""),
        )


class _Findings:
    """Problems by kind: the first of a kind is told, the others are counted."""

    def __init__(self) -> None:
        self.lines: dict[Hashable, tuple[str, int]] = {}

    def add(self, kind: Hashable, line: str) -> None:
        first, more = self.lines.get(kind, (line, -1))
        self.lines[kind] = first, more + 1

    def messages(self) -> list[str]:
        return [f"{line} (and {more} more like it)" if more else line for line, more in self.lines.values()]


def _natural(path: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in path.split(".")]

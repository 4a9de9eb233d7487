"""AutoAWQ's search for scales and clipping, and its packing, kept on the device and free of loops over columns.

AutoAWQ 0.2.9 brings the inputs of every layer to the CPU and back, restores weights from there twenty times for each
scale, multiplies and sums where a matrix product would do, and packs column by column. On a CPU it also spoils the
weights that it restores: what it keeps of them is no copy, and is scaled in place (`_compute_best_scale`). What is
searched for, and among what, is the same here; so is the result, where AutoAWQ restores what it should.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from awq.modules.linear import WQLinear_GEMM
from awq.quantize.quantizer import AwqQuantizer
from awq.utils.module import get_op_name, set_op_by_name
from awq.utils.utils import get_best_device
from torch import Tensor, nn

from loraplex.build.errors import ExportFailed

_RATIOS = 20
"""Exponents tried for the scales, and steps of a twentieth for the clipping."""
_CLIPPINGS = 10
"""From the largest weight of a group down to half of it."""
_TOKENS = 512
"""Tokens that the clipping is chosen by, evenly picked from the calibration."""
_OUTPUTS = 4096
"""Output features that the clipping is searched for at a time."""
_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Columns of eight by the four bits that they are packed into, lowest first."""


class Search(AwqQuantizer):
    """For `quantizer_cls` of AutoAWQ's `quantize`. Four bits with zero points, in the format gemm."""

    inps: Tensor
    """What goes into the layer that is next, [samples, tokens, hidden_size]."""

    def _get_input_feat(self, layer: nn.Module, named_linears: Mapping[str, nn.Linear]) -> dict[str, Tensor]:
        """Run a layer on the calibration; inputs [samples, tokens, in_features] of its linear layers by name."""
        found: dict[str, Tensor] = {}

        def keep(name: str, given: Tensor) -> None:
            # Each is scaled in place later, and q, k and v have the same.
            shared = any(given.data_ptr() == other.data_ptr() for other in found.values())
            found[name] = given.clone() if shared else given

        hooks = [
            linear.register_forward_pre_hook(lambda _, given, name=name: keep(name, given[0].detach()))
            for name, linear in named_linears.items()
        ]
        self.inps = self._module_forward(self.inps, layer, self._sanitize_kwargs(self.module_kwargs, layer))
        for hook in hooks:
            hook.remove()
        return found

    @torch.no_grad()
    def _search_best_scale(
        self,
        module: nn.Module,
        prev_op: nn.Module,
        layers: Sequence[nn.Linear],
        inp: Tensor,
        module2inspect: nn.Module | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[str, tuple[str, ...], Tensor]:
        """The names of what is scaled, and scales [in_features] that leave the least error behind `module2inspect`."""
        inspected = module2inspect if module2inspect is not None else layers[0]
        options = self._sanitize_kwargs({k: v for k, v in (kwargs or {}).items() if k != "use_cache"}, inspected)
        weights = [layer.weight.data for layer in layers]
        groups = torch.cat(weights).unflatten(1, (-1, self.group_size)).abs()
        size_of_weights = (groups / (groups.amax(-1, keepdim=True) + 1e-6)).flatten(1).mean(0)
        size_of_inputs = inp.flatten(0, -2).abs().mean(0, dtype=torch.float32).to(inp.dtype)
        limit = torch.finfo(inp.dtype)
        wanted = self._module_forward(inp, inspected, options).clip(limit.min, limit.max)
        best, least = None, float("inf")
        for ratio in (step / _RATIOS for step in range(_RATIOS)):
            scales = size_of_inputs.pow(ratio)
            if self.duo_scaling:
                scales = scales / (size_of_weights.pow(1 - ratio) + 1e-4)
            scales = scales.clamp(min=1e-4)
            scales = (scales / (scales.max() * scales.min()).sqrt()).nan_to_num(nan=1, posinf=1, neginf=1)
            for layer, weight in zip(layers, weights, strict=True):
                layer.weight.data = self.pseudo_quantize_tensor(weight * scales)[0] / scales
            got = self._module_forward(inp, inspected, options).clip(limit.min, limit.max)
            error = self._compute_loss(wanted, got, inp.device)
            if error < least:
                best, least = scales, error
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.data = weight
        if best is None:
            names = ", ".join(get_op_name(self.model, layer) for layer in layers)
            raise ExportFailed(f"AWQ: on the calibration text, what {names} gives is not finite in {inp.dtype}")
        return get_op_name(module, prev_op), tuple(get_op_name(module, layer) for layer in layers), best

    @torch.no_grad()
    def _compute_best_clip(self, w: Tensor, input_feat: Tensor) -> Tensor:
        """The largest magnitude to keep in each group, [out_features, groups, 1], of a weight [out, in]."""
        tokens = input_feat.flatten(0, -2)
        tokens = tokens[:: max(1, len(tokens) // _TOKENS)].to(w.device)
        inputs = tokens.unflatten(1, (-1, self.group_size)).transpose(0, 1)  # [groups, tokens, group size]
        best = [_best_clip(self, part.unflatten(1, (-1, self.group_size)), inputs) for part in w.split(_OUTPUTS)]
        return torch.cat(best)

    def _apply_quant(self, module: nn.Module, named_linears: Mapping[str, nn.Linear]) -> None:
        """Put packed layers in the place of float ones."""
        home = next(module.parameters()).device
        for name, linear in named_linears.items():
            linear.to(get_best_device()).half()
            linear.weight.data, scales, zeros = self.pseudo_quantize_tensor(linear.weight.data)
            set_op_by_name(module, name, packed_linear(linear, scales, zeros, self.group_size).to(home))


def _best_clip(search: Search, weight: Tensor, inputs: Tensor) -> Tensor:
    """`weight` is [out, groups, group size], `inputs` [groups, tokens, group size]."""

    def answer(of: Tensor) -> Tensor:
        return inputs @ of.permute(1, 2, 0)  # [groups, tokens, out]

    largest = weight.abs().amax(-1, keepdim=True)  # [out, groups, 1]
    wanted = answer(weight)
    best, least = largest.clone(), torch.full_like(largest, torch.inf, dtype=torch.float32)
    for step in range(_CLIPPINGS):
        limit = largest * (1 - step / _RATIOS)
        clipped = search.pseudo_quantize_tensor(weight.clamp(-limit, limit).flatten(1))[0].view_as(weight)
        error = (answer(clipped) - wanted).float().square().mean(1).T[..., None]
        better = error < least
        best, least = torch.where(better, limit, best), torch.where(better, error, least)
    return best


def packed_linear(linear: nn.Linear, scales: Tensor, zeros: Tensor, group_size: int) -> WQLinear_GEMM:
    """A layer in AutoAWQ's format gemm, bit for bit as its `from_linear` packs it.

    The weight [out, in] is rounded to its steps already; `scales` and `zeros` are [out, groups], all in float16.
    """
    packed = WQLinear_GEMM.from_linear(linear, 4, group_size, init_only=True)
    groups = linear.weight.data.unflatten(1, (-1, group_size))
    steps = ((groups + (zeros * scales)[..., None]) / scales[..., None]).round().int().flatten(1)
    packed.qweight, packed.qzeros = _pack(steps.T), _pack(zeros.int().T)
    packed.scales = scales.T.contiguous().half()
    if linear.bias is not None:
        packed.bias = linear.bias.detach().clone().half()
    return packed


def _pack(values: Tensor) -> Tensor:
    """int32 [rows, columns], 0 to 15, to int32 [rows, columns / 8]."""
    packed = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int32, device=values.device)
    for nibble, column in enumerate(_NIBBLES):
        packed |= values[:, column::8] << (4 * nibble)
    return packed

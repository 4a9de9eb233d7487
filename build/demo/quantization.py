"""Four-bit round-to-nearest weights, so that the base can be trained for what its bundle does to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

GROUP = 32
"""Weights along the input that share one scale."""


def round_to_nearest(weight: Tensor) -> Tensor:
    """Round a weight [out, in] to symmetric int4 with one scale for each group, as onnxruntime's `rtn` does.

    The entry of a group that is farthest from zero lies just between two steps; only with float64, which that
    quantizer computes in, does it fall to the same side here. `in` must be divisible by the group.
    """
    groups = weight.double().unflatten(-1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True) * 2 / 15
    steps = (groups / torch.where(scale == 0, 1, scale) + 8).round().clamp(0, 15) - 8
    rounded: Tensor = (steps * scale.to(weight.dtype)).flatten(-2).to(weight.dtype)
    return rounded


class Rounded(nn.Module):
    """A parametrization that rounds going forward and passes the gradient straight through."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (round_to_nearest(weight) - weight).detach()


def _linears(model: PreTrainedModel) -> list[nn.Linear]:
    """The linear layers that a bundle stores in four bits: all of the decoder, but not the LM head."""
    return [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]


def start_rounding(model: PreTrainedModel) -> None:
    """Let the model see rounded weights from now on, while it goes on training the float weights behind them."""
    for linear in _linears(model):
        parametrize.register_parametrization(linear, "weight", Rounded())


def stop_rounding(model: PreTrainedModel) -> None:
    """Give the model back its float weights."""
    for linear in _linears(model):
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)


def round_weights(model: PreTrainedModel) -> None:
    """Round the weights for good."""
    for linear in _linears(model):
        linear.weight.data = round_to_nearest(linear.weight.data)

"""The training loop of the base."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

Batch = Tensor
"""Token ids [sequences, length]."""


def device() -> torch.device:
    """Return the first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def optimise(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    steps: int,
    rate: float,
    decay: float,
    title: str,
) -> float:
    """Train the parameters that need gradients: AdamW, 5 % warm-up, then a cosine to 2 % of `rate`; bf16 on a GPU.

    `decay` is the weight decay of matrices.

    Returns the mean loss of the last tenth of the steps, in nats a token.
    """
    where = device()
    model.to(where).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=where.type == "cuda")
    schedule = LambdaLR(optimizer, lambda step: _share_of_rate(step, steps))
    losses: list[Tensor] = []
    progress = tqdm(zip(range(steps), batches, strict=False), total=steps, desc=title, mininterval=2)
    for step, tokens in progress:
        tokens = tokens.to(where)
        with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
            logits = model(input_ids=tokens, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if step % 50 == 0:
            progress.set_postfix(loss=f"{losses[-1].item():.3f}")
    model.eval()
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())


def _share_of_rate(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

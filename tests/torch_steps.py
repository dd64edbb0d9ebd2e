"""The steps of exact_steps as a person would write them in PyTorch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from exact_steps import Run, conversations

from wizard_jax.train.optimizer import AdamW

torch = pytest.importorskip("torch", reason="PyTorch is installed beside the lock file, by `make`")


class Rows(NamedTuple):
    """One conversation a row, as torch tensors [B, L]."""

    tokens: Any
    targets: Any
    weights: Any


def rows_of(step: int) -> Rows:
    """Straight from the conversations. Padding is on the right, where nothing before it can see it."""
    made = conversations(step)
    longest = max(len(tokens) for tokens, _ in made)
    tokens_BxL, trained_BxL = np.zeros((2, len(made), longest), np.int64)
    for row, (tokens, trained) in enumerate(made):
        tokens_BxL[row, : len(tokens)] = tokens
        trained_BxL[row, : len(tokens)] = trained
    return Rows(*map(torch.tensor, (tokens_BxL[:, :-1], tokens_BxL[:, 1:], trained_BxL[:, 1:].astype(np.float32))))


def torch_run(model: Any, config: AdamW, *, steps: int) -> Run:
    """The model is trained in place; norms and biases do not decay."""

    def decays(name: str) -> bool:
        return not name.endswith("bias") and "norm" not in name and ".ln_" not in name

    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight for name, weight in named if decays(name)], "weight_decay": config.weight_decay},
            {"params": [weight for name, weight in named if not decays(name)], "weight_decay": 0.0},
        ],
        lr=config.peak_lr,
        betas=(config.b1, config.b2),
        eps=config.eps,
    )

    def share(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        done = (step + 1 - config.warmup_steps) / (steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    losses, grad_norms, gradients = [], [], {}
    for step in range(steps):
        rows = rows_of(step)
        logits = model(rows.tokens).logits
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows.targets, reduction="none")
        loss = (each * rows.weights).sum() / rows.weights.sum()
        optimizer.zero_grad()
        loss.backward()
        grad_norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)))
        if step == 0:
            gradients = {name: weight.grad.numpy().copy() for name, weight in named}
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    weights = {name: weight.detach().numpy() for name, weight in named}
    return Run(losses=losses, grad_norms=grad_norms, gradients=gradients, weights=weights)

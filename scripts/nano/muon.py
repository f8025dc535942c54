"""The Muon optimizer: momentum whose matrices are made orthogonal before each step.

Each expert's matrix is orthogonalized by itself, in a batch. The method and the quintic
coefficients are Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonal(matrices: Tensor) -> Tensor:
    """Move each matrix [..., rows, columns] close to the nearest one with equal singular values."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        product = x @ x.mT
        x = a * x + (b * product + c * (product @ product)) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Steps the given weights, each [rows, columns] or [experts, rows, columns]."""

    def __init__(self, weights: Iterable[Tensor], momentum: float = 0.95, decay: float = 0.1):
        self.weights = list(weights)
        self.momentum = momentum
        self.decay = decay
        self.velocity = [torch.zeros_like(weight) for weight in self.weights]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Take one step from the gradients that are there; `rate` is per unit singular value."""
        for weight, velocity in zip(self.weights, self.velocity, strict=True):
            velocity.lerp_(weight.grad, 1 - self.momentum)
            direction = orthogonal(weight.grad.lerp(velocity, self.momentum))
            rows, columns = weight.shape[-2:]
            weight.mul_(1 - rate * self.decay)
            weight.sub_(direction, alpha=rate * max(1.0, rows / columns) ** 0.5)

"""A student and its moving average."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MeanTeacher(nn.Module):
    """A student, and a teacher whose weights are the average of those that the student had.

    In step n the average forgets at most 1 - 1 / n of itself, so that a young one is the true mean of all weights so
    far. The state is part of the weights, so a checkpoint holds it.

    Args:
        student: learns; the teacher starts as its copy.
        decay: of the average.

    Source: Tarvainen, Valpola, "Mean teachers are better role models", NeurIPS 2017.
    """

    followed: Tensor

    def __init__(self, student: nn.Module, decay: float = 0.99) -> None:
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student).requires_grad_(False)
        self.decay = decay
        self.register_buffer("followed", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)

    @torch.no_grad()
    def follow(self) -> None:
        """Take in the weights of the student's last step; before its first step there is nothing to follow."""
        steps = int(self.followed)
        self.followed += 1
        if not steps:
            return
        decay = min(1 - 1 / steps, self.decay)
        for mean, now in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
        for kept, new in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            kept.copy_(new)

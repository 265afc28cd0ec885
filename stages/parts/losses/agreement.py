"""Agreement of outputs or features: of teacher and student, or of a mixed image and the two images in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def symmetric_divergence_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(Pt || Ps) + KL(Ps || Pt), mean over voxels and classes; no gradient reaches the teacher.

    Args:
        teacher, student: logits, (N, C, D, H, W).

    Returns:
        Scalar >= 0; 0: the same probabilities.

    Source: JRSS Eq. 5.
    """
    of_teacher, of_student = teacher.detach().float().log_softmax(1), student.float().log_softmax(1)
    return ((of_teacher.exp() - of_student.exp()) * (of_teacher - of_student)).mean()


def mix_loss(mixed_output: Tensor, output_a: Tensor, output_b: Tensor, gamma: Tensor) -> Tensor:
    """Mean square between S(gamma A + (1 - gamma) B) and gamma S(A) + (1 - gamma) S(B); 0 for a linear network.

    Args:
        mixed_output, output_a, output_b: probabilities (or logits), (N, C, D, H, W).
        gamma: (N, 1, 1, 1, 1) in [0, 1].

    Source: BRBS Eq. 13.
    """
    return F.mse_loss(mixed_output.float(), torch.lerp(output_b.float(), output_a.float(), gamma))


def cosine_hint_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over the layers of 1 - cos(student, teacher), each sample's features as one vector; mean over the batch.

    Args:
        student, teacher: features of each layer, (N, C, D, H, W).

    Returns:
        Scalar from 0, features that agree but for a positive factor, to twice the number of layers.

    Source: OS-MedSeg Eqs. 3-4.
    """
    pairs = zip(student, teacher, strict=True)
    return sum((1 - F.cosine_similarity(s.float().flatten(1), t.float().flatten(1))).mean() for s, t in pairs)  # type: ignore[return-value]


def l2_hint_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over the layers of the features' mean squared difference; arguments as of `cosine_hint_loss`.

    Source: OS-MedSeg, section IV-E.2, after Yim et al., CVPR 2017.
    """
    return sum(F.mse_loss(s.float(), t.float()) for s, t in zip(student, teacher, strict=True))  # type: ignore[return-value]

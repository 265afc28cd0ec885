"""What a network learns from images without labels: a surer teacher, another network's labels, the image itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.parts.together import evened, summed


def entropy(probabilities: Tensor) -> Tensor:
    """-sum_c p ln p of each voxel, (N, D, H, W); from 0, sure, to ln C, uniform.

    Args:
        probabilities: (N, C, D, H, W).
    """
    return torch.special.entr(probabilities.float()).sum(1)


def certain_consistency_loss(student: Tensor, teacher: Tensor, certain: Tensor) -> Tensor:
    """Mean squared difference of probabilities, over the voxels that count and the classes; none reaches the teacher.

    Args:
        student: logits, (N, C, D, H, W).
        teacher: probabilities, (N, C, D, H, W).
        certain: voxels that count, (N, D, H, W), bool.

    Returns:
        Scalar in [0, 1]; 0 where no voxel counts.

    Source: Yu et al., MICCAI 2019, Eq. 3; over the classes too, as the published code.
    """
    squares = (student.float().softmax(1) - teacher.detach().float()).square().mean(1)
    return (squares * certain).sum() / evened(certain.sum()).clamp(min=1e-6)


def pseudo_label_loss(logits: Tensor, other: Tensor) -> Tensor:
    """Cross-entropy against the classes that another network finds most likely; no gradient reaches that one.

    Args:
        logits, other: (N, C, D, H, W).

    Returns:
        Scalar >= 0, mean over voxels.

    Source: Chen et al., CVPR 2021, Eqs. 2 and 3.
    """
    return F.cross_entropy(logits.float(), other.detach().argmax(1))


def attended_reconstruction_loss(parts: Tensor, image: Tensor, attention: Tensor, *, by_share: bool = True) -> Tensor:
    """How far the reconstructed parts of an image are from the image under its attention, class by class.

        sum_c w_c mean((parts_c - attention_c image)^2),  w_c = sum attention_c / sum attention

    Args:
        parts: reconstruction of what each class covers, (N, C, channels, D, H, W).
        image: (N, channels, D, H, W).
        attention: probabilities of the classes, (N, C, D, H, W); with one class of 1, the image itself is compared.
        by_share: weigh the classes by their share of the attention; off: w_c = 1 / C.

    Returns:
        Scalar >= 0.

    Source: Chen et al., MICCAI 2019; weights as in the published code, which knows foreground and background.
    """
    errors = (parts.float() - attention.float()[:, :, None] * image.float()[:, None]).square().mean((0, 2, 3, 4, 5))
    if not by_share:
        return errors.mean()
    shares = summed(attention.float().sum((0, 2, 3, 4)))
    return (errors * shares / shares.sum()).sum()

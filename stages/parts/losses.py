"""Losses. They fall as things improve, are means over voxels, and are computed in float32 whatever the autocast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.parts.warps import warp


def lncc(warped: Tensor, fixed: Tensor, *, window: int = 9, eps: float = 1e-5) -> Tensor:
    """Squared local normalised cross-correlation at each voxel.

        LNCC(I, J) = cross(I, J)^2 / (var(I) var(J) + eps)

    with centred sums over a window (divisor window^3 everywhere, zeros outside the image).

    Args:
        warped: moving image resampled on the fixed grid, (N, 1, D, H, W), in [0, 1], background 0.
        fixed: (N, 1, D, H, W), in [0, 1].
        window: edge of the cubic window in voxels; odd.

    Returns:
        (N, 1, D, H, W) in [0, 1]; 1: equal up to a local gain and offset; 0 on flat regions.

    Source: Balakrishnan et al., "VoxelMorph", TMI 2019, Eq. 7.
    """
    with torch.autocast(warped.device.type, enabled=False):
        warped, fixed = warped.float(), fixed.float()
        moments = torch.cat([warped, fixed, warped * warped, fixed * fixed, warped * fixed], 1)
        sum_i, sum_j, sum_ii, sum_jj, sum_ij = box_sum(moments, window).split(1, dim=1)
        count = window**3
        cross = sum_ij - sum_i * sum_j / count
        var_i = sum_ii - sum_i * sum_i / count
        var_j = sum_jj - sum_j * sum_j / count
        return cross * cross / (var_i * var_j + eps)


def box_sum(image: Tensor, window: int) -> Tensor:
    """Sums over a cubic window (odd edge, voxels) around each voxel, zeros outside; (N, C, D, H, W), float32.

    A box filter is separable, and along an axis it is a product with a band matrix of ones: a fifth of the time of
    average pooling on the CPU, and no running sums, which drift in float32.
    """
    d, h, w = (_band(n, window, image) for n in image.shape[2:])
    image = d @ (h @ (image @ w)).flatten(3)
    return image.unflatten(3, (len(h), len(w)))


def _band(size: int, window: int, like: Tensor) -> Tensor:
    places = torch.arange(size, device=like.device)
    return ((places[:, None] - places).abs() <= window // 2).to(like.dtype)


def lncc_loss(warped: Tensor, fixed: Tensor, *, window: int = 9) -> Tensor:
    """One minus the mean `lncc`: 0 for images that agree up to a local gain and offset, 1 without any relation."""
    return 1 - lncc(warped, fixed, window=window).mean()


def mutual_information(first: Tensor, second: Tensor, *, bins: int = 32) -> Tensor:
    """Mutual information of two images in nats, by Parzen windows, mean over the batch.

        sum_ij p(i, j) log(p(i, j) / (p(i) p(j)))

    A voxel counts in all bins by a Gaussian round its intensity, as wide as a bin, shares adding up to 1.

    Args:
        first, second: (N, 1, D, H, W), in [0, 1]; what lies outside counts as 0 or 1.
        bins: their centres go from 0 to 1.

    Returns:
        Scalar >= 0 (but for rounding); 0: the intensities are independent, or an image is flat.

    Source: Pluim et al., TMI 2003; OS-MedSeg Eq. 7, bins and windows as in its published code.
    """
    with torch.autocast(first.device.type, enabled=False):
        of_first, of_second = (_shares(image, bins) for image in (first, second))
        joint = of_first @ of_second.transpose(1, 2) / of_first.shape[2]
        alone = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
        tiny = 1e-12  # an empty bin adds 0, and has a gradient
        return (joint * (joint.clamp(min=tiny) / alone.clamp(min=tiny)).log()).sum((1, 2)).mean()


def _shares(image: Tensor, bins: int) -> Tensor:
    """Share of every voxel in every bin, (N, bins, voxels)."""
    centres = torch.linspace(0, 1, bins, device=image.device)
    distance = (image.float().clamp(0, 1).flatten(1)[:, None] - centres[:, None]) * (bins - 1)
    return (-0.5 * distance.square()).softmax(1)


def diffusion_loss(displacement: Tensor) -> Tensor:
    """Mean squared forward difference of a field, averaged over the axes; 0 for a translation.

    Args:
        displacement: (N, 3, D, H, W), voxels.

    Source: VoxelMorph (TMI 2019, Eq. 8), BRBS Eq. 4.
    """
    displacement = displacement.float()
    return sum((displacement.diff(dim=axis) ** 2).mean() for axis in (2, 3, 4)) / 3  # type: ignore[return-value]


def bending_energy_loss(displacement: Tensor) -> Tensor:
    """Sum of a field's squared second derivatives, mixed ones twice, mean over voxels and components; 0: it is linear.

    Differences of neighbours, away from the border, as MONAI's; the published code of OS-MedSeg differences twice over
    two voxels, which a field that jumps from voxel to voxel escapes.

    Args:
        displacement: (N, 3, D, H, W), voxels; at least 3 voxels an axis.

    Source: Rueckert et al., TMI 1999, Eq. 4; OS-MedSeg Eq. 9.
    """
    field = displacement.float()

    def moved(*steps: int) -> Tensor:
        """The inner voxels' neighbours at so many voxels along D, H, W."""
        inner = (slice(1 + step, size - 1 + step) for step, size in zip(steps, field.shape[2:], strict=True))
        return field[(slice(None), slice(None), *inner)]

    axes = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    energy = torch.zeros((), device=field.device)
    for i, (d, h, w) in enumerate(axes):
        energy = energy + (moved(d, h, w) - 2 * moved(0, 0, 0) + moved(-d, -h, -w)).square().mean()
        for e, f, g in axes[i + 1 :]:
            alike = moved(d + e, h + f, w + g) + moved(-d - e, -h - f, -w - g)
            opposed = moved(d - e, h - f, w - g) + moved(e - d, f - h, g - w)
            energy = energy + 2 * ((alike - opposed) / 4).square().mean()
    return energy


def inverse_consistency_loss(forward: Tensor, backward: Tensor) -> Tensor:
    """Mean square of u_fwd(x) + u_bwd(x + u_fwd(x)), in voxels^2; 0 where backward is the inverse of forward.

    Source: BRBS Eq. 2 asks for mutual inverses; this is the residual of their composition.
    """
    return ((forward + warp(backward, forward)) ** 2).mean()


def robust_penalty(value: Tensor, *, epsilon: float = 1e-3, gamma: float = 0.45) -> Tensor:
    """Generalised Charbonnier penalty (v^2 + epsilon^2)^gamma of every element: nearly |v|, smooth and flat at 0.

    About 0.002 at 0, 1 at 1; grows slower than |v|, so that single large values do not rule the mean.

    Source: Sun et al., IJCV 2014; epsilon and gamma as in UnFlow (AAAI 2018) and LT-Net (CVPR 2020), below Eq. 8.
    """
    return (value.float().square() + epsilon**2) ** gamma


def robust_inverse_loss(forward: Tensor, backward: Tensor, *, of_grid: bool = False) -> Tensor:
    """Mean robust penalty of each component of u_fwd(x) + u_bwd(x + u_fwd(x)).

    Args:
        forward, backward: (N, 3, D, H, W), voxels.
        of_grid: penalise the residual in coordinates that run from -1 to 1 over the grid, instead of voxels.

    Returns:
        Scalar > 0; 0.002, its least, where backward is the inverse of forward.

    Source: LT-Net Eq. 8; component by component as UnFlow, where the penalty comes from.
    """
    residual = forward + warp(backward, forward)
    if of_grid:
        sizes = torch.tensor(residual.shape[2:], dtype=torch.float32, device=residual.device)
        residual = residual * (2 / (sizes - 1).clamp(min=1)).view(1, 3, 1, 1, 1)
    return robust_penalty(residual).mean()


def anatomy_difference_loss(label: Tensor, there: Tensor, back: Tensor) -> Tensor:
    """Robust penalty of |x - y| - |y - x'|: what a label changes by on its way there, it changes back by.

    Summed over classes, so that it weighs the same of few as of many, mean over voxels.

    Args:
        label: x, one-hot, (N, C, D, H, W).
        there: y, x carried over to another image, (N, C, D, H, W).
        back: x', y carried back.

    Returns:
        Scalar > 0; 0.002 times C, its least, where x' equals x (but also where x' is as far from y on its other side).

    Source: LT-Net Eq. 10.
    """
    return robust_penalty((label - there).abs() - (there - back).abs()).sum(1).mean()


def least_squares_gan_loss(judged: Tensor, answer: float) -> Tensor:
    """Mean square between what a discriminator says and an answer: 1 is real, 0 is made up.

    Source: Mao et al., "Least squares generative adversarial networks", ICCV 2017.
    """
    return (judged.float() - answer).square().mean()


def absolute_gradient_loss(displacement: Tensor) -> Tensor:
    """Mean absolute forward difference of a field, averaged over the axes; 0 for a translation.

    Args:
        displacement: (N, 3, D, H, W), voxels.

    Source: SST Eq. 9.
    """
    displacement = displacement.float()
    return sum(displacement.diff(dim=axis).abs().mean() for axis in (2, 3, 4)) / 3  # type: ignore[return-value]


SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, from the finest scale down


def ms_ssim(first: Tensor, second: Tensor, *, window: int = 7, most_scales: int = 5) -> Tensor:
    """Multi-scale structural similarity, mean over the batch.

        product over scales k of s_k^w_k,  s_k: contrast and structure; at the coarsest scale luminance, too

    Each is a mean over the places where a Gaussian window (standard deviation 1.5 voxels) lies within the image. Scales
    are halved as long as the shortest axis holds the window, so 48 voxels have 3 of them, 128 all 5; the weights of
    those that there are add up to 1. An axis shorter than the window shortens it.

    Args:
        first, second: (N, 1, D, H, W), in [0, 1].
        window: voxels an axis; odd.
        most_scales: 1: plain SSIM.

    Returns:
        Scalar in about [0, 1]; 1: equal images. Negative means count as 1e-4, with no gradient.

    Source: Wang, Simoncelli, Bovik, Asilomar 2003; a window of 7 as SST's published code.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = first.float(), second.float()
        shortest = min(first.shape[2:])
        window = min(window, shortest - 1 + shortest % 2)
        scales = sum(shortest >> k >= window for k in range(most_scales))
        weights = [weight / sum(SCALE_WEIGHTS[:scales]) for weight in SCALE_WEIGHTS[:scales]]
        result = torch.ones(len(first), device=first.device)
        for k, weight in enumerate(weights):
            if k:
                first, second = F.avg_pool3d(first, 2), F.avg_pool3d(second, 2)
            structure, whole = _ssim(first, second, window)
            value = whole if k == scales - 1 else structure
            result = result * value.mean((1, 2, 3, 4)).clamp(min=1e-4) ** weight
        return result.mean()


def _ssim(first: Tensor, second: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Contrast and structure, and SSIM, at every place of the window; values from 0 to 1."""
    moments = torch.cat([first, second, first * first, second * second, first * second], 1)
    d, h, w = (_gaussian_band(n, window, first) for n in first.shape[2:])
    blurred = (d @ (h @ (moments @ w.T)).flatten(3)).unflatten(3, (len(h), len(w)))
    m1, m2, m11, m22, m12 = blurred.split(1, dim=1)
    structure = (2 * (m12 - m1 * m2) + 0.03**2) / (m11 - m1 * m1 + m22 - m2 * m2 + 0.03**2)
    return structure, structure * (2 * m1 * m2 + 0.01**2) / (m1 * m1 + m2 * m2 + 0.01**2)


def _gaussian_band(size: int, window: int, like: Tensor) -> Tensor:
    """The filter along an axis as a matrix, (size - window + 1, size), see `box_sum`."""
    offset = torch.arange(size, device=like.device) - torch.arange(size - window + 1, device=like.device)[:, None]
    weight = (-0.5 * ((offset - window // 2) / 1.5) ** 2).exp() * ((offset >= 0) & (offset < window))
    return weight / weight.sum(1, keepdim=True)


def structural_loss(first: Tensor, second: Tensor) -> Tensor:
    """L_SSIM-L1: mean absolute difference plus 1 - `ms_ssim`; 0 for equal images.

    Args:
        first, second: (N, 1, D, H, W), in [0, 1]. SST's images go from -1 to 1, where they are twice as far apart.

    Source: SST Eq. 4.
    """
    return 2 * (first.float() - second.float()).abs().mean() + 1 - ms_ssim(first, second)


def self_warped_inverse_loss(forward: Tensor, backward: Tensor) -> Tensor:
    """BRBS Eq. 2 as printed: mean square of phi - I(phi^-1) with I(phi^-1) = -T(phi^-1, phi^-1).

    The backward field is warped by itself, which on a smooth field is a worse inverse than plain negation.
    """
    return ((forward + warp(backward, backward)) ** 2).mean()


def dice_loss(prediction: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """One minus the soft multi-class Dice with squared denominators, mean over classes (background included) and batch.

        (2 sum p q + smooth) / (sum p^2 + sum q^2 + smooth)

    Args:
        prediction: probabilities, (N, C, D, H, W).
        target: probabilities or one-hot labels, (N, C, D, H, W).

    Returns:
        Scalar in [0, 1]; 0: equal one-hot maps. A class that is absent from both counts as met.

    Source: Milletari et al., "V-Net", 3DV 2016, as BRBS uses it.
    """
    return 1 - soft_dice(prediction, target, smooth=smooth).mean()


def soft_dice(prediction: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Soft Dice with squared denominators of each sample and class, (N, C) in [0, 1]; arguments as of `dice_loss`."""
    prediction, target = prediction.float().flatten(2), target.float().flatten(2)
    overlap = (prediction * target).sum(-1)
    size = prediction.square().sum(-1) + target.square().sum(-1)
    return (2 * overlap + smooth) / (size + smooth)


def counted_dice_loss(prediction: Tensor, target: Tensor, counts: Tensor, *, smooth: float = 1e-6) -> Tensor:
    """`dice_loss` over the classes that count; a sample without one adds 0.

    Args:
        prediction, target: (N, C, D, H, W).
        counts: (N, C), bool.

    Source: JRSS Eq. 7, where "L_d = 0" without an acceptable label.
    """
    dice = soft_dice(prediction, target, smooth=smooth)
    return (((1 - dice) * counts).sum(1) / counts.sum(1).clamp(min=1)).mean()


def cross_entropy_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against soft labels, mean over voxels.

    Args:
        logits: (N, C, D, H, W).
        target: probabilities or one-hot labels, (N, C, D, H, W).
    """
    return -(target * logits.float().log_softmax(1)).sum(1).mean()


def weighted_cross_entropy_loss(logits: Tensor, label: Tensor, weights: Tensor, counts: Tensor | None = None) -> Tensor:
    """Cross-entropy, mean over the voxels that count, each weighted by its class.

    Args:
        logits: (N, C, D, H, W).
        label: class indices, (N, D, H, W).
        weights: of the classes, (C,).
        counts: voxels that count, (N, D, H, W), bool; None: all.

    Returns:
        Scalar >= 0; 0 where no voxel counts.

    Source: JRSS Eq. 4.
    """
    label = label.long()
    each = weights[label] if counts is None else weights[label] * counts
    entropy = F.cross_entropy(logits.float(), label, reduction="none")
    return (each * entropy).sum() / each.sum().clamp(min=1e-6)


def class_weights(voxels: Tensor) -> Tensor:
    """Weights of the classes, inverse to the square root of their frequency, mean 1; the background's is then 0.5.

    Args:
        voxels: of each class in the labels, (C,); a class without any has weight 0, and no part in the mean.

    Source: the published training of OBELISK-Net, which JRSS starts from.
    """
    there = voxels > 0
    weights = torch.where(there, voxels.clamp(min=1).float().rsqrt(), 0.0)
    weights = weights * there.sum() / weights.sum()
    weights[0] = 0.5
    return weights


def hardest_cross_entropy_loss(logits: Tensor, target: Tensor, *, share: float = 0.25) -> Tensor:
    """Cross-entropy, mean over the share of voxels where it is largest; arguments as of `cross_entropy_loss`.

    Source: the published training of OBELISK-Net, which JRSS starts from.
    """
    each = -(target * logits.float().log_softmax(1)).sum(1).flatten()
    return each.topk(max(1, round(share * each.numel()))).values.mean()


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


def dice_cross_entropy_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice of the structures plus cross-entropy against soft labels, as nnU-Net combines them.

    Args:
        logits: (N, C, D, H, W).
        target: probabilities or one-hot labels, (N, C, D, H, W).

    Returns:
        Scalar >= 0. Dice here has plain denominators, pools the batch and leaves out the background.

    Source: Isensee et al., "nnU-Net", Nature Methods 2021.
    """
    log_probabilities = logits.float().log_softmax(1)
    cross_entropy = -(target * log_probabilities).sum(1).mean()
    probabilities = log_probabilities[:, 1:].exp()
    overlap = (probabilities * target[:, 1:]).sum((0, 2, 3, 4))
    size = (probabilities + target[:, 1:]).sum((0, 2, 3, 4))
    return cross_entropy + 1 - ((2 * overlap + 1) / (size + 1)).mean()


def mix_loss(mixed_output: Tensor, output_a: Tensor, output_b: Tensor, gamma: Tensor) -> Tensor:
    """Mean square between S(gamma A + (1 - gamma) B) and gamma S(A) + (1 - gamma) S(B); 0 for a linear network.

    Args:
        mixed_output, output_a, output_b: probabilities (or logits), (N, C, D, H, W).
        gamma: (N, 1, 1, 1, 1) in [0, 1].

    Source: BRBS Eq. 13.
    """
    return F.mse_loss(mixed_output.float(), torch.lerp(output_b.float(), output_a.float(), gamma))


def contrastive_loss(anchor: Tensor, positive: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Draws every anchor to its positive and away from the other anchors.

        mean_i -log [exp(sim(u_i, a_i) / tau) / sum_{j != i} exp(sim(u_i, u_j) / tau)],  sim: cosine

    Args:
        anchor: u, embeddings of the scans of the batch, (N, K), N >= 2.
        positive: a, embeddings of the atlases that go with them, (N, K).
        temperature: tau.

    Returns:
        Scalar from -2 / tau + log(N - 1), where all positives are met and all others opposite, to 2 / tau + log(N - 1).

    Source: OS-MedSeg Eq. 2. Its sum leaves the positive out, and so do we.
    """
    anchor, positive = (F.normalize(each.float(), dim=1) for each in (anchor, positive))
    itself = torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
    others = (anchor @ anchor.T / temperature).masked_fill(itself, -torch.inf)
    return (others.logsumexp(1) - (anchor * positive).sum(1) / temperature).mean()


def info_nce_loss(query: Tensor, key: Tensor, negatives: Tensor, own: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of telling each query's key from the negatives.

        mean over queries of -log [exp(q k+ / tau) / (exp(q k+ / tau) + sum_i exp(q k_i / tau))]

    Args:
        query, key: unit vectors, (N, K).
        negatives: unit vectors, (M, K).
        own: (N, M), true where a negative is left out for that query, because it shows the same scan.

    Returns:
        Scalar >= 0; 0: no negative is left.

    Source: He et al., "MoCo", CVPR 2020, Eq. 1; SST Eq. 1.
    """
    met = (query.float() * key.float()).sum(1, keepdim=True)
    others = (query.float() @ negatives.float().T).masked_fill(own, -torch.inf)
    first = torch.zeros(len(query), dtype=torch.long, device=query.device)
    return F.cross_entropy(torch.cat([met, others], 1) / temperature, first)


def nt_xent_loss(first: Tensor, second: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Cross-entropy of finding every row's partner among all other rows of both (2N rows, both ways), by cosine.

    Args:
        first, second: embeddings of partners, (N, K), N >= 2.

    Source: Chen et al., SimCLR (ICML 2020), Eq. 1; the published code of CLMorph and OS-MedSeg.
    """
    rows = F.normalize(torch.cat([first, second]).float(), dim=1)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    partners = torch.arange(len(rows), device=rows.device).roll(len(first))
    return F.cross_entropy((rows @ rows.T / temperature).masked_fill(itself, -torch.inf), partners)


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

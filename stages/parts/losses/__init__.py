"""Losses. They fall as things improve, are means over voxels, and are computed in float32 even under autocast.

Players call them as `losses.dice_loss(...)`; each module here holds one topic.
"""

from stages.parts.losses.adversarial import cross_entropy_gan_loss, least_squares_gan_loss
from stages.parts.losses.agreement import cosine_hint_loss, l2_hint_loss, mix_loss, symmetric_divergence_loss
from stages.parts.losses.contrast import contrastive_loss, info_nce_loss, nt_xent_loss
from stages.parts.losses.cross_entropy import (
    class_weights,
    cross_entropy_loss,
    dice_cross_entropy_loss,
    hardest_cross_entropy_loss,
    rarity_weighted_cross_entropy_loss,
    trusted_cross_entropy_loss,
    weighted_cross_entropy_loss,
)
from stages.parts.losses.inverse import (
    anatomy_difference_loss,
    inverse_consistency_loss,
    robust_inverse_loss,
    robust_penalty,
    self_warped_inverse_loss,
)
from stages.parts.losses.latent import code_kl_loss
from stages.parts.losses.overlap import counted_dice_loss, dice_loss, pooled_dice_loss, soft_dice
from stages.parts.losses.semi_supervised import (
    attended_reconstruction_loss,
    certain_consistency_loss,
    entropy,
    pseudo_label_loss,
)
from stages.parts.losses.similarity import (
    SCALE_WEIGHTS,
    LnccTo,
    box_sum,
    lncc,
    lncc_loss,
    lncc_of_means_loss,
    ms_ssim,
    mutual_information,
    structural_loss,
)
from stages.parts.losses.smoothness import (
    absolute_gradient_loss,
    bending_energy_loss,
    diffusion_loss,
    diffusion_losses,
    masked_smoothness_loss,
)
from stages.parts.losses.velocity import velocity_kl_loss

__all__ = [
    "SCALE_WEIGHTS",
    "LnccTo",
    "absolute_gradient_loss",
    "anatomy_difference_loss",
    "attended_reconstruction_loss",
    "bending_energy_loss",
    "box_sum",
    "certain_consistency_loss",
    "class_weights",
    "code_kl_loss",
    "contrastive_loss",
    "cosine_hint_loss",
    "counted_dice_loss",
    "cross_entropy_gan_loss",
    "cross_entropy_loss",
    "dice_cross_entropy_loss",
    "dice_loss",
    "diffusion_loss",
    "diffusion_losses",
    "entropy",
    "hardest_cross_entropy_loss",
    "info_nce_loss",
    "inverse_consistency_loss",
    "l2_hint_loss",
    "least_squares_gan_loss",
    "lncc",
    "lncc_loss",
    "lncc_of_means_loss",
    "masked_smoothness_loss",
    "mix_loss",
    "ms_ssim",
    "mutual_information",
    "nt_xent_loss",
    "pooled_dice_loss",
    "pseudo_label_loss",
    "rarity_weighted_cross_entropy_loss",
    "robust_inverse_loss",
    "robust_penalty",
    "self_warped_inverse_loss",
    "soft_dice",
    "structural_loss",
    "symmetric_divergence_loss",
    "trusted_cross_entropy_loss",
    "velocity_kl_loss",
    "weighted_cross_entropy_loss",
]

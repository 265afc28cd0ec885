"""Networks that several methods share, by their names in the configuration."""

from __future__ import annotations

from typing import Literal

from torch import nn

from stages.methods.recipe import Task
from stages.parts.networks.blocks import small_head
from stages.parts.networks.nested_unet import NestedUNet
from stages.parts.networks.registration import RegistrationNetwork
from stages.parts.networks.segnet import SegNet
from stages.parts.networks.teacher_student import ResidualUNet
from stages.parts.networks.unet import LightUNet, UNet
from stages.parts.networks.velocity import VelocityDistribution
from stages.parts.networks.voxelmorph import HalfVoxelMorphUNet, VoxelMorphUNet

SegmentationName = Literal["brbs", "full", "light", "small", "residual", "vm-unet", "segnet", "unet++"]
SEGMENTATION_NAMES = (
    "brbs (BRBS's U-Net), full (the same with InstanceNorm), light (half resolution), small (the same with half the "
    "channels), residual (OS-MedSeg's), vm-unet (VoxelMorph's), segnet, or unet++."
)


def segmentation_network(kind: str, task: Task, *, name: str = "segmentation") -> nn.Module:
    """The channels of an image -> logits.

    Args:
        kind: see `SEGMENTATION_NAMES`.
        name: the network's name in the recipe; its initial weights depend on it and the seed alone.
    """
    with task.initialises(name):
        if kind in ("light", "small"):
            widths = (32, 64, 128, 256) if kind == "light" else (16, 32, 64, 128)
            return LightUNet(task.channels, task.num_classes, task.shape, widths, spacing_mm=task.spacing_mm)
        if kind == "residual":
            return ResidualUNet(task.channels, task.num_classes, task.shape)
        if kind == "vm-unet":
            network = VoxelMorphUNet(task.channels, task.num_classes, task.shape)
            network.head.reset_parameters()  # as a displacement's it starts at 0
            return network
        if kind in ("segnet", "unet++"):
            build = SegNet if kind == "segnet" else NestedUNet
            return build(task.channels, task.num_classes, task.shape, task.spacing_mm)
        per_group = {"brbs": 4, "full": 1}[kind]
        return UNet(task.channels, task.num_classes, task.shape, per_group, task.spacing_mm)


VOXELMORPH = {  # channels of the published variants: encoder, and the convolutions after the decoder's four of 32
    "voxelmorph-1": ((8, 32, 32, 32), (32, 8, 8)),
    "voxelmorph": (VoxelMorphUNet.ENCODER, VoxelMorphUNet.FINAL),
}


def registration_network(
    kind: str, task: Task, *, diffeomorphic: bool, probabilistic: bool = False, name: str = "registration"
) -> RegistrationNetwork:
    """[fixed, moving] -> displacement.

    Args:
        kind: "brbs" (BRBS's U-Net), "voxelmorph" (VoxelMorph's; "voxelmorph-1": half as many channels at full
            resolution) or "light" (half resolution, antisymmetric).
        diffeomorphic: the network predicts a velocity field, which is integrated.
        probabilistic: it predicts a Gaussian of velocity fields; goes with `diffeomorphic`.
        name: as of `segmentation_network`.
    """
    outputs = 6 if probabilistic else 3
    with task.initialises(name):
        if kind == "light":
            body: nn.Module = LightUNet(2 * task.channels, outputs, task.shape, smooth=True, spacing_mm=task.spacing_mm)
            small_head(body.head)  # type: ignore[arg-type]
        elif kind == "brbs":
            body = UNet(2 * task.channels, outputs, task.shape, spacing_mm=task.spacing_mm)
        else:
            encoder, final = VOXELMORPH[kind]
            of_kind = HalfVoxelMorphUNet if probabilistic else VoxelMorphUNet
            body = of_kind(2 * task.channels, outputs, task.shape, encoder, final=final)
        if probabilistic:
            return VelocityDistribution(body, antisymmetric=kind == "light")
        return RegistrationNetwork(body, diffeomorphic=diffeomorphic, antisymmetric=kind == "light")

"""LT-Net: label transfer by reversible voxel-wise correspondence.

Wang, Cao, Wei, Wang, Ma, Wang, Meng, Zheng, "LT-Net: Label Transfer by Learning Reversible Voxel-wise Correspondence
for One-shot Medical Image Segmentation", CVPR 2020, arXiv:2003.07072. No code was published.

Readings, where the text leaves a choice:
- Sums over voxels are means, so that the weights of Eq. 11 go with the magnitudes that the paper reports. Eq. 10 is
  summed over channels, so that it weighs the same with 3 classes as with 29.
- Eq. 4 as printed has the discriminator maximise D(y)^2 + (D(warped) - 1)^2, which is unbounded. Here, as usual, it
  learns 1 for scans and 0 for warped atlases, with 1/2 each; the generator learns to be told 1.
- "Patch" GAN: no patch is a whole crop, see `PatchDiscriminator`.
- Eq. 8's penalty of a vector is taken of each component, as in UnFlow, which it is cited from. The paper names no unit.
  Its fields, like UnFlow's, are added to places t, and its epsilon of 0.001 is a thousandth of a voxel there: voxels
  (`transformation_unit: voxels`, preset `paper`). The penalty then outweighs L_sim from the first step on, so that the
  default is coordinates from -1 to 1 over the grid.
- Eq. 9 is the mean of the structures' Dice, without the background; Eq. 10 is over all channels, with it.
- The gradient of G_B's input, the warped atlas, goes on to G_F: the paper trains end to end.
- A step has one pair; the paper has one on each of two GPUs, which is a batch of two (preset `paper`). It names no
  number of steps; here it is `voxelmorph`'s.
- The atlas is rebuilt by sampling it once, see `stages.parts.players.cycle`; `rebuild: twice` is Eq. 5 to the letter
  (preset `paper`).
- Adam's first momentum is 0.9 for all three networks; the paper names none.
- A label is warped "the same way as the atlas", by trilinear interpolation, as the other methods' labels are.
- Several atlases (the paper has one): each step draws one, and all vote on a new scan.

Every cycle term is least where both fields are 0, and a G_B that cannot follow yet keeps G_F there. So with light
networks the weights of the cycle rise from 0 over half of the steps (`warm_up`), and G_B is G_F with roles swapped
(`backward_network`): an antisymmetric network that predicts velocities gives inverse displacements from the first step
on. Findings on weights, patches and units: "LT-Net's losses" in docs/benchmarks/LOG.md.

Ours differs: displacements sample with aligned corners; LNCC and smoothness are those of the other methods.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from stages.config import TrainSettings
from stages.generating.propagated import PropagatedLabels
from stages.methods.networks import registration_network
from stages.methods.phases import Phase, Player, Ramp, WeightedSum
from stages.methods.recipe import Answer, Generate, Method, Recipe, Task, Train
from stages.methods.registration_losses import RegistrationSettings, registration_terms
from stages.methods.schedules import published_training, short_training
from stages.parts.batches.pairs import LabelledPair, atlas_and_scan
from stages.parts.batches.scans import Scans
from stages.parts.networks.discriminators import PatchDiscriminator
from stages.parts.panels import Panel
from stages.parts.players.cycle import (
    RegisterCycle,
    adversarial,
    anatomy_cycle,
    difference_cycle,
    image_cycle,
    transformation_cycle,
    transformation_cycle_in_voxels,
)
from stages.parts.players.judging import JudgeWarped, fake, real


class Settings(RegistrationSettings):
    """Settings of `lt-net`; a weight of 0 switches off a term and all that only this term needs.

    Rows of the paper's Tables 2 and 3: VoxelMorph has the four cycle weights and `gan_weight` 0, + L_GAN the four
    cycle weights, + L_cyc (the baseline of Table 3) `transformation_weight`, `anatomy_weight` and `difference_weight`;
    the rows below it switch these three on again.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # The text to the letter, and our reading of Eq. 8's unit; two GPUs with a pair each are a batch of two.
        "paper": {
            "backward_network": "own", "rebuild": "twice", "transformation_unit": "voxels", "warm_up": 0.0,
            "train_reg": {"batch_size": 2},
        },
        # The cycle has a tenth of the published weights: few steps cannot cope with more.
        "light": {
            "registration_network": "light", "diffeomorphic": True, "smoothness_weight": 0.5, "cycle_weight": 1.0,
            "transformation_weight": 0.3, "anatomy_weight": 0.3, "difference_weight": 0.3, "warm_up": 0.0,
            "train_reg": {"steps": 1000},
        },
    }  # fmt: skip

    registration_network: Literal["voxelmorph", "light"] = Field(
        "voxelmorph", description="G_F and G_B: VoxelMorph's, or the light one."
    )
    diffeomorphic: bool = Field(False, description="G_F and G_B predict velocity fields, which are integrated.")
    gan_weight: float = Field(1.0, ge=0, description="Weight of L_GAN; 0: no discriminator.")
    similarity_weight: float = Field(1.0, ge=0, description="Weight of L_sim.")
    smoothness_weight: float = Field(3.0, ge=0, description="lambda_2, weight of L_smooth.")
    cycle_weight: float = Field(10.0, ge=0, description="lambda_1, weight of L_cyc: the rebuilt atlas.")
    transformation_weight: float = Field(3.0, ge=0, description="lambda_2, weight of L_trans: mutual inverses.")
    transformation_unit: Literal["grid", "voxels"] = Field(
        "grid",
        description="Unit of L_trans: coordinates from -1 to 1 over the grid, or voxels (G_F then hardly moves).",
    )
    anatomy_weight: float = Field(3.0, ge=0, description="lambda_2, weight of L_anatomy_cyc: the rebuilt label.")
    difference_weight: float = Field(3.0, ge=0, description="lambda_2, weight of L_diff_cyc: the label there and back.")

    backward_network: Literal["own", "shared"] | None = Field(
        None, description="G_B: weights of its own, or G_F's; null: shared for light networks, otherwise own."
    )
    rebuild: Literal["once", "twice"] = Field(
        "once", description="Sample the rebuilt atlas from the atlas, or from the warped atlas (Eq. 5), which blurs."
    )
    warm_up: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of train-reg in which the cycle weights rise from 0; null: 0, or 0.5 for light networks.",
    )

    @model_validator(mode="after")
    def _something_draws_the_atlas_to_the_scan(self) -> Self:
        if not self.gan_weight and not self.similarity_weight:
            raise ValueError("gan_weight and similarity_weight are both 0: no term compares warped atlas and scan")
        return self

    @property
    def labels(self) -> bool:
        return bool(self.anatomy_weight or self.difference_weight)

    @property
    def cycle(self) -> bool:
        return bool(self.cycle_weight or self.transformation_weight or self.labels)


def build(task: Task, settings: Settings) -> Recipe:
    generator = partial(registration_network, settings.registration_network, task, diffeomorphic=settings.diffeomorphic)
    light = settings.registration_network == "light"
    shared = light if settings.backward_network is None else settings.backward_network == "shared"
    warm_up = (0.5 if light else 0.0) if settings.warm_up is None else settings.warm_up

    def rising(weight: float) -> float | Ramp:
        return Ramp(0.0, weight, most=warm_up) if weight and warm_up else weight

    G_F = generator(name="registration")
    G_B = None if not settings.cycle else G_F if shared else generator(name="backward")
    with task.initialises("discriminator"):
        D = PatchDiscriminator(1, task.shape) if settings.gan_weight else None
    generators = Player(
        "generators",
        trains=nn.ModuleList([G_F] if shared or G_B is None else [G_F, G_B]),
        forward=RegisterCycle(G_F, G_B, D, labels=settings.labels, twice=settings.rebuild == "twice"),
        loss=WeightedSum(
            adversarial=(settings.gan_weight, adversarial),  # L_GAN
            **registration_terms(settings, similarity_weight=settings.similarity_weight),  # L_sim, lambda_2 L_smooth
            image_cycle=(rising(settings.cycle_weight), image_cycle),  # lambda_1 L_cyc
            anatomy_cycle=(rising(settings.anatomy_weight), anatomy_cycle),  # lambda_2 L_anatomy_cyc
            transformation_cycle=(  # lambda_2 L_trans
                rising(settings.transformation_weight),
                transformation_cycle if settings.transformation_unit == "grid" else transformation_cycle_in_voxels,
            ),
            difference_cycle=(rising(settings.difference_weight), difference_cycle),  # lambda_2 L_diff_cyc
        ),
    )
    players = [generators]
    if D is not None:
        players.append(
            Player(
                "discriminator",
                trains=D,
                forward=JudgeWarped(G_F, D),
                loss=WeightedSum(real=(0.5, real), fake=(0.5, fake)),
                learning_rate=2e-4,  # the paper's, even in short trainings
            )
        )
    optional: dict[str, nn.Module | None] = {"backward": None if shared else G_B, "discriminator": D}
    pages = {"cycle": partial(show, RegisterCycle(G_F, G_B, labels=True))} if G_B is not None else {}
    return Recipe(
        networks={"registration": G_F} | {name: network for name, network in optional.items() if network is not None},
        rounds=[
            [
                Train("registration", [Phase("cycle", batches=atlas_and_scan, players=players)], pages=pages),
                Generate([PropagatedLabels()]),
            ]
        ],
        answer=Answer(registers=G_F),
    )


def show(register: RegisterCycle, data: Scans) -> list[tuple[str, list[Panel]]]:
    """The cycle of the first atlas and three scans, with labels."""
    atlas, rows = data.atlases[0], []
    for scan in data.unlabeled[:3]:
        names = [data.names[atlas], data.names[scan]]
        pair = LabelledPair(names, data.image([atlas]), data.image([scan]), data.label([atlas]), data.num_classes)
        cycle = register(pair)
        assert cycle.rebuilt is not None and cycle.warped_label is not None and cycle.rebuilt_label is not None
        transferred, back = cycle.warped_label[0].argmax(0), cycle.rebuilt_label[0].argmax(0)
        error = (cycle.rebuilt - cycle.atlas).abs()
        panels = [
            Panel("atlas", cycle.atlas[0, 0], pair.label[0]),
            Panel("scan, transferred label", cycle.scan[0, 0], transferred),
            Panel("warped atlas", cycle.warped[0, 0], transferred),
            Panel("rebuilt atlas", cycle.rebuilt[0, 0], back),
            Panel("|rebuilt - atlas|", error[0, 0], shows="error"),
        ]
        rows.append((data.names[scan], panels))
    return rows


def train_reg(settings: Settings) -> TrainSettings:
    if settings.registration_network == "light":
        return short_training(1000, learning_rate=1e-3)
    return published_training(30_000, learning_rate=2e-4, augmentation="none")


METHOD = Method(
    name="lt-net",
    summary="label transfer by a forward-backward cycle and a discriminator",
    source="Wang et al., CVPR 2020",
    settings=Settings,
    recipe=build,
    train_reg=train_reg,
)

"""PDD-Net: registration by probabilities of dense displacements; the atlas's label follows.

Heinrich, "Closing the gap between deep and conventional image registration using probabilistic dense displacement
networks", MICCAI 2019; code github.com/multimodallearning/pdd_net. One of JRSS's rivals.

R learns features and four weights. At every point of a control grid it compares the features with those at 15^3
displacements, smooths these costs over displacements (min-convolutions) and control points (mean field), and gives each
displacement a probability. The mean displacement is interpolated.

Readings:
- *Labels*: the paper is weakly supervised: what all displacements bring of the moving label, on average, must be the
  fixed label. That needs labels of both images, so pairs of atlases. JRSS's table has few labels, and for pairs without
  "only unsupervised registration is performed": so it is here. With one atlas nothing is supervised.
- *Without labels*: the same non-local loss over self-similarities (MIND-SSC), as in the author's code of the successor,
  PDD 2.5, with that code's smoothness: 0.025 per axis, thirty times as high at first, falling for 100 steps.
- *Control grid*: a point every six voxels. The published 29 or 32 points an axis are five to nine voxels apart on its
  grids, and closer than voxels on small ones.
- *Answer*: the mean displacement. The later code fits a smooth field to the probabilities, and registers twice; neither
  is in the training.

Ours differs in: both images of a pair are augmented, each its own way; self-similarities are of the nearest neighbours.
Adam 5e-3, 1000 steps of one pair as published.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from stages.config import TrainSettings
from stages.methods.phases import Phase, Player, Ramp, Term, WeightedSum
from stages.methods.recipe import Method, Recipe, Task, registration_alone
from stages.methods.registration_losses import SIMILARITIES, SIMILARITY, SMOOTHNESSES, RegistrationSettings
from stages.methods.schedules import published_training
from stages.parts.batches.partly_labelled import any_pair
from stages.parts.networks.dense_displacement import DenseDisplacements
from stages.parts.players.dense_displacement import RegisterDensely, non_local_labels, non_local_similarity


class Settings(RegistrationSettings):
    """Settings of `pdd-net`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {
            "control_spacing": 4,
            "displacements": 7,
            "reach": 0.3,
            "with_atlas": 0.5,  # in `eval` all pairs have one
            "train_reg": {"steps": 300, "schedule": "one-cycle"},
        },
        "paper": {},
    }

    control_spacing: int = Field(6, ge=1, le=64, description="Voxels between the points of the control grid, about.")
    displacements: int = Field(
        15, ge=3, le=31, description="Displacements along an axis that are compared; odd, so that 0 is one."
    )
    reach: float = Field(0.4, gt=0, le=1, description="The largest displacement, as a share of half of the grid.")
    similarity: Literal["non-local", "lncc", "lncc-means", "mse", "mi"] = Field(  # type: ignore[assignment]
        "non-local",
        description="non-local: self-similarities (MIND) that all displacements bring on average. Otherwise of the "
        f"image warped by the mean displacement. {SIMILARITY}",
    )
    smoothness_weight: float = Field(
        0.075,
        ge=0,
        description="Weight of L_smooth, of the control points' displacements in units of half of the grid.",
    )
    warm_up: int = Field(100, ge=0, description="Steps in which the weight of L_smooth falls; at most a fifth.")
    warm_up_factor: float = Field(30.0, ge=1, description="How much higher that weight is at first.")
    label_weight: float = Field(
        1.0, ge=0, description="Weight of the non-local label loss in pairs of atlases; with one atlas there are none."
    )
    with_atlas: float = Field(
        0.0, ge=0, le=1, description="Share of R's pairs with an atlas; the others are any two scans."
    )

    @field_validator("displacements")
    @classmethod
    def _has_a_middle(cls, count: int) -> int:
        if count % 2 == 0:
            raise ValueError(f"{count} is even, and no displacement at all must be one of them; take an odd number")
        return count


def build(task: Task, settings: Settings) -> Recipe:
    with task.initialises("registration"):
        R = DenseDisplacements(
            task.channels,
            spacing=settings.control_spacing,
            count=settings.displacements,
            reach=settings.reach,
        )
    weight = settings.smoothness_weight
    falling = Ramp(settings.warm_up_factor * weight, weight, settings.warm_up, most=0.2)
    non_local = settings.similarity == "non-local"
    terms: dict[str, Term] = {
        "similarity": (1.0, non_local_similarity if non_local else SIMILARITIES[settings.similarity]),  # type: ignore[index]
        "smoothness": (falling if weight else 0.0, SMOOTHNESSES[settings.smoothness]),
        "labels": (settings.label_weight if task.num_atlases > 1 else 0.0, non_local_labels),
    }
    register = Player("registration", trains=R, forward=RegisterDensely(R), loss=WeightedSum(**terms))
    pairs = partial(any_pair, with_atlas=settings.with_atlas, apart=True)
    return registration_alone(R, Phase("registration", batches=pairs, players=[register]))


def train_reg(settings: Settings) -> TrainSettings:
    return published_training(1000, learning_rate=5e-3, augmentation="half-affine")


METHOD = Method(
    name="pdd-net",
    summary="registration by probabilities of dense displacements, label propagation",
    source="Heinrich, MICCAI 2019",
    settings=Settings,
    recipe=build,
    channels=True,
    train_reg=train_reg,
)

"""CPS: two networks, each of which learns from the other one's hard labels.

Chen, Yuan, Zeng, Wang, "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021,
arXiv:2106.01226; code github.com/charlesCXK/TorchSemiSeg (exp.city/city8.res50v3+.CPS@8a4452b).

Both have one architecture and other initial weights. In every step both learn from labelled scans; on labelled and
unlabelled ones each learns from the class that the other one finds most likely, through which no gradient passes.

Readings, where the text leaves a choice:
- *Weight*: 1.5, of the first of the two published data sets (6 on the other one), constant. With so few labels the
  first pseudo-labels are wrong; `ramp_up` lets the weight grow from 0, as medical reimplementations do.
- *Answer*: the first network alone, as in the published evaluation.

Ours differs: a U-Net, as in BRBS's comparison; no pre-trained weights, no CutMix; Adam in place of SGD; plain
cross-entropy where the published training takes only the hardest pixels of labelled images.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from stages.config import TrainSettings
from stages.methods.networks import SEGMENTATION_NAMES, SegmentationName, segmentation_network
from stages.methods.phases import Phase, Player, Ramp, WeightedSum
from stages.methods.recipe import Answer, Method, Recipe, Task, Train
from stages.methods.schedules import full_or_light_rate, published_training, short_training
from stages.methods.settings import ANSWER, AnswerSettings
from stages.parts.batches.half_labelled import labelled_and_unlabeled
from stages.parts.players.segmenting import cross_entropy, overlap_and_cross_entropy
from stages.parts.players.semi_supervised import SegmentTwice, cross_pseudo, of_both


class Settings(AnswerSettings):
    """Settings of `cps`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "light": {
            "segmentation_network": "light", "segmentation_loss": "dice-ce", "ramp_up": 1.0,
            "train_seg": {"steps": 600, "batch_size": 2},
        },
    }  # fmt: skip
    preset: Annotated[str, ANSWER] = Field(
        "default", description="paper: the published numbers, as the default; light: minutes on CPU cores."
    )

    segmentation_network: SegmentationName = Field("brbs", description=f"Both networks: {SEGMENTATION_NAMES}")
    segmentation_loss: Literal["ce", "dice-ce"] = Field(
        "ce", description="L_s: cross-entropy, or Dice with cross-entropy."
    )
    cross_weight: float = Field(1.5, ge=0, description="lambda, weight of L_cps; 0: each learns from labels alone.")
    ramp_up: float = Field(
        0.0, ge=0, le=1, description="Share of the steps in which lambda grows from 0 along a Gaussian; 0: constant."
    )


def build(task: Task, settings: Settings) -> Recipe:
    first = segmentation_network(settings.segmentation_network, task)
    second = segmentation_network(settings.segmentation_network, task, name="second")
    weight: float | Ramp = settings.cross_weight
    if weight and settings.ramp_up:
        weight = Ramp(0.0, settings.cross_weight, most=settings.ramp_up, gaussian=True)
    L_s = cross_entropy if settings.segmentation_loss == "ce" else overlap_and_cross_entropy
    segment = Player(
        "both",
        trains=nn.ModuleList([first, second]),
        forward=SegmentTwice(first, second),
        loss=WeightedSum(
            supervised=(1.0, of_both(L_s)),
            cross_pseudo=(weight, cross_pseudo),  # lambda L_cps
        ),
    )
    both = Phase("both", batches=labelled_and_unlabeled, players=[segment])
    return Recipe(
        networks={"segmentation": first, "second": second},
        rounds=[[Train("segmentation", [both], sees_unlabeled=True)]],
        answer=Answer(network=first, flat_borders=settings.flat_borders),
    )


def train_seg(settings: Settings) -> TrainSettings:
    if settings.segmentation_network == "brbs":
        return published_training(10_000, batch_size=4, augmentation="rotate-scale")
    return short_training(800, batch_size=4, learning_rate=full_or_light_rate(settings.segmentation_network))


METHOD = Method(
    name="cps",
    summary="two networks learn from each other's hard labels of unlabelled scans",
    source="Chen et al., CVPR 2021",
    settings=Settings,
    recipe=build,
    channels=True,
    train_seg=train_seg,
)

"""What BRBS shows of its segmentation network, with networks whose answers are known."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from stages.methods import METHODS
from stages.methods.brbs_pages import DRAWN, GAMMA, FromNetwork, show_features, show_mixing
from stages.methods.recipe import Task
from stages.parts.batches.scans import Scans
from stages.parts.batches.space_style import Always, Beta, SpaceStyleSampling

SHAPE = (10, 12, 10)


def cohort(bank=None) -> Scans:
    """An atlas of intensity 0.2 and three scans of 0.4, 0.6 and 0.8, with a little texture."""
    generator = torch.Generator().manual_seed(0)
    level = torch.tensor([0.2, 0.4, 0.6, 0.8]).view(4, 1, 1, 1, 1)
    images = (level + 0.02 * torch.rand((4, 1, *SHAPE), generator=generator)).half()
    label = torch.zeros(SHAPE, dtype=torch.short)
    label[2:6, 3:9, 3:8] = 1
    return Scans(list("abcd"), images, {0: label}, [0], [1, 2, 3], 2, (1.0, 1.0, 1.0), bank=bank)


class Shift(nn.Module):
    """Registers everything by a voxel along D, and counts."""

    calls = 0

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        self.calls += 1
        field = torch.zeros(len(moving), 3, *moving.shape[2:])
        field[:, 0] = 1
        return field


class Still(nn.Module):
    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return torch.zeros(len(moving), 3, *moving.shape[2:])


class Threshold(nn.Module):
    """Foreground where an image is bright; its coarsest feature is the image's mean."""

    def __init__(self, sharpness: float = 50.0) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(image), self.sharpness * (image - 0.5)], 1)

    def features(self, image: Tensor) -> list[Tensor]:
        return [image.mean((2, 3, 4), keepdim=True).repeat(1, 3, 1, 1, 1), image]


@dataclass
class Bank:
    couples: list[tuple[int, int]]

    def displacement(self, couple: int) -> Tensor:
        return torch.zeros(3, *SHAPE)

    def style(self, couple: int) -> Tensor:
        _, scan = self.couples[couple]
        return torch.full((1, *SHAPE), 0.2 * scan)  # the scan's brightness


def sampling(**changes) -> SpaceStyleSampling:
    return SpaceStyleSampling(**{"space": Beta(0.3), "style": Beta(0.3), "mixing": Beta(0.3)} | changes)


def test_features_lie_between_the_atlas_and_the_scans_with_s3p_and_at_one_point_without():
    points = show_features(Still(), Threshold(), sampling(), cohort(Bank([(0, 1), (0, 2), (0, 3)])))
    drawn, warped, scans = points.groups.values()
    assert points.clouds and [len(group) for group in points.groups.values()] == [DRAWN, 3, 3]
    assert warped[:, 0].std() < 1e-3  # in its own look, and nothing moves
    along = (scans[:, 0] - warped[0, 0]) / (scans[-1, 0] - warped[0, 0])  # 0 at the atlas, 1 at the brightest scan
    assert along.tolist() == pytest.approx([1 / 3, 2 / 3, 1], abs=0.05)
    covered = (drawn[:, 0] - warped[0, 0]) / (scans[-1, 0] - warped[0, 0])
    assert covered.min() > -0.05 and covered.max() < 1.05 and covered.std() > 0.2
    assert points.axes[0].startswith("100 %")


def test_without_sampling_all_generated_scans_are_the_warped_atlas():
    points = show_features(
        Still(),
        Threshold(),
        sampling(space=Always(1.0), style=Always(0.0), mixing=None),
        cohort(Bank([(0, 1), (0, 2)])),
    )
    drawn, warped, _ = points.groups.values()
    assert (drawn[:, 0] - warped[0, 0]).abs().max() < 1e-3


def test_the_mixed_image_is_shown_with_the_answer_and_what_the_loss_sees():
    rows = show_mixing(Still(), Threshold(), cohort(Bank([(0, 1), (0, 2), (0, 3)])))
    assert [name for name, _ in rows] == ["b", "c", "d"]
    for number, (_, (first, second, mixed, doubt, apart)) in enumerate(rows, start=1):
        torch.testing.assert_close(mixed.image, GAMMA * first.image + (1 - GAMMA) * second.image)
        assert float(second.image.mean()) == pytest.approx(0.2 + 0.2 * number, abs=0.02)
        assert (mixed.label == (mixed.image > 0.5)).all()
        assert doubt.image.min() >= 0 and doubt.image.max() <= 0.5 and apart.image.max() <= 1
    first, second, _, _, apart = rows[1][1]  # 0.2 + 0.6 of the next scan's look, and the scan of 0.6: both are bright
    assert float(first.image.mean()) > 0.5 and float(apart.image.max()) < 0.05


def test_a_linear_network_answers_a_mixed_image_with_mixed_answers():
    class Linear(Threshold):
        def forward(self, image: Tensor) -> Tensor:
            return torch.cat([1 - image, image], 1).clamp(1e-6, 1).log()

    rows = show_mixing(Still(), Linear(), cohort(Bank([(0, 1), (0, 2)])))
    assert max(float(panels[4].image.max()) for _, panels in rows) < 1e-3


def test_before_there_is_a_bank_the_network_finds_each_path_once():
    R, data = Shift(), cohort()
    paths = FromNetwork(R, data, [(0, 1), (0, 2)])
    for _ in range(3):
        assert (paths.displacement(0)[0] == 1).all() and not paths.displacement(0)[1:].any()
        style = paths.style(0)
    assert R.calls == 2
    expected = data.image([1])[0, :, 1:] - data.image([0])[0, :, :-1]
    torch.testing.assert_close(style[:, :-1], expected)
    assert len(show_features(R, Threshold(), sampling(), data).groups["generated with S3P"]) == DRAWN


@pytest.mark.parametrize("preset", ["light", "paper", "official", "default"])
def test_pages_belong_to_the_step_that_trains_the_network_that_answers(preset):
    brbs = METHODS["brbs"]
    small = {"registration_network": "light", "segmentation_network": "light"}
    recipe = brbs.recipe(Task(SHAPE, 2, 1), brbs.settings.model_validate({"preset": preset, **small}))
    pages = {kind: list(recipe.step(kind, 0).pages) for kind in ("registration", "segmentation")}
    at_last = ["features", "mixing"]
    beside = preset in ("paper", "official")
    assert pages == {"registration": at_last if beside else [], "segmentation": [] if beside else at_last}
    step = recipe.step("registration" if beside else "segmentation", 0)
    data = cohort(None if beside else Bank([(0, 1), (0, 2)]))
    with torch.inference_mode():
        for page in step.pages.values():
            assert page(data)

"""IST: looks by Fourier amplitudes, features that are compared, and rounds in an order of their own."""

from __future__ import annotations

import pytest
import torch
from conftest import Project

from stages.config import Config
from stages.errors import LrlsError
from stages.generating.pseudo_labels import PseudoLabels
from stages.generating.warped_atlases import WarpedAtlases
from stages.methods import METHODS, settings_of
from stages.methods.recipe import Generate, Task, Train
from stages.parts.augmentation import AUGMENTATIONS
from stages.parts.batches.drawing import Draw
from stages.parts.batches.pairs import atlas_and_scan
from stages.parts.batches.pseudo_labels import PseudoLabel
from stages.parts.batches.scans import Scans
from stages.parts.batches.styled import styled_warps
from stages.parts.fourier import mix_amplitudes
from stages.parts.players.image_aligned import Compared, RegisterAndCompare, content, first_features

SHAPE = (16, 12, 20)
KINDS = ("registration", "generated", "segmentation")  # what a round makes, in this order


def textured(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def recipe_of(**settings):
    config = Config.model_validate(
        {"workspace": "r", "data": {"folder": "."}, "structures": {"a": 1}, "methods": {"ist": settings}}
    )
    return METHODS["ist"].recipe(Task(SHAPE, 3, 1), settings_of(METHODS["ist"], config))


class Sample:
    def __init__(self, scan: str, seed: int) -> None:
        self.scan, self.atlas, self.image = scan, "a", textured(1, *SHAPE, seed=seed).half()
        self.label = (self.image[0] > 0.5).short() + (self.image[0] > 0.8).short()


def scans(*, pseudo: bool = False) -> Scans:
    images = textured(3, 1, *SHAPE).half()
    label = (images[0, 0] > 0.6).short()
    said = {
        place: PseudoLabel((images[place, 0] > 0.7).short(), torch.ones(SHAPE, dtype=torch.bool), torch.ones(3).bool())
        for place in (1, 2)
    }
    return Scans(
        ["a", "b", "c"], images, {0: label}, [0], [1, 2], 3, (1.0, 1.0, 1.0),
        samples=[Sample("b", 1), Sample("c", 2)], pseudo=said if pseudo else None,
    )  # fmt: skip


def draw(augmentation: str = "none", n: int = 2) -> Draw:
    return Draw(n, *AUGMENTATIONS[augmentation], torch.Generator().manual_seed(3))


def shares(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1, 1)


# Looks


def test_a_share_of_none_is_the_image_itself():
    image, look = textured(2, 1, *SHAPE), textured(2, 1, *SHAPE, seed=1)
    torch.testing.assert_close(mix_amplitudes(image, look, shares(0, 0)), image, atol=1e-5, rtol=0)


def test_the_amplitudes_of_a_brighter_copy_brighten():
    image = textured(2, 1, *SHAPE)
    mixed = mix_amplitudes(image, 3 * image, shares(0.5, 1))
    torch.testing.assert_close(mixed, image * torch.tensor([2.0, 3.0]).view(2, 1, 1, 1, 1), atol=1e-5, rtol=1e-5)


def test_phase_is_the_image_s_and_amplitude_the_look_s():
    image, look = textured(1, 1, *SHAPE), textured(1, 1, *SHAPE, seed=1)
    mixed = mix_amplitudes(image, look, shares(1.0))
    spectra = [torch.fft.fftn(each, dim=(2, 3, 4)) for each in (image, look, mixed)]
    torch.testing.assert_close(spectra[2].abs(), spectra[1].abs(), atol=1e-3, rtol=1e-3)
    strong = spectra[1].abs() > 1  # of what is not there, there is no phase
    angle = (spectra[2] * spectra[0].conj()).angle()[strong]
    torch.testing.assert_close(angle, torch.zeros_like(angle), atol=1e-2, rtol=0)


def test_odd_grids_keep_their_size():
    image = textured(1, 1, 7, 9, 11)
    assert mix_amplitudes(image, image, shares(0.3)).shape == image.shape


# Batches


def test_a_styled_warp_is_not_moved_from_its_label_and_the_scan_is_its_own():
    data = scans()
    batch = styled_warps(data, draw())
    for k, name in enumerate(batch.scans):
        sample = next(each for each in data.samples if each.scan == name)
        assert torch.equal(batch.target[k].argmax(0), sample.label.long())
        torch.testing.assert_close(batch.scan[k], data.images[data.names.index(name)].float())
    assert batch.pseudo is None and batch.image.min() >= 0 and batch.image.max() <= 1


def test_warps_scans_and_both_labels_move_alike():
    data = scans(pseudo=True)
    batch = styled_warps(data, draw("affine", n=4), pseudo=True)
    still = styled_warps(data, draw("none", n=4), pseudo=True)
    assert batch.pseudo.shape == batch.target.shape
    assert not torch.equal(batch.target, still.target) and not torch.equal(batch.pseudo, still.pseudo)
    # A pseudo-label is a threshold of its own scan, and stays one wherever both are moved to.
    inside = batch.pseudo[:, 1] > 0.99
    assert (batch.scan[:, 0][inside] > 0.6).all()


def test_a_scan_without_pseudo_label_is_named():
    with pytest.raises(LrlsError, match=r"case [bc] has no pseudo-label; make them again with `lrls generate`"):
        styled_warps(scans(), draw(), pseudo=True)


# Features


def test_content_is_0_where_features_agree_and_2_where_they_are_opposite():
    x = textured(1, 4, 3, 3, 3) + 0.1
    for other, expected in ((x, 0), (2 * x, 0), (-x, 2)):
        pair = Compared(x, x, torch.zeros(1, 3, 3, 3, 3), 1, features=(x, other))
        assert float(content(pair)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("network", ["siamese", "light"])
def test_content_moves_the_displacement_and_not_the_weights_that_features_are_made_with(network):
    R = recipe_of(registration_network=network).networks["registration"]
    torch.nn.init.normal_(R.body.head.weight, std=0.1)
    batch = atlas_and_scan(scans(), draw())

    content(RegisterAndCompare(R)(batch)).backward()
    assert R.body.head.weight.grad.abs().max() > 0

    assert not first_features(R, batch.fixed).requires_grad
    assert first_features(R, batch.fixed.requires_grad_()).requires_grad


# The recipe


def test_registration_comes_first_in_every_round_and_both_kinds_of_data_are_generated_later_on():
    recipe = recipe_of(rounds=2)
    assert [[step.makes for step in recipe.steps(n)] for n in range(3)] == [
        ["registration", "generated", "segmentation"]
    ] * 3
    first, later = (recipe.step("generated", n) for n in (0, 1))
    assert isinstance(first, Generate) and first.writers == [WarpedAtlases()] and first.uses == ["registration"]
    assert isinstance(later, Generate) and later.writers == [WarpedAtlases(), PseudoLabels(0.0)]
    assert list(later.uses) == ["registration", "segmentation"]
    assert [recipe.step("registration", n).uses for n in (0, 1)] == [[], ["segmentation"]]


SWITCHES = {
    "smoothness_weight": (0.0, "registration", 0, "smoothness"),
    "content_weight": (0.0, "registration", 0, "content"),
    "overlap_weight": (0.0, "registration", 1, "overlap"),
    "pseudo_weight": (0.0, "segmentation", 1, "pseudo"),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_weight_of_0_switches_its_term_off(name):
    value, role, number, term = SWITCHES[name]

    def terms(**settings):
        step = recipe_of(**settings).step(role, number)
        assert isinstance(step, Train)
        return step.phases[0].players[0].loss.terms

    assert term in terms() and term not in terms(**{name: value})


def test_without_pseudo_labels_none_are_generated():
    assert recipe_of(pseudo_weight=0).step("generated", 1).writers == [WarpedAtlases()]


def test_a_later_round_reads_what_the_one_before_made(project: Project, no_pictures):
    settings = ("--set", "methods.ist={preset: light, train_reg: {steps: 2}, train_seg: {steps: 2}}")
    project.made("run", "--method", "ist", *settings)

    assert {
        kind: project.versions(f"ist/{kind}") for kind in ("registration", "generated", "segmentation", "scores")
    } == {
        "registration": ["v0001", "v0002"],
        "generated": ["v0001", "v0002"],
        "segmentation": ["v0001", "v0002"],
        "scores": ["v0001"],
    }
    digests = project.digests()
    later = {
        kind: project.manifest(f"ist/{kind}", "v0002").identity
        for kind in ("registration", "generated", "segmentation")
    }
    assert all(identity.round == 1 for identity in later.values())
    assert later["registration"].inputs["segmentation"] == digests["ist/segmentation/v0001"]
    assert later["registration"].inputs["registration"] == digests["ist/registration/v0001"]
    assert later["generated"].inputs["registration"] == digests["ist/registration/v0002"]
    assert later["generated"].inputs["segmentation"] == digests["ist/segmentation/v0001"]
    assert later["segmentation"].inputs["generated"] == digests["ist/generated/v0002"]
    assert later["segmentation"].inputs["segmentation"] == digests["ist/segmentation/v0001"]
    again = project.made("run", "--method", "ist", *settings)
    assert project.digests() == digests and "round 1 of 1" in again.out

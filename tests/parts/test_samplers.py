"""What batches hold: who is drawn, that image and label move together, and S3P by its formulas."""

from dataclasses import dataclass, replace

import pytest
import torch

from stages.parts.augmentation import IntensityAugmentation, SpatialAugmentation
from stages.parts.batches.drawing import Draw, pick
from stages.parts.batches.labelled import Labelled, generated_samples, labelled_scans
from stages.parts.batches.pairs import Triplet, atlas_and_scan, atlas_and_two_unlabeled
from stages.parts.batches.scans import Scans
from stages.parts.batches.space_style import Always, Beta, Mixed, SpaceStyleSampling
from stages.parts.warps import compose, one_hot, warp, warp_one_hot, warp_probabilities

SHAPE = (5, 6, 7)
NAMES = ("atlas_a", "atlas_b", "scan_a", "scan_b", "scan_c", "labelled")
TURNED = SpatialAugmentation(degrees=15.0, scale=(0.8, 1.2))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(*size, seed=0):
    return torch.rand(size, generator=generator(seed))


def cohort(**changes):
    """Six scans; image i is textured about i / 10, so that its values tell who it is."""
    images = torch.stack([0.1 * i + 0.05 * textured(1, *SHAPE, seed=i) for i in range(6)]).half()
    labels = {i: torch.randint(3, SHAPE, generator=generator(i)).short() for i in (0, 1, 5)}
    scans = Scans(NAMES, images, labels, [0, 1], [2, 3, 4], 3, (1.0, 1.0, 1.0))
    return replace(scans, **changes)


def drawing(batch_size=2, space=None, intensity=None, seed=0):
    return Draw(batch_size, space, intensity, generator(seed))


# Degrees


@pytest.mark.parametrize("a", [0.3, 1.0, 3.0])
def test_beta_has_the_mean_and_the_variance_of_its_distribution(a):
    degrees = Beta(a)(20_000, generator())
    assert degrees.shape == (20_000, 1, 1, 1, 1)
    assert degrees.min() >= 0 and degrees.max() <= 1
    assert float(degrees.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(degrees.var()) == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.03)


def test_beta_depends_on_the_generator_alone():
    torch.manual_seed(1)
    first = Beta(0.3)(5, generator(7))
    torch.manual_seed(2)
    assert torch.equal(first, Beta(0.3)(5, generator(7)))
    assert not torch.equal(first, Beta(0.3)(5, generator(8)))


def test_always_is_not_random():
    assert Always(0.25)(3, generator()).flatten().tolist() == [0.25] * 3


def test_pick_draws_uniformly_with_replacement():
    drawn = pick([4, 7, 9], 900, generator())
    assert all(250 < drawn.count(item) < 350 for item in (4, 7, 9))


# Scans


def test_labelled_scans_are_those_with_a_label_and_nobody_else():
    data = cohort()
    seen = {name for seed in range(20) for name in labelled_scans(data, drawing(seed=seed)).scans}
    assert seen == {"atlas_a", "atlas_b", "labelled"}


def test_labelled_image_and_target_belong_together():
    data = cohort()
    batch = labelled_scans(data, drawing(batch_size=4))
    for name, image, target in zip(batch.scans, batch.image, batch.target, strict=True):
        place = NAMES.index(name)
        assert torch.equal(image, data.images[place].float())
        assert torch.equal(target.argmax(0), data.labels[place].long())


def test_labelled_image_and_target_move_together():
    # An image that is its own label map, soft as the target is.
    label = (textured(*SHAPE) > 0.5).short()
    data = cohort(images=label.half().expand(6, 1, *SHAPE), labels={0: label})
    batch = labelled_scans(data, drawing(space=TURNED))
    torch.testing.assert_close(batch.image[:, 0], batch.target[:, 1])
    assert (batch.image[:, 0] - label).abs().max() > 0.1
    torch.testing.assert_close(batch.target.sum(1), torch.ones(2, *SHAPE))


def test_intensities_change_in_the_image_and_not_in_the_target():
    data = cohort(labels={0: cohort().labels[0]})
    plain, coloured = (labelled_scans(data, drawing(intensity=i)) for i in (None, IntensityAugmentation()))
    assert (plain.image - coloured.image).abs().max() > 0.01
    assert torch.equal(plain.target, coloured.target)


def test_pair_is_an_atlas_that_moves_to_an_unlabelled_scan():
    data = cohort()
    for seed in range(10):
        batch = atlas_and_scan(data, drawing(batch_size=1, seed=seed))
        moving, fixed = (NAMES.index(name) for name in batch.scans)
        assert moving in data.atlases and fixed in data.unlabeled
        assert torch.equal(batch.moving[0], data.images[moving].float())
        assert torch.equal(batch.fixed[0], data.images[fixed].float())


def test_triplet_names_what_it_holds():
    data = cohort()
    batch = atlas_and_two_unlabeled(data, drawing())
    places = [NAMES.index(name) for name in batch.scans]
    expected = data.images[places].float()
    assert torch.equal(torch.cat([batch.atlas, batch.first, batch.second]), expected)
    assert torch.equal(batch.label, torch.stack([data.labels[place] for place in places[:2]]))
    assert {*places[:2]} <= {0, 1} and {*places[2:]} <= {2, 3, 4}


def test_triplet_brings_two_images_of_atlases_and_scans_alike_where_it_is_asked_for_them():
    data, seen = cohort(), set()
    for seed in range(30):
        batch = atlas_and_two_unlabeled(data, drawing(seed=seed), others=True)
        places = [NAMES.index(name) for name in batch.scans]
        everything = torch.cat([batch.atlas, batch.first, batch.second, batch.others])
        assert torch.equal(everything, data.images[places].float()) and len(batch.others) == 4
        seen |= set(places[6:])
    assert seen == {*data.atlases, *data.unlabeled}
    assert atlas_and_two_unlabeled(data, drawing()).others is None
    moved = atlas_and_two_unlabeled(data, drawing(space=TURNED, seed=1), others=True)
    still = atlas_and_two_unlabeled(data, drawing(space=TURNED, seed=1), others=True, move=False)
    around = still.around.repeat(2, 1, 1, 1, 1)
    torch.testing.assert_close(moved.others, warp(still.others, around, padding="zeros"))


def test_triplet_draws_its_two_scans_independently():
    data = cohort()
    couples = {tuple(atlas_and_two_unlabeled(data, drawing(1, seed=s)).scans[1:]) for s in range(150)}
    assert len(couples) == 9


@pytest.mark.parametrize("sampler", [atlas_and_two_unlabeled, atlas_and_scan])
def test_the_scans_of_a_batch_share_one_displacement_per_sample(sampler):
    image = textured(1, *SHAPE).half()
    data = cohort(images=image.expand(6, 1, *SHAPE))  # everybody looks the same, so differences are displacements
    batch = sampler(data, drawing(space=TURNED))
    images = [batch.moving, batch.fixed] if sampler is atlas_and_scan else [batch.atlas, batch.first, batch.second]
    for other in images[1:]:
        assert torch.equal(other, images[0])
    assert (images[0][0] - images[0][1]).abs().max() > 0.05
    assert (images[0][0] - image).abs().max() > 0.05


def test_a_triplet_that_stays_brings_its_augmentation_along():
    moved = atlas_and_two_unlabeled(cohort(), drawing(space=TURNED))
    still = atlas_and_two_unlabeled(cohort(), drawing(space=TURNED), move=False)
    assert moved.around is None and still.around is not None
    assert moved.scans == still.scans
    for name in ("atlas", "first", "second"):
        expected = warp(getattr(still, name), still.around, padding="zeros")
        torch.testing.assert_close(getattr(moved, name), expected)


@pytest.mark.parametrize("sampler", [atlas_and_two_unlabeled, atlas_and_scan])
def test_the_label_moves_with_its_atlas(sampler):
    label = (textured(*SHAPE) > 0.5).short()
    data = cohort(images=label.half().expand(6, 1, *SHAPE), labels={0: label, 1: label})
    batch = sampler(data, drawing(space=TURNED))
    atlas = batch.atlas if isinstance(batch, Triplet) else batch.moving
    clear = (atlas[:, 0] - 0.5).abs() > 0.45  # the label is the nearest voxel's, the image is interpolated
    assert clear.float().mean() > 0.1
    assert torch.equal(batch.label[clear].bool(), atlas[:, 0][clear] > 0.5)
    assert batch.label.dtype == torch.int16


def test_the_same_seed_draws_the_same_batch():
    data = cohort()
    first, second, third = (atlas_and_two_unlabeled(data, drawing(space=TURNED, seed=seed)) for seed in (3, 3, 4))
    assert first.scans == second.scans and torch.equal(first.atlas, second.atlas)
    assert not torch.equal(first.atlas, third.atlas)


@dataclass
class Couple:
    image: torch.Tensor
    label: torch.Tensor
    scan: str
    atlas: str = "atlas_0"


def test_generated_samples_are_given_back_with_their_labels():
    couples = [Couple(textured(1, *SHAPE, seed=i).half(), torch.full(SHAPE, i).short(), f"scan_{i}") for i in range(3)]
    batch = generated_samples(cohort(samples=couples), drawing(batch_size=4))
    for name, image, target in zip(batch.scans, batch.image, batch.target, strict=True):
        couple = couples[int(name[-1])]
        assert torch.equal(image, couple.image.float())
        assert (target.argmax(0) == couple.label).all()


# S3P


def path_and_style():
    """A path that stays small and a style map, for two samples."""
    return textured(2, 3, *SHAPE, seed=11) - 0.5, 0.3 * textured(2, 1, *SHAPE, seed=12)


def sampled(space, style, *, mixing=None, any_pair=False, draw=None, **changes):
    path, psi = path_and_style()
    given = {
        "atlas": textured(2, 1, *SHAPE, seed=13),
        "label": torch.randint(3, (2, *SHAPE), generator=generator(14)),
        "num_classes": 3,
        "path": path,
        "psi": psi,
        "scan": textured(2, 1, *SHAPE, seed=15),
    } | changes
    sampling = SpaceStyleSampling(space, style, mixing, any_pair)
    return sampling(draw or drawing(), **given), given


def test_degrees_of_zero_give_the_atlas_and_its_label_back():
    batch, given = sampled(Always(0.0), Always(0.0))
    torch.testing.assert_close(batch.image, given["atlas"], atol=1e-6, rtol=0)
    torch.testing.assert_close(batch.target, one_hot(given["label"], 3), atol=1e-5, rtol=0)


def test_without_style_the_atlas_is_only_deformed():
    batch, given = sampled(Always(1.0), Always(0.0))
    torch.testing.assert_close(batch.image, warp(given["atlas"], given["path"]))
    torch.testing.assert_close(batch.target, warp_one_hot(given["label"], given["path"], 3))


def test_without_space_the_atlas_is_only_restyled():
    batch, given = sampled(Always(0.0), Always(1.0))
    torch.testing.assert_close(batch.image, given["atlas"] + given["psi"], atol=1e-6, rtol=0)
    torch.testing.assert_close(batch.target, one_hot(given["label"], 3), atol=1e-5, rtol=0)


def test_full_degrees_give_the_restyled_atlas_in_the_scans_space():
    batch, given = sampled(Always(1.0), Always(1.0))
    torch.testing.assert_close(batch.image, warp(given["atlas"] + given["psi"], given["path"]))


def test_partial_degrees_scale_the_path_and_the_style():
    batch, given = sampled(Always(0.25), Always(0.5))
    way = 0.25 * given["path"]
    torch.testing.assert_close(batch.image, warp(given["atlas"] + 0.5 * given["psi"], way))
    torch.testing.assert_close(batch.target, warp_one_hot(given["label"], way, 3))


def test_every_sample_has_degrees_of_its_own():
    ones = torch.ones(200, 1, *SHAPE)
    path = torch.zeros(200, 3, *SHAPE)
    label = torch.zeros(200, *SHAPE)
    sampling = SpaceStyleSampling(Beta(0.3), Beta(0.3), None)
    batch = sampling(drawing(200), atlas=0 * ones, label=label, num_classes=2, path=path, psi=ones, scan=ones)
    betas = batch.image[:, 0, 2, 3, 3]  # image = beta
    assert len(betas.unique()) > 150
    assert 0.1 < float(betas.var()) < 0.2  # 0.156


def test_without_mixing_no_pair_is_made():
    batch, _ = sampled(Always(1.0), Always(1.0))
    assert type(batch) is Labelled


def test_the_mixed_pair_is_the_fully_transformed_atlas_and_the_scan_that_its_path_leads_to():
    batch, given = sampled(Always(0.3), Always(0.2), mixing=Always(0.7))
    assert isinstance(batch, Mixed)
    torch.testing.assert_close(batch.first, warp(given["atlas"] + given["psi"], given["path"]))
    assert torch.equal(batch.second, given["scan"])
    assert batch.gamma.flatten().tolist() == pytest.approx([0.7, 0.7])


def test_any_two_images_are_mixed_where_asked():
    others = textured(4, 1, *SHAPE, seed=20)
    batch, _ = sampled(Always(0.3), Always(0.2), mixing=Always(0.7), any_pair=True, others=others)
    torch.testing.assert_close(torch.cat([batch.first, batch.second]), others, atol=1e-6, rtol=0)


def test_augmentation_moves_the_target_and_the_pair_with_the_image():
    # A finished couple that is warped once more: interpolating once instead of twice differs a little.
    around = 0.3 * (textured(2, 3, *SHAPE, seed=21) - 0.5)
    path = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1, 1).expand(2, 3, *SHAPE)  # a translation: no difference
    plain, given = sampled(Always(1.0), Always(0.5), mixing=Always(0.5), path=path)
    moved, _ = sampled(Always(1.0), Always(0.5), mixing=Always(0.5), path=path, around=around)
    inside = (..., slice(1, -2), slice(1, -1), slice(2, -1))
    for name in ("image", "target", "first", "second"):
        once, twice = getattr(moved, name), warp(getattr(plain, name), around)
        torch.testing.assert_close(once[inside], twice[inside], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert (moved.second - given["scan"]).abs().max() > 0.01


def test_augmentation_reads_the_path_where_it_points_to():
    path, _ = path_and_style()
    around = torch.tensor([0.0, 2.0, -1.0]).view(1, 3, 1, 1, 1).expand(2, 3, *SHAPE)
    batch, given = sampled(Always(0.5), Always(0.0), mixing=Always(0.5), around=around)
    way = compose(0.5 * path, around)  # first the augmentation pulls, then half of the path
    torch.testing.assert_close(batch.image, warp(given["atlas"], way, padding="zeros"))
    torch.testing.assert_close(batch.target, warp_one_hot(given["label"], way, 3))
    whole = compose(path, around)
    torch.testing.assert_close(batch.first, warp(given["atlas"] + given["psi"], whole, padding="zeros"))


def test_augmented_couples_are_zero_and_background_outside_the_atlas():
    around = torch.zeros(2, 3, *SHAPE)
    around[:, 2] = 20  # all is read outside
    batch, _ = sampled(Always(1.0), Always(0.5), mixing=Always(0.5), around=around)
    for image in (batch.image, batch.first, batch.second):
        assert image.abs().max() == 0
    assert (batch.target[:, 0] == 1).all()


def test_every_image_is_recoloured_and_the_target_is_not():
    kinds = {"mixing": Always(0.5)}
    plain, _ = sampled(Always(1.0), Always(0.5), **kinds)
    coloured, _ = sampled(Always(1.0), Always(0.5), **kinds, draw=drawing(intensity=IntensityAugmentation()))
    for name in ("image", "first", "second"):
        assert (getattr(plain, name) - getattr(coloured, name)).abs().max() > 0.01
    assert torch.equal(plain.target, coloured.target)


# Bank


class Bank:
    """Couples of two atlases; the path of couple c is a translation by c / 10 along W, its style is (c + 1) / 100."""

    couples = ((0, 2), (0, 3), (1, 3), (1, 4), (1, 2))

    def __init__(self):
        self.read = []

    def displacement(self, couple):
        self.read.append(("space", couple))
        field = torch.zeros(3, *SHAPE)
        field[2] = couple / 10
        return field.half()

    def style(self, couple):
        self.read.append(("style", couple))
        return torch.full((1, *SHAPE), (couple + 1) / 100).half()


def from_bank(seed=0, space=None, intensity=None, batch_size=2, **settings):
    settings = {"space": Always(1.0), "style": Always(1.0), "mixing": Always(0.5)} | settings
    data = cohort(bank=Bank())
    return data, SpaceStyleSampling(**settings).from_bank(data, drawing(batch_size, space, intensity, seed))


def test_bank_gives_style_only_from_couples_of_the_same_atlas():
    drawn = set()
    for seed in range(60):
        data, _ = from_bank(seed, batch_size=1)
        read = dict(data.bank.read)
        drawn.add((read["space"], read["style"]))
        assert Bank.couples[read["space"]][0] == Bank.couples[read["style"]][0]
    assert len(drawn) == 2 * 2 + 3 * 3  # space and style are drawn independently


def test_coupled_bank_gives_space_and_style_of_one_scan():
    for seed in range(20):
        data, _ = from_bank(seed, batch_size=2, coupled=True)
        spaces, styles = ([c for kind, c in data.bank.read if kind == wanted] for wanted in ("space", "style"))
        assert spaces == styles


def test_bank_couples_are_made_by_the_formula():
    data, batch = from_bank(batch_size=3)
    spaces = [c for kind, c in data.bank.read if kind == "space"]
    styles = [c for kind, c in data.bank.read if kind == "style"]
    for i, (c, s) in enumerate(zip(spaces, styles, strict=True)):
        atlas, scan = Bank.couples[c]
        path = Bank().displacement(c)[None].float()
        image = data.images[atlas][None].float() + Bank().style(s).float()
        torch.testing.assert_close(batch.image[i : i + 1], warp(image, path))
        torch.testing.assert_close(batch.first[i : i + 1], warp(image, path))
        torch.testing.assert_close(
            batch.target[i : i + 1], warp_probabilities(one_hot(data.labels[atlas][None], 3), path)
        )
        assert torch.equal(batch.second[i], data.images[scan].float())
        assert batch.scans[i::3] == [NAMES[atlas], NAMES[scan], NAMES[Bank.couples[s][1]]]


def test_bank_mixes_any_training_images_where_asked():
    seen = set()
    for seed in range(40):
        data, batch = from_bank(seed, batch_size=1, any_pair=True)
        for image in (batch.first, batch.second):
            matches = [i for i in range(6) if torch.allclose(image[0], data.images[i].float(), atol=1e-6)]
            assert matches
            seen.update(matches)
    assert seen == {0, 1, 2, 3, 4}  # atlases and unlabelled scans, and not the other labelled one


def test_bank_augments_target_and_image_alike():
    label = (textured(*SHAPE) > 0.5).short()
    data = cohort(images=label.half().expand(6, 1, *SHAPE), labels={0: label, 1: label}, bank=Bank())
    sampling = SpaceStyleSampling(Beta(0.3), Always(0.0), Always(0.5))
    batch = sampling.from_bank(data, drawing(space=TURNED))
    torch.testing.assert_close(batch.image[:, 0], batch.target[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.target.sum(1), torch.ones(2, *SHAPE))

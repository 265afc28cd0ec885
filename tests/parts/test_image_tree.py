"""MABMIS: trees of known distances, demons on known shifts, templates, votes by patches, and the tree as a whole."""

import math
from types import SimpleNamespace

import pytest
import torch
from recipes import built, textured

from stages.answering.portable import network_alone
from stages.errors import LrlsError
from stages.methods.mabmis import fill
from stages.methods.recipe import Task
from stages.parts.batches.scans import Scans
from stages.parts.demons import Demons, inverse
from stages.parts.image_tree import ImageTree, TreeRegistration
from stages.parts.templates import PLACES, num_templates, template_displacements
from stages.parts.trees import by_depth, centre, distances, grown, spanning_tree
from stages.parts.voting_by_patches import patch_distances, patch_vote
from stages.parts.warps import compose

GRID = (16, 20, 24)


# Trees


def on_a_line(*places):
    """Distances of points on a line."""
    points = torch.tensor(places)
    return (points[:, None] - points[None]).abs()


def test_distance_is_the_root_of_the_mean_square():
    images = torch.stack([torch.full((1, 2, 2, 2), value) for value in (0.0, 3.0, 4.0)])
    assert distances(images[:1], images).tolist() == [[0, 3, 4]]


def test_tree_of_points_on_a_line_is_the_line():
    lengths = on_a_line(0.0, 10.0, 3.0, 6.0)
    assert spanning_tree(lengths, 0) == [0, 3, 0, 2]
    assert spanning_tree(lengths, 3) == [2, 3, 3, 3]
    assert by_depth([0, 3, 0, 2]) == [2, 3, 1]


def test_tree_has_the_least_total_length():
    lengths = torch.tensor([[0, 4, 3, 9], [4, 0, 2, 5], [3, 2, 0, 7], [9, 5, 7, 0]]).float()
    parents = spanning_tree(lengths, 3)
    assert parents == [2, 3, 1, 3]
    assert sum(float(lengths[node, parent]) for node, parent in enumerate(parents)) == 10


def test_root_is_where_the_paths_along_the_tree_are_shortest():
    assert centre(on_a_line(0.0, 10.0, 4.0)) == 2
    star = torch.full((4, 4), 2.0) - torch.eye(4) * 2
    star[1] = star[:, 1] = 1.0
    star[1, 1] = 0.0
    assert centre(star) == 1
    assert centre(torch.zeros(1, 1)) == 0


def test_scans_join_the_nearest_first_and_then_others_join_them():
    lengths = on_a_line(0.0, 1.0, 9.0, 6.0, 3.0)  # two atlases; scans at 9, 6 and 3
    assert grown(lengths, [0, 0, 0, 0, 0], [0, 1]) == [0, 0, 3, 4, 1]


# Demons


def blob(shift=(0.0, 0.0, 0.0), size=2.5):
    """A smooth spot near the middle, (1, 1, *GRID) in [0, 1]; it lies `shift` voxels away."""
    axes = torch.meshgrid(*(torch.arange(n).float() for n in GRID), indexing="ij")
    middle = [(n - 1) / 2 + by for n, by in zip(GRID, shift, strict=True)]
    squares = sum((axis - at) ** 2 for axis, at in zip(axes, middle, strict=True))
    return torch.exp(-squares / (2 * size**2))[None, None]


def test_demons_find_a_shift_and_the_displacement_pulls():
    fixed = blob((2.0, -1.0, 1.0))
    found = Demons((15, 10, 5))(blob(), fixed)
    inside = found[0][:, fixed[0, 0] > 0.3].mean(1)
    torch.testing.assert_close(inside, torch.tensor([-2.0, 1.0, -1.0]), atol=0.4, rtol=0)


def test_demons_go_on_from_a_start_and_leave_equal_images_and_flat_ones_where_they_are():
    start = torch.tensor([-2.0, 1.0, -1.0]).view(1, 3, 1, 1, 1).expand(1, 3, *GRID)
    torch.testing.assert_close(Demons((0, 0))(blob(), blob(), start), start, atol=1e-4, rtol=0)
    fixed = blob((2.0, -1.0, 1.0))
    few = Demons((1, 1))(blob(), fixed, start)[0][:, fixed[0, 0] > 0.3]
    torch.testing.assert_close(few, torch.tensor([[-2.0], [1.0], [-1.0]]).expand_as(few), atol=0.25, rtol=0)
    assert not Demons((2, 2))(blob(), blob()).any()
    noise = 1e-4 * textured(2, 1, 1, *GRID)
    assert not Demons((2, 2))(*noise).any()


def test_one_iteration_moves_no_point_further_than_the_longest():
    found = Demons((1,), sigma=1e-3, longest=0.5)(textured(1, 1, *GRID), textured(1, 1, *GRID, seed=1))
    assert 0.1 < float(found.norm(dim=1).max()) <= 0.5 + 1e-3


def test_inverse_of_a_shift_is_its_opposite_and_undoes_a_smooth_field():
    shift = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1, 1).expand(1, 3, *GRID)
    torch.testing.assert_close(inverse(shift), -shift)
    smooth = torch.zeros(1, 3, *GRID)
    smooth[:, 1] = 1.5 * blob(size=3.0)[:, 0]
    torch.testing.assert_close(compose(smooth, inverse(smooth)), torch.zeros_like(smooth), atol=1e-3, rtol=0)


# Templates


def test_templates_are_as_many_as_differ_and_at_most_twice_the_atlases():
    assert [num_templates(n) for n in (1, 2, 3, 4, 5)] == [0, 1, 4, 8, 10]


def constant(*values):
    return torch.tensor(values).view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 2, 2)


def test_two_atlases_have_one_template_and_three_have_four_along_their_line():
    torch.testing.assert_close(template_displacements(constant(5.0)), constant(5.0))
    found = template_displacements(constant(1.0, 5.0))  # mean 3, deviation 2
    expected = sorted(3 + 2 * c for c in PLACES)
    assert sorted(found[:, 0, 0, 0, 0].tolist()) == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(found, found[:, :1, :1, :1, :1].expand_as(found))


def test_more_templates_go_along_the_first_component_first():
    fields = torch.zeros(3, 3, 1, 1, 1)  # four atlases: a long way apart along D, a short one along H
    fields[:, 0, 0, 0, 0] = torch.tensor([-3.0, 0.0, 3.0])
    fields[:, 1, 0, 0, 0] = torch.tensor([0.1, -0.2, 0.1])
    found = template_displacements(fields)[:, :, 0, 0, 0]
    assert len(found) == 8
    first = [c * math.sqrt(6) for c in PLACES]
    assert sorted(found[:4, 0].abs().tolist()) == pytest.approx(sorted(map(abs, first)), abs=1e-4)
    torch.testing.assert_close(found[:4, 1], found[:1, 1].expand(4))


# Votes


def test_patch_distance_counts_the_differences_around_a_voxel():
    scan, warped = torch.zeros(1, 1, 5, 5, 5), torch.zeros(1, 1, 5, 5, 5)
    warped[0, 0, 2, 2, 2] = 0.5
    found = patch_distances(warped, scan)
    assert float(found[0, 1, 1, 1]) == pytest.approx(0.5) and float(found[0, 0, 2, 2]) == 0


def test_votes_weigh_by_a_gaussian_as_wide_as_the_median():
    says = torch.eye(2)[[0, 1, 1]].view(3, 2, 1, 1, 1)
    distance = torch.tensor([0.1, 0.2, 0.6]).view(3, 1, 1, 1)
    weights = [math.exp(-0.5 * (d / (0.2 + 1e-4)) ** 2) for d in (0.1, 0.2, 0.6)]
    found = patch_vote(says, distance).flatten()
    assert found.tolist() == pytest.approx([weights[0] / sum(weights), sum(weights[1:]) / sum(weights)])
    equal = patch_vote(says, torch.zeros(3, 1, 1, 1)).flatten()
    assert equal.tolist() == pytest.approx([1 / 3, 2 / 3])


# The whole


def chain(scans=2, iterations=3):
    """An atlas, and scans whose spots lie ever further from its own along W: a path of translations."""
    registration = TreeRegistration(*(Demons((15, 10, 5)),) * 3)
    tree = ImageTree(GRID, 1, 2, atlases=1, most_scans=scans + 1, registration=registration, iterations=iterations)
    images = torch.cat([blob((0.0, 0.0, 2.0 * k)) for k in range(scans + 1)])
    return tree, images, (images[:1, 0] > 0.3).to(torch.int64)


def dice(first, second):
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.fixture(scope="module")
def filled():
    tree, images, label = chain()
    tree.fill(images, label)
    return tree, images


def test_images_go_to_the_root_along_a_path_of_translations(filled):
    tree, images = filled
    assert tree.parents.tolist()[:3] == [0, 0, 1] and int(tree.filled) == 3
    to_root = tree.to_root.view(torch.float16).float()
    for k in range(3):
        inside = to_root[k][:, images[0, 0] > 0.5].mean(1)
        torch.testing.assert_close(inside, torch.tensor([0.0, 0.0, 2.0 * k]), atol=0.3, rtol=0)


def test_scans_get_the_labels_of_their_own_spots(filled):
    tree, images = filled
    for label, image in zip(tree.labels, images, strict=False):
        assert dice(label > 0, image[0] > 0.3) > 0.9


def test_new_image_is_answered_through_the_tree_and_answers_add_up_to_one(filled):
    tree, _ = filled
    new = blob((0.0, 0.0, 5.0))
    with torch.inference_mode():
        found = tree(new)
    assert found.shape == (1, 2, *GRID)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(1, *GRID), atol=1e-4, rtol=0)
    assert dice(found.argmax(1)[0] > 0, new[0, 0] > 0.3) > 0.85


def test_stored_tree_answers_alike(filled):
    tree, _ = filled
    other, _, _ = chain()
    other.load_state_dict(tree.state_dict())
    new = blob((1.0, 0.0, 3.0))
    assert torch.equal(tree(new), other(new))


def test_recipe_takes_the_first_scans_and_as_many_as_are_set():
    recipe = built("mabmis", most_scans=1)
    (step,) = recipe.steps(0)
    assert not step.phases and step.sees_unlabeled and recipe.looks_at_unlabeled
    tree = recipe.answer.network
    assert (tree.atlases, tree.most_scans, len(tree.images)) == (1, 1, 2)
    images = textured(4, 1, *Task((10, 12, 12), 3, 1).shape)
    labels = {2: torch.ones(10, 12, 12, dtype=torch.int64)}
    fill(tree, Scans(["u", "v", "a", "w"], images, labels, [2], [1, 0, 3], 3, (1.0, 1.0, 1.0)))
    kept = tree.images.view(torch.float16)
    assert torch.equal(kept, images[[2, 1]].half()) and bool((tree.labels[0] == 1).all())
    without = built("mabmis", most_scans=0)
    assert not without.looks_at_unlabeled and len(without.answer.network.images) == 1


def test_two_atlases_have_a_template_between_the_scans_and_the_root():
    registration = TreeRegistration(*(Demons((4, 2)),) * 3)
    tree = ImageTree(GRID, 1, 2, atlases=2, most_scans=2, registration=registration, iterations=1)
    images = torch.cat([blob((0.0, 0.0, shift)) for shift in (0.0, 4.0, 3.9)])
    tree.fill(images, (images[:2, 0] > 0.3).to(torch.int64))
    kept = tree.images.view(torch.float16).float()
    assert int(tree.filled) == 4 and tree.parents.tolist()[:2].count(0) >= 1
    moved = kept[2, 0] * torch.arange(GRID[2])
    assert 0.5 < float(moved.sum() / kept[2].sum()) - (GRID[2] - 1) / 2 < 4.5  # between both
    assert tree(images[2:]).argmax(1).any()


def test_other_programs_are_not_given_a_tree_for_a_network():
    model = SimpleNamespace(recipe=built("mabmis"), method="mabmis")
    with pytest.raises(LrlsError, match=r"^--to onnx: mabmis has no segmentation network"):
        network_alone(model, "onnx")

import math

import numpy as np
import pytest
import torch

from stages.parts.metrics import (
    dice_per_class,
    folding_fraction,
    jacobian_determinant,
    jacobian_std,
    score_structures,
    sd_log_jacobian,
)

SPACING_MM = (2.0, 1.0, 0.5)


def cube(start=(2, 3, 4), edge=3, value=1, shape=(12, 13, 14)):
    label = np.zeros(shape, dtype=np.uint8)
    label[tuple(slice(s, s + edge) for s in start)] = value
    return label


def coordinates(shape=(6, 7, 8)):
    axes = [torch.arange(n, dtype=torch.float64) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def determinant_of(matrix):
    """|J| of the displacement u that makes x + u(x) = matrix x."""
    x = coordinates()
    return jacobian_determinant(torch.einsum("ij,njdhw->nidhw", matrix.double(), x) - x)


def test_equal_label_maps_score_perfectly():
    (score,) = score_structures(cube(), cube(), num_classes=2, spacing_mm=SPACING_MM)
    assert (score.class_index, score.dice, score.hd95_mm, score.assd_mm, score.missed) == (1, 1, 0, 0, False)


def test_distances_between_two_voxels_follow_the_spacing():
    a, b = cube((2, 2, 2), edge=1), cube((3, 4, 6), edge=1)
    (score,) = score_structures(a, b, num_classes=2, spacing_mm=SPACING_MM)
    assert score.dice == 0 and not score.missed
    assert score.hd95_mm == pytest.approx(math.hypot(2, 2, 2))
    assert score.assd_mm == pytest.approx(math.hypot(2, 2, 2))


def test_dice_of_a_shifted_cube():
    (score,) = score_structures(cube((2, 3, 4)), cube((3, 3, 4)), num_classes=2, spacing_mm=SPACING_MM)
    assert score.dice == pytest.approx(2 / 3)


def test_hd95_is_the_larger_direction_and_assd_pools_both():
    truth = np.zeros((1, 1, 12), dtype=np.int64)
    prediction = truth.copy()
    truth[..., 0] = 1  # one voxel; its distance is 0
    prediction[..., [0, 4, 10]] = 1  # distances 0, 4, 10 voxels
    (score,) = score_structures(truth, prediction, num_classes=2, spacing_mm=(1, 1, 2))
    assert score.hd95_mm == pytest.approx(np.percentile([0, 8, 20], 95))
    assert score.assd_mm == pytest.approx((0 + 0 + 8 + 20) / 4)


def test_inner_voxels_are_no_surface_and_the_array_edge_is():
    full, hollow = np.ones((5, 5, 5), dtype=int), np.ones((5, 5, 5), dtype=int)
    hollow[2, 2, 2] = 0
    # The hole makes its six neighbours surface, one voxel below the outer surface of the full cube.
    (score,) = score_structures(full, hollow, num_classes=2, spacing_mm=(1, 1, 1))
    assert score.assd_mm == pytest.approx(6 / (98 + 98 + 6))


@pytest.mark.parametrize("swap", [False, True])
def test_structure_in_one_map_only_is_missed_and_costs_the_diagonal(swap):
    maps = [cube(), np.zeros_like(cube())]
    truth, prediction = maps[::-1] if swap else maps
    (score,) = score_structures(truth, prediction, num_classes=2, spacing_mm=SPACING_MM)
    diagonal_mm = math.hypot(12 * 2, 13 * 1, 14 * 0.5)
    assert score.missed and score.dice == 0
    assert score.hd95_mm == score.assd_mm == pytest.approx(diagonal_mm)


def test_structure_in_neither_map_is_not_scored():
    scores = score_structures(cube(value=3), cube(value=3), num_classes=6, spacing_mm=SPACING_MM)
    assert [score.class_index for score in scores] == [3]


def test_classes_do_not_disturb_each_other():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 4, (2, 8, 9, 10))
    scores = score_structures(truth, prediction, num_classes=4, spacing_mm=SPACING_MM)
    for score in scores:
        t, p = (truth == score.class_index).astype(int), (prediction == score.class_index).astype(int)
        (alone,) = score_structures(t, p, num_classes=2, spacing_mm=SPACING_MM)
        assert (alone.dice, alone.hd95_mm, alone.assd_mm) == (score.dice, score.hd95_mm, score.assd_mm)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_distances_agree_with_monai():
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    rng = np.random.default_rng(1)
    truth, prediction = cube(edge=5), cube((3, 4, 4), edge=6)
    prediction[rng.random(prediction.shape) < 0.02] = 1
    (score,) = score_structures(truth, prediction, num_classes=2, spacing_mm=SPACING_MM)
    t, p = torch.from_numpy(truth)[None, None].float(), torch.from_numpy(prediction)[None, None].float()
    hd95_mm = compute_hausdorff_distance(p, t, include_background=True, percentile=95, spacing=SPACING_MM)
    assert score.hd95_mm == pytest.approx(hd95_mm.item(), rel=1e-6)
    directed = [
        compute_average_surface_distance(a, b, include_background=True, spacing=SPACING_MM).item()
        for a, b in ((p, t), (t, p))
    ]
    assert min(directed) <= score.assd_mm <= max(directed)


def test_label_maps_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="shape"):
        score_structures(cube(), cube()[1:], num_classes=2, spacing_mm=SPACING_MM)


def test_dice_per_class_on_the_grid():
    a = torch.tensor([0, 1, 1, 2, 2, 0])
    b = torch.tensor([0, 1, 0, 2, 2, 4])
    dice = dice_per_class(a, b, num_classes=5)
    assert torch.allclose(dice, torch.tensor([2 / 3, 1, math.nan, 0]).double(), equal_nan=True)


def test_translation_keeps_volume():
    displacement = torch.full((2, 3, 5, 6, 7), 3.5)
    determinant = jacobian_determinant(displacement)
    assert determinant.shape == (2, 5, 6, 7)
    assert torch.equal(determinant, torch.ones(2, 5, 6, 7))
    for measure in (folding_fraction, jacobian_std, sd_log_jacobian):
        assert measure(determinant).tolist() == [0, 0]


@pytest.mark.parametrize("scale", [0.5, 1.2, 2.0])
def test_scaling_multiplies_volume_by_its_cube(scale):
    assert torch.allclose(determinant_of(scale * torch.eye(3)), torch.tensor(scale**3).double())


def test_rotation_keeps_volume():
    c, s = math.cos(0.4), math.sin(0.4)
    about_d = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_w = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    assert torch.allclose(determinant_of(about_d @ about_w), torch.tensor(1.0).double())


def test_shear_counts_the_off_diagonal_terms():
    matrix = torch.tensor([[1.0, 0.3, 0.2], [0.1, 0.9, -0.4], [-0.2, 0.5, 1.1]])
    assert torch.allclose(determinant_of(matrix), torch.linalg.det(matrix.double()))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirror_is_minus_one_and_all_folds(axis):
    matrix = torch.eye(3)
    matrix[axis, axis] = -1
    determinant = determinant_of(matrix)
    assert torch.allclose(determinant, torch.tensor(-1.0).double())
    assert folding_fraction(determinant).item() == 1


def test_fold_is_counted_where_it_is():
    # Along W, x + u goes 0 1 2 3 1 2 6 7: only at 3 and 4 does the central difference run backwards.
    mapped = torch.tensor([0.0, 1, 2, 3, 1, 2, 6, 7])
    displacement = torch.zeros(1, 3, 4, 5, 8)
    displacement[:, 2] = mapped - torch.arange(8)
    determinant = jacobian_determinant(displacement)
    assert determinant[0, 0, 0].tolist() == [1, 1, 1, -0.5, -0.5, 2.5, 2.5, 1]
    assert folding_fraction(determinant).item() == pytest.approx(2 / 8)
    clipped = np.log(np.maximum(determinant[0, 0, 0].numpy(), 1e-9).astype(float))
    assert sd_log_jacobian(determinant).item() == pytest.approx(clipped.std(), rel=1e-6)
    assert jacobian_std(determinant).item() == pytest.approx(determinant[0, 0, 0].double().std(correction=0).item())


def test_a_displacement_that_is_no_number_counts_as_folding():
    displacement = torch.zeros(1, 3, 4, 4, 4)
    displacement[0, 0] = math.nan
    assert folding_fraction(jacobian_determinant(displacement)).item() == 1

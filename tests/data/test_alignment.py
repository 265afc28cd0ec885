"""How a fit to the reference is judged, and that it does not depend on contrast where it must not."""

import numpy as np
import pytest
import SimpleITK as sitk

from stages.artifacts.cohort import Grid
from stages.config import PreprocessSettings
from stages.data import alignments
from stages.data.alignment import align, correlation, correlation_ratio, cropped, edge_of_cubes, shrunk

STILL = np.eye(4)


def image(voxels):
    return sitk.GetImageFromArray(voxels.astype(np.float32))


def ball(*, centre=(16.0, 16.0, 16.0), inverted=False):
    """Two nested ellipsoids, bright inside; no two axes alike."""
    grid = np.indices((32, 32, 32)) - np.array(centre).reshape(3, 1, 1, 1)
    far = np.sqrt(((grid / np.array((11.0, 8.0, 6.0)).reshape(3, 1, 1, 1)) ** 2).sum(0))
    smooth = 0.4 / (1 + np.exp(8 * (far - 1))) + 0.4 / (1 + np.exp(8 * (far - 0.5))) + 0.1
    return image(1 - smooth if inverted else smooth)


def test_correlation_is_signed_and_correlation_ratio_takes_any_contrast():
    random = np.random.default_rng(0)
    levels = (random.integers(0, 8, (16, 16, 16)) + 0.5) / 8
    noise = random.random((16, 16, 16))
    folded = np.abs(levels - 0.5)  # a contrast that is a function of the other, and not monotonous
    for other, signed in ((levels, 1), (1 - levels, -1), (0.2 + 0.5 * levels, 1)):
        assert correlation(image(levels), image(other), STILL) == pytest.approx(signed, abs=1e-5)
        assert correlation_ratio(image(levels), image(other), STILL) == pytest.approx(1, abs=1e-5)
    assert abs(correlation(image(levels), image(folded), STILL)) < 0.05
    assert correlation_ratio(image(levels), image(folded), STILL) == pytest.approx(1, abs=1e-5)
    assert correlation_ratio(image(levels), image(noise), STILL) < 0.1
    mixed = 0.5 * (levels - levels.mean()) / levels.std() + 0.5 * (noise - noise.mean()) / noise.std()
    assert correlation_ratio(image(levels), image(mixed - mixed.min()), STILL) == pytest.approx(0.5**0.5, abs=0.03)
    for fit in (correlation, correlation_ratio):
        assert fit(image(levels), image(np.full_like(levels, 0.3)), STILL) == -1
        away = STILL.copy()
        away[0, 3] = 14  # an eighth of the two overlaps
        assert fit(image(levels), image(levels), away) == -1


def test_an_inverted_scan_is_aligned_where_any_contrast_is_allowed():
    reference, moved = ball(), ball(centre=(18.0, 16.0, 13.0), inverted=True)
    plain = align(reference, ball(centre=(18.0, 16.0, 13.0)), kind="rigid", seed=0)
    refused = align(reference, moved, kind="rigid", seed=0)
    found = align(reference, moved, kind="rigid", seed=0, contrast="any")
    assert not plain["fell_back"] and not found["fell_back"]
    truth = np.array((-3.0, 0.0, 2.0))  # x, y, z
    centre = np.array((16.0, 16.0, 16.0, 1.0))
    off = [np.abs((record["matrix"] @ centre)[:3] - centre[:3] - truth).max() for record in (plain, found, refused)]
    assert max(off[:2]) < 0.5 < off[2]  # a good fit is not believed where bright should lie on bright
    assert plain["correlation"] > 0.95 and found["correlation"] > 0.95


SPACING = np.array((1.5, 1.5, 1.5))
SHAPE = np.array((44, 48, 40))  # (x, y, z)


def phantom(truth=STILL, *, shape=SHAPE, spacing=SPACING, origin=(0.0, 0.0, 0.0), length=1.0):
    """A body of several blobs, as a scan that a map from the reference's points to the scan's puts elsewhere.

    Args:
        truth: 4 x 4, mm of the reference -> mm of this scan.
        length: everything, `truth` included, is in this unit.
    """
    index = np.indices(shape[::-1])[::-1].reshape(3, -1)  # (x, y, z)
    points = np.array(origin).reshape(3, 1) + index * np.array(spacing).reshape(3, 1)
    back = np.linalg.inv(truth)
    at = back[:3, :3] @ points + back[:3, 3:]
    middle = (SHAPE - 1) * SPACING / 2
    voxels = np.zeros(points.shape[1])
    for centre, radii, value in (
        ((0, 0, 0), (26, 16, 20), 0.4),
        ((13, 3, 5), (5, 4, 6), 0.5),
        ((-14, -4, 2), (4, 7, 5), 0.4),
        ((2, -5, -9), (8, 3, 4), -0.4),
        ((-3, 6, 9), (4, 4, 4), 0.4),
    ):
        far = (((at.T - middle - centre) / radii) ** 2).sum(1)
        voxels += value / (1 + np.exp(np.clip(6 * (far - 1), -50, 50)))
    scan = image(voxels.reshape(shape[::-1]))
    scan.SetSpacing((np.array(spacing) * length).tolist())
    scan.SetOrigin((np.array(origin) * length).tolist())
    return scan


def moved(*, degrees=0.0, scale=(1.0, 1.0, 1.0), shift=(0.0, 0.0, 0.0)):
    """A turn about the slices' axis and scaling, round the phantom's middle, then a shift in mm."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    middle = (SHAPE - 1) * SPACING / 2
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag(scale)
    matrix[:3, 3] = middle + shift - matrix[:3, :3] @ middle
    return matrix


def error_mm(matrix, truth):
    """The largest distance between where two maps put the corners of a cube of 30 mm in the phantom's middle."""
    corners = (SHAPE - 1) * SPACING / 2 + 15 * (2 * np.indices((2, 2, 2)).reshape(3, -1).T - 1)
    off = (matrix - truth) @ np.vstack([corners.T, np.ones(8)])
    return np.linalg.norm(off[:3], axis=0).max()


@pytest.mark.parametrize(
    ("truth", "most_mm"),
    [
        (moved(shift=(7.0, -5.0, 4.0)), 1.5),
        (moved(degrees=18.0, shift=(2.0, 3.0, 0.0)), 3.0),
        (moved(scale=(1.15, 0.9, 1.05)), 1.5),
    ],
)
def test_a_known_map_is_found(truth, most_mm):
    """Within a voxel, turns within two."""
    record = align(phantom(), phantom(truth), kind="affine", seed=0)
    assert error_mm(record["matrix"], truth) < most_mm
    assert error_mm(np.eye(4), truth) > 1.5 * most_mm
    assert record["correlation"] > 0.98 and not record["fell_back"]


def test_thick_slices_keep_their_number_and_are_aligned():
    thick, few = np.array((1.5, 1.5, 7.5)), np.array((44, 48, 8))
    truth = moved(degrees=12.0, shift=(5.0, -4.0, 3.0))
    reference, scan = phantom(shape=few, spacing=thick), phantom(truth, shape=few, spacing=thick)
    edge = edge_of_cubes(reference, 2000)
    assert 1.5 < edge < 7.5 and shrunk(reference, edge).GetSize() == (14, 16, 8)
    record = align(reference, scan, kind="affine", seed=0)
    assert error_mm(record["matrix"], truth) < 3 and not record["fell_back"]


def test_everything_at_a_twentieth_of_the_size_is_aligned_alike():
    truth = moved(degrees=12.0, scale=(1.1, 0.95, 1.0), shift=(5.0, -4.0, 3.0))
    large = align(phantom(), phantom(truth), kind="affine", seed=0)
    small = align(phantom(length=0.05), phantom(truth, length=0.05), kind="affine", seed=0, unit_mm=0.05)
    in_mm = small["matrix"].copy()
    in_mm[:3, 3] *= 20
    assert error_mm(in_mm, large["matrix"]) < 0.1
    assert small["correlation"] == pytest.approx(large["correlation"], abs=1e-3)


def test_the_same_scan_twice_has_the_same_map():
    reference, scan = phantom(), phantom(moved(degrees=12.0, shift=(5.0, -4.0, 3.0)))
    first, again = (align(reference, scan, kind="affine", seed=0)["matrix"] for _ in range(2))
    assert (first == again).all()


def with_ballast(scan, corner):
    """The scan with something bright beside the body, which moves its centre of mass."""
    voxels = sitk.GetArrayFromImage(scan)
    voxels[corner] = 1
    ballast = sitk.GetImageFromArray(voxels)
    ballast.CopyInformation(scan)
    return ballast


def test_a_start_that_centres_of_mass_and_headers_miss_is_found():
    truth = moved()
    far = (400.0, -300.0, 200.0)
    truth[:3, 3] += far
    scan = with_ballast(phantom(truth, origin=far), np.s_[:14, :, 36:])
    record = align(phantom(), scan, kind="rigid", seed=0)
    centres = sitk.GetArrayFromImage(scan)
    assert centres.mean() > 1.5 * sitk.GetArrayFromImage(phantom()).mean()
    assert error_mm(record["matrix"], truth) < 3 and not record["fell_back"]


def test_a_body_at_the_edge_of_a_larger_scan_is_found():
    truth = moved(shift=(0.0, 0.0, 50.0))
    scan = phantom(truth, shape=np.array((44, 48, 90)))
    record = align(phantom(), with_ballast(scan, np.s_[:16]), kind="affine", seed=0)
    assert error_mm(record["matrix"], truth) < 2 and not record["fell_back"]


def test_what_moved_in_the_region_outweighs_what_stayed_beside_it():
    wide, beside = np.array((90, 48, 40)), np.s_[8:30, 8:40, 50:75]
    truth = moved(shift=(6.0, 3.0, 0.0))
    reference, scan = (with_ballast(phantom(m, shape=wide), beside) for m in (STILL, truth))
    of_body = ([0.0, 0.0, 0.0], [65.0, 70.0, 58.0])
    whole, region = (
        error_mm(align(reference, scan, kind="affine", seed=0, region=box)["matrix"], truth) for box in (None, of_body)
    )
    assert region < 0.8 * whole


def test_a_region_is_cut_along_the_references_axes():
    scan = phantom(origin=(10.0, -20.0, 5.0))
    scan.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    axes = np.array(scan.GetDirection()).reshape(3, 3)
    origin = np.array(scan.TransformIndexToPhysicalPoint((4, 6, 8)))
    grid = Grid((10, 12, 14), (1.5, 1.5, 1.5), tuple(origin.tolist()), scan.GetDirection())
    part = cropped(scan, alignments.region_of(grid))
    assert part.GetSize() in ((14, 12, 10), (15, 13, 11))
    assert np.abs(axes.T @ (np.array(part.GetOrigin()) - origin)).max() < 1.6
    assert cropped(scan, ([900.0] * 3, [950.0] * 3)).GetSize() == scan.GetSize()


def test_alignments_of_another_version_or_region_are_not_taken(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        alignments,
        "align",
        lambda *_, **settings: (
            calls.append(settings["region"]) or {"matrix": np.eye(4), "correlation": 0.5, "fell_back": False}
        ),
    )
    grids = [Grid((8, 8, 8), (1.0, 1.0, 1.0), (x, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)) for x in (0.0, 5.0)]

    def run(grid):
        alignments.aligned(ball(), ball(centre=(15.0, 16.0, 16.0)), PreprocessSettings(), grid, tmp_path)
        return len(calls)

    assert [run(grids[0]), run(grids[0]), run(grids[1]), run(grids[1])] == [1, 1, 2, 2]
    monkeypatch.setattr(alignments, "VERSION", alignments.VERSION - 1)
    assert run(grids[0]) == 3

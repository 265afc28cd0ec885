"""A scan goes to the grid and its answer comes back on the scan, however the scan lies and however it is stored."""

from __future__ import annotations

import struct
from pathlib import Path

import dicoms
import numpy as np
import SimpleITK as sitk
import torch
from drawn import centred, directions, examples, geometries, image_with, noise, numbers, positions
from hypothesis import given
from hypothesis import strategies as st

from stages.artifacts.cohort import Grid
from stages.config import PreprocessSettings
from stages.data.geometry import Geometry, differences, geometry_of
from stages.data.grid import derive_grid, label_box, label_to_grid
from stages.data.intake import header_geometry, read_image
from stages.data.intensities import normalise
from stages.data.itk_transforms import atlas_to_scan
from stages.data.labels import as_integers
from stages.data.own_space import classes_in_own_space, own_to_grid
from stages.data.segments import write_segmentation
from stages.data.writers import write_image
from stages.parts.warps import one_hot

SCANS = (".nii.gz", ".nii", ".NII.GZ", ".nrrd", ".mha", ".mhd")
ANSWERS = (".nii.gz", ".nrrd", ".mha", ".seg.nrrd")
FORMS = ("both", "qform", "sform")
SOUND = PreprocessSettings(align="none")
AT_ONCE = ("uint8", "int16", "uint16", "int32", "float32", "float64")


def record_of(geometry: Geometry, matrix: np.ndarray | None = None) -> dict:
    return {
        "size": geometry.size, "spacing": geometry.spacing, "origin": geometry.origin,
        "direction": geometry.direction, "matrix": (np.eye(4) if matrix is None else matrix).tolist(),
    }  # fmt: skip


def only_form(path: Path, form: str) -> None:
    """Of a NIfTI file, leave one of the two forms."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<h", data, 254 if form == "qform" else 252, 0)
    if form == "qform":
        data[280:328] = bytes(48)
    path.write_bytes(data)


def stored(image: sitk.Image, folder: Path, ending: str, form: str = "both") -> Path:
    path = folder / f"scan{ending}"
    if ending != ending.lower():
        plain = folder / f"scan{ending.lower()}"
        sitk.WriteImage(image, str(plain))
        return plain.rename(path)
    sitk.WriteImage(image, str(path))
    if ending == ".nii" and form != "both":
        only_form(path, form)
    return path


def same_place(found: Geometry, expected: Geometry, turned: float = 0.0) -> None:
    """Every corner lies within a thousandth of a voxel, or what float32 tells apart at that distance, where it was.

    Args:
        turned: radians by which the format's own rounding may turn the axes.
    """
    assert found.size == expected.size
    corners = np.ix_(*([0, -1] for _ in range(3)))
    apart = np.abs(positions(found)[corners] - positions(expected)[corners]).max()
    rounding = 1e-6 * np.abs(positions(expected)).max() + turned * np.linalg.norm(
        np.multiply(found.size, found.spacing)
    )
    assert apart < 1e-3 * min(expected.spacing) + rounding


@examples(40)
@given(
    geometry=geometries(), ending=st.sampled_from(SCANS), form=st.sampled_from(FORMS), dtype=st.sampled_from(AT_ONCE),
    answer=st.sampled_from(ANSWERS),
)  # fmt: skip
def test_an_answer_lies_on_its_scan_in_every_format(tmp_path_factory, geometry, ending, form, dtype, answer):
    folder = tmp_path_factory.mktemp("f")
    voxels = np.abs(noise(geometry.size)).astype(dtype)
    scan = stored(image_with(voxels, geometry), folder, ending, form)

    image = read_image(scan, "c")
    told = header_geometry(scan, "c")
    label = np.zeros(geometry.size[::-1], np.uint16)
    label[1:-1, 2:, :-2] = 1 + np.arange(label[1:-1, 2:, :-2].size).reshape(label[1:-1, 2:, :-2].shape) % 3
    written = image_with(label, geometry_of(image))
    if answer == ".seg.nrrd":
        write_segmentation(written, {"a": 1, "b": 2, "c": 3}, ["#112233"] * 3, folder / f"answer{answer}")
    else:
        write_image(written, folder / f"answer{answer}", like=scan)
    back = read_image(folder / f"answer{answer}", "c", "label map")

    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels)
    of_quaternion = 1e-3 if ending == ".nii" and form == "qform" else 0.0  # float32, near half a turn
    same_place(geometry_of(image), geometry, of_quaternion)
    assert told is not None and differences(told, geometry_of(image), "header", "image") == []
    assert differences(geometry_of(image), geometry_of(back), "image", "label map") == []
    np.testing.assert_array_equal(sitk.GetArrayFromImage(as_integers(back, "c")), label)


@examples(12)
@given(axes=directions(), spacing=st.tuples(*[numbers(0.3, 4.0, 3)] * 3), seed=st.integers(0, 99))
def test_a_dicom_series_of_any_direction_is_read_where_it_lies(tmp_path_factory, axes, spacing, seed):
    axes = axes * [1, 1, np.linalg.det(axes)]  # columns of DICOM slices and their normal are right-handed
    rows, columns = np.round(axes[:, 0], 7), np.round(axes[:, 1], 7)
    at = np.array(dicoms.ORIGIN) + spacing[2] * np.arange(4)[:, None] * np.cross(rows, columns)
    voxels = np.random.default_rng(seed).integers(-900, 900, (4, 5, 7)).astype(np.int16)

    def change(d, k):
        d.PixelSpacing, d.SliceThickness = [spacing[1], spacing[0]], spacing[2]

    folder = tmp_path_factory.mktemp("d") / "scan"
    image = read_image(dicoms.write_slices(folder, voxels, [*rows, *columns], change, at=at), "c")

    expected = Geometry((7, 5, 4), spacing, dicoms.ORIGIN, tuple(axes.ravel().tolist()))
    same_place(geometry_of(image), expected)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels)


@st.composite
def affines(draw):
    """A believable affine map, 4 x 4, mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = draw(directions()) @ np.diag([draw(numbers(0.7, 1.5)) for _ in range(3)])
    matrix[:3, 3] = [draw(numbers(-50, 50)) for _ in range(3)]
    return matrix


def on_the_grid(points_mm: np.ndarray, grid: Grid) -> np.ndarray:
    """Voxel coordinates (D, H, W) of points (..., 3), by SimpleITK."""
    image = grid.as_image()
    rows = [image.TransformPhysicalPointToContinuousIndex(point.tolist()) for point in points_mm.reshape(-1, 3)]
    return np.array(rows)[:, ::-1]


@examples(40)
@given(scan=geometries((2, 4)), grid=geometries(), matrix=affines())
def test_the_map_to_the_grid_is_that_of_simpleitk(scan, grid, matrix):
    its_grid = Grid(grid.size[::-1], grid.spacing[::-1], grid.origin, grid.direction)
    back = np.linalg.inv(matrix)
    expected = on_the_grid(positions(scan) @ back[:3, :3].T + back[:3, 3], its_grid)

    found = own_to_grid(record_of(scan, matrix), its_grid)
    index = np.stack(np.meshgrid(*(range(n) for n in scan.size[::-1]), indexing="ij"), -1).reshape(-1, 3)

    np.testing.assert_allclose(index @ found[:3, :3].T + found[:3, 3], expected, atol=1e-6 * np.abs(expected).max())


@examples(20)
@given(
    scan=geometries((2, 4)),
    grid=geometries(),
    matrix=affines(),
    atlas=affines(),
    shift=st.tuples(*[numbers(-3, 3)] * 3),
)
def test_a_written_transform_says_where_the_atlas_went(scan, grid, matrix, atlas, shift):
    its_grid = Grid(grid.size[::-1], grid.spacing[::-1], grid.origin, grid.direction)
    displacement = np.broadcast_to(np.array(shift, np.float32).reshape(3, 1, 1, 1), (3, *its_grid.shape))
    middle = np.array([(n - 1) / 2 for n in its_grid.shape])  # where the field is what it says
    axes = np.reshape(grid.direction, (3, 3)) * grid.spacing
    point = np.array(grid.origin) + axes @ middle[::-1]
    moved = np.array(grid.origin) + axes @ (middle + np.float32(shift))[::-1]

    transform = atlas_to_scan(displacement, its_grid, record_of(scan, matrix), atlas)

    own = matrix @ [*point, 1]
    np.testing.assert_allclose(transform.TransformPoint(own[:3].tolist()), (atlas @ [*moved, 1])[:3], atol=1e-3)


def drawn_structures(points_mm: np.ndarray) -> np.ndarray:
    """Classes of points: a body (1), and a part (2) to one side of each axis: no two directions are alike."""
    body = np.linalg.norm((points_mm - [-2.0, -1.0, 0.5]) / [11.0, 8.0, 14.0], axis=-1) < 1
    part = np.linalg.norm((points_mm - [4.0, 3.0, 6.0]) / [4.5, 5.5, 6.5], axis=-1) < 1
    return np.where(part, 2, body.astype(int))


def labelled(geometry: Geometry) -> tuple[sitk.Image, np.ndarray]:
    classes = drawn_structures(positions(geometry)).astype(np.uint8)
    return image_with(classes, geometry), classes


def there_and_back(atlas: Geometry, scan: Geometry) -> tuple[np.ndarray, np.ndarray, Grid]:
    """The scan's classes, what comes back of them by the atlas's grid, and the grid."""
    reference, classes = labelled(atlas)
    oriented, _, _ = normalise(sitk.Cast(reference, sitk.sitkFloat32), SOUND)
    grid = derive_grid(
        SOUND, label_box(reference, classes, np.eye(4), oriented.GetDirection()), oriented.GetDirection(),
        oriented.GetSpacing(), oriented.GetOrigin(),
    )  # fmt: skip
    label, own = labelled(scan)
    on_grid = label_to_grid(label, own, 3, record_of(scan), grid)
    probabilities = one_hot(torch.from_numpy(on_grid.astype(np.int64))[None], 3)[0]
    return own, classes_in_own_space(probabilities, record_of(scan), grid), grid


@examples(12)
@given(axes=directions(), edge=numbers(1.0, 2.0), thick=st.sampled_from([1.0, 1.0, 4.0]), along=st.integers(0, 2))
def test_on_its_own_grid_an_atlas_comes_back_voxel_by_voxel(axes, edge, thick, along):
    spacing = [edge] * 3
    spacing[along] *= thick
    size = tuple(round(40 / mm) + 1 for mm in spacing)
    atlas = centred(Geometry(size, tuple(spacing), (0, 0, 0), tuple(axes.ravel().tolist())), (0.3, -0.2, 0.1))

    own, back, _ = there_and_back(atlas, atlas)

    assert set(np.unique(own)) == {0, 1, 2}
    np.testing.assert_array_equal(back, own)


@examples(12)
@given(
    axes=st.tuples(directions(), directions()), spacing=st.tuples(*[numbers(0.9, 2.5)] * 6),
    middle=st.tuples(*[numbers(-2.0, 2.0)] * 3),
)  # fmt: skip
def test_a_scan_comes_back_from_another_scans_grid_but_for_its_surfaces(axes, spacing, middle):
    atlas, scan = (
        centred(
            Geometry(
                tuple(round(44 / mm) + 1 for mm in own_spacing), own_spacing, (0, 0, 0), tuple(turned.ravel().tolist())
            ),
            middle,
        )
        for turned, own_spacing in zip(axes, (spacing[:3], spacing[3:]), strict=True)
    )

    own, back, grid = there_and_back(atlas, scan)

    points = positions(scan)
    reach = 1.5 * max(*grid.spacing_mm, *scan.spacing)
    steps = [reach * np.array(step) for step in np.ndindex(3, 3, 3)]
    inside = np.all([drawn_structures(points + step - reach) == own for step in steps], 0)
    assert set(np.unique(own[inside])) >= {0, 1}
    np.testing.assert_array_equal(back[inside], own[inside])
    assert (back == own).mean() > 0.95

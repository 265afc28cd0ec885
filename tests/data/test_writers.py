"""Label tables that ITK-SNAP and 3D Slicer read, volumes, and files that are whole or absent."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from stages.data.itk_transforms import write_transform
from stages.data.writers import volumes_ml, write_image, write_label_tables
from stages.errors import LrlsError

STRUCTURES = {"left lobe": 17, 'odd "name"': 3, "core": 1000}


def test_itk_snap_reads_every_label_with_its_own_colour(tmp_path):
    write_label_tables(STRUCTURES, tmp_path)
    lines = [line for line in (tmp_path / "labels.txt").read_text().splitlines() if not line.startswith("#")]
    # ITK-SNAP reads: index, r, g, b, opacity, visible, mesh, "name"
    found = [
        re.fullmatch(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([01])\s+([01])\s+"([^"]+)"', line)
        for line in lines
    ]
    rows = {int(match[1]): match for match in found if match}
    assert len(rows) == len(lines) == 4
    assert {value: match[8] for value, match in rows.items()} == {
        0: "Clear Label", 3: "odd 'name'", 17: "left lobe", 1000: "core",
    }  # fmt: skip
    colours = {tuple(int(match[k]) for k in (2, 3, 4)) for match in rows.values()}
    assert len(colours) == 4 and all(0 <= part <= 255 for colour in colours for part in colour)
    assert [match[6] for match in rows.values()] == ["0", "1", "1", "1"]


def test_slicer_reads_every_label_as_six_words(tmp_path):
    write_label_tables(STRUCTURES, tmp_path)
    rows = [line.split() for line in (tmp_path / "labels.ctbl").read_text().splitlines() if not line.startswith("#")]
    assert all(len(row) == 6 for row in rows)  # value, name without spaces, r, g, b, a
    assert [row[:2] for row in rows] == [
        ["0", "background"],
        ["3", 'odd_"name"'],
        ["17", "left_lobe"],
        ["1000", "core"],
    ]
    assert rows[0][-1] == "0" and rows[1][-1] == "255"


def test_volume_of_a_structure_is_its_voxels_in_ml():
    classes = np.zeros((4, 5, 6), np.uint8)
    classes[0, 0, :4] = 2
    assert volumes_ml(classes, ["a", "b"], (0.5, 2.0, 10.0)) == {"a": 0.0, "b": pytest.approx(0.04)}


def test_an_image_is_there_in_full_or_not_at_all(tmp_path):
    image = sitk.Image([4, 4, 4], sitk.sitkUInt8)
    write_image(image, tmp_path / "a.nii.gz")
    before = (tmp_path / "a.nii.gz").read_bytes()
    four = sitk.Image([2, 2], sitk.sitkComplexFloat32)  # a kind that the format does not hold
    with pytest.raises(LrlsError, match="cannot be written"):
        write_image(four, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "a.nii.gz").read_bytes() == before


@contextmanager
def files_up_to(num_bytes: int) -> Iterator[None]:
    """What is written behind so many bytes is refused, as on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("like", [True, False])
@pytest.mark.parametrize("room", [0, 400, 20_000])
def test_an_image_that_the_disk_has_no_room_for_is_told_and_absent(ending: str, like: bool, room: int, tmp_path: Path):
    """ITK itself passes over it for NIfTI."""
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 255, (40, 40, 40)).astype(np.uint8))
    scan = tmp_path / "scan.nii.gz"
    write_image(image, scan)
    with files_up_to(room), pytest.raises(LrlsError, match="cannot be written"):
        write_image(image, tmp_path / f"a{ending}", like=scan if like else None)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]
    write_image(image, tmp_path / f"a{ending}", like=scan if like else None)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"a{ending}")))
    assert np.array_equal(found, sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("room", [0, 3000, 20_000])
def test_a_transform_that_the_disk_has_no_room_for_is_told_and_absent(room: int, tmp_path: Path):
    """ITK's own writer ends the process."""
    field = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(8, 9, 10, 3)), isVector=True)
    transform = sitk.CompositeTransform(3)
    affine = sitk.AffineTransform(3)
    affine.SetTranslation((1.0, 2.0, 3.0))
    transform.AddTransform(affine)
    transform.AddTransform(sitk.DisplacementFieldTransform(sitk.Image(field)))
    with files_up_to(room), pytest.raises(LrlsError, match="cannot be written"):
        write_transform(transform, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []
    write_transform(transform, tmp_path / "a.h5")
    sitk.WriteTransform(transform, str(tmp_path / "theirs.h5"))
    ours, theirs = (sitk.ReadTransform(str(tmp_path / name)) for name in ("a.h5", "theirs.h5"))
    for point in ((0.5, 1.5, 2.5), (3.0, 4.0, 5.0)):
        assert ours.TransformPoint(point) == theirs.TransformPoint(point) == transform.TransformPoint(point)

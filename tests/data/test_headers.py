"""A header says where the voxels lie, once and possibly; otherwise the scan is refused, and no library guesses."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from stages.data import intake, sizes
from stages.data.faults import IntakeError
from stages.data.geometry import geometry_of
from stages.data.intake import header_geometry, read_image

PIXDIM, CODES, QUATERN, SROW = 76, 252, 256, 280
SIZES = (1.0, 1.5, 2.0)


def image_of() -> sitk.Image:
    """An oblique image of 8 x 7 x 6 voxels (x, y, z)."""
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(100, 20, size=(6, 7, 8)).astype(np.int16))
    image.SetSpacing(SIZES)
    turn = sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.3)
    image.SetDirection(turn.GetMatrix())
    image.SetOrigin((-20, 15, 30))
    return image


@pytest.fixture
def nifti(tmp_path) -> Path:
    path = tmp_path / "scan.nii"
    sitk.WriteImage(image_of(), str(path))
    return path


def change(path: Path, offset: int, kind: str, *values: float) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(f"<{kind}", data, offset, *values)
    path.write_bytes(data)


def refusal(path: Path) -> str:
    with pytest.raises(IntakeError) as error:
        read_image(path, "p1")
    line = str(error.value)
    assert line.startswith("case p1: image ") and "\n" not in line and str(path.parent) not in line
    return line.removeprefix("case p1: image ").partition(";")[0]


def srow(path: Path) -> np.ndarray:
    return np.array(struct.unpack_from("<12f", path.read_bytes(), SROW)).reshape(3, 4)


NAN, INF = float("nan"), float("inf")
BY_PIXDIM = {
    (1.0, -1.5, 2.0): "has voxel sizes 1 x -1.5 x 2 (pixdim), positive ones expected",
    (0.0, 1.5, 2.0): "has voxel sizes 0 x 1.5 x 2 (pixdim), positive ones expected",
    (1.0, NAN, 2.0): "has voxel sizes 1 x nan x 2 (pixdim), positive ones expected",
    (1.0, 1.5, INF): "has voxel sizes 1 x 1.5 x inf (pixdim), positive ones expected",
    (1.0, 1.5, 4.0): "has voxel sizes 1 x 1.5 x 4 by pixdim and 1 x 1.5 x 2 by its sform",
    (1.02, 1.5, 2.0): "has voxel sizes 1.02 x 1.5 x 2 by pixdim and 1 x 1.5 x 2 by its sform",
}


@pytest.mark.parametrize("sizes_mm", BY_PIXDIM)
def test_voxel_sizes_of_pixdim_are_possible_and_those_of_the_sform(sizes_mm, nifti):
    change(nifti, PIXDIM + 4, "3f", *sizes_mm)
    assert refusal(nifti) == BY_PIXDIM[sizes_mm]


def test_without_a_form_nobody_knows_left_from_right(nifti):
    change(nifti, CODES, "2h", 0, 0)
    assert refusal(nifti) == "does not say where left and right are (qform_code and sform_code are 0)"


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (2, 4)])
def test_one_form_is_enough_and_two_that_agree_are_read_as_one(codes, nifti):
    expected = image_of()
    change(nifti, CODES, "2h", *codes)
    found = read_image(nifti, "p1")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
    for of in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(found, of)(), getattr(expected, of)(), atol=1e-5)


@pytest.mark.parametrize("q_code", [0, 1])
def test_a_sheared_sform_is_refused_whatever_the_qform(q_code, nifti):
    rows = srow(nifti)
    rows[:, 2] += 0.2 * rows[:, 1]
    change(nifti, SROW, "12f", *rows.ravel())
    change(nifti, CODES, "2h", q_code, 1)
    assert refusal(nifti).startswith("has axes that are not at right angles")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("codes", [(1, 1), (1, 0)])
def test_an_sform_that_is_not_finite_is_refused_and_never_read(value, codes, nifti):
    change(nifti, SROW + 16, "f", value)
    change(nifti, CODES, "2h", *codes)
    assert refusal(nifti) == "has an sform with numbers that are not finite"


def test_an_sform_that_is_flat_is_refused(nifti):
    change(nifti, SROW, "12f", *([0.0] * 12))
    assert refusal(nifti) == "has an sform that is flat"


@pytest.mark.parametrize("quatern", [(NAN, 0, 0), (0.9, 0.9, 0)])
def test_a_qform_that_is_no_rotation_is_refused(quatern, nifti):
    change(nifti, QUATERN, "3f", *quatern)
    assert refusal(nifti) == "has a qform that is no rotation"


def test_sides_that_the_forms_state_differently_are_refused(nifti):
    rows = srow(nifti)
    mirrored = rows * [-1, 1, 1, 1]
    change(nifti, SROW, "12f", *mirrored.ravel())
    assert refusal(nifti) == "has its x axis mirrored by its sform against its qform"
    turned = rows[:, [1, 0, 2, 3]] * [1 / 1.5, 1.5, 1, 1]
    change(nifti, SROW, "12f", *turned.ravel())
    assert refusal(nifti) == "has its x axis turned by its sform against its qform"


def test_two_positions_of_one_head_are_no_contradiction(nifti):
    rows = srow(nifti)
    turn = np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.2, 0.1, 0.1).GetMatrix(), (3, 3))
    change(nifti, SROW, "12f", *(turn @ rows + [0, 0, 0, 9]).ravel())
    assert read_image(nifti, "p1").GetSpacing() == pytest.approx(SIZES)


OTHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "complex": (lambda p: change(p, 70, "2h", 32, 64), "has complex values, plain numbers expected"),
    "colours": (lambda p: change(p, 70, "2h", 128, 24), "has colours, plain numbers expected"),
    "unknown type": (lambda p: change(p, 70, "2h", 77, 16), "has voxels of an unknown type (77)"),
    "bits": (lambda p: change(p, 70, "2h", 4, 32), "says 32 bits per voxel, its type has 16"),
    "size 0": (lambda p: change(p, 40, "4h", 3, 8, 0, 6), "has an impossible size in its header"),
    "size -1": (lambda p: change(p, 40, "4h", 3, 8, -7, 6), "has an impossible size in its header"),
    "dimensions": (lambda p: change(p, 40, "h", 9), "has an impossible size in its header"),
    "offset nan": (lambda p: change(p, 108, "f", NAN), "says its voxels start where they cannot"),
    "offset huge": (lambda p: change(p, 108, "f", 1e30), "says its voxels start where they cannot"),
    "offset 0": (lambda p: change(p, 108, "f", 0), "says its voxels start where they cannot"),
    "slope inf": (lambda p: change(p, 112, "2f", INF, 0), "has a scaling of intensities that is not finite"),
    "two files": (lambda p: change(p, 344, "4s", b"ni1\0"), "has its voxels in another file (.hdr and .img)"),  # type: ignore[arg-type]
    "analyze": (
        lambda p: change(p, 344, "4s", b"\0\0\0\0"),  # type: ignore[arg-type]
        "is Analyze, which does not say where left and right are",
    ),
    "nifti-2": (lambda p: change(p, 0, "i", 540), "is NIfTI-2, which is not read"),
    "claims": (lambda p: change(p, 40, "4h", 3, 30000, 30000, 30000), "is unreadable or truncated"),
    "short": (lambda p: p.write_bytes(p.read_bytes()[:200]), "is unreadable or truncated"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_nifti_header_cannot_say_is_refused(name, nifti):
    damage, found = OTHERS[name]
    damage(nifti)
    assert refusal(nifti) == found


def test_a_volume_that_does_not_fit_into_memory_is_refused_before_it_is_read(nifti, monkeypatch):
    monkeypatch.setattr(sizes, "available_bytes", lambda: 4000)
    monkeypatch.setattr(intake, "read_voxels", lambda *_: pytest.fail("memory was taken"))
    assert refusal(nifti) == "has 8 x 7 x 6 voxels, which need 4.7 kB of memory, 4 kB are free"


META = {
    "DimSize = 8 7 6": {
        "DimSize = 8 7 0": "is unreadable or truncated",
        "DimSize = 8000000 7 6": "is unreadable or truncated",
        "DimSize = x": "is unreadable or truncated",
    },
    "ElementSpacing = 1 1.5 2": {
        "": "has no voxel size (ElementSpacing) in its header",
        "ElementSpacing = 1 -1.5 2": "has an impossible ElementSpacing in its header",
        "ElementSpacing = 1 nan 2": "has an impossible ElementSpacing in its header",
        "ElementSpacing = inf 1 2": "has an impossible ElementSpacing in its header",
    },
    "TransformMatrix = ": {"Nothing = ": "has no directions (TransformMatrix) in its header"},
    "Offset = -20 15 30": {"Offset = -20 nan 30": "has an impossible Offset in its header"},
    "ElementType = MET_SHORT": {"ElementType = MET_OTHER": "has voxels of an unknown type"},
    "ElementDataFile = scan.raw": {
        "ElementDataFile = %n%n%n%n": "names no plain file beside it for its voxels",
        "ElementDataFile = scan%03d.raw 1 9 1": "names no plain file beside it for its voxels",
        "ElementDataFile = LIST": "names no plain file beside it for its voxels",
        "ElementDataFile = ../scan.raw": "names no plain file beside it for its voxels",
        "ElementDataFile = /etc/hostname": "names no plain file beside it for its voxels",
        "ElementDataFile = gone.raw": "names a file for its voxels that is not beside it",
    },
}


@pytest.mark.parametrize("line", [(old, new) for old, lines in META.items() for new in lines])
def test_what_a_metaimage_header_cannot_say_is_refused(line, tmp_path):
    old, new = line
    path = tmp_path / "scan.mhd"
    sitk.WriteImage(image_of(), str(path))
    text = path.read_text(encoding="ascii")
    assert old in text
    read_image(path, "p1")
    path.write_text(text.replace(old, new), encoding="ascii")
    assert refusal(path) == META[old][new]


def test_an_mha_file_holds_its_own_voxels(tmp_path):
    sitk.WriteImage(image_of(), str(tmp_path / "scan.mhd"))
    (tmp_path / "scan.mha").write_bytes((tmp_path / "scan.mhd").read_bytes())
    assert refusal(tmp_path / "scan.mha") == "names another file for its voxels, which .mha files hold"


def test_voxels_behind_a_link_are_not_read(tmp_path):
    sitk.WriteImage(image_of(), str(tmp_path / "scan.mhd"))
    (tmp_path / "scan.raw").rename(tmp_path / "other.raw")
    (tmp_path / "scan.raw").symlink_to(tmp_path / "other.raw")
    assert refusal(tmp_path / "scan.mhd") == "has its voxels behind a link"


NO_SPACE = "has no directions (space: left-posterior-superior, or another of three axes) in its header"
NRRD = {
    "sizes: 8 7 6": {
        "sizes: 8000 8000 70000": "is unreadable or truncated",
        "sizes: 8 7": "is unreadable or truncated",
    },
    "space: left-posterior-superior": {
        "space dimension: 3": NO_SPACE,
        "space: scanner-xyz": NO_SPACE,
    },
    "space directions: ": {"content: ": "has no voxel size (space directions) in its header"},
    "space origin: (": {"space origin: (nan,0,0) (": "is unreadable or truncated"},
    "type: short": {"type: block": "has voxels of a type that is not read"},
    "encoding: raw": {
        "encoding: raw\ndata file: ../x.raw": "names no plain file beside it for its voxels",
        "encoding: raw\ndata file: /etc/hostname": "names no plain file beside it for its voxels",
        "encoding: raw\ndata file: x%d.raw 1 5 1": "names no plain file beside it for its voxels",
        "encoding: bzip2": "is compressed with bzip2, which is not read",
    },
}


@pytest.mark.parametrize("line", [(old, new) for old, lines in NRRD.items() for new in lines])
def test_what_an_nrrd_header_cannot_say_is_refused(line, tmp_path):
    old, new = line
    path = tmp_path / "scan.nrrd"
    sitk.WriteImage(image_of(), str(path))
    head, separator, voxels = path.read_bytes().partition(b"\n\n")
    assert old in head.decode("ascii")
    read_image(path, "p1")
    path.write_bytes(head.decode("ascii").replace(old, new).encode() + separator + voxels)
    assert refusal(path) == NRRD[old][new]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"])
def test_sound_files_of_every_kind_are_read_whatever_they_are_called(ending, tmp_path):
    expected = image_of()
    sitk.WriteImage(expected, str(tmp_path / f"scan{ending}"))
    for name in ("a.img", "b,c[1]", "%d", "x.nii.y"):
        other = tmp_path / f"{name}{ending.upper()}"
        (tmp_path / f"scan{ending}").rename(other)
        found = read_image(other, "p1")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
        assert header_geometry(other, "p1") == geometry_of(found)
        other.rename(tmp_path / f"scan{ending}")


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_a_header_with_random_bytes_is_read_as_it_says_or_refused(ending, tmp_path):
    """Byte flips, cuts and extreme numbers anywhere in the header: one line, or a volume that the header describes."""
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(image_of(), str(path))
    sound = path.read_bytes()
    header = 352 if ending == ".nii" else len(sound) - 8 * 7 * 6 * 2
    draw, refused = random.Random(0), 0
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(draw.choice([1, 1, 1, 3])):
            place = draw.randrange(header)
            if draw.random() < 0.5 or place + 4 > header:
                data[place] = draw.randrange(256)
            else:
                struct.pack_into("<f", data, place, draw.choice([NAN, INF, -INF, 0.0, -1.0, 1e38, 1e-38]))
        path.write_bytes(data[: draw.randrange(len(data))] if draw.random() < 0.1 else data)
        try:
            image = read_image(path, "p1")
        except IntakeError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert np.isfinite(image.GetSpacing()).all() and image.GetNumberOfPixels() <= 1000
    assert refused > 50

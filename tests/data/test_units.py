"""Scans in metres and microns are the scans in millimetres, and answers say what their scans' headers say."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

from stages.config import load_config
from stages.data.faults import IntakeError
from stages.data.geometry import geometry_of
from stages.data.intake import header_geometry, read_image
from stages.data.nifti import nifti_header
from stages.data.writers import write_image
from stages.preprocess import preprocess

SPACING, ORIGIN = (1.0, 1.25, 1.5), (-12.0, 7.0, 30.0)
UNITS = {"mm": (1.0, 2), "microns": (1000.0, 3), "metres": (0.001, 1), "unsaid": (1.0, 0)}


def volume(voxels, factor=1.0):
    """An image whose numbers are lengths times a factor."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing([factor * mm for mm in SPACING])
    image.SetOrigin([factor * mm for mm in ORIGIN])
    image.SetDirection(sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.3).GetMatrix())
    return image


def write_nifti(path, voxels, unit):
    factor, code = UNITS[unit]
    sitk.WriteImage(volume(voxels, factor), str(path))
    data = bytearray(path.read_bytes())
    data[123] = code | 8  # time in seconds
    path.write_bytes(data)


def write_nrrd(path, voxels, factor, units, key=b"space units: "):
    sitk.WriteImage(volume(voxels, factor), str(path))
    head, separator, rest = path.read_bytes().partition(b"\n\n")
    path.write_bytes(head + b"\n" + key + units.encode() + separator + rest)


def anatomy():
    random = np.random.default_rng(0)
    label = np.zeros((20, 22, 24), np.uint8)
    label[6:14, 7:15, 8:17] = 1
    return random.normal(100, 10, label.shape).astype(np.float32) + 80 * label, label


@pytest.mark.parametrize("unit", UNITS)
def test_nifti_comes_in_mm(tmp_path, unit):
    write_nifti(tmp_path / "scan.nii", anatomy()[0], unit)
    for geometry in (
        geometry_of(read_image(tmp_path / "scan.nii", "p1")),
        header_geometry(tmp_path / "scan.nii", "p1"),
    ):
        assert geometry.spacing == pytest.approx(SPACING, rel=1e-6) and geometry.origin == pytest.approx(
            ORIGIN, rel=1e-6
        )


@pytest.mark.parametrize(
    ("units", "factor"),
    [('"mm" "mm" "mm"', 1), ('"um" "um" "um"', 1000), ('"m" "m" "m"', 0.001), ('"cm" "cm" "cm"', 0.1),
     ('"µm" "µm" "µm"', 1000), ('"Microns" "microns" "microns"', 1000), ('"" "" ""', 1)],
)  # fmt: skip
def test_nrrd_comes_in_mm(tmp_path, units, factor):
    write_nrrd(tmp_path / "scan.nrrd", anatomy()[0], factor, units)
    for geometry in (
        geometry_of(read_image(tmp_path / "scan.nrrd", "p1")),
        header_geometry(tmp_path / "scan.nrrd", "p1"),
    ):
        assert geometry.spacing == pytest.approx(SPACING) and geometry.origin == pytest.approx(ORIGIN)


@pytest.mark.parametrize("units", ['"furlong" "furlong" "furlong"', '"mm" "um" "mm"'])
def test_a_unit_that_is_not_known_is_refused(tmp_path, units):
    write_nrrd(tmp_path / "scan.nrrd", anatomy()[0], 1, units)
    with pytest.raises(IntakeError) as told:
        read_image(tmp_path / "scan.nrrd", "p1")
    line = "case p1: image has lengths in a unit that is not known, or in several; save it in mm."
    assert str(told.value) == line and told.value.fault.code == "unit"


def test_metaimage_comes_in_mm(tmp_path):
    sitk.WriteImage(volume(anatomy()[0], 1000), str(tmp_path / "scan.mha"))
    data = (tmp_path / "scan.mha").read_bytes()
    (tmp_path / "scan.mha").write_bytes(data.replace(b"ElementType", b"DistanceUnits = um\nElementType"))
    assert read_image(tmp_path / "scan.mha", "p1").GetSpacing() == pytest.approx(SPACING)


def cohort_of(folder, write, ending):
    image, label = anatomy()
    for kind, voxels in (("images", image), ("labels", label)):
        (folder / kind).mkdir(parents=True)
        write(folder / kind / f"atlas{ending}", voxels)
    write(folder / "images" / f"scan{ending}", image[::-1] + 1)
    settings = {
        "workspace": "runs",
        "data": {"folder": ".", "atlases": ["atlas"], "unlabeled": ["scan"]},
        "structures": {"block": 1},
        "preprocess": {"align": "none", "workers": 1},
    }
    (folder / "lrls.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return preprocess(load_config(folder / "lrls.yaml"))


@pytest.mark.usefixtures("in_this_process", "no_pictures")
def test_the_same_scans_in_any_unit_make_the_same_cohort(tmp_path):
    def nifti(unit):
        return lambda path, voxels: write_nifti(path, voxels, unit)

    def nrrd(path, voxels):
        write_nrrd(path, voxels, 1000, '"um" "um" "um"')

    one = cohort_of(tmp_path / "mm", nifti("mm"), ".nii")
    others = [cohort_of(tmp_path / unit, nifti(unit), ".nii") for unit in ("microns", "metres")]
    others.append(cohort_of(tmp_path / "nrrd", nrrd, ".nrrd"))
    for other in others:
        assert other.grid.shape == one.grid.shape
        assert other.grid.spacing_mm == pytest.approx(one.grid.spacing_mm, rel=1e-6)
        assert other.grid.origin == pytest.approx(one.grid.origin, rel=1e-5)
        assert (other.label("atlas") == one.label("atlas")).all() and one.label("atlas").any()
        np.testing.assert_allclose(other.image("scan").astype(float), one.image("scan").astype(float), atol=2e-3)


@pytest.mark.parametrize("unit", UNITS)
def test_an_answer_has_the_numbers_and_the_unit_of_its_scan(tmp_path, unit):
    image, label = anatomy()
    scan, out = tmp_path / "scan.nii", tmp_path / "answer.nii.gz"
    write_nifti(scan, image, unit)
    read = read_image(scan, "p1")
    answer = sitk.GetImageFromArray(label)
    answer.CopyInformation(read)
    write_image(answer, out, like=scan)

    own, written = nifti_header(scan).data, nifti_header(out).data
    assert written[123] == own[123] == UNITS[unit][1] | 8
    for offset, numbers in ((76, "8f"), (252, "2h"), (256, "6f"), (280, "12f")):
        assert (
            struct.unpack_from(f"<{numbers}", written, offset)[1:4]
            == struct.unpack_from(f"<{numbers}", own, offset)[1:4]
        )
    back = read_image(out, "p1", "label map")
    assert back.GetSpacing() == read.GetSpacing() and back.GetOrigin() == read.GetOrigin()
    assert (sitk.GetArrayFromImage(back) == label).all()

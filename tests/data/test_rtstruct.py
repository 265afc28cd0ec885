"""RTSTRUCT: contours where the label map is, read back by plastimatch, and of the source no more than its identity."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicoms import CORONAL, OBLIQUE, SAGITTAL, phantom, positions, write_frames, write_slices
from matplotlib.path import Path as Outline

from stages.data.dicom import read_dicom
from stages.data.rtstruct import contours_of, write_rtstruct
from stages.errors import LrlsError

SHAPE = (10, 28, 40)
NAMES, COLOURS = ["ring", "ell\\two", "dots", "absent"], ["#ff0102", "#00ff00", "#0000ff", "#102030"]


def label() -> np.ndarray:
    """A ring with a hole, a structure of no symmetry, and single voxels; classes (D, H, W)."""
    depth, height, width = SHAPE
    z, y, x = np.indices(SHAPE)
    classes = np.zeros(SHAPE, np.uint8)
    radius = ((y - 0.4 * height) / 0.3 / height) ** 2 + ((x - 0.3 * width) / 0.22 / width) ** 2
    classes[(radius < 1) & (z > 1) & (z < 6)] = 1
    classes[(radius < 0.2) & (z > 2) & (z < 5)] = 0
    classes[2:4, 20:26, 28:31] = 2
    classes[4 : depth - 1, 20:22, 28:38] = 2
    classes[3, 2, width - 1] = classes[5, 0, 0] = 3
    return classes


def written(scan: Path, path: Path, classes: np.ndarray | None = None) -> pydicom.Dataset:
    write_rtstruct(label() if classes is None else classes, NAMES, COLOURS, scan, "x", path, method="unet")
    return pydicom.dcmread(path)


def read_back(file: Path, scan: Path, to: Path) -> dict[str, sitk.Image]:
    """Masks by name, as plastimatch reads them."""
    program = Path(sys.executable).with_name("plastimatch")
    arguments = ["--input", file, "--referenced-ct", scan, "--output-prefix", to, "--prefix-format", "nrrd"]
    subprocess.run([program, "convert", *arguments], check=True, capture_output=True)
    return {path.stem: sitk.ReadImage(str(path)) for path in to.glob("*.nrrd")}


@pytest.mark.parametrize("orientation", [CORONAL, SAGITTAL, OBLIQUE, (-1, 0, 0, 0, 1, 0)])
def test_every_voxel_comes_back_from_another_program(tmp_path, orientation):
    """Voxels are not square, slices are not square, and the label map has no symmetry: a mirrored one would be seen."""
    scan = write_slices(tmp_path / "s", phantom(SHAPE), orientation, at=positions(SHAPE[0], orientation))
    write_rtstruct(label(), ["ring", "ell", "dots", "absent"], COLOURS, scan, "x", tmp_path / "x.dcm", method="unet")
    found = read_back(tmp_path / "x.dcm", scan, tmp_path / "masks")
    image = read_dicom(scan, "x")
    for k, name in ((1, "ring"), (2, "ell"), (3, "dots")):
        mask = sitk.Resample(found[name], image, sitk.Transform(), sitk.sitkNearestNeighbor)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask) > 0, label() == k)


def test_contours_hold_the_centres_of_their_voxels_and_no_others():
    rows, columns = np.indices(SHAPE[1:])
    centres = np.stack([columns.ravel(), rows.ravel()], 1)
    nested = np.zeros(SHAPE[1:], bool)
    nested[2:20, 2:30], nested[4:18, 4:12], nested[4:18, 14:28], nested[8:12, 17:24] = True, False, False, True
    random = np.random.default_rng(0).random(SHAPE[1:]) < 0.5
    for mask in (*(label() == 1), nested, random):
        inside = np.zeros(mask.shape, bool)
        for contour in contours_of(mask) if mask.any() else []:
            inside ^= Outline(contour).contains_points(centres).reshape(mask.shape)
            column, row = np.round(contour).astype(int).T
            assert mask[row, column].all()  # programs that round find the structure's voxels
        np.testing.assert_array_equal(inside, mask)


def test_names_colours_and_references_are_there(tmp_path):
    scan = write_slices(tmp_path / "s", phantom(SHAPE), at=positions(SHAPE[0]))
    found = written(scan, tmp_path / "x.dcm")
    assert [roi.ROIName for roi in found.StructureSetROISequence] == ["ring", "ell/two", "dots", "absent"]
    assert list(found.ROIContourSequence[0].ROIDisplayColor) == [255, 1, 2]
    uids = {pydicom.dcmread(file).SOPInstanceUID for file in scan.iterdir()}
    (contour, *_) = found.ROIContourSequence[2].ContourSequence
    assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID in uids
    assert "ContourSequence" not in found.ROIContourSequence[3]
    assert (found.PatientID, found.StudyInstanceUID) == ("1", pydicom.dcmread(next(scan.iterdir())).StudyInstanceUID)
    assert written(scan, tmp_path / "y.dcm") == found  # the same answer is the same file


def test_free_text_of_the_source_is_not_copied(tmp_path):
    def change(header, _):
        header.PatientComments = header.StudyDescription = header.InstitutionName = "SECRET"

    scan = write_slices(tmp_path / "s", phantom(SHAPE), change=change, at=positions(SHAPE[0]))
    written(scan, tmp_path / "x.dcm")
    assert b"SECRET" not in (tmp_path / "x.dcm").read_bytes()


def test_frames_of_one_file_are_named_by_their_numbers(tmp_path):
    scan = write_frames(tmp_path / "m.dcm", phantom())
    classes = np.zeros(phantom().shape, np.uint8)
    classes[2, 1:3, 2:4] = 1
    (contour,) = written(scan, tmp_path / "x.dcm", classes).ROIContourSequence[0].ContourSequence
    assert contour.ContourImageSequence[0].ReferencedFrameNumber >= 1
    place = np.reshape(contour.ContourData, (-1, 3)).astype(float)[:-1].mean(0)
    image = read_dicom(scan, "x")
    assert image.TransformPhysicalPointToContinuousIndex(place.tolist()) == pytest.approx((2.5, 1.5, 2), abs=0.2)


def test_what_cannot_be_written_costs_one_line(tmp_path):
    scan = write_slices(tmp_path / "s", phantom(SHAPE), at=positions(SHAPE[0]))
    with pytest.raises(LrlsError, match=r"^case x: the label map is empty, and RTSTRUCT cannot store an empty one\.$"):
        written(scan, tmp_path / "x.dcm", np.zeros(SHAPE, np.uint8))

    def change(header, _):
        del header.FrameOfReferenceUID

    scan = write_slices(tmp_path / "t", phantom(SHAPE), change=change, at=positions(SHAPE[0]))
    with pytest.raises(LrlsError, match=r"^case x: its DICOM headers lack FrameOfReferenceUID, which RTSTRUCT needs"):
        written(scan, tmp_path / "x.dcm")
    assert not (tmp_path / "x.dcm").exists()

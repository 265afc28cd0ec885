"""DICOM-SEG: voxels where the label map has them, valid files, and of the source no more than patient and study."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicoms import AXIAL, CORONAL, OBLIQUE, ROOT, SAGITTAL, phantom, positions, write_frames, write_slices
from pydicom.dataset import Dataset

from stages.data import dicom_seg
from stages.data.dicom import read_dicom
from stages.data.dicom_seg import write_dicom_seg
from stages.errors import LrlsError

NAMES = ["left", "right\\lobe", "absent", "tube"]
SEGMENTS = {1: 1, 2: 2, 4: 3}  # of classes
FREE_TEXT = {
    "PatientComments": "SECRET", "AdditionalPatientHistory": "SECRET", "StudyDescription": "SECRET",
    "AdmittingDiagnosesDescription": "SECRET", "Occupation": "SECRET", "OtherPatientNames": "SECRET^A",
    "InstitutionName": "SECRET", "OperatorsName": "SECRET^B", "ImageComments": "SECRET", "StationName": "SECRET",
    "DerivationDescription": "SECRET", "MedicalAlerts": "SECRET", "PatientAddress": "SECRET",
}  # fmt: skip


def label() -> np.ndarray:
    """Classes without any symmetry (D, H, W)."""
    classes = np.zeros(phantom().shape, np.uint8)
    for z in range(1, 5):
        classes[z, 1:3, 2 : 4 + z] = 1  # no two slices alike
    classes[2:4, 4, 1:3], classes[4, 5:7, 6] = 2, 4
    return classes


def written(scan: Path, path: Path, classes: np.ndarray | None = None, names=NAMES) -> Path:
    write_dicom_seg(label() if classes is None else classes, names, scan, "x", path, method="unet")
    return path


def in_patient(path: Path) -> dict[tuple[float, ...], int]:
    """Segment number by the place of a voxel's centre, from what each frame says of itself (no reader's order)."""
    seg = pydicom.dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    rows_mm, columns_mm = shared.PixelMeasuresSequence[0].PixelSpacing
    facing = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    places = {}
    planes = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, plane in zip(seg.PerFrameFunctionalGroupsSequence, planes, strict=True):
        groups = frame if "SegmentIdentificationSequence" in frame else shared
        corner = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(plane):
            place = corner + columns_mm * column * facing[:3] + rows_mm * row * facing[3:]
            places[tuple(place.round(2) + 0.0)] = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return places


def expected(scan: Path) -> dict[tuple[float, ...], int]:
    image = read_dicom(scan, "x")
    return {
        tuple(np.round(image.TransformIndexToPhysicalPoint((int(x), int(y), int(z))), 2) + 0.0): SEGMENTS[
            label()[z, y, x]
        ]
        for z, y, x in np.argwhere(label())
    }


KINDS = {
    "slices": lambda path, facing: write_slices(path, orientation=facing),
    "slices in descending order": lambda path, facing: write_slices(
        path, phantom()[::-1], facing, at=positions(6, facing)[::-1]
    ),
    "frames": lambda path, facing: write_frames(path, orientation=facing),
    "frames in descending order": lambda path, facing: write_frames(path, orientation=facing, order=range(6)[::-1]),
    "frames in any order": lambda path, facing: write_frames(path, orientation=facing, order=[3, 1, 0, 5, 4, 2]),
}


@pytest.mark.parametrize("facing", [AXIAL, CORONAL, SAGITTAL, OBLIQUE])
@pytest.mark.parametrize("kind", KINDS)
def test_every_voxel_lies_where_the_label_map_has_it(tmp_path, kind, facing):
    scan = KINDS[kind](tmp_path / "scan", facing)
    path = written(scan, tmp_path / "seg.dcm")

    assert in_patient(path) == expected(scan)
    volume = hd.seg.segread(path).get_volume(combine_segments=True)  # another reader, which orders frames itself
    assert sorted(np.unique(volume.array, return_counts=True)[1].tolist()[1:]) == [2, 4, 36]
    assert_referenced(path, scan)


def assert_referenced(path: Path, scan: Path) -> None:
    """Each frame names the slice, or the frame, that lies at its place."""
    files = sorted(scan.iterdir()) if scan.is_dir() else [scan]
    sources = {source.SOPInstanceUID: source for source in map(pydicom.dcmread, files)}
    for frame in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        source = sources[reference.ReferencedSOPInstanceUID]
        if "ReferencedFrameNumber" in reference:
            source = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1].PlanePositionSequence[
                0
            ]
        np.testing.assert_allclose(
            source.ImagePositionPatient, frame.PlanePositionSequence[0].ImagePositionPatient, atol=1e-6
        )


def long_numbers(d: Dataset, k: int = 0) -> None:
    """A source that DICOM does not allow, but that exists: numbers of more than 16 characters, and little else."""
    for name in ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "PatientBirthDate", "PatientSex"):
        delattr(d, name)
    for name in ("ReferringPhysicianName", "SliceThickness"):
        if name in d:
            delattr(d, name)
    measures = d if "PixelSpacing" in d else d.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = [0.7500000143051147, 1.5000000143051147]


@pytest.mark.parametrize("change", [lambda d, k=0: None, long_numbers])
@pytest.mark.parametrize("is_multi_frame", [False, True])
def test_required_attributes_are_there_and_well_formed(tmp_path, change, is_multi_frame):
    write = write_frames if is_multi_frame else write_slices
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = written(write(tmp_path / "scan", change=change), tmp_path / "seg.dcm")
    seg = pydicom.dcmread(path)

    assert (seg.SOPClassUID, seg.Modality, seg.SegmentationType) == (
        "1.2.840.10008.5.1.4.1.1.66.4", "SEG", "BINARY",
    )  # fmt: skip
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID, seg.PatientID) == (f"{ROOT}1", f"{ROOT}3", "1")
    assert seg.SeriesInstanceUID != f"{ROOT}2" and seg.ImageType[0] == "DERIVED"
    for name in dicom_seg.IDENTITY:  # type 2: there, be it empty
        assert name in seg
    assert (seg.BitsAllocated, seg.BitsStored, seg.HighBit, seg.PixelRepresentation) == (1, 1, 0, 0)
    assert (seg.Rows, seg.Columns, seg.SamplesPerPixel) == (7, 9, 1)
    assert seg.NumberOfFrames == len(seg.PerFrameFunctionalGroupsSequence) == 4 + 2 + 1
    assert len(seg.PixelData) == 56  # 7 frames of 7 x 9 bits, in an even number of bytes
    assert [segment.SegmentNumber for segment in seg.SegmentSequence] == [1, 2, 3]
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["left", "right/lobe", "tube"]
    for segment in seg.SegmentSequence:
        assert segment.SegmentAlgorithmType == "AUTOMATIC" and segment.SegmentAlgorithmName == "lrls unet"
        assert segment.SegmentedPropertyCategoryCodeSequence and segment.SegmentedPropertyTypeCodeSequence
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == measures.SliceThickness == 2.5
    texts = [element for element in all_elements(seg) if element.VR == "DS"]
    assert texts and all(len(str(part)) <= 16 for element in texts for part in np.atleast_1d(element.value))


def all_elements(d: Dataset):
    for element in d:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from all_elements(item)


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is not installed (Debian: dicom3tools)")
@pytest.mark.parametrize("change", [lambda d, k=0: None, long_numbers])
@pytest.mark.parametrize("write", [write_slices, write_frames])
@pytest.mark.parametrize("facing", [AXIAL, OBLIQUE])
def test_dciodvfy_finds_no_error(tmp_path, write, change, facing):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = written(write(tmp_path / "scan", orientation=facing, change=change), tmp_path / "seg.dcm")
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)

    assert "Segmentation" in said.stderr
    assert [line for line in said.stderr.splitlines() if line.startswith("Error")] == []


def test_free_text_of_the_source_stays_there(tmp_path):
    def change(d: Dataset, k: int = 0) -> None:
        for name, value in FREE_TEXT.items():
            setattr(d, name, value)
        d.private_block(0x0009, "lrls", create=True).add_new(1, "LO", "SECRET")

    for scan in (
        write_slices(tmp_path / "slices", change=change),
        write_frames(tmp_path / "frames", change=change),
    ):
        path = written(scan, tmp_path / "seg.dcm")
        seg = pydicom.dcmread(path)
        assert b"SECRET" not in path.read_bytes()
        assert (seg.PatientName, seg.PatientID, seg.PatientBirthDate, seg.StudyID) == ("A^B", "1", "19500101", "1")


def test_values_of_headers_reach_neither_stderr_nor_messages(tmp_path, capfd, caplog):
    def change(d: Dataset, k: int) -> None:
        d.PatientName, d.StudyDate, d.PatientSex = "Bono", "Bono", "Bono"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = write_slices(tmp_path / "x", change=change)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seg = pydicom.dcmread(written(folder, tmp_path / "seg.dcm"))
    streams = capfd.readouterr()
    assert "Bono" not in streams.err + streams.out + caplog.text + "".join(str(warning.message) for warning in caught)
    assert (seg.PatientName, seg.StudyDate, seg.PatientSex) == ("Bono", "", "")  # what is no date is left empty


def test_names_of_any_alphabet_are_kept(tmp_path):
    def change(d: Dataset, k: int) -> None:
        d.SpecificCharacterSet, d.PatientName = "ISO_IR 100", "Müller^Jörg"

    folder = write_slices(tmp_path / "x", change=change)
    plain = pydicom.dcmread(written(folder, tmp_path / "plain.dcm"))
    greek = pydicom.dcmread(written(folder, tmp_path / "greek.dcm", names=["λοβός", "a", "b", "c" * 80]))

    assert plain.SpecificCharacterSet == "ISO_IR 100"
    assert greek.SegmentSequence[0].SegmentLabel == "λοβός" and greek.SegmentSequence[2].SegmentLabel == "c" * 64
    assert plain.PatientName == greek.PatientName == "Müller^Jörg"


def refused(scan: Path, path: Path, **settings) -> str:
    with pytest.raises(LrlsError) as refusal:
        written(scan, path, **settings)
    assert not path.exists()
    return str(refusal.value)


def test_what_dicom_seg_cannot_hold_is_told_in_one_line(tmp_path):
    path = tmp_path / "seg.dcm"
    scan = write_slices(tmp_path / "x")
    assert refused(scan, path, classes=np.zeros_like(label())) == (
        "case x: the label map is empty, and DICOM-SEG cannot store an empty one."
    )
    for file in scan.iterdir():
        d = pydicom.dcmread(file)
        del d.FrameOfReferenceUID
        d.save_as(file)
    assert refused(scan, path) == (
        "case x: its DICOM headers lack FrameOfReferenceUID, which DICOM-SEG needs; use the NIfTI file."
    )
    for name, k in (("a", 0), ("b", 3)):
        write_frames(tmp_path / "halves" / name, phantom()[k : k + 3], at=positions(6)[k : k + 3])
    assert refused(tmp_path / "halves", path) == "case x: DICOM-SEG needs one multi-frame file, found 2."

    def change(d: Dataset, k: int) -> None:
        d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = "1.2.3.4"  # of a vendor

    assert refused(write_slices(tmp_path / "private", change=change), path) == (
        "case x: its DICOM headers are of a kind or have values that DICOM-SEG does not allow; use the NIfTI file."
    )


def test_a_structure_on_one_slice_alone_is_written(tmp_path):
    classes = np.zeros_like(label())
    classes[2, 3, 4] = 4
    scan = write_slices(tmp_path / "x")

    places = in_patient(written(scan, tmp_path / "seg.dcm", classes))

    middle = read_dicom(scan, "x").TransformIndexToPhysicalPoint((4, 3, 2))
    assert list(places.values()) == [1] and next(iter(places)) == pytest.approx(middle, abs=0.01)

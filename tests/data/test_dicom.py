"""DICOM series and multi-frame files: read in the order of positions with the values that headers say, or refused."""

from __future__ import annotations

import logging
import warnings
import zlib
from pathlib import Path

import dicoms
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicoms import AXIAL, CORONAL, OBLIQUE, SAGITTAL, SPACING_MM, phantom, positions, write_frames, write_slices
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from stages.data.contents import files_of
from stages.data.dicom_files import is_dicom, series_in
from stages.data.dicom_headers import quiet
from stages.data.faults import IntakeError
from stages.data.intake import case_id, read_image
from stages.data.new_scans import find_scans

SHUFFLED = (3, 1, 0, 5, 4, 2)
COUNT = len(SHUFFLED)


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(read_image(path, "x"))


def refused(path: Path) -> str:
    with pytest.raises(IntakeError) as refusal:
        read_image(path, "x")
    return str(refusal.value)


def setting(**values):
    """A change of a header: attributes by name, or functions of the slice's number."""

    def change(d: Dataset, k: int = 0) -> None:
        for name, value in values.items():
            setattr(d, name, value(k) if callable(value) else value)

    return change


def by_itk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader
    return sitk.ReadImage(reader.GetGDCMSeriesFileNames(str(folder), reader.GetGDCMSeriesIDs(str(folder))[0]))


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, OBLIQUE])
@pytest.mark.parametrize("is_descending", [False, True])
def test_a_sound_series_is_what_itk_reads(tmp_path, orientation, is_descending):
    step = -1 if is_descending else 1
    at = positions(COUNT, orientation)[::step]
    image = read_image(write_slices(tmp_path / "x", phantom()[::step], orientation, at=at), "x")

    expected = by_itk(tmp_path / "x")
    assert image.GetPixelID() == expected.GetPixelID()
    for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(image, geometry)() == getattr(expected, geometry)()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), phantom())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, OBLIQUE])
@pytest.mark.parametrize("order", [range(COUNT), range(COUNT)[::-1], SHUFFLED])
def test_frames_lie_where_a_series_of_the_same_slices_lies(tmp_path, orientation, order):
    write_frames(tmp_path / "frames" / "a", orientation=orientation, order=order)
    frames = read_image(tmp_path / "frames", "x")
    series = read_image(write_slices(tmp_path / "series", orientation=orientation), "x")

    np.testing.assert_array_equal(sitk.GetArrayFromImage(frames), phantom())
    for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(frames, geometry)(), getattr(series, geometry)(), atol=1e-6)


def test_geometry_may_be_stated_for_each_frame(tmp_path):
    def move(d: Dataset) -> None:
        shared = d.SharedFunctionalGroupsSequence[0]
        for frame in d.PerFrameFunctionalGroupsSequence:
            frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
            frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
        del d.SharedFunctionalGroupsSequence

    image = read_image(write_frames(tmp_path / "a.dcm", order=SHUFFLED, change=move), "x")

    assert image.GetSpacing() == pytest.approx((SPACING_MM[1], SPACING_MM[0], SPACING_MM[2]))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), phantom())


def test_a_volume_may_be_split_over_multi_frame_files(tmp_path):
    write_frames(tmp_path / "x" / "b", phantom()[:3], at=positions(COUNT)[:3])
    write_frames(tmp_path / "x" / "a", phantom()[3:], at=positions(COUNT)[3:])

    np.testing.assert_array_equal(voxels(tmp_path / "x"), phantom())


def test_slopes_that_differ_by_slice_scale_without_rounding(tmp_path):
    slope, intercept = np.array([1, 0.37, 0.25, 2, 3, 0.5]), np.array([0, 0.5, 0, 0, 1, -2])
    expected = phantom() * slope[:, None, None] + intercept[:, None, None]
    change = setting(RescaleSlope=lambda k: slope[k], RescaleIntercept=lambda k: intercept[k])
    write_frames(tmp_path / "a.dcm", order=SHUFFLED, scale=lambda k: (slope[k], intercept[k]))

    np.testing.assert_allclose(voxels(write_slices(tmp_path / "x", change=change)), expected, rtol=1e-6)
    np.testing.assert_allclose(voxels(tmp_path / "a.dcm"), expected, rtol=1e-6)


def test_slices_of_several_number_formats_do_not_wrap(tmp_path):
    # Unsigned first: ITK would take its type for the negative numbers of the others.
    change = setting(PixelRepresentation=lambda k: int(k > 0))
    stored = np.abs(phantom()[:1]).astype(np.int16), phantom()[1:] - 5000
    expected = np.concatenate(stored).astype(np.int16)

    np.testing.assert_array_equal(voxels(write_slices(tmp_path / "x", expected, change=change)), expected)


def test_bits_beside_the_stored_ones_are_no_part_of_the_number(tmp_path):
    shape = (COUNT, 7, 9)
    numbers = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 200
    overlaid = ((numbers & 0x0FFF) | 0x5000).astype(np.uint16).view(np.int16)
    write_frames(tmp_path / "a.dcm", overlaid, change=setting(BitsStored=12, HighBit=11))

    np.testing.assert_array_equal(voxels(tmp_path / "a.dcm"), numbers)


def jpeg_2000(tmp_path: Path, plane: np.ndarray) -> Dataset:
    path = tmp_path / "plane.dcm"
    sitk.WriteImage(sitk.GetImageFromArray(plane), str(path), useCompression=True)
    return pydicom.dcmread(path)


def encode(d: Dataset, syntax: str, frames: list[bytes]) -> None:
    d.file_meta.TransferSyntaxUID = syntax
    d.PixelData = encapsulate(frames)
    d["PixelData"].VR, d["PixelData"].is_undefined_length = "OB", True


def compressed(tmp_path: Path, scale=None, sop_class: str = dicoms.ENHANCED_MR) -> Path:
    """A multi-frame file in JPEG 2000."""
    encoded = [jpeg_2000(tmp_path, phantom()[k]) for k in SHUFFLED]

    def change(d: Dataset) -> None:
        frames = [next(generate_frames(plane.PixelData, number_of_frames=1)) for plane in encoded]
        encode(d, encoded[0].file_meta.TransferSyntaxUID, frames)
        d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = sop_class

    return write_frames(tmp_path / "a.dcm", order=SHUFFLED, change=change, scale=scale)


@pytest.mark.parametrize("end", ["4.1", "2.1", "130", "4.4", "2.2", "128.1"])
def test_compressed_frames_are_read_and_scaled(tmp_path, end):
    path = compressed(tmp_path, scale=lambda k: (2.0, -5.0), sop_class=f"1.2.840.10008.5.1.4.1.1.{end}")

    np.testing.assert_array_equal(voxels(path), 2 * phantom().astype(int) - 5)


def test_compressed_frames_that_itk_would_scale_wrongly_are_refused(tmp_path):
    one_line = (
        "case x: image is compressed, and its frames are scaled by slopes of their own; "
        "decompress it (gdcmconv --raw, dcmdjpeg)."
    )
    assert refused(compressed(tmp_path, scale=lambda k: (2.0 + k, 0.0))) == one_line
    assert refused(compressed(tmp_path, lambda k: (2.0, 0.0), sop_class="1.2.840.10008.5.1.4.1.1.7.3")) == one_line


def test_compressed_slices_are_read(tmp_path):
    def run_lengths(d: Dataset, k: int) -> None:
        d.compress(RLELossless, generate_instance_uid=False)

    np.testing.assert_array_equal(voxels(write_slices(tmp_path / "rle", change=run_lengths)), phantom())
    for name, syntax in (("deflated", DeflatedExplicitVRLittleEndian), ("implicit", ImplicitVRLittleEndian)):

        def change(d: Dataset, k: int, syntax=syntax) -> None:
            d.file_meta.TransferSyntaxUID = syntax

        np.testing.assert_array_equal(voxels(write_slices(tmp_path / name, change=change)), phantom())


def test_a_compression_that_itk_does_not_know_is_named(tmp_path):
    def change(d: Dataset, k: int) -> None:
        encode(d, "1.2.840.10008.1.2.4.201", [b"\xff\x4f\xff\x51" + bytes(60)])

    assert "a way that is not read (High-Throughput JPEG 2000" in refused(write_slices(tmp_path / "x", change=change))


def test_files_are_dicom_by_content_and_others_are_left_out(tmp_path):
    folder = write_slices(tmp_path / "x", names=["1", "b.IMA", "c.nii.gz", "%d.mha", "e.txt", "f"])
    dicoms.without_preamble(folder / "b.IMA")
    (folder / "README").write_text("slices of one patient", encoding="utf-8")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" * 300)
    (folder / "sidecar.json").write_text("{}", encoding="utf-8")
    (folder / ".hidden").write_bytes((folder / "1").read_bytes())

    assert sorted(file.name for file in series_in(folder)) == ["%d.mha", "1", "b.IMA", "c.nii.gz", "e.txt", "f"]
    np.testing.assert_array_equal(voxels(folder), phantom())


def test_files_without_meta_information_are_read(tmp_path):
    for is_implicit in (True, False):
        folder = write_slices(tmp_path / f"x{is_implicit}")
        for file in folder.iterdir():
            d = pydicom.dcmread(file)
            d.preamble = None
            del d.file_meta
            d.save_as(file, implicit_vr=is_implicit, little_endian=True, enforce_file_format=False)
            assert is_dicom(file)
        np.testing.assert_array_equal(voxels(folder), phantom())


def test_slices_may_lie_in_folders_below_as_on_a_disk_with_a_dicomdir(tmp_path):
    from pydicom.fileset import FileSet

    files = FileSet()
    for file in sorted(write_slices(tmp_path / "slices").iterdir()):
        files.add(file)
    files.write(tmp_path / "disks" / "p01")

    assert (tmp_path / "disks" / "p01" / "DICOMDIR").is_file()
    np.testing.assert_array_equal(voxels(tmp_path / "disks" / "p01"), phantom())
    assert [name for name, _ in find_scans([tmp_path / "disks"])[0]] == ["p01"]
    assert len(files_of(tmp_path / "disks" / "p01")) == COUNT + 1


def test_folders_below_a_series_are_left_alone(tmp_path):
    write_slices(tmp_path / "x")
    write_slices(tmp_path / "x" / "localizer", series="9")

    np.testing.assert_array_equal(voxels(tmp_path / "x"), phantom())


def test_reports_beside_the_slices_are_no_series(tmp_path):
    def report(d: Dataset, k: int) -> None:
        d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
        del d.Rows, d.Columns, d.PixelData

    write_slices(tmp_path / "x")
    write_slices(tmp_path / "x", phantom()[:1], change=report, series="9")
    np.testing.assert_array_equal(voxels(tmp_path / "x"), phantom())
    write_slices(tmp_path / "report", change=report)
    assert "image folder holds no DICOM series, 1 expected" in refused(tmp_path / "report")


def test_a_multi_frame_file_may_be_named_itself(tmp_path):
    path = write_frames(tmp_path / "scans" / "p01.dcm", order=SHUFFLED)

    np.testing.assert_array_equal(voxels(path), phantom())
    assert case_id(path) == "p01"
    write_slices(tmp_path / "slices")
    assert refused(tmp_path / "slices" / "2_0.dcm") == (
        "case x: image is one slice of a DICOM series; name the folder of the series."
    )


@pytest.mark.parametrize("length", [150, 400, 700, -1])
def test_a_truncated_file_is_counted(tmp_path, length):
    folder = write_slices(tmp_path / "x")
    (folder / "2_5.dcm").write_bytes((folder / "2_5.dcm").read_bytes()[:length])

    assert refused(folder) == (
        "case x: image holds 6 DICOM files, 1 of them unreadable or truncated; copy or export the series again."
    )


def test_a_truncated_compressed_file_is_counted(tmp_path):
    folder = write_slices(tmp_path / "x", change=lambda d, k: d.compress(RLELossless, generate_instance_uid=False))
    (folder / "2_2.dcm").write_bytes((folder / "2_2.dcm").read_bytes()[:-20])

    assert "1 of them unreadable or truncated" in refused(folder)


def test_a_link_that_leads_nowhere_is_a_slice_that_is_missing(tmp_path):
    folder = write_slices(tmp_path / "x")
    (folder / "2_5.dcm").rename(tmp_path / "gone")
    (folder / "2_5.dcm").symlink_to(tmp_path / "nowhere")

    assert "1 of them unreadable or truncated" in refused(folder)


def test_damaged_bytes_end_in_one_line(tmp_path):
    rng = np.random.default_rng(0)
    path = write_frames(tmp_path / "a.dcm")
    whole = path.read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(132, len(data) - phantom().nbytes, 3):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            read_image(path, "x")
        except IntakeError as refusal:
            assert "\n" not in str(refusal)


@pytest.mark.parametrize(
    "claim", [{"Rows": 60000, "Columns": 60000}, {"NumberOfFrames": 2_000_000_000}, {"NumberOfFrames": 0, "Rows": 0}]
)
def test_a_header_cannot_claim_more_than_the_file_holds(tmp_path, claim):
    path = write_frames(tmp_path / "a.dcm", change=setting(**claim))
    assert refused(path) == "case x: image is unreadable or truncated; copy or export the series again."


def test_pixel_data_cannot_claim_to_be_longer_than_the_file(tmp_path):
    folder = write_slices(tmp_path / "x")
    data = bytearray((folder / "2_0.dcm").read_bytes())
    place = data.index(b"\xe0\x7f\x10\x00OW") + 8
    data[place : place + 4] = (2**30).to_bytes(4, "little")  # ITK would take a GB
    (folder / "2_0.dcm").write_bytes(data)

    assert "1 of them unreadable or truncated" in refused(folder)


@pytest.mark.parametrize(
    "tail", [b"\0" * 100, b"\0" * 3, b"\xfc\xff\xfc\xffOB\0\0\xff\xff\xff\x7f" + bytes(30), b"garbage!" * 4]
)
def test_what_follows_the_voxels_does_no_harm(tmp_path, tail):
    folder = write_slices(tmp_path / "x")
    (folder / "2_0.dcm").write_bytes((folder / "2_0.dcm").read_bytes() + tail)

    np.testing.assert_array_equal(voxels(folder), phantom())


def test_a_deflated_file_is_not_inflated_beyond_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.data.dicom_headers.MOST_DEFLATED", 2**16)

    def change(d: Dataset) -> None:
        d.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        d.PixelData = bytes(2**20)

    def inflated(*arguments):
        raise AssertionError("pydicom inflates it")

    path = write_frames(tmp_path / "a.dcm", change=change)
    monkeypatch.setattr(zlib, "decompress", inflated)
    assert "unreadable or truncated" in refused(path)


def test_a_volume_that_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.data.sizes.available_bytes", lambda: 1000)
    folder = write_slices(tmp_path / "x")

    assert "which need 5.29 kB of memory, 1 kB are free" in refused(folder)


GEOMETRY = "; export the original series again."


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda d, k: delattr(d, "ImagePositionPatient"), "ImagePositionPatient is missing or impossible in 6 of 6"),
        (lambda d, k: delattr(d, "ImageOrientationPatient"), "ImageOrientationPatient is missing or impossible in 6"),
        (lambda d, k: delattr(d, "PixelSpacing"), "PixelSpacing is missing or impossible in 6 of 6 slices"),
        (setting(PixelSpacing=[0, 1]), "PixelSpacing is missing or impossible in 6 of 6 slices"),
        (setting(ImageOrientationPatient=[0] * 6), "ImageOrientationPatient is missing or impossible in 6 of 6"),
        (setting(ImagePositionPatient=lambda k: [0, 0] if k == 2 else [0, 0, k]), "impossible in 1 of 6 slices"),
        (setting(ImagePositionPatient=lambda k: ["nan", 0, k] if k == 5 else [0, 0, k]), "impossible in 1 of 6"),
    ],
)
def test_without_geometry_there_are_no_volumes(tmp_path, change, line):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = refused(write_slices(tmp_path / "x", change=change))
    assert said.startswith("case x: image has no geometry: ") and line in said and said.endswith(GEOMETRY)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("PlanePositionSequence", "ImagePositionPatient is missing or impossible in 1 of 6 slices"),
        ("PerFrameFunctionalGroupsSequence", "image has 6 frames without positions in the patient"),
        ("SharedFunctionalGroupsSequence", "ImageOrientationPatient is missing or impossible in 6 of 6 slices"),
    ],
)
def test_frames_without_geometry_are_refused(tmp_path, name, line):
    def change(d: Dataset) -> None:
        delattr(d if name in d else d.PerFrameFunctionalGroupsSequence[3], name)

    assert line in refused(write_frames(tmp_path / "a.dcm", change=change))


@pytest.mark.parametrize("degrees", [20, -20, 2])
def test_gantry_tilt_is_refused(tmp_path, degrees):
    heights = SPACING_MM[2] * np.arange(COUNT)
    at = positions(COUNT) + np.outer(heights, [0, np.tan(np.radians(degrees)), 0])
    said = refused(write_slices(tmp_path / "x", at=at))

    assert said.startswith(
        f"case x: image has slices that shift sideways, {abs(degrees)} degrees off their normal (gantry tilt?); "
        "resample it to a right-angled grid (dcm2niix, or"
    )
    assert "shift sideways" in refused(write_frames(tmp_path / "a.dcm", at=at))


def test_rounded_positions_are_no_tilt(tmp_path):
    rng = np.random.default_rng(0)
    at = positions(COUNT) + rng.uniform(-0.05, 0.05, (COUNT, 3))
    np.testing.assert_array_equal(voxels(write_slices(tmp_path / "x", at=at)), phantom())


@pytest.mark.parametrize(
    ("kept", "line"),
    [
        ((0, 1, 2, 4, 5), "slices 2.5 to 5 mm apart, the widest gap after slice 3 of 5"),
        ((0, 3, 4, 5), "slices 2.5 to 7.5 mm apart, the widest gap after slice 1 of 4"),
    ],
)
def test_missing_slices_are_refused(tmp_path, kept, line):
    kept = list(kept)
    assert line in refused(write_slices(tmp_path / "x", phantom()[kept], at=positions(COUNT)[kept]))
    assert line in refused(write_frames(tmp_path / "a.dcm", order=kept))


@pytest.mark.parametrize(
    ("places", "line"),
    [
        ([*range(6), *range(6)], "holds 2 volumes: each of 6 positions 2 times"),
        ([0, 1, 2, 2, 3, 4, 5], "holds several slices at 1 of 6 positions"),
        ([0, 0, 0], "holds 3 slices at one position"),
    ],
)
def test_positions_that_are_taken_twice_are_told_as_such(tmp_path, places, line):
    assert line in refused(write_slices(tmp_path / "x", phantom()[places], at=positions(COUNT)[places]))
    assert line in refused(write_frames(tmp_path / "a.dcm", order=places))


def test_two_multi_frame_files_of_one_place_are_two_volumes(tmp_path):
    write_frames(tmp_path / "x" / "a")
    write_frames(tmp_path / "x" / "b")

    assert "holds 2 volumes" in refused(tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            setting(ImageOrientationPatient=lambda k: list(CORONAL if k == 5 else AXIAL)),
            "2 orientations, 1 expected (is one",
        ),
        (setting(Rows=lambda k: 9 - 2 * (k < 5), Columns=lambda k: 7 + 2 * (k < 5)), "2 sizes, 1 expected"),
        (setting(PixelSpacing=lambda k: [1, 1 + (k == 3)]), "2 pixel spacings, 1 expected"),
        (setting(ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0]), "axes that are not at right angles"),
        (
            setting(RescaleSlope=lambda k: "nan" if k == 2 else 1),
            "impossible RescaleSlope or RescaleIntercept in 1 of 6",
        ),
        (setting(RescaleSlope=0), "impossible RescaleSlope or RescaleIntercept in 6 of 6 slices"),
        (setting(PhotometricInterpretation="MONOCHROME1"), "stored for display in negative (MONOCHROME1)"),
        (setting(PhotometricInterpretation="PALETTE COLOR"), "3 channels (colours)"),
        (setting(ModalityLUTSequence=[Dataset()]), "values by a table (ModalityLUTSequence)"),
        (setting(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), "is a DICOM segmentation"),
    ],
)
def test_slices_that_are_no_volume_of_grey_values_are_refused(tmp_path, change, line):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = write_slices(tmp_path / "x", change=change)
    assert line in refused(folder)


def test_colour_is_refused(tmp_path):
    def change(d: Dataset, k: int) -> None:
        d.SamplesPerPixel, d.PhotometricInterpretation, d.PlanarConfiguration = 3, "RGB", 0
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 8, 8, 7, 0
        d.PixelData = bytes(7 * 9 * 3 + 1)

    assert "has 3 channels" in refused(write_slices(tmp_path / "x", change=change))


def test_values_of_headers_reach_neither_stderr_nor_messages(tmp_path, capfd, caplog):
    value = "1.00000000000000777"  # longer than DICOM allows: pydicom warns, and quotes it

    def change(d: Dataset, k: int) -> None:
        d.PatientName = "Bono"
        d["RescaleSlope"] = pydicom.DataElement("RescaleSlope", "DS", value, validation_mode=0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = write_slices(tmp_path / "x", change=change)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_image(folder, "x")
        (folder / "2_0.dcm").write_bytes((folder / "2_0.dcm").read_bytes()[:600])
        said = refused(folder)
    streams = capfd.readouterr()
    said += streams.err + streams.out + caplog.text + "".join(str(warning.message) for warning in caught)
    assert value not in said and "Bono" not in said


def test_quiet_silences_the_libraries_and_nothing_else(caplog):
    with quiet():
        logging.getLogger("highdicom.base").warning("Secret")
        logging.getLogger("pydicom").error("Secret")
        logging.getLogger("stages").warning("ours")
        warnings.warn("Secret", stacklevel=1)
    logging.getLogger("pydicom").warning("afterwards")

    assert [record.message for record in caplog.records] == ["ours", "afterwards"]

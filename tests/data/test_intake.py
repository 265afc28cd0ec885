"""Every fault of a user's scan is found, named in one line and answered with a remedy."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from stages.config import Config
from stages.data import digests
from stages.data.checks import cohort_faults, scan_faults
from stages.data.faults import disk_fault
from stages.data.intake import find_file, read_new_scan, read_scan
from stages.data.labels import as_integers, class_indices, label_values
from stages.errors import LrlsError

SPACING_MM = (1.0, 1.5, 2.0)
ALL_PARTS = ("atlases", "unlabeled", "supervised", "dev", "test")


def image_of(seed=0, shape=(6, 7, 8), spacing_mm=SPACING_MM):
    voxels = np.random.default_rng(seed).normal(100, 20, size=shape).astype(np.float32)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing_mm)
    return image


def label_of(image, value=17, dtype=np.uint8):
    voxels = np.zeros(image.GetSize()[::-1], dtype=dtype)
    voxels[2:4, 2:5, 3:6] = value
    label = sitk.GetImageFromArray(voxels)
    label.CopyInformation(image)
    return label


@pytest.fixture
def config(tmp_path):
    return make_cohort(tmp_path)


def make_cohort(folder, **changes):
    """One atlas, one unlabelled and one test scan without a fault."""
    for seed, case in enumerate(("atlas", "free", "held")):
        image = image_of(seed)
        write(folder, "images", case, image)
        if case != "free":
            write(folder, "labels", case, label_of(image))
    parts = {"atlases": ["atlas"], "unlabeled": ["free"], "test": ["held"]} | changes.pop("parts", {})
    values = {"workspace": folder / "runs", "data": {"folder": folder, **parts}, "structures": {"liver": 17}}
    return Config.model_validate(values | changes)


def write(folder, kind, name, image):
    (folder / kind).mkdir(exist_ok=True)
    path = folder / kind / (name if "." in name else f"{name}.nii.gz")
    sitk.WriteImage(image, str(path))
    return path


def only_fault(faults):
    assert len(faults) == 1, [str(fault) for fault in faults]
    return str(faults[0])


def test_a_sound_cohort_has_no_fault(config):
    assert cohort_faults(config, ALL_PARTS) == []


def test_a_scan_is_read_as_it_is_stored(config):
    scan = read_scan(config, "atlas", label=True)

    assert scan.image.GetPixelID() == sitk.sitkFloat32
    assert scan.image.GetSpacing() == SPACING_MM
    assert np.allclose(sitk.GetArrayFromImage(scan.image), sitk.GetArrayFromImage(image_of(0)))
    assert set(np.unique(sitk.GetArrayFromImage(scan.label))) == {0, 17}
    assert read_scan(config, "free", label=False).label is None


def test_large_float_intensities_are_no_fault(config, tmp_path):
    write(tmp_path, "images", "atlas", image_of(0) * 2e4)

    assert sitk.GetArrayFromImage(read_scan(config, "atlas", label=True).image).max() > 2e6


def test_header_text_does_not_travel(config, tmp_path):
    image = image_of(0)
    image.SetMetaData("descrip", "name of a patient")
    write(tmp_path, "images", "atlas", image)

    assert read_scan(config, "atlas", label=False).image.GetMetaDataKeys() == ()


def test_a_new_scan_is_read_by_its_path(tmp_path):
    scan = read_new_scan(write(tmp_path, "images", "ct_07_0000.nii.gz", image_of(0)))
    assert (scan.case, scan.label, scan.image.GetPixelID()) == ("ct_07", None, sitk.sitkFloat32)

    with pytest.raises(LrlsError, match=r"^case ct_08: no such file or folder; correct the path\.$"):
        read_new_scan(tmp_path / "ct_08.nii.gz")
    with pytest.raises(LrlsError, match="image is empty"):
        read_new_scan(write(tmp_path, "images", "ct_09", image_of(0) * 0))


def test_images_may_lie_in_several_folders(config, tmp_path):
    write(tmp_path, "more", "late", image_of(9))
    data = config.data.model_copy(update={"images": "images, more", "unlabeled": ["free", "late"]})

    assert cohort_faults(config.model_copy(update={"data": data}), ALL_PARTS) == []


def test_integral_float_labels_become_integers(config, tmp_path):
    write(tmp_path, "labels", "atlas", label_of(image_of(0), dtype=np.float32))

    label = read_scan(config, "atlas", label=True).label
    assert np.issubdtype(sitk.GetArrayFromImage(label).dtype, np.integer)


@pytest.mark.parametrize("value", [16.9999998, 17.0004])
def test_values_that_a_slope_moved_off_an_integer_are_that_integer(config, tmp_path, value):
    write(tmp_path, "labels", "atlas", label_of(image_of(0), value=value, dtype=np.float64))

    label = read_scan(config, "atlas", label=True).label
    assert set(np.unique(sitk.GetArrayFromImage(label))) == {0, 17}
    assert cohort_faults(config, ALL_PARTS) == []


def test_values_that_are_no_integers_are_told_with_their_digits(config, tmp_path):
    write(tmp_path, "labels", "atlas", label_of(image_of(0), value=16.99875, dtype=np.float64))

    assert only_fault(cohort_faults(config, ALL_PARTS)) == (
        "case atlas: label map has values that are not integers (16.99875); "
        "resample label maps with nearest neighbour and save them as integers."
    )


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("others", ["error", "background"])
def test_an_image_in_the_place_of_a_label_map_is_one_line(tmp_path, dtype, others):
    config = make_cohort(tmp_path, others=others)
    voxels = np.random.default_rng(5).uniform(0, 900, (6, 7, 8)).astype(dtype)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING_MM)
    write(tmp_path, "labels", "held", image)

    assert only_fault(cohort_faults(config, ALL_PARTS)) == (
        f"case held: label map has {len(np.unique(voxels))} different values: it looks like an image; "
        "put the scan's label map in its place."
    )


def test_a_label_map_of_many_structures_is_no_image(config, tmp_path):
    voxels = np.arange(200).repeat(64).reshape(200, 8, 8).astype(np.int16)
    label = as_integers(sitk.GetImageFromArray(voxels), "x")
    assert np.array_equal(sitk.GetArrayFromImage(label), voxels)


def test_a_complex_image_hides_no_other_fault(config, tmp_path):
    real = image_of(1)
    write(tmp_path, "images", "free", sitk.RealAndImaginaryToComplex(real, real))
    write(tmp_path, "labels", "atlas", label_of(image_of(0), value=9))
    (tmp_path / "images" / "held.nii.gz").write_bytes(b"no image")

    assert [fault.case for fault in cohort_faults(config, ALL_PARTS)] == ["atlas", "free", "held"]


def test_files_that_the_configuration_lists_are_read(tmp_path):
    config = make_cohort(tmp_path)
    write(tmp_path, "elsewhere", "img1", image_of(1))
    write(tmp_path, "elsewhere", "map1", label_of(image_of(1)))
    files = {"new": [Path("elsewhere/img1.nii.gz"), Path("elsewhere/map1.nii.gz")], "bare": [Path("gone.nii")]}
    data = config.data.model_copy(update={"files": files, "atlases": ["atlas", "new"], "unlabeled": ["free", "bare"]})

    assert only_fault(cohort_faults(config.model_copy(update={"data": data}), ALL_PARTS)) == (
        "case bare: no image file; correct data.files.bare: [image, label map], "
        "or take the case out of the configuration."
    )


@pytest.mark.parametrize("name", ["x.nii.gz", "x.nii", "x.nrrd", "x.mha", "x.mhd", "x_0000.nii.gz", "x_0000.mha"])
def test_files_are_found_by_case_id(tmp_path, name):
    path = write(tmp_path, "images", name, image_of())

    assert find_file(tmp_path / "images", "x", "image") == path


def write_dicom(folder, slices, series="1.2.3", depth_mm=3.0):
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in slices:
        image = sitk.GetImageFromArray(np.full((1, 5, 6), 10 * z + 1, dtype=np.int16))
        for tag, value in {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series}.{z}",
            "0020|000d": "1.2",
            "0020|000e": series,
            "0020|0013": str(z),
            "0020|0032": f"0\\0\\{depth_mm * z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{series}_{z}.dcm"))
        writer.Execute(image)


def test_a_dicom_series_is_one_scan(config, tmp_path):
    write_dicom(tmp_path / "images" / "ct", range(4))

    image = read_scan(config, "ct", label=False).image
    assert image.GetSize() == (6, 5, 4)
    assert image.GetSpacing()[2] == pytest.approx(3.0)
    assert sitk.GetArrayFromImage(image)[:, 0, 0].tolist() == [1, 11, 21, 31]


def test_two_dicom_series_are_a_fault(config, tmp_path):
    write_dicom(tmp_path / "images" / "ct", range(3))
    write_dicom(tmp_path / "images" / "ct", range(3), series="1.2.4")

    assert only_fault(scan_faults(config, "ct", label=False)) == (
        "case ct: image folder holds 2 DICOM series, 1 expected; keep the files of one series in it."
    )


def test_a_missing_dicom_slice_is_a_fault(config, tmp_path):
    write_dicom(tmp_path / "images" / "ct", (0, 1, 2, 4, 5))

    assert only_fault(scan_faults(config, "ct", label=False)) == (
        "case ct: image has slices 3 to 6 mm apart, the widest gap after slice 3 of 5; "
        "export the series again with all its slices, or resample it to equal steps."
    )


def test_several_channels_in_one_file_are_a_fault(config, tmp_path):
    write(tmp_path, "images", "atlas", sitk.Compose([image_of(0), image_of(1)]))

    assert only_fault(scan_faults(config, "atlas", label=False)) == (
        "case atlas: image has 2 channels in one file; "
        "keep one, or store each in a file of its own (<case>_0000, <case>_0001, ...)."
    )


def test_two_files_of_one_case_are_a_fault(config, tmp_path):
    write(tmp_path, "images", "atlas.nrrd", image_of(5))

    assert only_fault(scan_faults(config, "atlas", label=False)) == (
        "case atlas: 2 image files or folders of this name; keep one of them."
    )


def test_a_missing_image_is_a_fault(config, tmp_path):
    (tmp_path / "images" / "free.nii.gz").unlink()

    line = only_fault(cohort_faults(config, ALL_PARTS))
    assert line.startswith("case free: no image file; add <case id>.nii.gz")
    assert "take the case out of the configuration" in line


def test_a_missing_label_is_a_fault_where_one_is_needed(config, tmp_path):
    (tmp_path / "labels" / "held.nii.gz").unlink()

    line = only_fault(cohort_faults(config, ALL_PARTS))
    assert line.startswith("case held: no label map file; add <case id>.nii.gz")


def test_sizes_that_disagree_are_a_fault(config, tmp_path):
    write(tmp_path, "labels", "atlas", label_of(image_of(0, shape=(6, 7, 9))))

    assert only_fault(scan_faults(config, "atlas", label=True)) == (
        "case atlas: label size (9, 7, 6) voxels, image size (8, 7, 6) voxels; resample the label to the image's grid."
    )


def test_spacings_that_disagree_are_a_fault(config, tmp_path):
    write(tmp_path, "labels", "atlas", label_of(image_of(0, spacing_mm=(1.0, 1.5, 1.0))))

    assert only_fault(scan_faults(config, "atlas", label=True)) == (
        "case atlas: label spacing (1.0, 1.5, 1.0) mm, image spacing (1.0, 1.5, 2.0) mm; "
        "resample the label or fix its header."
    )


def test_origins_that_disagree_are_a_fault(config, tmp_path):
    label = label_of(image_of(0))
    label.SetOrigin((0, 0, 2.5))
    write(tmp_path, "labels", "atlas", label)

    assert only_fault(scan_faults(config, "atlas", label=True)) == (
        "case atlas: label origin (0.0, 0.0, 2.5) mm, image origin (0.0, 0.0, 0.0) mm; "
        "resample the label or fix its header."
    )


def test_directions_that_disagree_are_a_fault(config, tmp_path):
    label = label_of(image_of(0))
    label.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    write(tmp_path, "labels", "atlas", label)

    assert only_fault(scan_faults(config, "atlas", label=True)) == (
        "case atlas: label direction RAS, image direction LPS; resample the label or fix its header."
    )


def test_a_label_turned_by_a_few_degrees_is_a_fault(config, tmp_path):
    label = label_of(image_of(0))
    cos, sin = np.cos(np.radians(3)), np.sin(np.radians(3))
    label.SetDirection((cos, -sin, 0, sin, cos, 0, 0, 0, 1))
    write(tmp_path, "labels", "atlas", label)

    assert only_fault(scan_faults(config, "atlas", label=True)) == (
        "case atlas: label direction 3 degrees away from the image direction; resample the label or fix its header."
    )


def test_differences_of_rounding_are_no_fault(config, tmp_path):
    label = label_of(image_of(0))
    label.SetOrigin((0.0004, 0, 0))
    write(tmp_path, "labels", "atlas", label)

    assert scan_faults(config, "atlas", label=True) == []


@pytest.mark.parametrize("name", ["free.nii.gz", "free.nii", "free.nrrd"])  # ITK reads NIfTI's NaN as 0
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_that_are_not_finite_are_counted(config, tmp_path, name, dtype):
    voxels = sitk.GetArrayFromImage(image_of(1)).astype(dtype)
    voxels[0, 0, :3] = np.nan
    voxels[-1, -1, -1] = -np.inf
    (tmp_path / "images" / "free.nii.gz").unlink()
    write(tmp_path, "images", name, sitk.GetImageFromArray(voxels))

    assert only_fault(scan_faults(config, "free", label=False)) == (
        "case free: image has 3 NaN voxels and 1 infinite voxel; replace these voxels by 0 or export it again."
    )


@pytest.mark.parametrize(("value", "found"), [(0, "empty (every voxel is 0)"), (7, "constant (every voxel is 7)")])
def test_flat_images_are_a_fault(config, tmp_path, value, found):
    write(tmp_path, "images", "free", image_of(0) * 0 + value)

    assert only_fault(scan_faults(config, "free", label=False)) == (
        f"case free: image is {found}; export the scan again or take the case out of the configuration."
    )


def test_unknown_label_values_are_a_fault(config, tmp_path):
    label = sitk.GetArrayFromImage(label_of(image_of(0)))
    label[0, 0, :7] = range(30, 37)
    label = sitk.GetImageFromArray(label)
    label.CopyInformation(image_of(0))
    write(tmp_path, "labels", "atlas", label)

    assert only_fault(scan_faults(config, "atlas", label=True)) == (
        "case atlas: label values 30, 31, 32, 33, 34, ... (7 in all) not named in structures; "
        "name them there, or set others: background."
    )
    assert scan_faults(config.model_copy(update={"others": "background"}), "atlas", label=True) == []


def test_label_values_between_integers_are_a_fault(config, tmp_path):
    write(tmp_path, "labels", "atlas", label_of(image_of(0), value=16.5, dtype=np.float32))

    assert only_fault(scan_faults(config, "atlas", label=True)) == (
        "case atlas: label map has values that are not integers (16.5); "
        "resample label maps with nearest neighbour and save them as integers."
    )


def test_nan_in_a_label_is_a_fault(config, tmp_path):
    write(tmp_path, "labels", "atlas", label_of(image_of(0), value=np.nan, dtype=np.float32))

    assert only_fault(scan_faults(config, "atlas", label=True)) == (
        "case atlas: label map has 18 NaN voxels; replace these voxels by 0 or export it again."
    )


def test_an_atlas_without_structures_is_a_fault_and_another_scan_without_is_none(config, tmp_path):
    write(tmp_path, "labels", "atlas", label_of(image_of(0), value=0))
    write(tmp_path, "labels", "held", label_of(image_of(2), value=0))

    assert only_fault(scan_faults(config, "atlas", label=True)) == (
        "case atlas: atlas has none of the configuration's structures; "
        "correct the values in structures, or choose another atlas."
    )
    assert scan_faults(config, "held", label=True) == []


def test_a_structure_of_no_atlas_is_a_fault(tmp_path):
    config = make_cohort(tmp_path, structures={"liver": 17, "spleen": 3})

    assert only_fault(cohort_faults(config, ALL_PARTS)) == (
        "structure spleen is in no atlas; correct its value in structures, or label it in an atlas."
    )


@pytest.mark.parametrize("name", ["free.nii.gz", "free.nii", "free.nrrd", "free.mha"])
def test_a_file_cut_short_is_a_fault(config, tmp_path, name):
    path = write(tmp_path, "images", name, image_of(0))
    content = path.read_bytes()
    (tmp_path / "images" / "free.nii.gz").unlink()
    path.write_bytes(content[: int(len(content) * 0.8)])

    assert only_fault(scan_faults(config, "free", label=False)) == (
        "case free: image is unreadable or truncated; copy or export the file again."
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", gzip.compress(b"no image" * 100)],
    # gzip writes the second into its header, and each pytest process names the tests for itself
    ids=["empty", "text", "gzip"],
)
def test_a_file_that_is_no_image_is_a_fault(config, tmp_path, content):
    (tmp_path / "labels" / "atlas.nii.gz").write_bytes(content)

    assert only_fault(scan_faults(config, "atlas", label=True)) == (
        "case atlas: label map is unreadable or truncated; copy or export the file again."
    )


def test_a_corrupt_compressed_stream_is_a_fault(config, tmp_path):
    path = tmp_path / "images" / "free.nii.gz"
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF  # in the checksum, which ITK does not read
    path.write_bytes(content)

    assert "unreadable or truncated" in only_fault(scan_faults(config, "free", label=False))


def test_sheared_axes_are_a_fault(config, tmp_path):
    path = write(tmp_path, "images", "free.nii", image_of(0))
    (tmp_path / "images" / "free.nii.gz").unlink()
    content = bytearray(path.read_bytes())
    content[252:256] = np.array([0, 1], dtype=np.int16).tobytes()  # sform only
    content[284:288] = np.float32(0.4).tobytes()
    path.write_bytes(content)

    assert only_fault(scan_faults(config, "free", label=False)) == (
        "case free: image has axes that are not at right angles; resample it to a grid without shear."
    )


def test_one_frame_is_a_volume_and_two_are_a_fault(config, tmp_path):
    (tmp_path / "images" / "free.nii.gz").unlink()
    path = write(tmp_path, "images", "free.nrrd", sitk.JoinSeries([image_of(0)]))
    assert read_scan(config, "free", label=False).image.GetSize() == (8, 7, 6)

    path.unlink()
    write(tmp_path, "images", "free", sitk.JoinSeries([image_of(0), image_of(1)]))
    assert only_fault(scan_faults(config, "free", label=False)) == (
        "case free: image has 2 frames, 1 expected; "
        "store one frame per scan, or channels in files of their own (<case>_0000, <case>_0001, ...)."
    )


def test_a_single_slice_is_a_fault(config, tmp_path):
    write(tmp_path, "images", "free", image_of(0)[:, :, 2])

    assert only_fault(scan_faults(config, "free", label=False)) == (
        "case free: image has size 8 x 7, a volume expected; export the whole volume."
    )


def test_read_scan_raises_the_first_fault(config, tmp_path):
    write(tmp_path, "images", "atlas", image_of(0) * 0)

    with pytest.raises(LrlsError, match=r"^case atlas: image is empty .*; export the scan again"):
        read_scan(config, "atlas", label=True)


def test_messages_name_no_path(config, tmp_path):
    (tmp_path / "images" / "free.nii.gz").write_bytes(b"no image")
    (tmp_path / "images" / "held.nii.gz").unlink()

    lines = [str(fault) for fault in cohort_faults(config, ALL_PARTS)]
    assert len(lines) == 2
    assert not any(str(tmp_path) in line for line in lines)


def test_the_same_image_in_training_and_test_is_a_fault_under_any_name_and_header(config, tmp_path):
    copy = image_of(1)  # the unlabelled scan's voxels
    copy.SetSpacing((2, 2, 2))
    write(tmp_path, "images", "held", copy)
    write(tmp_path, "labels", "held", label_of(copy))

    assert only_fault(cohort_faults(config, ALL_PARTS)) == (
        "case held: same image as case free, which data.unlabeled trains on, and data.test scores this one; "
        "take one of the two out of the configuration."
    )


def test_a_leak_is_found_beside_other_faults(config, tmp_path):
    write(tmp_path, "images", "held", image_of(1))
    (tmp_path / "labels" / "held.nii.gz").unlink()

    lines = [str(fault) for fault in cohort_faults(config, ALL_PARTS)]
    assert [line.split(",")[0] for line in lines][1] == "case held: same image as case free"
    assert lines[0].startswith("case held: no label map file")


def test_a_case_in_training_and_test_is_a_fault(tmp_path):
    config = make_cohort(tmp_path, parts={"test": ["held", "free"]})
    write(tmp_path, "labels", "free", label_of(image_of(1)))

    assert only_fault(cohort_faults(config, ALL_PARTS)) == (
        "case free: listed in data.unlabeled and data.test; keep training and held-out cases apart."
    )


def test_a_case_in_atlases_and_unlabeled_is_a_fault(tmp_path):
    config = make_cohort(tmp_path, parts={"unlabeled": ["free", "atlas"]})

    assert only_fault(cohort_faults(config, ALL_PARTS)) == (
        "case atlas: listed in data.atlases and data.unlabeled; keep it in one of them."
    )


def test_supervised_may_overlap_the_other_training_parts(tmp_path):
    config = make_cohort(tmp_path, parts={"supervised": ["free", "atlas"]})
    write(tmp_path, "labels", "free", label_of(image_of(1)))

    assert cohort_faults(config, ALL_PARTS) == []


def test_a_cohort_without_atlas_or_unlabelled_scan_is_a_fault(tmp_path):
    config = make_cohort(tmp_path, parts={"atlases": [], "unlabeled": [], "supervised": ["atlas"]})

    assert [str(fault) for fault in cohort_faults(config, ("atlases", "unlabeled"))] == [
        "data.atlases lists no case, at least 1 is needed; "
        "label a typical scan (`lrls suggest-atlas` says which) and list it.",
        "data.unlabeled lists no case, at least 1 is needed; list scans without labels.",
    ]
    assert cohort_faults(config, ("supervised", "test")) == []


def test_a_full_disk_is_a_fault(tmp_path):
    assert disk_fault(tmp_path / "not" / "made", 1000) is None
    line = str(disk_fault(tmp_path / "not" / "made", 10**18))
    assert line.startswith("1e+06 TB are needed, the disk of the workspace has ")
    assert line.endswith("free; make room, or set workspace to a folder on another disk.")


def test_class_indices_follow_the_order_of_the_structures_and_come_back(config):
    config = config.model_copy(update={"structures": {"liver": [205, 7], "vessel": 1000}, "others": "background"})

    classes = class_indices(np.array([[0, 7], [205, 1000], [3, 0]]), config, "x")

    assert classes.dtype == np.uint8
    assert classes.tolist() == [[0, 1], [1, 2], [0, 0]]
    assert label_values(classes, config).tolist() == [[0, 205], [205, 1000], [0, 0]]
    assert label_values(classes, config).dtype == np.uint16


def test_many_structures_and_negative_values_keep_their_range(config):
    many = config.model_copy(update={"structures": {f"s{value}": value for value in range(1, 301)}})
    assert class_indices(np.array([300]), many, "x").dtype == np.uint16
    negative = config.model_copy(update={"structures": {"tumour": -5}})
    assert class_indices(np.array([-5, 0]), negative, "x").tolist() == [1, 0]
    assert label_values(np.array([0, 1]), negative).tolist() == [0, -5]
    assert label_values(np.array([0, 1]), negative).dtype == np.int32


def test_digests_tell_voxels_from_geometry_and_label(config, tmp_path):
    scan = read_scan(config, "atlas", label=True)
    moved = sitk.Image(scan.image)
    moved.SetOrigin((1, 2, 3))
    write(tmp_path, "images", "free", moved)
    other = read_scan(config, "free", label=False)

    assert digests.voxel_digest(other.image) == digests.voxel_digest(scan.image)
    assert scan_digest(other) != scan_digest(read_scan(config, "atlas", label=False))
    assert scan_digest(scan) != scan_digest(read_scan(config, "atlas", label=False))
    assert scan_digest(scan) == scan_digest(read_scan(config, "atlas", label=True))


def scan_digest(scan):
    label = digests.label_digest(scan.label) if scan.label else None
    return digests.scan_digest(digests.image_digest(scan.image), label)

"""Several images of one scan: which files they are, what is refused, and what `lrls init` writes about them."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from dicoms import write_slices
from pydantic import ValidationError

from stages.config import Config, load_config
from stages.data.channels import channel_files, counted, new_channels, split_name
from stages.data.checks import cases_of, cheap_faults, cohort_faults
from stages.data.facts import Known, examine
from stages.data.faults import IntakeError
from stages.data.initialize import describe_folder, write_config
from stages.data.intake import image_files, label_file, read_new_channels
from stages.errors import LrlsError

CASES = ("a", "b", "held")
PARTS = {"atlases": ["a"], "unlabeled": ["b"], "test": ["held"]}


def image_of(seed, shape=(6, 7, 8), spacing_mm=(1.0, 1.5, 2.0)):
    image = sitk.GetImageFromArray(np.random.default_rng(seed).normal(100, 20, size=shape).astype(np.float32))
    image.SetSpacing(spacing_mm)
    return image


def write(folder, name, image):
    path = folder / (name if "." in name[1:] else f"{name}.nii.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def label_of(image, value=17):
    voxels = np.zeros(image.GetSize()[::-1], np.uint8)
    voxels[2:4, 2:5, 3:6] = value
    label = sitk.GetImageFromArray(voxels)
    label.CopyInformation(image)
    return label


def config_of(folder, **data):
    return Config.model_validate(
        {"workspace": folder / "runs", "data": {"folder": folder, **PARTS, **data}, "structures": {"liver": 17}}
    )


@pytest.fixture
def config(tmp_path):
    """Three scans of two channels each; `b` has no label map."""
    for seed, case in enumerate(CASES):
        for channel in (0, 1):
            write(tmp_path, f"images/{case}_000{channel}", image_of(10 * seed + channel))
        if case != "b":
            write(tmp_path, f"labels/{case}", label_of(image_of(0)))
    return config_of(tmp_path)


def found(config, *, decoded=False):
    """All faults of the cohort as lines; those in headers and names must be seen without decoding, too."""
    parts = ("atlases", "unlabeled", "test")
    faults = cohort_faults(config, parts)
    cheap = cheap_faults(config, Known(config, fresh=True).look(cases_of(config, parts)), parts)
    lines = [str(fault) for fault in faults if fault.stops]
    if any(fault.code in ("channels", "channel-grid", "several-files") for fault in faults) and not decoded:
        assert [str(fault) for fault in cheap] == lines
    return lines


def test_a_case_has_the_files_of_its_channels_in_order(config, tmp_path):
    assert [path.name for path in image_files(config, "b")] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert found(config) == []

    looked = Known(config, fresh=True).look({"b": False})["b"]
    images = examine(config, looked).images
    assert [float(sitk.GetArrayFromImage(image)[0, 0, 0]) for image in images] == [
        float(sitk.GetArrayFromImage(image_of(seed))[0, 0, 0]) for seed in (10, 11)
    ]


def test_a_scans_digest_covers_every_channel_and_their_order(config, tmp_path):
    def digest():
        return examine(config, Known(config, fresh=True).look({"b": False})["b"]).facts.digest

    before, images = digest(), [tmp_path / "images" / f"b_000{channel}.nii.gz" for channel in (0, 1)]
    contents = [path.read_bytes() for path in images]
    for path, content in zip(images, contents[::-1], strict=True):
        path.write_bytes(content)
    swapped = digest()
    write(tmp_path, "images/b_0001", image_of(99))
    assert len({before, swapped, digest()}) == 3


def test_a_changed_channel_is_noticed_before_the_cohort_is_made(config, tmp_path):
    known = Known(config)
    looked = known.look({"b": False})["b"]
    examine(config, looked)
    assert known.facts({"b": looked}) and not looked.has_changed

    write(tmp_path, "images/b_0001", image_of(99))
    assert looked.has_changed
    assert not Known(config).facts(Known(config).look({"b": False}))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"b_0001": None},
            "case b: 1 channel, and the first atlas a has 2 channels (_0000, _0001); "
            "add b_0001, or take the case out of the configuration.",
        ),
        (
            {"b_0000": None},
            "case b: channel _0001 without _0000; "
            "add what is missing, or number the channels from _0000 without a gap.",
        ),
        (
            {"b_0002": image_of(5)},
            "case b: 3 channels (_0000, _0001, _0002), and the first atlas a has 2 channels (_0000, _0001); "
            "take _0002 away, or add as many to the other scans.",
        ),
        (
            {"b_0001": None, "b_0003": image_of(5)},
            "case b: channels _0000, _0003 without _0001, _0002; "
            "add what is missing, or number the channels from _0000 without a gap.",
        ),
        (
            {"b": image_of(5)},
            "case b: an image without a channel's number, and channels _0000, _0001; keep one or the other.",
        ),
        ({"b_0001.nrrd": image_of(5)}, "case b: 2 files or folders of channel _0001; keep one of them."),
        (
            {"b_0001": image_of(5, shape=(6, 7, 9))},
            "case b: channel _0001 size (9, 7, 6) voxels, channel _0000 size (8, 7, 6) voxels; "
            "resample the channel _0001 to the channel _0000's grid.",
        ),
        (
            {"b_0001": image_of(5, spacing_mm=(1.0, 1.5, 2.1))},
            "case b: channel _0001 spacing (1.0, 1.5, 2.1) mm, channel _0000 spacing (1.0, 1.5, 2.0) mm; "
            "resample the channel _0001 or fix its header.",
        ),
        (
            {"b_0001": image_of(5) * 0 + 3},
            "case b: channel _0001: image is constant (every voxel is 3); "
            "export the scan again or take the case out of the configuration.",
        ),
        (
            {"b_0001": image_of(5) * np.nan},
            "case b: channel _0001: image has 336 NaN voxels; replace these voxels by 0 or export it again.",
        ),
        (
            {"b_0001": sitk.Compose([image_of(5), image_of(6)])},
            "case b: channel _0001: image has 2 channels in one file; "
            "keep one, or store each in a file of its own (<case>_0000, <case>_0001, ...).",
        ),
    ],
)
def test_each_fault_of_channels_is_one_line(config, tmp_path, change, line):
    for name, image in change.items():
        if image is None:
            (tmp_path / "images" / f"{name}.nii.gz").unlink()
        else:
            write(tmp_path, f"images/{name}", image)

    assert found(config, decoded="in one file" in line) == [line]


def test_the_first_atlas_says_how_many_channels_there_are(config, tmp_path):
    (tmp_path / "images" / "a_0001.nii.gz").unlink()

    assert found(config) == [
        f"case {case}: 2 channels (_0000, _0001), and the first atlas a has 1 channel; "
        "take _0001 away, or add as many to the other scans."
        for case in ("b", "held")
    ]


def test_a_damaged_channel_is_named(config, tmp_path):
    (tmp_path / "images" / "b_0001.nii.gz").write_bytes(b"damaged")

    assert found(config) == ["case b: channel _0001: image is unreadable or truncated; copy or export the file again."]


def test_label_maps_are_compared_with_the_first_channel(config, tmp_path):
    write(tmp_path, "labels/a", label_of(image_of(0, shape=(6, 7, 9))))

    assert found(config)[0].startswith("case a: label size (9, 7, 6) voxels, image size (8, 7, 6) voxels;")


@pytest.mark.parametrize("name", ["x", "x_0000"])
def test_one_image_named_as_nnunet_names_it_is_the_same_scan(tmp_path, name):
    for case in (name, name.replace("x", "free"), name.replace("x", "held")):
        write(tmp_path, f"images/{case}", image_of(len(case)))
        write(tmp_path, f"labels/{case.removesuffix('_0000')}", label_of(image_of(0)))
    config = config_of(tmp_path, atlases=["x"], unlabeled=["free"], test=["held"])
    looked = Known(config, fresh=True).look({"x": True})["x"]

    assert [path.name for path in image_files(config, "x")] == [f"{name}.nii.gz"]
    assert looked.more == ()
    assert len(looked.digests) == 2


def test_one_image_and_its_label_map_may_both_be_named_with_a_number(tmp_path):
    for case in ("x", "y"):
        write(tmp_path, f"images/{case}_0000", image_of(len(case)))
        write(tmp_path, f"labels/{case}_0000", label_of(image_of(0)))
    about = describe_folder(tmp_path)
    assert (about["atlases"], about["files"], about["channels"]) == (["x", "y"], {}, [])

    for case in ("x", "x_0000"):
        config = config_of(tmp_path, atlases=[case])
        assert [path.name for path in image_files(config, case)] == ["x_0000.nii.gz"]
        assert label_file(config, case).name == "x_0000.nii.gz"


def test_the_same_case_in_two_folders_is_listed_with_its_channels(tmp_path):
    for folder in ("imagesTr", "imagesTs"):
        for channel in (0, 1):
            write(tmp_path, f"{folder}/x_000{channel}", image_of(channel))
    write(tmp_path, "labelsTr/x", label_of(image_of(0)))

    assert describe_folder(tmp_path)["files"] == {"imagesTs_x": [["imagesTs/x_0000.nii.gz", "imagesTs/x_0001.nii.gz"]]}


def test_numbered_scans_are_no_channels(tmp_path):
    for number in range(3):
        write(tmp_path, f"images/img_000{number}", image_of(number))
        if number < 2:
            write(tmp_path, f"labels/img_000{number}", label_of(image_of(0)))
    about = describe_folder(tmp_path)
    assert (about["atlases"], about["unlabeled"]) == (["img", "img_0001"], ["img_0002"])
    assert about["files"] == {}

    config = config_of(tmp_path, atlases=["img"], unlabeled=["img_0002"], test=["img_0001"])
    assert [path.name for path in image_files(config, "img")] == ["img_0000.nii.gz"]
    assert found(config) == []


def test_numbered_scans_that_the_configuration_lists_need_no_label_map_to_be_scans(tmp_path):
    for number in range(3):
        write(tmp_path, f"images/img_000{number}", image_of(number))
    config = config_of(tmp_path, atlases=[], unlabeled=["img", "img_0001", "img_0002"], test=[])

    assert [path.name for path in image_files(config, "img")] == ["img_0000.nii.gz"]


def test_files_of_any_name_may_be_listed_as_channels(config, tmp_path):
    for path in (tmp_path / "images").glob("b_*"):
        path.rename(tmp_path / path.name.replace("_000", "-t"))
    listed = config_of(tmp_path, files={"b": [["b-t0.nii.gz", "b-t1.nii.gz"]]})
    assert [path.name for path in image_files(listed, "b")] == ["b-t0.nii.gz", "b-t1.nii.gz"]
    assert found(listed) == []

    (tmp_path / "b-t1.nii.gz").unlink()
    assert found(listed) == [
        "case b: channel _0001: no image file; "
        "correct data.files.b: [image, label map], or take the case out of the configuration."
    ]


@pytest.mark.parametrize("listed", [[[]], ["image.nii.gz", ["a.nii.gz", "b.nii.gz"]]])
def test_only_images_may_be_several(tmp_path, listed):
    with pytest.raises(
        ValidationError, match=r"b needs \[image, label map\], or \[\[image, image, \.\.\.\], label map\]"
    ):
        config_of(tmp_path, files={"b": listed})


def written(folder, tmp_path):
    """The configuration that `lrls init` writes for a folder."""
    return load_config(write_config(describe_folder(folder), tmp_path / "lrls.yaml"))


@pytest.mark.parametrize(
    ("images", "labels"), [("images", "labels"), ("imagesTr", "labelsTr"), (".", "labels"), ("images/s1", "labels")]
)
def test_init_couples_channels_with_label_maps(tmp_path, images, labels):
    folder = tmp_path / "scans"
    for case in CASES:
        for channel in (0, 1):
            write(folder, f"{images}/{case}_000{channel}", image_of(channel))
        if case != "b":
            write(folder, f"{labels}/{case}", label_of(image_of(0)))
    about, config = describe_folder(folder), written(folder, tmp_path)

    assert (about["atlases"], about["unlabeled"]) == (["a", "held"], ["b"])
    assert not any("_000" in line for line in about["left_out"])
    assert about["notes"][0].startswith("Scans have 2 channels (_0000, _0001)")
    assert [path.name for path in image_files(config, "b")] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert bool(config.data.files) == (images == "images/s1")


def test_init_lists_channels_whose_label_map_has_another_name(tmp_path):
    for case in ("p1", "p2"):
        for channel in (0, 1):
            write(tmp_path / "scans", f"images/{case}_000{channel}", image_of(channel))
        write(tmp_path / "scans", f"labels/{case}_seg", label_of(image_of(0)))
    config = written(tmp_path / "scans", tmp_path)

    assert [[str(path) for path in config.data.files["p1"][0]], str(config.data.files["p1"][1])] == [
        ["images/p1_0000.nii.gz", "images/p1_0001.nii.gz"],
        "labels/p1_seg.nii.gz",
    ]
    assert cohort_faults(config, ["atlases"]) == []


def test_init_takes_the_names_of_channels_from_the_dataset(tmp_path):
    folder = tmp_path / "scans"
    for case in ("a", "b"):
        for channel in (0, 1):
            write(folder, f"imagesTr/{case}_000{channel}", image_of(channel))
        write(folder, f"labelsTr/{case}", label_of(image_of(0)))
    about = {"channel_names": {"0": "T1", "1": "T2: fat"}, "labels": {"background": 0, "liver": 17}}
    (folder / "dataset.json").write_text(json.dumps(about))

    assert written(folder, tmp_path).data.channels == ["T1", "T2: fat"]


def test_channels_that_a_dataset_keeps_in_one_file_are_refused_with_what_to_do(tmp_path):
    write(tmp_path, "imagesTr/a", sitk.JoinSeries([image_of(0), image_of(1)]))
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "T2", "1": "ADC"}}))

    with pytest.raises(LrlsError) as error:
        describe_folder(tmp_path)
    assert str(error.value) == (
        "dataset.json: 2 channels, and no scan has several images; "
        "store each channel in a file of its own (<case>_0000, <case>_0001, ...), as nnU-Net does."
    )


def test_channels_are_found_in_all_folders_of_the_images(tmp_path):
    write(tmp_path, "one/x_0000", image_of(0))
    write(tmp_path, "two/x_0001", image_of(1))
    folders = [tmp_path / "one", tmp_path / "two"]

    assert [path.name for path in channel_files(folders, "x", lambda name: False)] == ["x_0000.nii.gz", "x_0001.nii.gz"]
    assert channel_files(folders, "x", lambda name: name == "x_0001") == []


def test_a_new_scan_is_given_by_any_of_its_files(tmp_path):
    paths = [write(tmp_path, f"n_000{channel}", image_of(channel)) for channel in range(3)]

    assert all(new_channels(path, "n", 3) == paths for path in paths)
    assert new_channels(paths[1], "n_0001", 1) == [paths[1]]
    with pytest.raises(IntakeError) as error:
        new_channels(paths[0], "n", 2, ("T1", "T2"))
    assert str(error.value) == (
        "case n: has _0000, _0001, _0002, and the model learned from 2 channels (_0000 T1, _0001 T2); "
        "lay its files side by side, named n_0000, n_0001."
    )


def test_a_new_scan_that_is_not_there_has_no_channels(tmp_path):
    with pytest.raises(IntakeError, match=r"case n: no such file or folder; correct the path\.$"):
        read_new_channels(tmp_path / "n_0000.nii.gz", "n", 2)


def test_new_channels_lie_on_one_grid_and_are_named_if_faulty(tmp_path):
    path = write(tmp_path, "n_0000", image_of(0))
    write(tmp_path, "n_0001", image_of(1, spacing_mm=(1.0, 1.5, 2.1)))
    with pytest.raises(
        IntakeError, match=r"^case n: channel _0001 spacing \(1\.0, 1\.5, 2\.1\) mm, channel _0000 spacing"
    ):
        read_new_channels(path, "n", 2)
    write(tmp_path, "n_0001", image_of(1) * 0)
    with pytest.raises(IntakeError, match=r"^case n: channel _0001: image is empty \(every voxel is 0\);"):
        read_new_channels(path, "n", 2)


def test_dicom_folders_are_channels_too(tmp_path):
    for channel in (0, 1):
        folder = tmp_path / "images" / f"x_000{channel}"
        write_slices(folder)
    config = config_of(tmp_path, atlases=[], unlabeled=["x"], test=[])

    assert [path.name for path in image_files(config, "x")] == ["x_0000", "x_0001"]
    assert len(examine(config, Known(config, fresh=True).look({"x": False})["x"]).images) == 2


def test_names_are_split_at_four_digits_only(tmp_path):
    names = ("a_0001.nii.gz", "a_001.nii.gz", "_0001.nrrd", "a.b_0012.NII.GZ")

    assert [split_name(tmp_path / name) for name in names] == [("a", 1), ("a_001", None), ("_0001", None), ("a.b", 12)]
    assert counted(2) == "2 channels (_0000, _0001)"

"""`lrls init` turns folders as users have them into a configuration that loads; `lrls check` lists every fault."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import typer
from typer.testing import CliRunner

from lrls_cli.check import check
from lrls_cli.init import init
from stages.config import load_config
from stages.data.initialize import describe_folder, write_config
from stages.errors import LrlsError


def add_scan(folder, images, case, labels=None, values=(3, 205), low=0.0):
    """An image, different for every case, and, if `labels` names a sub-folder, its label map."""
    voxels = np.random.default_rng(list(case.encode())).uniform(low, 900, size=(6, 7, 8)).astype(np.float32)
    for kind, array in ((images, voxels), (labels, np.zeros(voxels.shape, dtype=np.uint8))):
        if kind is None:
            continue
        if kind == labels:
            for place, value in enumerate(values):
                array[place + 1, 2:4, 2:4] = value
        (folder / kind).mkdir(parents=True, exist_ok=True)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1, 1, 1.6))
        name = case if kind == images else case.removesuffix("_0000")
        sitk.WriteImage(image, str(folder / kind / f"{name}.nii.gz"))


def add_map(path, values=(3, 205), shape=(6, 7, 8)):
    """A label map alone."""
    array = np.zeros(shape, dtype=np.uint8)
    for place, value in enumerate(values):
        array[place + 1, 2:4, 2:4] = value
    label = sitk.GetImageFromArray(array)
    label.SetSpacing((1, 1, 1.6))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(label, str(path))


def written(folder, tmp_path):
    return load_config(write_config(describe_folder(folder), tmp_path / "lrls.yaml"))


def test_images_and_labels_become_atlases_and_unlabelled_scans(tmp_path):
    for case in ("a", "b"):
        add_scan(tmp_path / "scans", "images", case, "labels")
    for case in ("001", "no"):  # YAML would read these as a number and a truth value
        add_scan(tmp_path / "scans", "images", case)

    config = written(tmp_path / "scans", tmp_path)

    assert config.data.folder == tmp_path / "scans"
    assert config.workspace == tmp_path / "runs" / "scans"
    assert (config.part("atlases"), config.part("unlabeled")) == (["a", "b"], ["001", "no"])
    assert config.structure_values() == {"structure_3": [3], "structure_205": [205]}
    assert config.preprocess.intensity.method == "percentiles"
    assert "1 x 1 x 1.6 mm" in (tmp_path / "lrls.yaml").read_text()


def test_more_than_five_labelled_scans_leave_the_rest_for_the_test(tmp_path):
    for index in range(8):
        add_scan(tmp_path / "scans", "images", f"s{index}", "labels")
    add_scan(tmp_path / "scans", "images", "free")

    config = written(tmp_path / "scans", tmp_path)

    assert config.part("atlases") == ["s0", "s1", "s2", "s3", "s4"]
    assert config.part("test") == ["s5", "s6", "s7"]
    assert "8 scans have labels: the first 5 are atlases here" in (tmp_path / "lrls.yaml").read_text()


def test_where_every_scan_is_labelled_half_of_the_rest_is_learned_from_without_labels(tmp_path):
    for index in range(9):
        add_scan(tmp_path / "scans", "images", f"s{index}", "labels")

    config = written(tmp_path / "scans", tmp_path)

    assert (config.part("unlabeled"), config.part("test")) == (["s5", "s6"], ["s7", "s8"])
    assert "without their labels" in (tmp_path / "lrls.yaml").read_text()


def test_a_decathlon_dataset_names_its_structures(tmp_path):
    add_scan(tmp_path / "Task04", "imagesTr", "h_1", "labelsTr", values=(1, 2))
    add_scan(tmp_path / "Task04", "imagesTs", "h_2")
    (tmp_path / "Task04" / "imagesTr" / "._h_1.nii.gz").write_bytes(b"left by a Mac")
    dataset = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "left posterior"},
        "training": [{"image": "./imagesTr/h_1.nii.gz", "label": "./labelsTr/h_1.nii.gz"}],
        "test": ["./imagesTs/h_2.nii.gz"],
    }
    (tmp_path / "Task04" / "dataset.json").write_text(json.dumps(dataset))

    config = written(tmp_path / "Task04" / "dataset.json", tmp_path)

    assert (config.part("atlases"), config.part("unlabeled")) == (["h_1"], ["h_2"])
    assert config.structure_values() == {"Anterior": [1], "left posterior": [2]}
    assert run_check(tmp_path / "lrls.yaml") == (0, f"{NOTHING_TO_SCORE}2 scans, no faults.\n")


def test_an_nnunet_dataset_names_its_structures_and_modality(tmp_path):
    add_scan(tmp_path / "Dataset007", "imagesTr", "ct_1_0000", "labelsTr", values=(1, 2, 3, 9), low=-1000)
    add_scan(tmp_path / "Dataset007", "imagesTs", "ct_2_0000", low=-1000)
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "kidneys": [2, 3], "ignore": 9},
        "file_ending": ".nii.gz",
        "numTraining": 1,
    }
    (tmp_path / "Dataset007" / "dataset.json").write_text(json.dumps(dataset))

    config = written(tmp_path / "Dataset007", tmp_path)

    assert (config.part("atlases"), config.part("unlabeled")) == (["ct_1"], ["ct_2"])
    assert config.structure_values() == {"liver": [1], "kidneys": [2, 3]}
    assert config.others == "error"  # voxels that nobody labelled are no background
    assert "Label value 9 is nnU-Net's ignore" in (tmp_path / "lrls.yaml").read_text(encoding="utf-8")
    assert config.preprocess.intensity.method == "window"
    code, output = run_check(tmp_path / "lrls.yaml")
    assert (code, output.splitlines()[0]) == (
        1, "case ct_1: label value 9 not named in structures; name them there, or set others: background.",
    )  # fmt: skip


def test_overlapping_regions_fall_back_to_the_values(tmp_path):
    add_scan(tmp_path / "d", "imagesTr", "x_0000", "labelsTr", values=(1, 2))
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    (tmp_path / "d" / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "labels": labels}))

    assert written(tmp_path / "d", tmp_path).structure_values() == {"structure_1": [1], "structure_2": [2]}


def test_a_flat_folder_of_ct_scans_has_no_labels_yet(tmp_path):
    for case in ("a", "b", "c"):
        add_scan(tmp_path / "scans", ".", case, low=-1000)

    config = written(tmp_path / "scans", tmp_path)

    assert (config.part("atlases"), config.part("unlabeled")) == ([], ["a", "b", "c"])
    assert config.preprocess.intensity.method == "window"
    assert "No scan has labels yet: label a typical one" in (tmp_path / "lrls.yaml").read_text()


def test_the_window_covers_the_labelled_values_with_a_margin(tmp_path):
    add_scan(tmp_path / "scans", "images", "a", "labels", low=-1000)
    label = sitk.ReadImage(str(tmp_path / "scans" / "labels" / "a.nii.gz"))
    image = sitk.ReadImage(str(tmp_path / "scans" / "images" / "a.nii.gz"))
    inside = sitk.Cast(label != 0, sitk.sitkFloat32)
    sitk.WriteImage(image * (1 - inside) + 60 * inside, str(tmp_path / "scans" / "images" / "a.nii.gz"))

    assert describe_folder(tmp_path / "scans")["window"] == (-140, 260)


def test_label_maps_beside_images_go_with_them(tmp_path):
    add_scan(tmp_path / "scans", ".", "a")
    add_map(tmp_path / "scans" / "a_seg.nii.gz")

    config = written(tmp_path / "scans", tmp_path)

    assert (config.part("atlases"), config.part("unlabeled")) == (["a"], [])
    assert [path.name for path in config.data.files["a"]] == ["a.nii.gz", "a_seg.nii.gz"]


def test_a_folder_without_scans_is_answered_with_what_is_expected(tmp_path):
    with pytest.raises(LrlsError, match="no scans found; put them into images/"):
        describe_folder(tmp_path)
    with pytest.raises(LrlsError, match=r"no such folder or dataset\.json; give the folder"):
        describe_folder(tmp_path / "missing")


def test_a_configuration_is_replaced_only_by_force(tmp_path):
    add_scan(tmp_path / "scans", "images", "a", "labels")
    output = tmp_path / "lrls.yaml"
    output.write_text("mine")

    with pytest.raises(LrlsError, match=r"exists already; .* --output, or replace it with --force"):
        write_config(describe_folder(tmp_path / "scans"), output)
    assert output.read_text() == "mine"

    write_config(describe_folder(tmp_path / "scans"), output, force=True)
    assert load_config(output).part("atlases") == ["a"]


def run(command, *arguments):
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


NOTHING_TO_SCORE = "Nothing to score: data.test and data.dev list no scan; hold back some labelled ones there.\n"


def run_check(config, *arguments):
    return run(check, config, *arguments)


def test_init_says_what_to_do_next(tmp_path):
    add_scan(tmp_path / "scans", "images", "a", "labels")
    add_scan(tmp_path / "scans", "images", "b")

    code, output = run(init, tmp_path / "scans", "--output", tmp_path / "my.yaml")

    assert code == 0
    assert "1 atlas, 1 unlabeled, 0 test; 2 structures; MR" in output
    assert f"`lrls check {tmp_path / 'my.yaml'}`" in output


def test_check_lists_every_fault_and_ends_with_one(tmp_path):
    add_scan(tmp_path / "scans", "images", "a", "labels")
    add_scan(tmp_path / "scans", "images", "b")
    config = write_config(describe_folder(tmp_path / "scans"), tmp_path / "lrls.yaml")
    (tmp_path / "scans" / "images" / "b.nii.gz").write_bytes(b"no image")

    code, output = run_check(config, "--set", "structures={s: 3}")

    assert code == 1
    assert output.splitlines() == [
        "case a: label value 205 not named in structures; name them there, or set others: background.",
        "case b: image is unreadable or truncated; copy or export the file again.",
        "2 scans, 2 faults.",
    ]


def test_check_asks_no_atlas_of_the_supervised_upper_bound(tmp_path):
    add_scan(tmp_path / "scans", "images", "a", "labels")
    config = write_config(describe_folder(tmp_path / "scans"), tmp_path / "lrls.yaml")

    code, output = run_check(config, "--set", "data.atlases=[]", "--set", "data.supervised=[a]")
    assert (code, output) == (0, f"{NOTHING_TO_SCORE}1 scan, no faults.\n")

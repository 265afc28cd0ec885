"""The network for other programs: ONNX Runtime and MONAI read it, and answer as lrls does."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser, load, verify_net_in_out
from monai.bundle.properties import InferProperties, MetaProperties
from recipes import textured
from torch import Tensor

from stages.answering.model import Model
from stages.answering.portable import ALIKE, check_alike, network_alone
from stages.artifacts.cohort import Grid
from stages.config import Config
from stages.errors import LrlsError
from stages.methods import METHODS, settings_of
from stages.methods.recipe import Task
from stages.monai_bundle import InMonaisOrder, export_monai
from stages.onnx_export import export_onnx

SHAPE = (12, 16, 20)
STRUCTURES = {"core": 7, "shell": 3}  # values that are not their indices


@pytest.fixture(scope="module")
def model() -> Model:
    """A network that learned nothing, on a grid whose axes all differ and that is turned."""
    config = Config.model_validate({"workspace": ".", "data": {"folder": "."}, "structures": STRUCTURES})
    grid = Grid(SHAPE, (2.0, 1.5, 1.0), (5.0, -7.0, 3.0), (0, -1, 0, 1, 0, 0, 0, 0, 1))
    reference = sitk.GetImageFromArray(textured(*SHAPE, seed=1).numpy())
    reference.CopyInformation(grid.as_image())
    task = Task(SHAPE, num_classes=3, num_atlases=1, spacing_mm=grid.spacing_mm)
    recipe = METHODS["unet"].recipe(task, settings_of(METHODS["unet"], config))
    return Model("unet", config, 1, grid, reference, (), recipe, ())


@pytest.fixture
def image() -> Tensor:
    """An asymmetric image on the grid, (1, 1, D, H, W)."""
    return textured(1, 1, *SHAPE)


def test_onnx_runtime_answers_as_torch_does_and_the_manifest_says_what_goes_in(model, image, tmp_path):
    out = tmp_path / "network"
    export_onnx(model, out)
    assert {path.name for path in out.iterdir()} == {"model.onnx", "manifest.json", "reference.nii.gz"}
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    (asked,), (answered,) = session.get_inputs(), session.get_outputs()
    assert (asked.name, asked.shape) == (manifest["input"]["name"], manifest["input"]["shape"])
    assert (answered.name, answered.shape) == (manifest["output"]["name"], manifest["output"]["shape"])
    (logits,) = session.run(None, {"image": image.numpy()})
    expected = network_alone(model, "onnx")(image)
    assert np.abs(logits - expected.numpy()).max() <= ALIKE * float(expected.abs().max())
    assert {each["name"]: each["value"] for each in manifest["output"]["classes"][1:]} == STRUCTURES
    grid, reference = manifest["grid"], sitk.ReadImage(str(out / "reference.nii.gz"))
    assert sitk.GetArrayFromImage(reference).shape == tuple(grid["shape_dhw"]) == model.grid.shape
    assert reference.GetSpacing()[::-1] == pytest.approx(grid["spacing_mm_dhw"])
    assert reference.GetOrigin() == pytest.approx(grid["origin_mm_lps"])
    assert np.ravel(grid["direction_lps"]) == pytest.approx(reference.GetDirection())
    kept = json.loads(session.get_modelmeta().custom_metadata_map["lrls"])  # a file that lost its manifest has it
    assert kept["grid"] == grid and kept["output"] == manifest["output"]


def test_monai_reads_the_bundle_and_its_network_answers_in_monais_order_of_axes(model, image, tmp_path):
    out = tmp_path / "bundle"
    export_monai(model, out)
    inference, metadata = (str(out / "configs" / f"{name}.json") for name in ("inference", "metadata"))
    parser = ConfigParser()
    parser.read_config(inference)
    parser.read_meta(metadata)
    parser["bundle_root"] = str(out)
    for properties in (InferProperties, MetaProperties):
        for name, about in properties.items():
            if about["required"]:
                assert parser.get(about["id"], None) is not None, name
    verify_net_in_out("network", metadata, inference, device="cpu", bundle_root=str(out))
    network = parser.get_parsed_content("network")
    with torch.no_grad():
        expected = network_alone(model, "monai")(image)
        found = network(image.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found.flip(4), expected, atol=1e-2)  # the scan is asymmetric: mirrored is not alike
    loaded, about, _ = load("bundle", bundle_dir=tmp_path, load_ts_module=True, device="cpu")
    with torch.no_grad():
        assert torch.equal(loaded(image.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2), found)
    assert about["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == next(iter(STRUCTURES))


def test_what_is_exported_replaces_only_what_lrls_wrote(model, tmp_path):
    out = tmp_path / "bundle"
    export_monai(model, out)
    with pytest.raises(LrlsError, match="exists already"):
        export_monai(model, out)
    export_monai(model, out, force=True)
    (out / "docs" / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(LrlsError, match=r"holds docs/mine\.txt, which lrls did not write"):
        export_monai(model, out, force=True)
    with pytest.raises(LrlsError, match="holds configs, which lrls did not write"):
        export_onnx(model, out, force=True)
    assert (out / "docs" / "mine.txt").is_file()


@pytest.mark.parametrize("to", ["onnx", "monai"])
def test_a_method_without_a_network_is_told(model, to):
    alone = replace(model, recipe=replace(model.recipe, answer=replace(model.recipe.answer, network=None)))
    with pytest.raises(LrlsError, match=f"--to {to}: unet has no segmentation network"):
        network_alone(alone, to)


def test_without_the_packages_one_line_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(LrlsError, match=r"needs the package onnxscript; install it with `pip install 'lrls\[onnx\]'`"):
        export_onnx(model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_logits_that_differ_are_refused(model, image):
    network = network_alone(model, "onnx")
    assert check_alike(network, [image], network, "onnx") == {"largest_difference": 0.0, "equal_voxels": 1.0}
    with pytest.raises(LrlsError, match="logits differ"):
        check_alike(network, [image], lambda x: network(x.flip(4)), "onnx")
    with pytest.raises(LrlsError, match="logits differ"):
        check_alike(network, [image], lambda x: network(x) * float("nan"), "onnx")
    swapped = InMonaisOrder(network)(image.permute(0, 1, 4, 3, 2))
    assert torch.equal(swapped.permute(0, 1, 4, 3, 2), network(image))

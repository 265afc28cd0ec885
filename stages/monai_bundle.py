"""The segmentation network as a MONAI bundle: a folder that MONAI reads and runs without lrls.

    <folder>/
      configs/metadata.json    what goes in and comes out, in MONAI's terms; "lrls" has the rest
      configs/inference.json   loads images that lie on the reference, runs the network, saves label maps
      models/model.ts          TorchScript, (1, C, X, Y, Z) -> (1, classes, X, Y, Z): MONAI's order of axes, not lrls's
      models/reference.nii.gz  the image that scans are aligned to, on the grid
      docs/README.md

Source: MONAI, "Bundle Specification" and its predefined properties of inference workflows.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.answering.model import Model
from stages.answering.portable import (
    REFERENCE,
    check_alike,
    examples,
    network_alone,
    quiet_exporter,
    what_goes_in,
    write_reference,
)
from stages.artifacts.files import plain
from stages.artifacts.placing import check_place, placed

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
MONAI_VERSION = "1.5.0"  # the oldest that bundles were tried with
NETWORK = "models/model.ts"
FILES = {"configs/metadata.json", "configs/inference.json", NETWORK, f"models/{REFERENCE}", "docs/README.md"}
FOLDERS = {"configs", "models", "docs"}


class InMonaisOrder(nn.Module):
    """A network of (N, C, D, H, W) for images of (N, C, X, Y, Z): MONAI's arrays run along x first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)


def export_monai(model: Model, out: Path, *, force: bool = False, kept: list[Path] | None = None) -> dict[str, Any]:
    """Write the bundle, and compare its network with lrls's; the folder is complete or absent.

    Args:
        kept: folders that must not be replaced.

    Returns:
        The metadata.

    Raises:
        LrlsError: the method has no network, the folder exists, or logits differ.
    """
    check_place(out, force=force, strange=_strange_in, kept=kept or [])
    network = network_alone(model, "monai")
    inputs = examples(model)
    traced = _traced(InMonaisOrder(network), inputs[0].permute(0, 1, 4, 3, 2).contiguous())

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return traced(image.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)

    verified = check_alike(network, inputs, run, "monai")
    metadata = _metadata(model) | {"lrls": what_goes_in(model) | {"verified": verified}}
    with placed(out, force=force, strange=_strange_in) as draft:
        for folder in FOLDERS:
            (draft / folder).mkdir(parents=True)
        # MONAI looks for the metadata in the network's file, too.
        torch.jit.save(traced, str(draft / NETWORK), _extra_files={"metadata.json": json.dumps(metadata)})
        write_reference(model, draft / "models" / REFERENCE)
        for name, content in (("metadata", metadata), ("inference", _inference(model))):
            (draft / "configs" / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (draft / "docs" / "README.md").write_text(_readme(model), encoding="utf-8")
    return metadata


def _traced(network: nn.Module, image: Tensor) -> torch.jit.ScriptModule:
    """TorchScript of a network; torch.export comes first, because it looks into gradients of our own."""
    with quiet_exporter(), torch.no_grad():
        plain_network = torch.export.export(network, (image,), strict=False).module()
        return torch.jit.trace(plain_network, (image,), check_trace=False)


def _metadata(model: Model) -> dict[str, Any]:
    shape_xyz = list(model.grid.shape[::-1])
    version = importlib.metadata.version
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"written by lrls {version('lrls')}"},
        "monai_version": MONAI_VERSION,
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": "5.2.1", "pytorch-ignite": "0.4.11"},
        "name": f"lrls {model.method}",
        "task": "segmentation of 3D images on the grid of an atlas",
        "description": f"segmentation network of lrls, trained by {model.method} from labelled scans: "
        f"{model.num_atlases}",
        "intended_use": "research; look at every label map",
        "authors": "",
        "copyright": "",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image", "format": "magnitude", "modality": "n/a", "num_channels": len(model.channels),
                    "spatial_shape": shape_xyz, "dtype": "float32", "value_range": [0, 1], "is_patch_data": False,
                    "channel_def": {str(k): name for k, name in enumerate(model.channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image", "format": "segmentation", "num_channels": len(model.structures) + 1,
                    "spatial_shape": shape_xyz, "dtype": "float32", "value_range": [], "is_patch_data": False,
                    "channel_def": {"0": "background"}
                    | {str(k): name for k, name in enumerate(model.structures, start=1)},
                }
            },
        },
    }  # fmt: skip


def _inference(model: Model) -> dict[str, Any]:
    """Images that are aligned to the reference, with intensities in [0, 1] -> label maps with the project's values."""
    channels = len(model.channels)
    groups = f"[files[k:k + {channels}] for k in range(0, len(files), {channels})]"
    values = [0, *model.structures.values()]
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/labels'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "reference": f"$@bundle_root + '/models/{REFERENCE}'",
        # A file a channel, sorted: case_0000.nii.gz, case_0001.nii.gz, ...
        "datalist": "$[{'image': group if len(group) > 1 else group[0], 'reference': @reference} for group in "
        f"(lambda files: {groups})(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))]",
        "network_def": {
            "_target_": "torch.jit.load", "f": f"$@bundle_root + '/{NETWORK}'", "map_location": "@device",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": ["image", "reference"], "ensure_channel_first": True},
                {
                    "_target_": "ResampleToMatchd", "keys": "image", "key_dst": "reference", "mode": "bilinear",
                    "padding_mode": "zeros",
                },
                {
                    "_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0.0, "a_max": 1.0, "b_min": 0.0,
                    "b_max": 1.0, "clip": True,
                },
                {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0,
        },
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "MapLabelValued", "keys": "pred", "orig_labels": list(range(len(values))),
                    "target_labels": values,
                },
                {
                    "_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "",
                    "output_dtype": "$__import__('numpy').int32", "resample": False, "separate_folder": False,
                },
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
            "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing", "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }  # fmt: skip


def _readme(model: Model) -> str:
    return f"""\
# Segmentation network of lrls ({model.method})

Structures: {", ".join(model.structures)}.

The network answers on one grid, that of `models/{REFERENCE}`. Images in `images/` must be aligned to it and have
intensities in [0, 1], as `lrls export --to nnunet` writes them; `configs/metadata.json` says how scans become so, under
"lrls". Then

    python -m monai.bundle run --config_file configs/inference.json --bundle_root .

writes label maps to `labels/`. Alignment, registration of atlases and the way back to a scan's own voxels are not in
this bundle: `lrls export --to model` has them.
"""


def _strange_in(out: Path) -> str | None:
    """Why a folder is not one that `export_monai` wrote; None: it is, and may be replaced."""
    if out.is_symlink() or not out.is_dir():
        return "is no folder that lrls wrote"
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_symlink() or name not in FILES | FOLDERS:
            return f"holds {plain(name)}, which lrls did not write"
    return None

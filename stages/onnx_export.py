"""The segmentation network as an ONNX file, with a manifest that says what goes in.

    <folder>/
      model.onnx         logits of an image on the grid; its metadata hold the manifest, too
      manifest.json      see `stages.answering.portable.what_goes_in`
      reference.nii.gz   the image that scans are aligned to, on the grid

Shapes are fixed: (1, channels, D, H, W) of the model's grid. The network answers on no other grid, and fixed shapes are
what TensorRT and ONNX Runtime plan best for.
"""

from __future__ import annotations

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
from stages.artifacts.digests import file_digest
from stages.artifacts.files import plain
from stages.artifacts.placing import check_place, placed
from stages.errors import LrlsError

OPSET = 18  # what torch's exporter writes without converting; ONNX Runtime reads it since 1.14
ONNX, MANIFEST = "model.onnx", "manifest.json"
FILES = {ONNX, MANIFEST, REFERENCE}


def export_onnx(model: Model, out: Path, *, force: bool = False, kept: list[Path] | None = None) -> dict[str, Any]:
    """Write the network, and compare it with torch by ONNX Runtime; the folder is complete or absent.

    Args:
        kept: folders that must not be replaced.

    Returns:
        The manifest.

    Raises:
        LrlsError: ONNX is not installed, the method has no network, the folder exists, or logits differ.
    """
    check_place(out, force=force, strange=_strange_in, kept=kept or [])
    network = network_alone(model, "onnx")
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # which torch's exporter imports
    except ImportError as error:
        raise LrlsError(
            f"--to onnx needs the package {plain(str(error.name))}; install it with `pip install 'lrls[onnx]'`."
        ) from None
    inputs = examples(model)
    with placed(out, force=force, strange=_strange_in) as draft:
        draft.mkdir(parents=True)
        file = draft / ONNX
        _write(network, inputs[0], file)
        manifest = {"kind": "lrls-onnx", "format_version": 1, "file": ONNX, "opset": OPSET} | what_goes_in(model)
        stored = onnx.load(file)
        onnx.helper.set_model_props(stored, {"lrls": json.dumps(manifest)})
        onnx.save(stored, file)
        onnx.checker.check_model(str(file), full_check=True)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

        def run(image: Tensor) -> Tensor:
            (logits,) = session.run(None, {"image": image.numpy()})
            return torch.from_numpy(logits)

        manifest["verified"] = check_alike(network, inputs, run, "onnx") | {
            "by": f"onnxruntime {onnxruntime.__version__}",
            "against": f"torch {torch.__version__}",
        }
        manifest["sha256"] = file_digest(file)
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        write_reference(model, draft / REFERENCE)
    return manifest


def _write(network: nn.Module, image: Tensor, file: Path) -> None:
    with quiet_exporter(), torch.inference_mode():
        torch.onnx.export(
            network, (image,), str(file), dynamo=True, opset_version=OPSET, input_names=["image"],
            output_names=["logits"], external_data=False, verbose=False,
        )  # fmt: skip


def _strange_in(out: Path) -> str | None:
    """Why a folder is not one that `export_onnx` wrote; None: it is, and may be replaced."""
    if out.is_symlink() or not out.is_dir():
        return "is no folder that lrls wrote"
    strange = sorted(path.name for path in out.iterdir() if path.name not in FILES or not path.is_file())
    return f"holds {plain(strange[0])}, which lrls did not write" if strange else None

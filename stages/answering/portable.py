"""A method's segmentation network alone, for programs that know nothing of lrls: what goes in, what comes out."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from stages.answering.model import Model
from stages.artifacts.cohort import Grid
from stages.data.writers import write_by_itk
from stages.errors import LrlsError

ALIKE = 1e-3  # largest difference of logits, as a share of their largest magnitude
REFERENCE = "reference.nii.gz"


def network_alone(model: Model, to: str) -> nn.Module:
    """A copy of the segmentation network on the CPU, in float32, that learns no more.

    Raises:
        LrlsError: the method has none, or one that learned nothing and registers images that it keeps.
    """
    network = model.recipe.answer.network
    if network is None or next(network.parameters(), None) is None:
        raise LrlsError(
            f"--to {to}: {model.method} has no segmentation network, it propagates atlases; "
            "export it with --to model, or name another method."
        )
    return deepcopy(network).cpu().float().eval().requires_grad_(False)


def examples(model: Model) -> list[Tensor]:
    """Two inputs (1, C, D, H, W) in [0, 1]: the reference in every channel, and noise."""
    template = torch.from_numpy(model.template().astype(np.float32))
    shape = (1, len(model.channels), *model.grid.shape)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return [template.expand(shape).clone(), noise]


def check_alike(network: nn.Module, inputs: list[Tensor], run: Callable[[Tensor], Tensor], to: str) -> dict[str, float]:
    """Compare what was exported with the network that it came from.

    Args:
        run: logits of what was exported, for an input.

    Returns:
        "largest_difference" of logits, as a share of their largest magnitude, and "equal_voxels", the share of voxels
        with the same class; over all inputs.

    Raises:
        LrlsError: they differ.
    """
    difference, equal = 0.0, 1.0
    for image in inputs:
        with torch.inference_mode():
            expected = network(image)
        found = run(image)
        if found.shape != expected.shape:
            raise LrlsError(f"--to {to}: what was exported answers with {tuple(found.shape)}; use --to model instead.")
        share = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
        difference = max(difference, share if share == share else float("inf"))
        equal = min(equal, float((found.argmax(1) == expected.argmax(1)).float().mean()))
    if difference > ALIKE:
        raise LrlsError(
            f"--to {to}: logits differ from the network's by {difference:.1e} of their range, at most {ALIKE:g} is "
            "expected; use --to model instead."
        )
    return {"largest_difference": difference, "equal_voxels": equal}


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Inside, torch's exporters warn of nothing: what they say is for those who write networks."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def what_goes_in(model: Model) -> dict[str, Any]:
    """All that a program must know to ask the network: grid, orientation, intensities, channels, classes."""
    shape, preprocess = model.grid.shape, model.config.preprocess
    num_classes = len(model.structures) + 1
    intensity: dict[str, Any] = {"range": [0.0, 1.0], "clipped": True, "n4": preprocess.n4}
    if preprocess.intensity.method == "window":
        intensity |= {"method": "window", "becomes_0_and_1": list(preprocess.intensity.window)}
    else:
        intensity |= {
            "method": "percentiles of the whole scan, before it is cropped",
            "becomes_0_and_1": list(preprocess.intensity.percentiles),
            "background": "where over a tenth of the voxels share the lowest value, that value becomes 0, "
            "and the upper percentile is that of the others",
        }
    return {
        "lrls": importlib.metadata.version("lrls"),
        "method": model.method,
        "input": {
            "name": "image",
            "type": "float32",
            "shape": [1, len(model.channels), *shape],
            "axes": ["N", "C", "D", "H", "W"],
            "channels": list(model.channels),
            "intensity": intensity,
        },
        "grid": described(model.grid),
        "alignment": {
            "to": REFERENCE,
            "transform": preprocess.align,
            "resampled": "linearly; 0 outside of the scan",
        },
        "output": {
            "name": "logits",
            "type": "float32",
            "shape": [1, num_classes, *shape],
            "probabilities": "softmax over axis 1",
            "classes": [{"index": 0, "name": "background", "value": 0}]
            + [
                {"index": index, "name": name, "value": value}
                for index, (name, value) in enumerate(model.structures.items(), start=1)
            ],
        },
        "not_in_it": "alignment, registration of atlases and fusion with it, flat borders, the way back to the scan's "
        "own voxels, estimates of quality: `lrls export --to model` has them",
    }


def described(grid: Grid) -> dict[str, Any]:
    """Where the voxels of the grid lie.

    The array's axes D, H, W are ITK's k, j, i: W runs along the first axis of the image, as in
    SimpleITK.GetArrayFromImage. Positions are in mm and LPS (x to the left, y to the back, z upwards).
    """
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(grid.direction)
    return {
        "shape_dhw": list(grid.shape),
        "spacing_mm_dhw": list(grid.spacing_mm),
        "origin_mm_lps": list(grid.origin),
        "direction_lps": [list(grid.direction[k : k + 3]) for k in (0, 3, 6)],
        "orientation_whd": code,
        "orientation_means": "where W, H and D point to, the letter being the side that they end at, as in DICOM "
        "(LPS: W to the left, H to the back, D to the head)",
    }


def write_reference(model: Model, path: Any) -> None:
    """The reference on the grid, float32 in [0, 1]: scans are aligned to it, and their arrays are laid out as its."""
    image = sitk.GetImageFromArray(model.template().astype(np.float32))
    image.CopyInformation(model.grid.as_image())
    write_by_itk(image, path)

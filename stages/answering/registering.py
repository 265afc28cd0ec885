"""What trained networks, ANTs or gradient descent say on a cohort's grid: displacements, propagated labels, answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stages.config import Config
from stages.device import Device, keep_freed_memory
from stages.methods.recipe import Recipe
from stages.parts.classical import displacement_of
from stages.parts.instance import InstanceOptimisation
from stages.parts.losses import lncc
from stages.parts.warps import one_hot, warp, warp_probabilities
from stages.processes import in_processes

ImagePair = tuple[np.ndarray, np.ndarray]  # moving, fixed: (D, H, W) in [0, 1]


def displacements(
    recipe: Recipe,
    pairs: Sequence[ImagePair],
    cases: Sequence[str],
    *,
    spacing_mm: tuple[float, float, float],
    device: Device,
    config: Config,
) -> Iterator[tuple[int, np.ndarray]]:
    """(place of the pair, displacement (3, D, H, W) in voxels), as they come.

    Args:
        cases: the scan that each pair is about, for messages.

    Raises:
        LrlsError: ANTs gives a pair up, or a process was killed.
    """
    workers = config.preprocess.workers
    if recipe.classical is not None:
        arguments = [(recipe.classical, i, cases[i], *pair, spacing_mm, config.seed) for i, pair in enumerate(pairs)]
        yield from in_processes(displacement_of, arguments, workers=workers)
        return
    if recipe.instance is not None and device.torch.type == "cpu" and len(pairs) == 1:
        threads = torch.get_num_threads()  # a process of its own would take as long to start as the pair does
        found = on_arrays(recipe.instance, 0, *pairs[0])
        torch.set_num_threads(threads)
        yield found
        return
    if recipe.instance is not None and device.torch.type == "cpu":  # a process per core needs no threads
        yield from in_processes(
            on_arrays, [(recipe.instance, i, *pair) for i, pair in enumerate(pairs)], workers=workers
        )
        return
    if recipe.registration is not None:
        recipe.registration.to(device.torch).eval()
    for i, pair in enumerate(pairs):
        moving, fixed = (as_image(image, device) for image in pair)
        if recipe.instance is not None:
            field = recipe.instance(moving, fixed)
        else:
            assert recipe.registration is not None
            with torch.inference_mode(), device.autocast():
                field = recipe.registration(moving, fixed)
        yield i, field[0].float().cpu().numpy()


def on_arrays(
    optimisation: InstanceOptimisation, place: int, moving: np.ndarray, fixed: np.ndarray
) -> tuple[int, np.ndarray]:
    """The place of an image pair (D, H, W) among others, and its displacement (3, D, H, W), on one CPU thread.

    For processes that share the cores.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    pair = [torch.from_numpy(image.astype(np.float32))[None, None] for image in (moving, fixed)]
    return place, optimisation(*pair)[0].numpy()


def as_image(array: np.ndarray, device: Device) -> Tensor:
    """(D, H, W) -> (1, 1, D, H, W) float32 on the device."""
    return torch.from_numpy(array.astype(np.float32)).to(device.torch)[None, None]


def segment(network: nn.Module, scan: np.ndarray, device: Device) -> Tensor:
    """Class probabilities (C, D, H, W) of a scan on the grid, on the device."""
    with torch.inference_mode(), device.autocast():
        logits = network(as_image(scan, device))
    return logits[0].float().softmax(0)


def vote(
    atlases: Sequence[tuple[np.ndarray, np.ndarray]],
    fields: Sequence[np.ndarray],
    scan: np.ndarray,
    num_classes: int,
) -> Tensor:
    """Class probabilities of a scan from one or several warped atlases.

    One atlas: its warped one-hot label. Several: the share of votes; ties go to the more similar atlas.

    Args:
        atlases: image and label (class indices) of each, (D, H, W).
        fields: displacement of each to the scan, (3, D, H, W), voxels.
        scan: (D, H, W) in [0, 1].

    Returns:
        (num_classes, D, H, W), sums to 1.
    """
    warped = []
    similarity = []
    for (image, label), field in zip(atlases, fields, strict=True):
        displacement = torch.from_numpy(field)[None]
        classes = torch.from_numpy(label.astype(np.int16))[None]
        warped.append(warp_probabilities(one_hot(classes, num_classes), displacement)[0])
        moved = warp(torch.from_numpy(image.astype(np.float32))[None, None], displacement)
        similarity.append(float(lncc(moved, torch.from_numpy(scan.astype(np.float32))[None, None]).mean()))
    if len(warped) == 1:
        return warped[0]
    ranks = np.argsort(np.argsort(similarity))
    weights = 1 + 1e-3 * torch.from_numpy(ranks).float()
    votes = sum(w * one_hot(each.argmax(0)[None], num_classes)[0] for w, each in zip(weights, warped, strict=True))
    return votes / weights.sum()  # type: ignore[operator]

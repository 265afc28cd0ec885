"""Registration and segmentation of scans on a cohort's grid, by networks, other programs or gradient descent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.artifacts.cohort import Cohort
from stages.artifacts.sheets import as_grey
from stages.config import Config
from stages.device import Device, keep_freed_memory
from stages.generating.writer import ImagePair
from stages.memory import is_out_of_memory
from stages.parts.channels import as_images, first_channel
from stages.parts.classical import Classical, displacement_of
from stages.parts.instance import InstanceOptimisation
from stages.parts.metrics import jacobian_determinant
from stages.parts.voting import vote
from stages.parts.warps import warp
from stages.processes import in_processes


def displacements(
    registers: nn.Module | Classical | InstanceOptimisation | None,
    pairs: Sequence[ImagePair],
    cases: Sequence[str],
    *,
    spacing_mm: tuple[float, float, float],
    device: Device,
    config: Config,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index of the pair, displacement (3, D, H, W) in voxels), in the order in which pairs are finished.

    Args:
        registers: see `recipe.Answer`.
        cases: the scan of each pair, for messages.

    Raises:
        LrlsError: a program fails on a pair, or a process was killed.
    """
    assert registers is not None
    if isinstance(registers, nn.Module):
        yield from _by_network(registers, pairs, device)
    elif not isinstance(registers, InstanceOptimisation):
        arguments = [(registers, i, cases[i], *pair, spacing_mm, config.seed) for i, pair in enumerate(pairs)]
        yield from in_processes(displacement_of, arguments, config=config)
    elif device.torch.type != "cpu":
        yield from _in_batches(registers, pairs, device)
    elif len(pairs) == 1:
        threads = torch.get_num_threads()  # starting a process would take as long as the pair itself
        try:
            result = on_arrays(registers, 0, *pairs[0])
        finally:
            torch.set_num_threads(threads)
        yield result
    else:  # a process per core needs no threads
        calls = [(registers, i, *pair) for i, pair in enumerate(pairs)]
        yield from in_processes(on_arrays, calls, config=config)


def _by_network(network: nn.Module, pairs: Sequence[ImagePair], device: Device) -> Iterator[tuple[int, np.ndarray]]:
    network.to(device.torch).eval()
    for i, (moving, fixed) in enumerate(pairs):
        with torch.inference_mode(), device.autocast():
            field = network(as_image(moving, device), as_image(fixed, device))
        yield i, field[0].float().cpu().numpy()


MOST_PAIRS, MOST_VOXELS = 32, 2**25  # of a batch: more do not fill a GPU better
BYTES_A_VOXEL, BYTES_A_CHANNEL = 200, 30  # that a pair takes on its grid, with a margin


def pairs_at_once(device: Device, image: np.ndarray) -> int:
    """How many pairs of such an image instance optimisation takes at once; 1 on the CPU, where processes share them."""
    free = device.free_bytes() if device.torch.type != "cpu" else None
    if free is None:
        return 1
    voxels, channels = math.prod(image.shape[-3:]), image.shape[0] if image.ndim == 4 else 1
    fitting = int(0.8 * free) // (voxels * (BYTES_A_VOXEL + BYTES_A_CHANNEL * channels))
    return max(1, min(fitting, MOST_PAIRS, MOST_VOXELS // voxels))


def _in_batches(
    optimisation: InstanceOptimisation, pairs: Sequence[ImagePair], device: Device
) -> Iterator[tuple[int, np.ndarray]]:
    """Several pairs of one grid at once; half as many where memory runs out, since others may use the same GPU."""
    at_once, done = pairs_at_once(device, pairs[0][0]) if pairs else 1, 0
    while done < len(pairs):
        some = pairs[done : done + at_once]
        try:
            moving, fixed = (torch.cat([as_image(pair[side], device) for pair in some]) for side in (0, 1))
            fields = optimisation(moving, fixed).cpu().numpy()
        except RuntimeError as error:
            if len(some) == 1 or not is_out_of_memory(error):
                raise
            at_once = len(some) // 2
            continue
        yield from enumerate(fields, start=done)
        done += len(some)


def as_image(array: np.ndarray, device: Device) -> Tensor:
    """(D, H, W) or (C, D, H, W) -> (1, C, D, H, W) float32 on the device."""
    return as_images(array).to(device.torch)


def segment(network: nn.Module, scan: np.ndarray, device: Device) -> Tensor:
    """Class probabilities (C, D, H, W) of a scan on the grid, on the device."""
    with torch.inference_mode(), device.autocast():
        logits = network(as_image(scan, device))
    return logits[0].float().softmax(0)


def overlay_row(
    case: str,
    atlas: ImagePair,
    scan: np.ndarray,
    field: np.ndarray,
    cohort: Cohort,
) -> dict[str, Any]:
    """A row of `pictures.registration_overlay`: an atlas (image, label) registered to a scan by `field`."""
    image = atlas[0]
    votes = vote([atlas], [field], scan, cohort.num_classes)
    moved = warp(as_images(image), torch.from_numpy(field)[None])[0, 0]
    return {
        "case": case,
        "atlas": first_channel(image),
        "warped": moved.numpy(),
        "scan": first_channel(scan),
        "displacement": field,
        "warped_label": votes.argmax(0).numpy(),
        "spacing_mm": cohort.grid.spacing_mm,
    }


def warped_and_change(atlas: np.ndarray, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An atlas (D, H, W) or (C, D, H, W), its first channel warped by a field, and `as_grey` of the field; uint8."""
    displacement = torch.from_numpy(field)[None]
    warped = warp(as_images(atlas), displacement)[0, 0].clamp(0, 1).numpy()
    return (warped * 255).round().astype(np.uint8), as_grey(jacobian_determinant(displacement)[0].numpy())


def on_arrays(
    optimisation: InstanceOptimisation, place: int, moving: np.ndarray, fixed: np.ndarray
) -> tuple[int, np.ndarray]:
    """Register an image pair, (D, H, W) or (C, D, H, W), on one CPU thread; for worker processes that share the cores.

    Returns:
        `place`, the index of the pair, and its displacement (3, D, H, W) in voxels.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    return place, optimisation(as_images(moving), as_images(fixed))[0].numpy()

"""Images as arrays: (D, H, W), or (C, D, H, W) where a scan has several channels. As tensors: (N, C, D, H, W)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def as_images(array: np.ndarray) -> Tensor:
    """(D, H, W) or (C, D, H, W) -> (1, C, D, H, W), float32."""
    image = torch.from_numpy(array.astype(np.float32))
    return image[None] if image.ndim == 4 else image[None, None]


def as_array(image: Tensor) -> np.ndarray:
    """The first of (N, C, D, H, W) -> (D, H, W), or (C, D, H, W) where it has several channels."""
    return image[0].numpy() if image.shape[1] > 1 else image[0, 0].numpy()


def first_channel(array: np.ndarray) -> np.ndarray:
    """(D, H, W) or (C, D, H, W) -> (D, H, W), float32: what pictures show."""
    return (array[0] if array.ndim == 4 else array).astype(np.float32)

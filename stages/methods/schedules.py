"""Training numbers that several recipes share."""

from __future__ import annotations

from stages.config import Augmentation, TrainSettings


def published_training(
    steps: int, *, batch_size: int = 1, learning_rate: float = 1e-4, augmentation: Augmentation
) -> TrainSettings:
    """The papers' common schedule: Adam, constant, 1e-4 in most papers."""
    return TrainSettings(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, schedule="constant", optimizer="adam", ema=0.0,
        augmentation=augmentation,
    )  # fmt: skip


def short_training(
    steps: int, *, batch_size: int = 1, learning_rate: float = 3e-3, augmentation: Augmentation = "strong"
) -> TrainSettings:
    """A schedule of minutes, for the light and the full networks: AdamW, one cycle."""
    return TrainSettings(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, schedule="one-cycle", optimizer="adamw",
        ema=0.0, augmentation=augmentation,
    )  # fmt: skip


def full_or_light_rate(segmentation_network: str) -> float:
    """Peak learning rate of a short training of S."""
    return 3e-3 if segmentation_network in ("light", "small") else 2e-3


def joint_training(steps: int, *, learning_rate: float) -> TrainSettings:
    """OS-MedSeg's schedule (section IV-C): Adam, constant, batches of two, no augmentation mentioned."""
    return published_training(steps, batch_size=2, learning_rate=learning_rate, augmentation="none")

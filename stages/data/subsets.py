"""Cohorts and parts of the split: which parts belong to which cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from stages.config import Config

Part = Literal["train", "supervised", "dev", "test"]
MEMBERS: dict[Part, tuple[str, ...]] = {
    "train": ("atlases", "unlabeled"),
    "supervised": ("supervised",),
    "dev": ("dev",),
    "test": ("test",),
}
SAID_BY_MEMBERS = {"workers", "most_atlases", "most_unlabeled"}  # the scans themselves are in a cohort's identity
TRAINED_ON = ("atlases", "supervised")  # parts whose labels a cohort stores


def cohort_folder(config: Config, part: Part) -> Path:
    return config.workspace / ("cohort" if part == "train" else f"cohort-{part}")


def cohort_settings(config: Config, part: Part) -> dict[str, Any]:
    """The settings that a cohort depends on, besides the scans."""
    laid_round = grid_atlases(config) if part == "train" else []
    by_review = laid_round != config.part("atlases") if part == "train" else False
    return {
        "preprocess": config.preprocess.model_dump(mode="json", exclude=SAID_BY_MEMBERS),
        "structures": [[name, values] for name, values in config.structure_values().items()],  # in the order of classes
        "others": config.others,
        "members": {role: config.part(role) for role in MEMBERS[part]},
        **({"grid_atlases": laid_round} if by_review else {}),
    }


def grid_atlases(config: Config) -> list[str]:
    """The atlases that the grid is laid round, while the labels of the others lie in it.

    Atlases that a review adds change the grid only where they must: what was made on it stays worth something.
    """
    atlases, added = config.part("atlases"), config.added_atlases()
    return [case for case in atlases if case not in added] or atlases[:1]


def roles_of(config: Config, part: Part, *, needs_unlabeled: bool = True) -> tuple[list[str], tuple[str, ...]]:
    """The parts of the split that a cohort holds, and the parts with which it must not share a scan.

    Args:
        needs_unlabeled: whether a cohort without unlabelled scans is a fault.
    """
    roles = [role for role in MEMBERS[part] if needs_unlabeled or role != "unlabeled" or config.part("unlabeled")]
    trains = part in ("train", "supervised")
    return roles, (("dev", "test") if trains else ("atlases", "unlabeled", "supervised"))

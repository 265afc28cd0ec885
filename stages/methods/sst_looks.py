"""Where SST's samples get their looks from: the cohort's own networks, or those of another cohort."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from torch import nn

from stages.artifacts.manifest import MANIFEST
from stages.artifacts.store import versions
from stages.artifacts.weights import Registration
from stages.errors import LrlsError
from stages.methods.recipe import Borrowed
from stages.parts.networks.appearance import AppearanceModel
from stages.parts.networks.style import MomentumContrast
from stages.parts.networks.styled_registration import StyledRegistration


def sample_looks(
    R: StyledRegistration, networks: str, *, remembers: bool, other: Path | None
) -> tuple[AppearanceModel, MomentumContrast | None, Borrowed | None]:
    """The appearance model and the memory that samples get their looks from, and the weights that they borrow.

    Args:
        R: of the cohort itself.
        networks: `registration_network` in the settings, which both cohorts must share.
        remembers: looks come from a memory instead of the prior.
        other: workspace or registration artifact of another cohort; None: R's own networks.

    Raises:
        LrlsError: the other artifact is missing, is not of SST, or has other networks.
    """
    if other is None:
        return R.appearance, R.style if remembers else None, None
    artifact = other_registration(other)
    trained = artifact.manifest.identity.config["settings"]
    if trained["registration_network"] != networks or not trained["appearance"]:
        kind = f"{trained['registration_network']} networks" if trained["appearance"] else "no appearance model"
        raise LrlsError(
            f"methods.sst.appearance_from: {artifact.folder.name} has {kind}, expected an appearance model of "
            f"{networks} networks; train both with the same `registration_network`, and with `appearance`."
        )
    A, memory = deepcopy(R.appearance), None
    borrowed: dict[str, nn.Module] = {"registration/appearance": A}
    if remembers:  # the other cohort's queue may have another size
        memory = MomentumContrast(deepcopy(R.style.encoder), size=trained["queue"])
        borrowed["registration/style"] = memory
    return A, memory, Borrowed(artifact, borrowed)


def other_registration(place: Path) -> Registration:
    """The registration artifact at a place; if the place is a workspace, its newest one of SST.

    Raises:
        LrlsError: there is none, or it is another method's.
    """
    if not (place / MANIFEST).exists():
        trained = versions(place / "sst" / "registration")
        if not trained:
            raise LrlsError(
                f"methods.sst.appearance_from: found no sst/registration in {place.name or place}, expected the "
                "workspace of the other cohort, or a registration artifact; `lrls train-reg --method sst` makes one."
            )
        place = trained[-1]
    artifact = Registration.open(place)
    method = artifact.manifest.identity.config.get("method")
    if method != "sst":
        raise LrlsError(
            f"methods.sst.appearance_from: {artifact.folder.name} was trained by {method}, expected sst; "
            "name a workspace where `lrls train-reg --method sst` has run."
        )
    return artifact

"""Paths that an earlier version of the generated data has: a couple of the same images is not registered again.

A scan that became an atlas, or a scan more or less, changes the cohort and with it every artifact after it. The couples
of the other atlases and scans are what they were: their paths depend on the two images on the grid and on what
registers them, and on no label.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.store import listed_versions, with_digest
from stages.errors import LrlsError

if TYPE_CHECKING:
    import h5py


WITHOUT_EFFECT = ("most_paths", "segmentation_network")  # settings that change no path


class FormerPaths:
    """The path banks of earlier versions that were registered as a new one would be; use it in a `with` statement.

    Args:
        target: folder of the versions.
        cohort: of the new version.
        settings: of the method, as the stage reads them; what is screened and how many samples are drawn does not
            matter.
        weights: content digests of the networks that register, by role.
        seed: of a registration that draws.
        device: where it ran.
    """

    def __init__(
        self, target: Path, cohort: Cohort, settings: Mapping[str, Any], weights: Mapping[str, str], seed: int,
        device: str,
    ) -> None:  # fmt: skip
        self.cohort, self._open = cohort, ExitStack()
        self._banks: list[tuple[Cohort, h5py.Group, dict[tuple[str, str], int]]] = []
        self._same: dict[tuple[str, str], bool] = {}
        for version in reversed(listed_versions(Generated, target)):
            identity = version.manifest.identity
            given = {role: digest for role, digest in identity.inputs.items() if role != "cohort"}
            if (_of_paths(identity.config), given, identity.seed) != (_of_paths(settings), dict(weights), seed):
                continue
            folder = with_digest(cohort.folder.parent, identity.inputs["cohort"])
            if version.manifest.device == device and folder:
                with suppress(LrlsError):  # what is damaged is made again
                    self._add(Cohort.open(folder), Generated.open(version.folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def row(self, atlas: str, scan: str) -> dict[str, Any] | None:
        """The row of `paths` of a couple whose images are still what they were; None: there is none."""
        for cohort, group, rows in self._banks:
            place = rows.get((atlas, scan))
            if place is None or not all(self._is_same(cohort, case) for case in (atlas, scan)):
                continue
            names = [name for name in group if name not in ("atlas", "scan", "accepted")]
            return {name: group[name][place] for name in names}
        return None

    def _add(self, cohort: Cohort, generated: Generated) -> None:
        if cohort.grid != self.cohort.grid or cohort.channels != self.cohort.channels:
            return
        file = self._open.enter_context(generated.open_file())
        if group := file.get("paths"):
            couples = zip(*(group[name].asstr()[()].tolist() for name in ("atlas", "scan")), strict=True)
            self._banks.append((cohort, group, {couple: place for place, couple in enumerate(couples)}))

    def _is_same(self, cohort: Cohort, case: str) -> bool:
        """Whether a scan is on the grid what it was."""
        key = (cohort.manifest.digest, case)
        if key not in self._same:
            self._same[key] = (cohort.image(case) == self.cohort.image(case)).all().item()
        return self._same[key]


def _of_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that paths depend on."""
    own = {name: value for name, value in settings["settings"].items() if name not in WITHOUT_EFFECT}
    return {name: value for name, value in settings.items() if name != "generate"} | {"settings": own}

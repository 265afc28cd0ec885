"""Facts about scans: digests, geometry, classes, faults. They are kept by content, so that each scan is decoded once.

`Known.look` finds a scan's files and their digests, `Known.facts` returns the facts kept for them, and `examine`
decodes a scan whose facts are not known. Faults are returned by `faults_of`, not raised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from stages.artifacts.digests import digest_of
from stages.config import Config
from stages.data import digests, intake
from stages.data.channels import channel_grid_faults, count_fault, of_channel
from stages.data.contents import Content, Contents
from stages.data.faults import Fault, IntakeError, Severity, no_numbers
from stages.data.geometry import Geometry, geometry_faults, geometry_of
from stages.data.kept import keep, kept_folder, read_kept
from stages.data.labels import as_integers, class_indices, classes_of
from stages.data.outliers import wrapped
from stages.data.segments import with_own_values

CHECKS = 5  # version of the checks and digests; after a change everything is decoded again


Told = tuple[str, str, str, Severity]


@dataclass(frozen=True)
class Facts:
    """What is known of an image or a label map.

    Args:
        faults: (found, remedy, code, severity) of every fault and notice.
        geometry: None: it could not be read.
        digest: of geometry and voxels; empty: they could not be read.
        voxels: digest of an image's voxels alone.
        classes: the class indices in a label map.
    """

    faults: tuple[Told, ...] = ()
    geometry: Geometry | None = None
    digest: str = ""
    voxels: str = ""
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class ScanFacts:
    """What is known of a scan: of its image, or its channels together, and, if asked for, its label map."""

    case: str
    image: Facts
    label: Facts | None

    @property
    def digest(self) -> str:
        """The scan's digest; see `stages.data.digests`."""
        return digests.scan_digest(self.image.digest, self.label.digest if self.label else None)


@dataclass(frozen=True)
class Looked:
    """Where a scan's files are and their digests, or the fault that a file is missing.

    Args:
        image: of several channels, the first one.
        kept: the workspace in which facts are kept; None: they are not kept.
        more: the other channels, in order.
    """

    case: str
    image: Content | Fault
    label: Content | Fault | None
    kept: Path | None
    more: tuple[Content, ...] = ()

    @property
    def images(self) -> tuple[Content | Fault, ...]:
        """All channels of the image, in order."""
        return (self.image, *self.more)

    @property
    def has_changed(self) -> bool:
        """Whether a file has changed since it was looked at."""
        return any(content.digest and not content.is_still_there() for content in self.contents)

    @property
    def contents(self) -> tuple[Content, ...]:
        return tuple(content for content in (*self.images, self.label) if isinstance(content, Content))

    @property
    def digests(self) -> tuple[str, ...]:
        """Digests of the files' bytes; an empty one means that the file must be decoded."""
        return tuple(content.digest for content in self.contents)


@dataclass(frozen=True)
class Examined:
    """A scan's facts, and its image (float32) and label map (integers) as far as they were decoded.

    Args:
        images: all channels, in order; empty unless all were decoded.
    """

    facts: ScanFacts
    images: tuple[sitk.Image, ...]
    label: sitk.Image | None


class Known:
    """The facts known about a configuration's scans.

    Args:
        fresh: ignore the facts that are kept, and keep none.
    """

    def __init__(self, config: Config, *, fresh: bool = False) -> None:
        self.config = config
        self._kept = None if fresh else config.workspace
        self._contents = Contents(self._kept)

    def look(self, labelled: Mapping[str, bool]) -> dict[str, Looked]:
        """Find the image files of cases, and the label maps of the cases that are mapped to True."""
        looked = {case: self._look(case, label) for case, label in labelled.items()}
        self._contents.save()
        return looked

    def _look(self, case: str, label: bool) -> Looked:
        image: Content | Fault
        label_map: Content | Fault | None = None
        more: list[Content] = []
        try:
            image, *more = [self._contents.look(path) for path in intake.image_files(self.config, case)]
            if self._first and (fault := count_fault(case, 1 + len(more), *self._first)):
                image, more = fault, []
        except IntakeError as error:
            image = error.fault
        try:
            label_map = self._contents.look(intake.label_file(self.config, case)) if label else None
        except IntakeError as error:
            label_map = error.fault
        return Looked(case, image, label_map, self._kept, tuple(more))

    @cached_property
    def _first(self) -> tuple[str, int] | None:
        return intake.first_channels(self.config)

    def facts(self, looked: Mapping[str, Looked]) -> dict[str, ScanFacts]:
        """Facts of the scans whose facts are all known."""
        known = {case: known_facts(self.config, scan) for case, scan in looked.items()}
        return {case: facts for case, facts in known.items() if facts}


def known_facts(config: Config, looked: Looked) -> ScanFacts | None:
    """The facts of a scan without decoding it; None: not all are known."""
    images = [_known(config, looked, image, is_label=False) for image in looked.images]
    label = None if looked.label is None else _known(config, looked, looked.label, is_label=True)
    known = [facts for facts in images if facts]
    if len(known) < len(images) or (label is None and looked.label is not None):
        return None
    return ScanFacts(looked.case, _together(looked.case, known), label)


def examine(config: Config, looked: Looked, *, whole: bool = True) -> Examined:
    """Decode a scan and keep its facts.

    Args:
        whole: decode image and label map; otherwise only files whose facts are not known.
    """
    each = [_examine(config, looked, image, is_label=False, whole=whole) for image in looked.images]
    decoded = tuple(image for image, _ in each if image is not None)
    images = decoded if len(decoded) == len(each) else ()
    image_facts = _together(looked.case, [facts for _, facts in each])
    if looked.label is None:
        return Examined(ScanFacts(looked.case, image_facts, None), images, None)
    label, label_facts = _examine(config, looked, looked.label, is_label=True, whole=whole)
    return Examined(ScanFacts(looked.case, image_facts, label_facts), images, label)


def _together(case: str, channels: Sequence[Facts]) -> Facts:
    """The facts of an image of several channels; a scan counts as another one's twin if its first channel is."""
    first = channels[0]
    if len(channels) == 1:
        return first
    faults = [
        _as_told(of_channel(Fault(case, *told), number, len(channels)))
        for number, facts in enumerate(channels)
        for told in facts.faults
    ]
    faults += map(_as_told, channel_grid_faults([facts.geometry for facts in channels], case))
    digest = digest_of([facts.digest for facts in channels]) if all(facts.digest for facts in channels) else ""
    return Facts(tuple(faults), first.geometry, digest, first.voxels)


def faults_of(config: Config, facts: ScanFacts) -> list[Fault]:
    """All faults of a scan, and of its label map if that was asked for."""
    case, image, label = facts.case, facts.image, facts.label
    faults = _told(facts.case, image, stops=True)
    if label is None:
        return faults
    if image.geometry and label.geometry:
        faults += geometry_faults(image.geometry, label.geometry, case)
    of_label = _told(case, label, stops=True)
    faults += of_label
    if not of_label and not any(label.classes) and case in config.part("atlases"):
        faults.append(intake.no_structures(case))
    return faults


def notices_of(facts: ScanFacts) -> list[Fault]:
    """What is told of a scan and stops nothing."""
    return [notice for part in (facts.image, facts.label) if part for notice in _told(facts.case, part, stops=False)]


def _told(case: str, facts: Facts, *, stops: bool) -> list[Fault]:
    return [fault for told in facts.faults if (fault := Fault(case, *told)).stops == stops]


def _as_told(fault: Fault) -> Told:
    return fault.found, fault.remedy, fault.code, fault.severity


def label_faults(config: Config, looked: Looked) -> list[Fault]:
    """The faults of a scan's label map alone; decodes it if they are not known, and keeps its facts."""
    if looked.label is None:
        return []
    return _told(looked.case, _examine(config, looked, looked.label, is_label=True, whole=False)[1], stops=True)


def _examine(
    config: Config, looked: Looked, place: Content | Fault, *, is_label: bool, whole: bool
) -> tuple[sitk.Image | None, Facts]:
    if isinstance(place, Fault):
        return None, Facts((_as_told(place),))
    if not whole and (known := _known(config, looked, place, is_label=is_label)):
        return None, known
    image, facts = (_read_label if is_label else _read_image)(config, looked.case, place.path)
    if looked.kept and place.is_still_there():
        keep(_file(config, looked.kept, place, is_label=is_label), asdict(facts))
    return image, facts


def _read_image(config: Config, case: str, path: Path) -> tuple[sitk.Image | None, Facts]:
    try:
        image = sitk.Cast(intake.read_image(path, case), sitk.sitkFloat32)
    except IntakeError as error:
        return None, Facts((_as_told(error.fault),))
    except RuntimeError:  # ITK casts no such voxels
        return None, Facts((_as_told(no_numbers(case, "image")),))
    fault = intake.voxel_fault(image, case) or wrapped(image, case)
    faults = (_as_told(fault),) if fault else ()
    return image, Facts(faults, geometry_of(image), digests.image_digest(image), digests.voxel_digest(image))


def _read_label(config: Config, case: str, path: Path) -> tuple[sitk.Image | None, Facts]:
    facts, label = Facts(), None
    try:
        label = intake.read_image(path, case, "label map")
        facts = replace(facts, geometry=geometry_of(label))
        label = with_own_values(as_integers(label, case), config, case)
        facts = replace(facts, digest=digests.label_digest(label))
        values = np.unique(sitk.GetArrayViewFromImage(label))
        classes = np.unique(class_indices(values, config, case)).tolist()
        return label, replace(facts, classes=tuple(classes))
    except IntakeError as error:
        return label, replace(facts, faults=(_as_told(error.fault),))


def _known(config: Config, looked: Looked, place: Content | Fault, *, is_label: bool) -> Facts | None:
    if isinstance(place, Fault):
        return Facts((_as_told(place),))
    if not looked.kept or not place.digest:
        return None
    stored = read_kept(_file(config, looked.kept, place, is_label=is_label))
    try:
        return _facts(stored) if stored else None
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None


def _facts(stored: Mapping[str, Any]) -> Facts:
    stated = stored["geometry"]
    geometry = Geometry(**{key: tuple(value) for key, value in stated.items()}) if stated else None
    if geometry and not geometry.is_possible:
        raise ValueError
    return Facts(
        tuple(_as_told(Fault("", *map(str, told))) for told in stored["faults"]),  # type: ignore[arg-type]
        geometry,
        str(stored["digest"]), str(stored["voxels"]), tuple(int(index) for index in stored["classes"]),
    )  # fmt: skip


def _file(config: Config, workspace: Path, content: Content, *, is_label: bool) -> Path:
    """Where facts are kept. The name covers all they depend on: bytes, how they are read, and the label values."""
    table = [list(config.structure_values().items()), config.others] if is_label else None
    key = digest_of([CHECKS, sitk.Version_VersionString(), content.kind, content.digest, table])
    return kept_folder(workspace) / "facts" / f"{key}.json"


def spacing_mm(facts: ScanFacts) -> tuple[float, ...]:
    """Size of the scan's own voxels, (D, H, W)."""
    assert facts.image.geometry is not None
    return facts.image.geometry.spacing[::-1]


def decode_label(config: Config, case: str, facts: ScanFacts) -> np.ndarray:
    """Class indices (D, H, W) of a label map whose `facts` are known.

    Raises:
        IntakeError: the label map has changed since, or is faulty.
    """
    label = intake.read_label(config, case)
    assert facts.label is not None
    if digests.label_digest(label) != facts.label.digest:
        raise IntakeError(
            Fault(case, "its label map has changed since the command began", "run the command again", "changed")
        )
    return classes_of(label, config, case)

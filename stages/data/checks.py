"""All faults of a cohort: in its scans, in its parts, and between parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.config import Config
from stages.data import intake
from stages.data.channels import channel_grid_faults, of_channel
from stages.data.contents import Content
from stages.data.facts import Facts, Known, Looked, ScanFacts, examine, faults_of, label_faults, notices_of
from stages.data.faults import HELD_OUT, Fault, IntakeError, leaks
from stages.data.geometry import Geometry, geometry_faults
from stages.data.grid import MARGIN_SHARE, MARGIN_VOXELS
from stages.data.lost import lost_in_check
from stages.data.outliers import beyond_reach, extent_mm, size_faults, unit_notice
from stages.processes import working

MOST_NAMES = 10  # structures in a line
WORTH_PROCESSES = 2**26  # bytes of files; fewer are read faster than processes start


def cohort_faults(config: Config, parts: Sequence[str], *, labels: bool = True) -> list[Fault]:
    """All faults and notices of the given parts of the split. Decodes every scan and stores no facts.

    Args:
        parts: the parts to check.
        labels: whether label maps are read.
    """
    if fault := folder_fault(config):
        return [fault]
    looked = Known(config, fresh=True).look(cases_of(config, parts, labels=labels))
    facts = dict(examine_all(config, looked))
    faults = faults_among(config, facts, parts)
    if labels and "atlases" in parts and not faults:
        faults += lost_in_check(config)
    return faults + notices_among(config, facts, parts)


def report(config: Config, parts: Sequence[str], found: Sequence[Fault]) -> dict[str, Any]:
    """Faults and notices as JSON-able values, in the order of `found`, and how many there are."""
    members = {part: config.part(part) for part in parts}
    return {
        "scans": len({case for cases in members.values() for case in cases}),
        "faults": sum(fault.stops for fault in found),
        "notices": sum(not fault.stops for fault in found),
        "found": [
            {
                "case": fault.case or None,
                "parts": [part for part, cases in members.items() if fault.case in cases],
                "severity": fault.severity,
                "code": fault.code,
                "found": fault.found,
                "remedy": fault.remedy,
            }
            for fault in found
        ],
    }


def scan_faults(config: Config, case: str, *, label: bool) -> list[Fault]:
    """All faults of a scan, and of its label map if `label`. Decodes both."""
    looked = Known(config, fresh=True).look({case: label})
    return faults_of(config, examine(config, looked[case]).facts)


def cases_of(
    config: Config, parts: Sequence[str], beside: Sequence[str] = (), *, labels: bool = True
) -> dict[str, bool]:
    """The cases of parts, in order, each with whether its label map is read.

    Args:
        beside: parts that are only compared with the others.
    """
    labelled = {case for part in parts if part != "unlabeled" and labels for case in config.part(part)}
    return {case: case in labelled for part in (*parts, *beside) for case in config.part(part)}


def examine_all(config: Config, looked: Mapping[str, Looked]) -> Iterator[tuple[str, ScanFacts]]:
    """Facts of scans by case; decodes scans without known facts, several at once if the files are large."""
    arguments = [(config, scan) for scan in looked.values()]
    if sum(content.num_bytes for scan in looked.values() for content in scan.contents) < WORTH_PROCESSES:
        yield from (facts_of(config, scan) for scan in looked.values())
        return
    with working(config) as processes:
        yield from processes.each(facts_of, arguments, broken=facts_of_killed)


def facts_of(config: Config, looked: Looked) -> tuple[str, ScanFacts]:
    return looked.case, examine(config, looked, whole=False).facts


def facts_of_killed(config: Config, looked: Looked) -> tuple[str, ScanFacts]:
    """What stands in for `facts_of` if the process was killed."""
    found = "the process that read it was killed, by a damaged file or for lack of memory"
    told = (found, "export it again, crop it, or set preprocess.workers to 1", "killed", "fault")
    return looked.case, ScanFacts(looked.case, Facts((told,)), None if looked.label is None else Facts())  # type: ignore[arg-type]


def folder_fault(config: Config) -> Fault | None:
    """A fault if the folders of the scans are not there or cannot be read; otherwise None."""
    if not config.data.folder.is_dir():
        return Fault("", f"data.folder: {config.data.folder} is not a folder", "correct it", "data-folder")
    for setting in ("images", "labels"):
        for folder in (config.data.folder, *intake.sub_folders(config, getattr(config.data, setting))):
            try:
                next(folder.iterdir(), None)
            except (FileNotFoundError, NotADirectoryError):
                continue  # each scan is missed
            except OSError as error:
                problem = f"data.{setting}: {folder} cannot be read ({error.strerror})"
                return Fault("", problem, "change its permissions, or name another folder", "permission")
    return None


def faults_among(
    config: Config, facts: Mapping[str, ScanFacts], parts: Sequence[str], beside: Sequence[str] = ()
) -> list[Fault]:
    """Faults of parts of the split, as far as facts are known.

    Args:
        beside: parts that are only compared with the others; their scans may be faulty or missing.
    """
    members = {part: config.part(part) for part in (*parts, *beside)}
    faults = []
    if "atlases" in parts and not members["atlases"]:
        remedy = "label a typical scan (`lrls suggest-atlas` says which) and list it"
        faults.append(Fault("", "data.atlases lists no case, at least 1 is needed", remedy, "no-atlas"))
    if "unlabeled" in parts and not members["unlabeled"]:
        found = "data.unlabeled lists no case, at least 1 is needed"
        faults.append(Fault("", found, "list scans without labels", "no-unlabeled"))
    of_scans = {case: faults_of(config, scan_facts) for case, scan_facts in facts.items()}
    for case in dict.fromkeys(case for part in parts for case in members[part]):
        faults += of_scans.get(case, [])
    if "atlases" in parts and members["atlases"]:
        labels = [facts[case].label for case in members["atlases"] if not of_scans.get(case, ["unknown"])]
        if len(labels) == len(members["atlases"]) and all(labels):
            present = {index for label in labels if label for index in label.classes}
            remedy = "correct its value in structures, or label it in an atlas"
            faults += [
                Fault("", f"structure {name} is in no atlas", remedy, "in-no-atlas")
                for index, name in enumerate(config.structures, start=1)
                if index not in present
            ]
    for part in HELD_OUT:
        labels = [facts[case].label for case in members[part] if case in facts] if part in parts else []
        if labels and all(label and not label.faults and not any(label.classes) for label in labels):
            found = f"no label map of data.{part} holds any of the structures"
            faults.append(Fault("", found, "correct their values in structures", "no-structures"))
    faults += [fault for fault in _sizes(config, _geometries(facts), parts, beside) if fault.stops]
    voxels = {case: scan_facts.image.voxels for case, scan_facts in facts.items()}
    return faults + leaks(members, {case: digest for case, digest in voxels.items() if digest})


def notices_among(
    config: Config, facts: Mapping[str, ScanFacts], parts: Sequence[str], beside: Sequence[str] = ()
) -> list[Fault]:
    """What is told of parts of the split and stops nothing; scans as in `faults_among`."""
    cases = dict.fromkeys(case for part in parts for case in config.part(part))
    notices = [notice for case in cases if case in facts for notice in notices_of(facts[case])]
    notices += [notice for notice in _sizes(config, _geometries(facts), parts, beside) if not notice.stops]
    if "atlases" in parts:
        notices += _lacking(config, facts)
    geometries = _geometries({case: facts[case] for case in cases if case in facts})
    return notices + unit_notice({case: extent_mm(geometry) for case, geometry in geometries.items()})


def _lacking(config: Config, facts: Mapping[str, ScanFacts]) -> list[Fault]:
    """Atlases without a structure that another atlas has."""
    classes = {
        case: set(label.classes) for case in config.part("atlases") if case in facts and (label := facts[case].label)
    }
    anywhere = {index for present in classes.values() for index in present}
    names = list(config.structures)
    notices = []
    for case, present in classes.items():
        if missing := [names[index - 1] for index in sorted(anywhere - present - {0})]:
            listed = ", ".join(missing[:MOST_NAMES]) + (
                f" and {len(missing) - MOST_NAMES} more" * (len(missing) > MOST_NAMES)
            )
            found = f"atlas lacks {listed}, which another atlas has"
            remedy = "its votes do not count there; label it if the scan shows it"
            notices.append(Fault(case, found, remedy, "atlas-lacks-structure", "notice"))
    return notices


def _geometries(facts: Mapping[str, ScanFacts]) -> dict[str, Geometry]:
    return {case: known.image.geometry for case, known in facts.items() if known.image.geometry}


def _sizes(
    config: Config, geometries: Mapping[str, Geometry], parts: Sequence[str], beside: Sequence[str]
) -> list[Fault]:
    """Scans of another size than the others, or beside the first atlas where headers alone say how scans lie.

    Scans of training are not compared with those held out.
    """
    told = {case for part in parts for case in config.part(part)}
    compared = {case for part in beside if part not in HELD_OUT for case in config.part(part)} | told
    extents = {case: extent_mm(geometry) for case, geometry in geometries.items() if case in compared}
    first = next(iter(config.part("atlases")), "")
    faults = size_faults(extents, told, first)
    if config.preprocess.align == "none" and first in geometries:
        margin_mm = config.preprocess.margin_mm or max(
            MARGIN_VOXELS * min(geometries[first].spacing), MARGIN_SHARE * extents[first]
        )
        sized = {fault.case for fault in faults}
        faults += [
            fault
            for fault in beyond_reach(geometries, told, first, 2 * margin_mm)
            if config.preprocess.shape is None and fault.case not in sized
        ]
    return faults


def cheap_faults(
    config: Config, looked: Mapping[str, Looked], parts: Sequence[str], beside: Sequence[str] = ()
) -> list[Fault]:
    """Faults that are visible without decoding a scan: in headers, and files that two parts share."""
    checked = {case for part in parts for case in config.part(part)}
    faults = [fault for case, scan in looked.items() if case in checked for fault in header_faults(scan)]
    members = {part: config.part(part) for part in (*parts, *beside)}
    images = {case: scan.image for case, scan in looked.items() if isinstance(scan.image, Content)}
    headers = {case: _header(image, case) for case, image in images.items()}
    geometries = {case: geometry for case, geometry in headers.items() if geometry}
    faults += [fault for fault in _sizes(config, geometries, parts, beside) if fault.stops]
    return faults + leaks(members, {case: image.digest for case, image in images.items() if image.digest})


def _header(image: Content, case: str) -> Geometry | None:
    try:
        return intake.header_geometry(image.path, case)
    except IntakeError:
        return None  # decoding it reports why


def header_faults(looked: Looked) -> list[Fault]:
    """Missing files; otherwise differences between the headers of channels, and of label map and image."""
    missing = [fault for fault in (looked.image, looked.label) if isinstance(fault, Fault)]
    if missing or (looked.label is None and not looked.more):
        return missing
    channels: list[Geometry | None] = []
    for number, content in enumerate(looked.images):
        assert isinstance(content, Content)
        try:
            channels.append(intake.header_geometry(content.path, looked.case))
        except IntakeError as error:
            return [of_channel(error.fault, number, len(looked.images))]
    faults = channel_grid_faults(channels, looked.case)
    if isinstance(looked.label, Content):
        try:
            label = intake.header_geometry(looked.label.path, looked.case, "label map")
        except IntakeError as error:
            return [error.fault]
        faults += geometry_faults(channels[0], label, looked.case) if channels[0] and label else []
    return faults


def scored_faults(config: Config, cases: Sequence[str]) -> list[Fault]:
    """Faults of label maps to score with; a missing image is reported elsewhere. Label maps are decoded, images not."""
    labelled = dict.fromkeys(cases, True)
    headers = Known(config, fresh=True).look(labelled).values()  # what they say makes no workspace
    faults = [fault for looked in headers for fault in header_faults(looked) if fault != looked.image]
    if faults:
        return faults
    return [fault for looked in Known(config).look(labelled).values() for fault in label_faults(config, looked)]


def has_label(config: Config, case: str) -> bool:
    """Whether a case has a label map."""
    try:
        intake.label_file(config, case)
    except IntakeError:
        return False
    return True

"""All faults of a cohort: in its scans, in its parts, and between parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from stages.config import Config
from stages.data import intake
from stages.data.contents import Content
from stages.data.facts import Known, Looked, ScanFacts, examine, faults_of
from stages.data.faults import Fault, IntakeError, leaks
from stages.data.geometry import geometry_faults
from stages.processes import Processes

WORTH_PROCESSES = 2**26  # bytes of files; fewer are read faster than processes start


def cohort_faults(config: Config, parts: Sequence[str], *, labels: bool = True) -> list[Fault]:
    """All faults of the given parts of the split. Decodes every scan and stores no facts.

    Args:
        parts: the parts to check.
        labels: whether label maps are read.
    """
    if fault := folder_fault(config):
        return [fault]
    looked = Known(config, fresh=True).look(cases_of(config, parts, labels=labels))
    return faults_among(config, dict(examine_all(config, looked)), parts)


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
    """Facts of scans by case; decodes scans without known facts, in several processes if the files are large."""
    arguments = [(config, scan) for scan in looked.values()]
    if sum(content.num_bytes for scan in looked.values() for content in scan.contents) < WORTH_PROCESSES:
        yield from (facts_of(config, scan) for scan in looked.values())
        return
    with Processes(config.preprocess.workers) as processes:
        yield from processes.each(facts_of, arguments)


def facts_of(config: Config, looked: Looked) -> tuple[str, ScanFacts]:
    return looked.case, examine(config, looked, whole=False).facts


def folder_fault(config: Config) -> Fault | None:
    """A fault if the folders of the scans are not there or cannot be read; otherwise None."""
    if not config.data.folder.is_dir():
        return Fault("", f"data.folder: {config.data.folder} is not a folder", "correct it")
    for setting in ("images", "labels"):
        for folder in (config.data.folder, *intake.sub_folders(config, getattr(config.data, setting))):
            try:
                next(folder.iterdir(), None)
            except (FileNotFoundError, NotADirectoryError):
                continue  # each scan is missed
            except OSError as error:
                problem = f"data.{setting}: {folder} cannot be read ({error.strerror})"
                return Fault("", problem, "change its permissions, or name another folder")
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
    if not members.get("atlases", ["given"]):
        remedy = "label a typical scan (`lrls suggest-atlas` says which) and list it"
        faults.append(Fault("", "data.atlases lists no case, at least 1 is needed", remedy))
    if not members.get("unlabeled", ["given"]):
        faults.append(Fault("", "data.unlabeled lists no case, at least 1 is needed", "list scans without labels"))
    of_scans = {case: faults_of(config, scan_facts) for case, scan_facts in facts.items()}
    for case in dict.fromkeys(case for part in parts for case in members[part]):
        faults += of_scans.get(case, [])
    if "atlases" in parts and members["atlases"]:
        labels = [facts[case].label for case in members["atlases"] if not of_scans.get(case, ["unknown"])]
        if len(labels) == len(members["atlases"]) and all(labels):
            present = {index for label in labels if label for index in label.classes}
            remedy = "correct its value in structures, or label it in an atlas"
            faults += [
                Fault("", f"structure {name} is in no atlas", remedy)
                for index, name in enumerate(config.structures, start=1)
                if index not in present
            ]
    voxels = {case: scan_facts.image.voxels for case, scan_facts in facts.items()}
    return faults + leaks(members, {case: digest for case, digest in voxels.items() if digest})


def cheap_faults(
    config: Config, looked: Mapping[str, Looked], parts: Sequence[str], beside: Sequence[str] = ()
) -> list[Fault]:
    """Faults that are visible without decoding a scan: in headers, and files that two parts share."""
    checked = {case for part in parts for case in config.part(part)}
    faults = [fault for case, scan in looked.items() if case in checked for fault in header_faults(scan)]
    members = {part: config.part(part) for part in (*parts, *beside)}
    images = {case: scan.image for case, scan in looked.items() if isinstance(scan.image, Content)}
    return faults + leaks(members, {case: image.digest for case, image in images.items() if image.digest})


def header_faults(looked: Looked) -> list[Fault]:
    """Missing files; otherwise differences between the label map's header and the image's."""
    missing = [fault for fault in (looked.image, looked.label) if isinstance(fault, Fault)]
    if missing or not isinstance(looked.image, Content) or not isinstance(looked.label, Content):
        return missing
    try:
        image = intake.header_geometry(looked.image.path, looked.case)
        label = intake.header_geometry(looked.label.path, looked.case, "label map")
    except IntakeError as error:
        return [error.fault]
    return geometry_faults(image, label, looked.case) if image and label else []


def scored_faults(config: Config, cases: Sequence[str]) -> list[Fault]:
    """Faults of label maps to score with, as far as their headers show; a missing image is reported elsewhere."""
    faults = []
    for looked in Known(config, fresh=True).look(dict.fromkeys(cases, True)).values():
        faults += [fault for fault in header_faults(looked) if fault != looked.image]
    return faults


def has_label(config: Config, case: str) -> bool:
    """Whether a case has a label map."""
    try:
        intake.label_file(config, case)
    except IntakeError:
        return False
    return True

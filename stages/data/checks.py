"""Every fault of a cohort: of its scans, of its parts, and between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from stages.config import Config
from stages.data import intake
from stages.data.contents import Content
from stages.data.facts import Known, Looked, ScanFacts, examine, faults_of
from stages.data.faults import Fault, IntakeError, leaks
from stages.data.geometry import geometry_faults, header_geometry
from stages.processes import Processes

WORTH_PROCESSES = 2**26  # bytes of files; fewer are read before a process has started


def cohort_faults(config: Config, parts: Sequence[str], *, labels: bool = True) -> list[Fault]:
    """Everything that is wrong with the given parts of the split; decodes every scan and keeps nothing.

    Args:
        parts: what is checked.
        labels: whether label maps are read at all.
    """
    if fault := folder_fault(config):
        return [fault]
    looked = Known(config, fresh=True).look(cases_of(config, parts, labels=labels))
    return faults_among(config, dict(examine_all(config, looked)), parts)


def scan_faults(config: Config, case: str, *, label: bool) -> list[Fault]:
    """Everything that is wrong with a scan, and with its label map if asked; decodes it."""
    looked = Known(config, fresh=True).look({case: label})
    return faults_of(config, examine(config, looked[case]).facts)


def cases_of(
    config: Config, parts: Sequence[str], beside: Sequence[str] = (), *, labels: bool = True
) -> dict[str, bool]:
    """The cases of parts in their order, and whether the label map is read, too.

    Args:
        beside: parts that are only compared with the others.
    """
    labelled = {case for part in parts if part != "unlabeled" and labels for case in config.part(part)}
    return {case: case in labelled for part in (*parts, *beside) for case in config.part(part)}


def examine_all(config: Config, looked: Mapping[str, Looked]) -> Iterator[tuple[str, ScanFacts]]:
    """Decode what is not known of scans; in processes where that is much."""
    arguments = [(config, each) for each in looked.values()]
    if sum(content.num_bytes for each in looked.values() for content in each.contents) < WORTH_PROCESSES:
        yield from (facts_of(*each) for each in arguments)
        return
    with Processes(config.preprocess.workers) as processes:
        yield from processes.each(facts_of, arguments)


def facts_of(config: Config, looked: Looked) -> tuple[str, ScanFacts]:
    return looked.case, examine(config, looked, whole=False).facts


def folder_fault(config: Config) -> Fault | None:
    if config.data.folder.is_dir():
        return None
    return Fault("", f"data.folder: {config.data.folder} is no folder", "correct it")


def faults_among(
    config: Config, facts: Mapping[str, ScanFacts], parts: Sequence[str], beside: Sequence[str] = ()
) -> list[Fault]:
    """What is wrong with parts of the split, as far as facts are known.

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
    of_scans = {case: faults_of(config, each) for case, each in facts.items()}
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
    return faults + leaks(members, {case: each.image.voxels for case, each in facts.items() if each.image.voxels})


def cheap_faults(
    config: Config, looked: Mapping[str, Looked], parts: Sequence[str], beside: Sequence[str] = ()
) -> list[Fault]:
    """Faults that show without decoding a scan: in its header, and in files that two parts share."""
    checked = {case for part in parts for case in config.part(part)}
    faults = [fault for case, each in looked.items() if case in checked for fault in header_faults(each)]
    members = {part: config.part(part) for part in (*parts, *beside)}
    images = {case: each.image for case, each in looked.items() if isinstance(each.image, Content)}
    return faults + leaks(members, {case: image.digest for case, image in images.items() if image.digest})


def header_faults(looked: Looked) -> list[Fault]:
    """A missing file, or a label map whose header says that it does not lie on its image."""
    missing = [each for each in (looked.image, looked.label) if isinstance(each, Fault)]
    if missing or not isinstance(looked.image, Content) or not isinstance(looked.label, Content):
        return missing
    image, label = header_geometry(looked.image.path), header_geometry(looked.label.path)
    return geometry_faults(image, label, looked.case) if image and label else []


def scored_faults(config: Config, cases: Sequence[str]) -> list[Fault]:
    """Faults of label maps to score with, as far as their headers tell; an image that is missing is told elsewhere."""
    faults = []
    for looked in Known(config, fresh=True).look(dict.fromkeys(cases, True)).values():
        found = header_faults(looked)
        faults += [each for each in found if each != looked.image]
    return faults


def has_label(config: Config, case: str) -> bool:
    """Whether a case has a label map at all."""
    try:
        intake.label_file(config, case)
    except IntakeError:
        return False
    return True

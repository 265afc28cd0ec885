"""The scans of a BIDS folder: which image of a session is taken, which label map goes with it, what is left out.

    <folder>/dataset_description.json
    <folder>/sub-<subject>[/ses-<session>]/anat/*_T1w.nii.gz                  images: one contrast for all scans
    <folder>/derivatives/<pipeline>/sub-<subject>[/ses-<session>]/anat/*_dseg.nii.gz     label maps, or beside images

A cohort has one contrast: T1w if there is any, otherwise the one that most sessions have. T1w and T2w of a session
seldom lie on one grid, so they are no channels by themselves. Of several pipelines, or kinds of label maps within one
(`desc-`, `seg-`, `atlas-`), one is taken, because label values differ between them: one that is called manual,
otherwise the one with the most scans.

Source: https://bids-specification.readthedocs.io, imaging derivatives
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.data.folders import NOT_PLAIN, Files, are_of_one_size, scans_below, stem_of
from stages.data.label_tables import ENDINGS
from stages.data.neutral import ending_of
from stages.errors import printable

DESCRIPTION = "dataset_description.json"
CONTRASTS = (
    "T1w", "T2w", "FLAIR", "PDw", "T2starw", "inplaneT1", "inplaneT2", "PDT2", "angio", "UNIT1", "T1map", "T2map",
    "T2starmap", "R1map", "R2map", "MTRmap", "ct", "CT",
)  # fmt: skip
OWN_SPACES = ("T1w", "T2w", "FLAIR", "orig", "scanner", "individual", "anat")
OF_KIND = ("desc", "seg", "atlas", "label", "res")
OF_LABELS = (*OF_KIND, "space", "den")  # entities that images do not have
MOST_SHOWN = 1


@dataclass(frozen=True)
class BidsName:
    """What a file's name says: its entities in order, and the suffix behind them."""

    path: Path
    entities: tuple[tuple[str, str], ...]
    suffix: str

    def get(self, entity: str) -> str:
        return dict(self.entities).get(entity, "")

    @property
    def session(self) -> tuple[str, str]:
        return self.get("sub"), self.get("ses")


def parsed(path: Path) -> BidsName | None:
    """A file's name by the rules of BIDS; None: it has no subject or no suffix."""
    *parts, suffix = stem_of(path).split("_")
    pairs = [re.fullmatch(r"([a-zA-Z]+)-([a-zA-Z0-9+]+)", part) for part in parts]
    if not parts or not all(pairs) or not re.fullmatch(r"[A-Za-z0-9]+", suffix) or not parts[0].startswith("sub-"):
        return None
    return BidsName(path, tuple((match[1], match[2]) for match in pairs if match), suffix)


def is_bids(folder: Path) -> bool:
    """Whether a folder says that it is BIDS and has a subject."""
    return (folder / DESCRIPTION).is_file() and any(_folders(folder, "sub-"))


def files_in_bids(folder: Path) -> Files:
    """The scans of a BIDS folder, raw or derivative; `left_out` says what was not taken, a line for each reason."""
    left_out: dict[str, list[Path]] = defaultdict(list)
    lines: list[str] = []
    images, labels = [], []
    for place in _anat_folders(folder, Path(), left_out):
        for path in scans_below(folder, place, lines):
            name = parsed(path)
            if name is None:
                left_out["no name as BIDS has them; rename it"].append(path)
            elif name.suffix == "dseg":
                labels.append(name)
            elif name.suffix not in CONTRASTS:
                left_out[f"{name.suffix} is no image to segment and no label map (_dseg)"].append(path)
            elif name.get("space") not in ("", *OWN_SPACES):
                left_out[f"in another space ({name.get('space')})"].append(path)
            else:
                images.append(name)
    for pipeline in _folders(folder / "derivatives", ""):
        base = Path("derivatives") / pipeline.name
        for place in _anat_folders(folder, base, None):
            found = (parsed(path) for path in scans_below(folder, place, lines))
            labels += [name for name in found if name and name.suffix == "dseg"]
    for path in sorted(path for path in folder.iterdir() if ending_of(path) and not path.name.startswith(".")):
        name = parsed(Path(path.name))
        is_map = name is not None and name.suffix == "dseg"
        reason = "a label map that no image goes with" if is_map else "not in a subject's folder anat"
        left_out[reason if path.name.isprintable() else NOT_PLAIN].append(Path(printable(path.name)))
    files = Files()
    maps = _one_kind(labels, left_out)
    for name in _one_image_each(images, maps, left_out):
        files.images[stem_of(name.path)] = name.path
        _give_label(folder, files, name, maps.get(name.session, []), left_out)
    sessions = {parsed_name.session for case in files.images if (parsed_name := parsed(files.images[case]))}
    for session, others in maps.items():
        if session not in sessions:
            left_out["a label map that no image goes with"] += [name.path for name in others]
    files.by_name.clear()
    files.left_out = [*_summed_up(left_out), *lines]
    return files


def label_table_folders(folder: Path, labels: Iterable[Path]) -> list[Path]:
    """Folders in which BIDS keeps tables of label values: of the label maps, and those above them."""
    places: dict[Path, None] = {}
    for label in labels:
        for parent in label.parents:
            places[folder / parent] = None
    return [place for place in places if any(place.glob(f"*{ending}") for ending in ENDINGS)]


def _folders(folder: Path, beginning: str) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError:
        return []
    is_open = (entry for entry in entries if not entry.name.startswith(".") and entry.name.isprintable())
    return [entry for entry in is_open if entry.is_dir() and entry.name.startswith(beginning)]


def _anat_folders(folder: Path, base: Path, left_out: dict[str, list[Path]] | None) -> list[Path]:
    """The folders `anat` of all subjects and sessions; folders of other kinds of data are left out."""
    found = []
    for subject in _folders(folder / base, "sub-"):
        for place in (subject, *_folders(subject, "ses-")):
            for kind in _folders(place, ""):
                if kind.name in ("anat", "ct"):
                    found.append(kind.relative_to(folder))
                elif left_out is not None and not kind.name.startswith("ses-"):
                    left_out[f"{kind.name} holds no anatomical images"].append(kind.relative_to(folder))
    return found


def _one_kind(labels: Sequence[BidsName], left_out: dict[str, list[Path]]) -> dict[tuple[str, str], list[BidsName]]:
    """Label maps of the kind that most scans have, by session."""
    kinds: dict[tuple[str, ...], list[BidsName]] = defaultdict(list)
    for name in labels:
        if name.get("space") not in ("", *OWN_SPACES):
            left_out[f"a label map in another space ({name.get('space')})"].append(name.path)
            continue
        if name.get("desc") == "lrls":
            left_out["label maps that lrls answered"].append(name.path)
            continue
        if name.get("hemi"):
            left_out["a label map of one hemisphere; half of the structures would be background"].append(name.path)
            continue
        place = name.path.parts[1] if name.path.parts[0] == "derivatives" else ""
        of_kind = (f"{key}-{value}" for key, value in name.entities if key in OF_KIND)
        kinds[(place, *of_kind)].append(name)
    if not kinds:
        return {}
    best = min(kinds, key=lambda kind: (not _is_manual(kind), -len({name.session for name in kinds[kind]}), kind))
    shown = " ".join(part for part in best if part) or "those beside the images"
    for kind, names in kinds.items():
        if kind != best:
            left_out[f"label maps of another kind than {shown}, which is taken"] += [n.path for n in names]
    by_session: dict[tuple[str, str], list[BidsName]] = defaultdict(list)
    for name in kinds[best]:
        by_session[name.session].append(name)
    return by_session


def _is_manual(kind: Sequence[str]) -> bool:
    return any("manual" in part.lower() for part in kind)


def _one_image_each(
    images: Sequence[BidsName], maps: dict[tuple[str, str], list[BidsName]], left_out: dict[str, list[Path]]
) -> list[BidsName]:
    """One image a session, all of one contrast; of several, the one that a label map's name fits best."""
    sessions: dict[tuple[str, str], list[BidsName]] = defaultdict(list)
    for name in images:
        sessions[name.session].append(name)
    frequency = Counter(suffix for names in sessions.values() for suffix in {name.suffix for name in names})
    if not frequency:
        return []
    contrast = min(frequency, key=lambda suffix: (suffix != "T1w", -frequency[suffix], CONTRASTS.index(suffix)))
    taken = []
    for session, names in sessions.items():
        fitting = [name for name in names if name.suffix == contrast]
        others = [name for name in names if name.suffix != contrast]
        if not fitting:
            left_out[f"its session has no {contrast}, the contrast of the others"] += [name.path for name in others]
            continue
        for name in others:
            left_out[f"{name.suffix} beside {contrast}; one contrast for all scans"].append(name.path)
        first = min(fitting, key=lambda name: (-_shared(name, maps.get(session, [])), len(name.entities), name.path))
        taken.append(first)
        left_out[f"a second {contrast} of its session"] += [name.path for name in fitting if name is not first]
    return taken


def _shared(image: BidsName, labels: Sequence[BidsName]) -> int:
    """How many of an image's entities the label map that fits it best has."""
    return max((len(set(image.entities) & set(label.entities)) for label in labels if _fits(image, label)), default=0)


def _fits(image: BidsName, label: BidsName) -> bool:
    """Whether what a label map's name says of its image is so; a run that it leaves out is any."""
    of_image = (pair for pair in label.entities if pair[0] not in OF_LABELS)
    return all(pair in image.entities for pair in of_image)


def _give_label(
    folder: Path, files: Files, image: BidsName, labels: Sequence[BidsName], left_out: dict[str, list[Path]]
) -> None:
    fitting = sorted(
        (label for label in labels if _fits(image, label)),
        key=lambda label: (-len(set(image.entities) & set(label.entities)), len(label.entities), label.path),
    )
    left_out["a label map of another image of its session"] += [n.path for n in labels if n not in fitting]
    for label in fitting:
        if stem_of(image.path) in files.labels:
            left_out["a second label map of its scan"].append(label.path)
        elif not are_of_one_size(folder / image.path, folder / label.path):
            left_out["a label map that is not of the size of its image"].append(label.path)
        else:
            files.labels[stem_of(image.path)] = label.path


def _summed_up(left_out: dict[str, list[Path]]) -> list[str]:
    """A line for each reason, label maps first: the first path, and how many more there are."""
    lines = []
    for reason, paths in sorted(left_out.items(), key=lambda item: "label map" not in item[0]):
        if paths:
            more = f" and {len(paths) - MOST_SHOWN} more" if len(paths) > MOST_SHOWN else ""
            lines.append(f"{paths[0].as_posix()}{more}: {reason}")
    return lines

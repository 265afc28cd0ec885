"""Which files of a folder are images, which are label maps, which of them belong together, and what is left out.

Names are compared without what says their role: `img0001` and `label0001`, `sub-01_T1w` and `sub-01_dseg`, `p01_0000`
and `p01.seg` are couples. Names that still differ are compared by their numbers. A couple of different names counts
only if its images are of one size.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.data.channels import split_name
from stages.data.dicom_files import series_in
from stages.data.faults import IntakeError
from stages.data.intake import header_geometry
from stages.data.neutral import SUFFIXES

DEEPEST = 6  # folders within folders
NOT_READ = (
    ".hdr", ".img", ".img.gz", ".mgz", ".mgh", ".gipl", ".gipl.gz", ".mnc", ".nia", ".nii.bz2", ".nii.xz", ".zip",
    ".tar", ".tgz", ".tar.gz", ".rec", ".vtk", ".vti", ".tif", ".tiff", ".npy", ".npz", ".mat", ".bval", ".h5", ".nhdr",
)  # fmt: skip
NOT_PLAIN = "a name that is not plain text; rename it"
LOOSE_DICOM = (".dcm", ".ima", ".dicom")
LABEL_ENDS = "dseg|probseg|segmentation|segm|segs|seg|labels|label|masks|mask|gt"  # on these words no image ends
LABEL_WORDS = f"{LABEL_ENDS}|lbl|groundtruth|truth|annotation|manual|roi|aseg"
IMAGE_WORDS = "images|image|img|im|scan|volume|vol|t1w|t1|t2w|t2star|t2|flair|pdw|pd|ct|mri|mr|orig|raw"
WORD_BEHIND = re.compile(rf"[-_. ](?:(?P<label>{LABEL_WORDS})|(?P<image>{IMAGE_WORDS}))$", re.IGNORECASE)
WORD_BEFORE = re.compile(rf"^(?:(?P<label>{LABEL_WORDS})|(?P<image>{IMAGE_WORDS}))(?:[-_. ]|(?=\d))", re.IGNORECASE)
OF_DERIVATIVES = re.compile(r"_(?:space|desc|label|atlas|res|den)-[A-Za-z0-9]+")  # BIDS entities of label maps alone
ENDS_AS_LABELS = re.compile(rf"[-_. ]({LABEL_ENDS})$", re.IGNORECASE)


@dataclass(frozen=True)
class Name:
    """A file's name: without its ending, the key that it shares with its partner, and the words that were cut off."""

    stem: str
    key: str
    labels: tuple[str, ...]
    images: tuple[str, ...]


@dataclass
class Files:
    """Images and label maps by case, as paths in the folder; `left_out` has a line for every other file."""

    images: dict[str, Path] = field(default_factory=dict)  # of several channels, the first one
    channels: dict[str, list[Path]] = field(default_factory=dict)  # of cases whose images are numbered as channels
    labels: dict[str, Path] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    by_name: list[tuple[Path, Path]] = field(default_factory=list)  # couples of different names
    doubled: set[str] = field(default_factory=set)  # cases of which another file has the name


def name_of(path: Path) -> Name:
    """What a file's name says."""
    stem = stem_of(path)
    words: dict[str, list[str]] = {"label": [], "image": []}
    key = OF_DERIVATIVES.sub("", stem.removesuffix("_0000"))
    for pattern in (WORD_BEHIND, WORD_BEFORE):
        while (match := pattern.search(key)) and (rest := key[: match.start()] + key[match.end() :]):
            for role, word in match.groupdict().items():
                words[role] += [word.lower()] if word else []
            key = rest
    return Name(stem, key.lower(), tuple(words["label"]), tuple(words["image"]))


def stem_of(path: Path) -> str:
    """A file's name without its ending, however that is spelt."""
    lower = path.name.lower()
    suffix = next((suffix for suffix in SUFFIXES if lower.endswith(suffix)), "")
    return path.name[: len(path.name) - len(suffix)]


def files_in(folder: Path, image_folders: Sequence[str], label_folders: Sequence[str]) -> Files:
    """The scans of a folder.

    Args:
        image_folders, label_folders: in it; "." stands for images and label maps beside each other.

    """
    files = Files()
    images = [path for name in image_folders for path in scans_below(folder, Path(name), files.left_out)]
    labels = [path for name in label_folders for path in scans_below(folder, Path(name), files.left_out)]
    images, beside = _sorted_by_role(images, mixed=not label_folders)
    labels += beside
    channels = _channels(images, {name_of(path).stem for path in labels})
    others = {path for group in channels.values() for path in group[1:]}
    images = _one_contrast([path for path in images if path not in others], files.left_out)
    for path in images:
        case = split_name(path)[0] if path in channels else stem_of(path).removesuffix("_0000")
        if case in files.images:  # series of one name in several folders
            case = "_".join([*path.parent.parts, case]) if path.parent != files.images[case].parent else case
        if case in files.images:
            files.doubled.add(case)
            files.left_out.append(f"{path.as_posix()}: a second file of this name; keep one of them")
        else:
            files.images[case] = path
            if path in channels:
                files.channels[case] = channels[path]
    waiting = _exactly_named(files, labels)
    waiting = _alike(folder, files, waiting, lambda path: name_of(path).key)
    waiting = _alike(folder, files, waiting, lambda path: "-".join(re.findall(r"\d+", stem_of(path))))
    files.left_out += [f"{path.as_posix()}: a label map that no image goes with" for path in waiting]
    # Label maps come first: without them, scans count as unlabelled.
    files.left_out.sort(key=lambda line: "label map" not in line and not line.startswith(tuple(label_folders)))
    return files


def scans_below(folder: Path, inside: Path, left_out: list[str]) -> list[Path]:
    """Files of volumes and folders of DICOM series below a sub-folder, in order of their paths."""
    found, hidden, loose = [], 0, Counter[Path]()

    def walk(place: Path, depth: int) -> None:
        nonlocal hidden
        try:
            entries = sorted((folder / place).iterdir(), key=lambda path: path.name)
        except OSError:
            if not depth:  # the folder of all images or label maps
                raise
            left_out.append(f"{place.as_posix()}: a folder that cannot be read; change its permissions")
            return
        for entry in entries:
            path, lower = place / entry.name, entry.name.lower()
            if not entry.name.isprintable():  # control characters, or bytes that are not UTF-8
                left_out.append(f"{_printable(path)}: {NOT_PLAIN}")
            elif entry.name.startswith("."):
                hidden += lower.endswith(SUFFIXES)
            elif entry.is_symlink() and not entry.exists():
                left_out.append(f"{path.as_posix()}: a link to a file that is not there")
            elif entry.is_dir():
                if (entry / "artifact.json").is_file() or depth == DEEPEST:
                    continue  # what stages made
                if is_series(entry):
                    found.append(path)
                else:
                    walk(path, depth + 1)
            elif lower.endswith(SUFFIXES):
                if _is_empty(entry):
                    left_out.append(f"{path.as_posix()}: an empty file; copy it again")
                elif lower.endswith((".mha", ".mhd")) and not entry.name.endswith((".mha", ".mhd")):
                    left_out.append(f"{path.as_posix()}: write its ending in small letters")
                else:
                    found.append(path)
            elif lower.endswith(LOOSE_DICOM):
                loose[place] += 1
            elif lower.endswith(NOT_READ):
                left_out.append(f"{path.as_posix()}: files of this kind are not read; convert it to .nii.gz")

    walk(inside, 0)
    if inside != Path() and not found and not loose and is_series(folder / inside):
        left_out.append(f"{inside.as_posix()}: loose DICOM files; put each series into a folder of its own")
    for place, number in loose.items():
        line = f"{place.as_posix()}: {number} loose DICOM file{'s' * (number > 1)}"
        left_out.append(f"{line}; put each series into a folder of its own")
    if hidden:
        left_out.append(f"{hidden} hidden file{'s' * (hidden > 1)} in {inside.as_posix()}")
    direct = [path for path in found if path.parent == inside and (folder / path).is_file()]
    is_bids = any(path.name.startswith("sub-") for path in found)
    if inside == Path() and direct and not is_bids:  # scans in folders beside scans are other things
        deeper = [path for path in found if path.parent != inside]
        if deeper:
            left_out.append(f"{len(deeper)} scans in sub-folders, such as {deeper[0].as_posix()}")
        found = [path for path in found if path.parent == inside]
    return sorted(found, key=lambda path: (path.parent if is_bids else inside, stem_of(path), path.name))


def is_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files."""
    try:
        others = any(path.is_file() and not path.name.lower().endswith(SUFFIXES) for path in folder.iterdir())
        return others and bool(series_in(folder, nested=False))
    except OSError:
        return False


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return True


def _printable(path: Path) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in path.as_posix())


def _sorted_by_role(paths: Sequence[Path], *, mixed: bool) -> tuple[list[Path], list[Path]]:
    """Images, and label maps that lie among them: named as one, beside an image of the same key.

    Args:
        mixed: there is no folder of label maps, so a file that ends as label maps do is one, whatever is beside it.
    """
    names = {path: name_of(path) for path in paths}
    keys_of_images = {name.key for name in names.values() if not name.labels}
    labels = {
        path
        for path, name in names.items()
        if name.labels and (name.key in keys_of_images or (mixed and ENDS_AS_LABELS.search(name.stem)))
    }
    return [path for path in paths if path not in labels], [path for path in paths if path in labels]


def _channels(images: Sequence[Path], labelled: set[str]) -> dict[Path, list[Path]]:
    """The channels of scans as nnU-Net names them, `<case>_0000`, `<case>_0001`, ...: all by the first one.

    Numbered scans are no channels: a label map `<case>_0001` is that of one. Otherwise numbers are channels if a label
    map is named without them, or if there are `_0000`, several of them or in nnU-Net's folders.

    Args:
        labelled: names of the label maps, without endings.
    """
    groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in images:
        name, number = split_name(path)
        if number is not None:
            groups[path.parent, name].append(path)
    of_nnunet = any(place.parts[:1] in (("imagesTr",), ("imagesTs",)) for place, _ in groups)
    of_labels = any(name in labelled for _, name in groups)
    beginnings = sum(any(split_name(path)[1] == 0 for path in paths) for paths in groups.values())
    numbered = {stem_of(path) for paths in groups.values() for path in paths if split_name(path)[1]}
    if numbered & labelled or not (of_labels or beginnings > (0 if of_nnunet else 1)):
        return {}
    in_order = (sorted(paths, key=lambda path: split_name(path)[1] or 0) for paths in groups.values())
    return {paths[0]: paths for paths in in_order}


def _one_contrast(images: Sequence[Path], left_out: list[str]) -> list[Path]:
    """Of images that differ in their contrast's name alone, the one of the most frequent contrast."""
    names = {path: name_of(path) for path in images}
    frequency = Counter(words for path in images if (words := names[path].images))
    by_key: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in images:
        by_key[path.parent, names[path].key if names[path].images else names[path].stem].append(path)
    kept = []
    for group in by_key.values():
        first = min(group, key=lambda path: (-frequency[names[path].images], path.name))
        kept.append(first)
        left_out += [f"{path.as_posix()}: beside {first.name}; one image per scan" for path in group if path != first]
    return kept


def _exactly_named(files: Files, labels: Sequence[Path]) -> list[Path]:
    """Give label maps to the images of their name; returns the others."""
    waiting = []
    for path in labels:
        case = stem_of(path).removesuffix("_0000")
        if case not in files.images:
            waiting.append(path)
        elif case in files.labels:
            files.doubled.add(case)
            files.left_out.append(f"{path.as_posix()}: a second label map of this name; keep one of them")
        else:
            files.labels[case] = path
    return waiting


def _alike(folder: Path, files: Files, labels: Sequence[Path], key_of: Callable[[Path], str]) -> list[Path]:
    """Give label maps to the images that alone have their key; returns the others."""
    free = {case: path for case, path in files.images.items() if case not in files.labels}
    cases, maps = _by_key(free.items(), key_of), _by_key(((path, path) for path in labels), key_of)
    waiting = []
    for path in labels:
        key = key_of(path)
        rivals = sorted(maps.get(key, []), key=_rank)
        if not key or len(cases.get(key, [])) != 1:
            waiting.append(path)
        elif path != rivals[0] or (len(rivals) > 1 and _rank(rivals[1]) == _rank(path)):
            files.left_out.append(f"{path.as_posix()}: one of {len(rivals)} label maps of a scan; keep one of them")
        elif not are_of_one_size(folder / free[cases[key][0]], folder / path):
            files.left_out.append(f"{path.as_posix()}: not of the size of {free[cases[key][0]].as_posix()}")
        else:
            files.labels[cases[key][0]] = path
            files.by_name.append((free[cases[key][0]], path))
    return waiting


def _by_key(paths: Iterable[tuple[Any, Path]], key_of: Callable[[Path], str]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = defaultdict(list)
    for item, path in paths:
        groups[key_of(path)].append(item)
    return groups


def _rank(path: Path) -> int:
    """Segmentations come before masks, which often hold the brain or body alone."""
    return int(bool({"mask", "masks"} & set(name_of(path).labels)))


def are_of_one_size(image: Path, label: Path) -> bool:
    """Whether a label map may be an image's, as far as the headers say."""
    try:
        of_image, of_label = header_geometry(image, ""), header_geometry(label, "", "label map")
    except IntakeError:
        return True  # `lrls check` says what is wrong with it
    return not of_image or not of_label or of_image.size == of_label.size


def found_by_name(case: str, paths: Iterable[Path], folders: Sequence[str]) -> bool:
    """Whether `find_file` finds a case's files in these folders by its id alone."""
    return all(
        path.parent.as_posix() in folders
        and (
            path.name == case
            or any(path.name == f"{case}{end}{suffix}" for end in ("", "_0000") for suffix in SUFFIXES)
        )
        for path in paths
    )

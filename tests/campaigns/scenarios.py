"""What campaigns run: every command of `lrls` at least once, each in a workspace that has what it reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import yaml
from conftest import SETTINGS, Project, merged, write_scans
from dicoms import phantom, write_slices

BRBS = ("--method", "brbs")
IMAGES = tuple(f"scans/images/test_{number}.nii.gz" for number in (1, 2))
SERIES = ("dicom", "--rtstruct", "--format", "seg.nrrd")
NNUNET = ("--to", "nnunet", "--couples", "2", "--out", "Dataset101_lrls")
FORMS = ("--probabilities", "--transforms", "--bids")
LEVELS: dict[str, tuple[tuple[str, ...], ...]] = {  # in order; each has what the ones before it made
    "scans": (),
    "cohort": (("preprocess",),),
    "registered": (("train-reg", *BRBS), ("train-reg", "--method", "voxelmorph")),
    "generated": (("generate", *BRBS),),
    "trained": (("train-seg", *BRBS), ("preprocess", "--part", "test")),
    "scored": (
        ("eval", *BRBS),
        ("run", "--method", "unet"),
        ("calibrate", *BRBS, "--couples", "9"),
        ("export", *BRBS, "--out", "model.zip"),
    ),
}
SMALL = {
    "preprocess": {"shape": [16, 16, 16], "spacing_mm": 3.0},
    "train_reg": {"ema": 0.5},
    "train_seg": {"ema": 0.5},
    "generate": {"samples": 3},
    "data": {"folder": "scans"},
}


@dataclass(frozen=True)
class Scenario:
    """A command in a workspace.

    Args:
        level: of `LEVELS`.
        words: the command; `None` stands for the configuration file.
        told_by_scan: scans that fail are told a line each, and the others go on; then there is no "lrls:" line.
    """

    name: str
    level: str
    words: tuple[str | None, ...]
    told_by_scan: bool = False

    @property
    def command(self) -> str:
        assert self.words[0]
        return self.words[0]

    @property
    def argv(self) -> list[str]:
        return ["lrls", *("lrls.yaml" if word is None else word for word in self.words)]

    def with_scheduler(self, file: Path) -> Scenario:
        """The same with the workers of a Dask scheduler."""
        return replace(self, words=(*self.words, "--scheduler", str(file)))


def of(name: str, level: str, *options: str, command: str | None = None, told_by_scan: bool = False) -> Scenario:
    """A command whose first argument is the configuration file."""
    return Scenario(name, level, (command or name, None, *options), told_by_scan)


SCENARIOS = (
    Scenario("init", "scans", ("init", "scans", "--output", "new.yaml"), told_by_scan=True),
    of("check", "scans", told_by_scan=True),
    of("suggest-atlas", "scans"),
    of("preprocess", "scans"),
    of("preprocess rigid", "scans", "--set", "preprocess.align=rigid", command="preprocess"),
    of("preprocess test", "trained", "--part", "dev", command="preprocess"),
    of("train-reg", "cohort", *BRBS),
    of("generate", "registered", *BRBS),
    of("generate propagated", "registered", "--method", "voxelmorph", command="generate"),
    of("train-seg", "generated", *BRBS),
    of("eval", "trained", *BRBS),
    of("plan", "cohort", "--budget", "90s", "--force"),
    of("run", "cohort", "--method", "unet"),
    of("run report", "trained", *BRBS, "--report", "pages", command="run"),
    of("predict", "scored", *IMAGES, *BRBS, *FORMS, "--out", "out", told_by_scan=True),
    Scenario("predict model", "scored", ("predict", "model.zip", *IMAGES, "--out", "out"), told_by_scan=True),
    Scenario("predict dicom", "scored", ("predict", "model.zip", *SERIES, "--out", "out"), told_by_scan=True),
    of("calibrate", "trained", *BRBS, "--couples", "9"),
    of("export", "scored", *BRBS, "--out", "brbs.zip"),
    of("export onnx", "scored", "--method", "unet", "--to", "onnx", "--out", "onnx", command="export"),
    of("export monai", "scored", "--method", "unet", "--to", "monai", "--out", "monai", command="export"),
    of("export nnunet", "scored", *BRBS, *NNUNET, command="export"),
    of("suggest-next", "scored", *BRBS, "-n", "1"),
    of("review", "scored", "ratings.tsv", "--corrected", "corrected"),
    of("compare", "scored", "--method", "unet", *BRBS),
    of("report", "scored", "--method", "unet", *BRBS, "--out", "pages"),
    of("report unlabeled", "scored", *BRBS, "--unlabeled", "--out", "pages", command="report"),
    of("sweep", "cohort", "train_seg.steps=2,3", "--method", "unet"),
    of("slurm", "scans", *BRBS, "--seed", "0", "--seed", "1"),
    Scenario("methods", "scans", ("methods",)),
    of("history", "scored"),
    of("info", "scored"),
    Scenario("phantom", "scans", ("phantom", "phantoms", "--scans", "4")),
)  # fmt: skip
ON_DASK = (  # what workers do in them: read and align, register by SyN, answer, register for scores
    of("preprocess", "scans", "--set", "preprocess.align=rigid"),
    of("generate", "cohort", "--method", "syn"),
    of("predict", "scored", *IMAGES, *BRBS, *FORMS, "--out", "out", told_by_scan=True),
    of("eval", "trained", "--method", "syn"),
)


def commands_of_the_program() -> set[str]:
    """Names of all commands, as the program itself knows them."""
    from lrls_cli.main import app

    return {each.name or each.callback.__name__.replace("_", "-") for each in app.registered_commands if each.callback}


def missing() -> set[str]:
    """Commands that no scenario runs."""
    return commands_of_the_program() - {scenario.command for scenario in SCENARIOS}


def chosen(names: Sequence[str]) -> list[Scenario]:
    """Scenarios of a name or command; all where none is named."""
    found = [each for each in SCENARIOS if not names or each.name in names or each.command in names]
    assert found, f"no scenario is named {', '.join(names)}"
    return found


class Workspaces:
    """Folders that trials copy, made once and only as far as they are needed.

    Args:
        run: runs a command in a folder to its end, undisturbed.
    """

    def __init__(self, folder: Path, run: Callable[[Path, list[str]], None]) -> None:
        self.folder, self.run = folder, run

    def __getitem__(self, level: str) -> Path:
        names = list(LEVELS)
        place = self.folder / level
        if place.exists():
            return place
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        if level == names[0]:
            write_project(work)
        else:
            shutil.copytree(self[names[names.index(level) - 1]], work, symlinks=True)
        for words in LEVELS[level]:
            self.run(work, ["lrls", words[0], "lrls.yaml", *words[1:]])
        return work.rename(place)


def write_project(folder: Path) -> Project:
    """Scans, a DICOM series, ratings, corrected label maps and the configuration."""
    write_scans(folder / "scans")
    settings = merged(SETTINGS, SMALL)
    (folder / "lrls.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    write_slices(folder / "dicom" / "series", phantom((8, 12, 12)), at=_centred(8))
    cells = ("case", "rating", "note", "correct", "exclude", "label_next")
    rows = [cells, ("free_1", "2", "cut", "yes", "", ""), ("free_2", "4", "", "", "", "yes")]
    (folder / "ratings.tsv").write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "corrected").mkdir()
    label = sitk.ReadImage(str(folder / "scans" / "labels" / "free_1.nii.gz"))
    sitk.WriteImage(label, str(folder / "corrected" / "free_1.nii.gz"))
    return Project(folder)


def _centred(slices: int) -> np.ndarray:
    """Positions of slices round the origin, where the phantoms' centres lie (N, 3), mm."""
    return np.array([(-9.0, -4.5, 2.5 * (number - slices / 2)) for number in range(slices)])

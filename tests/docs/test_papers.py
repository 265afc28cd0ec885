"""The ready configurations of the papers' data, on phantoms of the same geometry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import Done, Project

from stages.artifacts.cohort import Cohort
from stages.artifacts.store import versions
from stages.config import Config, load_config
from stages.methods import find_method, settings_of

PAPERS = Path(__file__).parents[2] / "docs" / "papers"
CASES = {"atlas_1shot": ["p1"], "unlabeled": ["p2"], "dev": [], "test": ["p3"]}
OUTSIDE, TISSUE = -1000, 100  # HU of air and of what lies between structures


@dataclass(frozen=True)
class Published:
    """How a data set is published.

    Args:
        size, spacing_mm: of a scan along the axes of its file.
        axes: what these are, as ITK names them.
        body_mm: what the structures fill, from left to right, front to back and foot to head.
        coarser: by how much the phantom is coarser than the scan.
        is_ct: values are HU, and may not follow percentiles.
    """

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    axes: str
    body_mm: tuple[float, float, float]
    coarser: int
    is_ct: bool = True


PUBLISHED = {
    "mm-whs": Published((512, 512, 256), (0.39, 0.39, 0.625), "LPS", (120, 120, 120), 12),
    "candi": Published((256, 128, 256), (0.9375, 1.5, 0.9375), "LIA", (138, 170, 130), 7, is_ct=False),
    "oasis": Published((160, 192, 224), (1, 1, 1), "LIA", (138, 175, 150), 4, is_ct=False),
    "lpba40": Published((181, 217, 181), (1, 1, 1), "RAS", (138, 172, 140), 4, is_ct=False),
    "bcv": Published((192, 160, 256), (2, 2, 2), "RAS", (270, 180, 260), 6),
    "verse": Published((512, 1200, 72), (0.35, 0.35, 2.0), "PIR", (90, 110, 330), 6),
    "tcia": Published((512, 512, 224), (0.8, 0.8, 1.0), "LAS", (280, 200, 190), 12),
}


def phantom(published: Published, values: list[int], number: int) -> tuple[sitk.Image, sitk.Image]:
    """Image and label map: every value is a brick of its own, and the bricks fill the body."""
    random = np.random.default_rng(number)
    empty = sitk.Image([round(n / published.coarser) for n in published.size], sitk.sitkInt16)
    empty.SetSpacing([mm * published.coarser for mm in published.spacing_mm])
    empty = sitk.DICOMOrient(_turned(empty, published.axes), "LPS")
    size, spacing = np.array(empty.GetSize()), np.array(empty.GetSpacing())
    index = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), -1)
    stretched = np.array(published.body_mm) * random.uniform(0.95, 1.0, 3)
    place = (index - (size - 1) / 2 + random.uniform(-0.5, 0.5, 3)) * spacing / stretched + 0.5  # in [0, 1] of the body
    inside = ((place >= 0) & (place < 1)).all(-1)
    cells = np.maximum(
        1, np.ceil(len(values) ** (1 / 3) * np.array(published.body_mm) / np.cbrt(np.prod(published.body_mm)))
    )
    while cells.prod() < len(values):
        cells[cells.argmin()] += 1
    cell = np.floor(place.clip(0, 0.999) * cells) @ [cells[1] * cells[2], cells[2], 1]
    brick = (cell * len(values) / cells.prod()).astype(int)
    label = np.where(inside, np.array(values)[brick], 0)
    image = np.where(inside, TISSUE + 30 * (brick % 5), OUTSIDE if published.is_ct else 0)
    image = image + np.where(inside, random.normal(0, 4, image.shape), 0)
    pair = []
    for array, kind in ((image, np.int16), (label, np.uint16)):
        volume = sitk.GetImageFromArray(np.rint(array).astype(kind).transpose(2, 1, 0))
        volume.CopyInformation(empty)
        pair.append(sitk.DICOMOrient(volume, published.axes))
    return pair[0], pair[1]


def _turned(image: sitk.Image, axes: str) -> sitk.Image:
    """An image whose axes are said to be these, ITK's names of the directions that they point to."""
    image.SetDirection(sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(axes))
    return image


@dataclass(frozen=True)
class Ready:
    """A ready configuration, with another folder and a smaller grid."""

    project: Project
    overrides: list[str]
    published: Published

    @property
    def config(self) -> Config:
        return load_config(self.project.config_file, self.overrides)

    def lrls(self, command: str) -> Done:
        return self.project.lrls(command, *(text for override in self.overrides for text in ("--set", override)))


class OfPaper(Project):
    """A project whose configuration is a file of docs/papers/."""

    @property
    def config_file(self) -> Path:
        return PAPERS / f"{self.folder.name}.yaml"


@pytest.fixture(params=PUBLISHED)
def ready(request, tmp_path, in_this_process, no_pictures) -> Ready:
    name, published = request.param, PUBLISHED[request.param]
    folder = tmp_path / name
    config = load_config(PAPERS / f"{name}.yaml")
    values = [value for of_one in config.structure_values().values() for value in of_one]
    for number, case in enumerate(case for cases in CASES.values() for case in cases):
        for kind, image in zip(("images", "labels"), phantom(published, values, number), strict=True):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(folder / kind / f"{case}.nii.gz"))
    (folder / "split.json").write_text(json.dumps(CASES))
    assert config.preprocess.shape
    overrides = [f"data.folder={folder}", f"workspace={tmp_path / 'runs'}"]
    overrides.append(f"preprocess.shape={[round(n / published.coarser) for n in config.preprocess.shape]}")
    if config.preprocess.spacing_mm:
        spacing_mm = np.broadcast_to(config.preprocess.spacing_mm, 3) * published.coarser
        overrides.append(f"preprocess.spacing_mm={spacing_mm.tolist()}")
    return Ready(OfPaper(folder), overrides, published)


def test_every_file_is_tested():
    assert sorted(PUBLISHED) == sorted(file.stem for file in PAPERS.glob("*.yaml"))


def test_a_phantom_of_the_same_geometry_is_sound_and_comes_to_the_papers_grid(ready):
    done = ready.lrls("check")
    assert (done.code, done.err) == (0, "") and "no faults" in done.out, done.out
    done = ready.lrls("preprocess")
    assert done.code == 0, done.err
    config, published = ready.config, ready.published
    (folder,) = versions(config.workspace / "cohort")
    cohort = Cohort.open(folder)
    label, image = cohort.label("p1"), cohort.image("p1").astype(float)
    assert set(np.unique(label)) == set(range(len(config.structures) + 1))
    # Nothing is cut, and the grid is not much wider than the body.
    for axis, extent in enumerate(cohort.grid.shape):
        used = np.flatnonzero((label > 0).any(tuple(other for other in range(3) if other != axis)))
        assert used[0] > 0 and used[-1] < extent - 1 and len(used) / extent > 0.45
    if config.preprocess.crop == "none":  # the scans as they are published
        stored = sitk.ReadImage(str(config.data.folder / "images" / "p1.nii.gz"))
        assert cohort.grid.shape == sitk.DICOMOrient(stored, "LPS").GetSize()[::-1]
    if published.is_ct:
        low, high = config.preprocess.intensity.window
        wanted = np.clip((TISSUE + 60 - low) / (high - low), 0, 1)
        assert config.preprocess.intensity.method == "window"
        assert np.median(image[label > 0]) == pytest.approx(wanted, abs=0.1 * max(wanted, 0.2))
    assert cohort.fallen_back() == []


STEPS = {  # of train-reg and train-seg, as the papers have them or as they follow from their epochs; None: the recipe's
    ("mm-whs", "brbs"): (40_000, None),
    ("candi", "brbs"): (40_000, None),
    ("candi", "lt-net"): (30_000, None),
    ("candi", "sst"): (100_000, None),
    ("oasis", "os-medseg"): (500 * 334 // 2, 200 * 334 // 2),
    ("bcv", "os-medseg"): (500 * 29 // 2, 200 * 29 // 2),
    ("verse", "os-medseg"): (500 * 69 // 2, 200 * 69 // 2),
    ("lpba40", "jrss"): (21_000, 4200),
    ("tcia", "jrss"): (22_500, 4500),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_methods_have_the_papers_steps(name):
    config = load_config(PAPERS / f"{name}.yaml")
    assert {(name, method) for method in config.methods} == {key for key in STEPS if key[0] == name}
    for method in config.methods:
        assert (config.training("train_reg", method).steps, config.training("train_seg", method).steps) == STEPS[
            name, method
        ]


def test_structures_are_those_of_the_papers():
    configs = {name: load_config(PAPERS / f"{name}.yaml") for name in PUBLISHED}
    assert {name: len(config.structures) for name, config in configs.items()} == {
        "mm-whs": 7, "candi": 28, "oasis": 35, "lpba40": 10, "bcv": 4, "verse": 13, "tcia": 8,
    }  # fmt: skip
    values = {name: [v for of_one in c.structure_values().values() for v in of_one] for name, c in configs.items()}
    assert set(values["mm-whs"]) - {421} == {205, 420, 500, 550, 600, 820, 850}
    assert len(values["lpba40"]) == 56
    assert sorted(values["oasis"]) == list(range(1, 36))


def test_grids_alignments_and_presets_are_those_of_the_papers():
    configs = {name: load_config(PAPERS / f"{name}.yaml") for name in PUBLISHED}
    assert {name: (c.preprocess.shape, c.preprocess.spacing_mm) for name, c in configs.items()} == {
        "mm-whs": ((128, 144, 144), None),
        "candi": ((160, 128, 160), (0.9375, 1.5, 0.9375)),
        "oasis": ((192, 224, 160), 1),
        "lpba40": ((160, 192, 160), 1),
        "bcv": ((192, 160, 192), 2),
        "verse": ((192, 96, 64), 2),
        "tcia": ((144, 144, 144), None),
    }
    assert {name: config.preprocess.align for name, config in configs.items()} == {
        "mm-whs": "affine", "candi": "affine", "oasis": "none", "lpba40": "centre", "bcv": "affine", "verse": "rigid",
        "tcia": "affine",
    }  # fmt: skip
    settings = {name: settings_of(find_method(next(iter(c.methods))), c) for name, c in configs.items()}
    assert (settings["tcia"].threshold, settings["lpba40"].threshold) == (0.6, 0.7)
    assert (settings["bcv"].similarity, settings["bcv"].smoothness, settings["bcv"].hint_weight) == (
        "mi",
        "bending",
        10,
    )
    assert (settings["oasis"].similarity, settings["oasis"].smoothness, settings["oasis"].hint_weight) == (
        "lncc", "diffusion", 1,
    )  # fmt: skip
    assert (settings["mm-whs"].inverse, settings["mm-whs"].helper_is_final) == ("self-warped", True)

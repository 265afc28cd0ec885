"""Writers of generated data: what each plans, writes, hands out and goes on from, where registration moves nothing."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import Project

from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.manifest import Identity, read_manifest
from stages.artifacts.store import new_artifact
from stages.config import GenerateSettings
from stages.device import Device
from stages.errors import LrlsError
from stages.generating.drawn import DrawnScans
from stages.generating.path_bank import PathBank
from stages.generating.propagated import PropagatedLabels
from stages.generating.pseudo_labels import PseudoLabels
from stages.generating.warped_atlases import WarpedAtlases
from stages.generating.writer import Job, Writer, atlas_scan_pairs
from stages.parts.batches.space_style import Always
from stages.parts.synthesis import Drawn
from stages.parts.warps import one_hot

SHAPE = (24, 16, 24)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, new_project: Any) -> Cohort:
    """Two atlases and three scans."""
    data = {"atlases": ["atlas_1", "atlas_2"], "unlabeled": ["free_1", "free_2", "test_1"], "supervised": []}
    project: Project = new_project(tmp_path_factory.mktemp("generating"), data={**data, "test": ["test_2"]})
    project.made("preprocess")
    return Cohort.open(project.workspace / "cohort" / "v0001")


@dataclass
class Working:
    """A job whose registration moves a voxel along D, and which counts what it is asked for."""

    registered: list[str] = field(default_factory=list)
    segmented: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def job(self, cohort: Cohort, resume: Path, **settings: Any) -> Job:
        resume.mkdir(exist_ok=True)
        device = Device(torch.device("cpu"), torch.float32)
        return Job(
            cohort, GenerateSettings(**settings), 7, device, resume, self.register, self.segment, self.told.append
        )

    def register(self, pairs, cases):
        for place, (moving, _) in enumerate(pairs):
            self.registered.append(cases[place])
            displacement = np.zeros((3, *moving.shape), np.float32)
            displacement[0] = 1
            yield place, displacement

    def segment(self, image):
        self.segmented.append(float(image.mean()))
        bright = torch.from_numpy(image.astype(np.float32)) > 0.5
        return 0.05 + 0.75 * one_hot(bright.short()[None], 5)[0]


@dataclass
class Drawing:
    """A synthesis that draws the atlas as it is, a little brighter every time."""

    drawn: list[int] = field(default_factory=list)
    networks: tuple[()] = ()

    def check(self) -> None:
        pass

    def __call__(self, data, atlas, generator):
        self.drawn.append(atlas)
        image = data.image([atlas])
        brighter = image + 0.1 * float(torch.rand((), generator=generator))
        return Drawn(brighter, image, torch.zeros(1, 3, *data.shape), "prior", "prior")


class Brighter(torch.nn.Module):
    """A style map."""

    def forward(self, moving, fixed):
        return torch.full_like(moving, 0.25)


WRITERS: dict[str, tuple[Writer, dict[str, int]]] = {
    "paths": (PathBank(Always(0.5), Always(1.0)), {}),
    "paths, and finished couples of them": (PathBank(Always(0.5), Always(1.0)), {"samples": 4}),
    "paths without style": (PathBank(Always(0.5), None, most=4), {}),
    "paths with a network's style": (PathBank(Always(1.0), Always(1.0), style_map=Brighter(), coupled=True), {}),
    "warped atlases": (WarpedAtlases(), {}),
    "a few warped atlases": (WarpedAtlases(most=4), {}),
    "propagated labels": (PropagatedLabels(), {}),
    "pseudo-labels": (PseudoLabels(0.7), {}),
    "drawn scans": (DrawnScans(Drawing(), 3), {}),  # type: ignore[arg-type]
}
FINISHED = ("warped atlases", "a few warped atlases", "drawn scans")  # their labels are true


def write(writer: Writer, job: Job, folder: Path) -> Path:
    with h5py.File(folder / "generated.h5", "w") as file:
        writer.write(file, job)
    return folder / "generated.h5"


def written(writer: Writer, cohort: Cohort, tmp_path: Path, **settings: Any) -> Generated:
    """As `generate` stores it."""
    identity = Identity("generated", Generated.FORMAT, "generate", {}, seed=7)
    with new_artifact(tmp_path / "generated", identity) as draft:
        write(writer, Working().job(cohort, draft.resume, **settings), draft.folder)
    return Generated(draft.result, read_manifest(draft.result))


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_as_large_as_was_planned(name, cohort, tmp_path):
    writer, settings = WRITERS[name]
    path = write(writer, Working().job(cohort, tmp_path / "resume", **settings), tmp_path)
    sizes = []
    with h5py.File(path) as file:
        file.visititems(lambda _, each: sizes.append(each.nbytes) if isinstance(each, h5py.Dataset) else None)
    assert writer.planned_bytes(cohort, GenerateSettings(**settings)) == pytest.approx(sum(sizes), rel=0.1)


def degrees_shown(writer: PathBank, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """Sources and grid of `degrees.png`."""
    shown: list[tuple] = []
    monkeypatch.setattr("stages.pictures.degrees_page", lambda *given, **_: shown.append(given))
    monkeypatch.setattr("stages.generating.path_bank.draw_couples_page", lambda *_: None)
    with h5py.File(write(writer, Working().job(cohort, tmp_path / "resume"), tmp_path)) as file:
        writer.draw_pictures(file, cohort, tmp_path, 7)
    ((sources, grid, _),) = shown
    return sources, grid


def test_a_picture_leads_from_the_atlas_to_shape_and_look_of_scans(cohort, tmp_path, monkeypatch):
    sources, grid = degrees_shown(PathBank(Always(0.5), Always(1.0)), cohort, tmp_path, monkeypatch)
    assert list(sources) == ["atlas atlas_1", "space free_1", "style free_2"]
    assert [len(row) for row in grid.values()] == [5] * 5
    atlas = cohort.image("atlas_1").astype(np.float32)
    start = grid["style β 0"]["space α 0"]
    assert np.array_equal(start[0], atlas) and np.array_equal(start[1], cohort.label("atlas_1"))
    image, label = grid["style β 0"]["space α 1"]  # each voxel reads the next one along D
    assert np.allclose(image[:-1], atlas[1:], atol=1e-3)
    assert np.array_equal(label[:-1], cohort.label("atlas_1")[1:])
    # Its style is the scan, moved by a voxel to the atlas, minus the atlas.
    coloured = grid["style β 1"]["space α 0"][0]
    assert np.allclose(coloured[:-1], cohort.image("free_2").astype(np.float32)[1:], atol=2e-3)
    half = grid["style β 0.5"]["space α 0"][0]
    assert np.allclose(half, (atlas + coloured) / 2, atol=2e-3)


def test_without_style_the_picture_has_one_row(cohort, tmp_path, monkeypatch):
    sources, grid = degrees_shown(PathBank(Always(0.5), None), cohort, tmp_path, monkeypatch)
    assert list(sources) == ["atlas atlas_1", "space free_1"] and list(grid) == ["style β 0"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_plan_measures_one_piece_and_multiplies(name, cohort, tmp_path, monkeypatch):
    writer, settings = WRITERS[name]
    clock, working = iter(range(100)), Working()
    monkeypatch.setattr("time.monotonic", lambda: 5.0 * next(clock))  # every look at it takes 5 s
    pieces = {
        "paths": 6 * 2, "paths, and finished couples of them": 6 * 2, "paths without style": 4,
        "paths with a network's style": 6 * 3, "warped atlases": 6, "a few warped atlases": 4,
        "propagated labels": 3 * 2, "pseudo-labels": 3, "drawn scans": 3,
    }  # fmt: skip
    job = working.job(cohort, tmp_path / "resume", **settings)
    assert writer.planned_seconds(job) == 5.0 * pieces[name]
    assert len(working.registered) + len(working.segmented) == (0 if name == "drawn scans" else 2)
    assert not list(job.resume.iterdir())


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "pseudo-labels"])
def test_pieces_that_are_stored_are_not_made_again(name, cohort, tmp_path):
    writer, settings = WRITERS[name]
    if name == "drawn scans":
        writer = replace(writer, synthesis=Drawing())
    first, again = Working(), Working()
    (tmp_path / "again").mkdir()
    resume = tmp_path / "resume"
    whole = write(writer, first.job(cohort, resume, **settings), tmp_path)
    pieces = sorted(resume.glob("*.npz"))
    pieces[1].unlink()  # a kill before the second one
    drawn = len(writer.synthesis.drawn) if name == "drawn scans" else 0
    resumed = write(writer, again.job(cohort, resume, **settings), tmp_path / "again")
    if name == "drawn scans":
        assert (drawn, len(writer.synthesis.drawn)) == (len(pieces), len(pieces) + 1)
    else:
        ways = len(first.registered) // len(pieces)  # there and back, or one for each atlas
        assert len(again.registered) == ways
        assert set(again.registered) == {first.registered[ways]}
    assert resumed.read_bytes() == whole.read_bytes()


def test_pseudo_labels_are_one_pass_a_scan_and_say_what_is_left(cohort, tmp_path):
    working = Working()
    write(PseudoLabels(0.7), working.job(cohort, tmp_path / "resume"), tmp_path)
    assert len(working.segmented) == 3 and not list((tmp_path / "resume").iterdir())
    assert working.told == [
        "3 of 3 scans have a structure that the network is sure of (threshold 0.7); 100 % of all voxels are trusted."
    ]
    write(PseudoLabels(0.9), working.job(cohort, tmp_path / "resume"), tmp_path)
    assert working.told[1].startswith("0 of 3 scans") and working.told[2].startswith("Warning: this round has no")


def assert_alike(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.label, other.label)


@pytest.mark.parametrize("name", WRITERS)
def test_couples_are_drawn_as_many_as_asked_or_all_that_are_stored(name, cohort, tmp_path):
    writer, settings = WRITERS[name]
    generated = written(writer, cohort, tmp_path, **settings)
    couples = list(writer.couples(generated, cohort, 2, 7))
    stored = {"warped atlases": 6, "a few warped atlases": 4, "propagated labels": 3, "pseudo-labels": 0}
    assert len(couples) == (2 if name.startswith("paths") else stored.get(name, 3))
    for couple in couples:
        assert couple.image.shape == couple.label.shape == SHAPE
        assert couple.image.dtype == np.float32 and couple.label.max() <= 4
        assert {"atlas", "space", "style"} <= couple.origin.keys()
    assert_alike(list(writer.couples(generated, cohort, 2, 7)), couples)
    assert generated.bank([*cohort.cases]) is None or name.startswith("paths")


@pytest.mark.parametrize("name", WRITERS)
def test_true_couples_are_as_many_as_asked_and_none_of_guessed_labels(name, cohort, tmp_path):
    writer, settings = WRITERS[name]
    generated = written(writer, cohort, tmp_path, **settings)
    true = list(writer.true_couples(generated, cohort, 8, 7))
    if name in ("propagated labels", "pseudo-labels"):
        assert true == []
        return
    assert len(true) == 8
    if name in FINISHED:  # what is stored, again and again
        stored = list(writer.couples(generated, cohort, 8, 7))
        assert_alike(true, [stored[k % len(stored)] for k in range(8)])
    else:  # drawn all the way to the scans
        assert {couple.origin["alpha"] for couple in true} == {1.0}
        assert {couple.origin["alpha"] for couple in writer.couples(generated, cohort, 8, 7)} == {
            float(writer.space(1, torch.Generator()))
        }
    for couple in true:  # registration moves a voxel along D: what is true of the image is of the label
        moved = cohort.label(couple.origin["atlas"])
        if name != "drawn scans":
            moved = np.concatenate([moved[1:], moved[-1:] * 0])
        np.testing.assert_array_equal(couple.label[:-1], moved[:-1])


def test_a_couple_of_the_path_bank_is_the_atlas_with_the_style_moved_by_its_degree(cohort, tmp_path):
    writer = PathBank(Always(1.0), Always(0.5), style_map=Brighter())
    generated = written(writer, cohort, tmp_path)
    (couple,) = writer.couples(generated, cohort, 1, 7)
    atlas = cohort.image(couple.origin["atlas"]).astype(np.float32)
    np.testing.assert_allclose(couple.image[:-1], atlas[1:] + 0.5 * 0.25, atol=2e-3)  # of float16
    assert (couple.origin["alpha"], couple.origin["beta"]) == (1.0, 0.5)


def test_couples_from_the_bank_depend_on_the_seed_and_their_place_alone(cohort, tmp_path):
    writer, _ = WRITERS["paths"]
    generated = written(writer, cohort, tmp_path)
    few, many, other = (
        list(writer.couples(generated, cohort, count, seed)) for count, seed in ((2, 7), (6, 7), (6, 8))
    )
    assert_alike(many[:2], few)
    assert [couple.origin["seed"] for couple in many] != [couple.origin["seed"] for couple in other]
    stored = written(writer, cohort, tmp_path / "stored", samples=3)
    with stored.open_file() as file:
        np.testing.assert_array_equal(file["samples"]["image"][:, 0], [each.image for each in many[:3]])


def test_atlases_take_turns_so_that_every_scan_comes_before_one_comes_twice(cohort):
    scans = cohort.parts["unlabeled"]
    pairs = atlas_scan_pairs(cohort)
    assert [scan for _, scan in pairs] == scans * 2
    assert [atlas for atlas, _ in pairs] == ["atlas_1", "atlas_2"] * 3
    assert len(set(pairs)) == 6
    assert atlas_scan_pairs(cohort, 2) == pairs[:2] and atlas_scan_pairs(cohort, 100) == pairs


@pytest.mark.parametrize("name", ["paths", "warped atlases", "propagated labels", "drawn scans"])
def test_a_screening_that_accepts_nothing_is_refused(name, cohort, tmp_path):
    with pytest.raises(LrlsError, match=r"the screening accepts none of .*; loosen generate\.min_similarity"):
        write(WRITERS[name][0], Working().job(cohort, tmp_path / "resume", min_similarity=1.0), tmp_path)


def test_what_the_screening_refused_is_no_couple(cohort, tmp_path):
    writer, _ = WRITERS["warped atlases"]
    generated = written(writer, cohort, tmp_path)
    with h5py.File(generated.folder / "generated.h5", "r+") as file:
        file["samples"]["accepted"][...] = [True, False, True, False, False, False]
    assert len(list(writer.couples(generated, cohort, 9, 7))) == 2
    assert len(list(islice(writer.true_couples(generated, cohort, 5, 7), 9))) == 5


def test_writers_say_whose_weights_they_need():
    needs = {name: tuple(writer.uses) for name, (writer, _) in WRITERS.items()}
    assert needs.pop("pseudo-labels") == ("segmentation",)
    assert set(needs.values()) == {("registration",)}


def test_true_couples_read_no_more_than_they_are_asked_for_and_come_again_where_there_are_fewer(monkeypatch):
    read = []

    def stored(_file):
        for k in range(5):
            read.append(k)
            yield k

    monkeypatch.setattr("stages.generating.writer.stored_couples", stored)
    generated = SimpleNamespace(open_file=lambda: nullcontext(None))
    assert list(WarpedAtlases().true_couples(generated, None, 2, 0)) == [0, 1]
    assert read == [0, 1]
    assert list(WarpedAtlases().true_couples(generated, None, 7, 0)) == [0, 1, 2, 3, 4, 0, 1]

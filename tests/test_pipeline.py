"""Every method from scans to scores, through the commands, on a tiny cohort."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from conftest import Project, draw_no_pictures, goes_on_after_a_fault
from safetensors import safe_open

from stages.artifacts.cohort import Cohort
from stages.artifacts.store import verify
from stages.artifacts.weights import Registration
from stages.data.phantoms import STRUCTURES
from stages.methods import METHODS, recipe_of

KINDS = {
    "unet": ["segmentation", "scores"],
    "supervised": ["segmentation", "scores"],
    "rigid": ["scores"],
    "affine": ["scores"],
    "bspline": ["scores"],
    "syn": ["scores"],
    "greedy": ["scores"],
    "mabmis": ["segmentation", "scores"],
    "voxelmorph": ["registration", "scores"],
    "lc-voxelmorph": ["registration", "scores"],
    "clmorph": ["registration", "scores"],
    "transmorph": ["registration", "scores"],
    "pdd-net": ["registration", "scores"],
    "lt-net": ["registration", "scores"],
    "data-aug": ["registration", "generated", "segmentation", "scores"],
    "vae-aug": ["registration", "generated", "segmentation", "scores"],
    "deep-atlas": ["registration", "segmentation", "scores"],
    "deep-rs": ["registration", "segmentation", "scores"],
    "pc-reg-rt": ["registration", "segmentation", "scores"],
    "rsegnet": ["registration", "segmentation", "scores"],
    "ist": ["registration", "generated", "segmentation", "scores"],
    "ua-mt": ["segmentation", "scores"],
    "cps": ["segmentation", "scores"],
    "massl": ["segmentation", "scores"],
    "brbs": ["registration", "generated", "segmentation", "scores"],
    "jrss": ["registration", "generated", "segmentation", "scores"],
    "os-medseg": ["registration", "generated", "segmentation", "scores"],
    "sst": ["registration", "generated", "segmentation", "scores"],
    "best": ["generated", "segmentation", "scores"],
}
MORE = {"lc-voxelmorph": ("--set", "data.atlases=[atlas_1, atlas_2]", "--set", "data.supervised=[]")}
PICTURES = {
    "segmentation": ["losses.png"],
    "registration": ["losses.png", "registration.png"],
    "generated": ["qc/couples.png"],
    "scores": ["dsc.png", "predictions.png"],
}


OTHER_PICTURES = {
    # It is trained beside the registration.
    **{(name, "segmentation"): [] for name in ("deep-atlas", "deep-rs", "pc-reg-rt", "rsegnet")},
    ("mabmis", "segmentation"): [],  # nothing is trained
    ("sst", "registration"): [
        *PICTURES["registration"],
        "looks-and-shapes.png",
        "shapes.png",
        "style-codes.png",
        "styles.png",
    ],
    ("brbs", "segmentation"): [*PICTURES["segmentation"], "features.png", "mixing.png"],
    **{(name, "generated"): ["qc/couples.png", "qc/degrees.png"] for name in ("brbs", "data-aug", "best")},
    ("lt-net", "registration"): [*PICTURES["registration"], "cycle.png"],
    ("jrss", "generated"): ["qc/pseudo-labels.png"],
    ("jrss", "scores"): [*PICTURES["scores"], "rounds.png"],
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory, new_project) -> Project:
    """A project whose methods are run once; tests that make versions of their own take `project`."""
    return new_project(tmp_path_factory.mktemp("shared"))


def test_every_method_is_run_here():
    assert list(KINDS) == list(METHODS)


@pytest.mark.parametrize("method", KINDS)
def test_run_takes_a_method_from_scans_to_scores(method, shared, scans):
    done = shared.made("run", "--method", method, *MORE.get(method, ()))

    for kind in KINDS[method]:
        folder = shared.workspace / method / kind / "v0001"
        verify(folder)
        for picture in OTHER_PICTURES.get((method, kind), PICTURES[kind]):
            assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    scores = shared.workspace / method / "scores" / "v0001"
    assert done.out.splitlines()[-1] == str(scores)
    assert (scores / "summary.json").exists()
    table = pd.read_csv(scores / "scores.csv")
    assert set(table["case"]) == {"test_1", "test_2"}
    assert set(table["structure"]) == set(STRUCTURES)
    assert table["dsc"].between(0, 1).all()
    for case in ("test_1", "test_2"):
        label, image = (
            sitk.ReadImage(str(folder / f"{case}.nii.gz")) for folder in (scores / "labels", scans / "images")
        )
        assert label.GetSize() == image.GetSize()
        for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(label, geometry)() == pytest.approx(getattr(image, geometry)(), abs=1e-4)
        assert set(np.unique(sitk.GetArrayViewFromImage(label))) <= {0, *STRUCTURES.values()}


def test_a_fused_answer_is_scored_beside_its_two_halves(shared):
    shared.made("run", "--method", "best")
    scores = shared.workspace / "best" / "scores" / "v0001"
    table = pd.read_csv(scores / "scores.csv")
    assert list(table["output"].unique()) == ["segmentation", "registration", "network"]
    halves = {
        name: sitk.GetArrayFromImage(sitk.ReadImage(str(scores / name / "test_1.nii.gz")))
        for name in ("labels", "labels-registration", "labels-network")
    }
    agreed = halves["labels-registration"] == halves["labels-network"]
    assert 0 < agreed.mean() < 1
    for half in (
        "labels-registration",
        "labels-network",
    ):  # where they differ, the mean sides now with one, now the other
        assert (halves["labels"][~agreed] != halves[half][~agreed]).any(), half
    alone = shared.made("run", "--method", "best", "--set", "methods.best.fuse=false")
    newest = pd.read_csv(alone.out.splitlines()[-1] + "/scores.csv")
    assert list(newest["output"].unique()) == ["segmentation", "registration"]


def test_label_propagation_finds_the_structures(shared):
    shared.made("run", "--method", "affine")
    table = pd.read_csv(shared.workspace / "affine" / "scores" / "v0001" / "scores.csv")
    assert table["dsc"].mean() > 0.3


def test_the_same_command_again_makes_nothing(shared):
    methods = ("unet", "brbs", "supervised", "lt-net", "os-medseg")
    for method in methods:
        shared.made("run", "--method", method)
    before = shared.digests()
    stamps = {path: path.stat().st_mtime_ns for path in shared.workspace.rglob("*") if path.is_file()}

    for method in methods:
        shared.made("run", "--method", method)

    assert shared.digests() == before
    assert {path: path.stat().st_mtime_ns for path in shared.workspace.rglob("*") if path.is_file()} == stamps


def test_another_seed_makes_new_versions_of_everything_that_is_drawn(project, no_pictures):
    project.made("run", "--method", "unet")
    project.made("run", "--method", "unet", "--set", "seed=1")

    for target in ("cohort", "cohort-test"):  # nothing in them is
        assert project.versions(target) == ["v0001"]
        assert project.manifest(target).identity.seed == 0
    for target in ("unet/segmentation", "unet/scores"):
        assert project.versions(target) == ["v0001", "v0002"]
        assert project.manifest(target, "v0002").identity.seed == 1
    digests = project.digests()
    assert digests["unet/segmentation/v0001"] != digests["unet/segmentation/v0002"]


def test_single_commands_make_what_run_makes_and_force_makes_it_once_more(shared, project, monkeypatch):
    shared.made("run", "--method", "brbs")
    draw_no_pictures(monkeypatch)
    expected = {name: digest for name, digest in shared.digests().items() if name.startswith(("cohort/v0001", "brbs/"))}

    project.made("preprocess")
    for command in ("train-reg", "generate", "train-seg", "eval"):
        done = project.made(command, "--method", "brbs")
        assert done.out.splitlines()[-1].endswith("v0001")
    assert {name: project.digests()[name] for name in expected} == expected

    project.made("run", "--method", "brbs")  # up to date
    project.made("run", "--method", "brbs", "--force")
    digests = project.digests()
    assert project.versions("cohort") == ["v0001"]
    for name, digest in expected.items():
        if name.startswith("brbs/"):
            assert digests[name.replace("v0001", "v0002")] == digest


def test_ants_repeats_itself_whatever_the_number_of_processes(tmp_path, new_project):
    digests = []
    for workers in (1, 2):
        project = new_project(tmp_path / str(workers), preprocess={"align": "affine", "workers": workers})
        project.made("preprocess")
        project.made("generate", "--method", "syn")
        digests.append(project.digests())

    assert digests[0] == digests[1]
    assert set(digests[0]) == {"cohort/v0001", "syn/generated/v0001"}
    cohort = Cohort.open(project.workspace / "cohort" / "v0001")
    assert cohort.fallen_back() == []
    assert cohort.transform("atlas_1")["matrix"] == np.eye(4).tolist()
    assert not np.allclose(cohort.transform("free_1")["matrix"], np.eye(4), atol=0.01)


def test_two_atlases_are_both_learned_from_and_vote(tmp_path, new_project, in_this_process, no_pictures):
    project = new_project(tmp_path, data={"atlases": ["atlas_1", "atlas_2"], "supervised": []})
    for method in ("brbs", "affine", "data-aug"):
        project.made("run", "--method", method)
        fields = pd.read_csv(project.workspace / method / "scores" / "v0001" / "registration.csv")
        assert sorted(fields["atlas"]) == ["atlas_1", "atlas_1", "atlas_2", "atlas_2"]
    project.made("generate", "--method", "affine")

    with h5py.File(project.workspace / "brbs" / "generated" / "v0001" / "generated.h5") as file:
        couples = set(zip(*(file["paths"][column].asstr()[()] for column in ("atlas", "scan")), strict=True))
    assert couples == {(atlas, scan) for atlas in ("atlas_1", "atlas_2") for scan in ("free_1", "free_2")}
    with h5py.File(project.workspace / "affine" / "generated" / "v0001" / "generated.h5") as file:
        assert set(file["samples"]["atlas"].asstr()[()]) == {"atlas_1+atlas_2"}


def test_the_dev_part_is_scored_when_asked_for(shared):
    shared.made("run", "--method", "unet")
    done = shared.made("eval", "--method", "unet", "--set", "eval.part=dev")

    scores = shared.workspace / "unet" / "scores" / shared.versions("unet/scores")[-1]
    assert done.out.splitlines()[-1] == str(scores)
    assert set(pd.read_csv(scores / "scores.csv")["case"]) == {"dev_1"}
    assert shared.made("run", "--method", "unet").out.splitlines()[-1].endswith("v0001")


def test_the_cycle_is_drawn_beside_the_registration_and_its_helpers_are_kept(shared):
    shared.made("run", "--method", "lt-net", "--until", "train-reg")
    folder = shared.workspace / "lt-net" / "registration" / "v0001"
    assert (folder / "cycle.png").read_bytes().startswith(b"\x89PNG")
    with safe_open(folder / "weights.safetensors", "pt") as weights:
        assert {name.split("/")[0] for name in weights.keys()} == {"registration", "backward", "discriminator"}  # noqa: SIM118


def test_interrupted_cycle_goes_on_with_all_three_networks(project, no_pictures, monkeypatch):
    goes_on_after_a_fault(
        project, monkeypatch, method="lt-net", stage="train-reg", kind="registration", term="robust_inverse_loss",
        player="generators",
    )  # fmt: skip


@pytest.mark.parametrize("method", ["voxelmorph", "lt-net"])
def test_propagated_labels_can_be_written_by_methods_that_need_none(method, shared):
    shared.made("run", "--method", method)
    shared.made("generate", "--method", method)

    with h5py.File(shared.workspace / method / "generated" / "v0001" / "generated.h5") as file:
        samples = file["samples"]
        assert list(samples["space"].asstr()[()]) == ["free_1", "free_2"]
        assert samples["image"].shape == (2, 1, 24, 16, 24)
        assert set(np.unique(samples["label"])) == {0, 1, 2, 3, 4}


def test_finished_couples_are_written_when_asked_for(shared):
    shared.made("run", "--method", "brbs", "--until", "train-reg")
    shared.made("generate", "--method", "brbs", "--set", "generate.samples=3")

    newest = shared.versions("brbs/generated")[-1]
    with h5py.File(shared.workspace / "brbs" / "generated" / newest / "generated.h5") as file:
        assert file["samples"]["image"].shape == (3, 1, 24, 16, 24)
        assert len(set(file["samples"]["seed"])) == 3


def test_paths_without_style_are_one_way_and_finished_couples_come_from_them(shared):
    shared.made("run", "--method", "best", "--until", "generate", "--set", "generate.samples=3")

    newest = shared.versions("best/generated")[-1]
    with h5py.File(shared.workspace / "best" / "generated" / newest / "generated.h5") as file:
        paths, samples = file["paths"], file["samples"]
        assert "style" not in paths
        assert np.isnan(paths["inverse_error_voxels"][()]).all()
        assert (paths["folding_fraction"][()] < 0.001).all()
        assert (samples["beta"][()] == 0).all()
        assert list(samples["style"].asstr()[()]) == list(samples["atlas"].asstr()[()])


def test_style_of_data_aug_is_what_its_networks_add_to_the_atlas(shared):
    shared.made("run", "--method", "data-aug", "--until", "generate", "--set", "generate.samples=4")

    newest = shared.versions("data-aug/generated")[-1]
    registration = Registration.open(shared.workspace / "data-aug" / "registration" / "v0001")
    cohort = Cohort.open(shared.workspace / "cohort" / "v0001")
    recipe = recipe_of(METHODS["data-aug"], cohort, shared.config)
    registration.load(recipe.trained(recipe.step("registration", 0)))
    atlas, scan = (
        torch.from_numpy(cohort.image(case).astype(np.float32))[None, None] for case in ("atlas_1", "free_2")
    )
    with torch.no_grad():
        expected = recipe.step("generated", 0).writers[0].style_map.float()(atlas, scan)[0].numpy()
    with h5py.File(shared.workspace / "data-aug" / "generated" / newest / "generated.h5") as file:
        paths = file["paths"]
        row = list(paths["scan"].asstr()[()]).index("free_2")
        assert np.abs(paths["style"][row] - expected).max() < 0.02 * np.abs(expected).max() + 1e-3
        assert np.isnan(paths["inverse_error_voxels"][()]).all()
        assert (file["samples"]["alpha"][()] == 1).all() and (file["samples"]["beta"][()] == 1).all()


def test_instance_optimisation_registers_better_than_the_alignment(shared):
    mean = {}
    for method in ("affine", "best"):
        shared.made("run", "--method", method)
        table = pd.read_csv(shared.workspace / method / "scores" / "v0001" / "scores.csv")
        mean[method] = table[table["output"] == "registration"]["dsc"].mean()
    assert mean["best"] > mean["affine"] + 0.05


def test_a_stage_that_best_does_not_have_names_the_next_one(shared):
    shared.made("preprocess")
    done = shared.lrls("train-reg", "--method", "best")
    assert (done.code, done.err.strip()) == (
        1,
        "lrls: best learns no registration; go on with `lrls generate`.",
    )


def test_run_stops_after_the_stage_that_is_named(project, no_pictures):
    project.made("run", "--method", "brbs", "--until", "train-reg")
    assert set(project.digests()) == {"cohort/v0001", "brbs/registration/v0001"}


def test_history_lists_every_artifact_with_what_it_was_made_from(shared):
    shared.made("run", "--method", "unet")
    shared.made("run", "--method", "brbs")

    lines = shared.made("history").out.splitlines()

    for name in shared.digests():
        assert any(name in line for line in lines), name
    segmentation = next(line for line in lines if "unet/segmentation/v0001" in line)
    assert "train-seg" in segmentation
    assert "cohort/v0001" in segmentation
    artifacts = [line.split()[1] for line in lines if "/v0" in line]
    places = [artifacts.index(f"brbs/{kind}/v0001") for kind in KINDS["brbs"]]
    assert places == sorted(places)


def test_check_finds_no_fault_in_a_sound_cohort_and_writes_nothing(project):
    assert project.made("check").out.splitlines()[-1] == "7 scans, no faults."
    assert not project.workspace.exists()


def test_check_lists_every_fault_and_ends_with_1(tmp_path, new_project):
    project = new_project(tmp_path, data={"unlabeled": ["free_1", "lost"]})
    done = project.lrls("check", "--set", "structures={core: 205}")
    assert done.code == 1
    assert "case lost: no image file; add" in done.out
    assert "case atlas_1: label values 3, 17, 1000 not named in structures; name them there" in done.out


def test_methods_lists_them_all():
    lists = [sys.executable, "-m", "lrls_cli.main", "methods"]
    done = subprocess.run(lists, capture_output=True, encoding="utf-8", check=True)
    for method in METHODS:
        assert f" {method} " in done.stdout


def test_help_loads_no_heavy_library():
    script = (
        "import sys\n"
        "from lrls_cli.main import app\n"
        "for command in ([], *([each.name or each.callback.__name__] for each in app.registered_commands)):\n"
        "    app([*command, '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'SimpleITK', 'h5py', 'monai', 'ants', 'pandas'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") >= 12

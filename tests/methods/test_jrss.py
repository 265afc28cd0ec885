"""JRSS, DeepAtlas, RSegNet: their switches; and the rounds of self-training through the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from conftest import CASES, Project, draw_no_pictures

from stages.answering.exported import open_model
from stages.answering.model import model_of
from stages.artifacts.cohort import Cohort
from stages.artifacts.generated import Generated
from stages.artifacts.store import latest
from stages.config import Config
from stages.errors import LrlsError
from stages.generating.pseudo_labels import PseudoLabels
from stages.methods import METHODS, deep_atlas, jrss, rsegnet, settings_of, training_of
from stages.methods.phases import Ramp
from stages.methods.recipe import Task
from stages.parts.batches.drawing import Draw
from stages.parts.batches.pseudo_labels import PseudoLabel
from stages.parts.batches.scans import Scans
from stages.parts.losses import class_weights, dice_loss
from stages.parts.networks.obelisk import HybridObelisk
from stages.parts.networks.standardised import Standardised
from stages.parts.networks.unet import LightUNet
from stages.parts.players.segmenting import precise_overlap
from stages.training import budget as budgets
from stages.training.budget import shares_of
from stages.workflow import trained

SHAPE = (10, 12, 12)
SEED = 1  # draws pairs with an atlas, and a scan that is moved by noise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(*size, seed=0):
    return torch.rand(size, generator=generator(seed))


def config(**methods):
    values = {"workspace": "runs", "data": {"folder": "."}, "structures": {"a": 1, "b": 2}}
    return Config.model_validate(values | {"methods": methods})


def recipe_of(name, **settings):
    return METHODS[name].recipe(Task(SHAPE, 3, 1), settings_of(METHODS[name], config(**{name: settings})))


def scans():
    labels = {0: torch.randint(3, SHAPE, generator=generator()).short()}
    return Scans(["a", "u1", "u2"], textured(3, 1, *SHAPE).half(), labels, [0], [1, 2], 3, (1.0, 1.0, 1.0))


def phases_of(recipe, number=0):
    """Of both training steps of a round."""
    return [phase for makes in ("registration", "segmentation") for phase in recipe.step(makes, number).phases]


def labelled(name):
    """Scans, for `jrss` with pseudo-labels."""
    label = torch.randint(3, SHAPE, generator=generator(3)).short()
    trusted = textured(*SHAPE, seed=4) > 0.3
    pseudo = {place: PseudoLabel(label, trusted, torch.tensor([True, True, False])) for place in (1, 2)}
    return replace(scans(), pseudo=pseudo if name == "jrss" else None)


def terms(name, **settings):
    """Every term of a step of every phase of every round, and the totals."""
    recipe = recipe_of(name, **settings)
    body = recipe.networks["registration"].body
    head = (body.body if isinstance(body, Standardised) else body).head
    head.weight.data = 0.5 * (textured(*head.weight.shape) - 0.5)  # away from the identity
    values = {}
    for number in range(min(recipe.last_round, 1) + 1):
        for phase in phases_of(recipe, number):
            batch = phase.batches(labelled(name), Draw(4, None, None, generator(SEED)))
            for player in phase.players:
                with torch.no_grad():
                    total, found = player.loss(player.forward(batch))
                values |= {
                    f"{number}/{phase.name}/{player.name}/{term}": float(value)
                    for term, value in {**found, "total": total}.items()
                }
    return values


DEFAULTS: dict[str, dict[str, float]] = {}


def defaults(name):
    return DEFAULTS.setdefault(name, terms(name))


def under(name, *starts):
    return {key for key in defaults(name) if key.startswith(starts)}


JRSS_R, JRSS_STUDENT = ("0/registration", "1/registration"), "1/student/student"
JRSS_SWITCHES: list[tuple[str, object, Callable[[], set[str]], Callable[[], set[str]]]] = [
    # setting, its value, terms that go, terms that change
    ("registration_network", "light", set, lambda: under("jrss", *JRSS_R, JRSS_STUDENT)),
    ("segmentation_network", "light", set, lambda: under("jrss", "0/atlases", JRSS_STUDENT)),
    ("slope", 0.025, set, lambda: under("jrss", "")),
    ("diffeomorphic", True, set, lambda: under("jrss", *JRSS_R, JRSS_STUDENT)),
    ("smoothness_weight", 0.05, set, lambda: {f"{r}/registration/total" for r in JRSS_R}),
    ("similarity", "mi", set, lambda: {f"{r}/registration/{n}" for r in JRSS_R for n in ("similarity", "total")}),
    ("smoothness", "bending", set, lambda: {f"{r}/registration/{n}" for r in JRSS_R for n in ("smoothness", "total")}),
    (
        "overlap_weight",
        0.0,
        lambda: {f"{r}/registration/overlap" for r in JRSS_R},
        lambda: {f"{r}/registration/total" for r in JRSS_R},
    ),
    ("with_atlas", 1.0, set, lambda: under("jrss", *JRSS_R, JRSS_STUDENT)),  # whose batch is drawn behind
    (
        "weigh_classes",
        False,
        set,
        lambda: {f"{JRSS_STUDENT}/cross_entropy", f"{JRSS_STUDENT}/total"},
    ),
    ("pretraining_loss", "hard-ce", set, lambda: under("jrss", "0/atlases")),
    (
        "spare_missing",
        False,
        set,
        lambda: {f"{JRSS_STUDENT}/cross_entropy", f"{JRSS_STUDENT}/total"},
    ),
    ("dropout", 0.0, set, lambda: under("jrss", JRSS_STUDENT)),
    ("input_noise", 0.0, set, lambda: under("jrss", JRSS_STUDENT)),
    ("kl_weight", 0.0, lambda: {f"{JRSS_STUDENT}/uncertainty"}, lambda: {f"{JRSS_STUDENT}/total"}),
    ("carried_weight", 0.0, lambda: {f"{JRSS_STUDENT}/carried"}, lambda: {f"{JRSS_STUDENT}/total"}),
]


def smoothness_weight(recipe, number=0):
    return recipe.step("registration", number).phases[0].players[0].loss.terms["smoothness"][0]


def decays(recipe, number):
    """Weight decays of R and S."""
    return [player.weight_decay for phase in phases_of(recipe, number) for player in phase.players]


OTHERS = {  # what they change is no term of a step: setting -> value, what to look at
    "rounds": (5, lambda recipe: recipe.last_round),
    "round_share": (1.0, lambda recipe: [phase.share for phase in phases_of(recipe, 1)]),
    "smoothness_warm_up": (7, smoothness_weight),
    "warm_up_factor": (7.0, smoothness_weight),
    "warm_up_falls": (False, smoothness_weight),
    "threshold": (0.5, lambda recipe: recipe.step("generated", 1).writers),
    "screening": ("max", lambda recipe: recipe.step("generated", 1).writers),
    "schedule_over_rounds": (False, lambda recipe: [phase.schedule for phase in phases_of(recipe, 1)]),
    "augment_apart": (False, lambda recipe: recipe.step("registration", 0).phases[0].batches.keywords),
    "weight_decay": (0.5, lambda recipe: [decays(recipe, n)[1] for n in (0, 1)]),
    "registration_weight_decay": (0.5, lambda recipe: [decays(recipe, n)[0] for n in (0, 1)]),
    "decay_warm_up": (True, lambda recipe: recipe.step("segmentation", 1).phases[0].players[0].ema_warms_up),
    "round_pace": (0.3, lambda recipe: [[pace for _, pace in p.players[0].paces] for p in phases_of(recipe, 1)]),
    "decay": (0.5, lambda recipe: recipe.step("segmentation", 1).phases[0].players[0].ema),
    "flat_borders": (True, lambda recipe: recipe.answer.flat_borders),
}


@pytest.mark.parametrize(("setting", "value", "gone", "changed"), JRSS_SWITCHES, ids=[row[0] for row in JRSS_SWITCHES])
def test_switch_of_jrss_changes_the_terms_that_it_is_about_and_no_other(setting, value, gone, changed):
    default, found = defaults("jrss"), terms("jrss", **{setting: value})
    assert default.keys() - found.keys() == gone() and found.keys() <= default.keys()
    assert {name for name in found if found[name] != pytest.approx(default[name], rel=1e-6)} == changed()


@pytest.mark.parametrize("setting", OTHERS)
def test_other_setting_of_jrss_reaches_what_it_is_about(setting):
    value, look = OTHERS[setting]
    assert look(recipe_of("jrss", **{setting: value})) != look(recipe_of("jrss"))


def test_every_setting_of_jrss_is_in_a_table_above():
    assert {row[0] for row in JRSS_SWITCHES} | set(OTHERS) | {"preset"} == set(jrss.Settings.model_fields)


def test_jrss_has_the_papers_weights_numbers_and_networks():
    default = defaults("jrss")
    for number, ramp in (("0", 10), ("1", 1)):
        r = f"{number}/registration/registration"
        expected = (
            default[f"{r}/similarity"] + ramp * 0.025 * default[f"{r}/smoothness"] + 0.1 * default[f"{r}/overlap"]
        )
        assert default[f"{r}/total"] == pytest.approx(expected)
    s = JRSS_STUDENT
    expected = default[f"{s}/cross_entropy"] + 0.5 * default[f"{s}/uncertainty"] + default[f"{s}/carried"]
    assert default[f"{s}/total"] == pytest.approx(expected)
    recipe = recipe_of("jrss")
    assert recipe.last_round == 3
    R, S = recipe.networks["registration"], recipe.networks["segmentation"]
    assert all(type(each.body) is HybridObelisk for each in (R.body, S))
    assert smoothness_weight(recipe) == Ramp(0.25, 0.025, 300, most=0.2)
    assert smoothness_weight(recipe, 1) == 0.025
    reg, seg = (training_of(METHODS["jrss"], config(), stage) for stage in ("train_reg", "train_seg"))
    assert (reg.learning_rate, seg.learning_rate, reg.batch_size, seg.batch_size) == (4e-4, 1e-3, 2, 2)
    assert (reg.schedule, reg.optimizer, reg.augmentation, seg.augmentation) == (
        "exponential",
        "adam",
        "half-affine",
        "affine",
    )
    assert (reg.epochs, seg.epochs) == (300, 300)
    assert reg.steps == 5 * seg.steps
    assert [decays(recipe, number) for number in (0, 1)] == [[0.0, 1e-4], [0.0, 1e-4]]
    batches = recipe.step("registration", 1).phases[0].batches
    assert batches.keywords == {"with_atlas": 0.0, "apart": True}


def changed_by(preset):
    """What a preset sets otherwise than the default."""
    default, found = jrss.Settings().model_dump(), settings_of(METHODS["jrss"], config(jrss={"preset": preset}))
    return {name: value for name, value in found.model_dump().items() if value != default[name] and name != "preset"}


def test_presets_of_jrss_change_the_readings_that_they_are_about():
    assert changed_by("official") == {
        "slope": 0.025, "pretraining_loss": "hard-ce", "weight_decay": 1e-5, "registration_weight_decay": 1e-5,
        "smoothness_warm_up": 100, "warm_up_factor": 5.0, "warm_up_falls": False, "spare_missing": False,
    }  # fmt: skip
    assert changed_by("paper") == {"spare_missing": False}
    assert changed_by("abdomen") == {"threshold": 0.6}
    assert changed_by("light") == {
        "rounds": 2, "round_share": 0.5, "round_pace": 0.3, "schedule_over_rounds": False, "with_atlas": 0.5,
        "weigh_classes": False, "dropout": 0.2,
    }  # fmt: skip
    official = recipe_of("jrss", preset="official")
    assert smoothness_weight(official) == Ramp(0.125, 0.025, 100, most=0.2, jumps=True)
    assert [decays(official, number) for number in (0, 1)] == [[1e-5, 1e-5], [1e-5, 1e-5]]
    default = jrss.Settings()
    assert (default.slope, default.pretraining_loss, default.threshold) == (0.2, "dice", 0.7)
    logits, target = textured(1, 3, *SHAPE), torch.nn.functional.one_hot(torch.zeros(1, *SHAPE).long(), 3)
    target = target.movedim(-1, 1).float()
    found = precise_overlap(type("Result", (), {"logits": logits, "target": target})())
    assert float(found) == pytest.approx(float(dice_loss(logits.softmax(1), target, smooth=1e-6)))


def test_schedule_of_jrss_goes_on_from_round_to_round():
    recipe = recipe_of("jrss", rounds=3, round_share=0.25)
    assert [[(p.schedule, p.share) for p in phases_of(recipe, n)] for n in range(4)] == [
        [((0.0, 1.0), 1.0)] * 2, [((1.0, 1.25), 0.25)] * 2, [((1.25, 1.5), 0.25)] * 2, [((1.5, 1.75), 0.25)] * 2,
    ]  # fmt: skip
    anew = recipe_of("jrss", schedule_over_rounds=False)
    assert {phase.schedule for n in range(4) for phase in phases_of(anew, n)} == {(0.0, 1.0)}


def test_only_the_weighted_pre_training_of_jrss_asks_for_weights():
    draw = Draw(2, None, None, generator())
    for loss, weights in (("dice", None), ("hard-ce", class_weights(scans().class_voxels))):
        batch = recipe_of("jrss", pretraining_loss=loss).step("segmentation", 0).phases[0].batches(scans(), draw)
        assert (weights is None and batch.weights is None) or torch.equal(batch.weights, weights)


def test_networks_of_jrss_are_those_that_are_named_and_see_standardised_images():
    recipe = recipe_of("jrss", registration_network="light", segmentation_network="light")
    R, S = recipe.networks["registration"], recipe.networks["segmentation"]
    assert type(R.body) is Standardised and type(S) is Standardised
    assert type(R.body.body) is LightUNet and type(S.body) is LightUNet
    image = textured(1, 1, *SHAPE)
    with torch.no_grad():
        S.eval()
        torch.testing.assert_close(S(image), S(0.3 + 2 * image), atol=1e-3, rtol=1e-3)


def test_teacher_is_no_network_that_is_trained_or_kept():
    recipe = recipe_of("jrss")
    step = recipe.step("segmentation", 2)
    teacher, student = step.as_before["segmentation"], step.phases[0].players[0]
    assert student.trains is recipe.networks["segmentation"] and student.forward.teacher is teacher
    assert recipe.networks.keys() == {"registration", "segmentation"}
    assert all(each is not teacher for each in recipe.networks.values())
    assert recipe.trained(step) == {"segmentation": recipe.networks["segmentation"]}
    assert recipe_of("jrss", rounds=0).last_round == 0 and recipe_of("brbs").last_round == 0


def test_every_round_starts_with_what_the_last_one_trained_and_its_teacher_is_that():
    rounds = recipe_of("jrss", rounds=2).rounds
    made = [[step.makes for step in of_round] for of_round in rounds]
    assert made == [["registration", "segmentation"], *[["generated", "registration", "segmentation"]] * 2]
    assert not any(step.as_before for step in rounds[0])
    assert [step.uses for step in rounds[1]] == [["segmentation"], ["generated"], ["registration", "generated"]]


JOINT_SWITCHES = {
    # setting -> value, part of the names of terms that go, names of terms that change
    "deep-atlas": {
        "similarity": ("mi", None, ("registration/similarity", "registration/total")),
        "smoothness": ("bending", None, ("registration/smoothness", "registration/total")),
        "smoothness_weight": (2.0, None, ("registration/total",)),
        "anatomy_weight": (0.0, "anatomy", ("in-turn/registration/total", "together/registration/total",
                                            "in-turn/segmentation/total", "together/segmentation/total")),
        "diffeomorphic": (True, None, ("registration/", "segmentation/anatomy", "in-turn/segmentation/total",
                                       "together/segmentation/total")),
    },
    "rsegnet": {
        "similarity": ("mi", None, ("registration/similarity", "registration/total")),
        "smoothness": ("bending", None, ("registration/smoothness", "registration/total")),
        "smoothness_weight": (2.0, None, ("registration/total",)),
        "inverse_weight": (0.0, "inverse_consistency", ("registration/total",)),
        "anatomy_weight": (0.0, "anatomy", ("together/registration/total", "together/segmentation/total")),
        "diffeomorphic": (False, None, ("registration/", "segmentation/anatomy", "together/segmentation/total")),
    },
}  # fmt: skip
JOINT_OTHERS = {
    "registration_network": ("light", lambda recipe: type(recipe.networks["registration"].body)),
    "segmentation_network": ("light", lambda recipe: type(recipe.networks["segmentation"])),
    "alone_share": (0.1, lambda recipe: [phase.share for phase in phases_of(recipe)]),
    "alternating_share": (0.1, lambda recipe: [phase.share for phase in phases_of(recipe)]),
    "segmentation_learning_rate": (
        0.5,
        lambda recipe: {p.learning_rate for x in phases_of(recipe) for p in x.players},
    ),
    "flat_borders": (True, lambda recipe: recipe.answer.flat_borders),
}


@pytest.mark.parametrize(("name", "setting"), [(n, s) for n, rows in JOINT_SWITCHES.items() for s in rows])
def test_switch_of_joint_training_changes_the_terms_that_it_is_about(name, setting):
    value, gone, changed = JOINT_SWITCHES[name][setting]
    default, found = defaults(name), terms(name, **{setting: value})
    assert default.keys() - found.keys() == {key for key in default if gone and key.endswith(gone)}
    differing = {key for key in found if found[key] != pytest.approx(default[key], rel=1e-6)}
    assert differing == {key for key in found if any(part in key for part in changed)}


@pytest.mark.parametrize("model", [deep_atlas, rsegnet], ids=["deep-atlas", "rsegnet"])
def test_other_settings_of_joint_training_reach_what_they_are_about(model):
    name = model.METHOD.name
    others = set(model.Settings.model_fields) - set(JOINT_SWITCHES[name]) - {"preset"}
    assert others <= set(JOINT_OTHERS)
    for setting in others:
        value, look = JOINT_OTHERS[setting]
        assert look(recipe_of(name, **{setting: value})) != look(recipe_of(name)), setting


def test_deep_atlas_learns_alone_then_in_turn_then_together():
    phases = recipe_of("deep-atlas").step("registration", 0).phases
    assert [[(p.name, p.every) for p in phase.players] for phase in phases] == [
        [("registration", 1)], [("segmentation", 1)], [("registration", 1), ("segmentation", 20)],
        [("registration", 1), ("segmentation", 1)],
    ]  # fmt: skip
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    for name in ("deep-atlas", "rsegnet"):
        recipe = recipe_of(name)
        assert recipe.answer.network is recipe.networks["segmentation"]
        assert recipe.trained(recipe.step("registration", 0)) == recipe.networks
        assert not recipe.step("segmentation", 0).phases  # it keeps what was trained beside R
        light = config(**{name: {"registration_network": "light"}})
        sizes = [training_of(METHODS[name], each, "train_reg").batch_size for each in (light, config())]
        assert sizes == [2, 1]


# Rounds, through the commands


SMALL = {"preprocess": {"shape": [16, 16, 16], "spacing_mm": 3.0}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory, new_project, no_pictures_in_module) -> Project:
    """A project in which jrss has run with two rounds; tests that add versions copy it."""
    project = new_project(tmp_path_factory.mktemp("rounds"), **SMALL)
    project.made("run", "--method", "jrss")
    return project


@pytest.fixture
def copied(shared, tmp_path, monkeypatch) -> Project:
    draw_no_pictures(monkeypatch)
    shutil.copytree(shared.folder, tmp_path / "copy")
    return Project(tmp_path / "copy")


def rounds_of(project: Project, kind: str) -> list[int]:
    return [project.manifest(f"jrss/{kind}", version).identity.round for version in project.versions(f"jrss/{kind}")]


def test_each_round_reads_what_the_one_before_made(shared):
    assert rounds_of(shared, "registration") == rounds_of(shared, "segmentation") == [0, 1, 2]
    assert rounds_of(shared, "generated") == [1, 2] and rounds_of(shared, "scores") == [2]
    digests = shared.digests()
    r, g, s = (
        {n: digests[f"jrss/{kind}/v000{n + first}"] for n in range(1 - first, 3)}
        for kind, first in (("registration", 1), ("generated", 0), ("segmentation", 1))
    )
    cohort = digests["cohort/v0001"]

    def inputs(kind, version):
        return shared.manifest(f"jrss/{kind}", f"v000{version}").identity.inputs

    assert inputs("registration", 1) == {"cohort": cohort}
    for n in (1, 2):
        assert inputs("generated", n) == {"cohort": cohort, "segmentation": s[n - 1]}
        assert inputs("registration", n + 1) == {"cohort": cohort, "registration": r[n - 1], "generated": g[n]}
        assert inputs("segmentation", n + 1) == {
            "cohort": cohort, "registration": r[n], "generated": g[n], "segmentation": s[n - 1],
        }  # fmt: skip
    scored = inputs("scores", 1)
    assert (scored["registration"], scored["segmentation"]) == (r[2], s[2])
    assert (scored["pseudo-labels/1"], scored["pseudo-labels/2"]) == (g[1], g[2])


def test_pseudo_labels_are_screened_as_the_file_says(shared):
    folder = shared.workspace / "jrss" / "generated" / "v0001"
    with h5py.File(folder / "generated.h5") as file:
        group = file["pseudo"]
        assert list(group["scan"].asstr()[()]) == ["free_1", "free_2"]
        certainty, trusted, label = (group[name][()] for name in ("certainty", "trusted", "label"))
        sure = np.abs(certainty.astype(float) - 0.2) > 1e-3  # float16
        assert np.array_equal((certainty > 0.2)[sure], trusted[sure])
        for row in range(2):
            for c in range(5):
                here = label[row] == c
                assert group["class_voxels"][row, c] == here.sum()
                if here.any():
                    mean = certainty[row][here].astype(float).mean()
                    assert group["class_confidence"][row, c] == pytest.approx(mean, abs=1e-3)
        found = Generated.open(folder).pseudo_labels(["x", "free_2", "free_1"], torch.device("cpu"))
        assert set(found) == {1, 2}
        assert np.array_equal(found[2].label.numpy(), label[0]) and np.array_equal(found[1].trusted.numpy(), trusted[1])
    table = pd.read_csv(folder / "qc" / "pseudo-labels.csv")
    assert len(table) == 2 * 5 and (folder / "qc" / "pseudo-labels.png").exists()


def read_labels(project, version):
    """(scans, D, H, W)."""
    with h5py.File(project.workspace / "jrss" / "generated" / version / "generated.h5") as file:
        assert list(file["pseudo"]["scan"].asstr()[()]) == ["free_1", "free_2"]
        return file["pseudo"]["label"][()]


def test_scores_say_how_pseudo_labels_changed_and_their_dice_only_when_asked(shared, copied):
    scores = shared.workspace / "jrss" / "scores" / "v0001"
    table = pd.read_csv(scores / "rounds.csv")
    assert list(table["round"]) == [1, 2] and "dsc" not in table
    assert table[["trusted_voxels", "accepted_structures", "labelled_scans"]].stack().between(0, 1).all()
    labels = [read_labels(shared, f"v000{number}") for number in (1, 2)]
    either = (labels[0] > 0) | (labels[1] > 0)
    assert np.isnan(table["changed_voxels"][0])
    assert table["changed_voxels"][1] == pytest.approx((labels[0] != labels[1]).sum() / max(1, either.sum()), abs=1e-5)
    cohort = Cohort.open(shared.workspace / "cohort" / "v0001")
    sizes = [(label > 0).sum() / len(label) / (cohort.label("atlas_1") > 0).sum() for label in labels]
    assert cohort.parts["atlases"] == ["atlas_1"] and list(table["volume_of_atlas"]) == pytest.approx(sizes, abs=1e-5)
    assert not any(role.startswith("scan/") for role in shared.manifest("jrss/scores").identity.inputs)
    done = copied.made("run", "--method", "jrss", "--set", "eval.pseudo_labels=true")
    assert rounds_of(copied, "segmentation") == [0, 1, 2]  # nothing is trained anew
    newest = copied.workspace / "jrss" / "scores" / "v0002"
    assert done.out.splitlines()[-1] == str(newest)
    assert pd.read_csv(newest / "rounds.csv")["dsc"].between(0, 1).all()
    summary = json.loads((newest / "summary.json").read_text())
    assert [row["round"] for row in summary["rounds"]] == [1, 2]
    roles = copied.manifest("jrss/scores", "v0002").identity.inputs
    assert {"scan/free_1", "scan/free_2"} <= set(roles)


def test_the_same_command_again_makes_nothing_and_a_round_more_goes_on_from_the_last(copied):
    before = copied.digests()
    copied.made("run", "--method", "jrss")
    assert copied.digests() == before
    copied.made("run", "--method", "jrss", "--set", "methods.jrss.rounds=3")
    assert rounds_of(copied, "segmentation") == [0, 1, 2, 3] and rounds_of(copied, "scores") == [2, 3]
    assert {name: digest for name, digest in copied.digests().items() if name in before} == before


def test_a_round_can_be_scored_stopped_at_and_made_again(copied):
    before = copied.digests()
    done = copied.made("eval", "--method", "jrss", "--round", "1")
    assert "jrss, round 1, segmentation" in done.out
    assert rounds_of(copied, "scores") == [2, 1]
    inputs = copied.manifest("jrss/scores", "v0002").identity.inputs
    assert inputs["segmentation"] == before["jrss/segmentation/v0002"] and "pseudo-labels/2" not in inputs
    assert copied.made("compare", "--method", "jrss")
    compared = copied.manifest("compare").identity.inputs
    assert list(compared.values()) == [before["jrss/scores/v0001"]]  # the last round's, not the newest

    for stage in ("generate", "train-reg", "train-seg"):  # the same again, and the old ones stay
        copied.made(stage, "--method", "jrss", "--round", "1", "--force")
    digests = copied.digests()
    assert digests["jrss/generated/v0003"] == before["jrss/generated/v0001"]
    assert digests["jrss/registration/v0004"] == before["jrss/registration/v0002"]
    assert digests["jrss/segmentation/v0004"] == before["jrss/segmentation/v0002"]
    assert before.items() <= digests.items()
    copied.made("run", "--method", "jrss")
    assert rounds_of(copied, "segmentation") == [0, 1, 2, 1]


def test_new_scans_are_answered_by_the_last_round_or_the_one_that_is_named(copied, scans, tmp_path):
    image = scans / "images" / "test_1.nii.gz"
    copied.made("predict", str(image), "--method", "jrss", "--out", str(tmp_path / "out"))
    found, scored = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "test_1.nii.gz")))
        for folder in (tmp_path / "out", copied.workspace / "jrss" / "scores" / "v0001" / "labels")
    )
    assert np.array_equal(found, scored)

    option, model = ("--method", "jrss", "--round", "1"), tmp_path / "model.zip"
    copied.made("calibrate", *option, "--couples", "9")
    copied.made("export", *option, "--out", str(model))
    assert rounds_of(copied, "calibration") == [1]
    opened, made = open_model(model), trained(copied.config, "jrss", round=1)
    assert opened.calibration is not None
    assert made.generated.manifest.identity.round == made.segmentation.manifest.identity.round == 1
    expected = model_of(made, copied.config, "jrss").recipe.answer.network.state_dict()
    kept = opened.recipe.answer.network.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in expected.items())
    last = model_of(trained(copied.config, "jrss"), copied.config, "jrss").recipe.answer.network.state_dict()
    assert any(not torch.equal(kept[name], value) for name, value in last.items())


def test_settings_of_later_rounds_leave_the_first_training_as_it_is(copied):
    copied.made("run", "--method", "jrss", "--round", "1", "--set", "methods.jrss.threshold=0.25")
    assert rounds_of(copied, "registration") == [0, 1, 2, 1]
    assert rounds_of(copied, "generated") == [1, 2, 1]
    assert rounds_of(copied, "scores") == [2, 1]
    found = latest(copied.workspace / "jrss" / "segmentation", kind="segmentation", round=1)
    assert found.name == "v0004"
    one, other = (copied.manifest("jrss/segmentation", v).identity.inputs for v in ("v0002", "v0004"))
    assert one["segmentation"] == other["segmentation"] and one["generated"] != other["generated"]


def test_the_first_training_alone_and_single_stages_of_a_round_in_turn_make_what_run_makes(
    shared, tmp_path, new_project, monkeypatch
):
    draw_no_pictures(monkeypatch)
    project = new_project(tmp_path, **SMALL)
    project.made("run", "--method", "jrss", "--round", "0", "--until", "train-seg")
    assert rounds_of(project, "segmentation") == [0] and not project.versions("jrss/generated")
    done = project.lrls("train-reg", "--method", "jrss", "--round", "1")
    assert done.code == 1 and "generated" in done.err
    for stage in ("generate", "train-reg", "train-seg"):
        project.made(stage, "--method", "jrss", "--round", "1")
    assert project.digests().items() <= shared.digests().items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--method", "jrss"), "jrss generates nothing in round 0; name another one with --round."),
        (("eval", "--method", "jrss", "--round", "3"),
         "--round: found 3, expected 0 to 2; set methods.jrss.rounds for more."),
        (("run", "--method", "jrss", "--round", "-1"),
         "--round: found -1, expected 0 to 2; set methods.jrss.rounds for more."),
        (("train-seg", "--method", "unet", "--round", "1"),
         "--round: found 1, but unet has no rounds; leave --round out."),
    ],
)  # fmt: skip
def test_rounds_that_there_are_not_are_refused(arguments, message, shared):
    command, *rest = arguments
    done = shared.lrls(command, *rest)
    assert (done.code, done.err.strip().splitlines()[-1]) == (1, f"lrls: {message}")


def test_rounds_and_looks_that_there_are_not_are_refused_before_scans_are_aligned(new_project, tmp_path):
    project = new_project(tmp_path, **SMALL)
    looks = f"appearance_from={tmp_path}"
    for method, option, value, message in (
        ("jrss", "--round", "7", "--round: found 7"),
        ("jrss", "--set", f"methods.jrss.{looks}", "methods.jrss: unknown setting appearance_from; known here: "),
        ("sst", "--set", f"methods.sst.{looks}", "methods.sst.appearance_from: found no sst/registration in "),
    ):
        done = project.lrls("run", "--method", method, option, value)
        assert done.code == 1 and message in done.err
    assert not project.versions("cohort")


def test_a_round_without_pseudo_labels_is_warned_of(copied):
    certain = ("--set", "methods.jrss.threshold=0.999999")
    done = copied.made("generate", "--method", "jrss", "--round", "1", *certain)
    assert "0 of 2 scans have a structure that the network is sure of (threshold 0.999999)" in done.out
    assert "Warning: this round has no pseudo-label and learns from the atlases alone" in done.out


def test_pseudo_labels_are_scored_where_there_are_labels(copied, scans, tmp_path):
    folder = tmp_path / "without"
    shutil.copytree(scans, folder)
    for scan in ("free_1", "free_2"):
        (folder / "labels" / f"{scan}.nii.gz").unlink()
    settings = ("eval.pseudo_labels=true", f"data.folder={folder}")
    done = copied.made("eval", "--method", "jrss", *(word for each in settings for word in ("--set", each)))
    assert "no unlabelled scan has a label map in data.labels: pseudo-labels are not scored" in done.out
    newest = copied.workspace / "jrss" / "scores" / copied.versions("jrss/scores")[-1]
    assert "dsc" not in pd.read_csv(newest / "rounds.csv")


def test_a_round_that_is_stopped_goes_on_at_its_checkpoint_and_ends_the_same(shared, copied, monkeypatch):
    """The student of round 2, with its average, its dropout and its noise; killed in its last step."""
    import stages.training.loop as training

    shutil.rmtree(copied.workspace / "jrss" / "segmentation" / "v0003")
    shutil.rmtree(copied.workspace / "jrss" / "scores")
    real, moves = training._move, []

    def stopped(*arguments):
        moves.append(1)
        if len(moves) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "_move", stopped)
    assert copied.lrls("run", "--method", "jrss").code == 130
    assert rounds_of(copied, "segmentation") == [0, 1]
    moves.clear()
    copied.made("run", "--method", "jrss")
    assert len(moves) == 2  # steps 3 and 4 of 4
    assert copied.digests()["jrss/segmentation/v0003"] == shared.digests()["jrss/segmentation/v0003"]


def test_the_next_teacher_is_the_average_of_the_student(shared, copied):
    copied.made("train-seg", "--method", "jrss", "--round", "1", "--set", "methods.jrss.decay=0")
    assert copied.digests()["jrss/segmentation/v0004"] != shared.digests()["jrss/segmentation/v0002"]
    assert copied.manifest("jrss/segmentation", "v0004").identity.inputs == (
        shared.manifest("jrss/segmentation", "v0002").identity.inputs
    )


def test_no_label_of_an_unlabelled_scan_reaches_a_round(shared, scans, new_project, tmp_path, monkeypatch):
    draw_no_pictures(monkeypatch)
    folder = tmp_path / "scans"
    shutil.copytree(scans, folder)
    for case in CASES:
        if case not in ("atlas_1", "atlas_2"):
            (folder / "labels" / f"{case}.nii.gz").unlink()
    project = new_project(tmp_path / "without", data={"folder": str(folder), "supervised": []}, **SMALL)
    project.made("run", "--method", "jrss", "--until", "train-seg")
    assert project.digests().items() <= shared.digests().items()


# Budgets


def test_every_stage_of_every_round_gets_its_share_of_the_time(copied, monkeypatch):
    monkeypatch.setattr(budgets, "step_seconds", lambda run: 20.0 * sum(phase.share for phase in run.phases))
    for kind in ("registration", "segmentation", "generated", "scores"):
        shutil.rmtree(copied.workspace / "jrss" / kind)
    # 4 steps are trained whatever the plan says.
    monkeypatch.setattr("stages.training.runs.train", lambda _: [])
    monkeypatch.setattr(PseudoLabels, "planned_seconds", lambda *_: 7.0)
    copied.made(
        "run", "--method", "jrss", "--until", "train-seg", "--budget", "2h", "--set", "methods.jrss.round_share=0.5"
    )
    plans = [
        (
            copied.manifest("jrss/steps", v).identity,
            json.loads((copied.workspace / "jrss" / "steps" / v / "steps.json").read_text()),
        )
        for v in copied.versions("jrss/steps")
    ]
    assert [(p.round, p.config["stage"]) for p, _ in plans] == [
        (n, stage) for n in range(3) for stage in ("train_reg", "train_seg")
    ]
    # 1 + 1/2 + 1/2 for either stage; nothing is really trained, so that nearly all the time is left each time.
    shares = [0.5 / 2, 0.5 / 1.5, 0.25 / 1, 0.25 / 0.75, 0.25 / 0.5, 1]
    for (identity, plan), share in zip(plans, shares, strict=True):
        left = 7200 * (1 - budgets.MARGIN) - plan["spent_s"] - plan["generate_s"]
        assert plan["left_s"] == pytest.approx(left * share)
        step_s = 20.0 * (0.5 if identity.round else 1)
        assert plan["steps"] == pytest.approx(plan["left_s"] / step_s, abs=2)
    # Pseudo-labels of rounds 1 and 2 are still to be made.
    assert [plan["generate_s"] for _, plan in plans] == [14.0, 14.0, 7.0, 7.0, 0, 0]
    assert [plan["spent_s"] for _, plan in plans] == sorted(plan["spent_s"] for _, plan in plans)


def test_steps_of_a_budget_are_divided_over_all_rounds():
    recipe = recipe_of("jrss", rounds=2, round_share=0.5)
    assert shares_of(recipe) == {
        (0, "train_reg"): 1, (0, "train_seg"): 1, (1, "train_reg"): 0.5, (1, "train_seg"): 0.5,
        (2, "train_reg"): 0.5, (2, "train_seg"): 0.5,
    }  # fmt: skip
    assert shares_of(recipe_of("unet")) == {(0, "train_seg"): 1}


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(LrlsError, match=r"unknown setting treshold; did you mean threshold\?"):
        settings_of(METHODS["jrss"], config(jrss={"treshold": 0.5}))

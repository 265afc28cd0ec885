"""OS-MedSeg, CLMorph and label-constrained VoxelMorph: every switch, whom gradients reach, what batches hold."""

from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from conftest import Project, goes_on_after_a_fault
from recipes import SHAPE, built, config, generator, phases, textured, writer
from torch import nn

from stages.answering.registering import displacements
from stages.artifacts.cohort import Cohort
from stages.artifacts.weights import Registration
from stages.artifacts.weights_file import load_weights
from stages.config import load_config
from stages.device import Device
from stages.errors import LrlsError
from stages.generating.propagated import PropagatedLabels
from stages.generating.warped_atlases import WarpedAtlases
from stages.methods import METHODS, clmorph, os_medseg, recipe_of, settings_of, training_of, voxelmorph
from stages.parts.augmentation import IntensityAugmentation, SpatialAugmentation
from stages.parts.batches.drawing import Draw
from stages.parts.batches.labelled import triples
from stages.parts.batches.pairs import atlas_and_different_scans, atlas_and_scan, scans_and_labelled_pairs
from stages.parts.batches.scans import Scans
from stages.parts.instance import InstanceOptimisation
from stages.parts.losses import dice_loss
from stages.parts.networks.siamese import PooledSiameseUNet, SiameseUNet
from stages.parts.networks.teacher_student import ResidualUNet
from stages.parts.networks.unet import LightUNet, UNet
from stages.parts.players.registering import Registered, mean_squares, mutual_information
from stages.parts.warps import one_hot, warp, warp_label

TURNED = SpatialAugmentation(degrees=15.0, scale=(0.8, 1.2))


def scans(**changes):
    """Two atlases, three scans, and a warped atlas for each of these; image i is about i / 10."""
    images = torch.stack([0.1 * i + 0.05 * textured(1, *SHAPE, seed=i) for i in range(5)]).half()
    labels = {i: torch.randint(3, SHAPE, generator=generator(i)).short() for i in (0, 1)}
    samples = [SimpleNamespace(image=images[i].flip(1), label=labels[0], scan=f"u{i}", atlas="a") for i in (2, 3, 4)]
    data = Scans(["a0", "a1", "u2", "u3", "u4"], images, labels, [0, 1], [2, 3, 4], 3, (1.0,) * 3, samples=samples)
    return replace(data, **changes)


def drawing(batch_size=2, space=None, seed=0):
    return Draw(batch_size, space, None, generator(seed))


def of_two(name, **settings):
    """The recipe for two atlases."""
    return built(name, atlases=2, **settings)


def terms(name, **settings):
    """Every term of a step of both stages, and the totals; R moves things."""
    recipe = of_two(name, **settings)
    if recipe.learns_registration:
        nn.init.normal_(recipe.networks["registration"].body.head.weight, std=0.1, generator=generator())
    values = {}
    for phase in (*phases(recipe, "registration"), *phases(recipe, "segmentation")):
        (player,) = phase.players
        with torch.no_grad():
            total, found = player.loss(player.forward(phase.batches(scans(), drawing())))
        stage = "reg" if player.name == "registration" else "seg"
        values |= {f"{stage}/{name}": float(term) for name, term in {**found, "total": total}.items()}
    return values


def changed(default, found):
    return {name for name in found if found[name] != pytest.approx(default[name], rel=1e-6, abs=0)}


# Switches

REG = {f"reg/{name}" for name in ("similarity", "smoothness", "contrast", "total")}
SEG = {f"seg/{name}" for name in ("segmentation", "reconstruction", "hint", "total")}
SWITCHES = [
    # setting, its value, terms that go, terms that change
    ("registration", "instance", REG, set()),
    ("registration_network", "light", set(), REG),
    ("diffeomorphic", True, set(), {"reg/similarity", "reg/smoothness", "reg/total"}),
    ("similarity", "mi", set(), {"reg/similarity", "reg/total"}),
    ("smoothness", "bending", set(), {"reg/smoothness", "reg/total"}),
    ("smoothness_weight", 2.0, set(), {"reg/total"}),
    ("contrastive_weight", 0.5, set(), {"reg/total"}),
    ("contrast", "nt-xent", set(), {"reg/contrast", "reg/total"}),
    ("scans_per_epoch", 29, set(), set()),  # how many steps, see below
    ("most_samples", 2, set(), set()),  # what `generate` writes, see below
    ("segmentation_network", "light", set(), SEG),
    ("teacher", False, {"seg/reconstruction", "seg/hint"}, {"seg/total"}),
    ("teacher_share", 0.5, set(), {"seg/total"}),  # who learns when, see below
    ("student_sees", "real", set(), {"seg/segmentation", "seg/hint", "seg/total"}),
    ("segmentation_loss", "dice-ce", set(), {"seg/segmentation", "seg/total"}),
    ("segmentation_weight", 0.0, {"seg/segmentation"}, {"seg/total"}),
    ("reconstruction_weight", 0.0, {"seg/reconstruction"}, {"seg/total"}),
    ("hint_weight", 10.0, set(), {"seg/total"}),
    ("hint_loss", "l2", set(), {"seg/hint", "seg/total"}),
    ("hint_layers", 1, set(), {"seg/hint", "seg/total"}),
    ("hint_from", "figure", set(), {"seg/hint", "seg/total"}),
    ("hint_detach", "none", set(), set()),  # whom gradients reach, see below
]


@pytest.fixture(scope="module")
def default():
    return terms("os-medseg")


@pytest.mark.parametrize(("setting", "value", "gone", "moved"), SWITCHES, ids=[row[0] for row in SWITCHES])
def test_switch_changes_the_terms_that_it_is_about_and_no_other(default, setting, value, gone, moved):
    found = terms("os-medseg", **{setting: value})
    assert default.keys() - found.keys() == gone
    assert found.keys() <= default.keys()
    assert changed(default, found) == moved


def test_every_setting_is_in_the_table_above():
    assert {row[0] for row in SWITCHES} | {"preset"} == set(os_medseg.Settings.model_fields)


def test_totals_have_the_papers_weights(default):
    reg, seg = ({key.split("/")[1]: v for key, v in default.items() if key.startswith(s)} for s in ("reg", "seg"))
    assert reg["total"] == pytest.approx(reg["similarity"] + reg["smoothness"] + 0.01 * reg["contrast"])
    assert seg["total"] == pytest.approx(seg["segmentation"] + seg["reconstruction"] + seg["hint"])


def set_by(preset):
    """The settings in which a preset is not the default."""
    given = settings_of(os_medseg.METHOD, config(**{"os-medseg": {"preset": preset}})).model_dump()
    plain = os_medseg.Settings().model_dump()
    return {name: value for name, value in given.items() if name != "preset" and value != plain[name]}


def test_presets_are_the_papers_abdomen_and_the_published_code(default):
    assert set_by("abdomen") == {
        "similarity": "mi", "smoothness": "bending", "hint_weight": 10, "scans_per_epoch": 29,
    }  # fmt: skip
    assert set_by("official") == {"similarity": "lncc-means", "contrast": "nt-xent", "hint_detach": "both"}
    mine = settings_of(os_medseg.METHOD, config(**{"os-medseg": {"preset": "abdomen", "hint_weight": 2}}))
    assert (mine.similarity, mine.hint_weight) == ("mi", 2)


def test_the_papers_network_is_understood_by_the_name_that_other_methods_have_for_it():
    residual = settings_of(os_medseg.METHOD, config(**{"os-medseg": {"segmentation_network": "residual"}}))
    assert residual == os_medseg.Settings() and residual.segmentation_network == "os-medseg"


def test_networks_are_those_that_are_named():
    recipe = of_two("os-medseg")
    assert type(recipe.networks["registration"].body) is SiameseUNet
    for name, kind in (("os-medseg", ResidualUNet), ("full", UNet), ("light", LightUNet)):
        recipe = of_two("os-medseg", segmentation_network=name)
        student = recipe.answer.network
        assert type(getattr(student, "body", student)) is kind
        assert type(recipe.networks["teacher"]) is kind
        assert recipe.networks["teacher"](textured(1, 1, *SHAPE)).shape == (1, 1, *SHAPE)
    assert student(textured(1, 1, *SHAPE)).shape == (1, 3, *SHAPE)


def test_instance_optimisation_takes_the_place_of_training():
    recipe = of_two("os-medseg", registration="instance", smoothness_weight=2.0)
    assert not recipe.learns_registration and recipe.step("registration", 0) is None
    assert recipe.answer.registers == InstanceOptimisation(smoothness=2.0)
    assert recipe.looks_at_unlabeled


def test_as_many_warped_atlases_are_written_as_the_setting_says():
    assert writer(of_two("os-medseg")) == WarpedAtlases(most=None)
    assert writer(of_two("os-medseg", most_samples=2)) == WarpedAtlases(most=2)


def test_student_alone_has_no_teacher_in_its_artifact_and_no_picture_of_one():
    recipe = of_two("os-medseg", teacher=False)
    step = recipe.step("segmentation", 0)
    assert recipe.trained(step).keys() == {"segmentation"} and not step.pages
    both = of_two("os-medseg")
    assert both.trained(both.step("segmentation", 0)).keys() == {"segmentation", "teacher"}


@pytest.mark.parametrize("network", ["os-medseg", "light"])
@pytest.mark.parametrize("settings", [{"teacher": False}, {"hint_weight": 0}, {"hint_detach": "both"}])
def test_nothing_left_to_learn_from_is_an_error(network, settings):
    with pytest.raises(LrlsError, match="leaves it nothing to learn from; set segmentation_weight, or teacher"):
        of_two("os-medseg", segmentation_network=network, segmentation_weight=0, **settings)


@pytest.mark.parametrize("network", ["os-medseg", "light"])
@pytest.mark.parametrize(
    "off", ["segmentation_weight", "reconstruction_weight", "hint_weight"], ids=lambda name: name.split("_")[0]
)
def test_rows_of_table_iv_train(network, off):
    recipe = of_two("os-medseg", segmentation_network=network, **{off: 0})
    for phase in phases(recipe, "segmentation"):
        for player in phase.players:
            total, _ = player.loss(player.forward(phase.batches(scans(), drawing())))
            total.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in recipe.networks["segmentation"].parameters())
    # A teacher learns first only where it learns, and has somebody to tell.
    assert [phase.name for phase in phases(recipe, "segmentation")][:-1] == (
        ["reconstruction"] if (network, off) == ("light", "segmentation_weight") else []
    )


def test_more_hint_layers_than_the_decoder_has_are_refused():
    message = r"^methods\.os-medseg\.hint_layers: found 5, expected at most 3, which .*; set hint_layers lower"
    with pytest.raises(LrlsError, match=message):
        of_two("os-medseg", hint_layers=5)
    of_two("os-medseg", hint_layers=5, teacher=False)
    of_two("os-medseg", hint_layers=3)
    with pytest.raises(LrlsError, match=r"found 3, expected at most 2, which .*\(hint_from: figure\); set hint_layers"):
        of_two("os-medseg", hint_layers=3, hint_from="figure")


def test_similarities_fall_as_images_come_together():
    fixed = textured(1, 1, *SHAPE)
    for term in (mutual_information, mean_squares):
        near, far = (
            float(term(Registered(fixed.roll(shift, 4), fixed, torch.zeros(1, 3, *SHAPE), directions=1)))
            for shift in (0, 1)
        )
        assert near < far
    moved = Registered(fixed + 0.5, fixed, torch.zeros(1, 3, *SHAPE), directions=2)
    assert float(mean_squares(moved)) == pytest.approx(2 * 0.25)


def test_schedules_are_the_papers_or_short_for_the_light_networks():
    stages = {stage: training_of(os_medseg.METHOD, config(), stage) for stage in ("train_reg", "train_seg")}
    assert [stage.learning_rate for stage in stages.values()] == [1e-4, 1e-3]
    assert {(each.batch_size, each.optimizer, each.schedule) for each in stages.values()} == {(2, "adam", "constant")}
    assert [stage.steps for stage in stages.values()] == [83_500, 33_400]  # 500 and 200 epochs of OASIS's 334 scans
    bcv = config(**{"os-medseg": {"preset": "abdomen"}})  # of 29
    assert [training_of(os_medseg.METHOD, bcv, stage).steps for stage in stages] == [7250, 2900]
    mine = config(**{"os-medseg": {"preset": "abdomen", "scans_per_epoch": 10, "train_seg": {"steps": 7}}})
    assert [training_of(os_medseg.METHOD, mine, stage).steps for stage in stages] == [2500, 7]
    light = config(**{"os-medseg": {"registration_network": "light", "segmentation_network": "light"}})
    for stage in stages:
        found = training_of(os_medseg.METHOD, light, stage)
        assert (found.schedule, found.batch_size) == ("one-cycle", 2)


# Whom gradients reach


def hint_gradients(**settings):
    """Largest gradient of the hint alone over the decoder of (student, teacher); None: it has none."""
    recipe = of_two("os-medseg", **settings)
    (phase,) = phases(recipe, "segmentation")
    (player,) = phase.players
    hint = player.loss(player.forward(phase.batches(scans(), drawing())))[1]["hint"]
    if not hint.requires_grad:
        return None, None
    hint.backward()
    found = []
    for network in (recipe.networks["segmentation"], recipe.networks["teacher"]):
        gradients = [p.grad.abs().max() for p in network.parameters() if p.grad is not None]
        found.append(float(max(gradients)) if gradients else None)
    return tuple(found)


@pytest.mark.parametrize("loss", ["cosine", "l2"])
def test_hint_reaches_the_student_and_not_the_teacher(loss):
    student, teacher = hint_gradients(hint_loss=loss)
    assert student > 1e-4 and teacher is None
    student, teacher = hint_gradients(hint_loss=loss, hint_detach="none")
    assert student > 1e-4 and teacher > 1e-4
    assert hint_gradients(hint_loss=loss, hint_detach="both") == (None, None)


def test_without_reconstruction_hints_teach_the_teacher_too():
    student, teacher = hint_gradients(reconstruction_weight=0)
    assert student > 1e-4 and teacher > 1e-4
    for unheard in ({"hint_weight": 0}, {"teacher": False}):
        of_two("os-medseg", reconstruction_weight=0, hint_detach="teacher", **unheard)
    assert hint_gradients(reconstruction_weight=0, hint_detach="both") == (None, None)


@pytest.mark.parametrize(
    ("hint_from", "found"),
    [("code", [(32, (6, 6, 6)), (16, (12, 12, 12))]), ("figure", [(64, (3, 3, 3)), (32, (6, 6, 6))])],
)
def test_hints_come_from_the_last_layers_or_as_in_the_figure_from_those_before(hint_from, found):
    recipe = of_two("os-medseg", hint_from=hint_from)
    (phase,) = phases(recipe, "segmentation")
    result = phase.players[0].forward(phase.batches(scans(), drawing()))
    for network, hints in zip(("segmentation", "teacher"), result.hints, strict=True):
        assert [(hint.shape[1], tuple(hint.shape[2:])) for hint in hints] == found
        seen = recipe.networks[network].features(getattr(phase.batches(scans(), drawing()), SEES[network]))
        for hint, feature in zip(hints, seen[1:] if hint_from == "code" else seen[:-1], strict=True):
            torch.testing.assert_close(hint, feature)


SEES = {"segmentation": "image", "teacher": "scan"}


def test_segmentation_teaches_the_student_and_reconstruction_the_teacher():
    recipe = of_two("os-medseg")
    (phase,) = phases(recipe, "segmentation")
    (player,) = phase.players
    found = player.loss(player.forward(phase.batches(scans(), drawing())))[1]
    student, teacher = list(recipe.networks["segmentation"].parameters()), list(recipe.networks["teacher"].parameters())
    for term, moved, still in (("segmentation", student, teacher), ("reconstruction", teacher, student)):
        gradients = torch.autograd.grad(found[term], [*moved, *still], retain_graph=True, allow_unused=True)
        assert all(g is not None for g in gradients[: len(moved)])
        assert all(g is None for g in gradients[len(moved) :])


def test_a_teacher_that_learned_first_stands_still():
    recipe = of_two("os-medseg", teacher_share=0.3)
    first, then = phases(recipe, "segmentation")
    assert (first.share, then.share) == (0.3, 0.7)
    assert first.players[0].trains is recipe.networks["teacher"]
    assert then.players[0].trains is recipe.networks["segmentation"]
    alone = first.players[0].forward(first.batches(scans(), drawing()))
    reconstructed = first.players[0].loss(alone)[1]["reconstruction"]
    with torch.no_grad():
        assert float(reconstructed) == pytest.approx(
            float((recipe.networks["teacher"](alone.scan) - alone.scan).square().mean())
        )
    player = then.players[0]
    player.loss(player.forward(then.batches(scans(), drawing())))[0].backward()
    assert all(p.grad is None for p in recipe.networks["teacher"].parameters())
    assert all(p.grad is not None for p in recipe.networks["segmentation"].parameters())
    light = phases(of_two("os-medseg", segmentation_network="light"), "segmentation")
    assert [phase.name for phase in light] == ["reconstruction", "distillation"]
    at_once = of_two("os-medseg", segmentation_network="light", hint_detach="none")
    assert len(phases(at_once, "segmentation")) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"registration": "instance", "similarity": "mi"}, "knows similarity lncc and smoothness diffusion only"),
        ({"registration": "instance", "preset": "official"}, "knows similarity lncc and smoothness diffusion only"),
        ({"hint_detach": "none", "teacher_share": 0.5}, "needs teacher_share 0"),
        ({"reconstruction_weight": 0, "teacher_share": 0.5}, "needs teacher_share 0"),
        (
            {"reconstruction_weight": 0, "hint_detach": "teacher"},
            "nothing teaches the teacher, and the student would follow random features; leave hint_detach out, or",
        ),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings, message):
    with pytest.raises(LrlsError, match=message):
        settings_of(os_medseg.METHOD, config(**{"os-medseg": settings}))


def test_teacher_sees_the_scan_and_the_student_what_imitates_it():
    recipe = of_two("os-medseg")
    (phase,) = phases(recipe, "segmentation")
    seen = {}
    for name, network in recipe.trained(recipe.step("segmentation", 0)).items():
        first = network.down[0]
        first.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    batch = phase.batches(scans(), drawing())
    result = phase.players[0].forward(batch)
    inside = (..., *(slice(n) for n in SHAPE))  # of the padded grid
    assert torch.equal(seen["teacher"][inside], batch.scan) and torch.equal(seen["segmentation"][inside], batch.image)
    torch.testing.assert_close(result.logits, recipe.answer.network(batch.image))
    assert [len(side) for side in result.hints] == [2, 2]


def test_pictures_show_the_layers_that_give_hints():
    recipe = of_two("os-medseg", segmentation_network="light", hint_layers=1, hint_from="figure")
    rows = recipe.step("segmentation", 0).pages["distillation"](scans())
    assert [panel.heading for panel in rows[0][1]][3:] == ["teacher, layer -2", "student, layer -2"]
    image = rows[0][1][0].image
    with torch.no_grad():
        before = recipe.networks["segmentation"].features(image[None, None])[-2][0].float()
    channels = nn.functional.interpolate(before[None], size=SHAPE, mode="nearest")[0]
    assert any(torch.allclose(channel, rows[0][1][4].image, atol=1e-6) for channel in channels)


def test_pictures_show_both_networks_on_the_same_couple():
    recipe = of_two("os-medseg", segmentation_network="light")
    rows = recipe.step("segmentation", 0).pages["distillation"](scans())
    assert [case for case, _ in rows] == ["u2", "u3", "u4"]
    assert [panel.heading for panel in rows[0][1]] == [
        "student sees", "teacher sees", "reconstruction",
        "teacher, layer -1", "student, layer -1", "teacher, layer -2", "student, layer -2",
    ]  # fmt: skip
    assert {tuple(panel.image.shape) for _, panels in rows for panel in panels} == {SHAPE}
    torch.testing.assert_close(rows[1][1][1].image, scans().images[3, 0].float())
    _, teacher_sees, _, taught, learned = (panel.image for panel in rows[0][1][:5])
    student_sees = rows[0][1][0].image
    for network, seen, shown in (
        (recipe.networks["teacher"], teacher_sees, taught),
        (recipe.networks["segmentation"], student_sees, learned),
    ):
        with torch.no_grad():
            last = network.features(seen[None, None])[-1][0].float()
        channels = nn.functional.interpolate(last[None], size=SHAPE, mode="nearest")[0]
        assert any(torch.allclose(channel, shown, atol=1e-6) for channel in channels)


# Batches


def test_triple_is_a_warped_atlas_with_its_label_and_the_scan_that_it_imitates():
    data = scans()
    batch = triples(data, drawing(batch_size=6))
    assert set(batch.scans) == {"u2", "u3", "u4"}
    for i, name in enumerate(batch.scans):
        place = data.names.index(name)
        assert torch.equal(batch.scan[i], data.images[place].float())
        assert torch.equal(batch.image[i], data.images[place].flip(1).float())
    assert torch.equal(batch.target, one_hot(data.labels[0].expand(6, *SHAPE), 3))
    assert torch.equal(triples(data, drawing(), real=True).image, triples(data, drawing()).scan)


def test_augmentation_moves_image_label_and_scan_alike():
    # The warped atlas, its label and the scan are all the same picture.
    label = (textured(*SHAPE) > 0.5).short()
    couples = [SimpleNamespace(image=label[None].half(), label=label, scan="u2", atlas="a")]
    data = scans(images=label.half().expand(5, 1, *SHAPE), samples=couples)
    batch = triples(data, drawing(space=TURNED))
    torch.testing.assert_close(batch.image, batch.scan)
    torch.testing.assert_close(batch.image[:, 0], batch.target[:, 1])
    assert (batch.image[0] - label).abs().max() > 0.1
    assert (batch.image[0] - batch.image[1]).abs().max() > 0.1


def test_only_what_the_student_sees_is_recoloured():
    data = scans()
    batch = triples(data, replace(drawing(), intensity=IntensityAugmentation()))
    plain = triples(data, drawing())
    assert batch.scans == plain.scans
    assert torch.equal(batch.scan, plain.scan) and torch.equal(batch.target, plain.target)
    assert (batch.image - plain.image).abs().max() > 0.01


def test_no_scan_comes_twice_in_a_contrastive_batch():
    for seed in range(20):
        batch = atlas_and_different_scans(scans(), drawing(batch_size=3, seed=seed))
        assert sorted(batch.scans[3:]) == ["u2", "u3", "u4"] and {*batch.scans[:3]} <= {"a0", "a1"}
        places = [int(name[1]) for name in batch.scans]
        assert torch.equal(torch.cat([batch.moving, batch.fixed]), scans().images[places].float())


def test_contrast_without_others_names_the_setting():
    with pytest.raises(LrlsError, match=r"^train_reg\.batch_size: found 1, expected at least 2.*contrastive_weight"):
        atlas_and_different_scans(scans(), drawing(batch_size=1))
    with pytest.raises(LrlsError, match=r"^data\.unlabeled: found 3 scans, expected at least 4"):
        atlas_and_different_scans(scans(), drawing(batch_size=4))


def test_without_contrast_any_batch_goes():
    recipe = of_two("os-medseg", contrastive_weight=0)
    (phase,) = phases(recipe, "registration")
    assert phase.batches is atlas_and_scan
    (player,) = phase.players
    assert player.loss(player.forward(phase.batches(scans(), drawing(batch_size=1))))[1].keys() == {
        "similarity", "smoothness",
    }  # fmt: skip


# What `generate` writes


def test_generated_samples_are_atlases_warped_to_the_scans_that_they_name(project: Project, no_pictures):
    project.made("run", "--method", "os-medseg", "--until", "generate")
    config = project.config
    cohort = Cohort.open(project.workspace / "cohort" / "v0001")
    recipe = recipe_of(METHODS["os-medseg"], cohort, config)
    assert writer(recipe) == WarpedAtlases()
    recipe.load([Registration.open(project.workspace / "os-medseg" / "registration" / "v0001")])
    device = Device(torch.device("cpu"), torch.float32)
    atlas, names = cohort.image("atlas_1"), ["free_1", "free_2"]
    pairs = [(atlas, cohort.image(case)) for case in names]
    registers, spacing_mm = recipe.answer.registers, cohort.grid.spacing_mm
    fields = dict(displacements(registers, pairs, names, spacing_mm=spacing_mm, device=device, config=config))
    with h5py.File(project.workspace / "os-medseg" / "generated" / "v0001" / "generated.h5") as file:
        samples = {name: column[()] for name, column in file["samples"].items()}
        assert list(file["samples"]["space"].asstr()[()]) == names
        assert set(file["samples"]["atlas"].asstr()[()]) == set(file["samples"]["style"].asstr()[()]) == {"atlas_1"}
    label = torch.from_numpy(cohort.label("atlas_1").astype(np.int16))[None]
    for i in range(2):
        field = torch.from_numpy(fields[i])[None]
        expected = warp(torch.from_numpy(atlas.astype(np.float32))[None, None], field)[0]
        np.testing.assert_allclose(samples["image"][i], expected.numpy(), atol=0.02)  # R ran in bfloat16 there
        assert (samples["label"][i] == warp_label(label, field)[0].numpy()).mean() > 0.99
    assert samples["label"].dtype == np.uint8
    assert (samples["alpha"] == 1).all() and (samples["beta"] == 0).all() and np.isfinite(samples["similarity"]).all()

    only_segments = ("methods.os-medseg.hint_layers=1", "methods.os-medseg.segmentation_network=full")
    project.made("run", "--method", "os-medseg", *(word for setting in only_segments for word in ("--set", setting)))
    assert project.versions("os-medseg/registration") == project.versions("os-medseg/generated") == ["v0001"]
    fresh = recipe_of(METHODS["os-medseg"], cohort, load_config(project.config_file, [*only_segments]))
    again = recipe_of(METHODS["os-medseg"], cohort, config)
    both = (recipe.networks["registration"].parameters() for recipe in (fresh, again))
    for one, other in zip(*both, strict=True):
        assert torch.equal(one, other)


def test_interrupted_distillation_goes_on_with_both_networks(project: Project, no_pictures, monkeypatch):
    project.made("run", "--method", "os-medseg", "--until", "train-seg")
    weights = project.workspace / "os-medseg" / "segmentation" / "v0001" / "weights.safetensors"
    cohort = Cohort.open(project.workspace / "cohort" / "v0001")
    recipe = recipe_of(METHODS["os-medseg"], cohort, project.config)
    load_weights(recipe.trained(recipe.step("segmentation", 0)), weights)  # student and teacher, and nothing else
    goes_on_after_a_fault(
        project, monkeypatch, method="os-medseg", stage="train-seg", kind="segmentation", term="cosine_hint_loss",
        player="distillation",
    )  # fmt: skip


# CLMorph


CLMORPH = [
    ("registration_network", "light", set(), REG),
    ("diffeomorphic", True, set(), {"reg/similarity", "reg/smoothness", "reg/total"}),
    ("similarity", "lncc", set(), {"reg/similarity", "reg/total"}),
    ("smoothness", "bending", set(), {"reg/smoothness", "reg/total"}),
    ("smoothness_weight", 1.0, set(), {"reg/total"}),
    ("contrastive_weight", 0.5, set(), {"reg/total"}),
]


@pytest.mark.parametrize(("setting", "value", "gone", "moved"), CLMORPH, ids=[row[0] for row in CLMORPH])
def test_switch_of_clmorph_changes_the_terms_that_it_is_about(setting, value, gone, moved):
    default, found = terms("clmorph"), terms("clmorph", **{setting: value})
    assert default.keys() == REG and found.keys() == REG - gone
    assert changed(default, found) == moved
    assert {row[0] for row in CLMORPH} | {"preset"} == set(clmorph.Settings.model_fields)


def test_clmorph_registers_by_squared_differences_with_batch_norm_and_propagates():
    recipe = of_two("clmorph")
    network = recipe.answer.registers
    assert type(network.body) is PooledSiameseUNet and not network.body.light
    assert any(isinstance(module, nn.BatchNorm3d) for module in network.modules())
    assert writer(recipe) == PropagatedLabels()
    (player,) = phases(recipe, "registration")[0].players
    assert {name: weight for name, (weight, _) in player.loss.terms.items()} == {
        "similarity": 1, "smoothness": 0.01, "contrast": 0.01,
    }  # fmt: skip
    same = atlas_and_different_scans(scans(images=textured(1, *SHAPE).half().expand(5, 1, *SHAPE)), drawing())
    found = player.loss(player.forward(same))[1]
    assert float(found["similarity"].detach()) == pytest.approx(0, abs=1e-6)
    training = training_of(clmorph.METHOD, config(), "train_reg")
    assert (training.learning_rate, training.batch_size) == (3e-3, 2)


# Label-constrained VoxelMorph


def test_label_constrained_pairs_are_scans_and_other_atlases():
    data = scans()
    for seed in range(5):
        batch = scans_and_labelled_pairs(data, drawing(seed=seed))
        places = [data.names.index(name) for name in batch.scans]
        moving, fixed = places[:4], places[4:]
        assert torch.equal(batch.moving, data.images[moving].float())
        assert torch.equal(batch.fixed, data.images[fixed].float())
        assert {*fixed[:2]} <= {2, 3, 4} and all(
            a != b and {a, b} == {0, 1} for a, b in zip(moving[2:], fixed[2:], strict=True)
        )
        assert torch.equal(batch.moving_label, data.label(moving[2:]))
        assert torch.equal(batch.fixed_label, data.label(fixed[2:]))


def test_labelled_pairs_move_with_their_labels():
    label = (textured(*SHAPE) > 0.5).short()
    data = scans(images=label.half().expand(5, 1, *SHAPE), labels={0: label, 1: label})
    batch = scans_and_labelled_pairs(data, drawing(space=TURNED))
    assert torch.equal(batch.moving[:2], batch.moving[2:]) and torch.equal(batch.moving, batch.fixed)
    agreement = (batch.moving[2:, 0] > 0.5) == (batch.moving_label == 1)
    assert agreement.float().mean() > 0.85 and (batch.moving_label[0] != label).any()  # nearest against trilinear


def test_overlap_is_the_dice_of_the_labelled_pairs_and_its_gradient_moves_the_network():
    recipe = of_two("lc-voxelmorph", diffeomorphic=False)
    (phase,) = phases(recipe, "registration")
    (player,) = phase.players
    batch = phase.batches(scans(), drawing(batch_size=1))
    found = player.loss(player.forward(batch))[1]  # a fresh network stays where it is
    expected = dice_loss(one_hot(batch.moving_label, 3), one_hot(batch.fixed_label, 3))
    assert float(found["overlap"].detach()) == pytest.approx(float(expected), abs=1e-3)
    found["overlap"].backward()
    assert recipe.networks["registration"].body.head.weight.grad.abs().max() > 0


def test_settings_of_lc_voxelmorph_are_voxelmorphs_and_a_weight():
    added = set(voxelmorph.LabelConstrainedSettings.model_fields) - set(voxelmorph.Settings.model_fields)
    assert added == {"overlap_weight"}
    for name, value in (("overlap_weight", 3.0), ("smoothness_weight", 4.0)):
        (player,) = phases(of_two("lc-voxelmorph", **{name: value}), "registration")[0].players
        assert player.loss.terms[name.removesuffix("_weight")][0] == value


def test_one_atlas_is_answered_with_what_is_expected_and_what_to_use(project: Project):
    done = project.lrls("run", "--method", "lc-voxelmorph")
    assert (done.code, done.err.strip()) == (
        1,
        "lrls: data.atlases: found 1, expected at least 2, because lc-voxelmorph learns from pairs of labelled scans; "
        "list more atlases, or use voxelmorph.",
    )
    assert not project.workspace.exists()

"""The recipes: each builds and learns on a tiny task, and each of its switches changes what it is there to change."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recipes import SHAPE, built, config, generator, phases, textured, writer
from scipy.ndimage import gaussian_filter
from torch import nn

from stages.answering.registering import displacements
from stages.device import Device
from stages.errors import LrlsError
from stages.generating.path_bank import PathBank
from stages.generating.propagated import PropagatedLabels
from stages.generating.writer import atlas_scan_pairs
from stages.methods import METHODS, best, brbs, data_aug, find_method, lt_net, settings_of, training_of
from stages.methods.phases import Ramp, WeightedSum
from stages.methods.recipe import Task
from stages.parts.augmentation import AUGMENTATIONS
from stages.parts.batches.drawing import Draw
from stages.parts.batches.labelled import Labelled, labelled_scans
from stages.parts.batches.pairs import LabelledPair, Triplet
from stages.parts.batches.pseudo_labels import PseudoLabel
from stages.parts.batches.scans import Scans
from stages.parts.batches.space_style import Always, Beta, SpaceStyleSampling
from stages.parts.instance import InstanceOptimisation
from stages.parts.networks.unet import LightUNet, UNet
from stages.parts.networks.voxelmorph import VoxelMorphUNet
from stages.parts.warps import compose, warp
from stages.training.loop import give_turn
from stages.training.runs import SECTION


def recipe_of(name, **settings):
    return built(name, atlases=len(scans_for(name).atlases), **settings)


class Bank:
    """One couple of the atlas and each of two scans."""

    couples = ((0, 1), (0, 2))

    def displacement(self, couple):
        return textured(3, *SHAPE, seed=couple) - 0.5

    def style(self, couple):
        return 0.1 * textured(1, *SHAPE, seed=couple)


def scans():
    labels = {0: torch.randint(3, SHAPE, generator=generator()).short()}
    return Scans(["a", "u1", "u2"], textured(3, 1, *SHAPE).half(), labels, [0], [1, 2], 3, (1.0, 1.0, 1.0), bank=Bank())


def scans_for(name):
    """The scans with what a method learns from besides."""
    data = scans()
    if name == "lc-voxelmorph":
        return replace(data, atlases=[0, 1], unlabeled=[2], labels={0: data.labels[0], 1: data.labels[0].flip(0)})
    couples = [
        SimpleNamespace(image=data.images[0].flip(1), label=data.labels[0], scan=name, atlas="a")
        for name in ("u1", "u2")
    ]
    sure = torch.ones(SHAPE, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    return replace(data, samples=couples, pseudo={place: PseudoLabel(data.labels[0], *sure) for place in (1, 2)})


# Every method


@pytest.mark.parametrize("name", METHODS)
def test_every_phase_of_every_method_trains_its_own_network(name):
    recipe = recipe_of(name)
    trains = [step for number, step in recipe.training_steps() if number <= 1]  # later rounds are as the first one
    for step, phase in ((each, phase) for each in trains for phase in each.phases):
        batch_size = training_of(METHODS[name], config(), SECTION[step.makes]).batch_size
        batch = phase.batches(scans_for(name), Draw(batch_size, None, None, generator()))
        for player in phase.players:
            give_turn(player, phase)
            total, terms = player.loss(player.forward(batch))
            assert math.isfinite(float(total.detach())), terms
            total.backward()
            own = list(player.trains.parameters())
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in own)
            for network in (*recipe.networks.values(), *step.as_before.values()):
                assert all(p.grad is None or any(p is each for each in own) for p in network.parameters())
            player.trains.zero_grad()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_segments_or_registers_and_says_what_it_generates(name):
    recipe = recipe_of(name)
    registers, segments = recipe.answer.registers, recipe.answer.network
    assert registers or segments
    if segments:
        assert segments(textured(1, 1, *SHAPE)).shape == (1, 3, *SHAPE)
    else:
        assert registers
        assert isinstance(writer(recipe), PropagatedLabels)
    if recipe.learns_registration:
        assert registers(*textured(2, 1, 1, *SHAPE)).shape == (1, 3, *SHAPE)
    if recipe.step("generated", 0):
        assert registers


@pytest.mark.parametrize("name", METHODS)
def test_every_training_number_is_set_by_the_recipe(name):
    for stage in ("train_reg", "train_seg"):
        if getattr(METHODS[name], stage):
            numbers = training_of(METHODS[name], config(), stage).model_dump()
            only_of_some = {"start_from"} if numbers["schedule"] == "exponential" else {"start_from", "epochs"}
            assert {number for number, value in numbers.items() if value is None} == only_of_some


def register(method, moving, fixed, spacing_mm=(1.0, 1.0, 1.0), **settings):
    device = Device(torch.device("cpu"), torch.float32)
    registers = recipe_of(method, **settings).answer.registers
    found = displacements(registers, [(moving, fixed)], ["b"], spacing_mm=spacing_mm, device=device, config=config())
    return dict(found)[0]


def test_affine_registers_by_staying_where_it_is():
    image = np.ones(SHAPE, np.float32)
    field = register("affine", image, image)
    assert field.shape == (3, *SHAPE)
    assert not field.any()


def shifted():
    """A blob with a core, and the same moved by (2, -1, 1) voxels."""
    moving = np.zeros((20, 22, 24), np.float32)
    moving[6:13, 7:14, 8:15] = 1
    moving[8:11, 9:12, 9:12] = 0.4
    moving = gaussian_filter(moving, 1.0)
    return moving, np.roll(moving, (2, -1, 1), (0, 1, 2))


def test_syn_finds_a_shift_and_its_displacement_pulls():
    moving, fixed = shifted()  # fixed(x) = moving(x - (2, -1, 1))
    field = register("syn", moving, fixed, spacing_mm=(2, 1, 1.5))
    assert field[:, fixed > 0.3].mean(1) == pytest.approx([-2, 1, -1], abs=0.4)


def test_syn_goes_by_the_metric_that_is_set():
    fields = [register("syn", *shifted(), metric=metric) for metric in ("mattes", "cc")]
    assert np.abs(fields[0] - fields[1]).max() > 0.05


def test_scan_that_ants_gives_up_is_named():
    image = textured(1, 1, *SHAPE)[0, 0].numpy()
    with pytest.raises(LrlsError, match=r"^case b: ANTs could not register it"):
        register("syn", image, np.zeros_like(image))


def test_fault_of_instance_optimisation_is_not_laid_at_ants_door():
    small, large = (np.ones((n, 12, 12), np.float32) for n in (10, 14))
    with pytest.raises(RuntimeError, match="size"):
        register("best", small, large)


# Settings


def test_unknown_method_is_answered_with_the_known_ones():
    with pytest.raises(LrlsError) as caught:
        find_method("brsb")
    assert str(caught.value) == "no method 'brsb'; choose one of: " + ", ".join(METHODS) + "."


def test_unknown_setting_is_answered_with_the_nearest_one():
    with pytest.raises(LrlsError, match=r"^methods\.brbs: unknown setting bicc; did you mean bic\?$"):
        settings_of(brbs.METHOD, config(brbs={"bicc": False}))
    with pytest.raises(LrlsError, match=r"unknown setting smoothnes_weight; did you mean smoothness_weight\?$"):
        settings_of(METHODS["voxelmorph"], config(voxelmorph={"smoothnes_weight": 1}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "theirs"}, r"preset is theirs; choose one of default, light, official, paper"),
        ({"inverse_weight": -1}, r"setting inverse_weight: .*greater than or equal to 0.*correct it"),
        ({"registration_network": "big"}, r"registration_network: input should be 'brbs' or 'light'"),
    ],
)
def test_bad_values_name_the_setting_and_what_it_takes(settings, message):
    with pytest.raises(LrlsError, match=message):
        settings_of(brbs.METHOD, config(brbs=settings))


def test_stage_that_a_method_does_not_have_is_an_error():
    with pytest.raises(LrlsError, match="unet has no train-reg stage; see `lrls methods`"):
        training_of(METHODS["unet"], config(), "train_reg")


def test_preset_fills_in_what_is_not_given_and_what_is_given_wins():
    paper = settings_of(brbs.METHOD, config(brbs={"preset": "paper"}))
    assert (paper.inverse, paper.atlas_label, paper.mix_any_pair, paper.helper_is_final) == (
        "self-warped", False, True, True,
    )  # fmt: skip
    assert (paper.mix_on, paper.mix_weight, paper.semantic_weight) == ("probabilities", 0.1, 100)
    mine = settings_of(brbs.METHOD, config(brbs={"preset": "paper", "atlas_label": True, "inverse": "composed"}))
    assert (mine.inverse, mine.atlas_label, mine.mix_any_pair) == ("composed", True, True)


def test_brbs_draws_any_two_images_beside_r_only_where_they_are_mixed():
    def drawn(**settings):
        recipe = brbs.METHOD.plan(settings_of(brbs.METHOD, config(brbs=settings)), num_atlases=1)
        kcc = recipe.step("registration", 0).phases[-1].batches
        return kcc.keywords["others"]

    assert [drawn(preset="paper"), drawn(preset="paper", mmr=False), drawn(), drawn(preset="official")] == [
        True, False, False, False,
    ]  # fmt: skip


def test_official_preset_mixes_logits_a_hundredth_as_much_and_default_is_the_specification():
    official = brbs.Settings(preset="official")
    assert (official.mix_on, official.mix_weight, official.inverse) == ("logits", 0.01, "self-warped")
    default = brbs.Settings()
    assert (default.smoothness_weight, default.inverse_weight, default.semantic_weight) == (1, 0.1, 100)
    assert (default.mix_weight, default.mix_on, default.inverse) == (0.1, "probabilities", "composed")
    assert all((default.bic, default.sec, default.space, default.style, default.mmr, default.atlas_label))
    assert not any((default.mix_any_pair, default.helper_is_final, default.diffeomorphic))


def test_numbers_of_the_file_win_over_the_recipes_and_those_of_the_method_over_both():
    file = config(brbs={"train_reg": {"steps": 7}}).model_copy(
        update={"train_reg": config().train_reg.model_copy(update={"steps": 5, "learning_rate": 0.5})}
    )
    found = training_of(brbs.METHOD, file, "train_reg")
    assert (found.steps, found.learning_rate, found.batch_size, found.optimizer) == (7, 0.5, 1, "adam")
    assert training_of(METHODS["voxelmorph"], file, "train_reg").steps == 5
    assert training_of(brbs.METHOD, config(), "train_reg").steps == 40_000


def test_light_networks_come_with_their_own_schedule():
    light = {"registration_network": "light", "segmentation_network": "light"}
    found = training_of(brbs.METHOD, config(brbs=light), "train_reg")
    assert (found.optimizer, found.schedule, found.augmentation) == ("adamw", "one-cycle", "strong")
    published = training_of(brbs.METHOD, config(), "train_reg")
    assert (published.learning_rate, published.schedule, published.augmentation) == (1e-4, "constant", "rotate-scale")


# Terms


def test_weighted_sum_adds_weighted_terms_and_reports_them_unweighted():
    total, terms = WeightedSum(a=(2.0, lambda x: x), b=(0.5, lambda x: x**2))(torch.tensor(3.0))
    assert float(total) == 2 * 3 + 0.5 * 9
    assert {name: float(term) for name, term in terms.items()} == {"a": 3, "b": 9}


def test_term_of_weight_zero_is_not_computed():
    def fails(_):
        raise AssertionError

    assert list(WeightedSum(a=(1.0, lambda x: x), b=(0.0, fails))(torch.tensor(1.0))[1]) == ["a"]


# BRBS

PAIR_SEED = 1  # draws a pair that has the atlas in it


def triplet():
    images = textured(3, 1, 1, *SHAPE, seed=5)
    label = torch.randint(3, (1, *SHAPE), generator=generator(6)).short()
    draw, others = Draw(1, None, None, generator(PAIR_SEED)), textured(2, 1, *SHAPE, seed=7)
    return Triplet(["a", "u1", "u2"], *images[:1], label, *images[1:], 3, draw, others=others)


def terms(**settings):
    """Every term of a step of `train-reg`, and the totals."""
    return terms_of(recipe_of("brbs", **settings), triplet)


def terms_of(recipe, batch):
    values = {}
    for player in phases(recipe, "registration")[-1].players:
        with torch.no_grad():
            total, found = player.loss(player.forward(batch()))
        values |= {f"{player.name}/{name}": float(term) for name, term in {**found, "total": total}.items()}
    return values


@pytest.fixture(scope="module")
def default():
    return terms()


REGISTRATION = {
    f"registration/{name}"
    for name in ("similarity", "smoothness", "inverse_consistency", "semantic_consistency", "total")
}
HELPER = {f"helper/{name}" for name in ("overlap", "mixing", "total")}
SEMANTIC = {"registration/semantic_consistency", "registration/total"}
MIXING = {"helper/mixing", "helper/total"}
SWITCHES = [
    # setting, its value, terms that go, terms that change
    ("sec", False, {"registration/semantic_consistency"}, {"registration/total"}),
    (
        "bic",
        False,
        {"registration/inverse_consistency"},
        REGISTRATION - {"registration/inverse_consistency"},
    ),
    ("mmr", False, {"helper/mixing"}, {"helper/total"}),
    ("space", False, set(), HELPER),
    ("style", False, set(), HELPER),
    ("inverse", "self-warped", set(), {"registration/inverse_consistency", "registration/total"}),
    ("atlas_label", False, set(), SEMANTIC),
    ("semantic_classes", 1, set(), SEMANTIC),
    ("mix_on", "logits", set(), MIXING),
    ("mix_any_pair", True, set(), MIXING),
    ("segmentation_loss", "dice-ce", set(), {"helper/overlap", "helper/total"}),
    ("diffeomorphic", True, set(), REGISTRATION | HELPER),
    ("registration_network", "light", set(), REGISTRATION | HELPER),
    ("segmentation_network", "light", set(), SEMANTIC | HELPER),
    ("helper_is_final", True, set(), set()),  # these three change phases and players, see below
    ("warm_up", 0.25, set(), set()),
    ("augment_pairs", False, set(), set()),  # this one changes what the sampler brings
    ("helper_learning_rate", 0.5, set(), set()),
    ("similarity", "mi", set(), {"registration/similarity", "registration/total"}),
    ("smoothness", "bending", set(), {"registration/smoothness", "registration/total"}),
    ("smoothness_weight", 2.0, set(), {"registration/total"}),
    ("inverse_weight", 0.2, set(), {"registration/total"}),
    ("semantic_weight", 50.0, set(), {"registration/total"}),
    ("mix_weight", 0.2, set(), {"helper/total"}),
]


@pytest.mark.parametrize(("setting", "value", "gone", "changed"), SWITCHES, ids=[row[0] for row in SWITCHES])
def test_switch_changes_the_terms_that_it_is_about_and_no_other(default, setting, value, gone, changed):
    found = terms(**{setting: value})
    assert default.keys() - found.keys() == gone
    assert found.keys() <= default.keys()
    assert {name for name in found if found[name] != pytest.approx(default[name], rel=1e-6)} == changed


def test_every_setting_of_brbs_is_in_the_table_above():
    answers = {"flat_borders"}  # see test_flat_borders.py
    assert {row[0] for row in SWITCHES} | {"preset"} | answers == set(brbs.Settings.model_fields)
    assert recipe_of("brbs", flat_borders=True).answer.flat_borders
    assert not recipe_of("brbs").answer.flat_borders


def test_totals_have_the_papers_weights(default):
    weights = {"similarity": 1, "smoothness": 1, "inverse_consistency": 0.1, "semantic_consistency": 100}
    expected = sum(weight * default[f"registration/{name}"] for name, weight in weights.items())
    assert default["registration/total"] == pytest.approx(expected)
    assert default["helper/total"] == pytest.approx(default["helper/overlap"] + 0.1 * default["helper/mixing"])


@pytest.mark.parametrize(
    ("preset", "changed"),
    [
        ("paper", {"registration/inverse_consistency", *SEMANTIC, *MIXING}),
        ("official", {"registration/inverse_consistency", "registration/total", *MIXING}),
    ],
)
def test_presets_change_the_readings_that_they_are_about(default, preset, changed):
    found = terms(preset=preset)
    assert found.keys() == default.keys()
    assert {name for name in found if found[name] != pytest.approx(default[name], rel=1e-6)} == changed


@pytest.mark.parametrize("diffeomorphic", [False, True])
@pytest.mark.parametrize(("name", "body"), [("brbs", UNet), ("light", LightUNet)])
def test_networks_are_those_that_are_named(name, body, diffeomorphic):
    recipe = recipe_of("brbs", registration_network=name, segmentation_network=name, diffeomorphic=diffeomorphic)
    registration, segmentation = recipe.networks["registration"], recipe.networks["segmentation"]
    assert type(registration.body) is body and type(segmentation) is body
    assert registration.diffeomorphic == diffeomorphic


def test_full_network_is_the_published_one_with_instance_norm_and_the_short_schedule():
    full, published = (
        recipe_of("unet", segmentation_network=name).networks["segmentation"] for name in ("full", "brbs")
    )
    assert {name: p.shape for name, p in full.named_parameters()} == {
        name: p.shape for name, p in published.named_parameters()
    }
    groups = [
        {m.num_groups / m.num_channels for m in network.modules() if isinstance(m, torch.nn.GroupNorm)}
        for network in (full, published)
    ]
    assert groups == [{1}, {1 / 4}]
    for method in ("unet", "brbs"):
        training = training_of(METHODS[method], config(**{method: {"segmentation_network": "full"}}), "train_seg")
        assert (training.learning_rate, training.schedule) == (2e-3, "one-cycle")


def test_light_registration_starts_at_the_identity():
    for name in ("brbs", "voxelmorph"):
        field = recipe_of(name, registration_network="light").answer.registers(*textured(2, 1, 1, *SHAPE))
        assert field.abs().max() < 1e-3


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_published_readings_end_with_the_network_that_was_trained_beside_the_registration(preset):
    recipe = recipe_of("brbs", preset=preset)
    assert recipe.answer.network is recipe.trained(recipe.step("registration", 0))["segmentation"]
    assert not phases(recipe, "segmentation")
    assert recipe.step("segmentation", 0).uses == ["registration"]


def test_default_goes_on_with_the_helper_on_the_path_bank():
    recipe = recipe_of("brbs")
    (phase,) = phases(recipe, "segmentation")
    (player,) = phase.players
    helper = recipe.trained(recipe.step("registration", 0))["segmentation"]
    assert player.trains is recipe.answer.network is helper
    batch = phase.batches(scans(), Draw(1, None, None, generator()))
    assert set(player.loss(player.forward(batch))[1]) == {"overlap", "mixing"}


@pytest.mark.parametrize("moves", [True, False])
def test_in_the_warm_up_r_learns_without_the_helper_and_the_helper_from_atlases(moves):
    recipe = recipe_of("brbs", warm_up=0.25, augment_pairs=moves)
    warm_up, main = phases(recipe, "registration")
    assert (warm_up.share, main.share) == (0.25, 0.75)
    assert [player.trains for player in warm_up.players] == [player.trains for player in main.players]
    batch = warm_up.batches(scans(), Draw(1, AUGMENTATIONS["rotate-scale"][0], None, generator()))
    registration, helper = warm_up.players
    kept = {"similarity", "smoothness", "inverse_consistency"}
    assert set(registration.loss(registration.forward(batch))[1]) == kept
    assert set(main.players[0].loss.terms) == {*kept, "semantic_consistency"}
    seen = []
    handle = recipe.networks["segmentation"].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    assert set(helper.loss(helper.forward(batch))[1]) == {"overlap"}
    handle.remove()
    atlas = scans().image(scans().atlases)
    around = batch.around
    assert (around is None) == moves
    torch.testing.assert_close(seen[0], batch.atlas if moves else warp(atlas, around, padding="zeros"))
    assert not torch.equal(seen[0], atlas)
    (only,) = phases(recipe_of("brbs"), "registration")
    assert only.share == 1


def test_pairs_stay_unaugmented_where_the_setting_says_so():
    turned = Draw(1, AUGMENTATIONS["rotate-scale"][0], None, generator())
    for moves in (True, False):
        (phase,) = phases(recipe_of("brbs", augment_pairs=moves), "registration")
        batch = phase.batches(scans(), turned)
        assert (batch.around is None) == moves
        assert torch.equal(batch.atlas, scans().image(scans().atlases)) != moves


def test_helper_may_learn_faster_than_the_registration():
    both = phases(recipe_of("brbs", warm_up=0.25, helper_learning_rate=0.5), "registration")
    rates = {player.name: player.learning_rate for phase in both for player in phase.players}
    assert rates == {"registration": None, "helper": 0.5}


def test_registration_moves_before_the_helper_in_every_step():
    (phase,) = phases(recipe_of("brbs"), "registration")
    assert [player.name for player in phase.players] == ["registration", "helper"]


@pytest.mark.parametrize(
    ("settings", "space", "style"),
    [
        ({}, Beta(0.3), Beta(0.3)),
        ({"space": False}, Always(1.0), Beta(0.3)),
        ({"style": False}, Beta(0.3), Always(0.0)),
        ({"space": False, "style": False}, Always(1.0), Always(0.0)),
    ],
)
def test_rows_of_the_ablation_sample_space_and_style_as_the_paper_says(settings, space, style):
    assert writer(recipe_of("brbs", **settings)) == PathBank(space=space, style=style)


# VoxelMorph and U-Net


def test_voxelmorph_has_its_own_network_and_two_terms():
    recipe = recipe_of("voxelmorph")
    network = recipe.answer.registers
    assert type(network.body) is VoxelMorphUNet and network.diffeomorphic
    (player,) = phases(recipe, "registration")[0].players
    assert player.loss.terms.keys() == {"similarity", "smoothness"}
    assert not recipe_of("voxelmorph", diffeomorphic=False).answer.registers.diffeomorphic


def test_smoothness_weight_of_voxelmorph_reaches_its_loss():
    (player,) = phases(recipe_of("voxelmorph", smoothness_weight=0.25), "registration")[0].players
    assert player.loss.terms["smoothness"][0] == 0.25


def test_unet_and_upper_bound_differ_in_the_scans_that_they_learn_from_and_in_nothing_else():
    unet, supervised = METHODS["unet"], METHODS["supervised"]
    assert (unet.cohort, supervised.cohort) == ("train", "supervised")
    assert (unet.recipe, unet.train_seg, unet.settings) == (
        supervised.recipe,
        supervised.train_seg,
        supervised.settings,
    )


def test_unet_trains_with_dice_and_cross_entropy_or_with_dice():
    batch_of = Draw(1, None, None, generator())
    values = []
    for loss in ("dice-ce", "dice"):
        (phase,) = phases(recipe_of("unet", segmentation_loss=loss), "segmentation")
        (player,) = phase.players
        values.append(float(player.loss(player.forward(phase.batches(scans(), batch_of)))[0].detach()))
    assert values[0] > values[1] + 0.3  # cross-entropy comes on top


# DataAug


def steps_of(**settings):
    """Every term of a step of both phases of `train-reg`, and the totals."""
    values = {}
    for phase in phases(recipe_of("data-aug", **settings), "registration"):
        for player in phase.players:
            with torch.no_grad():
                for parameter in player.trains.parameters():  # heads that start from nothing say something
                    parameter += 0.02 * torch.randn(parameter.shape, generator=generator(3))
                batch = phase.batches(scans(), Draw(1, None, None, generator(4)))
                total, found = player.loss(player.forward(batch))
            values |= {f"{player.name}/{name}": float(term) for name, term in {**found, "total": total}.items()}
    return values


def what_is_drawn(**settings):
    """Images and targets that S learns from."""
    (phase,) = phases(recipe_of("data-aug", **settings), "segmentation")
    batch = phase.batches(scans(), Draw(4, None, None, generator(5)))
    return torch.cat([batch.image, batch.target], 1)


FORWARD, BACKWARD, APPEARANCE = (
    {f"{player}/{name}" for name in (*terms, "total")}
    for player, terms in (
        ("forward", ("similarity", "smoothness")),
        ("backward", ("similarity", "smoothness")),
        ("appearance", ("reconstruction", "smoothness")),
    )
)
DATA_AUG_SWITCHES = [
    # setting, its value, terms that go, terms that change, whether S sees something else
    ("registration_network", "light", set(), FORWARD | BACKWARD | APPEARANCE, False),
    ("segmentation_network", "light", set(), set(), False),  # see below
    ("diffeomorphic", True, set(), FORWARD | BACKWARD | APPEARANCE, False),
    ("space", False, set(), set(), True),
    ("appearance", False, BACKWARD | APPEARANCE, set(), True),
    ("independent", False, set(), set(), True),
    (
        "similarity",
        "mi",
        set(),
        {f"{way}/{n}" for way in ("forward", "backward") for n in ("similarity", "total")},
        False,
    ),
    (
        "smoothness",
        "bending",
        set(),
        {f"{way}/{name}" for way in ("forward", "backward") for name in ("smoothness", "total")},
        False,
    ),
    ("smoothness_weight", 2.0, set(), {"forward/total", "backward/total"}, False),
    ("reconstruction_weight", 5.0, set(), {"appearance/total"}, False),
    ("appearance_smoothness_weight", 5.0, set(), {"appearance/total"}, False),
    ("appearance_share", 0.5, set(), set(), False),  # see below
]


@pytest.mark.parametrize(
    ("setting", "value", "gone", "changed", "drawn"), DATA_AUG_SWITCHES, ids=[row[0] for row in DATA_AUG_SWITCHES]
)
def test_switch_of_data_aug_changes_what_it_is_about(setting, value, gone, changed, drawn):
    default, found = steps_of(), steps_of(**{setting: value})
    assert default.keys() - found.keys() == gone and found.keys() <= default.keys()
    assert {name for name in found if found[name] != pytest.approx(default[name], rel=1e-6)} == changed
    assert (not torch.equal(what_is_drawn(), what_is_drawn(**{setting: value}))) == drawn


def test_every_setting_of_data_aug_is_in_the_table_above():
    assert {row[0] for row in DATA_AUG_SWITCHES} | {"preset"} == set(data_aug.Settings.model_fields)


def test_data_aug_trains_space_both_ways_and_then_appearance_with_the_papers_weights():
    recipe = recipe_of("data-aug")
    space, appearance = phases(recipe, "registration")
    assert [player.name for player in space.players] == ["forward", "backward"]
    assert (space.share, appearance.share) == (0.98, 0.02)
    assert phases(recipe_of("data-aug", appearance_share=0.5), "registration")[0].share == 0.5
    assert recipe.trained(recipe.step("registration", 0)).keys() == {"registration", "backward", "appearance"}
    assert all(type(each.trains.body) is VoxelMorphUNet for each in space.players)
    assert not recipe.answer.registers.diffeomorphic
    values = steps_of()
    expected = 50 * values["appearance/reconstruction"] + values["appearance/smoothness"]
    assert values["appearance/total"] == pytest.approx(expected)
    steps = training_of(METHODS["data-aug"], config(), "train_reg").steps
    assert round(steps * appearance.share) == 1020


def test_appearance_network_of_data_aug_has_the_published_channels_on_a_large_grid_and_changes_nothing_at_first():
    network = data_aug.appearance_network("voxelmorph", Task((192, 192, 192), 3, 1))
    assert [c.out_channels for c in network.encoder] == [16, 32, 32, 32, 32, 32]
    assert [c.out_channels for c in (*network.decoder, *network.final)] == [64, 64, 32, 32, 32, 16, 16]
    for name in ("voxelmorph", "light"):
        change = data_aug.appearance_network(name, Task(SHAPE, 3, 1))(textured(1, 2, *SHAPE))
        assert change.shape == (1, 1, *SHAPE) and change.abs().max() < 1e-2


def test_data_aug_deforms_and_recolours_in_full_and_without_both_is_refused():
    bank, image = Bank(), scans().image([0])
    both = [warp(image + bank.style(k).float(), bank.displacement(j)[None].float()) for j in range(2) for k in range(2)]
    drawn = what_is_drawn()[:, :1]
    found = [[torch.allclose(each[None], one, atol=1e-5) for one in both].index(True) for each in drawn]
    assert len(set(found)) > 1
    coupled = what_is_drawn(independent=False)[:, :1]
    assert all(any(torch.allclose(each[None], both[i], atol=1e-5) for i in (0, 3)) for each in coupled)
    with pytest.raises(LrlsError, match="space and appearance are both off"):
        recipe_of("data-aug", space=False, appearance=False)


def test_rows_of_data_aug_are_the_same_for_finished_samples_and_for_training():
    bank = writer(recipe_of("data-aug"))
    assert (bank.space, bank.style, bank.coupled) == (Always(1.0), Always(1.0), False)
    assert writer(recipe_of("data-aug", space=False)).space == Always(0.0)
    assert writer(recipe_of("data-aug", independent=False)).coupled
    plain = writer(recipe_of("data-aug", appearance=False))
    assert plain.style is None and plain.style_map is None
    assert type(recipe_of("data-aug", segmentation_network="light").answer.network) is LightUNet


# LT-Net


def atlas_and_scan():
    images = textured(2, 1, 1, *SHAPE, seed=5)
    label = torch.randint(3, (1, *SHAPE), generator=generator(6)).short()
    return LabelledPair(["a", "u"], *images, label, 3)


def lt_net_terms(**settings):
    recipe = recipe_of("lt-net", **settings)
    generators = [n for name, n in recipe.networks.items() if name != "discriminator"]
    for seed, network in enumerate(generators):  # away from the identity
        head = network.body.head
        head.weight.data = 0.2 * (textured(*head.weight.shape, seed=seed) - 0.5)
    return terms_of(recipe, atlas_and_scan)


@pytest.fixture(scope="module")
def lt_net_default():
    return lt_net_terms()


CYCLE = {f"generators/{space}_cycle" for space in ("image", "anatomy", "transformation", "difference")}
DISCRIMINATOR = {"discriminator/real", "discriminator/fake", "discriminator/total"}
LT_NET = {"generators/adversarial", "generators/similarity", "generators/smoothness", "generators/total"} | CYCLE
LT_NET_SWITCHES = [
    # setting, its value, terms that go, terms that change
    ("gan_weight", 0.0, {"generators/adversarial", *DISCRIMINATOR}, {"generators/total"}),
    ("similarity_weight", 0.0, {"generators/similarity"}, {"generators/total"}),
    ("smoothness_weight", 0.0, {"generators/smoothness"}, {"generators/total"}),
    ("similarity", "mi", set(), {"generators/similarity", "generators/total"}),
    ("smoothness", "bending", set(), {"generators/smoothness", "generators/total"}),
    ("cycle_weight", 0.0, {"generators/image_cycle"}, {"generators/total"}),
    ("transformation_weight", 0.0, {"generators/transformation_cycle"}, {"generators/total"}),
    ("anatomy_weight", 0.0, {"generators/anatomy_cycle"}, {"generators/total"}),
    ("difference_weight", 0.0, {"generators/difference_cycle"}, {"generators/total"}),
    ("transformation_unit", "voxels", set(), {"generators/transformation_cycle", "generators/total"}),
    ("registration_network", "light", set(), LT_NET | {"discriminator/fake", "discriminator/total"}),
    ("diffeomorphic", True, set(), LT_NET | {"discriminator/fake", "discriminator/total"}),
    ("backward_network", "shared", set(), {"generators/smoothness", "generators/total"} | CYCLE),
    ("rebuild", "twice", set(), CYCLE - {"generators/transformation_cycle"} | {"generators/total"}),
    ("warm_up", 0.25, set(), {"generators/total"}),  # cycle weights of 0 in the first step
]


@pytest.mark.parametrize(("setting", "value", "gone", "changed"), LT_NET_SWITCHES, ids=[r[0] for r in LT_NET_SWITCHES])
def test_switch_of_lt_net_changes_the_terms_that_it_is_about(lt_net_default, setting, value, gone, changed):
    found = lt_net_terms(**{setting: value})
    assert lt_net_default.keys() - found.keys() == gone
    assert found.keys() <= lt_net_default.keys()
    assert {name for name in found if found[name] != pytest.approx(lt_net_default[name], rel=1e-6)} == changed


def test_every_setting_of_lt_net_is_in_the_table_above():
    assert {row[0] for row in LT_NET_SWITCHES} | {"preset"} == set(lt_net.Settings.model_fields)


def test_preset_paper_of_lt_net_is_the_text_with_the_penalty_in_voxels(lt_net_default):
    paper, plain = lt_net.Settings(preset="paper").model_dump(), lt_net.Settings().model_dump()
    assert {name: value for name, value in paper.items() if name != "preset" and value != plain[name]} == {
        "backward_network": "own", "rebuild": "twice", "transformation_unit": "voxels", "warm_up": 0.0,
    }  # fmt: skip
    training, default = (
        training_of(METHODS["lt-net"], config(**{"lt-net": settings}), "train_reg").model_dump()
        for settings in ({"preset": "paper"}, {})
    )
    assert {name: value for name, value in training.items() if value != default[name]} == {"batch_size": 2}
    found = lt_net_terms(preset="paper")
    assert found.keys() == lt_net_default.keys()
    assert {name for name in found if found[name] != pytest.approx(lt_net_default[name], rel=1e-6)} == CYCLE | {
        "generators/total"
    }
    assert isinstance(recipe_of("lt-net", preset="paper").networks["backward"].body, VoxelMorphUNet)


def test_totals_of_lt_net_have_the_papers_weights(lt_net_default):
    weights = {"adversarial": 1, "similarity": 1, "image_cycle": 10, "smoothness": 3}
    weights |= {"anatomy_cycle": 3, "transformation_cycle": 3, "difference_cycle": 3}
    expected = sum(weight * lt_net_default[f"generators/{name}"] for name, weight in weights.items())
    assert lt_net_default["generators/total"] == pytest.approx(expected)
    halves = (lt_net_default["discriminator/real"] + lt_net_default["discriminator/fake"]) / 2
    assert lt_net_default["discriminator/total"] == pytest.approx(halves)


OFF = {f"{name}_weight": 0.0 for name in ("gan", "cycle", "transformation", "anatomy", "difference")}
BASE = ["similarity", "smoothness"]
ROWS = [  # of the paper's Tables 2 and 3: weights that are on, networks, terms
    ([], ["registration"], BASE),
    (["gan"], ["registration", "discriminator"], ["adversarial", *BASE]),
    (["gan", "cycle"], ["registration", "backward", "discriminator"], ["adversarial", *BASE, "image_cycle"]),
    (
        ["gan", "cycle", "anatomy"],
        ["registration", "backward", "discriminator"],
        ["adversarial", *BASE, "image_cycle", "anatomy_cycle"],
    ),
    (
        ["gan", "cycle", "transformation"],
        ["registration", "backward", "discriminator"],
        ["adversarial", *BASE, "image_cycle", "transformation_cycle"],
    ),
    (
        ["gan", "cycle", "transformation", "anatomy"],
        ["registration", "backward", "discriminator"],
        ["adversarial", *BASE, "image_cycle", "transformation_cycle", "anatomy_cycle"],
    ),
]


@pytest.mark.parametrize(("on", "networks", "terms"), ROWS, ids=["-".join(row[0]) or "voxelmorph" for row in ROWS])
def test_rows_of_the_ablation_have_the_networks_and_terms_that_they_need(on, networks, terms):
    settings = {name: weight for name, weight in OFF.items() if name.removesuffix("_weight") not in on}
    recipe = recipe_of("lt-net", **settings)
    step = recipe.step("registration", 0)
    assert list(recipe.networks) == list(recipe.trained(step)) == networks
    (phase,) = step.phases
    assert sorted(phase.players[0].loss.terms) == sorted(terms)
    assert [player.name for player in phase.players][1:] == ["discriminator"] * ("gan" in on)
    assert list(step.pages) == ["cycle"] * ("cycle" in on)


def test_lt_net_that_looks_at_no_scan_is_refused():
    with pytest.raises(LrlsError, match=r"^methods\.lt-net: gan_weight and similarity_weight are both 0"):
        settings_of(METHODS["lt-net"], config(**{"lt-net": {"gan_weight": 0, "similarity_weight": 0}}))


def test_lt_net_trains_with_the_papers_schedule_and_starts_at_the_identity():
    training = training_of(METHODS["lt-net"], config(), "train_reg")
    assert (training.learning_rate, training.schedule, training.optimizer) == (2e-4, "constant", "adam")
    assert (training.batch_size, training.augmentation) == (1, "none")
    for name in ("voxelmorph", "light"):
        recipe = recipe_of("lt-net", registration_network=name, backward_network="own")
        for network in (recipe.networks["registration"], recipe.networks["backward"]):
            assert network(*textured(2, 1, 1, *SHAPE)).abs().max() < 1e-2
    assert recipe.networks["registration"] is not recipe.networks["backward"]


def test_cycle_weights_of_lt_net_rise_where_minutes_must_do():
    (published,) = phases(recipe_of("lt-net"), "registration")
    weights = {name: weight for name, (weight, _) in published.players[0].loss.terms.items()}
    assert not any(isinstance(weight, Ramp) for weight in weights.values())  # the paper has no warm-up
    (phase,) = phases(recipe_of("lt-net", registration_network="light"), "registration")
    rising = {name: weight for name, (weight, _) in phase.players[0].loss.terms.items() if isinstance(weight, Ramp)}
    assert {f"generators/{name}" for name in rising} == CYCLE
    assert rising["image_cycle"] == Ramp(0.0, 10.0, most=0.5)
    assert [rising["image_cycle"](step, of=80) for step in (0, 20, 40, 79)] == [0, 5, 10, 10]
    (given,) = phases(recipe_of("lt-net", registration_network="light", warm_up=0), "registration")
    assert given.players[0].loss.terms["image_cycle"][0] == 10


def test_light_generators_of_lt_net_are_one_network_whose_answer_to_swapped_images_is_the_inverse():
    recipe = recipe_of("lt-net", registration_network="light", diffeomorphic=True)
    assert recipe.networks.keys() == {"registration", "discriminator"}
    forward, network = phases(recipe, "registration")[0].players[0].forward, recipe.networks["registration"]
    assert forward.back is forward.there is network
    nn.init.normal_(network.body.head.weight, std=0.01, generator=generator())
    moving, fixed = textured(2, 1, 1, *SHAPE)
    there, back = network(moving, fixed), network(fixed, moving)
    residual = compose(there, back)[..., 2:-2, 2:-2, 2:-2]
    assert residual.abs().mean() < 0.1 * there.abs().mean()
    own = recipe_of("lt-net", registration_network="light", backward_network="own")
    assert own.networks.keys() == {"registration", "backward", "discriminator"}
    assert phases(own, "registration")[0].players[0].forward.back is own.networks["backward"]


def test_the_picture_of_the_cycle_has_labels_in_the_space_of_the_image_and_an_error():
    data = scans()
    with torch.inference_mode():
        rows = recipe_of("lt-net").step("registration", 0).pages["cycle"](data)
    assert [case for case, _ in rows] == ["u1", "u2"]
    panels = rows[1][1]
    assert [panel.image.shape for panel in panels] == [SHAPE] * 5
    assert [panel.shows for panel in panels] == ["intensities"] * 4 + ["error"]
    atlas, scan, _, rebuilt, error = panels
    assert torch.equal(atlas.image, data.images[0, 0].float()) and torch.equal(atlas.label, data.labels[0])
    assert torch.equal(scan.image, data.images[2, 0].float())
    torch.testing.assert_close(error.image, (rebuilt.image - atlas.image).abs())


# best


def test_best_learns_from_atlases_in_the_shapes_of_scans_and_answers_with_the_mean():
    recipe = recipe_of("best")
    assert not recipe.step("registration", 0) and recipe.looks_at_unlabeled
    assert writer(recipe) == PathBank(space=Beta(0.3), style=None, most=150)
    assert recipe.answer.registers == InstanceOptimisation()
    assert recipe.answer.fuse
    (phase,) = phases(recipe, "segmentation")
    draw = Draw(1, None, None, generator())
    drawn = phase.batches(replace(scans(), bank=NoStyle()), draw)
    assert isinstance(drawn, Labelled)
    (player,) = phase.players
    total, values = player.loss(player.forward(drawn))
    assert values.keys() == {"overlap"} and math.isfinite(total.detach())


BEST_SWITCHES = {
    "segmentation_network": ("full", lambda recipe: type(recipe.answer.network)),
    "space": (False, lambda recipe: phases(recipe, "segmentation")[0].batches),
    "most_paths": (3, lambda recipe: writer(recipe).most),
    "coarse_steps": (7, lambda recipe: recipe.answer.registers.coarse_steps),
    "fine_steps": (7, lambda recipe: recipe.answer.registers.fine_steps),
    "smoothness_weight": (3.0, lambda recipe: recipe.answer.registers.smoothness),
    "half_resolution": (0.5, lambda recipe: [phase.share for phase in phases(recipe, "segmentation")]),
    "fuse": (False, lambda recipe: recipe.answer.fuse),
    "flat_borders": (False, lambda recipe: recipe.answer.flat_borders),
}


@pytest.mark.parametrize("setting", sorted(set(best.Settings.model_fields) - {"preset"}))
def test_switch_of_best_changes_what_it_is_about(setting):
    value, look = BEST_SWITCHES[setting]
    assert look(recipe_of("best", **{setting: value})) != look(recipe_of("best"))


def test_atlases_take_turns_so_that_every_scan_is_registered_before_one_is_again():
    cohort = SimpleNamespace(parts={"atlases": ["a", "b"], "unlabeled": ["1", "2", "3"]})
    every = atlas_scan_pairs(cohort)
    assert every == [("a", "1"), ("b", "2"), ("a", "3"), ("b", "1"), ("a", "2"), ("b", "3")]
    assert atlas_scan_pairs(cohort, 4) == every[:4]


def test_best_without_space_generates_nothing_and_learns_from_atlases():
    recipe = recipe_of("best", space=False)
    assert recipe.step("generated", 0) is None and not recipe.looks_at_unlabeled
    assert phases(recipe, "segmentation")[0].batches is labelled_scans


def test_style_maps_are_not_made_where_nothing_looks_at_them():
    recipe = recipe_of("brbs", preset="paper")
    phase = phases(recipe, "registration")[-1]
    helper = phase.players[1]
    helper.forward.sampling = SpaceStyleSampling(space=Beta(0.3), style=Always(0.0), mixing=None)
    calls = []
    recipe.networks["registration"].register_forward_hook(lambda _module, inputs, _out: calls.append(len(inputs[0])))
    helper.forward(phase.batches(scans(), Draw(1, None, None, generator())))
    assert calls == [1]


class NoStyle:
    couples = ((0, 1),)

    def displacement(self, couple):
        return torch.zeros(3, *SHAPE)

    def style(self, couple):
        raise AssertionError("nobody asks for it")

"""Recipes as plans: steps of rounds, the names of what they train, initial weights, and who reads which setting."""

import subprocess
import sys

import pytest
import torch
from recipes import SHAPE, built, config
from torch import nn

from stages.errors import LrlsError
from stages.generating.propagated import PropagatedLabels
from stages.methods import METHODS, settings_of, training_of
from stages.methods.recipe import Answer, Generate, Recipe, Task, Train
from stages.methods.settings import ORDER
from stages.parts.batches.labelled import labelled_scans
from stages.seeds import derive
from stages.training.runs import SECTION

PRESETS = ("default", "light")


def settings_with(name, preset):
    return settings_of(METHODS[name], config(**{name: {} if preset == "default" else {"preset": preset}}))


def of_method(name, preset, seed=0):
    """The recipe for two atlases."""
    return METHODS[name].recipe(Task(SHAPE, 3, 2, seed), settings_with(name, preset))


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


# Plans


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_light_preset_whose_recipe_builds_and_takes_minutes(name):
    assert "light" in METHODS[name].settings.PRESETS
    light = config(**{name: {"preset": "light"}})
    for _, step in of_method(name, "light").training_steps():
        numbers = training_of(METHODS[name], light, SECTION[step.makes])
        assert numbers.steps * step.share <= 2200 and numbers.schedule == "one-cycle"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", METHODS)
def test_plan_holds_no_weights_and_draws_nothing(name, preset):
    before = torch.get_rng_state()
    plan = METHODS[name].plan(settings_with(name, preset), num_atlases=2)
    assert torch.equal(torch.get_rng_state(), before)
    networks = [*plan.networks.values()]
    networks += [player.trains for _, step in plan.training_steps() for p in step.phases for player in p.players]
    networks += [each for each in (plan.answer.network, plan.answer.registers) if isinstance(each, nn.Module)]
    assert all(parameter.is_meta for network in networks for parameter in network.parameters())


def test_plans_are_cheap_because_torchs_compiler_stays_out_of_them():
    # Loading it takes seconds, and random numbers on the meta device would.
    code = (
        "import sys; from stages.methods import METHODS as m; "
        "[each.plan(each.settings(), num_atlases=2) for each in m.values()]; assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def description(recipe):
    """What a recipe says, without its networks."""
    rounds = range(len(recipe.rounds))
    return {
        "rounds": [[described(step, recipe) for step in steps] for steps in recipe.rounds],
        "run": [[recipe.rounds[n].index(step) for step in recipe.steps(n)] for n in rounds],
        "networks": {name: type(network) for name, network in recipe.networks.items()},
        "answer": (type(recipe.answer.network), type(recipe.answer.registers), recipe.answer.fuse),
        "learns": (recipe.looks_at_unlabeled, recipe.learns_registration),
    }


def described(step, recipe):
    if isinstance(step, Generate):
        return list(step.uses), [type(writer) for writer in step.writers]
    phases = [(p.name, p.share, p.batch_size, [player.name for player in p.players]) for p in step.phases]
    return step.makes, list(step.uses), list(recipe.trained(step)), list(step.pages), list(step.as_before), phases


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", METHODS)
def test_plan_agrees_with_the_recipe_on_rounds_steps_and_trained_networks(name, preset):
    plan = METHODS[name].plan(settings_with(name, preset), num_atlases=2)
    assert description(plan) == description(of_method(name, preset))


def test_plan_refuses_nothing_that_a_larger_grid_allows():
    five = settings_of(METHODS["os-medseg"], config(**{"os-medseg": {"hint_layers": 5}}))
    METHODS["os-medseg"].recipe(Task((80, 96, 80), 3, 1), five)
    METHODS["os-medseg"].plan(five, num_atlases=1)


def test_plan_knows_how_many_atlases_there_are():
    with pytest.raises(LrlsError, match="found 1, expected at least 2"):
        METHODS["lc-voxelmorph"].plan(settings_with("lc-voxelmorph", "default"), num_atlases=1)


# Steps

R, S = ("registration", ["registration"]), ("segmentation", ["segmentation"])
BOTH, MADE = ("registration", ["registration", "segmentation"]), ("generated", [])
STEPS = {  # method: for each round, what `lrls run` makes, and the names of the networks in it
    "unet": [[S]],
    "supervised": [[S]],
    "rigid": [[]],
    "affine": [[]],
    "bspline": [[]],
    "syn": [[]],
    "greedy": [[]],
    "mabmis": [[S]],
    "voxelmorph": [[R]],
    "lc-voxelmorph": [[R]],
    "clmorph": [[R]],
    "transmorph": [[R]],
    "pdd-net": [[R]],
    "lt-net": [[("registration", ["registration", "backward", "discriminator"])]],
    "data-aug": [[("registration", ["registration", "backward", "appearance"]), MADE, S]],
    "vae-aug": [
        [("registration", ["registration", "backward", "appearance", "looks", "shapes"]), MADE, S],
    ],
    "deep-atlas": [[BOTH, S]],
    "deep-rs": [[("registration", ["registration", "segmentation", "discriminator"]), S]],
    "pc-reg-rt": [[BOTH, S]],
    "rsegnet": [[BOTH, S]],
    "ist": [[R, MADE, S]] * 3,
    "ua-mt": [[S]],
    "cps": [[("segmentation", ["segmentation", "second"])]],
    "massl": [[("segmentation", ["segmentation", "reconstruction"])]],
    "brbs": [[BOTH, MADE, S]],
    "jrss": [[R, S], *[[MADE, R, S]] * 3],
    "os-medseg": [[R, MADE, ("segmentation", ["segmentation", "teacher"])]],
    "sst": [
        [
            (
                "registration",
                ["autoencoder", "flow_discriminator", "style_discriminator", "registration"],
            ),
            MADE,
            S,
        ]
    ],
    "best": [[MADE, S]],
}


def names_of(recipe, round):
    return [(step.makes, list(recipe.trained(step)) if isinstance(step, Train) else []) for step in recipe.steps(round)]


@pytest.mark.parametrize("name", METHODS)
def test_run_makes_these_artifacts_with_these_networks(name):
    recipe = of_method(name, "default")
    assert [names_of(recipe, round) for round in range(len(recipe.rounds))] == STEPS[name]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", METHODS)
def test_what_a_step_moves_it_writes_and_every_network_is_written(name, preset):
    recipe = of_method(name, preset)
    for _, step in recipe.training_steps():
        written = {id(p) for network in recipe.trained(step).values() for p in network.parameters()}
        for player in (player for phase in step.phases for player in phase.players):
            assert {id(p) for p in player.trains.parameters()} <= written
    trains = [step for steps in recipe.rounds for step in steps if isinstance(step, Train)]
    assert {name for step in trains for name in recipe.trained(step)} == recipe.networks.keys()


def test_steps_leave_out_generated_data_that_nothing_reads():
    generate = Generate([PropagatedLabels()])
    register = Train("registration")
    reads, does_not = Train("segmentation", uses=["generated"]), Train("segmentation", uses=["registration"])
    answer = Answer()
    assert Recipe([[register, generate, reads]], answer).steps(0) == [register, generate, reads]
    assert Recipe([[register, generate, does_not]], answer).steps(0) == [register, does_not]
    assert Recipe([[reads, generate]], answer).steps(0) == [reads]  # it comes too late
    assert Recipe([[register, generate]], answer).steps(0) == [register]
    assert Recipe([[generate], [reads]], answer).steps(0) == []  # a round reads its own


def test_single_commands_still_generate_what_run_leaves_out():
    recipe = built("voxelmorph")
    assert isinstance(recipe.step("generated", 0), Generate)
    paper = built("brbs", preset="paper")
    assert [step.makes for step in paper.steps(0)] == ["registration", "segmentation"]
    assert isinstance(paper.step("generated", 0), Generate)


def test_a_stage_that_a_round_does_not_have_is_answered_with_the_next_one():
    assert built("best").next_stage(0) == "generate"
    assert built("unet").next_stage(0) == "train-seg"
    assert built("affine").next_stage(0) == "eval"
    assert built("deep-atlas").next_stage(0, "generate") == "train-seg"
    assert built("voxelmorph").next_stage(0, "generate") == "eval"
    assert built("jrss").next_stage(0, "generate") == "train-seg"


# Initial weights


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", METHODS)
def test_building_a_recipe_leaves_torchs_generator_where_it_was(name, preset):
    before = torch.get_rng_state()
    of_method(name, preset)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", METHODS)
def test_initial_weights_are_the_seeds_whatever_torchs_generator_says(name, preset):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = of_method(name, preset)
        torch.manual_seed(2)
        again, other = of_method(name, preset), of_method(name, preset, seed=1)
    for key, network in first.networks.items():
        if next(network.parameters(), None) is None:
            continue  # it keeps images, and learns nothing
        assert torch.equal(weights(network), weights(again.networks[key]))
        assert not torch.equal(weights(network), weights(other.networks[key]))


@pytest.mark.parametrize("kind", ["brbs", "full", "light"])
def test_segmentation_networks_of_one_kind_start_alike_in_all_methods(kind):
    found = [built(name, segmentation_network=kind) for name in ("unet", "brbs", "deep-atlas", "data-aug", "best")]
    first, *others = (weights(recipe.networks["segmentation"]) for recipe in found)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("kind", ["brbs", "light"])
def test_registration_networks_of_one_kind_start_alike_in_all_methods(kind):
    found = [built(name, registration_network=kind) for name in ("voxelmorph", "brbs", "rsegnet", "jrss")]
    first, *others = (weights(recipe.networks["registration"]) for recipe in found)
    assert all(torch.equal(first, other) for other in others)


def test_networks_of_one_kind_and_other_names_start_apart():
    for name in ("lt-net", "data-aug"):
        networks = built(name).networks
        assert not torch.equal(weights(networks["registration"]), weights(networks["backward"]))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lt-net", {"gan_weight": 0}),
        ("lt-net", {"transformation_weight": 0, "cycle_weight": 0, "anatomy_weight": 0, "difference_weight": 0}),
        ("sst", {"adversarial_weight": 0}),
        ("sst", {"autoencoder_adversarial_weight": 0}),
        ("os-medseg", {"teacher": False}),
        ("os-medseg", {"registration": "instance"}),
        ("data-aug", {"appearance": False}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_network_more_moves_no_other_ones_weights(name, settings):
    more, fewer = built(name).networks, built(name, **settings).networks
    assert fewer.keys() < more.keys()
    assert all(torch.equal(weights(network), weights(more[key])) for key, network in fewer.items())


# Seeds


def test_seeds_of_other_names_numbers_and_orders_differ():
    names = [(), ("a",), ("b",), ("ab",), ("a", "b"), ("b", "a"), (1,), ("1",), (2,), ("a", 1), ("a", 2), ("a", "1")]
    seeds = [derive(seed, *each) for seed in (0, 1) for each in names]
    assert len(set(seeds)) == 2 * len(names)


def test_seed_of_a_name_never_changes():
    assert derive(0, "network", "segmentation") == 7_311_158_247_979_125_959
    assert derive(7, "train-seg", 2) == 5_800_136_911_171_042_637


def test_seeds_fit_into_63_bits_and_use_them():
    seeds = [derive(0, "sample", i) for i in range(1000)]
    assert 0 <= min(seeds) < 2**55 and 2**62 < max(seeds) < 2**63
    torch.Generator().manual_seed(max(seeds))


# Who reads which setting

BORDERS = {"eval": {"preset", "flat_borders"}}
LATER = {  # method: settings that stages before this one do not read
    "unet": {"train-seg": {"half_resolution"}} | BORDERS,
    "supervised": {"train-seg": {"half_resolution"}} | BORDERS,
    "rigid": {"eval": {"preset"}},
    "affine": {"eval": {"preset"}},
    "bspline": {"eval": {"preset"}},
    "syn": {"eval": {"preset"}},
    "greedy": {"eval": {"preset"}},
    "mabmis": {"eval": {"preset"}},
    "voxelmorph": {"eval": {"preset"}},
    "lc-voxelmorph": {"eval": {"preset"}},
    "clmorph": {"eval": {"preset"}},
    "transmorph": {"eval": {"preset"}},
    "pdd-net": {"eval": {"preset"}},
    "lt-net": {"eval": {"preset"}},
    "data-aug": {"eval": {"preset"}},
    "vae-aug": {
        "generate": {"spread", "samples"},
        "train-seg": {"segmentation_network", "segmentation_loss"},
        "eval": {"preset", "flat_borders"},
    },
    "deep-atlas": BORDERS,
    "deep-rs": BORDERS,
    "pc-reg-rt": BORDERS,
    "rsegnet": BORDERS,
    "ua-mt": {"eval": {"preset", "flat_borders", "answers"}},
    "cps": BORDERS,
    "massl": BORDERS,
    "ist": {
        "generate": {"most_samples", "pseudo_weight"},
        "train-seg": {"segmentation_network"},
        "eval": {"preset", "flat_borders", "rounds"},
    },
    "brbs": BORDERS,
    "jrss": {
        "train-seg": {
            "segmentation_network", "pretraining_loss", "weight_decay", "spare_missing",
            "dropout", "input_noise", "weigh_classes", "kl_weight", "carried_weight", "decay", "decay_warm_up",
        },
        "eval": {"preset", "flat_borders", "rounds"},
    },
    "os-medseg": {
        "generate": {"most_samples"},
        "train-seg": {
            "segmentation_network", "teacher", "teacher_share", "student_sees", "segmentation_loss",
            "segmentation_weight", "reconstruction_weight", "hint_weight", "hint_loss", "hint_layers", "hint_from",
            "hint_detach",
        },
        "eval": {"preset"},
    },
    "sst": {
        "generate": {"sampling", "looks", "samples", "label_above", "appearance_from"},
        "train-seg": {"segmentation_network", "segmentation_loss", "segmentation_weight_decay"},
        "eval": {"preset", "flat_borders"},
    },
    "best": {"train-seg": {"half_resolution"}, "eval": {"preset", "flat_borders", "fuse"}},
}  # fmt: skip
LATER_ROUNDS = {  # method: settings that round 0 does not read, but for `eval`
    "ist": {"round_share", "overlap_weight", "pseudo_weight"},
    "jrss": {
        "round_share", "round_pace", "schedule_over_rounds", "threshold", "screening", "spare_missing",
        "dropout", "input_noise", "weigh_classes", "kl_weight", "carried_weight", "decay", "decay_warm_up",
    },
}  # fmt: skip


@pytest.mark.parametrize("round", [0, 1])
@pytest.mark.parametrize("name", METHODS)
def test_each_stage_reads_the_settings_of_the_table(name, round):
    settings = settings_of(METHODS[name], config())
    for place, stage in enumerate(ORDER):
        unread = {setting for later in ORDER[place + 1 :] for setting in LATER[name].get(later, ())}
        if not round and stage != "eval":
            unread |= LATER_ROUNDS.get(name, set())
        assert settings.read_by(stage, round).keys() == type(settings).model_fields.keys() - unread


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_later_rounds_are_those_of_the_table(name):
    assert METHODS[name].settings.of_later_rounds() == LATER_ROUNDS.get(name, set())


@pytest.mark.parametrize("name", ["best", "brbs", "os-medseg"])
def test_without_unlabelled_scans_methods_that_generate_learn_s_from_the_atlases(name):
    settings = settings_with(name, "light")
    recipe = METHODS[name].plan(settings, num_atlases=1, num_unlabeled=0)
    ((only,),) = recipe.rounds
    assert only.makes == "segmentation" and not recipe.looks_at_unlabeled and list(recipe.networks) == ["segmentation"]
    ((phase,), (player,)) = only.phases, only.phases[0].players
    assert phase.batches is labelled_scans and player.trains is recipe.answer.network
    assert [weight for weight, _ in player.loss.terms.values()] == [1.0]  # L_seg alone
    assert not recipe.learns_registration
    assert METHODS[name].plan(settings, num_atlases=1).looks_at_unlabeled

"""SST: every switch, the order of the phases, resume within them, samples on disk, and looks of another site."""

import os
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import CASES, Project
from torch import nn

from stages import workflow
from stages.answering.jobs import job_of
from stages.artifacts.cohort import Cohort
from stages.artifacts.store import Draft
from stages.artifacts.weights import Registration
from stages.calibrate import made_couples
from stages.config import Config, TrainSettings
from stages.device import Device
from stages.errors import LrlsError
from stages.generating.drawn import DrawnScans
from stages.methods import METHODS, recipe_of, settings_of, settings_read, sst, sst_pages, training_of
from stages.methods.phases import Phase, Player, WeightedSum
from stages.methods.recipe import Task
from stages.parts.batches.drawing import Draw
from stages.parts.batches.scans import Scans
from stages.parts.networks.flow_autoencoder import FlowAutoencoder
from stages.parts.networks.plain_unet import PlainUNet
from stages.parts.networks.styled_registration import StyledRegistration
from stages.parts.networks.unet import LightUNet, UNet
from stages.parts.networks.voxelmorph import StridedUNet
from stages.parts.panels import Points, spread
from stages.parts.synthesis import Drawn
from stages.training import budget
from stages.training.loop import Run, _optimizer, train

SHAPE = (10, 12, 12)
LIGHT = {"registration_network": "light", "segmentation_network": "light", "style_batch_size": 2, "queue": 8}
ALIKE = {"temperature": 0.5}  # at first all codes are alike, and 0.07 makes of that a loss of nearly 0


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(*size, seed=0):
    return torch.rand(size, generator=generator(seed))


def scans():
    labels = {0: torch.randint(3, SHAPE, generator=generator()).short()}
    return Scans(list("abcd"), textured(4, 1, *SHAPE).half(), labels, [0], [1, 2, 3], 3, (1.0, 1.0, 1.0))


def config(**settings):
    values = {"workspace": "runs", "data": {"folder": "."}, "structures": {"a": 1, "b": 2}}
    return Config.model_validate(values | {"methods": {"sst": settings}})


def built(shape=SHAPE, **settings):
    return METHODS["sst"].recipe(Task(shape, 3, 1), settings_of(METHODS["sst"], config(**{**LIGHT, **settings})))


def learning(recipe):
    """The phases of train-reg."""
    return recipe.step("registration", 0).phases


def writer_of(recipe):
    (writer,) = recipe.step("generated", 0).writers
    return writer


def terms(**settings):
    """Every term of a step of every phase, and the totals; the flow model moves things, and styles tell."""
    recipe = built(**{**ALIKE, **settings})
    R = recipe.networks["registration"]
    flow = R.flow if isinstance(R, StyledRegistration) else R
    nn.init.normal_(flow.body.head.weight, std=0.05, generator=generator())
    if isinstance(R, StyledRegistration):
        for number, block in enumerate(R.appearance.up):
            nn.init.normal_(block.scale.weight, std=0.1, generator=generator(number))
    values = {}
    for phase in learning(recipe):
        batch = phase.batches(scans(), Draw(phase.batch_size or 2, None, None, generator(1)))
        for player in phase.players:
            with torch.no_grad():
                total, found = player.loss(player.forward(batch))
            named = {**found, "total": total}.items()
            values |= {f"{phase.name}/{player.name}/{name}": float(term) for name, term in named}
    return values


@pytest.fixture(scope="module")
def default():
    return terms()


# Switches


def of(prefix, *names):
    return {f"{prefix}/{name}" for name in names}


FLOW = of("flow/flow", "similarity", "smoothness", "total")
STYLE = of("style/style", "contrast", "adversarial", "total")
STYLE_JUDGE = of("style/style-discriminator", "real", "fake", "total")
JOINT_STYLE = of("joint/joint", "contrast", "style_cycle", "style_identity", "adversarial")
JOINT_FLOW = of("joint/joint", "reconstruction", "smoothness")
JOINT = JOINT_STYLE | JOINT_FLOW | of("joint/joint", "total")
JOINT_JUDGE = of("joint/style-discriminator", "real", "fake", "total")
CODE = of("autoencoder/autoencoder", "reconstruction", "adversarial", "total")
CODE_JUDGE = of("autoencoder/flow-discriminator", "real", "fake", "total")
BY_FLOW = {*FLOW, *of("style/style", "contrast", "total"), *of("joint/joint", "contrast", "total"), *JOINT_FLOW}
BY_CODES = CODE | of("autoencoder/flow-discriminator", "fake", "total")
TOTALS = of("style/style", "total") | of("joint/joint", "total")
ALL = FLOW | STYLE | STYLE_JUDGE | JOINT | JOINT_JUDGE | CODE | CODE_JUDGE
# Discriminators say of the prior what they said, whichever networks they judge: their weights are drawn apart.
OF_PRIOR = {"style/style-discriminator/real", "joint/style-discriminator/real", "autoencoder/flow-discriminator/real"}
BY_CONTRAST = TOTALS | of("style/style", "contrast") | of("joint/joint", "contrast")
FLOW_ALONE = of("joint/flow", "reconstruction", "smoothness", "total")
STYLE_ALONE = {name.replace("joint/joint", "joint/appearance") for name in JOINT_STYLE} | of(
    "joint/appearance", "total"
)
TOLD = of("style/style", "adversarial") | of("joint/joint", "adversarial")
NO, TOTAL, CODED = set(), of("joint/joint", "total"), of("autoencoder/autoencoder", "total")
SWITCHES = [
    # setting, its value, terms that go, terms that come, terms that change
    ("registration_network", "sst", NO, NO, ALL - OF_PRIOR),
    ("diffeomorphic", True, NO, NO, BY_FLOW | BY_CODES),
    ("appearance", False, STYLE | STYLE_JUDGE | JOINT | JOINT_JUDGE, FLOW_ALONE, BY_CODES),
    ("joint", False, JOINT, FLOW_ALONE | STYLE_ALONE, NO),
    ("style_code", "key", NO, NO, NO),  # whom gradients reach, see test_style.py
    ("jitter", False, NO, NO, FLOW | STYLE | STYLE_JUDGE | JOINT | JOINT_JUDGE),  # the prior is drawn behind it
    ("temperature", 0.07, NO, NO, BY_CONTRAST),
    ("queue", 16, NO, NO, BY_CONTRAST),
    ("appearance_weight", 1.0, NO, NO, TOTAL),
    ("flow_weight", 2.0, NO, NO, TOTAL),
    ("similarity", "mi", NO, NO, of("flow/flow", "similarity", "total") | of("joint/joint", "reconstruction", "total")),
    (
        "smoothness",
        "bending",
        NO,
        NO,
        of("flow/flow", "smoothness", "total") | of("joint/joint", "smoothness", "total"),
    ),
    ("smoothness_weight", 1.0, NO, NO, TOTAL),
    ("adversarial_weight", 0.0, STYLE_JUDGE | JOINT_JUDGE | TOLD, NO, TOTALS),
    (
        "first_adversarial_weight",
        0.0,
        STYLE_JUDGE | of("style/style", "adversarial"),
        NO,
        of("style/style", "total"),
    ),
    ("first_smoothness_weight", 1.0, NO, NO, of("flow/flow", "total")),
    ("autoencoder_image_weight", 1.0, NO, of("autoencoder/autoencoder", "image"), CODED),
    ("autoencoder_adversarial_weight", 0.0, CODE_JUDGE | of("autoencoder/autoencoder", "adversarial"), NO, CODED),
    ("mix_flows", True, NO, NO, CODE | CODE_JUDGE),  # the prior is drawn behind the mixture
    (
        "transformer",
        "fixed",
        NO,
        NO,
        FLOW | of("style/style", "contrast", "total") | of("joint/joint", "contrast", "total"),
    ),
    (
        "own_look",
        "fixed",
        NO,
        NO,
        of("joint/joint", "contrast", "style_identity", "adversarial", "total")
        | of("joint/style-discriminator", "fake", "total"),
    ),
    ("joint_batch_size", 3, NO, NO, JOINT | JOINT_JUDGE),
    ("autoencoder_batch_size", 3, NO, NO, CODE | CODE_JUDGE),
    ("style_batch_size", 3, NO, NO, STYLE | STYLE_JUDGE | of("joint/joint", "contrast", "total")),
]
SHARES = {"flow_share", "style_share", "autoencoder_share"}
OTHERS = {"preset", "style_pace", "flat_borders", "segmentation_network", "samples", *SHARES}
OTHERS |= {"sampling", "looks", "appearance_from", "label_above", "weight_decay", "fading"}
OTHERS |= {"segmentation_loss", "segmentation_weight_decay"}


@pytest.mark.parametrize(("setting", "value", "gone", "new", "moved"), SWITCHES, ids=[row[0] for row in SWITCHES])
def test_switch_changes_the_terms_that_it_is_about_and_no_other(default, setting, value, gone, new, moved):
    found = terms(**{setting: value})
    assert default.keys() - found.keys() == gone
    assert found.keys() - default.keys() == new
    both = default.keys() & found.keys()
    assert {name for name in both if found[name] != pytest.approx(default[name], rel=1e-6, abs=1e-9)} == moved


@pytest.mark.parametrize("networks", ["sst", "light"])
@pytest.mark.parametrize("row", [{row[0]: row[1]} for row in SWITCHES if row[0] != "registration_network"], ids=str)
def test_every_row_of_an_ablation_trains_what_it_has(row, networks):
    recipe = built((16, 16, 16), **{"registration_network": networks, **row})
    data = replace(
        scans(), images=textured(4, 1, 16, 16, 16), labels={0: torch.randint(3, (16, 16, 16), generator=generator())}
    )
    moved = set()
    for phase in learning(recipe):
        batch = phase.batches(data, Draw(phase.batch_size or 2, None, None, generator(1)))
        for player in phase.players:
            player.trains.zero_grad()
            total, _ = player.loss(player.forward(batch))
            total.backward()
            gradients = {n: p.grad for n, p in player.trains.named_parameters() if p.grad is not None}
            assert gradients and all(bool(g.isfinite().all()) for g in gradients.values())
            moved |= {id(p) for p in player.trains.parameters() if p.grad is not None}
    networks = nn.ModuleList(recipe.trained(recipe.step("registration", 0)).values())
    assert all(id(p) in moved for p in networks.parameters() if p.requires_grad)


def test_every_setting_is_in_the_table_above_or_below():
    assert {row[0] for row in SWITCHES} | OTHERS == set(sst.Settings.model_fields)


def test_settings_that_no_term_of_train_reg_shows_change_what_they_are_about():
    assert type(built(segmentation_network="full").networks["segmentation"]) is UNet
    assert type(built().networks["segmentation"]) is LightUNet
    assert built(flat_borders=True).answer.flat_borders and not built().answer.flat_borders
    plain, between = writer_of(built()), writer_of(built(sampling="interpolate", samples=7))
    assert (plain.count, plain.synthesis.interpolate) == (1850, False)
    assert (between.count, between.synthesis.interpolate) == (7, True)
    assert writer_of(built(appearance=False)).synthesis.appearance is None
    remembering = built(looks="memory")
    assert writer_of(remembering).synthesis.memory is remembering.networks["registration"].style
    assert plain.synthesis.memory is None
    codes = [built(style_code=code).networks["registration"].style for code in ("query", "key")]
    assert [style.looks_of for style in codes] == ["query", "key"]
    assert [built(jitter=jitter).networks["registration"].style.own for jitter in (True, False)] == [True, False]


def test_settings_of_the_published_code_reach_what_they_are_about():
    def players(recipe):
        return {player.name: player for phase in learning(recipe) for player in phase.players}

    plain, decaying = players(built()), players(built(weight_decay=0.5))
    assert {player.weight_decay for player in plain.values()} == {0.0}
    assert {name for name, player in decaying.items() if not player.weight_decay} == {"joint"}
    assert [phase.fades for phase in learning(built(fading=True))] == [True, True, False, True]
    assert not any(phase.fades for phase in learning(built()))
    assert writer_of(built(label_above=0.25)).label_above == 0.25
    (segment,) = built(segmentation_loss="sst", segmentation_weight_decay=0.5).step("segmentation", 0).phases[0].players
    assert segment.weight_decay == 0.5
    assert {name: weight for name, (weight, _) in segment.loss.terms.items()} == {"cross_entropy": 1.0, "overlap": 0.2}
    assert type(built(segmentation_network="sst").networks["segmentation"]) is PlainUNet
    training = training_of(sst.METHOD, config(segmentation_network="sst"), "train_seg")
    assert (training.optimizer, training.schedule, training.learning_rate) == ("adam", "constant", 1e-4)


def test_transformer_that_is_fixed_is_a_network_of_its_own_that_the_first_phase_trains():
    recipe = built(transformer="fixed")
    R = recipe.networks["registration"]
    flow, style, joint, _ = learning(recipe)
    assert flow.players[0].trains is R.transformer and style.players[0].forward.transformer is R.transformer
    trained = {id(parameter) for player in joint.players for parameter in player.trains.parameters()}
    assert not trained & {id(parameter) for parameter in R.transformer.parameters()}
    flow_weights, own_weights = (next(each.parameters()) for each in (R.flow, R.transformer))
    assert not torch.equal(flow_weights, own_weights)
    assert built().networks["registration"].transformer is None
    plain = built()
    assert learning(plain)[0].players[0].trains is plain.networks["registration"].flow


def test_a_pair_looks_alike_in_pre_training_and_each_scan_its_own_way_in_the_joint_phase():
    def changes(phase):
        # Halves of a black and a grey scan: by how much the grey one is brighter or darker than it was.
        images = torch.zeros(4, 1, *SHAPE)
        images[:, :, :5] = 0.5
        batch = phase.batches(replace(scans(), images=images), Draw(3, None, None, generator()))
        return torch.cat([batch.moving, batch.fixed]).amax((1, 2, 3, 4)).view(2, 3)

    flow, style, joint, _ = learning(built())
    for phase in (flow, style, *learning(built(appearance=False))[:2]):
        first, second = changes(phase)
        assert torch.equal(first, second) and len(set(first.tolist())) == 3
    assert len(set(changes(joint).flatten().tolist())) == 6
    assert set(changes(learning(built(jitter=False))[2]).flatten().tolist()) == {0.5}


def test_phases_have_the_papers_order_shares_and_batches():
    phases = learning(built(style_batch_size=32))
    assert [phase.name for phase in phases] == ["flow", "style", "joint", "autoencoder"]
    assert [phase.share for phase in phases] == pytest.approx([0.15, 0.1, 0.45, 0.3])
    assert [phase.batch_size for phase in phases] == [None, 32, None, None]
    shares = {"flow_share": 0.3, "style_share": 0.2, "autoencoder_share": 0.1}
    assert [phase.share for phase in learning(built(**shares))] == pytest.approx([0.3, 0.2, 0.4, 0.1])
    without = learning(built(appearance=False))
    assert [(phase.name, phase.share) for phase in without] == [
        ("flow", 0.15), ("joint", pytest.approx(0.55)), ("autoencoder", 0.3),
    ]  # fmt: skip
    players = [player for phase in phases for player in phase.players]
    assert all(player.momentum == (0.5 if "discriminator" in player.name else 0.9) for player in players)
    for settings, pace in (({}, 0.3), ({"registration_network": "sst"}, 1), ({"style_pace": 0.5}, 0.5)):
        paces = [player.paces for phase in learning(built(**settings)) for player in phase.players]
        assert [[found for _, found in each] for each in paces] == [[], *[[pace]] * 4, [], [pace]]
    with pytest.raises(LrlsError, match=r"add up to 1\.2, which leaves the joint phase nothing"):
        built(flow_share=0.8)


def test_totals_have_the_papers_weights(default):
    joint = {name.rpartition("/")[2]: value for name, value in default.items() if name.startswith("joint/joint")}
    weights = {"contrast": 1, "style_cycle": 5, "style_identity": 5, "adversarial": 0.1}
    weights |= {"reconstruction": 1, "smoothness": 0.1}
    assert joint["total"] == pytest.approx(sum(weight * joint[name] for name, weight in weights.items()))
    assert default["style/style/total"] == pytest.approx(
        default["style/style/contrast"] + 0.5 * default["style/style/adversarial"]
    )  # light networks; with the published ones it is that of the joint phase
    coded = {name.rpartition("/")[2]: value for name, value in default.items() if name.startswith("autoencoder/autoe")}
    assert coded["total"] == pytest.approx(coded["reconstruction"] + 0.002 * coded["adversarial"])
    assert (sst.Settings().judging_flows, sst.Settings(autoencoder_adversarial_weight=0.3).judging_flows) == (0.05, 0.3)
    assert [sst.Settings(adversarial_weight=weight).judging for weight in (0.1, 0.0)] == [0.1, 0.0]
    assert default["flow/flow/total"] == pytest.approx(
        default["flow/flow/similarity"] + 0.3 * default["flow/flow/smoothness"]
    )


def changed_by(preset):
    """What a preset sets otherwise than the default."""
    plain, found = (settings_of(sst.METHOD, config(**given)).model_dump() for given in ({}, {"preset": preset}))
    return {name: value for name, value in found.items() if value != plain[name] and name != "preset"}


def test_presets_are_the_text_and_the_published_code_and_what_is_given_wins():
    published = {"transformer": "fixed", "segmentation_network": "sst", "segmentation_loss": "sst"}
    assert changed_by("paper") == {"temperature": 0.7, "jitter": False, **published}
    assert changed_by("official") == {
        **published, "style_code": "key", "own_look": "fixed", "appearance_weight": 2.5, "flow_weight": 0.5,
        "smoothness_weight": 0.2, "adversarial_weight": 0.05, "first_adversarial_weight": 0.5,
        "autoencoder_image_weight": 1.0, "mix_flows": True, "sampling": "interpolate", "label_above": 0.01,
        "style_batch_size": 16, "joint_batch_size": 1, "autoencoder_batch_size": 2, "flow_share": 0.18,
        "style_share": 0.05, "autoencoder_share": 0.04, "weight_decay": 1e-4, "fading": True,
        "segmentation_weight_decay": 1e-6,
    }  # fmt: skip
    reg, seg = (training_of(sst.METHOD, config(preset="official"), stage) for stage in ("train_reg", "train_seg"))
    assert (reg.learning_rate, reg.batch_size, reg.optimizer) == (1e-4, 4, "adam")
    assert (seg.learning_rate, seg.batch_size, seg.steps) == (2e-4, 1, 185_000)  # 100 epochs of 1850 scans
    official = settings_of(sst.METHOD, config(preset="official"))
    assert official.flow_weight * official.smoothness_weight == pytest.approx(0.1)
    assert official.judging == 0.5
    assert settings_of(sst.METHOD, config(preset="official", sampling="prior")).sampling == "prior"
    training = training_of(sst.METHOD, config(), "train_reg")
    assert (training.batch_size, training.learning_rate, training.augmentation) == (4, 2e-4, "none")


def test_published_networks_are_the_default():
    recipe = METHODS["sst"].recipe(Task((48, 64, 48), 3, 1), settings_of(METHODS["sst"], config()))
    R = recipe.networks["registration"]
    assert type(R.flow.body) is StridedUNet and not R.appearance.light and len(R.appearance.up) == 3
    autoencoder = recipe.networks["autoencoder"]
    assert type(autoencoder) is FlowAutoencoder and autoencoder.grid == (64, 64, 64)
    assert len(R.style.queue) == 1024
    names = {"registration", "autoencoder", "flow_discriminator", "style_discriminator"}
    assert recipe.trained(recipe.step("registration", 0)).keys() == names
    assert built((16, 17, 40)).networks["registration"](*textured(2, 1, 1, 16, 17, 40)).shape == (1, 3, 16, 17, 40)


def test_pages_show_codes_looks_and_shapes():
    recipe, data = built(), scans()
    R = recipe.networks["registration"]
    with torch.inference_mode():
        shown = {name: page(data) for name, page in recipe.step("registration", 0).pages.items()}
    assert list(shown) == ["shapes", "style-codes", "styles", "looks-and-shapes"]
    codes = shown["style-codes"]
    assert isinstance(codes, Points) and list(codes.groups) == list("abcd")
    assert all(points.shape == (4, 2) for points in codes.groups.values())
    assert torch.cat(list(codes.groups.values())).mean(0).abs().max() < 1e-5
    _, givers = shown["styles"][0]
    assert all(torch.equal(panel.image, data.image([k + 1])[0, 0]) for k, panel in enumerate(givers[1:]))
    assert [case for case, _ in shown["styles"]] == ["source of the look", "a", "b", "d"]
    _, looks = shown["styles"][2]
    assert [panel.heading for panel in looks] == ["as it is", *(f"in the look of {n}" for n in "bcd")]
    torch.testing.assert_close(looks[2].image, R.restyled(data.image([1]), data.image([2]))[0, 0])
    assert spread(range(100), 5) == [0, 25, 50, 74, 99] and spread([4], 2) == [4]
    assert len({float(panels[2].image.sum()) for _, panels in shown["shapes"]}) == 4
    assert list(built(appearance=False).step("registration", 0).pages) == ["shapes"]


def test_a_row_of_the_page_has_one_look_and_a_column_one_shape():
    recipe, data = built(), scans()
    R, G_flow = recipe.networks["registration"], recipe.networks["autoencoder"]
    for number, block in enumerate(R.appearance.up):  # looks differ
        nn.init.normal_(block.scale.weight, std=0.5, generator=generator(number))
    nn.init.normal_(list(G_flow.parameters())[-2], std=0.3, generator=generator())  # shapes differ
    with torch.inference_mode():
        rows = [panels for _, panels in recipe.step("registration", 0).pages["looks-and-shapes"](data)]
    assert [len(panels) for panels in rows] == [6] * 4
    for column in zip(*rows, strict=True):
        assert all(torch.equal(panel.label, column[0].label) for panel in column)
        assert len({float(panel.image.sum()) for panel in column}) == 4
    shapes = [panel.label for panel in rows[0]]
    assert torch.equal(shapes[0], data.label([0])[0]) and len({label.numpy().tobytes() for label in shapes}) == 6


def test_folds_of_drawn_shapes_are_marked():
    folding = torch.zeros(1, 3, *SHAPE)
    folding[0, 0, 4:] = -5  # along D, voxels from 4 on read what lies before voxel 3
    assert sst_pages.folds(folding)[3].all() and not sst_pages.folds(folding)[[0, 1, 2, 6, 7]].any()
    page = built().step("registration", 0).pages["shapes"]
    with torch.inference_mode():
        assert all(panels[2].folds is not None and panels[2].folds.shape == SHAPE for _, panels in page(scans()))


def test_labels_are_background_where_a_drawn_scan_is_darker_than_asked():
    image = torch.full((1, 1, *SHAPE), 0.5)
    image[..., 0] = 0.1
    still = torch.zeros(1, 3, *SHAPE)
    drawn = Drawn(image, image, still, "prior", "prior")
    cpu = Device(torch.device("cpu"), torch.float32)
    job, data = SimpleNamespace(device=cpu, cohort=SimpleNamespace(num_classes=3)), scans()
    for above, masked in ((0.0, False), (0.2, True)):
        label = DrawnScans(lambda *_: drawn, 1, above)._draw(data, 0, generator(), job)["label"]
        expected = data.labels[0].numpy().copy()
        expected[..., 0] *= not masked
        assert np.array_equal(label, expected)


# Training and artifacts


def test_rate_of_a_phase_that_fades_falls_in_its_second_half(tmp_path):
    def moved(fades, folder):
        network, folder = nn.Linear(1, 1, bias=False), tmp_path / folder
        network.weight.data.fill_(0)
        folder.mkdir()
        loss = WeightedSum(x=(1.0, lambda x: x))
        player = Player("p", network, lambda _: network.weight.sum(), loss)
        training = TrainSettings(
            steps=4, batch_size=1, learning_rate=0.1, schedule="constant", optimizer="adam", ema=0.0,
            augmentation="none",
        )  # fmt: skip
        phase = Phase("one", lambda *_: SimpleNamespace(scans=["a"]), [player], fades=fades)
        cpu = Device(torch.device("cpu"), torch.float32)
        train(Run([phase], {"n": network}, scans(), training, cpu, 0, Draft(folder)))
        return -float(network.weight.detach())

    assert moved(False, "plain") == pytest.approx(0.4, rel=1e-4)  # Adam moves by the rate
    assert moved(True, "fading") == pytest.approx(0.1 * (1 + 1 + 1 + 0.5), rel=1e-4)


def test_phases_may_have_batches_of_their_own_and_parts_of_a_player_their_own_pace(tmp_path):
    networks = nn.ModuleList(nn.Linear(3, 1) for _ in range(2))
    before = [network.weight.detach().clone() for network in networks]
    seen = []

    def batches(data, draw):
        seen.append(draw.batch_size)
        return SimpleNamespace(scans=["a"], x=torch.ones(1, 3))

    loss = WeightedSum(sum=(1.0, lambda batch: sum(network(batch.x).sum() for network in networks)))
    player = Player("p", networks, lambda batch: batch, loss, momentum=0.5, paces=[(networks[1], 0.1)])
    training = TrainSettings(
        steps=1, batch_size=4, learning_rate=0.01, schedule="constant", optimizer="adam", ema=0.0, augmentation="none"
    )
    device = Device(torch.device("cpu"), torch.float32)
    phases = [Phase("one", batches, [player], batch_size=7), Phase("two", batches, [player])]
    train(Run(phases, {"n": networks}, scans(), training, device, 0, Draft(tmp_path)))
    assert seen == [7, 4]
    for network, start, pace in zip(networks, before, (1.0, 0.1), strict=True):  # Adam's first step is the rate
        torch.testing.assert_close(start - network.weight, torch.full_like(start, 2 * 0.01 * pace), rtol=1e-3, atol=0)
    assert all(group["betas"] == (0.5, 0.999) for group in _optimizer(player, training).param_groups)


class Killed(Exception):
    pass


def test_a_run_that_is_killed_in_any_phase_ends_with_the_same_networks_and_queue(tmp_path):
    training = training_of(METHODS["sst"], config(**LIGHT), "train_reg").model_copy(
        update={"steps": 20, "batch_size": 1, "checkpoint_steps": 2}
    )

    def run(name, stop_in=None, after=0):
        recipe = built(flow_share=0.2, style_share=0.2, autoencoder_share=0.3)  # 4, 4, 6 and 6 steps
        phases, networks = list(learning(recipe)), recipe.trained(recipe.step("registration", 0))
        if stop_in is not None:
            left = iter(range(after))

            def until(data, draw, batches=phases[stop_in].batches):
                if next(left, None) is None:
                    raise Killed
                return batches(data, draw)

            phases[stop_in] = replace(phases[stop_in], batches=until)
        device = Device(torch.device("cpu"), torch.float32)
        (tmp_path / name).mkdir(exist_ok=True)
        train(Run(phases, networks, scans(), training, device, 3, Draft(tmp_path / name)))
        return {
            f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()
        }

    whole = run("whole")
    for phase in range(4):
        with pytest.raises(Killed):
            run("killed", stop_in=phase, after=3)  # a checkpoint is written after two
    resumed = run("killed")
    assert int((whole["registration.style.owners"] >= 0).sum()) == 8  # all of the queue
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, new_project, no_pictures_in_module) -> Project:
    project = new_project(tmp_path_factory.mktemp("here"))
    project.made("run", "--method", "sst", "--until", "generate")
    return project


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, new_project, scans) -> Project:
    """The same anatomies at a site whose scanner shows dark what is bright here."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for case in CASES:
        for kind in ("images", "labels"):
            image = sitk.ReadImage(str(scans / kind / f"{case}.nii.gz"))
            (folder / kind).mkdir(exist_ok=True)
            if kind == "images":
                values = sitk.GetArrayFromImage(image)
                inverted = sitk.GetImageFromArray(np.where(values > 0, values.max() + 50 - values, 0))
                inverted.CopyInformation(image)
                image = inverted
            sitk.WriteImage(image, str(folder / kind / f"{case}.nii.gz"))
    project = new_project(folder / "project", data={"folder": str(folder)})
    project.made("run", "--method", "sst", "--until", "train-reg")
    return project


def samples_of(project, version):
    with h5py.File(project.workspace / "sst" / "generated" / version / "generated.h5") as file:
        return {name: file["samples"][name][()] for name in file["samples"]}


def test_samples_are_images_and_labels_from_the_prior_with_their_quality(trained):
    samples = samples_of(trained, "v0001")
    assert samples["image"].shape == (3, 1, 24, 16, 24) and set(np.unique(samples["label"])) <= {0, 1, 2, 3, 4}
    assert samples["image"].min() >= 0 and samples["image"].max() <= 1
    assert set(samples["space"]) == set(samples["style"]) == {b"prior"} and set(samples["atlas"]) == {b"atlas_1"}
    assert len(set(samples["seed"])) == 3 and samples["accepted"].all()
    assert np.isfinite(samples["similarity"]).all() and np.isfinite(samples["folding_fraction"]).all()
    assert len({image.tobytes() for image in samples["image"]}) == 3


def test_a_budget_counts_the_drawing_of_every_scan(trained, monkeypatch, tmp_path):
    clock, drawn = iter(range(100)), []
    monkeypatch.setattr("stages.generating.drawn.time.monotonic", lambda: 2.0 * next(clock))
    cohort = Cohort.open(trained.workspace / "cohort" / "v0001")
    recipe = recipe_of(METHODS["sst"], cohort, trained.config)
    synthesis = writer_of(recipe).synthesis
    monkeypatch.setattr(
        type(synthesis), "__call__", lambda self, data, *rest, draw=type(synthesis).__call__: drawn.append(
            draw(self, data, *rest)
        ) or drawn[-1]
    )  # fmt: skip
    device = Device(torch.device("cpu"), torch.float32)
    step = recipe.step("registration", 0)
    took = budget._generate_seconds(recipe, 0, step, cohort, trained.config, device, Draft(tmp_path))
    assert took == 3 * 2.0  # every look at this clock takes two seconds
    assert [each.image.shape for each in drawn] == [(1, 1, 24, 16, 24)] * 2  # the first one warms up
    job = job_of(recipe, cohort, trained.config, device, Draft(tmp_path))
    assert writer_of(recipe).planned_seconds(job) == took


def test_more_samples_are_drawn_without_training_anew_and_the_first_ones_stay(trained):
    trained.made("generate", "--method", "sst", "--set", "methods.sst.samples=4")
    newest = trained.versions("sst/generated")[-1]
    few, many = samples_of(trained, "v0001"), samples_of(trained, newest)
    assert len(many["image"]) == 4
    assert all(np.array_equal(few[name], many[name][:3], equal_nan=name == "inverse_error_voxels") for name in few)
    trained.made("run", "--method", "sst", "--until", "generate", "--set", "methods.sst.sampling=interpolate")
    newest = trained.versions("sst/generated")[-1]
    between = samples_of(trained, newest)
    assert all(set(space.decode().split("+")) <= {"free_1", "free_2"} for space in between["space"])
    assert trained.versions("sst/registration") == ["v0001"]
    read = [settings_read(METHODS["sst"], trained.config, stage)["settings"] for stage in ("generate", "train-reg")]
    assert read[0].keys() - read[1].keys() == {"samples", "sampling", "looks", "appearance_from", "label_above"}


def looking_at(project, place, **settings):
    """The project's configuration, whose samples take the looks of what is at a place."""
    own = {**project.config.methods["sst"], "appearance_from": str(place), **settings}
    return project.config.model_copy(update={"methods": {"sst": own}})


def looks_from(place):
    return ("--set", f"methods.sst.appearance_from={place}")


def test_looks_of_another_site_go_with_the_shapes_of_this_one(trained, elsewhere):
    trained.made("generate", "--method", "sst", *looks_from(elsewhere.workspace))
    newest = trained.versions("sst/generated")[-1]
    identity = trained.manifest("sst/generated", newest).identity
    other = elsewhere.manifest("sst/registration")
    assert identity.inputs["borrowed"] == other.digest
    assert identity.inputs["registration"] == trained.manifest("sst/registration").digest != other.digest
    own, foreign = samples_of(trained, "v0001"), samples_of(trained, newest)
    assert np.array_equal(own["label"], foreign["label"])  # shapes are this site's
    assert np.array_equal(own["folding_fraction"], foreign["folding_fraction"])

    cohort = Cohort.open(trained.workspace / "cohort" / "v0001")
    crossed = recipe_of(METHODS["sst"], cohort, looking_at(trained, elsewhere.workspace))
    here = Registration.open(trained.workspace / "sst" / "registration" / "v0001")
    crossed.load([here])
    borrowed, R = crossed.step("generated", 0).borrowed, crossed.networks["registration"]
    synthesis, there = writer_of(crossed).synthesis, borrowed.artifact
    assert there.manifest.digest == other.digest
    there.load(borrowed.networks)
    looks, A = synthesis.appearance, R.appearance
    assert looks is not A and synthesis.registration is R
    before = {name: tensor.clone() for name, tensor in A.state_dict().items()}
    remembering = recipe_of(METHODS["sst"], cohort, looking_at(trained, elsewhere.workspace, looks="memory"))
    there.load(remembering.step("generated", 0).borrowed.networks)
    crossed_too, E = writer_of(remembering).synthesis.memory, remembering.networks["registration"].style
    assert crossed_too is not E and not torch.equal(crossed_too.queue, E.queue)
    there.load({"registration/style": E})
    assert torch.equal(crossed_too.queue, E.queue)
    there.load({"registration/appearance": A})
    assert all(torch.equal(tensor, looks.state_dict()[name]) for name, tensor in A.state_dict().items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in A.state_dict().items())
    draw = generator(int(foreign["seed"][0]))
    torch.randint(1, (1,), generator=draw)  # the atlas
    for network in synthesis.networks:
        network.eval()
    with torch.inference_mode():
        expected = synthesis(cohort.scans(torch.device("cpu")), 0, draw).image
    assert np.abs(expected[0].numpy() - foreign["image"][0]).max() < 0.05  # of bfloat16
    assert np.abs(own["image"][0] - foreign["image"][0]).max() > 0.05


def test_looks_depend_on_the_other_artifact_and_not_on_where_it_lies(trained, elsewhere):
    trained.made("generate", "--method", "sst", *looks_from(elsewhere.workspace))
    before = trained.digests()
    artifact = elsewhere.workspace / "sst" / "registration" / "v0001"
    for place in (artifact, os.path.relpath(artifact, trained.folder)):  # relative to the configuration file
        trained.made("generate", "--method", "sst", *looks_from(place))
    assert trained.digests() == before
    read = settings_read(METHODS["sst"], looking_at(trained, artifact), "generate")["settings"]
    assert read["appearance_from"] == elsewhere.manifest("sst/registration").digest
    settings = settings_of(METHODS["sst"], looking_at(trained, artifact))
    assert "appearance_from" not in settings.portable()


def test_single_commands_tell_the_looks_of_here_from_those_of_elsewhere(trained, elsewhere):
    place = elsewhere.workspace / "sst" / "registration" / "v0001"
    trained.made("generate", "--method", "sst", *looks_from(place))
    made = [trained.manifest("sst/generated", version) for version in trained.versions("sst/generated")]
    versions = {manifest.digest: "borrowed" in manifest.identity.inputs for manifest in made}
    for arguments, is_foreign in ((), False), (looks_from(place), True):
        done = trained.made("train-seg", "--method", "sst", *arguments)
        newest = done.out.splitlines()[-1].rpartition("/")[2]
        assert versions[trained.manifest("sst/segmentation", newest).identity.inputs["generated"]] is is_foreign
        done = trained.made("eval", "--method", "sst", *arguments)
        scores = trained.manifest("sst/scores", done.out.splitlines()[-1].rpartition("/")[2]).identity
        assert scores.inputs["segmentation"] == trained.manifest("sst/segmentation", newest).digest
        settings = looking_at(trained, elsewhere.workspace) if is_foreign else trained.config
        found = workflow.trained(settings, "sst")  # what is exported and predicts
        assert found.segmentation.manifest.digest == scores.inputs["segmentation"]
        assert versions[found.generated.manifest.digest] is is_foreign
        couples = made_couples(found, settings, "sst", 4)
        samples = samples_of(trained, found.generated.folder.name)
        for (image, label), row in zip(couples, (0, 1, 2, 0), strict=True):  # drawn scans, whose labels are known
            assert np.array_equal(image, samples["image"][row, 0]) and np.array_equal(label, samples["label"][row])


def test_looks_are_refused_before_anything_is_trained(trained, elsewhere):
    place = elsewhere.workspace / "sst" / "registration" / "v0001"
    done = trained.lrls("run", "--method", "jrss", "--set", f"methods.jrss.appearance_from={place}")
    assert done.code == 1 and "methods.jrss: unknown setting appearance_from; " in done.err
    assert not trained.versions("jrss/registration")


def test_looks_that_do_not_fit_or_are_not_there_are_refused(trained, tmp_path):
    for place, message in (
        (
            tmp_path,
            f"methods.sst.appearance_from: found no sst/registration in {tmp_path.name}, expected the workspace",
        ),
        (trained.workspace / "cohort" / "v0001", "holds a cohort artifact, expected registration"),
    ):
        done = trained.lrls("generate", "--method", "sst", *looks_from(place))
        assert done.code == 1 and message in done.err and done.err.count("\n") == 1
    trained.made("run", "--method", "voxelmorph", "--until", "train-reg")
    place = trained.workspace / "voxelmorph" / "registration" / "v0001"
    done = trained.lrls("generate", "--method", "voxelmorph", "--set", f"methods.voxelmorph.appearance_from={place}")
    assert done.code == 1 and "methods.voxelmorph: unknown setting appearance_from; " in done.err
    done = trained.lrls("generate", "--method", "sst", *looks_from(place))
    assert "was trained by voxelmorph, expected sst; name a workspace where" in done.err
    trained.made("run", "--method", "sst", "--until", "train-reg", "--set", "methods.sst.appearance=false")
    place = trained.workspace / "sst" / "registration" / trained.versions("sst/registration")[-1]
    done = trained.lrls("generate", "--method", "sst", *looks_from(place))
    assert "has no appearance model, expected an appearance model of light networks; train both" in done.err
    done = trained.lrls("generate", "--method", "sst", *looks_from(place), "--set", "methods.sst.appearance=false")
    assert "appearance_from needs an appearance model, but appearance is off" in done.err


def test_looks_of_a_memory_of_another_size_are_taken_and_an_empty_one_is_refused(new_project, tmp_path, no_pictures):
    def project(name, **settings):
        networks = {"registration_network": "light", "segmentation_network": "light", "samples": 1, "looks": "memory"}
        return new_project(tmp_path / name, methods={"sst": networks | settings})

    here, there = project("here"), project("there", queue=5)
    for each in (here, there):
        each.made("run", "--method", "sst", "--until", "train-reg")
    here.made("generate", "--method", "sst", *looks_from(there.workspace))
    samples = samples_of(here, here.versions("sst/generated")[-1])
    assert list(samples["style"]) == [b"memory"]
    blank = project("blank")
    done = blank.lrls("run", "--method", "sst", "--until", "generate", "--set", "train_reg.steps=0")
    message = "remembers no scan; raise train_reg.steps, or draw looks from the prior (methods.<name>.looks=prior)."
    assert done.code == 1 and message in done.err

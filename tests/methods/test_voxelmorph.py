"""`voxelmorph`: what its probabilistic switch and its published variants change, and a whole probabilistic run."""

import json

import pytest
import torch
from conftest import Project
from recipes import SHAPE, built, config, generator, phases, textured

from stages.errors import LrlsError
from stages.methods import settings_of, voxelmorph
from stages.parts.batches.drawing import Draw
from stages.parts.batches.pairs import LabelledPair, LabelledPairs
from stages.parts.networks.voxelmorph import HalfVoxelMorphUNet
from stages.parts.players.velocity import RegisterBySample


def pair():
    moving, fixed = textured(2, 1, 1, *SHAPE)
    return LabelledPair(["a", "u"], moving, fixed, torch.zeros(1, *SHAPE), 3, Draw(1, None, None, generator(4)))


def test_loss_is_the_variational_bound_and_its_switches_do_what_they_say():
    def terms(**settings):
        (player,) = phases(built("voxelmorph", **settings), "registration")[0].players
        return {name: weight for name, (weight, _) in player.loss.terms.items()}

    assert terms() == {"similarity": 1.0, "smoothness": 1.0}
    assert terms(probabilistic=True) == pytest.approx({"similarity": 1250.0, "divergence": 1.0})
    assert terms(probabilistic=True, image_sigma=0.1)["similarity"] == pytest.approx(50.0)
    assert terms(probabilistic=True, preset="light", similarity="lncc", kl_weight=0.01, smoothness_weight=2) == {
        "similarity": 1.0, "smoothness": 2.0, "divergence": 0.01,
    }  # fmt: skip
    weak, strong = (built("voxelmorph", probabilistic=True, prior_lambda=value) for value in (1.0, 10.0))
    values = []
    for recipe in (weak, strong):
        (player,) = phases(recipe, "registration")[0].players
        values.append(float(player.loss.terms["divergence"][1](player.forward(pair())).detach()))
    assert values[1] > values[0]
    with pytest.raises(LrlsError, match="probabilistic needs a velocity field, but diffeomorphic is off"):
        settings_of(voxelmorph.METHOD, config(voxelmorph={"probabilistic": True, "diffeomorphic": False}))
    paper = settings_of(voxelmorph.METHOD, config(voxelmorph={"preset": "paper"}))
    assert not paper.diffeomorphic and paper.preset_training("train_reg") == {"steps": 150_000}


def test_published_variants_differ_in_the_channels_at_full_resolution():
    def widths(kind):
        body = built("voxelmorph", registration_network=kind).networks["registration"].body
        return [layer.out_channels for layer in (*body.encoder, *body.decoder, *body.final)]

    one, two = widths("voxelmorph-1"), widths("voxelmorph")
    assert (one[0], one[-3:], two[0], two[-3:]) == (8, [32, 8, 8], 16, [32, 16, 16])
    assert one[1:-2] == two[1:-2]
    body = HalfVoxelMorphUNet(2, 6, (48, 64, 48))
    assert body(torch.rand(1, 2, 21, 24, 19)).shape == (1, 6, 11, 12, 10)


def test_label_constrained_pairs_are_sampled_too_and_their_labels_meet():
    recipe = built("lc-voxelmorph", atlases=2, probabilistic=True)
    (player,) = phases(recipe, "registration")[0].players
    assert isinstance(player.forward, RegisterBySample)
    images, label = textured(4, 1, *SHAPE), torch.randint(3, (1, *SHAPE), generator=generator()).short()
    batch = LabelledPairs(["a", "b"] * 2, images[:2], images[2:], label, label, 3, Draw(1, None, None, generator()))
    total, terms = player.loss(player.forward(batch))
    assert terms.keys() == {"similarity", "divergence", "overlap"} and bool(total.isfinite())


@pytest.mark.usefixtures("no_pictures", "in_this_process")
def test_probabilistic_run_from_scans_to_scores(project: Project):
    switch = ("--set", "methods.voxelmorph.probabilistic=true")
    project.made("run", "--method", "voxelmorph", *switch)
    folder = project.workspace / "voxelmorph" / "registration" / "v0001"
    record = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert {"registration/similarity", "registration/divergence"} <= record.keys()
    assert "registration/smoothness" not in record
    project.made("train-reg", "--method", "voxelmorph", *switch, "--force")  # the samples are the seed's
    versions = [project.manifest("voxelmorph/registration", version).digest for version in ("v0001", "v0002")]
    assert versions[0] == versions[1]

"""Where each term of LT-Net pulls a trained network: its gradient against that of the true overlap.

    lrls run docs/benchmarks/hippocampus.yaml --method voxelmorph --set data.folder=FOLDER
    lrls preprocess docs/benchmarks/hippocampus.yaml --part supervised --set data.folder=FOLDER
    python docs/benchmarks/lt_net_gradients.py docs/benchmarks/hippocampus.yaml --set data.folder=FOLDER \\
        runs/hippocampus/voxelmorph/registration/v0001

The last argument is what `train-reg` of `voxelmorph` or `lt-net` wrote, light and diffeomorphic. The atlas is
registered to labelled scans (of `data.supervised`; none of their labels trained anything); gradients are those of
each term's mean over these scans, in the weights of G_F, G_B being G_F with roles swapped, in float32 and without
augmentation. The discriminator is the one that was trained beside the network, where there is one. A step against a
gradient whose cosine with that of the Dice loss is positive raises the true overlap.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from stages.artifacts.weights_file import load_weights
from stages.config import load_config
from stages.methods import METHODS, recipe_of
from stages.methods.lt_net import Settings
from stages.parts.batches.pairs import LabelledPair
from stages.parts.losses import dice_loss
from stages.parts.players import cycle, registering
from stages.parts.players.cycle import RegisterCycle
from stages.parts.warps import one_hot
from stages.workflow import opened_cohort

PUBLISHED = Settings()
TERMS = {
    "L_GAN": (PUBLISHED.gan_weight, cycle.adversarial),
    "L_sim": (PUBLISHED.similarity_weight, registering.similarity),
    "L_smooth": (PUBLISHED.smoothness_weight, registering.smoothness),
    "L_cyc": (PUBLISHED.cycle_weight, cycle.image_cycle),
    "L_trans": (PUBLISHED.transformation_weight, cycle.transformation_cycle),
    "L_anatomy_cyc": (PUBLISHED.anatomy_weight, cycle.anatomy_cycle),
    "L_diff_cyc": (PUBLISHED.difference_weight, cycle.difference_cycle),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("registration", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--scans", type=int, default=20)
    arguments = parser.parse_args()

    config = load_config(arguments.config, arguments.settings)
    atlases, others = opened_cohort(config, "train"), opened_cohort(config, "supervised")
    weights = arguments.registration / "weights.safetensors"
    with safe_open(weights, "pt") as file:
        judged = any(name.startswith("discriminator/") for name in file.keys())  # noqa: SIM118
    settings = {"registration_network": "light", "diffeomorphic": True, "gan_weight": float(judged)}
    recipe = recipe_of(METHODS["lt-net"], atlases, config.model_copy(update={"methods": {"lt-net": settings}}))
    load_weights(recipe.networks, weights)
    G, D = recipe.networks["registration"], recipe.networks.get("discriminator")
    register = RegisterCycle(G, G, D, labels=True)  # type: ignore[arg-type]

    data, truths = (cohort.scans(torch.device("cpu")) for cohort in (atlases, others))
    first = data.atlases[0]
    fixed = [place for place, case in enumerate(truths.names) if case not in atlases.cases[: len(data.atlases)]]
    terms = {name: term for name, term in TERMS.items() if judged or name != "L_GAN"}
    sums: dict[str, Tensor] = {}
    for place in fixed[: arguments.scans]:
        names = [data.names[first], truths.names[place]]
        pair = LabelledPair(names, data.image([first]), truths.image([place]), data.label([first]), data.num_classes)
        found = register(pair)
        assert found.warped_label is not None
        truth = one_hot(truths.label([place]), data.num_classes)
        values = {name: term(found) for name, (_, term) in terms.items()}
        values["Dice"] = dice_loss(found.warped_label[:, 1:], truth[:, 1:])
        for name, value in values.items():
            own = torch.autograd.grad(value, list(G.parameters()), retain_graph=True)
            flat = torch.cat([value.detach().view(1), *(each.flatten() for each in own)])
            sums[name] = sums.get(name, torch.zeros_like(flat)) + flat / min(len(fixed), arguments.scans)

    print("| term | value | weight | gradient x weight | cosine with Dice | cosine with L_sim |")
    print("|---|---|---|---|---|---|")
    for name, mean in sums.items():
        weight = terms[name][0] if name in terms else 1.0
        cosines = [torch.cosine_similarity(mean[1:], sums[of][1:], dim=0).item() for of in ("Dice", "L_sim")]
        print(
            f"| {name} | {mean[0].item():.4f} | {weight:g} | {weight * mean[1:].norm().item():.2f} "
            f"| {cosines[0]:+.2f} | {cosines[1]:+.2f} |"
        )


if __name__ == "__main__":
    main()

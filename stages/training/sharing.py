"""A training by several processes, which share every batch: what they refuse, average, and write once.

Gradients are averaged after the backward pass, in one tensor. torch's DistributedDataParallel would do it during the
pass, which pays between machines with slow networks. But it wraps one network, all of whose parameters
learn, and is called by its forward; here players take turns with parts of several networks, called in many ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stages import ranks
from stages.artifacts.draft import Draft
from stages.artifacts.manifest import Artifact
from stages.artifacts.store import make
from stages.config import TrainSettings
from stages.errors import LrlsError
from stages.methods.recipe import Train
from stages.parts.networks.batch_norm import BatchNorm3d

A = TypeVar("A", bound=Artifact)


def make_together(
    kind: type[A], target: Any, write: Callable[[Draft], None], *, inputs: Mapping[str, Any], **asked: Any
) -> A:
    """As `artifacts.store.make`: the first process finds, locks and finishes; the others take part in `write`.

    Arguments and errors as of `make`.
    """
    if not ranks.is_joined():
        return make(kind, target, write, inputs=inputs, **asked)
    if ranks.rank():
        if draft := ranks.from_first(None):
            write(Draft(draft))
        return kind.open(ranks.from_first(None))  # type: ignore[arg-type]
    begun = False

    def announce(draft: Draft) -> None:
        nonlocal begun
        begun = True
        ranks.from_first(draft.folder)
        write(draft)

    made = make(kind, target, announce, inputs=inputs, **asked)
    if not begun:
        ranks.from_first(None)
    ranks.from_first(made.folder)
    return made


def refuse_unequal_shares(
    step: Train, settings: TrainSettings, section: str, networks: Mapping[str, nn.Module]
) -> None:
    """Refuse a training that several processes cannot share so that it equals that of one process.

    Raises:
        LrlsError: a batch has no equal shares, or a layer couples the samples of a batch or draws by itself.
    """
    number = ranks.ranks()
    if number == 1:
        return
    if not ranks.is_joined():
        raise LrlsError("torchrun trains by the commands train-reg and train-seg alone; call this in one process.")
    for phase in step.phases:
        batch_size = phase.batch_size or settings.batch_size
        assert batch_size is not None
        if batch_size % number:
            wanted = -(-batch_size // number) * number
            found = (
                f"{section}.batch_size: found {batch_size}"
                if phase.batch_size is None
                else (f"the batch size of phase {phase.name}: found {batch_size}")
            )
            raise LrlsError(
                f"{found}, expected a multiple of {number}, because the {number} processes of torchrun share every "
                f"batch; set it to {wanted}, or start fewer processes."
            )
    for name, network in networks.items():
        for layer in network.modules():
            norm = isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(layer, BatchNorm3d)
            drops = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
            if norm or drops:
                raise LrlsError(
                    f"{name} has a {type(layer).__name__}, which several processes cannot share as one does; "
                    "train it in one process, without torchrun."
                )


def share_weights(networks: Iterable[nn.Module]) -> None:
    """Give every process the first one's weights: random ones may differ in a last bit between processor types."""
    if ranks.is_joined():
        for network in networks:
            own = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
            network.load_state_dict(ranks.from_first(own))


def average_gradients(network: nn.Module) -> None:
    """Replace each gradient by its mean over the processes; one that no process has stays absent."""
    if not ranks.is_joined():
        return
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    present = torch.tensor([float(p.grad is not None) for p in learning], dtype=learning[0].dtype)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
    flat = torch.cat([present.to(learning[0].device), *(gradient.flatten() for gradient in gradients)])
    mean = ranks.mean_of(flat)
    present, *means = mean.split([len(learning), *(p.numel() for p in learning)])
    for parameter, known, gradient in zip(learning, present.tolist(), means, strict=True):
        # In the parameter's own order in memory: fused optimisers go along both without looking.
        parameter.grad = torch.empty_like(parameter).copy_(gradient.view_as(parameter)) if known else None


def mean_terms(terms: list[Tensor]) -> Tensor:
    """Values of a term in steps, as of the whole batch."""
    return ranks.mean_of(torch.stack(terms).double().cpu())

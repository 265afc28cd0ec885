"""A batch that several processes share: each has as many of its samples, and draws from the same random stream.

Rank r of R has samples r n to (r + 1) n - 1 of R n. Its loss is a mean over its n samples, and gradients are averaged
over the ranks. That is the gradient of the whole batch where a loss is a mean over samples. A loss that is anything
else takes sums, rows or divisors of the whole batch from here. Outside of `shared` all are returned as they were given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Generator, Tensor

from stages.errors import LostProcess

T = TypeVar("T")
_stream: Stream | None = None  # of the batch that is shared


@contextmanager
def shared(stream: Stream | None) -> Iterator[None]:
    """Inside, all processes that draw from a stream, if there are several, take the same steps on their shares."""
    global _stream
    _stream = stream if stream is not None and stream.ranks > 1 else None
    try:
        yield
    finally:
        _stream = None


def is_shared() -> bool:
    return _stream is not None


def summed(tensor: Tensor) -> Tensor:
    """Sum over the ranks; gradients of all ranks' losses go back to each."""
    return _Summed.apply(tensor) if is_shared() else tensor


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, (n, ...) -> (R n, ...), in the order of the whole batch; gradients as of `summed`."""
    if not is_shared():
        return rows
    rank, ranks = dist.get_rank(), dist.get_world_size()
    own = torch.arange(ranks, device=rows.device).view(ranks, *[1] * rows.dim()) == rank
    return summed(torch.where(own, rows, torch.zeros_like(rows))).flatten(0, 1)


def evened(divisor: Tensor) -> Tensor:
    """Mean over the ranks, without gradient: a sum over samples by this is, in the mean over ranks, the whole batch's.

    Args:
        divisor: the sum over the rank's samples by which their sum would be divided.
    """
    return summed(divisor.detach().float()) / dist.get_world_size() if is_shared() else divisor


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _all_reduced(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


def _all_reduced(tensor: Tensor) -> Tensor:
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    try:
        dist.all_reduce(total)
    except RuntimeError:  # what gloo and NCCL raise where a process ended
        raise LostProcess from None
    return total


class Stream(Generator):
    """Random numbers that all ranks draw alike: what is drawn for each sample is drawn for the whole batch.

    Attributes:
        rank, ranks: whose share is kept.
        samples: of a rank in the batch that is drawn. Rows of k n are k groups, such as all moving images, then all
            fixed ones.
    """

    rank: int = 0
    ranks: int = 1
    samples: int = 1


def ranks_of(generator: Generator) -> int:
    """Processes that draw alike from a generator."""
    return generator.ranks if isinstance(generator, Stream) else 1


def per_sample(
    draw: Callable[[Sequence[int]], Tensor], size: Sequence[int], generator: Generator, axis: int = 0
) -> Tensor:
    """The rank's share of what is drawn for all samples.

    Args:
        draw: size -> tensor, from the generator.
        size: of the share; along `axis` it counts samples, or a multiple of them.
    """
    ranks = ranks_of(generator)
    if ranks == 1:
        return draw(size)
    assert isinstance(generator, Stream)
    groups, rest = divmod(size[axis], generator.samples)
    assert not rest, "draws of a sample go over all samples"
    whole = draw([*size[:axis], size[axis] * ranks, *size[axis + 1 :]])
    return whole.unflatten(axis, (groups, ranks, -1)).select(axis + 1, generator.rank).flatten(axis, axis + 1)


def rand(size: Sequence[int], generator: Generator, axis: int = 0) -> Tensor:
    """Uniform in [0, 1), drawn for each sample; see `per_sample`."""
    return per_sample(
        lambda size: torch.rand(size, generator=generator, device=generator.device), size, generator, axis
    )


def randn(size: Sequence[int], generator: Generator) -> Tensor:
    """Normal, drawn for each sample; see `per_sample`."""
    return per_sample(lambda size: torch.randn(size, generator=generator, device=generator.device), size, generator)


def rand_of_layer(rows: int) -> Tensor:
    """Uniform in [0, 1), one number for each row of a layer's input, from torch's own generator of the CPU.

    For layers that know of no stream; checkpoints hold that generator, too.
    """
    return per_sample(torch.rand, (rows,), _stream) if _stream else torch.rand(rows)


def share_of(items: Sequence[T], generator: Generator) -> list[T]:
    """The rank's share of a list with an item for every sample of the whole batch."""
    if ranks_of(generator) == 1:
        return list(items)
    assert isinstance(generator, Stream) and len(items) == generator.ranks * generator.samples
    begin = generator.rank * generator.samples
    return list(items[begin : begin + generator.samples])

"""Files of weights (safetensors) and of training state (torch). Reading runs no code; damaged files are refused."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.artifacts.checked import read_checked, write_checked
from stages.artifacts.digests import canonical
from stages.artifacts.files import atomic_write_bytes, plain, shown
from stages.errors import LrlsError

if TYPE_CHECKING:
    import torch


def save_weights(modules: Mapping[str, torch.nn.Module], path: Path, metadata: Mapping[str, Any]) -> None:
    """Write networks to a file, as `packed_weights`."""
    atomic_write_bytes(path, packed_weights(modules, metadata))


def packed_weights(modules: Mapping[str, torch.nn.Module], metadata: Mapping[str, Any]) -> bytes:
    """Parameters and buffers of networks as safetensors, in float32, under the keys "network/parameter".

    The metadata is one JSON string, because safetensors writes several metadata keys in no stable order. It includes a
    checksum, because the format has none.
    """
    import safetensors.torch
    import torch

    assert not any("/" in name for name in modules)
    tensors = {}
    for name, module in modules.items():
        for key, tensor in module.state_dict().items():
            kept = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
            tensors[f"{name}/{key}"] = kept.clone(memory_format=torch.contiguous_format)
    head = {"metadata": metadata, "checksum": _checksum(tensors, metadata)}
    return safetensors.torch.save(tensors, metadata={"lrls": canonical(head).decode()})


def load_weights(modules: Mapping[str, torch.nn.Module], path: Path) -> dict[str, Any]:
    """Fill networks from a file of `save_weights` and return its metadata; other networks in the file are ignored.

    Args:
        modules: by name; a sub-network by "network/sub-network".

    Raises:
        LrlsError: the file is missing, truncated or changed, or does not fit. The networks are then unchanged.
    """
    tensors, metadata = read_weights(path)
    fill(modules, tensors, shown(path))
    return metadata


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors by the keys "network/parameter", on the CPU, and the metadata of a file of `save_weights`.

    The file is read, not mapped: where a mapped one cannot be read, the system ends the process.

    Raises:
        LrlsError: the file is missing, cannot be read, is truncated or changed.
    """
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise LrlsError(f"{shown(path)} is missing; make it again with --force.") from None
    except OSError as error:
        why = error.strerror or "damaged"
        raise LrlsError(
            f"{shown(path)} cannot be read ({why}); run the same command again, or make it again with --force."
        ) from None
    try:
        tensors = safetensors.torch.load(data)  # which checks the header
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        head = json.loads(about["lrls"])
        metadata, checksum = head["metadata"], head["checksum"]
    except (SafetensorError, AssertionError, ValueError, KeyError, TypeError):
        raise LrlsError(f"{shown(path)} is truncated or damaged; make it again with --force.") from None
    if checksum != _checksum(tensors, metadata):
        raise LrlsError(f"{shown(path)} changed since it was written; make it again with --force.")
    return tensors, metadata


def _prefix(name: str) -> str:
    """The prefix of the keys of a network's or sub-network's ("network/sub-network") tensors."""
    return f"{name}." if "/" in name else f"{name}/"


def fill(
    modules: Mapping[str, torch.nn.Module],
    tensors: Mapping[str, torch.Tensor],
    place: str,
    *,
    check_only: bool = False,
) -> None:
    """Fill networks with tensors by the keys "network/parameter"; tensors of other networks are ignored.

    Args:
        modules: by name; a sub-network by "network/sub-network".
        place: where the tensors come from, for messages.
        check_only: leave the networks as they are; they may be without memory.

    Raises:
        LrlsError: the tensors do not fit. The networks are then unchanged.
    """
    states = {}
    for name, module in modules.items():
        prefix = _prefix(name)
        expected = {f"{prefix}{key}": tensor for key, tensor in module.state_dict().items()}
        stored = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        remedy = "use the configuration that it was trained with, or train again."
        for key in sorted(expected.keys() | stored.keys()):
            shapes = [tuple(side[key].shape) if key in side else "nothing" for side in (stored, expected)]
            if shapes[0] != shapes[1]:
                told = plain(key)
                raise LrlsError(f"{place}: tensor {told}: found {shapes[0]}, the network expects {shapes[1]}; {remedy}")
            if stored[key].dtype != expected[key].dtype:
                raise LrlsError(
                    f"{place}: tensor {plain(key)}: found {stored[key].dtype}, the network expects "
                    f"{expected[key].dtype}; {remedy}"
                )
        states[name] = {key.removeprefix(prefix): tensor for key, tensor in stored.items()}
    for name, module in modules.items():
        if not check_only:
            module.load_state_dict(states[name])


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> str:
    import torch

    digest = hashlib.sha256(canonical(metadata))
    for key, tensor in sorted(tensors.items()):
        digest.update(canonical([key, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_state(obj: object, path: Path) -> None:
    """Write training state to resume from: tensors and plain values in dicts, lists and tuples."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(obj, buffer)
    write_checked(path, buffer.getbuffer())


def load_state(path: Path) -> Any | None:
    """Read training state onto the CPU; executes no code from the file. None: it is missing or damaged."""
    import io

    import torch

    data = read_checked(path)
    if data is None:
        return None
    try:
        with warnings.catch_warnings():  # of a pickle of another kind than torch writes
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # the unpickler may raise almost any error
        return None

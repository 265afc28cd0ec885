"""A GPU that is not there: its tensors live on the CPU, but meeting a tensor of the CPU is as wrong as on CUDA.

What runs on it gets the CPU's numbers, so that answers can be compared exactly. Waits, such as `float(tensor)`, are
counted. torch's hooks for backends in Python make autograd and optimisers take it for a device of its own.
"""

from __future__ import annotations

import collections
import traceback
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
aten = torch.ops.aten
WAITS = {  # their results, or how many there are, must be known on the host
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
    aten.unique_dim.default, aten.equal.default, aten.bincount.default,
}  # fmt: skip
MAY_MEET = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default}


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Its generators are the CPU's."""


class OnGpu(torch.Tensor):
    """Wraps a tensor of the CPU and says that it lies on the pretended GPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGpu:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(NAME, 0), requires_grad=False,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"OnGpu({self.inner!r})"

    def tolist(self) -> Any:  # torch's own takes no subclass
        if _current:
            _current.wait()
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Generator(torch.Generator):
    """A generator of the CPU that says that it lies on the pretended GPU."""

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)


class PretendedGpu(TorchDispatchMode):
    """While it is entered, `torch.device("pretended")` works; `waits` counts, by line of ours, what a GPU waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> PretendedGpu:
        global _current
        self._lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(values, device=...) comes by here
        _current = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        global _current
        _current = None
        torch._C._set_only_lift_cpu_tensors(self._lifts)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def wait(self) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/stages/" in frame.filename]
        where = frames[-1] if frames else traceback.extract_stack()[-4]
        self.waits[f"{where.filename.partition('/stages/')[2]}:{where.lineno} {where.line}"] += 1


_current: PretendedGpu | None = None
# On import, while tests are collected: torch counts its devices at the first gradient of the process.
_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    tensors = [each for each in flat if isinstance(each, torch.Tensor)]
    on_gpu = [isinstance(each, OnGpu) for each in tensors]
    target = next((each for each in flat if isinstance(each, torch.device)), None)
    to_gpu = target is not None and target.type == NAME
    if _current and any(on_gpu) | to_gpu and (func in WAITS or _copies_and_waits(func, on_gpu, target, to_gpu, kwargs)):
        _current.wait()
    if any(on_gpu) and func not in MAY_MEET:
        strangers = [each for each, there in zip(tensors, on_gpu, strict=True) if not there and each.ndim]
        if strangers:
            raise RuntimeError(f"{func}: a tensor of the CPU, {tuple(strangers[0].shape)}, meets one of the GPU")
    inner_args, inner_kwargs = tree_unflatten([_inner(each) for each in flat], spec)
    result = func(*inner_args, **inner_kwargs)
    if func._schema.name.endswith("_") and isinstance(args[0], torch.Tensor):
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    if func is aten._local_scalar_dense.default or not (to_gpu if target is not None else any(on_gpu)):
        return result
    if any(result is each for each in tensors):
        result = result.clone()  # on its way from the CPU
    return tree_map(lambda each: OnGpu(each) if isinstance(each, torch.Tensor) else each, result)


def _inner(each: Any) -> Any:
    if isinstance(each, torch.device) and each.type == NAME:
        return torch.device("cpu")
    return each.inner if isinstance(each, OnGpu) else each


def _copies_and_waits(func: Any, on_gpu: list[bool], target: Any, to_gpu: bool, kwargs: Any) -> bool:
    """Copies between host and GPU do, but for those to the GPU that are told not to."""
    if func is aten._to_copy.default:
        return target is not None and to_gpu != on_gpu[0] and not (to_gpu and kwargs.get("non_blocking"))
    return func is aten.copy_.default and len(on_gpu) == 2 and on_gpu[0] != on_gpu[1]

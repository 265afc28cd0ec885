"""Stages of `lrls`, and what a program needs to answer new scans: `load_model`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.answering.predictor import Failure, Prediction, Predictor


def load_model(path: Path | str, **where: Any) -> Predictor:
    """Open what `lrls export` wrote: a zip or a folder. Opening runs no code and writes nothing.

    Args:
        where: where the model runs: `device` ("auto", "cpu" or "cuda"), `precision`, `threads`.

    Raises:
        LrlsError: it is not an exported model, or it was changed.
    """
    from stages.answering.exported import open_model
    from stages.answering.model import running_on
    from stages.answering.predictor import Predictor

    return Predictor(running_on(open_model(Path(path)), where))


def __getattr__(name: str) -> Any:
    # Loaded when asked for, so that `lrls --help` does not wait for torch.
    if name in ("Failure", "Prediction", "Predictor"):
        from stages import predict

        return getattr(predict, name)
    raise AttributeError(f"module 'stages' has no attribute {name!r}")


__all__ = ["Failure", "Prediction", "Predictor", "load_model"]

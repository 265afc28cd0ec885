"""Export: a trained method as a file of its own, calibrated first, or its network for other programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from stages.answering.exported import export_model, refuse_place
from stages.answering.model import Model, model_of
from stages.artifacts.made import Made
from stages.calibrate import calibrate, calibrated_model
from stages.config import Config


def export_calibrated(
    made: Made, config: Config, method_name: str, out: Path, *, network_only: bool = False, force: bool = False
) -> Model:
    """Write a method's trained model to a file; calibrate it first if that has not been done."""
    refuse_place(out, force, _kept(config))  # before minutes of calibration
    model = calibrated_model(made, config, method_name, network_only=network_only)
    if model.calibration is None:
        calibrated = calibrate(made, config, method_name, network_only=network_only)
        model = replace(model, calibration=calibrated.read())
    export_model(model, out, force=force)
    return model


def export_network(
    made: Made, config: Config, method_name: str, out: Path, to: Literal["onnx", "monai"], *, force: bool = False
) -> dict[str, Any]:
    """Write a method's segmentation network for ONNX Runtime or MONAI; returns what it says of itself."""
    model = model_of(made, config, method_name)
    if to == "onnx":
        from stages.onnx_export import export_onnx

        return export_onnx(model, out, force=force, kept=_kept(config))
    from stages.monai_bundle import export_monai

    return export_monai(model, out, force=force, kept=_kept(config))


def _kept(config: Config) -> list[Path]:
    """Folders that no export replaces."""
    return [config.workspace, config.data.folder, config.base, Path.cwd()]

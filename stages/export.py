"""Export: a trained method as a file of its own, calibrated first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stages.answering.exported import export_model, refuse_place
from stages.answering.model import Model
from stages.artifacts.made import Made
from stages.calibrate import calibrate, calibrated_model
from stages.config import Config


def export_calibrated(
    made: Made, config: Config, method_name: str, out: Path, *, network_only: bool = False, force: bool = False
) -> Model:
    """Write a method's trained model to a file; calibrate it first if that has not been done."""
    kept = [config.workspace, config.data.folder, config.base, Path.cwd()]
    refuse_place(out, force, kept)  # before minutes of calibration
    model = calibrated_model(made, config, method_name, network_only=network_only)
    if model.calibration is None:
        calibrated = calibrate(made, config, method_name, network_only=network_only)
        model = replace(model, calibration=calibrated.read())
    export_model(model, out, force=force)
    return model

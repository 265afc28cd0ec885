"""Exported models: a zip or folder with a trained method, which answers scans on a machine without the cohort.

model.json            the `Description`, with size and SHA-256 of the other files, and a digest of itself
weights.safetensors   of the networks that answer
images.safetensors    reference: the image that scans are aligned to; atlas_<n>_image and atlas_<n>_label on the grid,
                      if the answer propagates labels

Opening a model runs no code and writes nothing. Only files of fixed names are read, as JSON and safetensors, up to the
sizes that the description allows; a file whose digest differs is refused. Networks get memory only once their weights
are known to fit, and weights and images are checked before they are used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import SimpleITK as sitk
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import nn

from stages.answering.answers import Atlas
from stages.answering.description import (
    LEAST_EDGE,
    MOST_REFERENCE_VOXELS,
    MOST_WEIGHTS,
    Description,
    StoredBorder,
    StoredFile,
    StoredGrid,
    check_measures,
    check_plain,
)
from stages.answering.model import Model
from stages.answering.packages import BROKEN, IMAGES, MODEL, WEIGHTS, Read, opened, strange_in, write_package
from stages.artifacts.cohort import FlatBorder, Grid
from stages.artifacts.digests import digest_of
from stages.artifacts.files import plain, shown
from stages.artifacts.placing import check_place, placed
from stages.artifacts.weights_file import fill, packed_weights
from stages.config import Config, Section, first_fault
from stages.data.grid import unpacked
from stages.errors import LrlsError
from stages.methods import check_channels, find_method, settings_of
from stages.methods.recipe import Method, Recipe, Task
from stages.methods.settings import MethodSettings

MOST_JSON_BYTES = 4 * 2**20
MOST_HEADER_BYTES = 4 * 2**20  # of a safetensors file
BRIGHTEST = 10.0  # intensities are in about [0, 1]


def refuse_place(out: Path, force: bool, kept: Sequence[Path] = ()) -> None:
    """Raises LrlsError if a model cannot be written to `out`, or would replace one of the folders `kept`."""
    check_place(out, force=force, strange=strange_in, kept=kept)


def export_model(model: Model, out: Path, *, force: bool = False) -> Path:
    """Write a model as a zip (if `out` ends in .zip) or a folder, in full or not at all.

    Raises:
        LrlsError: `out` exists or cannot be written, or the model is beyond the bounds of what can be opened.
    """
    refuse_place(out, force)
    contents = _contents(model)
    _read(out, lambda name, _: contents[name], told="this model cannot be exported")
    with placed(out, force=force, strange=strange_in) as draft:
        write_package(draft, contents, as_zip=out.suffix == ".zip")
    return out


def _contents(model: Model) -> dict[str, bytes]:
    networks = answering_networks(model.recipe, registers=bool(model.atlases))
    images = {"reference": torch.from_numpy(sitk.GetArrayFromImage(model.reference))}
    for k, atlas in enumerate(model.atlases):
        images[f"atlas_{k}_image"] = torch.from_numpy(atlas.image.astype(np.float16))
        images[f"atlas_{k}_label"] = torch.from_numpy(atlas.label.astype(np.int16))
    files = {
        WEIGHTS: packed_weights(networks, {"method": model.method}),
        IMAGES: safetensors.torch.save(images),
    }
    method, config = find_method(model.method), model.config
    description = Description(
        lrls=importlib.metadata.version("lrls"),
        method=model.method,
        axes=model.axes,
        settings=settings_of(method, config).portable(),
        structures=list(config.structure_values().items()),
        colours=config.colours,
        others=config.others,
        seed=config.seed,
        precision=config.precision,
        preprocess=config.preprocess.model_copy(update={"workers": None}),
        num_atlases=model.num_atlases,
        stored_atlases=len(model.atlases),
        grid=StoredGrid(
            shape=model.grid.shape, spacing_mm=model.grid.spacing_mm, origin=model.grid.origin,
            direction=model.grid.direction,
        ),
        reference_spacing=model.reference.GetSpacing(),
        reference_origin=model.reference.GetOrigin(),
        reference_direction=model.reference.GetDirection(),
        borders=[StoredBorder(classes=border.classes, normal=border.normal) for border in model.borders],
        calibration=model.calibration,
        channels=list(model.channels),
        files={name: StoredFile(bytes=len(data), sha256=_sha256(data)) for name, data in files.items()},  # type: ignore[misc]
    )  # fmt: skip
    usual = {"channels": len(model.channels) == 1, "colours": not config.colours}
    values = description.model_dump(mode="json", exclude={name for name, is_usual in usual.items() if is_usual})
    values["digest"] = digest_of(values)
    return {MODEL: (json.dumps(values, indent=1) + "\n").encode(), **files}


def model_digest(model: Model) -> str:
    """Of everything in a model that its answers depend on."""
    return str(json.loads(_contents(model)[MODEL])["digest"])


def answering_networks(recipe: Recipe, *, registers: bool) -> dict[str, nn.Module]:
    """The networks that answer, by their names in the file of weights."""
    networks: dict[str, nn.Module] = {}
    if recipe.answer.network is not None:
        networks["segmentation"] = recipe.answer.network
    if registers and isinstance(recipe.answer.registers, nn.Module):
        networks["registration"] = recipe.answer.registers
    return networks


def is_model(path: Path) -> bool:
    """Whether a path is an exported model, not a configuration file."""
    return path.suffix == ".zip" or (path / MODEL).is_file()


def open_model(path: Path) -> Model:
    """Read an exported model.

    Raises:
        LrlsError: it is not a model, was changed, is beyond the bounds of `Description`, or has a newer format. The
            message names the file.
    """
    with opened(path) as read:
        return _read(path, read)


def _read(path: Path, read: Read, *, told: str = "do not use this file") -> Model:
    """The model of the files that `read` reads; `told` ends the messages about what no sound model has."""
    about = _described(path, read, told)

    def refused(fault: str) -> LrlsError:
        return LrlsError(plain(f"{shown(path)}: {fault}; {told}.", most=600))

    try:
        method = find_method(about.method)
        check_channels(method, len(about.channels))
        config = _config_of(about, method)
        settings = settings_of(method, config)
        if any(isinstance(value, Path) for _, value in settings):
            raise refused("its settings name a file, which no exported model's do")
        plan = _planned(method, about, settings)
        answers = plan.answer.registers if about.stored_atlases else plan.answer.network
        if answers is None:
            raise refused(f"{method.name} does not answer with {about.stored_atlases} atlases")
        networks = answering_networks(plan, registers=bool(about.stored_atlases))
        if about.calibration:
            network, atlases = "segmentation" in networks, about.stored_atlases
            check_measures(about.calibration, network=network, atlases=atlases)
    except LrlsError as error:
        raise LrlsError(plain(f"{shown(path)}: {str(error).removeprefix(f'{shown(path)}: ')}", most=600)) from None
    except ValidationError as error:
        raise refused(f"{MODEL}: {_fault_of(error, Config)}") from None
    except (ValueError, RuntimeError, TypeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise refused(f"{MODEL} describes no model that can be built ({error})") from None
    size = sum(tensor.numel() * tensor.element_size() for n in networks.values() for tensor in n.state_dict().values())
    weights = _tensors(path, read, WEIGHTS, about, size + MOST_HEADER_BYTES)
    fill(networks, weights, f"{shown(path)}: {WEIGHTS}", check_only=True)
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values() if tensor.is_floating_point()):
        raise refused(f"{WEIGHTS} holds values that are not finite")
    images = _tensors(path, read, IMAGES, about, about.most_image_bytes() + MOST_HEADER_BYTES)
    if fault := _fault_of_images(about, images):
        raise refused(f"{IMAGES} does not fit {MODEL}: {fault}")
    recipe = method.recipe(_task(about), settings)
    fill(answering_networks(recipe, registers=bool(about.stored_atlases)), weights, f"{shown(path)}: {WEIGHTS}")
    reference = images["reference"].numpy()
    return Model(
        method=method.name,
        config=config,
        num_atlases=about.num_atlases,
        axes=about.axes,
        grid=Grid(about.grid.shape, about.grid.spacing_mm, about.grid.origin, about.grid.direction),
        reference=unpacked((reference, about.reference_spacing, about.reference_origin, about.reference_direction)),
        atlases=tuple(
            Atlas(f"atlas_{k}", *(images[f"atlas_{k}_{kind}"].numpy() for kind in ("image", "label")))
            for k in range(about.stored_atlases)
        ),
        recipe=recipe,
        borders=tuple(FlatBorder(border.classes, border.normal) for border in about.borders),
        calibration=about.calibration,
        channels=tuple(about.channels),
    )


def _described(path: Path, read: Read, told: str) -> Description:
    changed = LrlsError(f"{shown(path)}: {MODEL} does not describe a model, or was changed; copy or export it again.")
    try:
        values = json.loads(read(MODEL, MOST_JSON_BYTES))
        digest = values.pop("digest")
        version = values["format_version"]
        if values["kind"] != "lrls-model" or digest != digest_of(values) or type(version) is not int:
            raise changed
        if version != 1:
            newer = plain(str(version), most=20)
            raise LrlsError(f"{shown(path)}: format {newer} is newer than this lrls reads (1); upgrade lrls.")
        check_plain(values)
        about = Description.model_validate(values)
        if set(about.files) != {WEIGHTS, IMAGES}:
            raise changed
    except ValidationError as error:
        fault = _fault_of(error, Description)
        raise LrlsError(plain(f"{shown(path)}: {MODEL}: {fault}; {told}.", most=600)) from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) or "values" not in locals():
            raise changed from None
        raise LrlsError(plain(f"{shown(path)}: {MODEL}: {error}; {told}.", most=600)) from None
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise changed from None
    return about


def _fault_of(error: ValidationError, model: type[Section]) -> str:
    """The first fault, without what to do; also where a setting is unknown in a place that has no settings."""
    try:
        return first_fault(error, model).rpartition(";")[0]
    except (AttributeError, KeyError, TypeError):
        return error.errors()[0]["msg"]


def _config_of(about: Description, method: Method) -> Config:
    return Config.model_validate(
        {
            "workspace": ".",
            "data": {"folder": "."},
            "structures": dict(about.structures),
            "colours": about.colours,
            "others": about.others,
            "seed": about.seed,
            "precision": about.precision,
            "preprocess": about.preprocess,
            "methods": {method.name: about.settings},
        }
    )


def _task(about: Description) -> Task:
    spacing_mm = about.grid.spacing_mm if about.axes == "own" else (1.0, 1.0, 1.0)
    return Task(
        about.grid.shape,
        about.num_classes,
        about.num_atlases,
        channels=len(about.channels),
        spacing_mm=spacing_mm,
    )


def _planned(method: Method, about: Description, settings: MethodSettings) -> Recipe:
    """The recipe with networks without memory; raises ValueError if they are huge."""
    recipe = method.planned(_task(about), settings)
    numbers = sum(tensor.numel() for network in recipe.networks.values() for tensor in network.state_dict().values())
    if numbers > MOST_WEIGHTS:
        raise ValueError(f"networks of {numbers} weights, at most {MOST_WEIGHTS} are possible")
    return recipe


def _tensors(path: Path, read: Read, name: str, about: Description, most: int) -> dict[str, torch.Tensor]:
    stated = about.files[name]  # type: ignore[index]
    data = read(name, min(stated.bytes, most))
    if _sha256(data) != stated.sha256:
        raise LrlsError(f"{shown(path)}: {name} is not what was exported (digest differs); copy or export it again.")
    return tensors_of(data, f"{shown(path)}: {name}")


def tensors_of(data: bytes, shown: str) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file. Checks first that the header fits into the file and is not huge.

    Raises:
        LrlsError: the file is damaged.
    """
    header = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header > min(len(data) - 8, MOST_HEADER_BYTES):
        raise LrlsError(f"{shown} has a header of {header} bytes, more than is possible; do not use this file.")
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, *BROKEN):
        raise LrlsError(f"{shown} is not a readable safetensors file; copy or export it again.") from None


def _fault_of_images(about: Description, images: Mapping[str, torch.Tensor]) -> str | None:
    """Why images cannot be those of a description; None: they can."""
    channels = len(about.channels)
    shape = {"image": about.grid.shape if channels == 1 else (channels, *about.grid.shape), "label": about.grid.shape}
    shapes = {f"atlas_{k}_{kind}": shape[kind] for k in range(about.stored_atlases) for kind in ("image", "label")}
    if images.keys() != {"reference", *shapes}:
        return "it holds other images"
    for name, image in images.items():
        kind = torch.int16 if name.endswith("_label") else torch.float16 if name in shapes else torch.float32
        if image.dtype != kind:
            return f"{name} is of {image.dtype}, expected {kind}"
        if name in shapes and tuple(image.shape) != shapes[name]:
            return f"{name} has shape {tuple(image.shape)}, expected {shapes[name]}"
        low, high = (0, about.num_classes - 1) if name.endswith("_label") else (-BRIGHTEST, BRIGHTEST)
        if not (image.numel() and bool((image >= low).all() and (image <= high).all())):  # nan is neither
            return f"{name} holds values that are not from {low} to {high}"
    reference = images["reference"]
    if reference.ndim != 3 or min(reference.shape) < LEAST_EDGE or reference.numel() > MOST_REFERENCE_VOXELS:
        return f"reference has shape {tuple(reference.shape)}, expected {LEAST_EDGE} voxels or more along three axes"
    return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

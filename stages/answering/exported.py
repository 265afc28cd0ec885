"""Exported models: a zip or folder with a trained method, which answers scans on a machine without the cohort.

model.json            the `Description`, with size and SHA-256 of the other files, and a digest of itself
weights.safetensors   of the networks that answer
images.safetensors    reference: the image that scans are aligned to; atlas_<n>_image and atlas_<n>_label on the grid,
                      if the answer propagates labels

Opening a model runs no code and writes nothing. Only files of fixed names are read, as JSON and safetensors, up to
their stated sizes; a file whose digest differs is refused.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.torch
import SimpleITK as sitk
import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from torch import nn

from stages.answering.answers import Atlas
from stages.answering.model import Model
from stages.artifacts.calibration import Calibration
from stages.artifacts.cohort import FlatBorder, Grid
from stages.artifacts.digests import digest_of
from stages.artifacts.weights_file import fill, packed_weights
from stages.config import Config, PreprocessSettings, Section, first_fault
from stages.data.grid import unpacked
from stages.errors import LrlsError
from stages.methods import find_method, settings_of
from stages.methods.recipe import Recipe, Task

MODEL, WEIGHTS, IMAGES = "model.json", "weights.safetensors", "images.safetensors"
NAMES = (MODEL, WEIGHTS, IMAGES)
MOST_JSON_BYTES = 4 * 2**20
MOST_HEADER_BYTES = 4 * 2**20  # of a safetensors file
MOST_BYTES = 4 * 2**30
MOST_EXPANSION = 100  # of a file in a zip; images and weights are noisy and compress little
MOST_VOXELS = 2**29  # of a grid

Vector = tuple[float, float, float]
Count = Annotated[int, Field(ge=1, le=4096)]
Matrix = Annotated[tuple[float, ...], Field(min_length=9, max_length=9)]
Positive = Annotated[float, Field(gt=0)]


class StoredGrid(Section):
    shape: tuple[Count, Count, Count]
    spacing_mm: tuple[Positive, Positive, Positive]
    origin: Vector
    direction: Matrix

    @model_validator(mode="after")
    def _is_not_huge(self) -> StoredGrid:
        if int(np.prod(self.shape, dtype=np.int64)) > MOST_VOXELS:
            raise ValueError(f"the grid has more than {MOST_VOXELS} voxels")
        return self


class StoredBorder(Section):
    classes: tuple[int, int]
    normal: Vector


class StoredFile(Section):
    bytes: int = Field(ge=0, le=MOST_BYTES)
    sha256: str


class Description(Section):
    """The content of `model.json`."""

    kind: Literal["lrls-model"] = "lrls-model"
    format_version: Literal[1] = 1
    lrls: str = Field(description="Version of lrls that wrote the model.")
    method: str
    settings: dict[str, Any] = Field(description="All settings of the method.")
    structures: list[tuple[str, list[int]]] = Field(
        min_length=1, max_length=2**15, description="Names and label values, in the order of classes."
    )
    others: Literal["error", "background"]
    seed: int
    precision: Literal["auto", "fp32", "bf16"]
    preprocess: PreprocessSettings
    num_atlases: int = Field(ge=0, le=2**15, description="Atlases that the method learned from.")
    stored_atlases: int = Field(ge=0, le=2**15, description="Atlases whose labels the method propagates.")
    grid: StoredGrid
    reference_spacing: tuple[Positive, Positive, Positive]
    reference_origin: Vector
    reference_direction: Matrix
    borders: list[StoredBorder]
    calibration: Calibration | None
    files: dict[Literal["weights.safetensors", "images.safetensors"], StoredFile]


def refuse_existing(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise LrlsError(f"{out} exists already; choose another name, or replace it with --force.")


def export_model(model: Model, out: Path, *, force: bool = False) -> Path:
    """Write a model as a zip (if `out` ends in .zip) or a folder, in full or not at all.

    Raises:
        LrlsError: `out` exists.
    """
    refuse_existing(out, force)
    contents = _contents(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        if out.suffix == ".zip":
            with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as file:
                for name, data in contents.items():  # with ZipInfo's default date: equal models are equal files
                    file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
            os.replace(draft, out)
        else:
            draft.mkdir()
            for name, data in contents.items():
                (draft / name).write_bytes(data)
            if out.exists():
                _remove_model(out)
            os.replace(draft, out)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        draft.unlink(missing_ok=True)
    return out


def _remove_model(folder: Path) -> None:
    """Delete the folder of an older export; refuse any other folder."""
    strange = sorted(path.name for path in folder.iterdir() if path.name not in NAMES)
    if strange:
        raise LrlsError(f"{folder} holds {strange[0]}, which no exported model has; choose another folder.")
    shutil.rmtree(folder)


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
        settings=settings_of(method, config).portable(),
        structures=list(config.structure_values().items()),
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
        files={name: StoredFile(bytes=len(data), sha256=_sha256(data)) for name, data in files.items()},  # type: ignore[misc]
    )  # fmt: skip
    values = description.model_dump(mode="json")
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
        LrlsError: it is not a model, was changed, or has a newer format. The message names the file.
    """
    if path.is_dir():
        return _read(path, lambda name, most: _of_folder(path / name, most))
    try:
        with zipfile.ZipFile(path) as file:
            _check_names(path, file)
            return _read(path, lambda name, most: _of_zip(path, file, name, most))
    except FileNotFoundError:
        raise LrlsError(f"{path}: no such model; `lrls export CONFIG --method M --out model.zip` writes one.") from None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError):
        raise LrlsError(f"{path} is not a readable zip; copy or export it again.") from None


def _check_names(path: Path, file: zipfile.ZipFile) -> None:
    """Refuse a zip with anything but the three files of a model: folders, links, paths that lead elsewhere."""
    names = [info.filename for info in file.infolist()]
    for info in file.infolist():
        is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
        if info.filename not in NAMES or is_link:
            raise LrlsError(f"{path} holds {info.filename!r}, which no exported model has; do not use this file.")
    if len(set(names)) < len(names):
        raise LrlsError(f"{path} holds a file twice; do not use this file.")


def _of_zip(path: Path, file: zipfile.ZipFile, name: str, most: int) -> bytes:
    try:
        info = file.getinfo(name)
    except KeyError:
        raise LrlsError(f"{path} holds no {name}; copy or export it again.") from None
    if info.file_size > most or info.file_size > MOST_EXPANSION * info.compress_size + 2**16:
        raise _too_large(path, name)
    with file.open(info) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise _too_large(path, name)
    return data


def _of_folder(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError:
        raise LrlsError(f"{path.parent} holds no readable {path.name}; copy or export it again.") from None
    if len(data) > most:
        raise _too_large(path.parent, path.name)
    return data


def _too_large(path: Path, name: str) -> LrlsError:
    return LrlsError(f"{path}: {name} is larger than it should be; do not use this file.")


def _read(path: Path, read: Callable[[str, int], bytes]) -> Model:
    changed = LrlsError(f"{path}: {MODEL} does not describe a model, or was changed; copy or export it again.")
    try:
        values = json.loads(read(MODEL, MOST_JSON_BYTES))
        digest = values.pop("digest")
        version = values["format_version"]
        if values["kind"] != "lrls-model" or digest != digest_of(values):
            raise changed
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise changed from None
    if version != 1:
        raise LrlsError(f"{path}: format {version} is newer than this lrls reads (1); upgrade lrls.")
    try:
        about = Description.model_validate(values)
    except ValidationError as error:
        raise LrlsError(f"{path}: {MODEL}: {first_fault(error, Description)}") from None
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for name in (WEIGHTS, IMAGES):
        if name not in about.files:
            raise changed
        stated = about.files[name]  # type: ignore[index]
        data = read(name, stated.bytes)
        if _sha256(data) != stated.sha256:
            raise LrlsError(f"{path}: {name} is not what was exported (digest differs); copy or export it again.")
        tensors[name] = tensors_of(data, f"{path}: {name}")
    return _model(about, tensors[WEIGHTS], tensors[IMAGES], path)


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
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise LrlsError(f"{shown} is not a readable safetensors file; copy or export it again.") from None


def _model(
    about: Description, weights: Mapping[str, torch.Tensor], images: Mapping[str, torch.Tensor], path: Path
) -> Model:
    method = find_method(about.method)
    config = Config.model_validate(
        {
            "workspace": ".",
            "data": {"folder": "."},
            "structures": dict(about.structures),
            "others": about.others,
            "seed": about.seed,
            "precision": about.precision,
            "preprocess": about.preprocess,
            "methods": {method.name: about.settings},
        }
    )
    num_classes = len(about.structures) + 1
    grid = Grid(about.grid.shape, about.grid.spacing_mm, about.grid.origin, about.grid.direction)
    recipe = method.recipe(Task(grid.shape, num_classes, about.num_atlases), settings_of(method, config))
    networks = answering_networks(recipe, registers=bool(about.stored_atlases))
    fill(networks, weights, f"{path}: {WEIGHTS}")
    if any(not 0 < index < num_classes for border in about.borders for index in border.classes):
        raise LrlsError(f"{path}: {MODEL}: a border names a class that does not exist; export it again.")
    damaged = LrlsError(f"{path}: {IMAGES} does not fit {MODEL}; copy or export it again.")
    atlases = []
    try:
        reference = images["reference"].float().numpy()
        for k in range(about.stored_atlases):
            image, label = (images[f"atlas_{k}_{kind}"].numpy() for kind in ("image", "label"))
            if image.shape != grid.shape or label.shape != grid.shape or label.min() < 0 or label.max() >= num_classes:
                raise damaged
            atlases.append(Atlas(f"atlas_{k}", image, label))
    except KeyError:
        raise damaged from None
    if reference.ndim != 3 or not (about.stored_atlases or recipe.answer.network):
        raise damaged
    return Model(
        method=method.name,
        config=config,
        num_atlases=about.num_atlases,
        grid=grid,
        reference=unpacked((reference, about.reference_spacing, about.reference_origin, about.reference_direction)),
        atlases=tuple(atlases),
        recipe=recipe,
        borders=tuple(FlatBorder(border.classes, border.normal) for border in about.borders),
        calibration=about.calibration,
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

"""What is fuzzed: readers of configurations, tables, artifacts, weights and exported models."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from attacks.fuzz import Files, Reader
from attacks.fuzz_scans import made, volume
from attacks.garbled import TEXT, flipped, json_changed, number_written, safetensors_changed
from attacks.hostile_workspaces import change_h5

YAML = """\
workspace: runs
data:
  folder: .
  atlases: [a, b]
  unlabeled: [c]
  test: [d]
structures: {liver: 1, tumour: [2, 3]}
seed: 3
preprocess: {align: rigid, spacing_mm: 1.5, shape: [16, 16, 16], intensity: {method: window, window: [-200, 300]}}
train_seg: &train {steps: 20, learning_rate: 1e-3}
train_reg: *train
eval: {report_as: {all: [liver, tumour]}}
methods:
  brbs: {registration_network: light, train_seg: {steps: 5}}
"""


def read_config(folder: Path) -> None:
    from stages.config import PARTS, load_config
    from stages.methods import find_method, settings_of

    config = load_config(folder / "lrls.yaml")
    for part in PARTS:
        config.part(part)
    config.reported()
    for name in ("brbs", "best"):
        settings_of(find_method(name), config)
    for stage in ("train_reg", "train_seg"):
        config.training(stage, "brbs")


def _overlay() -> list[Files]:
    from stages.reviewed import Overlay, Said

    cases = {"a": Said(rating=4, note="cut", correct=True), "c": Said(label="c.nii.gz"), "d": Said(exclude=True)}
    text = Overlay(configuration="lrls.yaml", cases=cases).text().encode()
    config = YAML.replace("  test: [d]", "  test: [d]\n  review: review.yaml").encode()
    return [{"lrls.yaml": config, "review.yaml": text}]


def _split() -> list[Files]:
    config = YAML.replace("[a, b]", "training").replace("[d]", "held_out")
    config = config.replace("  folder: .", "  folder: .\n  split: s.json")
    return [{"lrls.yaml": config.encode(), "s.json": json.dumps({"training": ["a", 7], "held_out": ["d"]}).encode()}]


def _ratings() -> list[Files]:
    rows = ("case", "rating", "note", "correct", "exclude", "label_next"), ("a", "3", '"cut, ""top"""', "yes", "", "")
    return [{"ratings.tsv": "\n".join(map("\t".join, (*rows, ("c", "", "", "", "yes", "yes")))).encode() + b"\n"}]


def read_a_table_of_ratings(folder: Path) -> None:
    from stages.review import read_ratings

    for said in read_ratings(folder / "ratings.tsv", {"a": "atlases", "c": "unlabeled"}).values():
        if not said.note.isprintable():
            raise ValueError("a note that is not plain text")


def read_scheduler(folder: Path) -> None:
    from stages.dask_clusters import _address

    _address(str(folder / "scheduler.json"))


def _scheduler() -> list[Files]:
    about = {"type": "Scheduler", "id": "S-1", "address": "tcp://10.0.0.1:8786", "services": {}, "workers": {}}
    return [{"scheduler.json": json.dumps(about).encode()}]


def _network() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def _weights() -> list[Files]:
    from stages.artifacts.weights_file import packed_weights

    return [{"w.safetensors": packed_weights({"net": _network()}, {"method": "x"})}]


def read_weights_file(folder: Path) -> None:
    from stages.answering.exported import tensors_of
    from stages.artifacts.weights_file import load_weights
    from stages.errors import LrlsError

    try:
        tensors_of((folder / "w.safetensors").read_bytes(), "w.safetensors")
    except LrlsError as error:
        if not str(error).isprintable():
            raise
    load_weights({"net": _network()}, folder / "w.safetensors")


def _state() -> list[Files]:
    import torch

    buffer = io.BytesIO()
    network = _network()
    optimizer = torch.optim.Adam(network.parameters())
    torch.save({"step": 3, "network": network.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    return [_checked({"training.pt": buffer.getvalue()})]


def _checked(files: Files, draw: Random | None = None) -> Files:
    """With digests behind the content, right ones for most inputs."""
    from stages.artifacts.checked import LENGTH, MARK

    if draw is None:
        return {name: data + MARK + hashlib.sha256(data).hexdigest().encode() for name, data in files.items()}
    if draw.random() < 0.1:
        return files
    return _checked({name: data[:-LENGTH] for name, data in files.items()})


def read_state(folder: Path) -> None:
    from stages.artifacts.weights_file import load_state

    load_state(folder / "training.pt")


GRID = (4, 4, 4)


def _manifest(kind: str, file: str) -> Any:
    from stages.artifacts.manifest import Identity, Manifest

    return Manifest(Identity(kind, 1, "x", {}, 0), "0" * 64, {file: "0" * 64}, {}, "cpu", 0.0, "")


def _cohort_of(folder: Path) -> Any:
    from stages.artifacts.cohort import Cohort, Grid

    grid = Grid(GRID, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    return Cohort(folder, _manifest("cohort", "cohort.h5"), grid, ("a",), {"atlases": ["x"], "unlabeled": ["y"]}, ())


def _write_cohort(folder: Path) -> None:
    from stages.artifacts.cohort import write_images

    with write_images(folder, volume(np.float32)) as add:
        image = (np.arange(64).reshape(GRID) / 64).astype(np.float16)
        add("x", image, (image > 0.5).astype(np.uint8))
        add("y", image, None)


def read_cohort(folder: Path) -> None:
    from stages.artifacts.intact import verify_files

    cohort = _cohort_of(folder)
    cohort.reference()
    cohort.scans("cpu")
    cohort.label("x")
    verify_files(folder, {"cohort.h5": "0" * 64}, {}, "make it again.")  # as an earlier lrls wrote them


def _write_generated(folder: Path) -> None:
    import h5py

    text = h5py.string_dtype()
    volumes, quality = np.zeros((2, 1, *GRID), np.float16), np.zeros(2, np.float32)
    with h5py.File(folder / "generated.h5", "w") as file:
        for table in ("paths", "samples"):
            group = file.create_group(table)
            for name in ("similarity", "inverse_error_voxels", "folding_fraction"):
                group[name] = quality
            group["accepted"] = np.array([True, True])
        file["paths"]["displacement"] = np.zeros((2, 3, *GRID), np.float16)
        file["paths"]["style"] = volumes
        for table, names in (("paths", ("atlas", "scan")), ("samples", ("atlas", "space", "style"))):
            for name in names:
                file[table].create_dataset(name, data=["x", "y"], dtype=text)
        file["samples"]["image"], file["samples"]["label"] = volumes, np.zeros((2, *GRID), np.uint8)
        group = file.create_group("pseudo")
        group["label"], group["certainty"] = np.zeros((1, *GRID), np.uint8), np.zeros((1, *GRID), np.float16)
        group["trusted"], group["accepted"] = np.ones((1, *GRID), bool), np.ones(1, bool)
        group.create_dataset("scan", data=["y"], dtype=text)
        group["class_voxels"], group["class_accepted"] = np.ones((1, 2), np.int64), np.ones((1, 2), bool)
        group["class_confidence"] = np.ones((1, 2), np.float32)


def read_generated(folder: Path) -> None:
    from stages.artifacts.generated import Generated

    generated = Generated(folder, _manifest("generated", "generated.h5"))
    if bank := generated.bank(["x", "y"]):
        bank.displacement(0)
        bank.style(1)
    if samples := generated.samples():
        samples[len(samples) - 1]
    generated.pseudo_labels(["x", "y"], "cpu")  # type: ignore[arg-type]
    if generated.has_pseudo_labels:
        generated.screening()
        generated.pseudo_label("y")


def _h5_changed(name: str) -> tuple[Callable[[Files, Random], Files], ...]:
    def change(files: Files, draw: Random) -> Files:
        def write(folder: Path) -> None:
            (folder / name).write_bytes(files[name])
            change_h5(folder / name, draw)

        try:
            return made(write)
        except Exception:  # h5py does not write such a thing
            return {name: flipped(files[name], draw)}

    return (change,)


def _sheets() -> list[Files]:
    from stages.artifacts.sheets import write_sheet

    return [made(lambda folder: write_sheet(folder / "sheet.png", np.arange(64, dtype=np.uint8).reshape(GRID)))]


def read_a_sheet(folder: Path) -> None:
    from stages.artifacts.sheets import read_sheet

    read_sheet(folder / "sheet.png", GRID)


FILES = {
    "configuration": Reader(lambda: [{"lrls.yaml": YAML.encode()}], read_config, (json_changed, *TEXT, *TEXT)),
    "review": Reader(_overlay, read_config, (json_changed, *TEXT, *TEXT), changed="review.yaml"),
    "split": Reader(_split, read_config, (json_changed, *TEXT), changed="s.json"),
    "ratings": Reader(_ratings, read_a_table_of_ratings, TEXT),
    "scheduler": Reader(_scheduler, read_scheduler, (json_changed, *TEXT)),
    "safetensors": Reader(_weights, read_weights_file, (safetensors_changed,)),
    "training state": Reader(_state, read_state, (number_written, flipped), repaired=_checked),
    "cohort.h5": Reader(lambda: [made(_write_cohort)], read_cohort, unlike="changed since it was written",
                        of_all=_h5_changed("cohort.h5")),
    "generated.h5": Reader(lambda: [made(_write_generated)], read_generated, of_all=_h5_changed("generated.h5")),
    "sheets": Reader(_sheets, read_a_sheet),
}  # fmt: skip

"""A small synthetic cohort: one anatomy, deformed, imaged and stored differently in every scan.

The anatomy is defined in millimetres along patient axes (left, posterior, superior), with its origin in the middle of
the body. The voxel of a scan at x shows the anatomy at A(x + u(x)), with A affine and u a sum of smooth waves.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import yaml

from stages.artifacts.files import atomic_write_bytes, atomic_write_text
from stages.data.writers import write_by_itk
from stages.errors import UNPRINTABLE, LrlsError

STRUCTURES = {"left_lobe": 3, "right_lobe": 17, "core": 205, "tube": 1000}
MOST_SCANS = 9999
ORIENTATIONS = ("LPS", "RAS", "RAI", "PIR", "ASL", "SPR", "LSA", "AIL")
OWN = re.compile(r"phantom_\d+\.nii\.gz|\.[0-9a-f]{8}\.tmp")  # names of files that are written here
WAVES = 32  # of a random smooth field
ELASTIC_MM = {20.0: 1.0, 11.0: 0.35}  # wavelength scale: root mean square of each component

CONFIG = """\
# A synthetic cohort of {scans} scans, made by `lrls phantom {folder} --scans {scans} --seed {seed}`.
# Try it: `lrls check {folder}/lrls.yaml`, then `lrls run {folder}/lrls.yaml --budget 2m`.
# Paths are relative to this file.
workspace: {workspace}

data:
  folder: .
  images: images
  labels: labels  # the atlas, dev and test scans have label maps, the unlabelled ones have none
  atlases: [{atlases}]
  unlabeled: [{unlabeled}]
  dev: [{dev}]
  test: [{test}]

structures:
{structures}
seed: {seed}

preprocess:
  align: affine
  crop: labels
  margin_mm: 6

# Few steps and light networks, so that a run takes minutes on two cores.
train_reg: {{steps: 250, checkpoint_steps: 50}}
train_seg: {{steps: 250, checkpoint_steps: 50}}
methods:
  brbs:
    registration_network: light
    segmentation_network: light
    segmentation_loss: dice-ce
    augment_pairs: false
    warm_up: 0.5
    helper_learning_rate: 3.0e-3
"""


@dataclass(frozen=True)
class Field:
    """A smooth random function of position: a sum of waves with root mean square 1 and a typical wavelength."""

    wave_vectors: np.ndarray  # radians per mm, (waves, 3)
    phases: np.ndarray  # (waves,)

    @classmethod
    def draw(cls, random: np.random.Generator, scale_mm: float) -> Field:
        return cls(random.normal(size=(WAVES, 3)) / scale_mm * 2, random.uniform(0, 2 * np.pi, size=WAVES))

    def __call__(self, points_mm: np.ndarray) -> np.ndarray:
        return np.cos(points_mm @ self.wave_vectors.T + self.phases).sum(axis=-1) * np.sqrt(2 / WAVES)


def write_phantoms(folder: Path, *, scans: int = 14, seed: int = 0, force: bool = False) -> Path:
    """Write images/, labels/ and lrls.yaml; the same number and seed give the same files.

    Returns:
        The configuration file.

    Raises:
        LrlsError: fewer than 4 scans or too many, or the folder holds a cohort already and `force` is not set.
    """
    if scans < 4:
        raise LrlsError(f"{scans} scans cannot be an atlas, an unlabelled, a dev and a test scan; ask for at least 4.")
    if scans > MOST_SCANS:
        raise LrlsError(f"--scans: found {scans}, expected at most {MOST_SCANS}; ask for fewer.")
    if UNPRINTABLE.search(str(folder)):
        raise LrlsError(f"{folder}: the name holds a control character, or is not UTF-8; choose another folder.")
    config = folder / "lrls.yaml"
    if not force and (config.exists() or not _was_stopped(folder)):
        raise LrlsError(f"{folder} holds a cohort already; choose another folder, or replace it with --force.")
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for path in (folder / kind).glob("phantom_*.nii.gz"):
            path.unlink()
    cases = [f"phantom_{number:02d}" for number in range(1, scans + 1)]
    num_dev, num_test = max(1, scans // 7), max(1, scans * 2 // 7)
    parts = {
        "atlases": cases[:1],
        "unlabeled": cases[1 : -num_dev - num_test],
        "dev": cases[-num_dev - num_test : -num_test],
        "test": cases[-num_test:],
    }
    for number, case in enumerate(cases):
        image, label = make_phantom(np.random.default_rng([seed, number]), ORIENTATIONS[number % len(ORIENTATIONS)])
        _write(image, folder / "images" / f"{case}.nii.gz")
        if case not in parts["unlabeled"]:
            _write(label, folder / "labels" / f"{case}.nii.gz")
    name = folder.resolve().name
    workspace = yaml.safe_dump(f"../runs/{name.removeprefix('data.')}", allow_unicode=True, width=10**6)
    text = CONFIG.format(
        scans=scans,
        seed=seed,
        folder=name,
        workspace=workspace.splitlines()[0],
        structures="".join(f"  {name}: {value}\n" for name, value in STRUCTURES.items()),
        **{part: ", ".join(members) for part, members in parts.items()},
    )
    atomic_write_text(config, text)
    return config


def _was_stopped(folder: Path) -> bool:
    """Whether a folder without configuration, which is written last, holds no more than a stopped command leaves."""
    inside = [path for kind in ("images", "labels") for path in (folder / kind).glob("*")]
    return all(OWN.fullmatch(path.name) and path.is_file() for path in inside)


def _write(image: sitk.Image, path: Path) -> None:
    """A compressed file, in full or not at all; ITK does not take every name for a name."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "image.nii.gz"
        write_by_itk(image, plain, level=9)
        atomic_write_bytes(path, plain.read_bytes())


def make_phantom(random: np.random.Generator, orientation: str) -> tuple[sitk.Image, sitk.Image]:
    """One scan of the anatomy: image (int16) and label map (uint16), voxel axes in the given orientation."""
    grid = _draw_grid(random)
    center_mm = np.array(grid.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in grid.GetSize()]))
    points_mm = _voxel_positions(grid) - center_mm
    tissue, label = anatomy(_deform(random, points_mm))

    knots = np.cumsum(random.uniform(0.25, 1.0, size=9))
    knots = (knots - knots[0]) / (knots[-1] - knots[0])
    contrast = np.interp(tissue, np.linspace(0, 1, 9), knots)
    bias = np.exp(0.12 * Field.draw(random, 40.0)(points_mm))
    noise = 0.025 * random.normal(size=(2, *tissue.shape))
    magnitude = np.hypot(contrast * bias + noise[0], noise[1])  # as in MR images: never below 0
    voxels = np.rint(magnitude * random.uniform(300, 1500)).astype(np.int16)

    scan = []
    for array in (voxels, label.astype(np.uint16)):
        image = sitk.GetImageFromArray(array)
        image.CopyInformation(grid)
        scan.append(sitk.DICOMOrient(image, orientation))
    return scan[0], scan[1]


def anatomy(points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tissue brightness in [0, 1] and label value of the undeformed anatomy at points (..., 3) in mm."""
    fixed = np.random.default_rng(2022)  # the anatomy itself is the same for every seed
    uneven = np.stack([Field.draw(fixed, 11.0)(points_mm) for _ in range(3)], axis=-1)
    points_mm = points_mm + 0.8 * uneven  # organs are not exact ellipsoids
    texture = Field.draw(fixed, 5.0)(points_mm)
    x, y, z = np.moveaxis(points_mm, -1, 0)

    def ellipsoid(center: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        """Roughly the distance (mm) to the surface, positive inside."""
        return (1 - np.linalg.norm((points_mm - center) / np.array(radii), axis=-1)) * min(radii)

    body = ellipsoid((0, 0, 0), (17, 14.5, 27))
    tube = np.minimum(2.8 - np.hypot(x - 2.5 * np.sin(z / 7), y - 4.2 - 1.2 * np.cos(z / 9)), 17 - np.abs(z))
    core = ellipsoid((0.5, -6.5, -5), (4.0, 3.6, 6.0))
    left, right = ellipsoid((8.5, -0.5, 2), (4.2, 5.8, 9.5)), ellipsoid((-8.5, -0.5, 1), (4.0, 5.4, 8.5))
    spine = 2.3 - np.hypot(x, y - 10.5)

    tissue = np.full(x.shape, 0.02)
    for inside_mm, brightness in (
        (body, 0.75),
        (body - 1.6, 0.45 + 0.07 * texture),
        (ellipsoid((0.5, -6.5, -5), (5.8, 5.2, 8.2)), 0.28),  # the shell that the core lies in
        (core, 0.6),
        (left, 0.68),
        (right, 0.68),
        (spine, 0.15),
        (tube, 0.9),
    ):
        share = 1 / (1 + np.exp(-inside_mm / 0.25))  # soft edges, as if a voxel held two tissues
        tissue = tissue * (1 - share) + brightness * share
    label = np.zeros(x.shape, dtype=np.int64)
    for name, inside_mm in (("core", core), ("left_lobe", left), ("right_lobe", right), ("tube", tube)):
        label[inside_mm > 0] = STRUCTURES[name]
    return tissue.clip(0, 1), label


def _draw_grid(random: np.random.Generator) -> sitk.Image:
    """An empty image near the axes LPS, with a spacing, a position and a slight turn of its own."""
    spacing_mm = [round(mm, 2) for mm in random.uniform((1.0, 1.0, 1.4), (1.2, 1.2, 1.7))]
    grid = sitk.Image([round(mm / step) for mm, step in zip((40, 36, 52), spacing_mm, strict=True)], sitk.sitkUInt8)
    grid.SetSpacing(spacing_mm)
    grid.SetOrigin([round(mm, 1) for mm in random.uniform(-120, 120, size=3)])
    grid.SetDirection(_rotation(np.radians(random.uniform(-8, 8, size=3))).ravel())
    return grid


def _voxel_positions(grid: sitk.Image) -> np.ndarray:
    """Physical positions (mm) of all voxels, (D, H, W, 3) with components in physical axes."""
    width, height, depth = grid.GetSize()
    indices = np.stack(np.meshgrid(range(depth), range(height), range(width), indexing="ij")[::-1], axis=-1)
    axes = np.reshape(grid.GetDirection(), (3, 3)) * grid.GetSpacing()
    return indices @ axes.T + grid.GetOrigin()


def _deform(random: np.random.Generator, points_mm: np.ndarray) -> np.ndarray:
    """The points of a scan in the anatomy: deformed elastically, stretched, rotated and shifted."""
    moved_mm = points_mm.copy()
    for scale_mm, amplitude_mm in ELASTIC_MM.items():
        fields = [Field.draw(random, scale_mm) for _ in range(3)]
        moved_mm += amplitude_mm * np.stack([field(points_mm) for field in fields], axis=-1)
    stretch = np.diag(random.uniform(0.9, 1.1, size=3)) + random.normal(0, 0.03, size=(3, 3))
    turn = _rotation(np.radians(random.uniform(-6, 6, size=3)))
    return moved_mm @ (turn @ stretch).T + random.uniform(-1.5, 1.5, size=3)


def _rotation(radians: np.ndarray) -> np.ndarray:
    """Rotation about the three axes, one after the other."""
    matrix = np.eye(3)
    for axis, angle in enumerate(radians):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix

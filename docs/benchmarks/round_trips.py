"""Is the answer the same however a scan is stored? Copies of a scan that show the same anatomy in other voxels.

    python docs/benchmarks/round_trips.py model.zip scan.nii.gz [more scans ...] [--out results/round_trips]

Copies: turned by 10 and 20 degrees, flipped and permuted in storage, of thick slices, on an oblique grid, cropped by a
tenth a side, and as a DICOM series. Each answer is brought back to the scan's own voxels and compared with the answer
for the scan itself: DSC and mean surface distance in mm, mean over structures; the worst of the scans counts. Turned
copies leave the field of view at their corners, so that a structure near the border may lose a part.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from stages import load_model
from stages.parts.metrics import score_structures
from stages.predict import Prediction

MOST = 65535  # of a DICOM image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    predictor = load_model(arguments.model)
    values = list(predictor.structures.values())
    found: dict[str, list[tuple[float, float]]] = {}
    for path in arguments.scans:
        scan = sitk.ReadImage(str(path), sitk.sitkFloat32)
        with tempfile.TemporaryDirectory() as folder:
            kinds, stored, ways = zip(*copies(scan, Path(folder)), strict=True)
            own, *answers = predictor.predict_many([scan, *stored], [f"copy_{k}" for k in range(len(stored) + 1)])
        assert isinstance(own, Prediction), own
        for kind, way, answer in zip(kinds, ways, answers, strict=True):
            assert isinstance(answer, Prediction), answer
            back = sitk.Resample(answer.label, scan, way, sitk.sitkNearestNeighbor)
            seen = sitk.Resample(sitk.Cast(answer.label, sitk.sitkUInt8) * 0 + 1, scan, way, sitk.sitkNearestNeighbor)
            found.setdefault(kind, []).append(compared(own.label, back, seen, values))
    lines = [
        f"{len(arguments.scans)} scans",
        "",
        "| copy | DSC, mean (worst) | mean surface distance mm, mean (worst) |",
    ]
    lines.append("|---|---|---|")
    for kind, each in found.items():
        dsc, distance = np.array(each).T
        lines.append(f"| {kind} | {dsc.mean():.3f} ({dsc.min():.3f}) | {distance.mean():.2f} ({distance.max():.2f}) |")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.with_suffix(".md").write_text(text)


def copies(scan: sitk.Image, folder: Path) -> Iterator[tuple[str, sitk.Image | Path, sitk.Transform]]:
    """Kind, the copy, and where each point of the scan lies in it."""
    same = sitk.Transform(3, sitk.sitkIdentity)
    for degrees, axis in ((10, (0, 0, 1)), (20, (1, 0, 0)), (20, (0, 0, 1))):
        way = sitk.VersorTransform(axis, math.radians(degrees), centre(scan))
        turned = sitk.Resample(
            scan, scan, way.GetInverse(), sitk.sitkLinear, 0.0, sitk.sitkFloat32, useNearestNeighborExtrapolator=True
        )
        yield f"turned by {degrees} degrees about {'xyz'[axis.index(1)]}", turned, way
    yield "flipped in storage", sitk.Flip(scan, (True, False, True)), same
    yield "axes permuted", sitk.PermuteAxes(scan, (2, 0, 1)), same
    yield "slices twice as thick", sitk.BinShrink(scan, (1, 1, 2)), same  # means of two
    yield "slices three times as thick", sitk.BinShrink(scan, (1, 1, 3)), same
    yield "oblique grid", oblique(scan), same
    size = scan.GetSize()
    margin = [n // 10 for n in size]
    yield "cropped by 10 % a side", sitk.Crop(scan, margin, margin), same
    series = write_dicom(scan, folder / "series")
    yield "DICOM series", series, same


def centre(scan: sitk.Image) -> tuple[float, ...]:
    return scan.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in scan.GetSize()])


def oblique(scan: sitk.Image) -> sitk.Image:
    """The scan on a grid that is turned by 15 degrees and large enough to hold it, border values outside."""
    turn = np.array(sitk.VersorTransform((0.6, 0.0, 0.8), math.radians(15)).GetMatrix()).reshape(3, 3)
    direction = turn @ np.array(scan.GetDirection()).reshape(3, 3)
    spacing = scan.GetSpacing()
    size = [math.ceil(n * 1.35) for n in scan.GetSize()]
    half = direction @ np.array([(n - 1) / 2 * s for n, s in zip(size, spacing, strict=True)])
    origin = np.array(centre(scan)) - half
    return sitk.Resample(
        scan, size, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear, origin.tolist(), spacing,
        direction.ravel().tolist(), 0.0, sitk.sitkFloat32, True,
    )  # fmt: skip


def write_dicom(scan: sitk.Image, folder: Path) -> Path:
    """An MR series of 16 bits, a file per slice; whole numbers stay as they are, others fill the range."""
    folder.mkdir()
    values = sitk.GetArrayFromImage(scan)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > MOST or not (values == np.round(values)).all():
        values = np.round((values - low) / (high - low) * MOST)
    volume = sitk.GetImageFromArray(values.astype(np.uint16))
    volume.CopyInformation(scan)
    direction = scan.GetDirection()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    tags = {
        "0008|0060": "MR", "0008|0016": "1.2.840.10008.5.1.4.1.1.4", "0020|000d": "1.2.826.0.1.3680043.8.498.1",
        "0020|000e": "1.2.826.0.1.3680043.8.498.2", "0020|0052": "1.2.826.0.1.3680043.8.498.3",
        "0020|0037": "\\".join(f"{direction[k]:.10g}" for k in (0, 3, 6, 1, 4, 7)),
        "0018|0050": f"{scan.GetSpacing()[2]:.6g}", "0010|0020": "phantom",
    }  # fmt: skip
    for k in range(scan.GetDepth()):
        one = volume[:, :, k]
        for tag, value in tags.items():
            one.SetMetaData(tag, value)
        place = scan.TransformIndexToPhysicalPoint((0, 0, k))
        one.SetMetaData("0020|0032", "\\".join(f"{x:.10g}" for x in place))
        one.SetMetaData("0020|0013", str(k + 1))
        one.SetMetaData("0008|0018", f"1.2.826.0.1.3680043.8.498.4.{k + 1}")
        writer.SetFileName(str(folder / f"{k:04d}.dcm"))
        writer.Execute(one)
    return folder


def compared(own: sitk.Image, back: sitk.Image, seen: sitk.Image, values: list[int]) -> tuple[float, float]:
    """Mean DSC and mean surface distance in mm over structures, where the copy shows the scan at all."""
    inside = sitk.GetArrayFromImage(seen) > 0
    maps = [np.where(inside, sitk.GetArrayFromImage(each), 0) for each in (own, back)]
    own_classes, back_classes = (sum((k + 1) * (each == v) for k, v in enumerate(values)) for each in maps)
    scores = score_structures(own_classes, back_classes, num_classes=len(values) + 1, spacing_mm=own.GetSpacing()[::-1])
    return float(np.mean([each.dice for each in scores])), float(np.mean([each.assd_mm for each in scores]))


if __name__ == "__main__":
    main()

"""What is fuzzed: readers of scans and label maps, and of what lies beside them."""

from __future__ import annotations

import gzip
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import SimpleITK as sitk
from attacks.fuzz import MARK, Files, Reader
from attacks.garbled import TEXT, dicom_changed, fields, flipped, inside_gzip, json_changed, word_replaced

NIFTI = [
    (0, "i"), *((at, "h") for at in range(40, 56, 2)), (70, "h"), (72, "h"), *((at, "f") for at in range(76, 108, 4)),
    (108, "f"), (112, "f"), (116, "f"), (123, "b"), (252, "h"), (254, "h"), *((at, "f") for at in range(256, 328, 4)),
    (344, "i"), (348, "i"),
]  # fmt: skip
SECRET = f"{MARK}^X"
SHAPE = (4, 5, 6)


def as_files(folder: Path) -> Files:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def made(write: Callable[[Path], Any]) -> Files:
    """The files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return as_files(Path(folder))


def volume(dtype: Any = np.int16) -> sitk.Image:
    image = sitk.GetImageFromArray((np.arange(np.prod(SHAPE)).reshape(SHAPE) % 5).astype(dtype))
    image.SetSpacing((1.5, 1.0, 2.0))
    image.SetOrigin((-3.0, 4.0, 5.0))
    return image


def written(name: str, dtype: Any = np.int16, *, compressed: bool = False) -> Files:
    return made(lambda folder: sitk.WriteImage(volume(dtype), str(folder / name), useCompression=compressed))


def read_scan(path: Path) -> None:
    """As image and as label map, and its header alone."""
    from stages.data.intake import header_geometry, read_image, read_new_scan
    from stages.data.labels import as_integers
    from stages.data.segments import segments_of
    from stages.errors import LrlsError

    errors = []
    for read in (
        lambda: header_geometry(path, "scan"),
        lambda: segments_of(as_integers(read_image(path, "scan", "label map"), "scan")),
        lambda: read_new_scan(path, "scan"),
    ):
        try:
            read()
        except LrlsError as error:
            errors.append(error)
    if errors:
        raise errors[-1]


def first(folder: Path) -> Path:
    return next(folder / name for name in ("scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha", "scan.mhd", "scan")
                if (folder / name).exists())  # fmt: skip


def _with_names(files: Files) -> Files:
    """NIfTI headers with a name in their texts."""
    changed = {}
    for name, data in files.items():
        plain = bytearray(gzip.decompress(data) if name.endswith(".gz") else data)
        for at, size in ((5, 10), (148, 80), (228, 24), (328, 16)):
            plain[at : at + size] = SECRET.encode()[: size - 1].ljust(size, b"\0")
        changed[name] = gzip.compress(bytes(plain), 1, mtime=0) if name.endswith(".gz") else bytes(plain)
    return changed


def _nifti() -> list[Files]:
    kinds = itertools.product(("scan.nii", "scan.nii.gz"), (np.int16, np.float32))
    return [_with_names(written(name, dtype)) for name, dtype in kinds]


def _nrrd() -> list[Files]:
    plain, packed = written("scan.nrrd"), written("scan.nrrd", np.uint8, compressed=True)
    text = f"# {SECRET}\nPatient:={SECRET}\n".encode()
    named = {"scan.nrrd": plain["scan.nrrd"].replace(b"\n\n", b"\n" + text + b"\n", 1)}
    head, _, body = plain["scan.nrrd"].partition(b"\n\n")
    apart = {"scan.nrrd": head + b"\ndata file: scan.raw\n\n", "scan.raw": body}
    layered = made(_write_segments)
    return [named, packed, apart, layered]


def _write_segments(folder: Path) -> None:
    label = sitk.Compose(volume(np.uint8) == 1, volume(np.uint8) == 2)
    for place, name in enumerate(("liver", "spleen")):
        for key, text in (
            ("Name", name),
            ("LabelValue", "1"),
            ("Layer", str(place)),
            ("Color", "1 0.5 0"),
            ("ID", "a"),
        ):
            label.SetMetaData(f"Segment{place}_{key}", text)
    label.SetMetaData("Segmentation_ReferenceImageExtentOffset", "1 0 0")
    geometry = "Reference image geometry|1.5;0;0;0;0;1;0;0;0;0;2;0;0;0;0;1;0;7;0;4;0;3;|x&"
    label.SetMetaData("Segmentation_ConversionParameters", geometry)
    sitk.WriteImage(label, str(folder / "scan.nrrd"))


def _meta(ending: str) -> Callable[[], list[Files]]:
    def sound() -> list[Files]:
        files = written(f"scan{ending}"), written(f"scan{ending}", np.float32, compressed=True)
        text = f"Comment = {SECRET}\nNDims".encode()
        return [{name: data.replace(b"NDims", text, 1) for name, data in each.items()} for each in files]

    return sound


def _series(folder: Path) -> None:
    from dicoms import phantom, write_slices

    def named(d: Any, k: int = 0) -> None:
        d.PatientName = d.PatientID = d.StudyID = d.AccessionNumber = SECRET
        d.PatientComments = d.ImageComments = SECRET

    write_slices(folder / "scan", phantom(SHAPE), change=named)


def _frames(folder: Path) -> None:
    from dicoms import phantom, write_frames

    def named(d: Any) -> None:
        d.PatientName = d.PatientID = SECRET

    write_frames(folder / "scan" / "frames.dcm", phantom(SHAPE), change=named, scale=lambda k: (1.0, 0.0))


def _segmentation(folder: Path) -> None:
    """A DICOM-SEG, which is refused as a scan, and an RTSTRUCT, which has no voxels."""
    _series(folder)
    _answer(folder / "scan", folder / "seg.dcm", folder / "rt.dcm")
    for path in (folder / "scan").iterdir():
        path.unlink()
    (folder / "seg.dcm").rename(folder / "scan" / "seg.dcm")
    (folder / "rt.dcm").unlink()


def _answer(scan: Path, segmentation: Path, contours: Path) -> None:
    from stages.data.dicom import open_series
    from stages.data.dicom_seg import write_dicom_seg
    from stages.data.rtstruct import write_rtstruct

    series = open_series(scan, "scan")
    header = next(iter(series.headers.values()))
    if len(series.slices) * header.rows * header.columns > 2**16:
        return
    classes = np.zeros((len(series.slices), header.rows, header.columns), np.uint8)
    classes[: (len(classes) + 1) // 2, : (header.rows + 1) // 2] = 1
    write_dicom_seg(classes, ["a"], scan, "scan", segmentation, method="best")
    write_rtstruct(classes, ["a"], ["#ff0000"], scan, "scan", contours, method="best")


def read_dicom_folder(folder: Path) -> None:
    scan = folder / "scan"
    files = sorted(scan.iterdir())
    read_scan(files[0] if len(files) == 1 and files[0].name != "seg.dcm" else scan)


def read_any_table(folder: Path) -> None:
    from stages.data.label_tables import best_table, by_name, tables_in

    tables = tables_in([folder])
    entries, _ = best_table([1, 2, 3], tables)
    names = [*by_name(entries), *(entry.name + entry.colour for table in tables.values() for entry in table.values())]
    if not all(name.isprintable() and len(name) < 200 for name in names):
        raise ValueError("a name that is not plain text")


def _tables() -> list[Files]:
    rows = [(1, "Liver", 255, 0, 0), (2, "Left kidney", 0, 255, 0), (3, "Spleen", 0, 0, 255)]
    snap = "# ITK-SnAP\n" + "".join(f'{v}  {r}  {g}  {b}  1  1  1  "{name}"\n' for v, name, r, g, b in rows)
    slicer = "# Color table\n" + "".join(f"{v} {name.replace(' ', '_')} {r} {g} {b} 255\n" for v, name, r, g, b in rows)
    comma = "LabelValue,Name,Color_R,Color_G,Color_B\n" + "".join(f'{v},"{n}",{r},{g},{b}\n' for v, n, r, g, b in rows)
    bids = "index\tname\tcolor\n" + "".join(f"{v}\t{n}\t#{r:02x}{g:02x}{b:02x}\n" for v, n, r, g, b in rows)
    tables = {"t.txt": snap, "t.ctbl": slicer, "t.csv": comma, "t.tsv": bids}
    return [{name: text.encode()} for name, text in tables.items()]


def _dataset() -> list[Files]:
    scans = {f"images/{case}.nii": written("scan.nii")["scan.nii"] for case in ("a", "b")}
    scans["labels/a.nii"] = written("scan.nii", np.uint8)["scan.nii"]
    nnunet = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": [2, 3], "ignore": 4}}
    msd = {"name": SECRET, "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver", "2": "tumour"},
           "training": [{"image": "./images/a.nii", "label": "./labels/a.nii"}], "numTraining": 1}  # fmt: skip
    return [scans | {"dataset.json": json.dumps(each).encode()} for each in (nnunet, msd)]


def describe(folder: Path) -> None:
    from stages.data.initialize import describe_folder, write_config

    write_config(describe_folder(folder), folder / "lrls.yaml")


def _bids() -> list[Files]:
    image, label = written("scan.nii")["scan.nii"], written("scan.nii", np.uint8)["scan.nii"]
    files = {
        "dataset_description.json": json.dumps({"Name": SECRET, "BIDSVersion": "1.8.0"}).encode(),
        "participants.tsv": b"participant_id\tage\nsub-01\t34\n",
        "sub-01/anat/sub-01_T1w.nii": image,
        "sub-01/anat/sub-01_T1w.json": json.dumps({"PatientName": SECRET, "EchoTime": 0.01}).encode(),
        "sub-02/anat/sub-02_T1w.nii": image,
        "derivatives/manual/sub-01/anat/sub-01_dseg.nii": label,
        "derivatives/manual/dseg.tsv": b"index\tname\tcolor\n1\tliver\t#ff0000\n2\tspleen\t#00ff00\n",
    }
    return [files]


def names_changed(files: Files, draw: Random) -> Files:
    """Parts of paths get other words; names that no file system takes are left as they are."""
    changed: Files = {}
    for name, data in files.items():
        parts = name.split("/")
        if draw.random() < 0.4:
            at = draw.randrange(len(parts))
            words = parts[at].encode("utf-8", "surrogateescape")
            new = draw.choice((word_replaced, flipped))(words, draw).decode("utf-8", "surrogateescape")
            parts[at] = (
                new if draw.random() < 0.5 else parts[at].replace("01", draw.choice(("02", "1", "x_", "-", "\x1b")))
            )
        path = "/".join(parts)
        is_possible = all(part not in ("", ".", "..") and len(part.encode("utf-8", "surrogateescape")) < 200
                          for part in path.split("/"))  # fmt: skip
        path = path if is_possible and "\0" not in path else name
        taken = any(path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in changed)
        changed[name if taken else path] = data
    return changed


SCANS = {
    "nifti": Reader(_nifti, lambda folder: read_scan(first(folder)),
                    (inside_gzip((fields(NIFTI),)), inside_gzip((fields(NIFTI), flipped)))),
    "nrrd": Reader(_nrrd, lambda folder: read_scan(first(folder)), TEXT, unlike="has 2 channels"),
    "mha": Reader(_meta(".mha"), lambda folder: read_scan(first(folder)), TEXT),
    "mhd": Reader(_meta(".mhd"), lambda folder: read_scan(first(folder)), TEXT),
    "dicom series": Reader(lambda: [made(_series)], read_dicom_folder, (dicom_changed,),
                           unlike="looks like an image"),
    "dicom frames": Reader(lambda: [made(_frames), made(_segmentation)], read_dicom_folder, (dicom_changed,),
                           unlike="is a DICOM segmentation|looks like an image"),
    "dicom answered": Reader(lambda: [made(_series), made(_frames)],
                             lambda folder: _answer(folder / "scan", folder / "seg.dcm", folder / "rt.dcm"),
                             (dicom_changed,)),
    "label tables": Reader(_tables, read_any_table, TEXT),
    "dataset.json": Reader(_dataset, describe, (json_changed, *TEXT), changed="dataset.json"),
    "bids": Reader(_bids, describe, TEXT, changed=r".*\.(json|tsv)", of_all=(names_changed,)),
}  # fmt: skip

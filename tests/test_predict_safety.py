"""Nothing that `predict` does changes an input or loses an answer, whatever scans are called and wherever they lie."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import Done, Project, work_here
from pytest import MonkeyPatch

from stages.answering.answers import Answering
from stages.answering.unchanged import refuse_answers
from stages.data import writers
from stages.data.nifti import GEOMETRY
from stages.errors import LrlsError


@pytest.fixture(scope="module")
def shared(tmp_path_factory, new_project, no_pictures_in_module) -> Iterator[Project]:
    with MonkeyPatch.context() as patch:
        work_here(patch)
        project = new_project(tmp_path_factory.mktemp("predict"))
        project.made("run", "--method", "affine", "--until", "preprocess")
        project.made("export", "--method", "affine", "--out", str(project.folder / "model.zip"))
        yield project


@pytest.fixture
def scan(scans) -> Path:
    return scans / "images" / "test_1.nii.gz"


def predict(project: Project, *arguments: object) -> Done:
    return Project.lrls(_Model(project.folder), "predict", *map(str, arguments))


class _Model(Project):
    @property
    def config_file(self) -> Path:
        return self.folder / "model.zip"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("way", ["itself", "dots", "link", "link to its parent", "qc", "probabilities"])
def test_no_scan_is_written_over_whatever_leads_to_its_folder(way, force, shared, scan, tmp_path):
    new = tmp_path / "new" / {"qc": "qc", "probabilities": "probabilities"}.get(way, "")
    new.mkdir(parents=True)
    shutil.copy(scan, new / "a.nii.gz")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    (tmp_path / "parent").symlink_to(tmp_path)
    out = {
        "itself": tmp_path / "new", "dots": tmp_path / "x" / ".." / "new", "link": tmp_path / "link",
        "link to its parent": tmp_path / "parent" / "new", "qc": tmp_path / "new", "probabilities": tmp_path / "new",
    }[way]  # fmt: skip
    (tmp_path / "x").mkdir()
    before = contents(new)
    done = predict(shared, new / "a.nii.gz", "--out", out, *force)
    assert (done.code, done.err) == (
        1,
        f"lrls: --out {out} is where scan a lies, and would be written over; name another folder.\n",
    )
    assert contents(new) == before


def test_a_scan_behind_a_link_is_not_written_over_either(shared, scan, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "links").mkdir()
    shutil.copy(scan, tmp_path / "new" / "a.nii.gz")
    (tmp_path / "links" / "a.nii.gz").symlink_to(tmp_path / "new" / "a.nii.gz")
    before = contents(tmp_path / "new")
    done = predict(shared, tmp_path / "links" / "a.nii.gz", "--out", tmp_path / "new", "--force")
    assert done.code == 1 and "is where scan a lies" in done.err
    assert contents(tmp_path / "new") == before


def test_folders_of_the_answers_are_no_links(shared, scan, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "probabilities").mkdir(parents=True)
    (tmp_path / "out" / "probabilities" / "test_1").symlink_to(tmp_path / "elsewhere")
    done = predict(shared, scan, "--out", tmp_path / "out", "--force", "--probabilities")
    assert done.code == 1 and "test_1 in it is a link; remove it" in done.err
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_hard_link_in_the_folder_is_replaced_and_the_scan_stays(shared, scan, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "out").mkdir()
    shutil.copy(scan, tmp_path / "new" / "a.nii.gz")
    os.link(tmp_path / "new" / "a.nii.gz", tmp_path / "out" / "a.nii.gz")
    before = contents(tmp_path / "new")
    assert predict(shared, tmp_path / "new" / "a.nii.gz", "--out", tmp_path / "out", "--force").code == 0
    assert contents(tmp_path / "new") == before
    assert contents(tmp_path / "out")["a.nii.gz"] != before["a.nii.gz"]


def test_the_same_command_goes_on_behind_the_scans_that_are_done(shared, scans, tmp_path, monkeypatch):
    new, out = tmp_path / "new", tmp_path / "out"
    new.mkdir()
    for name, case in (("a", "test_1"), ("b", "test_2"), ("c", "dev_1")):
        shutil.copy(scans / "images" / f"{case}.nii.gz", new / f"{name}.nii.gz")

    write = writers.sitk.WriteImage

    def stopped(image: sitk.Image, path: str, **options: object) -> None:
        if len(list(out.glob("*.nii.gz"))) == 2:
            raise KeyboardInterrupt
        write(image, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(writers.sitk, "WriteImage", stopped)
        assert predict(shared, new, "--out", out).code == 130
    times = {name: (out / f"{name}.nii.gz").stat().st_mtime_ns for name in "ab"}
    assert not (out / "c.nii.gz").exists()

    done = predict(shared, new, "--out", out)
    assert done.code == 0, done.err
    assert "2 of 3 scans were answered before and have not changed" in done.out
    assert {name: (out / f"{name}.nii.gz").stat().st_mtime_ns for name in "ab"} == times
    assert pd.read_csv(out / "volumes.csv")["case"].tolist() == ["a", "b", "c"]
    assert sorted(line.partition(":")[0] for line in done.out.splitlines()[-4:-1]) == ["a", "b", "c"]
    assert not list(out.glob(".lrls-tmp-*"))

    shutil.copy(scans / "images" / "dev_1.nii.gz", new / "a.nii.gz")  # another scan under the name
    (out / "b.nii.gz").write_bytes(b"damaged")
    assert "1 of 3 scans were answered before" in predict(shared, new, "--out", out).out
    found = {name: sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"{name}.nii.gz"))) for name in "abc"}
    np.testing.assert_array_equal(found["a"], found["c"])


def test_answers_of_another_model_or_with_other_files_are_not_mixed(shared, scan, tmp_path):
    out = tmp_path / "out"
    assert predict(shared, scan, "--out", out).code == 0
    done = predict(shared, scan, "--out", out, "--probabilities")
    assert (done.code, done.err) == (
        1,
        f"lrls: --out {out} is not empty; name another folder, or write into it with --force.\n",
    )


def test_tables_of_other_answers_go_and_their_label_maps_are_known_to_be_answers(shared, scans, scan, tmp_path):
    out = tmp_path / "out"
    several = sorted((scans / "images").glob("*_[12].nii.gz"))[:5]
    assert predict(shared, *several, "--out", out).code == 0
    others = {path.name for path in out.iterdir()} - {"outliers.csv", "outliers.png"}
    former = [out / path.name for path in several]
    assert (out / "outliers.csv").is_file()
    assert predict(shared, scan, "--out", out, "--format", "seg.nrrd", "--force").code == 0
    assert {path.name for path in out.iterdir()} == others | {"test_1.seg.nrrd"}
    assert pd.read_csv(out / "volumes.csv")["case"].tolist() == ["test_1"]
    for unchanged in (former, [out / "test_1.seg.nrrd"]):
        with pytest.raises(LrlsError, match=f"^--corrected: {unchanged[0].name}"):
            refuse_answers(unchanged)
    assert predict(shared, scan, "--out", out, "--format", "seg.nrrd").code == 0
    with pytest.raises(LrlsError, match="of lrls that nobody has changed"):
        refuse_answers(former)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "outliers.csv").write_text("mine")
    assert predict(shared, scan, "--out", mine, "--force").code == 0
    assert (mine / "outliers.csv").read_text() == "mine"


def test_one_failed_write_stops_no_other_scan(shared, scans, tmp_path, monkeypatch):
    new = tmp_path / "new"
    new.mkdir()
    for name, case in (("a", "test_1"), ("b", "test_2"), ("c", "dev_1")):
        shutil.copy(scans / "images" / f"{case}.nii.gz", new / f"{name}.nii.gz")
    replace = os.replace

    def sometimes(source: object, target: object) -> None:
        if str(target).endswith("b.nii.gz"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", sometimes)
    done = predict(shared, new, "--out", tmp_path / "out")
    assert done.code == 1
    path = tmp_path / "out" / "b.nii.gz"
    assert f"{path} cannot be written (there is no room on the disk); free some, or name another folder." in done.out
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]
    assert pd.read_csv(tmp_path / "out" / "volumes.csv")["case"].tolist() == ["a", "c"]


def test_an_answer_that_does_not_fit_into_memory_costs_one_scan(shared, scans, tmp_path, monkeypatch):
    new = tmp_path / "new"
    new.mkdir()
    for name, case in (("a", "test_1"), ("b", "test_2"), ("c", "dev_1")):
        shutil.copy(scans / "images" / f"{case}.nii.gz", new / f"{name}.nii.gz")
    combined = Answering._combined

    def full(self, case, *arguments):
        if case == "b":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")
        return combined(self, case, *arguments)

    monkeypatch.setattr(Answering, "_combined", full)
    done = predict(shared, new, "--out", tmp_path / "out")
    assert done.code == 1
    assert "case b: its answer does not fit into memory; crop the scan, or close other programs." in done.out
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]


NAMES = ["a.img", "b.hdr.x", "c.nia", "d.nii", "e,f", "g[1]", "h{2}", "i j", "=cmd|x", "-k", "ü名", "l%d", "x" * 240]


def test_every_name_of_a_scan_is_carried_to_its_answer(shared, scan, tmp_path):
    new, out = tmp_path / "new", tmp_path / "out"
    new.mkdir()
    for name in NAMES:
        shutil.copy(scan, new / f"{name}.nii.gz")
    done = predict(shared, new, "--out", out)
    assert done.code == 0, done.out + done.err
    assert {path.name.removesuffix(".nii.gz") for path in out.glob("*.nii.gz")} == set(NAMES)
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(out / "i j.nii.gz"))).any()
    for name in NAMES:
        assert (out / f"{name}.nii.gz").read_bytes() == (out / "i j.nii.gz").read_bytes()
    cells = pd.read_csv(out / "volumes.csv")["case"].tolist()
    assert "'=cmd|x" in cells and "'-k" in cells  # no formula for a spreadsheet


def test_the_file_that_is_named_is_read_and_not_its_neighbour(shared, scan, tmp_path):
    image = sitk.ReadImage(str(scan))
    other = sitk.GetImageFromArray(np.full(image.GetSize()[::-1], 7, np.int16))
    other.CopyInformation(image)
    (tmp_path / "new").mkdir()
    shutil.copy(scan, tmp_path / "new" / "a.nii.gz")
    sitk.WriteImage(other, str(tmp_path / "new" / "a.nii"))
    assert predict(shared, tmp_path / "new" / "a.nii.gz", "--out", tmp_path / "out").code == 0
    assert predict(shared, scan, "--out", tmp_path / "alone").code == 0
    assert (tmp_path / "out" / "a.nii.gz").read_bytes() == (tmp_path / "alone" / "test_1.nii.gz").read_bytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_label_map_has_the_geometry_of_the_scan_in_its_own_numbers(order, shared, scan, tmp_path):
    """Two forms that differ by a small rotation, another unit, big-endian: every viewer lays the label on its scan."""
    data = bytearray(gzip.decompress(scan.read_bytes()))
    struct.pack_into("<2h", data, 252, 2, 3)
    srow = np.array(struct.unpack_from("<12f", data, 280)).reshape(3, 4)
    turn = np.array([[0.995, -0.0998, 0], [0.0998, 0.995, 0], [0, 0, 1]])
    struct.pack_into("<12f", data, 280, *(turn @ srow).ravel())
    if order == ">":
        data[:348] = swapped(bytes(data[:348]))
        voxels = np.frombuffer(bytes(data[352:]), "<f4" if struct.unpack_from(">h", data, 70)[0] == 16 else "<i2")
        data[352:] = voxels.astype(voxels.dtype.newbyteorder(">")).tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(data), 1))
    done = predict(shared, tmp_path / "a.nii.gz", "--out", tmp_path / "out")
    assert done.code == 0, done.out
    written = gzip.decompress((tmp_path / "out" / "a.nii.gz").read_bytes())
    own = swapped(bytes(data[:348])) if order == ">" else bytes(data)
    for offset, length in GEOMETRY:
        assert written[offset : offset + length] == own[offset : offset + length]


def swapped(header: bytes) -> bytes:
    """A NIfTI-1 header in the other byte order."""
    result = bytearray(header)
    for offset, count, size in (
        (0, 1, 4), (32, 1, 4), (36, 1, 2), (40, 8, 2), (56, 3, 4), (68, 4, 2), (76, 8, 4), (108, 3, 4), (120, 1, 2),
        (124, 4, 4), (140, 2, 4), (252, 2, 2), (256, 18, 4),
    ):  # fmt: skip
        for place in range(offset, offset + count * size, size):
            result[place : place + size] = header[place : place + size][::-1]
    return bytes(result)


def test_what_is_left_out_of_a_folder_is_named(shared, scan, tmp_path):
    new = tmp_path / "new"
    (new / "p02.nii").mkdir(parents=True)
    (new / "notes.txt").write_text("x")
    shutil.copy(scan, new / "a.NII.GZ")
    done = predict(shared, new, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "left out of new, because they are no scans: notes.txt, p02.nii (2 in all)" in done.out
    assert (tmp_path / "out" / "a.nii.gz").exists()


def test_a_name_that_is_not_text_costs_one_line(shared, scan, tmp_path):
    (tmp_path / "new").mkdir()
    shutil.copy(scan, os.fsencode(tmp_path / "new") + b"/\xff\xfe.nii.gz")
    done = predict(shared, tmp_path / "new", "--out", tmp_path / "out")
    assert done.code == 1 and done.err.endswith("rename it.\n")

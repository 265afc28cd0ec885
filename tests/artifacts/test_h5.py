"""HDF5 files of strangers: nothing but what lrls writes is read from them."""

import errno
import io
import os

import h5py
import numpy as np
import pytest

from stages.artifacts import h5
from stages.artifacts.files import is_disk_full
from stages.artifacts.h5 import DamagedH5, dataset, open_h5


def external_storage(file, secret):
    file.create_dataset("images/a", (64,), "u1", external=[(str(secret), 0, 64)])


def external_link(file, secret):
    file["images/a"] = h5py.ExternalLink(str(secret), "/x")


def soft_link(file, _):
    file["x"] = np.arange(4)
    file["images/a"] = h5py.SoftLink("/x")


def virtual(file, secret):
    layout = h5py.VirtualLayout((4,), "f2")
    layout[:] = h5py.VirtualSource(str(secret), "x", (4,))
    file.create_virtual_dataset("images/a", layout)


def claims_more_than_it_holds(file, _):
    file.create_dataset("images/a", (2**20, 2**20, 2**10), "f2", chunks=(1, 1, 2**10))


def bomb(file, _):
    file.create_dataset("images/a", data=np.zeros(10_000_000, np.uint8), compression="gzip", chunks=(10_000_000,))


def objects(file, _):
    file.create_dataset("images/a", (2,), h5py.ref_dtype)


def a_type_alone(file, _):
    file["images/a"] = np.dtype("f4")


def a_circle(file, _):
    file["images/a"] = file["/"]


def deep(file, _):
    file.create_group("/".join("abcdefgh"))


@pytest.mark.parametrize(
    "write",
    [external_storage, external_link, soft_link, virtual, claims_more_than_it_holds, bomb, objects, a_type_alone,
     a_circle, deep],
)  # fmt: skip
def test_what_lrls_does_not_write_is_refused_before_it_is_read(write, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"a patient's name" * 4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("images")
        write(file, secret)
    with pytest.raises(DamagedH5):
        open_h5(tmp_path / "a.h5")


def test_a_file_that_was_open_before_is_looked_at_again_when_it_changes(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(4)
    os.utime(path, (1e9, 1e9))
    open_h5(path).close()
    with h5py.File(path, "r+") as file:
        file["y"] = h5py.SoftLink("/x")
    with pytest.raises(DamagedH5, match="link"):
        open_h5(path)


@pytest.mark.parametrize("place", range(0, 2000, 97))
def test_cut_files_are_refused(place, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images/a"] = np.arange(100)
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(whole[: len(whole) * place // 2000])
    with pytest.raises(DamagedH5):
        open_h5(tmp_path / "a.h5")


def test_pipes_and_missing_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    for name in ("pipe.h5", "none.h5"):
        with pytest.raises(DamagedH5, match="missing"):
            open_h5(tmp_path / name)


def test_a_dataset_must_have_the_type_and_shape_that_are_asked_for(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images/a"] = np.zeros((2, 3), np.float16)
    with open_h5(tmp_path / "a.h5") as file:
        assert dataset(file, "images/a", "f", (2, None)).shape == (2, 3)
        for name, kinds, shape in (
            ("images/a", "u", (2, 3)),
            ("images/a", "f", (3, 2)),
            ("images/a", "f", (2,)),
            ("images", "f", (2, 3)),
            ("images/b", "f", (2, 3)),
        ):
            with pytest.raises(DamagedH5):
                dataset(file, name, kinds, shape)


@pytest.mark.parametrize("fails_at", [1, 2, 3, 5, 8, 1000])
@pytest.mark.parametrize("lasting", [True, False])
def test_a_write_that_is_refused_is_an_error_and_not_the_end_of_the_process(fails_at, lasting, tmp_path, monkeypatch):
    """HDF5 writes the last pieces when it closes a file, and crashes where it cannot."""
    calls, real = [], io.FileIO.write

    def refused(self, data):
        calls.append(1)
        if len(calls) == fails_at or (lasting and len(calls) > fails_at):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(h5._Spared, "_write_all", lambda self, left: refused(self, left))
        try:
            with h5.new_h5(tmp_path / "a.h5") as file:
                for name in "abc":
                    file[f"x/{name}"] = np.arange(1000.0)
            told = None
        except (OSError, RuntimeError) as error:
            told = error
    assert is_disk_full(told) == (len(calls) >= fails_at)
    with h5.new_h5(tmp_path / "a.h5") as file:
        file["x/a"] = np.arange(1000.0)
    with h5.open_h5(tmp_path / "a.h5") as file:
        assert np.array_equal(file["x/a"][()], np.arange(1000.0))


def test_a_heap_of_texts_that_claims_all_memory_is_refused(tmp_path):
    path = tmp_path / "generated.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("scan", data=["x", "y"], dtype=h5py.string_dtype())
        at = file["scan"].id.get_offset()
    data = path.read_bytes()
    open_h5(path).close()
    for place, size in ((data.index(b"GCOL") + 8, 8), (at + 16, 4)):  # of the heap, of a text
        path.write_bytes(data[:place] + (2**30).to_bytes(size, "little") + data[place + size :])
        with pytest.raises(DamagedH5, match="claims more texts than it holds"):
            open_h5(path)


def test_numbers_of_another_order_of_bytes_are_not_what_lrls_writes(tmp_path):
    path = tmp_path / "cohort.h5"
    with h5py.File(path, "w") as file:
        file["image"] = np.zeros(4, ">f2")
    with open_h5(path) as file, pytest.raises(DamagedH5, match="does not hold what it should"):
        dataset(file, "image", "f", (4,))

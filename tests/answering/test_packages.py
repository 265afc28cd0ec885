"""Zips and folders from strangers: nothing is followed, and sizes are counted, not believed."""

import os
import struct
import zipfile
import zlib

import pytest

from stages.answering.packages import IMAGES, MODEL, NAMES, WEIGHTS, opened, strange_in, write_package
from stages.errors import LrlsError

CONTENTS = {MODEL: b"{}", WEIGHTS: b"w" * 100, IMAGES: b"i" * 100}


def read_all(path, most=10**9):
    with opened(path) as read:
        return {name: read(name, most) for name in NAMES}


@pytest.mark.parametrize("as_zip", [True, False])
def test_what_was_written_is_read(as_zip, tmp_path):
    write_package(tmp_path / "m", CONTENTS, as_zip=as_zip)
    assert read_all(tmp_path / "m") == CONTENTS
    assert strange_in(tmp_path / "m") is None


def test_a_list_of_files_that_lies_does_not_let_a_bomb_through(tmp_path):
    """300 MB of zeros in 0.3 MB, said to be packed into 150 MB."""
    write_package(tmp_path / "m.zip", CONTENTS, as_zip=True)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(10_000_000)) for _ in range(30)) + packer.flush()
    name = WEIGHTS.encode()
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, 0, 150_000_000, 300_000_000, len(name), 0) + name
    listed = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 33, 0, 150_000_000, 300_000_000, len(name), 0, 0, 0, 0, 0, 0
    )
    at = len(local) + len(packed)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(listed) + len(name), at, 0)
    (tmp_path / "bomb.zip").write_bytes(local + packed + listed + name + end)
    with (
        pytest.raises(LrlsError, match=f"{WEIGHTS} is larger than it should be"),
        opened(tmp_path / "bomb.zip") as read,
    ):
        read(WEIGHTS, 4 * 2**30)


def test_a_stated_size_is_the_most_that_is_read(tmp_path):
    for as_zip in (True, False):
        write_package(tmp_path / f"{as_zip}", CONTENTS, as_zip=as_zip)
        with opened(tmp_path / f"{as_zip}") as read, pytest.raises(LrlsError, match="larger than it should be"):
            read(WEIGHTS, 99)


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_ways_of_packing_are_refused(kind, tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w", kind) as file:
        for name, data in CONTENTS.items():
            file.writestr(name, data)
    with pytest.raises(LrlsError, match="is damaged; copy or export it again"):
        read_all(tmp_path / "m.zip")


def test_a_long_list_of_files_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as file:
        for k in range(3000):
            file.writestr(f"{k}", b"")
    with pytest.raises(LrlsError, match="not a readable zip"):
        read_all(tmp_path / "m.zip")


@pytest.mark.parametrize("place", range(0, 500, 7))
def test_no_byte_of_a_zip_ends_in_anything_but_a_line(place, tmp_path):
    write_package(tmp_path / "m.zip", CONTENTS, as_zip=True)
    data = bytearray((tmp_path / "m.zip").read_bytes())
    for change in (0xFF, 0x01, 0x80):
        changed = data.copy()
        changed[-1 - place % len(data)] ^= change
        (tmp_path / "m.zip").write_bytes(changed)
        try:
            read_all(tmp_path / "m.zip")
        except LrlsError as error:
            assert str(error).isprintable()


def link(file):
    file.symlink_to("/etc/passwd")


def endless_link(file):
    file.symlink_to("/dev/zero")


def folder(file):
    file.mkdir()


@pytest.mark.parametrize("put", [link, endless_link, os.mkfifo, folder, lambda _: None])
def test_a_folder_holds_files_and_nothing_else(put, tmp_path):
    write_package(tmp_path / "m", CONTENTS, as_zip=False)
    (tmp_path / "m" / WEIGHTS).unlink()
    put(tmp_path / "m" / WEIGHTS)
    with pytest.raises(LrlsError, match=f"{WEIGHTS} is a link|holds no readable {WEIGHTS}"):
        read_all(tmp_path / "m")


def test_a_pipe_and_a_device_are_no_models_and_nobody_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "zero.zip").symlink_to("/dev/zero")
    for name in ("pipe.zip", "zero.zip", "none.zip"):
        with pytest.raises(LrlsError, match="no such model"):
            read_all(tmp_path / name)


def test_names_of_strangers_reach_no_terminal(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as file:
        file.writestr("\x1b[2J" + "x" * 30_000, b"")
    with pytest.raises(LrlsError, match="which no exported model has") as told:
        read_all(tmp_path / "m.zip")
    assert str(told.value).isprintable() and len(str(told.value)) < 400


def test_what_is_no_model_is_strange(tmp_path):
    (tmp_path / "scans.zip").write_bytes(b"PK")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert [strange_in(tmp_path / name) for name in ("scans.zip", "mine", "link")] == [
        "is no exported model", "holds thesis.txt, which no exported model has", "is a link",
    ]  # fmt: skip

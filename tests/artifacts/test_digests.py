from pathlib import Path

import h5py
import numpy as np
import pytest

from stages.artifacts.digests import file_digest


def write_h5(path: Path, *, reverse: bool = False, **changes) -> str:
    values = {
        "paths/u": np.arange(24, dtype=np.float16).reshape(4, 3, 2),
        "paths/names": ["ct_01", "ct_02"],
        "table": np.array([(1, 0.5)], dtype=np.dtype([("seed", "u1"), ("alpha", "f8")], align=True)),
        "scalar": 3.0,
        "empty": np.zeros((0, 3)),
    } | changes
    attribute = values.pop("attribute", "voxels")
    with h5py.File(path, "w", libver="latest" if reverse else None, track_order=reverse) as file:
        for name in sorted(values, reverse=reverse):
            chunked = {"chunks": (1, 3, 1), "compression": "gzip"} if reverse and name == "paths/u" else {}
            file.create_dataset(name, data=values[name], **chunked)
        file["paths"].attrs["unit"] = attribute
    return file_digest(path)


def test_h5_digest_does_not_depend_on_order_chunks_or_compression(tmp_path, monkeypatch):
    plain = write_h5(tmp_path / "a.h5")
    assert write_h5(tmp_path / "b.h5", reverse=True) == plain
    assert (tmp_path / "a.h5").read_bytes() != (tmp_path / "b.h5").read_bytes()
    monkeypatch.setattr("stages.artifacts.digests._SLAB_BYTES", 1)  # row by row
    assert file_digest(tmp_path / "a.h5") == file_digest(tmp_path / "b.h5") == plain


@pytest.mark.parametrize(
    "change",
    [
        {"paths/u": np.arange(1, 25, dtype=np.float16).reshape(4, 3, 2)},
        {"paths/u": np.arange(24, dtype=np.float16).reshape(4, 2, 3)},
        {"paths/u": np.arange(24, dtype=np.float32).reshape(4, 3, 2)},
        {"paths/names": ["ct_01", "ct_03"]},
        {"paths/names": ["ct_01c", "t_02"]},
        {"table": np.array([(1, 0.25)], dtype=np.dtype([("seed", "u1"), ("alpha", "f8")], align=True))},
        {"scalar": 4.0},
        {"scalar": np.float64(3.0).view(np.int64)},  # the same bytes
        {"empty": np.zeros((0, 4))},
        {"attribute": "mm"},
        {"more": 1},
    ],
)
def test_h5_digest_changes_with_the_content(tmp_path, change):
    assert write_h5(tmp_path / "a.h5", **change) != write_h5(tmp_path / "b.h5")


def test_h5_digest_leaves_out_the_padding_of_tables(tmp_path):
    padded = np.dtype([("seed", "u1"), ("alpha", "f8")], align=True)
    digests = set()
    for padding in (b"\0", b"\1"):
        row = np.frombuffer(b"\7" + 7 * padding + np.float64(0.5).tobytes(), dtype=padded)
        digests.add(write_h5(tmp_path / "a.h5", table=row))
    assert len(digests) == 1

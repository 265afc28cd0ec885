"""Files that a stopped run resumes from: whole, or made again with a line that says so."""

import io

import numpy as np
import pytest

from stages.artifacts.checked import (
    is_sound,
    publish_checked,
    read_checked,
    read_record,
    write_checked,
    write_record,
)


@pytest.mark.parametrize("content", [b"", b"x", bytes(3_000_000)])
def test_content_comes_back_as_it_was(content, tmp_path):
    write_checked(tmp_path / "a", content)
    assert read_checked(tmp_path / "a") == content
    assert is_sound(tmp_path / "a", "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_any_damage_is_noticed_and_told_once(tmp_path, capsys):
    write_record(tmp_path / "a", {"dsc": 0.5})
    whole = (tmp_path / "a").read_bytes()
    assert read_record(tmp_path / "a", "case x") == {"dsc": 0.5}
    for at in range(len(whole)):
        for damaged in (whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :], whole[:at]):
            (tmp_path / "a").write_bytes(damaged)
            assert read_record(tmp_path / "a", "case x") is None
            assert not is_sound(tmp_path / "a", "case x")
    assert capsys.readouterr().err == 4 * len(whole) * (
        "case x: what a stopped run left is damaged; it is made again.\n"
    )
    (tmp_path / "a").write_text('{"dsc": 0.5}')  # without a digest
    assert read_record(tmp_path / "a", "case x") is None


def test_what_is_missing_is_not_called_damaged(tmp_path, capsys):
    assert read_record(tmp_path / "a", "case x") is None
    assert read_checked(tmp_path / "a") is None
    assert not is_sound(tmp_path / "a", "case x")
    assert not is_sound(tmp_path, "case x")
    assert capsys.readouterr().err == ""


def test_arrays_are_read_with_the_digest_behind_them(tmp_path):
    arrays = {"image": np.arange(1000, dtype=np.float16).reshape(10, 10, 10)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_checked(tmp_path / "a.npz", buffer.getbuffer())
    np.savez(tmp_path / "draft.npz", **arrays)
    publish_checked(tmp_path / "draft.npz", tmp_path / "b.npz")
    for name in ("a.npz", "b.npz"):
        assert is_sound(tmp_path / name, name)
        with np.load(tmp_path / name) as file:
            np.testing.assert_array_equal(file["image"], arrays["image"])

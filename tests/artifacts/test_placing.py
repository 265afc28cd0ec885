"""Results outside of the workspace: complete or absent, and nothing of anybody else is lost."""

import errno
import os

import pytest

from stages.artifacts.placing import check_place, placed
from stages.errors import LrlsError


def nothing_strange(_):
    return None


def test_a_file_and_a_folder_appear_whole_and_nothing_else_is_left(tmp_path):
    with placed(tmp_path / "new" / "deep" / "a", force=False, strange=nothing_strange) as draft:
        draft.mkdir()
        (draft / "x").write_text("1", encoding="utf-8")
        assert not (tmp_path / "new" / "deep" / "a").exists()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "new", "new/deep", "new/deep/a", "new/deep/a/x",
    ]  # fmt: skip


@pytest.mark.parametrize("before", ["file", "folder", "nothing"])
@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), OSError(errno.ENOSPC, "full"), ValueError]
)
def test_a_write_that_fails_leaves_what_was_there(before, error, tmp_path):
    out = tmp_path / "there" / "a"
    if before != "nothing":
        out.parent.mkdir()
        out.mkdir() if before == "folder" else out.write_text("old", encoding="utf-8")
    kept = sorted(tmp_path.rglob("*"))
    with pytest.raises((LrlsError, ValueError)) as caught, placed(out, force=True, strange=nothing_strange) as draft:
        draft.write_text("half", encoding="utf-8")
        raise error
    assert sorted(tmp_path.rglob("*")) == kept
    if isinstance(caught.value, LrlsError):
        assert "\n" not in str(caught.value) and ".tmp" not in str(caught.value)
        assert ("no room on the disk" if error.errno == errno.ENOSPC else "cannot be written") in str(caught.value)


@pytest.mark.parametrize("before", ["old", None])
def test_what_is_not_on_the_disk_is_not_there(before, tmp_path, monkeypatch):
    out = tmp_path / "a"
    if before:
        out.write_text(before, encoding="utf-8")

    def of_parent(path):
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("stages.artifacts.placing.fsync", of_parent)
    with pytest.raises(LrlsError, match="cannot be written"), placed(out, force=True, strange=nothing_strange) as draft:
        draft.write_text("new", encoding="utf-8")
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == (
        {"a": "old"} if before else {}
    )


@pytest.mark.parametrize("old", ["file", "folder"])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_a_file_and_a_folder_replace_one_another(old, new, tmp_path):
    out = tmp_path / "a"
    for kind in (old, new):
        with placed(out, force=True, strange=nothing_strange) as draft:
            if kind == "folder":
                draft.mkdir()
                (draft / "x").write_text(kind, encoding="utf-8")
            else:
                draft.write_text(kind, encoding="utf-8")
    assert out.is_dir() == (new == "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_what_is_strange_appears_in_the_meantime_or_is_there_unasked_is_kept(tmp_path):
    (tmp_path / "a").write_text("thesis", encoding="utf-8")
    with pytest.raises(LrlsError, match="a exists already; choose another name, or replace it with --force"):
        check_place(tmp_path / "a", force=False, strange=nothing_strange)
    with pytest.raises(LrlsError, match="a is a thesis; choose another name, or remove it yourself"):
        check_place(tmp_path / "a", force=True, strange=lambda _: "is a thesis")
    with (
        pytest.raises(LrlsError, match="exists already"),
        placed(tmp_path / "b", force=False, strange=nothing_strange) as draft,
    ):
        draft.write_text("new", encoding="utf-8")
        (tmp_path / "b").write_text("other", encoding="utf-8")
    assert (tmp_path / "b").read_text(encoding="utf-8") == "other"


@pytest.mark.parametrize(
    ("name", "inside", "refused"),
    [("data", False, True), ("", False, True), ("data/x", False, False), ("data/x", True, True), ("other", True, False),
     ("other/../data", False, True), ("link", False, True), ("link/x", True, True)],
)  # fmt: skip
def test_folders_in_use_are_neither_replaced_nor_written_into(name, inside, refused, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    out = tmp_path / name
    arguments = {"force": True, "strange": nothing_strange, "kept": [tmp_path / "data"], "inside": inside}
    if refused:
        with pytest.raises(LrlsError, match="which is in use; choose another place"):
            check_place(out, **arguments)
    else:
        check_place(out, **arguments)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with (
        pytest.raises(LrlsError, match=r"--out .*a cannot be written \(Permission denied\)"),
        placed(tmp_path / "a", force=False, strange=nothing_strange) as draft,
    ):
        draft.write_text("x", encoding="utf-8")


def test_a_name_that_is_too_long_and_a_file_as_folder_are_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for out in (tmp_path / ("x" * 300), tmp_path / "file" / "a"):
        with (
            pytest.raises(LrlsError, match=r"--out .* cannot be written"),
            placed(out, force=False, strange=nothing_strange) as draft,
        ):
            draft.write_text("x", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

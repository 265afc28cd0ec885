"""What network file systems do otherwise: answers that are lost, files that stay under another name, missing locks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from filelock import FileLock

from stages.artifacts import files
from stages.artifacts.checked import read_checked, write_checked
from stages.artifacts.files import atomic_write_text, fsync, is_on_network_without_locks, rename
from stages.artifacts.h5 import open_h5
from stages.artifacts.manifest import Identity, peek_manifest, read_manifest
from stages.artifacts.placing import placed
from stages.artifacts.store import Draft, find_finished, new_artifact, verify, versions
from stages.artifacts.weights import Registration
from stages.errors import LrlsError

IDENTITY = Identity("registration", Registration.FORMAT, "train-reg", {"steps": 5}, seed=0, inputs={"cohort": "c0ffee"})


def written(target: Path) -> Path:
    with new_artifact(target, IDENTITY) as draft:
        (draft.folder / "curve.csv").write_text("0.5")
    return draft.result


def renames(monkeypatch: pytest.MonkeyPatch, code: int, *, does: bool) -> list[tuple[Path, Path]]:
    """Every rename says that it failed, whether it is done or not; those that were asked for."""
    asked: list[tuple[Path, Path]] = []

    def failing(real: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def call(old: Path, new: Path) -> None:
            asked.append((Path(old), Path(new)))
            if does:
                real(old, new)
            raise OSError(code, os.strerror(code), str(old), None, str(new))

        return call

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    return asked


def fails(code: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE, errno.ETIMEDOUT])
def test_a_rename_that_was_done_although_its_answer_was_lost_is_done(code, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        asked = renames(patch, code, does=True)
        folder = written(tmp_path / "t")
        with placed(tmp_path / "out", force=False, strange=lambda _: None) as draft:
            draft.mkdir()
            (draft / "a").write_text("a")
        atomic_write_text(tmp_path / "text", "whole")
    assert len(asked) >= 4
    assert all(old.parent == new.parent for old, new in asked)  # one folder, so one disk
    assert (folder.name, (tmp_path / "out" / "a").read_text(), (tmp_path / "text").read_text()) == (
        "v0001",
        "a",
        "whole",
    )
    verify(folder)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE, errno.EXDEV])
def test_a_rename_that_was_not_done_is_an_error_and_the_next_command_goes_on(code, tmp_path, monkeypatch):
    (tmp_path / "old").write_text("old")
    (tmp_path / "new").write_text("another")
    target = tmp_path / "t"
    with monkeypatch.context() as patch:
        renames(patch, code, does=False)
        for act in (lambda: rename(tmp_path / "old", tmp_path / "new"), lambda: written(target)):
            with pytest.raises(OSError, match=os.strerror(code)) as error:
                act()
            assert error.value.errno == code
        with (
            pytest.raises(LrlsError, match=r"--out .*out cannot be written"),
            placed(tmp_path / "out", force=False, strange=lambda _: None) as draft,
        ):
            draft.write_text("a")
    assert (tmp_path / "new").read_text() == "another" and versions(target) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "t"]
    assert written(target).name == "v0001"


def test_a_file_that_was_deleted_while_it_was_open_is_no_part_of_an_artifact(tmp_path):
    with new_artifact(tmp_path, IDENTITY) as draft:
        (draft.folder / "curve.csv").write_text("0.5")
        (draft.folder / ".nfs00000000012c4f5e00000003").write_text("still open")
    (draft.result / ".nfs00000000012c4f5e00000003").unlink()  # now closed
    assert list(read_manifest(draft.result).files) == ["curve.csv"]
    verify(draft.result)


def test_a_folder_that_cannot_be_emptied_hinders_nothing(tmp_path, monkeypatch):
    """On NFS, training state that is still open leaves its folder behind."""
    real = os.rmdir
    monkeypatch.setattr(os, "rmdir", lambda *given, **more: fails(errno.ENOTEMPTY)() if given else real(*given, **more))
    folder = written(tmp_path)
    assert find_finished(tmp_path, IDENTITY) == folder
    verify(folder)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_folders_that_cannot_be_flushed_are_left_to_the_system_but_files_are_not(code, tmp_path, monkeypatch):
    (tmp_path / "a").write_text("a")
    monkeypatch.setattr(os, "fsync", fails(code))
    fsync(tmp_path)
    with pytest.raises(OSError, match=os.strerror(code)):
        fsync(tmp_path / "a")


def test_a_server_that_is_away_makes_nothing_look_damaged(tmp_path, monkeypatch):
    folder, state = written(tmp_path / "t"), tmp_path / "state"
    write_checked(state, b"hours of work")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = 1
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fails(errno.ESTALE))
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):  # not None: training would start over
            read_checked(state)
    for code in (errno.ESTALE, errno.ETIMEDOUT):
        for place, act in {
            "manifest": lambda: peek_manifest(folder),
            "intact": lambda: verify(folder),
            "h5": lambda: open_h5(tmp_path / "a.h5"),
        }.items():
            with monkeypatch.context() as patch:
                patch.setattr(f"stages.artifacts.{place}.open_regular", fails(code))
                with pytest.raises(LrlsError, match=rf"{os.strerror(code)}\); run the same command again\.$"):
                    act()
    assert read_checked(state) == b"hours of work"


def test_hdf5_files_are_read_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = [1.0, 2.0]
    real, refused = h5py.File, []

    def opened(path: Path, mode: str, **given: object) -> h5py.File:
        if given.get("locking") is not False:
            refused.append(path)
            raise OSError(errno.ENOLCK, "Unable to open file (unable to lock file, errno = 37)")
        return real(path, mode, **given)

    monkeypatch.setattr(h5py, "File", opened)
    with open_h5(tmp_path / "a.h5") as file:
        assert file["a"][()].tolist() == [1.0, 2.0]
    assert refused


def test_a_lock_that_the_file_system_cannot_give_is_told_in_one_line(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    with pytest.raises(
        LrlsError, match=rf"cannot be written to \({os.strerror(errno.ENOLCK)}\); set another workspace"
    ):
        written(tmp_path / "t")


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_without_locks_of_the_system_a_file_holds_the_place(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOSYS))
    with new_artifact(tmp_path, IDENTITY):
        with pytest.raises(LrlsError, match="another lrls process is writing in"):
            written(tmp_path)
        with FileLock(tmp_path / "another"):
            pass
    assert len(versions(tmp_path)) == 1
    assert written(tmp_path).name == "v0002"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("rw,vers=3,nolock,addr=10.0.0.1", True),
        ("rw,vers=3,local_lock=all", True),
        ("rw,vers=4.2,local_lock=none", False),
        ("rw,localflock", True),
    ],
)
def test_mounts_whose_locks_hold_on_one_machine_only_are_known(options, found, tmp_path, monkeypatch):
    place = tmp_path / "a b"
    place.mkdir()
    mounts = f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path}/a\\040b nfs {options} 0 0\n"
    real = Path.read_text
    monkeypatch.setattr(
        files.Path,
        "read_text",
        lambda path, **given: mounts if str(path) == "/proc/self/mounts" else real(path, **given),
    )
    assert is_on_network_without_locks(place / "runs" / "not there yet") == found
    assert not is_on_network_without_locks(tmp_path / "beside")


def test_state_of_training_is_kept_where_folders_cannot_be_flushed(tmp_path, monkeypatch):
    real = os.fsync

    def only_files(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    draft = Draft(tmp_path / "draft")
    draft.save_elapsed()
    verify(written(tmp_path / "t"))

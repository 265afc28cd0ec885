"""Commands of any kind end in one line: odd arguments, places that cannot be written or read, signals, odd output."""

from __future__ import annotations

import errno
import io
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
from conftest import Done

from lrls_cli.ending import refused
from lrls_cli.main import app, main
from stages.data.phantoms import write_phantoms
from stages.errors import UNPRINTABLE

COMMANDS = sorted(command.name or command.callback.__name__ for command in app.registered_commands)
ODD = [
    "", " ", "-", "--", "0", "-1", "10" * 30, "1e9", "nan", "inf", "肝臓", "\x1b[31m", "a\nb", "\x00", "\udce9", "..",
    "~", "x" * 300, "x" * 5000, "[", "{a: b", "%n", "=1", "x=", "a.b.c=1", "*", "brsb", "/dev/null", "/proc/self/mem",
]  # fmt: skip
OPTIONS = [
    "--set",
    "--method",
    "--round",
    "--seed",
    "--budget",
    "--until",
    "--part",
    "--top",
    "--couples",
    "--out",
    "--to",
]
OPTIONS += ["--scans", "--output", "--force", "--network-only", "--probabilities", "--help", "--unknown"]
BUDGETS = ["0s", "-1m", "1e99h", "nanm", "9" * 400 + "h", "9" * 30 + "steps", "0steps", "1h" * 50, "10", "١0m", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small cohort in the working folder; nothing in it is prepared yet."""
    folder = tmp_path_factory.mktemp("commands") / "project"
    write_phantoms(folder, scans=4)
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)


def lrls(*arguments: str) -> Done:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", ["lrls", *arguments]):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def line_of(done: Done) -> str:
    assert done.code == 1, done
    (line,) = done.err.splitlines()
    assert line.startswith("lrls: ")
    return line.removeprefix("lrls: ")


def odd_arguments() -> Iterator[tuple[str, ...]]:
    """Lists of arguments that must be refused, or do nothing but say something."""
    draw = random.Random(0)
    yield from itertools.product([*COMMANDS, "unknown", *ODD[:12]])
    for command in COMMANDS:
        first = ["init"] if command == "init" else [command, "lrls.yaml"]
        for odd in draw.sample(ODD, 6):
            yield (command, odd)
            yield (*first, draw.choice(OPTIONS), odd)
        for option in draw.sample(OPTIONS, 4):
            yield (*first, option)
    for text in ODD:
        yield ("history", "lrls.yaml", "--set", text)
        yield ("train-reg", "lrls.yaml", "--method", text)
        yield ("eval", "lrls.yaml", "--method", "unet", "--round", text)
        yield ("compare", "lrls.yaml", "--method", f"unet {text}", "--seed", "1")
    for text in BUDGETS:
        yield ("run", "lrls.yaml", "--method", "unet", "--budget", text, "--set", "device=cuda")


def test_odd_arguments_trace_back_nowhere(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    # Whatever passes for sound must not start hours of work here.
    for stage in ("stages.workflow.preprocess", "stages.preprocess.preprocess", "stages.suggest_atlas.suggest_atlas"):
        monkeypatch.setattr(stage, lambda *_, **__: sys.exit(0))
    monkeypatch.setattr("stages.data.phantoms.write_phantoms", lambda *_, **__: folder / "lrls.yaml")
    tries = [arguments for arguments in odd_arguments() if arguments != ("methods",)]
    for arguments in tries:
        done = lrls(*arguments)
        assert done.code in (0, 1, 2), (arguments, done)
        assert "Traceback" not in done.err
        if done.code == 1:
            lines = done.err.splitlines()
            assert len([line for line in lines if line.startswith("lrls: ")]) <= 1, (arguments, done)
            assert not any(UNPRINTABLE.search(line) for line in lines), (arguments, done)
    assert len(tries) > 300


@pytest.mark.parametrize("text", BUDGETS)
def test_a_budget_that_is_none_is_refused(text):
    line = line_of(lrls("run", "lrls.yaml", "--method", "unet", "--budget", text))
    assert line.startswith("--budget")


# Places that cannot be written


@pytest.mark.parametrize("command", [("init", ".", "--output"), ("phantom",), ("preprocess", "lrls.yaml", "--set")])
@pytest.mark.parametrize("place", ["/proc/nowhere/x.yaml", "/dev/null/x.yaml", "x" * 300, "file/x.yaml", "link/x.yaml"])
def test_a_place_that_cannot_be_written_is_named(command, place, folder):
    (folder / "file").touch()
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to(folder / "gone" / "nowhere")
    if command[0] == "preprocess" and place.startswith("link"):
        return  # a link that leads nowhere yet may name a workspace
    line = line_of(lrls(*command, f"workspace={place}" if command[-1] == "--set" else place))
    assert place.split("/")[0 if not place.startswith("/") else 1][:50] in line


@pytest.mark.parametrize("place", [".", "/dev/full", "images"])
def test_init_replaces_no_folder_and_no_device(place):
    assert "is no file; name one to write" in line_of(lrls("init", ".", "--output", place, "--force"))


@pytest.mark.parametrize("command", [("init", ".", "--output", "new.yaml"), ("phantom", "new", "--scans", "4")])
def test_a_full_disk_is_told_with_the_name_of_what_does_not_fit(command, monkeypatch, folder):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync" if command[0] == "phantom" else "os.replace", full)
    line = line_of(lrls(*command))
    assert line.startswith("no room on the disk for new/" if command[0] == "phantom" else "--output new.yaml: no room")
    assert not [path for path in folder.rglob(".*") if path.is_file()]
    shutil.rmtree(folder / "new", ignore_errors=True)


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.EIO]
)
def test_what_the_system_refuses_is_named_as_users_know_it(number, tmp_path):
    line = refused(OSError(number, os.strerror(number), str(tmp_path / "runs" / ".draft-0123" / "resume" / "x.pt")))
    assert line.startswith(f"{tmp_path / 'runs'}: ")
    assert line.endswith(".")
    assert "draft" not in line


# Places that cannot be read


@pytest.fixture
def locked(monkeypatch) -> Callable[[Path], None]:
    """Makes a folder unreadable, to the superuser, too, whom permissions do not stop."""
    real = os.scandir, os.listdir

    def lock(folder: Path) -> None:
        def check(path: object = ".") -> None:
            if not isinstance(path, int) and os.path.realpath(os.fspath(path)) == os.path.realpath(folder):  # type: ignore[call-overload]
                raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", lambda path=".": (check(path), real[0](path))[1])
        monkeypatch.setattr(os, "listdir", lambda path=".": (check(path), real[1](path))[1])

    return lock


def test_a_folder_of_images_without_permission_is_named(folder, locked):
    locked(folder / "images")
    line = line_of(lrls("init", ".", "--output", "other.yaml"))
    assert line == "images: permission denied; change its permissions, or name another place."
    done = lrls("check", "lrls.yaml")
    assert done.code == 1
    assert "images cannot be read (Permission denied); change its permissions" in done.out + done.err
    line = line_of(lrls("run", "lrls.yaml", "--method", "unet"))
    assert "images cannot be read (Permission denied); change its permissions, or name another folder." in line


def test_history_says_what_it_cannot_read(folder, tmp_path, locked):
    (tmp_path / "runs" / "brbs").mkdir(parents=True)
    locked(tmp_path / "runs" / "brbs")
    done = lrls("history", "lrls.yaml", "--set", f"workspace={tmp_path / 'runs'}")
    assert "brbs cannot be read (Permission denied); correct its permissions." in done.out
    assert "nothing in" not in done.out


def test_an_id_with_its_ending_is_answered_with_the_id(folder):
    done = lrls("check", "lrls.yaml", "--set", "data.test=[phantom_04.nii.gz]")
    assert "leave the ending out: the case id is phantom_04." in done.out


# Output


def test_a_closed_pipe_and_a_full_disk_behind_the_output_are_no_traceback(folder):
    command = [sys.executable, "-m", "lrls_cli.main", "methods"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("lrls: no room on the disk")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, encoding="utf-8", check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_without_the_letters_gets_their_codes(folder):
    command = [sys.executable, "-m", "lrls_cli.main", "history", "lrls.yaml", "--set", "workspace=肝臓"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0
    assert done.stdout.endswith(b"yet; start with `lrls preprocess`.\n")


def test_names_cannot_steer_the_terminal(folder):
    (folder / "images" / "bad\x1b[31m\nname.nii.gz").write_bytes(b"")
    try:
        done = lrls("init", ".", "--output", "odd.yaml")
    finally:
        (folder / "images" / "bad\x1b[31m\nname.nii.gz").unlink()
        (folder / "odd.yaml").unlink(missing_ok=True)
    assert "\x1b" not in done.out + done.err


# Signals


@pytest.mark.parametrize(("number", "code"), [("SIGUSR1", 75), ("SIGHUP", 129)])
def test_a_command_that_is_told_to_stop_ends_with_its_workers_in_one_line(number, code, folder, tmp_path):
    number = getattr(signal, number)
    command = [sys.executable, "-m", "lrls_cli.main", "preprocess", "lrls.yaml", "--set", f"workspace={tmp_path}"]
    process = subprocess.Popen(
        [*command, "--set", "preprocess.workers=2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # these tests may run under nohup
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("needs Linux")
    end = time.monotonic() + 120
    while len(workers := children.read_text(encoding="utf-8").split()) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (code, "lrls: stopped; the same command resumes.\n")
    end = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_command_that_is_told_to_stop_leaves_no_temporary_files(folder, tmp_path):
    """Alignments lie there, and a scheduler tells the workers to stop as well."""
    own = tmp_path / "own"
    own.mkdir()
    arguments = ["preprocess", "lrls.yaml", "--set", f"workspace={tmp_path / 'runs'}"]
    command = [sys.executable, "-m", "lrls_cli.main", *arguments]
    environment = {**os.environ, "TMPDIR": str(own), "PYTHONPATH": str(Path(__file__).parents[1])}
    program = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, start_new_session=True)
    until = time.monotonic() + 120
    while not list(own.glob("lrls-pool-*/*/start.mat")):
        assert time.monotonic() < until and program.poll() is None
        time.sleep(0.05)
    os.killpg(program.pid, signal.SIGTERM)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 75
    assert said.decode().splitlines()[-1] == "lrls: stopped; the same command resumes."
    assert not list(own.iterdir())


@pytest.mark.parametrize("method", ["unet", "affine", "brbs"])
def test_run_without_unlabelled_scans_goes_to_the_scores(project, no_pictures, method):
    done = project.made("run", "--method", method, "--set", "data.unlabeled=[]")
    assert project.versions(f"{method}/scores") == ["v0001"], done.out
    assert not project.versions(f"{method}/registration") and not project.versions(f"{method}/generated")


def test_run_without_unlabelled_scans_is_refused_for_methods_that_learn_from_them(project):
    able = (
        "list some, or choose one of: unet, supervised, rigid, affine, bspline, syn, greedy, mabmis, brbs, os-medseg, "
        "best.\n"
    )
    done = project.lrls("run", "--method", "voxelmorph", "--set", "preprocess.most_unlabeled=0")
    none = "voxelmorph learns from unlabelled scans, and preprocess.most_unlabeled leaves none"
    assert (done.code, done.err) == (1, f"lrls: {none}; {able}")
    done = project.lrls("run", "--method", "jrss", "--set", "data.unlabeled=[]")
    assert done.err == f"lrls: jrss learns from unlabelled scans, and data.unlabeled lists none; {able}"
    assert not project.versions("cohort")

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import aged, resealed
from filelock import FileLock

from stages.artifacts.calibration import Calibrated
from stages.artifacts.cohort import Cohort
from stages.artifacts.files import atomic_write_bytes
from stages.artifacts.found import look_through
from stages.artifacts.generated import Generated
from stages.artifacts.kinds import KINDS
from stages.artifacts.manifest import MANIFEST, Artifact, Identity, peek_manifest, read_manifest
from stages.artifacts.plan import Plan
from stages.artifacts.steps import Steps
from stages.artifacts.store import (
    Draft,
    find_finished,
    history,
    latest,
    listed_versions,
    make,
    new_artifact,
    verify,
    versions,
    with_digest,
)
from stages.artifacts.weights import Registration
from stages.artifacts.weights_file import load_state, save_state
from stages.errors import LrlsError

IDENTITY = Identity("registration", Registration.FORMAT, "train-reg", {"steps": 5}, seed=0, inputs={"cohort": "c0ffee"})


def written(target: Path, identity: Identity = IDENTITY, **files: str) -> Path:
    with new_artifact(target, identity) as draft:
        for name, text in (files or {"curve": "0.5"}).items():
            (draft.folder / f"{name}.csv").write_text(text)
    return draft.result


def drafts(target: Path) -> list[Path]:
    return list(target.glob(".draft-*"))


# Whole or absent


def test_finished_artifact_has_its_files_and_manifest_and_no_draft(tmp_path):
    folder = written(tmp_path / "t", curve="0.5")

    manifest = read_manifest(folder, kind=Registration)

    assert folder == tmp_path / "t" / "v0001"
    assert (folder / "curve.csv").read_text() == "0.5"
    assert manifest.identity == IDENTITY
    assert list(manifest.files) == ["curve.csv"]
    assert manifest.packages["torch"].startswith("2.")
    assert drafts(tmp_path / "t") == []


def test_interrupted_write_leaves_no_artifact(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_artifact(tmp_path, IDENTITY) as draft:
        (draft.folder / "weights.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt
    assert versions(tmp_path) == []
    assert find_finished(tmp_path, IDENTITY) is None
    assert not list(tmp_path.rglob(MANIFEST))


def test_draft_of_a_failed_run_is_what_the_next_one_resumes_from(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_artifact(tmp_path, IDENTITY) as draft:
        save_state({"step": 3}, draft.resume / "state.pt")
        draft._started -= 1000  # seconds
        raise KeyboardInterrupt
    with new_artifact(tmp_path, IDENTITY) as draft:
        assert load_state(draft.resume / "state.pt") == {"step": 3}
    assert not (draft.result / "resume").exists()
    assert 1000 <= read_manifest(draft.result).wall_time_s < 1100


def test_draft_of_another_identity_is_not_resumed_from(tmp_path):
    with pytest.raises(RuntimeError), new_artifact(tmp_path, IDENTITY) as draft:
        (draft.folder / "old.csv").write_text("old")
        raise RuntimeError
    assert list(read_manifest(written(tmp_path, replace(IDENTITY, seed=1), new="1")).files) == ["new.csv"]


def test_crash_between_manifest_and_rename_is_finished_by_the_same_command(tmp_path, monkeypatch):
    expected = read_manifest(written(tmp_path / "undisturbed")).digest
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "crash")))
        with pytest.raises(OSError, match="crash"):
            written(tmp_path / "t")
    assert versions(tmp_path / "t") == []
    assert len(drafts(tmp_path / "t")) == 1

    finished = find_finished(tmp_path / "t", IDENTITY)

    assert finished is not None
    assert finished == tmp_path / "t" / "v0001"
    assert read_manifest(finished).digest == expected
    assert not (finished / "resume").exists()
    verify(finished)


def test_complete_draft_is_published_before_a_forced_new_version_starts(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "crash")))
        with pytest.raises(OSError, match="crash"):
            written(tmp_path, first="1")
    assert written(tmp_path, second="2").name == "v0002"
    assert [list(read_manifest(folder).files) for folder in versions(tmp_path)] == [["first.csv"], ["second.csv"]]


def test_crash_before_the_manifest_keeps_the_training_state(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "stages.artifacts.draft.file_digest", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "crash"))
        )
        with (
            pytest.raises(OSError, match="crash"),
            new_artifact(tmp_path, IDENTITY) as draft,
        ):
            (draft.folder / "curve.csv").write_text("0.5")
            save_state({"step": 5}, draft.resume / "state.pt")
    assert versions(tmp_path) == []
    with new_artifact(tmp_path, IDENTITY) as draft:
        assert load_state(draft.resume / "state.pt") == {"step": 5}


def test_killed_process_leaves_a_draft_that_resumes_and_no_lock(tmp_path):
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from stages.artifacts.manifest import Identity\n"
        "from stages.artifacts.store import new_artifact\n"
        f"identity = {IDENTITY!r}\n"
        f"with new_artifact(Path({str(tmp_path)!r}), identity) as draft:\n"
        "    (draft.folder / 'curve.csv').write_text('0.5')\n"
        "    (draft.folder / '.weights.safetensors.tmp').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert versions(tmp_path) == []

    with new_artifact(tmp_path, IDENTITY) as draft:
        assert (draft.folder / "curve.csv").read_text() == "0.5"
    assert sorted(path.name for path in draft.result.iterdir()) == [MANIFEST, "curve.csv"]


# Versions


def test_versions_are_never_overwritten_and_sort_by_number(tmp_path):
    first = written(tmp_path, curve="1").rename(tmp_path / "v9999")
    (tmp_path / "v10000").mkdir()  # unfinished, but its name is taken

    second = written(tmp_path, curve="2")

    assert second.name == "v10001"
    assert (first / "curve.csv").read_text() == "1"
    assert versions(tmp_path) == [first, second]
    assert latest(tmp_path, kind="registration") == second


def test_same_identity_is_up_to_date_and_any_other_is_not(tmp_path):
    written(tmp_path)
    newest = written(tmp_path)
    written(tmp_path, replace(IDENTITY, seed=7))

    assert find_finished(tmp_path, replace(IDENTITY, config={"steps": 5})) == newest
    for other in (
        {"config": {"steps": 6}},
        {"seed": 1},
        {"round": 1},
        {"made_by": "other"},
        {"inputs": {"cohort": "beef"}},
    ):
        assert find_finished(tmp_path, replace(IDENTITY, **other)) is None
    assert find_finished(tmp_path / "absent", IDENTITY) is None


def test_identity_does_not_depend_on_the_order_of_keys():
    one = replace(IDENTITY, config={"a": 1, "b": (2, 3)})
    assert one.digest == replace(IDENTITY, config={"b": [2, 3], "a": 1}).digest


def test_content_digest_follows_files_and_identity_but_not_time_or_place(tmp_path):
    def digest(name, *args, **files):
        return read_manifest(written(tmp_path / name, *args, **files)).digest

    base = digest("a", curve="1")
    assert digest("b", curve="1") == base
    assert digest("c", curve="2") != base
    assert digest("d", renamed="1") != base
    assert digest("e", replace(IDENTITY, seed=1), curve="1") != base


def test_volatile_files_stay_out_of_the_digest(tmp_path):
    def run(log: str) -> Path:
        with new_artifact(tmp_path, IDENTITY, volatile=("times/*",)) as draft:
            for name in ("log.jsonl", "qc/a.png", "times/total.txt", "scores.csv"):
                (draft.folder / name).parent.mkdir(exist_ok=True)
                (draft.folder / name).write_text("same" if name == "scores.csv" else log)
            (draft.resume / "state").write_text(log)
        return draft.result

    first, second = (read_manifest(run(log)) for log in ("one", "two"))

    assert first.digest == second.digest
    assert list(first.files) == ["scores.csv"]
    assert first.volatile == ("log.jsonl", "qc/a.png", "times/total.txt")


def test_history_lists_every_finished_artifact_so_that_inputs_match_by_digest(tmp_path):
    of_cohort = replace(IDENTITY, kind="cohort", format_version=Cohort.FORMAT, inputs={})
    cohort = written(tmp_path / "cohort", of_cohort)
    digest = read_manifest(cohort).digest
    registration = written(tmp_path / "brbs" / "registration", replace(IDENTITY, inputs={"cohort": digest}))
    with pytest.raises(RuntimeError), new_artifact(tmp_path / "brbs" / "registration", IDENTITY):
        raise RuntimeError

    manifests = dict(history(tmp_path))

    assert set(manifests) == {cohort, registration}
    assert manifests[registration].identity.inputs["cohort"] == manifests[cohort].digest
    assert history(tmp_path / "absent") == []


# Refusals


def test_second_process_is_refused(tmp_path):
    with (
        FileLock(tmp_path / f".lock-{IDENTITY.digest[:16]}"),
        pytest.raises(LrlsError, match="another lrls process is writing in"),
    ):
        written(tmp_path)
    written(tmp_path)


def test_second_writer_is_refused_and_the_first_one_finishes(tmp_path):
    with new_artifact(tmp_path, IDENTITY) as draft:
        with pytest.raises(LrlsError, match=r"wait for it or stop it\.$"):
            written(tmp_path)
        assert find_finished(tmp_path, IDENTITY) is None
    assert versions(tmp_path) == [draft.result]


def test_another_seed_is_made_at_the_same_time(tmp_path):
    with new_artifact(tmp_path, IDENTITY) as draft:
        other = written(tmp_path, replace(IDENTITY, seed=1))
    assert (other.name, draft.result.name) == ("v0001", "v0002")
    assert [read_manifest(folder).identity.seed for folder in versions(tmp_path)] == [1, 0]


def test_a_number_that_was_just_taken_is_not_taken_twice(tmp_path, monkeypatch):
    written(tmp_path)
    listed = Path.iterdir
    with monkeypatch.context() as patch:  # a list of names that is a moment old, as network file systems give
        patch.setattr(Path, "iterdir", lambda folder: [] if folder == tmp_path else listed(folder))
        assert written(tmp_path, replace(IDENTITY, seed=1)).name == "v0002"
    assert [read_manifest(folder).identity.seed for folder in versions(tmp_path)] == [0, 1]


def test_who_waits_for_another_process_finds_what_it_made(tmp_path, monkeypatch):
    monkeypatch.setenv("LRLS_WAIT_S", "60")
    wrote = []

    def finish() -> None:
        with held:
            begun.set()
            while not waiting.is_set():
                time.sleep(0.01)
            written(tmp_path / "elsewhere").rename(tmp_path / "v0001")

    held, begun, waiting = FileLock(tmp_path / f".lock-{IDENTITY.digest[:16]}"), threading.Event(), threading.Event()
    other = threading.Thread(target=finish)
    other.start()
    begun.wait()
    made = make(
        Registration, tmp_path, wrote.append, made_by="train-reg", settings=IDENTITY.config, seed=0,
        inputs={"cohort": "c0ffee"}, ready=waiting.set,
    )  # fmt: skip
    other.join()
    assert (made.folder, wrote) == (tmp_path / "v0001", [])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "in the user's language"),
        OSError(errno.EDQUOT, "in the user's language"),
        OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"),
        RuntimeError("Can't decrement id ref count (unable to extend file properly, errno = 28)"),
    ],
)
def test_full_disk_says_what_to_do_and_keeps_the_draft(tmp_path, error):
    with (
        pytest.raises(LrlsError, match=r"no room on the disk for .*t; free some .* again: it resumes\.$"),
        new_artifact(tmp_path / "t", IDENTITY),
    ):
        raise error
    assert versions(tmp_path / "t") == []
    assert len(drafts(tmp_path / "t")) == 1


def test_full_disk_behind_another_error_is_recognised(tmp_path):
    with pytest.raises(LrlsError, match="no room"), new_artifact(tmp_path, IDENTITY):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("closing failed too")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_really_full_device_is_recognised(tmp_path):
    with pytest.raises(LrlsError, match="no room"), new_artifact(tmp_path, IDENTITY):
        Path("/dev/full").write_bytes(b"x")


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(OSError, match="Input/output"), new_artifact(tmp_path, IDENTITY):
        raise OSError(errno.EIO, "Input/output error")


def test_workspace_that_is_a_file_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(LrlsError, match=r"runs.* cannot be written to .*; set another workspace"):
        written(tmp_path / "runs" / "cohort")


def test_missing_artifact_names_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LrlsError) as caught:
        read_manifest(tmp_path / "runs" / "cohort", kind=Cohort)
    assert str(caught.value) == (
        "runs/cohort holds no finished cohort artifact (artifact.json is missing); make it with `lrls preprocess`."
    )
    with pytest.raises(LrlsError, match="no finished generated artifact; make it with `lrls generate`"):
        latest(tmp_path, kind="generated")


def test_wrong_kind_is_refused(tmp_path):
    folder = written(tmp_path)
    with pytest.raises(LrlsError, match="holds a registration artifact, expected cohort"):
        read_manifest(folder, kind=Cohort)
    with pytest.raises(LrlsError, match="expected cohort"):
        latest(tmp_path, kind="cohort")


def test_newer_format_is_refused_even_if_it_has_unknown_fields(tmp_path):
    folder = written(tmp_path)
    values = json.loads((folder / MANIFEST).read_text())
    values["identity"] |= {"format_version": 99, "unknown": 1}
    (folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(LrlsError, match=r"registration format 99 is newer than this lrls reads \(3\); upgrade lrls"):
        read_manifest(folder)


@pytest.mark.parametrize("unknown", [{}, {"unknown": 1}])
def test_older_format_is_refused_with_the_command_that_makes_it_again(tmp_path, monkeypatch, unknown):
    monkeypatch.chdir(tmp_path)
    folder = aged(written(tmp_path / "runs" / "registration"), **unknown)
    for read in (read_manifest, verify, Registration.open):
        with pytest.raises(LrlsError) as caught:
            read(folder)
        assert str(caught.value) == (
            "runs/registration/v0001: registration format 2 is older than this lrls reads (3); "
            "make it again with `lrls train-reg`."
        )


def test_older_formats_are_listed_but_not_found(tmp_path):
    old = aged(written(tmp_path, curve="0"))
    assert find_finished(tmp_path, IDENTITY) is None
    assert find_finished(tmp_path, read_manifest(written(tmp_path)).identity) == tmp_path / "v0002"
    assert versions(tmp_path) == [old, tmp_path / "v0002"]
    assert [version.folder.name for version in listed_versions(Registration, tmp_path)] == ["v0002"]
    assert latest(tmp_path, kind="registration") == tmp_path / "v0002"
    assert [manifest.identity.outdated for _, manifest in history(tmp_path)] == [True, False]
    digest = peek_manifest(old).digest
    assert [with_digest(tmp_path, each) for each in (digest, read_manifest(tmp_path / "v0002").digest)] == [
        None, tmp_path / "v0002",
    ]  # fmt: skip


def test_a_newer_version_of_an_older_format_does_not_hide_the_newest_readable_one(tmp_path):
    good = written(tmp_path)
    aged(written(tmp_path, curve="1"))
    assert latest(tmp_path, kind="registration") == good
    assert find_finished(tmp_path, IDENTITY) == good


def test_a_run_goes_on_from_its_own_seed_although_another_one_ended_later(tmp_path):
    own, other = (written(tmp_path, replace(IDENTITY, seed=seed)) for seed in (0, 1))
    found = [latest(tmp_path, kind="registration", seed=seed) for seed in (0, 1, 2, None)]
    assert found == [own, other, other, other]


def test_latest_of_older_formats_only_says_so_and_names_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        aged(written(tmp_path / "runs" / "registration", replace(IDENTITY, seed=seed)))
    for round, option in ((0, ""), (2, " --round 2")):
        with pytest.raises(LrlsError) as caught:
            latest(tmp_path / "runs" / "registration", kind="registration", round=round)
        assert str(caught.value) == (
            "runs/registration holds only versions of an older format: registration format 2, this lrls reads 3; "
            f"make it again with `lrls train-reg{option}`."
        )


def test_every_kind_is_listed_once_and_names_its_format_and_command():
    assert set(KINDS.values()) == {*Artifact.__subclasses__(), *Registration.__subclasses__()}
    for name, kind in KINDS.items():
        assert name == kind.KIND
        assert kind.FORMAT >= 1
        assert kind.MADE_WITH.startswith("lrls ")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"identity": 3}', b"\xff\xfe", b'{"identity": {}}'])
def test_unreadable_manifest_is_named(tmp_path, content):
    folder = written(tmp_path)
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(LrlsError, match=r"v0001: artifact\.json is not readable; delete that folder"):
        read_manifest(folder)


def test_manifest_without_its_files_is_unreadable(tmp_path):
    folder = written(tmp_path)
    values = json.loads((folder / MANIFEST).read_text())
    del values["files"], values["seal"]
    (folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(LrlsError, match="not readable"):
        read_manifest(folder)


@pytest.mark.parametrize("place", range(5))
def test_no_byte_of_a_manifest_changes_unnoticed(tmp_path, place):
    folder = written(tmp_path)
    whole, expected = (folder / MANIFEST).read_bytes(), read_manifest(folder)
    unnoticed = 0
    for at in range(place, len(whole), 5):
        (folder / MANIFEST).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            assert read_manifest(folder) == expected  # a blank for another one
            unnoticed += 1
        except LrlsError as error:
            assert "\n" not in str(error) and str(error).isprintable()
    assert unnoticed < len(whole) / 5 / 20
    for cut in (0, 1, len(whole) // 2, len(whole) - 3):
        (folder / MANIFEST).write_bytes(whole[:cut])
        with pytest.raises(LrlsError, match="not readable"):
            read_manifest(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"wall_time_s": "1"}, {"wall_time_s": True}, {"wall_time_s": -1.0}, {"wall_time_s": None},
        {"peak_memory_mb": []}, {"volatile": 3}, {"volatile": [3]}, {"volatile": None}, {"packages": []},
        {"packages": {"torch": 2}}, {"device": "\x1b[31mred"}, {"created": 5}, {"created": "now\nthen"},
        {"files": {"../../secret": "0" * 64}}, {"files": {"/etc/passwd": "0" * 64}}, {"files": {"a": "0"}},
        {"files": {"a": 1}}, {"files": []}, {"files": {"a\0b": "0" * 64}}, {"raw": {"a.h5": 1}}, {"raw": 1},
        {"digest": 7}, {"identity": []}, {"identity": None},
    ],
)  # fmt: skip
def test_a_manifest_with_values_of_wrong_types_is_refused_even_if_its_seal_is_right(tmp_path, changes):
    folder = resealed(written(tmp_path), **changes)
    with pytest.raises(LrlsError, match=r"artifact\.json (is not readable|changed)"):
        read_manifest(folder)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-0.5", "9" * 5000])
def test_a_number_that_is_none_is_refused(tmp_path, number):
    folder = written(tmp_path)
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    wall_time = json.loads(text)["wall_time_s"]
    (folder / MANIFEST).write_text(text.replace(f'"wall_time_s": {wall_time}', f'"wall_time_s": {number}'))
    with pytest.raises(LrlsError, match=r"artifact\.json"):
        read_manifest(folder)


def test_a_manifest_without_a_seal_is_that_of_an_earlier_lrls(tmp_path):
    folder = written(tmp_path)
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del values["seal"], values["raw"]
    (folder / MANIFEST).write_text(json.dumps(values))
    verify(folder)
    values["identity"]["seed"] = 1
    (folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(LrlsError, match=r"artifact\.json changed"):
        read_manifest(folder)


# The preamble of a stage


def write_curve(draft: Draft) -> None:
    (draft.folder / "curve.csv").write_text("0.5")


def never(*_: object) -> None:
    raise AssertionError("called")


def stage(target: Path, write: Callable[[Draft], None] = write_curve, **changes: Any) -> Registration:
    """What a stage "train-reg" makes."""
    told: dict[str, Any] = {"made_by": "train-reg", "settings": {"steps": 5}, "seed": 0, "inputs": {"scan/a": "c0ffee"}}
    return make(Registration, target, write, **told | changes)


@pytest.fixture
def inputs(tmp_path) -> dict[str, Artifact]:
    """Two opened artifacts by role."""
    targets = {"registration": tmp_path / "before", "teacher": tmp_path / "teacher"}
    return {role: Registration.open(written(target)) for role, target in targets.items()}


def test_make_writes_an_artifact_that_says_what_it_was_made_from(tmp_path, inputs):
    def write(draft: Draft) -> None:
        draft.device = "cuda"
        write_curve(draft)

    made = stage(tmp_path / "t", write, round=2, inputs=inputs | {"scan/a": "c0ffee", "generated": None})

    assert isinstance(made, Registration)
    assert made.folder == tmp_path / "t" / "v0001"
    digests = {role: artifact.manifest.digest for role, artifact in inputs.items()}
    assert made.manifest.identity == Identity(
        "registration", Registration.FORMAT, "train-reg", {"steps": 5}, seed=0, round=2,
        inputs=digests | {"scan/a": "c0ffee"},
    )  # fmt: skip
    assert made.manifest.device == "cuda"
    assert read_manifest(stage(tmp_path / "t", seed=1).folder).device == "cpu"


def test_make_opens_what_is_up_to_date_without_writing_anything_or_looking_at_inputs(tmp_path, inputs, monkeypatch):
    first = stage(tmp_path / "t", inputs=inputs)
    monkeypatch.setattr("stages.artifacts.store.verify", never)
    assert stage(tmp_path / "t", never, inputs=inputs, ready=never) == first


def test_make_refuses_what_is_up_to_date_but_was_changed(tmp_path):
    first = stage(tmp_path)
    (first.folder / "curve.csv").write_text("0.6")
    with pytest.raises(LrlsError, match=r"v0001: curve\.csv changed .* `lrls train-reg --force`"):
        stage(tmp_path, never)
    again = stage(tmp_path, force=True)
    assert stage(tmp_path, never) == again
    assert with_digest(tmp_path, first.manifest.digest) == again.folder  # not the damaged one


def test_every_kind_is_verified_when_it_is_opened(tmp_path):
    for name, kind in KINDS.items():
        made = written(tmp_path / name, replace(IDENTITY, kind=name, format_version=kind.FORMAT))
        (made / "curve.csv").write_text("0.6")
        with pytest.raises(LrlsError, match=r"curve\.csv changed"):
            kind.open(made)


@pytest.mark.parametrize("change", [{"seed": 1}, {"round": 1}, {"settings": {}}, {"made_by": "x"}, {"inputs": {}}])
def test_make_makes_a_new_version_of_anything_else(tmp_path, change):
    first = stage(tmp_path)
    assert stage(tmp_path, **change).folder.name == "v0002"
    assert stage(tmp_path, never) == first


def test_make_by_force_makes_a_new_version_and_asks_whether_it_can(tmp_path):
    asked: list[str] = []
    made = [stage(tmp_path, force=True, ready=lambda: asked.append("ready")) for _ in range(2)]
    assert [each.folder.name for each in made] == ["v0001", "v0002"]
    assert asked == ["ready", "ready"]
    assert made[0].manifest.digest == made[1].manifest.digest


def test_make_that_is_not_ready_leaves_no_draft(tmp_path):
    def refuse() -> None:
        raise LrlsError("no room")

    with pytest.raises(LrlsError, match="no room"):
        stage(tmp_path / "t", never, ready=refuse)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("role", ["registration", "teacher"])
@pytest.mark.parametrize("tamper", [lambda file: file.write_text("0.6"), lambda file: file.unlink()])
def test_make_refuses_an_input_that_changed_before_anything_is_written(tmp_path, inputs, role, tamper):
    tamper(inputs[role].folder / "curve.csv")
    with pytest.raises(LrlsError, match=rf"{inputs[role].folder.parent.name}/v0001: curve\.csv (changed|is missing)"):
        stage(tmp_path / "t", never, inputs=inputs)
    assert not (tmp_path / "t").exists()


def test_make_goes_on_with_the_draft_of_a_write_that_failed(tmp_path):
    def fail(draft: Draft) -> None:
        save_state({"step": 3}, draft.resume / "state.pt")
        raise KeyboardInterrupt

    def go_on(draft: Draft) -> None:
        assert load_state(draft.resume / "state.pt") == {"step": 3}
        write_curve(draft)

    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, fail)
    assert versions(tmp_path) == []
    assert len(drafts(tmp_path)) == 1
    assert list(stage(tmp_path, go_on).manifest.files) == ["curve.csv"]


def test_make_does_not_take_an_older_format_for_up_to_date(tmp_path):
    aged(stage(tmp_path).folder)
    assert stage(tmp_path).folder.name == "v0002"


# Verification


def test_verify_names_the_file_that_changed(tmp_path):
    folder = written(tmp_path, curve="0.5", other="1")
    verify(folder)
    (folder / "curve.csv").write_text("0.6")
    with pytest.raises(LrlsError, match=r"v0001: curve\.csv changed .*make it again with `lrls train-reg --force`"):
        verify(folder)


def test_verify_names_the_file_that_is_missing(tmp_path):
    folder = written(tmp_path)
    (folder / "curve.csv").unlink()
    with pytest.raises(LrlsError, match=r"curve\.csv is missing"):
        verify(folder)


def test_verify_notices_an_edited_manifest(tmp_path):
    folder = written(tmp_path)
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"steps": 5', '"steps": 6'))
    with pytest.raises(LrlsError, match=r"artifact\.json changed"):
        verify(folder)


def test_verify_finds_a_damaged_hdf5_file(tmp_path):
    with new_artifact(tmp_path, IDENTITY) as draft, h5py.File(draft.folder / "a.h5", "w") as file:
        file["x"] = np.full(1000, 7, np.uint8)
    verify(draft.result)
    path = draft.result / "a.h5"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\7" * 1000, b"\7" * 999 + b"\6"))
    with pytest.raises(LrlsError, match=r"a\.h5 changed"):
        verify(draft.result)
    path.write_bytes(whole[:100])
    with pytest.raises(LrlsError, match=r"a\.h5 changed"):
        verify(draft.result)


def test_a_file_that_changes_twice_is_noticed_twice(tmp_path):
    folder = written(tmp_path, curve="0.5")
    for file in (folder / "curve.csv", folder / MANIFEST):
        os.utime(file, (1e9, 1e9))
    verify(folder)
    for text in ("0.6", "0.5", "0.7"):
        (folder / "curve.csv").write_text(text)
        if text == "0.5":
            verify(folder)
            continue
        with pytest.raises(LrlsError, match="changed"):
            verify(folder)


def test_an_hdf5_file_that_is_open_elsewhere_is_not_said_to_have_changed(tmp_path):
    with new_artifact(tmp_path, IDENTITY) as draft, h5py.File(draft.folder / "a.h5", "w") as file:
        file["x"] = np.arange(10)
    program = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(draft.result / "a.h5")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(LrlsError, match=r"a\.h5 is open for writing in another program; close it there and run"):
            verify(draft.result)
        other.communicate()
    verify(draft.result)


def test_a_pipe_in_place_of_a_file_is_missing_and_nobody_waits(tmp_path):
    folder = written(tmp_path)
    (folder / "curve.csv").unlink()
    os.mkfifo(folder / "curve.csv")
    with pytest.raises(LrlsError, match="is missing"):
        verify(folder)


def test_a_complete_draft_that_was_damaged_since_is_not_published(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "crash")))
        with pytest.raises(OSError, match="crash"):
            written(tmp_path)
    (draft,) = drafts(tmp_path)
    (draft / "curve.csv").write_text("0.6")
    assert find_finished(tmp_path, IDENTITY) is None
    assert "what a stopped run left is damaged; it is made again." in capsys.readouterr().err
    assert (written(tmp_path) / "curve.csv").read_text() == "0.5"


def test_what_stopped_runs_left_and_what_cannot_be_read_is_listed(tmp_path):
    good, bad = written(tmp_path / "a"), written(tmp_path / "b")
    (bad / MANIFEST).write_text("{")
    with pytest.raises(KeyboardInterrupt), new_artifact(tmp_path / "c", IDENTITY) as draft:
        (draft.folder / "half").write_bytes(bytes(5000))
        raise KeyboardInterrupt

    found = look_through(tmp_path)

    assert [folder for folder, _ in found.finished] == [good]
    (left,) = found.unfinished
    assert left.folder == draft.folder and 5000 < left.num_bytes < 6000 and left.age_s < 60
    assert len(found.unreadable) == 1 and "b/v0001: artifact.json is not readable" in found.unreadable[0]
    with pytest.raises(LrlsError, match="not readable"):
        history(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "read"),
    [
        (Generated, "generated.h5", lambda artifact: artifact.open_file()),
        (Plan, "plan.json", lambda artifact: artifact.table),
        (Steps, "steps.json", lambda artifact: artifact.allowed_s),
        (Calibrated, "calibration.json", lambda artifact: artifact.read()),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_command(tmp_path, kind, name, read):
    artifact = make(kind, tmp_path, write_curve, made_by="x", settings={}, seed=0, inputs={})
    (artifact.folder / name).write_text("{")
    with pytest.raises(LrlsError) as caught:
        read(artifact)
    assert str(caught.value).endswith(
        f"v0001: {name} is damaged or truncated; make it again with `{kind.MADE_WITH} --force`."
    )


# Files


def test_failed_atomic_write_keeps_the_old_file(tmp_path, monkeypatch):
    atomic_write_bytes(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        atomic_write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_importing_the_store_loads_no_heavy_library():
    check = "import sys, stages.artifacts.store; sys.exit(bool({'torch', 'numpy', 'h5py'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

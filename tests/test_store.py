import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from filelock import FileLock

from stages.artifacts.cohort import Cohort
from stages.artifacts.digests import file_digest
from stages.artifacts.files import atomic_write_bytes
from stages.artifacts.manifest import MANIFEST, Identity, read_manifest
from stages.artifacts.store import find_finished, history, latest, new_artifact, verify, versions
from stages.artifacts.weights import Registration
from stages.artifacts.weights_file import load_state, load_weights, save_state, save_weights
from stages.errors import LrlsError

IDENTITY = Identity("registration", Registration.FORMAT, "train-reg", {"steps": 5}, seed=0, inputs={"cohort": "c0ffee"})


def written(target: Path, identity: Identity = IDENTITY, **files: str) -> Path:
    with new_artifact(target, identity) as draft:
        for name, text in (files or {"curve": "0.5"}).items():
            (draft.folder / f"{name}.csv").write_text(text)
    return draft.result


def drafts(target: Path) -> list[Path]:
    return list(target.glob(".draft-*"))


def weights_and_networks(folder: Path) -> tuple[Path, dict[str, Any]]:
    torch.manual_seed(0)
    networks: dict[str, Any] = {
        "R": torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2)),
        "S": torch.nn.Linear(3, 2),
    }
    save_weights(networks, folder / "weights.safetensors", {"method": "brbs", "step": 5})
    return folder / "weights.safetensors", networks


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
    with FileLock(tmp_path / ".lock"), pytest.raises(LrlsError, match="another lrls process is writing in"):
        written(tmp_path)
    written(tmp_path)


def test_second_writer_is_refused_and_the_first_one_finishes(tmp_path):
    with new_artifact(tmp_path, IDENTITY) as draft:
        with pytest.raises(LrlsError, match=r"wait for it or stop it\.$"):
            written(tmp_path, replace(IDENTITY, seed=1))
        assert find_finished(tmp_path, IDENTITY) is None
    assert versions(tmp_path) == [draft.result]


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


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"identity": 3}', b"\xff\xfe", b'{"identity": {}}'])
def test_unreadable_manifest_is_named(tmp_path, content):
    folder = written(tmp_path)
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(LrlsError, match=r"v0001: artifact\.json is not readable; delete that folder"):
        read_manifest(folder)


def test_manifest_without_its_files_is_unreadable(tmp_path):
    folder = written(tmp_path)
    values = json.loads((folder / MANIFEST).read_text())
    del values["files"]
    (folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(LrlsError, match="not readable"):
        read_manifest(folder)


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


# HDF5


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


# Weights and training state


def test_weights_come_back_with_buffers_and_metadata(tmp_path):
    path, networks = weights_and_networks(tmp_path)
    _, others = weights_and_networks(tmp_path)
    for tensor in (tensor for network in others.values() for tensor in network.state_dict().values()):
        tensor.fill_(9)

    assert load_weights(others, path) == {"method": "brbs", "step": 5}

    for name, network in networks.items():
        for key, tensor in network.state_dict().items():
            assert torch.equal(others[name].state_dict()[key], tensor), key


def test_one_network_can_be_loaded_alone(tmp_path):
    path, networks = weights_and_networks(tmp_path)
    alone = torch.nn.Linear(3, 2)
    load_weights({"S": alone}, path)
    assert torch.equal(alone.weight, networks["S"].weight)


def test_a_part_of_a_network_can_be_loaded_alone_and_must_fit(tmp_path):
    path, networks = weights_and_networks(tmp_path)
    part = torch.nn.Conv3d(1, 2, 3)
    load_weights({"R/0": part}, path)
    assert torch.equal(part.weight, networks["R"][0].weight)
    with pytest.raises(LrlsError, match=r"tensor R/0\.bias: found \(2,\), the network expects \(3,\); use"):
        load_weights({"R/0": torch.nn.Conv3d(1, 3, 3)}, path)


def test_weights_are_stored_in_float32_and_same_weights_give_the_same_bytes(tmp_path):
    from safetensors.torch import load_file

    path, networks = weights_and_networks(tmp_path)
    first = path.read_bytes()
    save_weights(dict(reversed(networks.items())), path, {"step": 5, "method": "brbs"})
    assert path.read_bytes() == first
    save_weights({"S": networks["S"].double()}, path, {})
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(tmp_path, keep):
    path, networks = weights_and_networks(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LrlsError, match=r"weights\.safetensors is truncated or damaged; make it again"):
        load_weights(networks, path)


def test_changed_byte_in_the_weights_is_refused_and_the_networks_stay(tmp_path):
    path, networks = weights_and_networks(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    before = networks["S"].weight.detach().clone()
    with pytest.raises(LrlsError, match=r"weights\.safetensors changed"):
        load_weights(networks, path)
    assert torch.equal(networks["S"].weight, before)


def test_every_changed_byte_of_the_header_is_refused(tmp_path):
    save_weights({"S": torch.nn.Linear(1, 1)}, tmp_path / "w.safetensors", {"step": 5})
    whole = (tmp_path / "w.safetensors").read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    for position in range(len(whole[:length].rstrip())):
        data = bytearray(whole)
        data[position] ^= 2
        (tmp_path / "w.safetensors").write_bytes(bytes(data))
        with pytest.raises(LrlsError):
            load_weights({"S": torch.nn.Linear(1, 1)}, tmp_path / "w.safetensors")


def test_mismatched_weights_name_the_tensor_and_both_shapes(tmp_path):
    path, networks = weights_and_networks(tmp_path)
    with pytest.raises(LrlsError, match=r"tensor S/weight: found \(2, 3\), the network expects \(2, 4\)"):
        load_weights({**networks, "S": torch.nn.Linear(4, 2)}, path)
    with pytest.raises(LrlsError, match=r"tensor S/bias: found \(2,\), the network expects nothing"):
        load_weights({"S": torch.nn.Linear(3, 2, bias=False)}, path)
    with pytest.raises(LrlsError, match=r"tensor T/bias: found nothing, the network expects \(2,\)"):
        load_weights({"T": torch.nn.Linear(3, 2)}, path)
    with pytest.raises(LrlsError, match="is missing"):
        load_weights(networks, tmp_path / "absent.safetensors")


def test_training_state_comes_back(tmp_path):
    state: dict[str, Any] = {"step": 3, "rng": torch.get_rng_state(), "queue": [torch.ones(2)], "name": "adam"}
    save_state(state, tmp_path / "state.pt")
    loaded = load_state(tmp_path / "state.pt")
    assert loaded["step"] == 3
    assert torch.equal(loaded["rng"], state["rng"])


def test_training_state_with_objects_is_refused(tmp_path):
    torch.save({"path": Path("a")}, tmp_path / "state.pt")
    with pytest.raises(LrlsError, match="missing or damaged"):
        load_state(tmp_path / "state.pt")


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut", b"text"])
def test_damaged_training_state_is_refused(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(LrlsError, match=r"state\.pt: training state is missing or damaged; delete"):
        load_state(tmp_path / "state.pt")


def test_failed_atomic_write_keeps_the_old_file(tmp_path, monkeypatch):
    atomic_write_bytes(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        atomic_write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_importing_the_store_loads_no_heavy_library():
    check = "import sys, stages.artifacts.store; sys.exit(bool({'torch', 'numpy', 'h5py'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

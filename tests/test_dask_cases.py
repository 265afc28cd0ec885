"""Cases on the workers of a Dask cluster: the same files as here, and what happens when things die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project
from dask_work import doubled, killing, raising, told, waiting

from stages import dask_clusters, dask_worker
from stages.compute_settings import ComputeSettings
from stages.dask_cases import AHEAD, OnDask, shared_among, without
from stages.dask_worker import filled_in
from stages.errors import LrlsError

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs kill -9")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers, processes of one thread."""
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with distributed.LocalCluster(n_workers=2, **options) as cluster:
        yield cluster
        dask_clusters.disconnect()


@pytest.fixture
def at(cluster) -> ComputeSettings:
    return ComputeSettings(cases="dask", scheduler=cluster.scheduler_address)


@pytest.fixture(scope="module")
def here(tmp_path_factory, new_project, no_pictures_in_module) -> Project:
    """A project worked on by local processes; ANTs registers its scans."""
    project = new_project(tmp_path_factory.mktemp("here"))
    work(project)
    return project


def work(project: Project, *options: str) -> None:
    images = [str(project.config.data.folder / "images" / f"{case}.nii.gz") for case in ("test_1", "dev_1")]
    project.made("preprocess", *options)
    project.made("generate", "--method", "syn", *options)
    project.made("run", "--method", "unet", "--until", "train-seg", *options)
    project.made("predict", *images, "--method", "unet", "--out", str(project.folder / "answers"), *options)


def files_in(folder: Path) -> dict[str, bytes]:
    """All but pictures, which are not drawn here, and records, which have their digests."""
    files = (file for file in folder.rglob("*.*") if file.is_file() and file.suffix not in (".png", ".json"))
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_the_same_files_whatever_worked_on_the_cases(here, cluster, tmp_path, new_project):
    there = new_project(tmp_path)

    work(there, "--scheduler", cluster.scheduler_address)

    assert there.digests() == here.digests()
    answers = files_in(there.folder / "answers")
    assert len(answers) > 5 and answers == files_in(here.folder / "answers")
    assert "cohort/v0001" in there.digests()
    assert not list(there.workspace.glob(".lrls-cases-*"))


def pids(cluster) -> list[int]:
    return [nanny.process.pid for nanny in cluster.workers.values()]


def test_a_killed_worker_costs_a_retry_and_leaves_no_process_and_no_file_behind(cluster, at, tmp_path):
    psutil = pytest.importorskip("psutil")
    results: list[tuple[int, int, str]] = []
    beside: list[Any] = []
    with OnDask(at, [("workspace", tmp_path)]) as workers:
        for result in workers.each(told, [(place, tmp_path) for place in range(8)]):
            results.append(result)
            if not beside:
                worker = next(pid for pid in pids(cluster) if psutil.Process(pid).children())
                beside = psutil.Process(worker).children(recursive=True)
                os.kill(worker, signal.SIGKILL)
    assert sorted(place for place, _, _ in results) == list(range(8))
    wait_until(lambda: beside and not any(process.is_running() for process in beside))
    gone = {process.pid for process in beside}
    folders = {Path(folder) for _, pid, folder in results if pid in gone}
    wait_until(lambda: not any(folder.parent.exists() for folder in folders))
    assert not any(Path(folder).exists() for _, _, folder in results)
    cluster.wait_for_workers(2)


def test_a_case_that_always_kills_its_process_is_named_after_two_and_the_others_go_on(at, tmp_path):
    calls = [(place, 3, tmp_path / "count") for place in range(7)]
    with OnDask(at, [("workspace", tmp_path)]) as workers:
        results = list(workers.each(killing, calls, broken=lambda place, *_: f"{place} is lost"))
        with pytest.raises(LrlsError, match=r"killed its Dask worker's process twice"):
            list(workers.each(killing, calls[3:4]))
    assert sorted(map(str, results)) == ["0", "1", "2", "3 is lost", "4", "5", "6"]
    assert (tmp_path / "count").read_text(encoding="utf-8") == "xxxx"


def test_an_error_of_a_case_is_the_same_line_and_takes_back_the_others(at, tmp_path):
    with OnDask(at, [("workspace", tmp_path)]) as workers:
        with pytest.raises(LrlsError, match=r"^case \d: damaged; export it again\.$"):
            list(workers.each(raising, [(place,) for place in range(9)]))
        client = dask_clusters.connected(at)
        wait_until(lambda: not any(client.processing().values()))


def test_few_cases_are_under_way_and_what_they_share_is_sent_once(at, tmp_path):
    array = np.ones(1000)
    calls = [(array, place) for place in range(40)]
    with OnDask(at, [("workspace", tmp_path)]) as workers:
        most = 0
        for _ in workers.each(doubled, calls):
            most = max(most, len(dask_clusters.connected(at).futures))
    assert 1 < most <= 2 * AHEAD + 2
    shared, placed = shared_among(calls)
    assert shared == [array] and without(calls[5], placed[5]) == [None, 5]
    assert filled_in(without(calls[5], placed[5]), placed[5], shared) == [array, 5]
    own = [(np.ones(3), place) for place in range(40)]
    assert shared_among(own)[0] == []


def test_workers_take_turns_although_one_of_them_has_what_cases_share(cluster, at, tmp_path):
    array = np.ones(1000)
    with OnDask(at, [("workspace", tmp_path)]) as workers:
        assert len(set(workers.each(waiting, [(array, 0.2)] * 4))) == 2


def test_a_lost_scheduler_is_one_line(tmp_path):
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as lost:
        at = ComputeSettings(cases="dask", scheduler=lost.scheduler_address)
        with OnDask(at, [("workspace", tmp_path)]) as workers:
            results = workers.each(told, [(place, tmp_path) for place in range(5)])
            next(results)
            lost.close()
            with pytest.raises(LrlsError, match=r"^the Dask scheduler has gone.* the same command goes on"):
                list(results)
    assert not list(tmp_path.glob(".lrls-cases-*"))


def test_folders_are_the_same_wherever_a_worker_was_started(at, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with OnDask(at, [("--out", Path("answers"))]) as workers:
        assert list(workers.each(doubled, [(np.ones(2), 1)])) == [3]
    assert not (tmp_path / "answers").exists()


def refused(at: ComputeSettings, *sees: tuple[str, Path]) -> str:
    with pytest.raises(LrlsError) as caught, OnDask(at, sees) as workers:
        list(workers.each(doubled, [(np.ones(1), 1)]))
    return str(caught.value)


def test_workers_that_cannot_give_the_same_results_are_refused(cluster, at, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    assert f"does not see data.folder, {gone}; workers need the same folders" in refused(
        at, ("workspace", tmp_path), ("data.folder", gone)
    )
    monkeypatch.setattr(dask_worker, "versions", lambda: (("python", "2.7"), ("lrls", "0")))
    found = ".".join(map(str, sys.version_info[:2]))
    assert f"has python {found}, this command has python 2.7" in refused(at, ("workspace", tmp_path)).replace(
        "has 2.7", "has python 2.7"
    )


@pytest.mark.parametrize(("threads", "line"), [(1, "is no process of its own"), (3, "has 3 threads")])
def test_threads_of_this_process_are_no_workers(threads, line, tmp_path):
    with distributed.LocalCluster(
        1, threads_per_worker=threads, processes=False, dashboard_address=":0", silence_logs=50
    ) as cluster:
        at = ComputeSettings(cases="dask", scheduler=cluster.scheduler_address)
        assert line in refused(at, ("workspace", tmp_path))
        dask_clusters.disconnect()


def test_a_cluster_without_workers_is_told_after_a_while(tmp_path):
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard_address": ":0"}}
    with distributed.SpecCluster(workers={}, scheduler=scheduler, silence_logs=50) as cluster:
        at = ComputeSettings(cases="dask", scheduler=cluster.scheduler_address, wait_s=0.1)
        assert "has had no worker for 0 s; start some" in refused(at, ("workspace", tmp_path))
        dask_clusters.disconnect()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--scheduler", "nowhere.json"], "nowhere.json is not there; start `dask scheduler --scheduler-file"),
        (["--scheduler", __file__], "is no file of a Dask scheduler"),
        (["--scheduler", "what://here:1"], "what://here:1 is no address that Dask can reach (ValueError)"),
        (["--set", "compute.cases=dask"], "neither scheduler nor cluster is set"),
        (["--set", "compute={cluster: local}"], "and cases is not; set cases: dask"),
        (["--set", "compute={cases: dask, cluster: slurm}"], "there is no `sbatch` here"),
        (["--set", "compute={cases: dask, cluster: local, job: {colour: red}}"], "compute.job: no workers start"),
    ],
)
def test_what_cannot_be_a_cluster_is_one_line(options, line, project, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    done = project.lrls("preprocess", *options)
    assert done.code == 1 and done.err.count("\n") == 1
    assert line in done.err


def test_nobody_answers(project, monkeypatch):
    monkeypatch.setattr(dask_clusters, "CONNECT_S", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        done = project.lrls("preprocess", "--scheduler", place)
    assert done.code == 1 and f"no Dask scheduler answers at {place}" in done.err


def test_what_is_no_address_ends_at_once():
    """Dask's client, which was never connected, waits for itself when Python ends, and traces back: seen only there."""
    places = ["tcp://localhost", "what://here:1", "8786", "tls://127.0.0.1:1"]
    done = subprocess.run([sys.executable, "-c", NO_ADDRESS, *places], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("is no address that Dask can reach") == len(places)


NO_ADDRESS = """
import sys
from stages import dask_clusters
from stages.compute_settings import ComputeSettings
from stages.errors import LrlsError
dask_clusters.CONNECT_S = 0.5  # the wait is twice as long
for place in sys.argv[1:]:
    try:
        dask_clusters.connected(ComputeSettings(cases="dask", scheduler=place))
    except LrlsError as error:
        print(error)
"""


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_local_cluster_has_as_many_workers_as_jobs(jobs, monkeypatch):
    asked: list[int] = []

    def start(self: Any, workers: dict[Any, Any], **others: Any) -> None:
        asked.append(len(workers))
        raise RuntimeError  # enough is known

    monkeypatch.setattr(distributed.SpecCluster, "__init__", start)
    monkeypatch.setattr(distributed.SpecCluster, "__del__", lambda self: None)  # of what was never begun
    with pytest.raises(LrlsError, match="no workers start"):
        dask_clusters.connected(ComputeSettings(cases="dask", cluster="local", jobs=jobs))
    assert asked == [jobs]  # not as many as cores


def test_dask_is_only_needed_where_it_is_asked_for(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = project.lrls("preprocess", "--scheduler", "tcp://host:8786")
    assert done.err == "lrls: compute.cases is dask, and Dask is not installed; `pip install 'lrls[dask]'`.\n"


def wait_until(true: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)

"""Dask clusters: a running one, or one whose workers are started by the command. Nothing is imported unasked."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import shutil
import threading
import uuid
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages import dask_worker
from stages.compute_settings import ComputeSettings, is_address
from stages.errors import LrlsError, shortened
from stages.progress import say
from stages.text_files import read_json

CONNECT_S = 15.0
TELL_S = 2.0  # a connection that takes longer says what it is
SUBMITS = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub", "sge": "qsub"}
GOES_ON = "the same command goes on where it stopped"
GONE = (OSError, TimeoutError, asyncio.CancelledError, concurrent.futures.CancelledError)
RUN = uuid.uuid4().hex  # names this process to workers

_clients: dict[str, Any] = {}  # of this process, by settings


def connected(compute: ComputeSettings) -> Any:
    """A client of the cluster that the settings name; one for this process.

    Raises:
        LrlsError: Dask is not installed, or there is no such scheduler.
    """
    key = compute.model_dump_json(exclude={"wait_s"})
    if key in _clients and _clients[key].status == "running":
        return _clients[key]
    try:
        import distributed
    except ImportError:
        raise LrlsError("compute.cases is dask, and Dask is not installed; `pip install 'lrls[dask]'`.") from None
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters of it ends as one line of ours
    warnings.filterwarnings("ignore", message="Sending large graph|(?s:.*)Port .* is already in use")
    warnings.filterwarnings("ignore", category=distributed.versions.VersionMismatchWarning)
    at = _started(compute) if compute.cluster else _address(compute.scheduler or "")
    client = distributed.Client.__new__(distributed.Client)
    slow = threading.Timer(TELL_S, say, ["connecting to the Dask scheduler"])
    slow.start()
    try:
        client.__init__(at, set_as_default=False, timeout=CONNECT_S)  # type: ignore[misc]
    except (OSError, TimeoutError, ValueError, ImportError, RuntimeError, TypeError) as error:
        client.status = "closed"  # or it waits half a minute for itself when it is deleted, and traces back
        named = compute.scheduler or compute.cluster
        if isinstance(error, ValueError | TypeError):
            raise LrlsError(
                f"compute.scheduler: {named} is no address that Dask can reach ({type(error).__name__}); give one such "
                "as tcp://login:8786 (tls:// needs certificates in Dask's configuration), or the scheduler's file."
            ) from None
        raise LrlsError(
            f"compute.scheduler: no Dask scheduler answers at {named} ({type(error).__name__}); start it with `dask "
            "scheduler`, or correct the address."
        ) from None
    finally:
        slow.cancel()
    if not _clients:
        atexit.register(disconnect)
    _clients[key] = client
    return client


def workers_of(compute: ComputeSettings) -> dict[str, int]:
    """Addresses of the workers that a cluster has now, and how many threads each has; raises as `connected`."""
    try:
        return dict(connected(compute).nthreads())
    except GONE:
        raise scheduler_gone() from None


def scheduler_gone() -> LrlsError:
    return LrlsError(
        f"the Dask scheduler has gone, or does not answer; start it and its workers again. Then {GOES_ON}."
    )


def _address(scheduler: str) -> str:
    """The address of a scheduler that is named by address or file."""
    if is_address(scheduler):
        return scheduler
    try:
        return str(read_json(Path(scheduler))["address"])
    except FileNotFoundError:
        raise LrlsError(
            f"compute.scheduler: {scheduler} is not there; start `dask scheduler --scheduler-file {scheduler}`, or "
            "correct the path."
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise LrlsError(
            f"compute.scheduler: {scheduler} is no file of a Dask scheduler; start `dask scheduler --scheduler-file "
            "FILE`, and name that file."
        ) from None


def _started(compute: ComputeSettings) -> Any:
    """A cluster whose workers are started now, and end with this process."""
    kind, job = compute.cluster, dict(compute.job)
    if kind == "local":
        from distributed import LocalCluster

        try:
            return LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=compute.jobs,
                threads_per_worker=1,
                dashboard_address=":0",
                silence_logs=logging.CRITICAL,
                **job,
            )
        except (TypeError, ValueError, OSError, RuntimeError) as error:
            raise LrlsError(f"compute.job: no workers start with it ({type(error).__name__}); correct it.") from None
    try:
        import dask_jobqueue
    except ImportError:
        raise LrlsError(
            f"compute.cluster is {kind}, and dask-jobqueue is not installed; `pip install 'lrls[dask]'`."
        ) from None
    assert kind is not None
    if shutil.which(SUBMITS[kind]) is None:
        raise LrlsError(
            f"compute.cluster is {kind}, and there is no `{SUBMITS[kind]}` here; run the command where jobs are "
            "submitted, or name another cluster."
        )
    if "cores" in job:
        job.setdefault("processes", job["cores"])
    try:
        cluster = getattr(dask_jobqueue, f"{kind.upper()}Cluster")(silence_logs=logging.CRITICAL, **job)
        # Not `scale`: jobs that reach their walltime are followed by others.
        cluster.adapt(minimum_jobs=compute.jobs, maximum_jobs=compute.jobs)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        said = shortened(" ".join(str(error).split()), 200)
        raise LrlsError(f"compute.job: dask-jobqueue refuses it ({said}); give cores, memory, queue, ...") from None
    return cluster


def disconnect() -> None:
    """End what workers do for this process, and every connection; clusters that it has started end, too."""
    clients = list(_clients.values())
    _clients.clear()
    for client in clients:
        with suppress(Exception):
            if client.status == "running":
                client.run(dask_worker.stop, RUN, on_error="return")
        cluster = client.cluster
        with suppress(Exception):
            client.close(timeout=2)
        with suppress(Exception):
            if cluster is not None:
                cluster.close(timeout=10)

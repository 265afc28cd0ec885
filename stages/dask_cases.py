"""Cases on the workers of a Dask cluster: the interface of `stages.processes.Processes`, and the same results.

What a case needs is pickled here. Values that many cases share, such as a model or the reference, are sent to a worker
once. At most `AHEAD` cases a worker are under way, so that neither this process nor the scheduler grows with the
number of cases. Dask is imported only when it is asked for.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FunctionType, TracebackType
from typing import Any, NoReturn, Self

from stages import dask_worker
from stages.compute_settings import ComputeSettings
from stages.dask_clusters import GOES_ON, GONE, RUN, connected, disconnect, scheduler_gone
from stages.errors import LrlsError
from stages.progress import say

AHEAD = 2  # cases that a worker has: one that it works on, and the next one
SHARED_BY = 20  # what every so-manieth case has is sent once
SMALL = (type(None), bool, int, float, str, Path, FunctionType)  # is sent with each case
LOOK_S = 5.0  # how often new workers are looked at
OLD_S = 24 * 3600.0


class OnDask:
    """The workers of a cluster, for as long as the `with` block lasts.

    Args:
        compute: where the cluster is.
        sees: settings, and the folders that they name, which workers must see; results go into the first one.
    """

    def __init__(self, compute: ComputeSettings, sees: Sequence[tuple[str, Path]]) -> None:
        # Workers were started elsewhere, and a relative path is another one there.
        self.compute, self.sees = compute, [(setting, Path(os.path.abspath(folder))) for setting, folder in sees]
        self._client: Any = None
        self._probe: Path | None = None
        self._looked_at: dict[str, tuple[str, int]] = {}  # workers that were found usable: host and process
        self._looked_s = 0.0
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def each(
        self, function: Callable[..., Any], arguments: Sequence[tuple], *, broken: Callable[..., Any] | None = None
    ) -> Iterator[Any]:
        """Results of a function over cases, as they finish; see `Processes.each`.

        A case whose worker has died is given to another one by Dask; one that has killed its process twice, or
        outlived none of the workers that Dask allows (`allowed-failures`), is lost.

        Raises:
            LrlsError: there is no Dask, scheduler or usable worker, or they have gone; or a case is lost, and `broken`
                is None.
        """
        if not arguments:
            return
        self._connect()
        shared, placed = shared_among(arguments)
        blob = _pickled(shared)
        name = hashlib.sha256(blob).hexdigest()
        done: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        under_way: dict[int, Any] = {}
        given: dict[int, list[str]] = {}  # to which worker; Dask may know better
        left = iter(range(len(arguments)))
        submit = self._client.submit
        sent = submit(dask_worker.kept, blob, key=f"lrls-{uuid.uuid4().hex}", pure=False)

        def fill() -> None:
            while len(under_way) < AHEAD * max(1, len(self._looked_at)):
                if (place := next(left, None)) is None:
                    return
                call = _pickled((function, without(arguments[place], placed[place]), placed[place]))
                # Left to itself, Dask gives every case to the worker that has what they share, until others steal it.
                has = Counter(address for other in under_way for address in given[other])
                given[place] = sorted(self._looked_at, key=has.__getitem__)[:1]
                future = submit(
                    dask_worker.work, RUN, dask_worker.versions(), call, name, sent, key=f"lrls-{uuid.uuid4().hex}",
                    pure=False, workers=given[place] or None, allow_other_workers=bool(given[place]),
                )  # fmt: skip
                under_way[place] = future
                future.add_done_callback(lambda future, place=place: done.put((place, future)))

        try:
            while True:
                try:
                    fill()
                    if not under_way:
                        return
                    place, future = self._next(done)
                    packed = self._packed(future)
                    del under_way[place], future
                    fill()
                except GONE:
                    self._gone()
                yield self._result(packed, arguments[place], broken)
        finally:
            self._cancel(list(under_way.values()))

    def _next(self, done: SimpleQueue[tuple[int, Any]]) -> tuple[int, Any]:
        """The next finished case; waits, as long as there is a scheduler, and workers within `wait_s`."""
        while True:
            if self._client.status != "running":
                raise ConnectionError
            if time.monotonic() - self._looked_s > LOOK_S:
                self._look()
            with suppress(Empty):
                return done.get(timeout=1.0)

    def _packed(self, future: Any) -> bytes:
        from distributed import KilledWorker

        if future.status == "error":
            error = future.exception()
            if isinstance(error, KilledWorker):
                return dask_worker.KILLED
            raise LrlsError(
                f"a Dask worker could not take a case ({type(error).__name__}); look at its log, and whether lrls is "
                f"installed there. Then {GOES_ON}."
            )
        if future.status in ("cancelled", "lost"):
            raise ConnectionError
        return future.result()

    def _result(self, packed: bytes, case: tuple, broken: Callable[..., Any] | None) -> Any:
        if packed == dask_worker.STOPPED:
            raise LrlsError(f"what worked on a case of this command was stopped from elsewhere; {GOES_ON}.")
        if packed == dask_worker.KILLED:
            if broken is not None:
                return broken(*case)
            raise LrlsError(
                "a case killed its Dask worker's process twice, most likely for lack of memory; give workers more. "
                f"Then {GOES_ON}."
            )
        good, result, told = pickle.loads(packed)
        if good:
            return result
        if not isinstance(result, LrlsError):
            result.__cause__ = RuntimeError(told)  # where it was raised, for the developers
        raise result

    # Connection

    def _connect(self) -> None:
        if self._client is None:
            self._client = connected(self.compute)
            self._write_probe()
            self._look()
        elif self._client.status != "running":
            self._gone()

    def _write_probe(self) -> None:
        """A file by which workers show that they see the folder that results go into."""
        folder = self.sees[0][1]
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._made = missing
        for old in folder.glob(".lrls-cases-*"):
            with suppress(OSError):
                if old.stat().st_mtime < time.time() - OLD_S:
                    old.unlink()
        self._probe = folder / f".lrls-cases-{uuid.uuid4().hex}"
        self._probe.write_text(self._probe.name, encoding="utf-8")

    def _look(self) -> None:
        """Look at workers that have joined; wait for one while there is none.

        Raises:
            LrlsError: none has come in time, or one cannot be used.
        """
        began, told = time.monotonic(), False
        try:
            while not (threads := self._client.nthreads()):
                if time.monotonic() - began > self.compute.wait_s:
                    raise LrlsError(
                        f"the Dask cluster has had no worker for {self.compute.wait_s:.0f} s; start some (`dask worker "
                        f"--nthreads 1`), or set compute.wait_s higher. Then {GOES_ON}."
                    )
                if not told:
                    say("waiting for a worker of the Dask cluster")
                    told = True
                time.sleep(0.5)
            self._look_at({address: n for address, n in threads.items() if address not in self._looked_at})
            self._looked_at = {address: self._looked_at[address] for address in threads if address in self._looked_at}
        except GONE:
            self._gone()
        self._looked_s = time.monotonic()

    def _look_at(self, threads: Mapping[str, int]) -> None:
        for address, number in threads.items():
            if number != 1:
                raise LrlsError(
                    f"Dask worker {address} has {number} threads, and cases need processes of one thread each; start "
                    "`dask worker --nworkers CORES --nthreads 1`, or set as many processes as cores in compute.job."
                )
        if not threads:
            return
        assert self._probe is not None
        sees = [(setting, str(folder)) for setting, folder in self.sees]
        answers = self._client.run(
            dask_worker.look, dask_worker.versions(), sees, (str(self._probe), self._probe.name), sees[0][0],
            workers=list(threads), on_error="return",
        )  # fmt: skip
        for address, answer in answers.items():
            if isinstance(answer, OSError):
                continue  # it has gone since
            if isinstance(answer, BaseException):
                raise LrlsError(
                    f"Dask worker {address} cannot run lrls ({type(answer).__name__}); install the same lrls there."
                )
            if answer["fault"]:
                raise LrlsError(f"Dask worker {address} {answer['fault']}.")
            process = tuple(answer["process"])
            if process == (socket.gethostname(), os.getpid()) or process in self._looked_at.values():
                raise LrlsError(
                    f"Dask worker {address} is no process of its own; start workers as processes, with `dask worker "
                    "--nthreads 1`."
                )
            self._looked_at[address] = process

    def _gone(self) -> NoReturn:
        disconnect()
        raise scheduler_gone() from None

    def _cancel(self, futures: list[Any]) -> None:
        """Take back what has not finished: this process has an error, is told to stop, or asks no more."""
        if futures and self._client.status == "running":
            with suppress(*GONE):
                self._client.cancel(futures)
                self._client.run(dask_worker.stop, RUN, on_error="return")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._probe:
            self._probe.unlink(missing_ok=True)
            for place in self._made:
                with suppress(OSError):
                    place.rmdir()  # unless something was written into it
        if isinstance(error, KeyboardInterrupt | SystemExit):
            disconnect()  # Python may end without asking for more


def shared_among(arguments: Sequence[tuple]) -> tuple[list[Any], list[dict[int, int]]]:
    """The arguments that many cases have in common, and where: for each case its places in them, by argument."""
    number = Counter(id(value) for case in arguments for value in case if not isinstance(value, SMALL))
    enough = max(2, len(arguments) / SHARED_BY)
    shared: list[Any] = []
    place_of: dict[int, int] = {}
    placed = []
    for case in arguments:
        places = {}
        for k, value in enumerate(case):
            if number[id(value)] > enough and not isinstance(value, SMALL):
                if id(value) not in place_of:
                    place_of[id(value)] = len(shared)
                    shared.append(value)
                places[k] = place_of[id(value)]
        placed.append(places)
    return shared, placed


def without(arguments: tuple, places: Mapping[int, int]) -> list[Any]:
    """Arguments without those that are shared."""
    return [None if k in places else value for k, value in enumerate(arguments)]


def _pickled(value: Any) -> bytes:
    import cloudpickle

    return cloudpickle.dumps(value)

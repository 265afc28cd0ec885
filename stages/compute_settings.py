"""Settings that say where cases are worked on; no result depends on them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from stages.sections import MOST_AT_ONCE, Section

DAY_S = 24 * 3600.0


class ComputeSettings(Section):
    """Where cases are worked on."""

    cases: Literal["local", "dask"] = Field(
        "local",
        description="What aligns, registers and answers cases: processes of this machine (local), or the workers of a "
        "Dask cluster (dask); see docs/cluster.md.",
    )
    scheduler: str | None = Field(
        None,
        min_length=1,
        description="With dask: address of a running scheduler (tcp://host:8786), or its file (`dask scheduler "
        "--scheduler-file`), relative to the configuration file.",
    )
    cluster: Literal["slurm", "pbs", "lsf", "sge", "local"] | None = Field(
        None,
        description="With dask: workers are started by the command and end with it: as jobs of a queue, by "
        "dask-jobqueue, or as processes of this machine (local).",
    )
    jobs: int = Field(1, ge=1, le=MOST_AT_ONCE, description="With cluster: how many jobs; with local: workers.")
    job: dict[str, Any] = Field(
        default={},
        description="With cluster: what a job asks for, by dask-jobqueue's names: queue, walltime, memory, cores, "
        "processes (as many as cores), job_extra_directives, ...; default: dask-jobqueue's own file.",
    )
    wait_s: float = Field(
        600.0, gt=0, le=7 * DAY_S, description="With dask: seconds to wait for a worker while there is none."
    )

    @model_validator(mode="after")
    def _dask_is_somewhere(self) -> Self:
        if self.cases == "dask" and (self.scheduler is None) == (self.cluster is None):
            found = "neither scheduler nor cluster is set" if self.scheduler is None else "scheduler and cluster are"
            raise ValueError(f"cases is dask, and {found}; set one of them, or give --scheduler")
        if "cases" not in self.model_fields_set and (self.scheduler or self.cluster):
            raise ValueError("scheduler or cluster is set, and cases is not; set cases: dask, or cases: local")
        return self

    def at(self, base: Path) -> ComputeSettings:
        """The same settings with the scheduler's file relative to a folder; addresses stay as they are."""
        if self.scheduler is None or is_address(self.scheduler):
            return self
        return self.model_copy(update={"scheduler": str(base / os.path.expanduser(self.scheduler))})


def is_address(scheduler: str) -> bool:
    """Whether a scheduler is named by its address (tcp://host:8786, host:8786) rather than by its file."""
    return "://" in scheduler or scheduler.rpartition(":")[2].isdigit()

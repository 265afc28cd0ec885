"""Jobs for SLURM, as files that a person can read: a script a job, and `submit.sh`, which hands them in.

    <out>/preprocess.sbatch                   the cohorts and the plan that all the others read
    <out>/<method>-seed<n>-<stage>.sbatch     `lrls run --until <stage>`: a stage whose inputs are done already
    <out>/compare.sbatch                      the table, where there are several methods
    <out>/predict.sbatch, tables.sbatch       new scans: an array over parts of them, then the tables of all
    <out>/submit.sh                           hands them in; each waits for those that it needs (`afterok`)
    <out>/logs/                               what the jobs say

Nothing is handed in here. A job that SLURM tells to stop ends with `STOPPED` and is put back into the queue by its own
script; the same command then goes on. Sources: sbatch(1) for `--signal`, `--requeue` and `--dependency`, scontrol(1).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.artifacts.files import atomic_write_text, is_on_network_without_locks, shown
from stages.config import Config
from stages.errors import UNPRINTABLE, LrlsError, shortened
from stages.methods import check_unlabeled, find_method, plan_of
from stages.methods.recipe import STAGE_OF, Method
from stages.planning.obeying import BEST, RIVALS
from stages.stopping import STOPPED
from stages.workflow import check_scored

MARK = "# Written by `lrls slurm`"
MOST_RESTARTS = 100  # of a job: one that gets nowhere must not take turns for ever
MOST_PARTS = 1000
WAIT_S = 4 * 3600  # that a job waits for another one that writes in the same folder


@dataclass(frozen=True)
class Resources:
    """What each job asks for, as sbatch has it.

    Args:
        time: limit of a job; at the end of it the job is stopped and goes on in another turn.
        gpus: "1" or "a100:1", of jobs that train, plan or ask a network; "0": none.
        mem: of a node, such as "32G".
        warn_s: seconds before the limit at which a job is told to stop.
        further: directives such as "--qos=long".
    """

    time: str = "24:00:00"
    gpus: str = "1"
    cpus: int = 8
    mem: str = "32G"
    partition: str | None = None
    account: str | None = None
    warn_s: int = 120
    further: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check("--time", self.time, r"[0-9]+(:[0-9]{1,2}){0,2}|[0-9]+-[0-9]{1,2}(:[0-9]{1,2}){0,2}", "24:00:00 or 2-12")
        _check("--gpus", self.gpus, r"([A-Za-z][\w.-]*:)?[0-9]+", "a number, or a100:1")
        _check("--mem", self.mem, r"[0-9]+[KMGT]?", "32G")
        for option, given in (("--partition", self.partition), ("--account", self.account)):
            if given is not None:
                _check(option, given, r"\w[\w.,@+-]*", "a name as sinfo and sacctmgr list it")
        for given in self.further:
            _check("--sbatch", given, r"--[a-z][a-z-]*([ =].*)?", "an option of sbatch such as --qos=long")
        if seconds_of(self.time) <= self.warn_s:
            raise LrlsError(
                f"--time {self.time}: found {seconds_of(self.time)} s, expected more than the {self.warn_s} s before "
                "its end at which a job is told to stop; give more time, or a smaller --warn."
            )


def _check(option: str, given: str, pattern: str, expected: str) -> None:
    if not re.fullmatch(pattern, given, re.ASCII):
        raise LrlsError(f"{option} {shortened(given)}: expected {expected}.")


def seconds_of(time: str) -> int:
    """Seconds of a time as sbatch has it: "90" (minutes), "90:00", "1:30:00", "1-6", "1-06:00", "1-06:00:00"."""
    days, separator, rest = time.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if separator:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True)
class Job:
    """A script.

    Args:
        commands: lines of bash, in order.
        after: names of the jobs that must have succeeded.
        behind: names of the jobs that must have ended, however.
        gpus: whether it asks for them.
        parts: of an array, numbered from 1; None: it is none.
    """

    name: str
    about: str
    commands: Sequence[str]
    after: Sequence[str] = ()
    gpus: bool = True
    parts: int | None = None
    behind: Sequence[str] = ()


@dataclass(frozen=True)
class NewScans:
    """Scans to predict once a method is trained, in parts that go into one folder."""

    scans: Path
    out: Path
    parts: int


def jobs_of(
    config: Config,
    path: Path,
    methods: Sequence[str],
    seeds: Sequence[int] = (),
    *,
    overrides: Sequence[str] = (),
    budget: str | None = None,
    whole: bool = False,
    new: NewScans | None = None,
) -> list[Job]:
    """The jobs, each behind those that it waits for.

    A method that trains in one round gets a job a stage, because a stage is what can be waited for, and stopped ones
    lose least. Methods that train nothing, and rounds that take turns, get one job.

    Args:
        config: of the file `path` with `overrides`.
        seeds: none: the configuration's.
        budget: of every run, as of `lrls run`.
        whole: one job for every method and seed.
        new: to predict with the only method and seed.

    Raises:
        LrlsError: a method cannot be run, or what is asked for does not go together.
    """
    given = dict.fromkeys(methods)
    found = [find_method(name) for name in given]
    for method in found:
        if method.cohort == "train":
            check_unlabeled(method, config)
    seeds = list(dict.fromkeys(seeds)) or [config.seed]
    if new and (len(found), len(seeds)) != (1, 1):
        raise LrlsError("--predict: new scans are predicted by one trained method; give one --method and one --seed.")
    file = _plain(path)
    settings = [f"--set={override}" for override in overrides]
    timed = [f"--budget={budget}"] if budget else []
    scored = bool(config.part(config.eval.part))
    if scored:
        check_scored(config)  # a label map that cannot be scored with would end the chain after its trainings

    def plans(method: Method) -> bool:
        return bool(budget) or method.name in (BEST, *RIVALS)

    first = {(method.cohort, plans(method)): method for method in sorted(found, key=plans)}
    shared = [
        shlex.join(["lrls", "run", file, f"--method={method.name}", *timed, *settings, "--until=preprocess"])
        for _, method in sorted(first.items(), key=lambda each: (not each[0][1], each[0][0]))
    ]
    if scored:
        shared.append(shlex.join(["lrls", "preprocess", file, f"--part={config.eval.part}", *settings]))
    # A plan times steps of networks, so it is made on the kind of machine that trains.
    jobs = [Job("preprocess", "the cohorts that all jobs read", shared, gpus=any(map(plans, found)))]
    last = []
    for method in found:
        plan = plan_of(method, config)
        stages = [*(STAGE_OF[step.makes] for step in plan.steps(0)), *(["eval"] if scored else [])]
        trains = bool(method.train_reg or method.train_seg)
        if whole or plan.last_round or not trains:
            stages = stages[-1:]
        for seed in seeds:
            before = "preprocess"
            for stage in stages:
                words = ["lrls", "run", file, f"--method={method.name}", *timed, *settings, f"--set=seed={seed}"]
                until = [] if stage == "eval" else [f"--until={stage}"]
                name = f"{method.name}-seed{seed}-{stage}"
                about = f"{stage} of {method.name}, seed {seed}"
                jobs.append(Job(name, about, [shlex.join([*words, *until])], [before], trains))
                before = name
            last.append(before)
    if scored and len(found) > 1:
        words = ["lrls", "compare", file, *(f"--method={method.name}" for method in found), *settings]
        command = shlex.join([*words, *(f"--seed={seed}" for seed in seeds)])
        jobs.append(Job("compare", "the methods in one table", [command], last, gpus=False))
    if new:
        words = ["lrls", "predict", file, _plain(new.scans), f"--out={_plain(new.out)}"]
        command = shlex.join([*words, f"--method={found[0].name}", *settings, f"--set=seed={seeds[0]}"])
        part = f'{command} --part="$SLURM_ARRAY_TASK_ID/{new.parts}"'
        trains = bool(found[0].train_reg or found[0].train_seg)
        jobs.append(Job("predict", f"new scans in {new.parts} parts", [part], last, trains, new.parts))
        # A part in which one scan has no answer fails, and the tables are of the others.
        jobs.append(Job("tables", "the tables of all new scans", [command], last, trains, behind=["predict"]))
    return jobs


def _plain(path: Path) -> str:
    """The path from the root; nothing in it can end a line of a script.

    Raises:
        LrlsError: a name in it has control characters, or is not UTF-8.
    """
    if UNPRINTABLE.search(text := os.path.abspath(path)):
        raise LrlsError(f"{shown(path)}: its path has control characters, or is not UTF-8; give it plain names.")
    return text


def files_of(jobs: Sequence[Job], resources: Resources, activate: Sequence[str]) -> dict[str, str]:
    """The files by name; `submit.sh` is the last one.

    Args:
        activate: lines of bash that make `lrls` known.
    """
    scripts = {f"{job.name}.sbatch": _script(job, resources, activate) for job in jobs}
    return scripts | {"submit.sh": _submission(jobs)}


def _script(job: Job, resources: Resources, activate: Sequence[str]) -> str:
    asked = {
        "job-name": f"lrls-{job.name}",
        "open-mode": "append",
        "time": resources.time,
        "ntasks": 1,
        "cpus-per-task": resources.cpus,
        "mem": resources.mem,
        "gres": f"gpu:{resources.gpus}" if job.gpus and resources.gpus.rpartition(":")[2].strip("0") else None,
        "partition": resources.partition,
        "account": resources.account,
        "array": f"1-{job.parts}" if job.parts else None,
        "signal": f"B:USR1@{resources.warn_s}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {further}" for further in resources.further)]
    body = SCRIPT.format(warn_s=resources.warn_s, stopped=STOPPED, most=MOST_RESTARTS, wait_s=WAIT_S)
    commands = [f"run {command}" for command in job.commands]
    head = ["#!/bin/bash", f"{MARK}: {job.about}. Hand it in with submit.sh."]
    return "\n".join([*head, *lines, "", *activate, body, *commands, ""])


SCRIPT = """\
export LRLS_WAIT_S={wait_s}  # for another job that writes in the same folder

# SLURM sends USR1 to this shell alone, {warn_s} s before the time limit, and TERM when the job is cancelled, preempted,
# or past its limit. Both are passed on. The command keeps its work and ends with code {stopped}; the job then goes back
# into the queue, and the same command goes on. After TERM it does not: whoever sent it decides.
child= told= signals=0
hear() {{
    told=$1 signals=$((signals + 1))
    [ -z "$child" ] || kill -s "$1" "$child" 2> /dev/null
}}
trap 'hear USR1' USR1
trap 'hear TERM' TERM

again() {{
    [ "$told" != TERM ] || exit {stopped}
    if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {most} ]; then
        echo "stopped {most} times; give the job more time" >&2
        exit {stopped}
    fi
    if [ -n "${{SLURM_ARRAY_JOB_ID:-}}" ]; then  # the id alone may stand for the whole array
        scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
    else
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit {stopped}
}}

run() {{
    local seen code
    [ -z "$told" ] || again  # told between two commands
    "$@" &
    child=$!
    [ -z "$told" ] || kill -s "$told" "$child"
    # A signal ends `wait`, not the command: then wait again.
    while seen=$signals; wait "$child"; code=$?; [ "$seen" -ne "$signals" ]; do :; done
    child=
    if [ "$code" -eq {stopped} ] || {{ [ "$told" = USR1 ] && [ "$code" -eq 138 ]; }}; then
        again  # 138: it was told before it listened
    fi
    [ "$code" -eq 0 ] || exit "$code"
}}
"""


def _submission(jobs: Sequence[Job]) -> str:
    lines = [SUBMISSION]
    for job in jobs:
        waits = [("afterok", job.after), ("afterany", job.behind)]
        each = ["".join([how, *(f":${_variable(name)}" for name in names)]) for how, names in waits if names]
        on = f'"{",".join(each)}"' if each else ""
        lines.append(f"{_variable(job.name)}=$(submit {job.name}{on and ' '}{on})")
    return "\n".join([*lines, ""])


SUBMISSION = f"""\
#!/bin/bash
{MARK}. Hands in the jobs of this folder; each waits until those that it needs have succeeded.
set -eu
cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")"
if ! command -v sbatch > /dev/null; then
    echo "submit.sh: sbatch is not found; run this where jobs are handed in." >&2
    exit 1
fi
mkdir -p logs
logs=${{PWD//%/%%}}/logs  # SLURM reads %j and the like in the whole path

submit() {{  # the name of a job, and what it waits for; says its id
    local name=$1 after=${{2:-}} id
    id=$(sbatch --parsable --output="$logs/%x-%j.out" --kill-on-invalid-dep=yes \\
        ${{after:+--dependency="$after"}} "$name.sbatch") || exit 1
    id=${{id%%;*}}  # behind it may stand the cluster
    echo "$id $name" >&2
    echo "$id"
}}
"""


def _variable(name: str) -> str:
    return re.sub(r"\W", "_", name)


def write_files(out: Path, files: Mapping[str, str], *, overwrite: bool = False) -> None:
    """Write the files into a folder; those that are the same already stay.

    Args:
        overwrite: replace files that are different, and delete jobs of an earlier command that are not among them.

    Raises:
        LrlsError: a file there is different, and is not to be replaced, or was not written by lrls.
    """
    if "\\" in _plain(out) and os.sep == "/":  # then SLURM reads no pattern in a path
        raise LrlsError(f"--out {shown(out)}: its path has a backslash, which SLURM cannot write to; name another one.")
    if out.exists() and not out.is_dir():
        raise LrlsError(f"--out {shown(out)} is a file; name a folder.")
    earlier = sorted([*out.glob("*.sbatch"), *out.glob("submit.sh")])
    former = {path.name: _text_of(path) for path in earlier}
    differing = [name for name, text in former.items() if files.get(name) != text]
    for name in differing:
        if not (former[name] or "").partition("\n")[2].startswith(MARK):
            raise LrlsError(f"--out {shown(out)}: {name} in it was not written by lrls; name another folder.")
    if differing and not overwrite:
        raise LrlsError(
            f"--out {shown(out)} holds other jobs ({differing[0]}); name another folder, or replace them with "
            "--overwrite."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in differing:
            (out / name).unlink()
        for name, text in files.items():
            if former.get(name) != text:
                atomic_write_text(out / name, text)
        (out / "submit.sh").chmod(0o755)
    except OSError as error:
        raise LrlsError(f"--out {shown(out)} cannot be written ({error.strerror}); name another folder.") from None


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def notes_on(config: Config) -> list[str]:
    """What is worth a line before jobs on several machines write into the workspace."""
    if is_on_network_without_locks(config.workspace):
        return [
            "note: the workspace lies on a file system whose locks hold on one machine only (mounted with nolock or "
            "localflock): never run the same command on two machines at once."
        ]
    return []

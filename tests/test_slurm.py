"""`lrls slurm`: what its scripts run, in which order, and what they do when they are told to stop; without SLURM."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Done, Project

from stages.cores import available_cores
from stages.errors import LrlsError
from stages.slurm import Resources, seconds_of

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
ODD = "a %j 'b' $HOME é"  # what SLURM and bash read as their own syntax

SBATCH = """#!{python}
import os, re, subprocess, sys
from pathlib import Path

script = Path(sys.argv[-1])
ids, log = Path("ids"), Path("log")
number = str(100 + len(ids.read_text(encoding="utf-8").split()) if ids.exists() else 100)
with ids.open("a") as file:
    file.write(number + "\\n")
with log.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
array = re.search("--array=1-([0-9]+)", script.read_text(encoding="utf-8"))
for task in range(1, int(array[1]) + 1) if array else [None]:
    names = {{"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(task)}} if task else {{}}
    subprocess.run(["bash", str(script)], env={{**os.environ, "SLURM_JOB_ID": number, **names}}, check=True)
print(number + ";cluster")
"""


def written(project: Project, out: Path, *arguments: str) -> Done:
    return project.made("slurm", "--out", str(out), "--gpus", "0", *arguments)


def commands(script: Path) -> list[list[str]]:
    """The commands of a script as bash splits them, without `run lrls`."""
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line.startswith("run lrls ")]
    return [shlex.split(line)[2:] for line in lines]


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def test_the_chain_does_what_the_same_runs_do_and_seeds_are_made_side_by_side(project, no_pictures, tmp_path):
    out = tmp_path / "jobs"
    methods, seeds = ["--method", "unet", "--method", "affine"], ["--seed", "0", "--seed", "3"]
    written(project, out, *methods, *seeds, "--set", "train_seg.steps=2")
    order = re.findall(r"submit (\S+?)[ )]", (out / "submit.sh").read_text(encoding="utf-8"))
    jobs = [name for name in order if (out / f"{name}.sbatch").exists()]
    assert jobs == [
        "preprocess", *(f"unet-seed{seed}-{stage}" for seed in (0, 3) for stage in ("train-seg", "eval")),
        "affine-seed0-eval", "affine-seed3-eval", "compare",
    ]  # fmt: skip
    for job in jobs:
        for command, config, *options in commands(out / f"{job}.sbatch"):
            assert config == str(project.config_file)
            project.made(command, *options)
        if job == "preprocess":  # all that the others share
            assert project.versions("cohort-test") == ["v0001"]
            shared = project.digests()
    assert shared.items() <= project.digests().items()
    assert project.versions("cohort") == project.versions("cohort-test") == ["v0001"]
    assert [project.manifest("unet/segmentation", f"v000{k}").identity.seed for k in (1, 2)] == [0, 3]
    assert project.versions("unet/scores") == project.versions("affine/scores") == ["v0001", "v0002"]
    assert project.versions("compare") == ["v0001"]


@needs_bash
def test_submission_hands_in_every_job_behind_those_it_waits_for(project, tmp_path):
    out, bin = tmp_path / ODD, tmp_path / "bin"
    program(bin / "sbatch", SBATCH.format(python=sys.executable))
    program(bin / "lrls", '#!/bin/bash\nprintf "%s\\n" "$*" >> commands\n')
    scans = tmp_path / "new scans"
    scans.mkdir()
    answers = ["--predict", str(scans), "--answers", str(tmp_path / "answers %a"), "--parts", "3"]
    activate = ["--activate", f"export PATH={shlex.quote(str(bin))}:$PATH"]
    written(project, out, "--method", "brbs", "--seed", "7", "--set", "data.test=[test_1]", *answers, *activate)
    for script in out.iterdir():
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0

    environment = {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", out / "submit.sh"], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    chain = ["preprocess", *(f"brbs-seed7-{s}" for s in ("train-reg", "generate", "train-seg", "eval"))]
    chain += ["predict", "tables"]
    common = f"--parsable --output={str(out).replace('%', '%%')}/logs/%x-%j.out --kill-on-invalid-dep=yes"
    waits = ["", *(f"--dependency=afterok:{99 + place} " for place in range(1, 6))]
    waits.append("--dependency=afterok:104,afterany:105 ")  # a scan without an answer fails its part alone
    assert (out / "log").read_text(encoding="utf-8").splitlines() == [
        f"{common} {on}{name}.sbatch" for on, name in zip(waits, chain, strict=True)
    ]
    assert done.stderr.splitlines() == [f"{100 + place} {name}" for place, name in enumerate(chain)]
    ran = (out / "commands").read_text(encoding="utf-8").splitlines()
    file, answered = project.config_file, tmp_path / "answers %a"
    setting = "--set=data.test=[test_1]"
    stages = [f"run {file} --method=brbs {setting} --set=seed=7 --until={s}" for s in ("train-reg", "generate")]
    assert ran[:4] == [
        f"run {file} --method=brbs {setting} --until=preprocess",
        f"preprocess {file} --part=test {setting}",
        *stages,
    ]
    predicted = f"predict {file} {scans} --out={answered} --method=brbs {setting} --set=seed=7"
    assert ran[-4:] == [*(f"{predicted} --part={k}/3" for k in (1, 2, 3)), predicted]


LISTENS = """#!/bin/bash
trap 'echo stops >> said; sleep 0.2; exit 75' USR1 TERM
echo begins >> said
for _ in $(seq 400); do sleep 0.05; done
"""


@needs_bash
@pytest.mark.parametrize(
    ("told", "array", "requeued"),
    [
        (["USR1"], "", "requeue 41"),
        (["USR1", "USR1"], "40", "requeue 40_2"),
        (["USR1", "TERM"], "", ""),
        (["TERM"], "", ""),
    ],
)
def test_a_job_that_is_told_to_stop_goes_back_into_the_queue_but_not_when_it_is_cancelled(
    told, array, requeued, project, tmp_path
):
    bin = tmp_path / "bin"
    program(bin / "lrls", LISTENS)
    program(bin / "scontrol", '#!/bin/bash\necho "$*" >> asked\n')
    written(project, tmp_path / "jobs", "--method", "unet", "--activate", f"export PATH={shlex.quote(str(bin))}:$PATH")
    environment = {**os.environ, "SLURM_JOB_ID": "41"}
    environment |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": "2"} if array else {}
    job = subprocess.Popen(["bash", "jobs/preprocess.sbatch"], cwd=tmp_path, env=environment)
    end = time.monotonic() + 60
    while not (tmp_path / "said").exists():
        assert time.monotonic() < end and job.poll() is None
        time.sleep(0.02)
    for number in told:
        job.send_signal(getattr(signal, f"SIG{number}"))
        time.sleep(0.05)
    assert job.wait(60) == 75
    asked = tmp_path / "asked"
    assert (asked.read_text(encoding="utf-8").strip() if asked.exists() else "") == requeued
    assert (tmp_path / "said").read_text(encoding="utf-8").split() in (
        ["begins", "stops"],
        ["begins", "stops", "stops"],
    )


@needs_bash
@pytest.mark.parametrize(("code", "runs"), [(0, 2), (1, 1), (75, 1)])
def test_a_job_ends_as_its_commands_do(code, runs, project, tmp_path):
    bin = tmp_path / "bin"
    program(bin / "lrls", f"#!/bin/bash\necho >> ran\nexit {code}\n")
    program(bin / "scontrol", "#!/bin/bash\necho >> asked\n")
    written(project, tmp_path / "jobs", "--method", "unet", "--activate", f"export PATH={shlex.quote(str(bin))}:$PATH")

    def ended(**further: str) -> int:
        environment = {**os.environ, "SLURM_JOB_ID": "41", **further}
        return subprocess.run(["bash", "jobs/preprocess.sbatch"], cwd=tmp_path, env=environment, check=False).returncode

    assert ended() == code
    assert len((tmp_path / "ran").read_text(encoding="utf-8").splitlines()) == runs
    assert (tmp_path / "asked").exists() == (code == 75)
    if code == 75:
        assert ended(SLURM_RESTART_COUNT="100") == 75
        assert len((tmp_path / "asked").read_text(encoding="utf-8").splitlines()) == 1


def test_directives_are_what_was_asked_for(project, tmp_path):
    out = tmp_path / "jobs"
    further = ["--partition", "gpu,long", "--account", "team", "--time", "2-12", "--mem", "64G", "--cpus", "6"]
    project.made("slurm", "--out", str(out), "--method", "unet", "--gpus", "a100:1", "--sbatch=--qos=long", *further)
    asked = (out / "unet-seed0-train-seg.sbatch").read_text(encoding="utf-8")
    for line in ("partition=gpu,long", "account=team", "time=2-12", "mem=64G", "cpus-per-task=6", "gres=gpu:a100:1"):
        assert f"#SBATCH --{line}\n" in asked
    for line in ("requeue", "signal=B:USR1@120", "qos=long", "open-mode=append"):
        assert f"#SBATCH --{line}\n" in asked
    assert asked.index("#SBATCH --qos=long") < asked.index("export ")  # sbatch reads none behind a command


def test_jobs_of_an_earlier_command_are_replaced_only_when_that_is_asked_for(project, tmp_path):
    out = tmp_path / "jobs"
    written(project, out, "--method", "unet")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    written(project, out, "--method", "unet")  # the same
    done = project.lrls("slurm", "--out", str(out), "--gpus", "0", "--method", "affine")
    assert done.code == 1 and "holds other jobs" in done.err and done.err.endswith("with --overwrite.\n")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    written(project, out, "--method", "affine", "--overwrite")
    assert {path.name for path in out.iterdir()} == {"preprocess.sbatch", "affine-seed0-eval.sbatch", "submit.sh"}
    (out / "mine.sbatch").write_text("#!/bin/bash\n")
    done = project.lrls("slurm", "--out", str(out), "--gpus", "0", "--method", "affine", "--overwrite")
    assert done.code == 1 and "mine.sbatch in it was not written by lrls" in done.err


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--time", "2"], "--time 2: found 120 s, expected more than the 120 s before its end"),
        (["--time", "soon"], "--time soon: expected 24:00:00 or 2-12."),
        (["--mem", "32 GB"], "--mem 32 GB: expected 32G."),
        (["--partition", "gpu; rm"], "--partition gpu; rm: expected a name"),
        (["--sbatch", "qos=long"], "--sbatch qos=long: expected an option of sbatch"),
        (["--budget", "soon"], "--budget soon: expected a time"),
        (
            ["--seed", "0", "--seed", "1", "--predict", ".", "--answers", "x"],
            "--predict: new scans are predicted by one",
        ),
        (["--predict", "."], "--predict and --answers belong together"),
        (["--method", "brsb"], "no method 'brsb'; choose one of"),
    ],
)
def test_what_slurm_would_refuse_is_refused_before_anything_is_written(asked, told, project, tmp_path):
    done = project.lrls("slurm", "--method", "unet", "--out", str(tmp_path / "jobs"), *asked)
    assert done.code == 1 and told in done.err and len(done.err.splitlines()) == 1
    assert not (tmp_path / "jobs").exists()


def test_names_that_end_a_line_are_refused(project, tmp_path):
    for name in ("a\nrm b", "a\\b"):
        (tmp_path / name).mkdir()
        done = project.lrls("slurm", "--method", "unet", "--out", str(tmp_path / name))
        assert done.code == 1 and len(done.err.splitlines()) == 1 and "path has" in done.err
        assert not list((tmp_path / name).iterdir())


def test_label_maps_that_cannot_be_scored_with_are_told_before_jobs_are_written(project, tmp_path):
    done = project.lrls("slurm", "--method", "unet", "--out", str(tmp_path / "jobs"), "--set", "data.test=[nobody]")
    assert done.code == 1 and "nobody" in done.err and not (tmp_path / "jobs").exists()


def test_a_job_uses_the_cores_that_it_was_given(monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    all_of_them = available_cores()
    for given, cores in (("1", 1), ("100000", all_of_them), ("0", all_of_them), ("few", all_of_them)):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
        assert available_cores() == cores


def test_times_are_read_as_sbatch_reads_them():
    given = ["90", "90:30", "1:30:00", "1-6", "1-06:30", "1-06:30:05"]
    assert [seconds_of(time) for time in given] == [5400, 5430, 5400, 108000, 109800, 109805]
    with pytest.raises(LrlsError):
        Resources(time="0:02:00", warn_s=120)

"""`lrls slurm`: jobs for a cluster, as files."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lrls_cli.echo import tell
from lrls_cli.options import ConfigFile, Settings


def slurm(
    config: ConfigFile,
    methods: Annotated[list[str], typer.Option("--method", help="Repeat for every method; see `lrls methods`.")],
    seeds: Annotated[
        list[int], typer.Option("--seed", min=0, help="Repeat to run every method several times; default: the file's.")
    ] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: `slurm` beside the file.")] = None,
    settings: Settings = [],  # noqa: B006
    budget: Annotated[str | None, typer.Option(help="Of every run, as of `lrls run`: 10m, or 2000steps.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="One job for every method and seed, not one a stage.")] = False,
    predict: Annotated[
        Path | None, typer.Option(help="Then predict these new scans, by an array of jobs; needs --answers.")
    ] = None,
    answers: Annotated[Path | None, typer.Option(help="Folder for what --predict answers.")] = None,
    parts: Annotated[int, typer.Option(min=1, max=1000, help="Jobs of the array of --predict.")] = 10,
    time: Annotated[str, typer.Option(help="Time limit of a job; stopped jobs go on in another turn.")] = "24:00:00",
    gpus: Annotated[
        str | None, typer.Option(help="GPUs of a job that trains: 1, a100:1, 0; default: 1, or 0 with device: cpu.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, help="Processor cores of a job.")] = 8,
    mem: Annotated[str, typer.Option(help="Memory of a job.")] = "32G",
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    account: Annotated[str | None, typer.Option(help="Account that pays.")] = None,
    sbatch: Annotated[list[str], typer.Option(help="A further option of sbatch, e.g. --qos=long; repeatable.")] = [],  # noqa: B006
    warn: Annotated[int, typer.Option(min=1, max=65535, help="Seconds before the limit to stop and save.")] = 120,
    activate: Annotated[
        list[str], typer.Option(help="A line that makes `lrls` known, e.g. 'module load lrls'; default: this Python.")
    ] = [],  # noqa: B006
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--force", help="Replace the files of an earlier command.")
    ] = False,
) -> None:
    """Write jobs for SLURM: readable scripts, and `submit.sh`, which hands them in. Nothing is handed in here.

    Example: lrls slurm lrls.yaml --method brbs --method unet --seed 0 --seed 1 --partition gpu
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from stages.config import load_config
    from stages.errors import LrlsError, plural
    from stages.slurm import NewScans, Resources, files_of, jobs_of, notes_on, write_files
    from stages.training.budget import Budget

    if budget is not None:
        Budget.parse(budget)
    if (predict is None) != (answers is None):
        raise LrlsError("--predict and --answers belong together: the new scans, and a folder for their label maps.")
    if predict and not predict.exists():
        raise LrlsError(f"--predict {predict}: no such file or folder; name new scans.")
    loaded = load_config(config, settings)
    resources = Resources(
        time, gpus or ("0" if loaded.device == "cpu" else "1"), cpus, mem, partition, account, warn, tuple(sbatch)
    )
    new = NewScans(predict, answers, parts) if predict and answers else None
    jobs = jobs_of(loaded, config, methods, seeds, overrides=settings, budget=budget, whole=whole, new=new)
    path = f'export PATH={shlex.quote(os.path.dirname(os.path.abspath(sys.executable)))}:"$PATH"'
    folder = out or config.absolute().parent / "slurm"
    write_files(folder, files_of(jobs, resources, activate or [path]), overwrite=overwrite)
    for note in notes_on(loaded):
        tell(note)
    tell(f"{plural(len(jobs), 'job')}; look them through, then hand them in:")
    tell(f"bash {shlex.quote(str(folder / 'submit.sh'))}")

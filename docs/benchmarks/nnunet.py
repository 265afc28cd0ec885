"""nnU-Net v2 beside ours: trained on the atlases alone, and on the couples that a method generates, scored as ours are.

    pip install 'lrls[nnunet]'          # or nnunetv2 in an environment of its own, named by --bin
    lrls run lrls.yaml --method best --set eval.part=dev
    python docs/benchmarks/nnunet.py lrls.yaml --set eval.part=dev --method best --beside best --out nnunet

Takes the couples of a method that was run. Writes both data sets (`lrls export --to nnunet`) and the part's scans, all
on the cohort's grid. Then nnU-Net's own commands check, plan, preprocess, train on all cases (fold "all": one label
cannot be split) and predict. Its label maps go back to each scan's own voxels as our answers do. The table is that of
`lrls compare`; `--beside` names rows of it.

By default nnU-Net trains as it always does, 1000 epochs of 250 iterations. `--epochs` and `--iterations` shorten that
(`nnunet_trainer/short.py`). What is finished is not made again: a run that was stopped begins with the command of
nnU-Net that had not ended.

    OUT/raw/Dataset101_Atlases, Dataset102_<method>    OUT/scans-<digest>    OUT/preprocessed    OUT/results
    OUT/answers/<data set>/<case>.nii.gz               OUT/<data set>.log    OUT/nnunet.csv
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from stages.artifacts.cohort import Cohort
from stages.artifacts.costs import cost
from stages.artifacts.made import Made
from stages.artifacts.store import history
from stages.compare import markdown, newest_scores, table_of, title
from stages.config import Config, load_config
from stages.errors import LrlsError
from stages.methods import find_method
from stages.nnunet import export_nnunet, score_answers, write_scans
from stages.planning.obeying import settled
from stages.preprocess import preprocess
from stages.workflow import newest

TRAINER = Path(__file__).parent / "nnunet_trainer"
NETWORK = "3d_fullres"  # nnU-Net's configuration


def main(
    config_file: Path,
    setting: Annotated[list[str], typer.Option("--set")] = [],  # noqa: B006
    method: Annotated[str, typer.Option(help="Whose generated couples nnU-Net learns from.")] = "best",
    couples: Annotated[int, typer.Option(min=1, help="Couples to draw from generated paths.")] = 100,
    beside: Annotated[list[str], typer.Option(help="A row of `lrls compare`; repeat.")] = [],  # noqa: B006
    out: Path = Path("nnunet"),
    epochs: Annotated[int | None, typer.Option(min=1, help="nnU-Net's own: 1000.")] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations of an epoch, with --epochs.")] = 250,
    device: str = "cpu",
    processes: Annotated[int, typer.Option(min=1, help="Processes in which nnU-Net prepares scans.")] = 1,
    bin: Annotated[Path | None, typer.Option(help="Folder of nnU-Net's commands; default: those on the PATH.")] = None,
) -> None:
    try:
        nnunet = NnUNet(out.resolve(), epochs, iterations, device, processes, bin)
        config = settled(config_file, setting, method).config
        made, _ = newest(config, find_method(method), None, until="train-seg")
        if made.generated is None:
            raise LrlsError(f"--method {method} generates nothing to learn from; name one that does, such as best.")
        held_out = preprocess(config, config.eval.part, base=made.cohort)
        scans = Scans(nnunet.out / f"scans-{held_out.manifest.digest[:8]}", held_out.parts[config.eval.part])
        write_scans(scans.cases, held_out, scans.folder)
        sets = [
            DataSet("nnunet", nnunet.raw / "Dataset101_Atlases", Made(made.cohort), "unet", 0),
            DataSet(
                f"nnunet, couples of {method}",
                nnunet.raw / f"Dataset102_{method.replace('-', '_')}",
                made, method, couples,
            ),
        ]  # fmt: skip
        for data in sets:
            print(f"{data.name}: {data.folder.name}", flush=True)
            nnunet.answer(data, scans, config)
        tabulate(sets, nnunet, held_out, load_config(config_file, setting), beside)
    except LrlsError as error:
        raise SystemExit(f"nnunet.py: {error}") from None


@dataclass(frozen=True)
class Scans:
    """The scans to answer, on the cohort's grid."""

    folder: Path
    cases: list[str]


@dataclass(frozen=True)
class DataSet:
    """A data set of nnU-Net: what was made, and by which method its generated part."""

    name: str
    folder: Path
    made: Made
    method: str
    couples: int

    @property
    def key(self) -> list[str]:
        """What it is written from; another key is another data set."""
        sources = (self.made.cohort, *self.made.artifacts.values())
        return [*(source.manifest.digest for source in sources), str(self.couples)]

    @property
    def seconds(self) -> float:
        """Wall time of what it is written from."""
        return sum(source.manifest.wall_time_s for source in (self.made.cohort, *self.made.artifacts.values()))


class NnUNet:
    """nnU-Net's own commands, in folders of their own.

    Raises:
        LrlsError: they are not installed, or one of them failed.
    """

    def __init__(
        self, out: Path, epochs: int | None, iterations: int, device: str, processes: int, bin: Path | None
    ) -> None:
        self.out, self.raw, self.device, self.processes = out, out / "raw", device, processes
        self.trainer = "nnUNetTrainer" if epochs is None else "nnUNetTrainerShort"
        self.path = str(bin.resolve()) if bin else os.environ.get("PATH", "")
        if shutil.which("nnUNetv2_train", path=self.path) is None:
            where = f"in {bin}" if bin else "on the PATH"
            raise LrlsError(f"there is no nnUNetv2_train {where}; install it with `pip install 'lrls[nnunet]'`.")
        self.environment = os.environ | {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(out / "preprocessed"),
            "nnUNet_results": str(out / "results"),
            "nnUNet_extTrainer": str(TRAINER),
            "nnUNet_n_proc_DA": str(processes),
            "LRLS_NNUNET_EPOCHS": str(epochs),
            "LRLS_NNUNET_ITERATIONS": str(iterations),
            "PYTHONPATH": "",  # lrls's packages are not nnU-Net's
        }
        for folder in (self.raw, out / "preprocessed", out / "results"):
            folder.mkdir(parents=True, exist_ok=True)

    def answers(self, data: DataSet) -> Path:
        return self.out / "answers" / data.folder.name

    def answer(self, data: DataSet, scans: Scans, config: Config) -> None:
        """Write, plan, preprocess, train and predict; each of them once."""
        number, processes = data.folder.name[len("Dataset") :][:3], str(self.processes)
        trained = ["-tr", self.trainer, "-device", self.device]
        length = [self.environment[name] for name in ("LRLS_NNUNET_EPOCHS", "LRLS_NNUNET_ITERATIONS")]
        with self.once(data, "written", data.key) as missing:
            if missing:
                export_nnunet(data.made, config, data.method, data.folder, couples=data.couples, force=True)
        with self.once(data, "prepared", data.key) as missing:
            if missing:
                self.call(
                    data, "nnUNetv2_plan_and_preprocess", "-d", number, "-c", NETWORK, "--verify_dataset_integrity",
                    "--clean", "-np", processes, "-npfp", processes,
                )  # fmt: skip
        with self.once(data, "trained", [*data.key, *trained, *length]) as missing:
            if missing:
                self.call(data, "nnUNetv2_train", number, NETWORK, "all", *trained)
        with self.once(data, "answered", [*data.key, *trained, *length, scans.folder.name]) as missing:
            if missing:
                self.call(
                    data, "nnUNetv2_predict", "-i", str(scans.folder), "-o", str(self.answers(data)), "-d", number,
                    "-c", NETWORK, "-f", "all", *trained, "-npp", processes, "-nps", processes,
                )  # fmt: skip

    @contextmanager
    def once(self, data: DataSet, step: str, key: list[str]) -> Iterator[bool]:
        """Whether a step has yet to be made from what the key names; if so, it is timed and remembered."""
        record, began = self._record(data, step), time.monotonic()
        missing = not record.exists() or json.loads(record.read_text(encoding="utf-8"))["key"] != key
        if missing:
            record.unlink(missing_ok=True)
        yield missing
        if missing:
            text = json.dumps({"key": key, "seconds": time.monotonic() - began})
            record.write_text(text + "\n", encoding="utf-8")

    def call(self, data: DataSet, command: str, *arguments: str) -> None:
        log = self.out / f"{data.folder.name}.log"
        with log.open("a", encoding="utf-8") as file:
            print(f"== {command} {' '.join(arguments)}", file=file, flush=True)
            ended = subprocess.run(
                [str(shutil.which(command, path=self.path)), *arguments],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if ended.returncode:
            raise LrlsError(f"{command} ended with exit status {ended.returncode}; the end of {log} says why.")

    def seconds(self, data: DataSet, step: str) -> float:
        """Wall time of a finished step."""
        return json.loads(self._record(data, step).read_text(encoding="utf-8"))["seconds"]

    def _record(self, data: DataSet, step: str) -> Path:
        return self.out / f"{data.folder.name}.{step}.json"


def tabulate(sets: list[DataSet], nnunet: NnUNet, held_out: Cohort, config: Config, beside: list[str]) -> None:
    """Print the table of `lrls compare` with nnU-Net's rows, and write `nnunet.csv`."""
    scores, fields, costs, answered = {}, {}, {}, {}
    made = {manifest.digest: manifest for _, manifest in history(config.workspace)}
    cases = held_out.parts[config.eval.part]
    for row in beside:
        own = newest_scores(config, row, config.seed, made)
        if set(own.table["case"]) != set(cases):
            raise LrlsError(f"{row} was scored on other scans than {config.eval.part}; run `lrls eval` again.")
        scores[row], fields[row] = own.table.assign(run=0), own.fields
        costs[row], answered[row] = [cost(own.manifest, made)], [own.manifest.scan_s]
    for data in sets:
        rows = score_answers("segmentation", nnunet.answers(data), held_out, config)
        scores[data.name], fields[data.name] = rows.assign(run=0), {}
        took = data.seconds + nnunet.seconds(data, "prepared") + nnunet.seconds(data, "trained")
        costs[data.name], answered[data.name] = [(took, None)], [nnunet.seconds(data, "answered") / len(cases)]
    rows = [own.assign(method=method).drop(columns="run") for method, own in scores.items()]
    pd.concat(rows).to_csv(nnunet.out / "nnunet.csv", index=False, float_format="%.6f")
    table = table_of(scores, fields, costs, answered)
    print(markdown(table, title(config.eval.part, table)))


if __name__ == "__main__":
    typer.run(main)

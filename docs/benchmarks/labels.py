"""What do further labels buy, and does it matter which scans get them? From one label to five, in several orders.

    python docs/benchmarks/labels.py docs/benchmarks/hippocampus.yaml --set data.folder=FOLDER --out results/hippocampus

The scans of `data.unlabeled` are taken for scans without labels. Wherever an order chooses one, its label map in the
data set stands in for the person who labels it: it comes in by a review, as `lrls review --corrected` would bring it.
All orders begin with the atlas of the configuration. Orders:

    suggested   `lrls suggest-next` after the training with the labels so far; the last two as one batch
    typical     as `lrls suggest-atlas` ranks them, at once
    random K    drawn with seed K

Each training is the same number of steps of `best`, from scratch; `suggested, latest` goes the same way as `suggested`
and starts each training from the weights before it. Scored on `dev`. OUT.csv gets a row when a run is done; a stopped
command resumes.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from collections.abc import Callable
from pathlib import Path

from stages.artifacts.made import Made
from stages.config import Config, load_config
from stages.data.intake import label_file
from stages.evaluate import evaluate
from stages.generate import generate
from stages.preprocess import preprocess
from stages.reviewed import Overlay, Review, Said
from stages.suggest_atlas import suggest_atlas
from stages.suggest_next import suggest_next
from stages.train_seg import train_segmentation

METHOD = "best"
COUNTS = (1, 2, 3, 5)  # labels
COLUMNS = ("order", "start", "labels", "dsc", "low", "high", "worst", "network", "seconds", "cases")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--pool", type=int, default=30, help="unlabelled scans, the first ones")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.settings)
    pool = config.part("unlabeled")[: arguments.pool]
    config = config.model_copy(update={"data": config.data.model_copy(update={"unlabeled": pool})})
    out = arguments.out.with_suffix(".csv")
    rows = list(csv.DictReader(out.open())) if out.exists() else []

    def chosen_at_once(order: list[str]) -> Callable[[Made, list[str], int], list[str]]:
        return lambda made, so_far, wanted: order[:wanted]

    def suggested(made: Made, so_far: list[str], wanted: int) -> list[str]:
        return so_far + suggest_next(made, with_labels(config, so_far), METHOD, count=wanted).verdict["chosen"]

    typical = suggest_atlas(config).table["case"].tolist()
    orders = {"suggested": suggested, "typical": chosen_at_once(typical)}
    for seed in range(arguments.seeds):
        shuffled = sorted(pool)
        random.Random(seed).shuffle(shuffled)
        orders[f"random {seed}"] = chosen_at_once(shuffled)
    for order, choose in orders.items():
        for start in ("scratch", "latest") if order == "suggested" else ("scratch",):
            cases: list[str] = []
            made = None
            for labels in COUNTS:
                if made is not None:
                    more = labels - 1 - len(cases)
                    cases = choose(made, cases, more if order == "suggested" else labels - 1)
                made, row = run(config, cases, start if labels > 1 else "scratch")
                row = {"order": order, "start": start, "labels": labels, **row, "cases": " ".join(cases)}
                if not any(same(old, row) for old in rows):
                    rows.append(row)
                    write(rows, out)
                    print({key: row[key] for key in COLUMNS[:-1]}, flush=True)


def with_labels(config: Config, cases: list[str]) -> Config:
    """The configuration after a review that brought label maps of these scans."""
    said = {case: Said(label=str(label_file(config, case).resolve())) for case in cases}
    return config.reviewed(Review(config.base / "review.yaml", Overlay(configuration="lrls.yaml", cases=said)))


def run(config: Config, cases: list[str], start: str) -> tuple[Made, dict[str, object]]:
    """Train and score `best` with the configuration's atlases and these."""
    training = config.train_seg.model_copy(update={"start_from": start})
    config = with_labels(config, cases).model_copy(update={"train_seg": training})
    began = time.monotonic()
    made = Made(preprocess(config, "train"))
    made = made.and_then("generated", generate(made.cohort, config, METHOD, tell=quiet), 0)
    inputs = {"generated": made.artifacts["generated"]}
    made = made.and_then("segmentation", train_segmentation(made.cohort, config, METHOD, inputs=inputs, tell=quiet), 0)
    seconds = time.monotonic() - began
    held_out = preprocess(config, "dev", base=made.cohort)
    scores = evaluate(made.cohort, held_out, config, METHOD, inputs=made.artifacts, tell=quiet)
    outputs = scores.summary["outputs"]
    dsc = next(iter(outputs.values()))["dsc"]
    network = outputs.get("network", {}).get("dsc", {}).get("mean", "")
    row = {"dsc": dsc["mean"], "low": dsc["low"], "high": dsc["high"], "worst": dsc["min"], "network": network}
    return made, {key: f"{value:.4f}" if value != "" else "" for key, value in row.items()} | {
        "seconds": f"{seconds:.1f}"
    }


def same(old: dict[str, str], row: dict[str, object]) -> bool:
    return all(str(old[key]) == str(row[key]) for key in ("order", "start", "labels", "cases"))


def write(rows: list[dict], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def quiet(line: str) -> None:
    """What stages tell is not needed."""


if __name__ == "__main__":
    main()

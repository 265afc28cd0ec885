"""DSC against a setting: runs of methods with several values and seeds, as one table and one curve.

A run of a sweep is what `lrls run --set SETTING=VALUE --set seed=SEED` makes, so nothing is trained twice, and a sweep
that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.artifacts.costs import cost
from stages.artifacts.draft import Draft
from stages.artifacts.scores import Scores
from stages.artifacts.store import history, make
from stages.artifacts.sweep import Sweep
from stages.config import Config, load_config
from stages.errors import LrlsError, plural, shortened
from stages.methods import find_method, plan_of
from stages.parts.statistics import crossed_interval, summarize
from stages.text_files import yaml_text, yaml_value
from stages.training.budget import Budget
from stages.workflow import check_scored, refuse_early, run

METRICS = ["dsc", "hd95_mm", "assd_mm"]
COUNTS = {"preprocess.most_atlases": "atlases", "preprocess.most_unlabeled": "unlabeled"}
NAMES = {"preprocess.most_atlases": "labelled scans", "preprocess.most_unlabeled": "unlabelled scans"}
FIXED = ("seed", "workspace", "eval.part")  # what all runs of a sweep share, or say otherwise


@dataclass(frozen=True, eq=False)
class One:
    """A run of a sweep.

    Args:
        value: of the setting, in one line of YAML.
    """

    method: str
    value: str
    seed: int
    config: Config

    def __str__(self) -> str:
        return f"{self.method}, {shortened(self.value)}, seed {self.seed}"


def sweep(
    path: Path,
    overrides: Sequence[str],
    methods: Sequence[str],
    swept: str,
    seeds: Sequence[int] = (),
    *,
    budget: Budget | None = None,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> Sweep:
    """Run methods with every value of a setting and every seed; then draw DSC against the setting.

    Args:
        path: configuration file.
        overrides: as of `load_config`.
        methods: by name.
        swept: "setting=a,b,c" as for `--set`; a method's own setting needs no section.
        seeds: none: the configuration's.
        budget: of every run, as of `workflow.run`.
        force: make the table again; runs that are up to date stay.
        tell: receives a line per stage.

    Raises:
        LrlsError: a value, a method or a scan has a fault; all values are looked at before anything is run.
    """
    setting, values = swept_values(swept)
    file = load_config(path, list(overrides))
    methods, seeds = list(dict.fromkeys(methods)), sorted(set(seeds)) or [file.seed]
    runs = list(_runs(path, overrides, methods, setting, values, seeds))
    _refuse(runs, setting)
    scores: dict[One, Scores] = {}
    for number, one in enumerate(runs, start=1):
        tell(f"run {number} of {len(runs)}: {one.method}, {setting}={shortened(one.value)}, seed {one.seed}")
        made = run(one.config, one.method, budget=budget, tell=tell).scores
        assert made is not None
        scores[one] = made
    _tell_what_changed_nothing(scores, setting, tell)
    report_as = {"report_as": file.eval.report_as} if file.eval.report_as else {}
    settings = {"part": file.eval.part, "methods": methods, "setting": setting, "values": values, "seeds": seeds}
    return make(
        Sweep,
        file.workspace / Sweep.KIND,
        lambda draft: _write(draft, scores, setting, values),
        made_by="sweep",
        settings=settings | report_as,
        seed=seeds[0],
        inputs={f"{one.method}/{one.value}/{one.seed}": each for one, each in scores.items()},
        force=force,
        ready=lambda: _check_alike(scores),
    )


def swept_values(swept: str) -> tuple[str, list[Any]]:
    """The name and the values of "setting=a,b,c"; numbers in order, anything else as it was given.

    Raises:
        LrlsError: it is something else, or holds fewer than two different values.
    """
    name, separator, text = swept.partition("=")
    name = name.strip()
    if not separator or not all(part.strip() for part in name.split(".")):
        raise LrlsError(f"{shortened(swept)}: expected SETTING=VALUE,VALUE,..., for example mix_weight=0,0.1,1.")
    if name in FIXED:
        raise LrlsError(f"{name} is no setting to sweep; give --seed for seeds, and --set {name}=... for all runs.")
    try:
        given = yaml_value(f"[{text}]", name)
    except ValueError as error:
        raise LrlsError(f"{name}: the values are not readable as YAML ({error}); write them as a,b,c.") from None
    values = list({json.dumps(value): value for value in given}.values())
    if len(values) < 2:
        raise LrlsError(f"{name}: found {plural(len(values), 'value')}, at least 2 are needed for a curve; list more.")
    return name, sorted(values) if all(_is_number(value) for value in values) else values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _runs(
    path: Path, overrides: Sequence[str], methods: Sequence[str], setting: str, values: Sequence[Any],
    seeds: Sequence[int],
) -> Iterator[One]:  # fmt: skip
    for method in methods:
        find_method(method)
        own = "." not in setting and setting not in Config.model_fields
        for value in values:
            for seed in seeds:
                text = yaml_text(value)
                given = f"{f'methods.{method}.' if own else ''}{setting}={text}"
                yield One(method, text, seed, load_config(path, [*overrides, given, f"seed={seed}"]))


def _refuse(runs: Sequence[One], setting: str) -> None:
    """What can be refused before anything is run."""
    first = runs[0].config
    scored = first.part(first.eval.part)
    if not scored:
        raise LrlsError(f"data.{first.eval.part} lists no scan; list labelled scans there, or set eval.part.")
    for one in runs:
        if one.config.part(one.config.eval.part) != scored:
            raise LrlsError(
                f"{setting}: {shortened(runs[0].value)} and {shortened(one.value)} are scored on other scans; "
                "name the same ones for all values."
            )
        if part := COUNTS.get(setting):
            listed, asked = len(one.config.listed(part)), int(one.value) if one.value.isdigit() else 0
            if asked > listed:
                raise LrlsError(f"{setting}={asked}: data.{part} lists {listed}; list more, or ask for fewer.")
        method = find_method(one.method)
        plan_of(method, one.config)
        refuse_early(one.config, method)
    check_scored(first)


def _tell_what_changed_nothing(scores: dict[One, Scores], setting: str, tell: Callable[[str], None]) -> None:
    seen: dict[tuple[str, str], One] = {}
    for one, made in scores.items():
        key = (one.method, made.manifest.digest)
        if key in seen:
            tell(
                f"note: {setting} {shortened(seen[key].value)} and {shortened(one.value)} are one run of {one.method}, "
                "which that setting does not change."
            )
        seen.setdefault(key, one)


def _check_alike(scores: dict[One, Scores]) -> None:
    """All runs were scored on the same label maps."""
    truths = [
        {role: digest for role, digest in made.manifest.identity.inputs.items() if role.startswith("truth/")}
        for made in scores.values()
    ]
    if any(each != truths[0] for each in truths):
        raise LrlsError("label maps changed between the runs; run the same command again.")


def _write(draft: Draft, scores: dict[One, Scores], setting: str, values: Sequence[Any]) -> None:
    from stages.pictures import Curve, sweep_page

    workspace = next(iter(scores)).config.workspace
    made = {manifest.digest: manifest for _, manifest in history(workspace)}
    long = pd.concat(
        each.table.assign(method=one.method, value=one.value, seed=one.seed) for one, each in scores.items()
    )
    keys = ["method", "value", "output"]
    scans = long.groupby([*keys[:2], "seed", "output", "case"], sort=False)[METRICS].mean().reset_index()
    scans.to_csv(draft.folder / "scans.csv", index=False, float_format="%.6f")
    times = {
        (one.method, one.value): [cost(scores[other].manifest, made)[0] for other in scores if _same(one, other)]
        for one in scores
    }
    missed = long.groupby(keys, sort=False)["missed"].sum()
    rows = []
    for key, own in scans.groupby(keys, sort=False):
        table = own.pivot(index="seed", columns="case", values="dsc").to_numpy()
        of_runs, dsc = np.nanmean(table, axis=1), summarize(np.nanmean(table, axis=0))
        low, high = crossed_interval(table)
        several, seconds = table.size > 1, times[key[:2]]
        known = [each for each in seconds if each is not None]
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "runs": len(table),
                "scans": table.shape[1],
                "dsc": float(np.nanmean(table)),
                "dsc_low": low if several else None,
                "dsc_high": high if several else None,
                "dsc_std": dsc["std"] if table.shape[1] > 1 else None,
                "dsc_std_runs": float(of_runs.std()) if len(table) > 1 else None,
                "dsc_worst": dsc["min"],
                "dsc_best": dsc["max"],
                "hd95_mm": own["hd95_mm"].mean(),
                "assd_mm": own["assd_mm"].mean(),
                "missed": missed[key] / len(table),
                "wall_time_s": None if len(known) < len(seconds) else sum(known) / len(known),
            }
        )
    pd.DataFrame(rows).to_csv(draft.folder / "sweep.csv", index=False, float_format="%.6g")
    structures = [
        dict(zip([*keys, "structure"], key, strict=True)) | _of_structure(own)
        for key, own in long.groupby([*keys, "structure"], sort=False)
    ]
    pd.DataFrame(structures).to_csv(draft.folder / "structures.csv", index=False, float_format="%.6f")
    texts = [yaml_text(value) for value in values]
    curves = {}
    for (method, output), own in pd.DataFrame(rows).groupby(["method", "output"], sort=False):
        own = own.set_index("value").reindex(texts)
        picked = scans[(scans["method"] == method) & (scans["output"] == output)]
        runs = [picked[picked["value"] == text].groupby("seed")["dsc"].mean().tolist() for text in texts]
        several = max(map(len, runs)) > 1
        low, high = (own[end].astype(float).tolist() for end in ("dsc_low", "dsc_high"))
        curves[str(method), str(output)] = Curve(own["dsc"].tolist(), low, high, runs if several else ())
    (first, main), *others = curves
    by_structure = {}
    if all(method == first for method, _ in others):
        table = pd.DataFrame(structures)
        for name, own in table[table["output"] == main].groupby("structure", sort=False):
            by_structure[str(name)] = Curve(own.set_index("value")["dsc"].reindex(texts).tolist())
    sweep_page(
        {_name_of(key, list(curves)): curve for key, curve in curves.items()},
        draft.folder / "curve.png",
        setting=NAMES.get(setting, setting),
        values=[value if _is_number(value) else text for value, text in zip(values, texts, strict=True)],
        structures=by_structure,
    )


def _same(one: One, other: One) -> bool:
    return (one.method, one.value) == (other.method, other.value)


def _of_structure(own: pd.DataFrame) -> dict[str, Any]:
    table = own.pivot(index="seed", columns="case", values="dsc").to_numpy()
    low, high = crossed_interval(table)
    means = {name: own[name].mean() for name in METRICS}
    return {"dsc": means.pop("dsc"), "dsc_low": low, "dsc_high": high} | means | {"missed": own["missed"].sum()}


def _name_of(key: tuple[str, str], keys: Sequence[tuple[str, str]]) -> str:
    """The method, with the output where it has several."""
    method, output = key
    return f"{method}, {output}" if sum(other == method for other, _ in keys) > 1 else method

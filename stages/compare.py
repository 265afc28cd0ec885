"""Methods side by side on the same scans, with intervals, paired tests, time and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from stages.answering.side_by_side import draw_side_by_side
from stages.artifacts.comparison import Comparison
from stages.artifacts.costs import cost, way_to
from stages.artifacts.files import atomic_write_text
from stages.artifacts.manifest import Manifest
from stages.artifacts.scores import Scores
from stages.artifacts.store import Draft, Listed, history, listed_versions, make
from stages.config import Config
from stages.data.subsets import cohort_settings
from stages.errors import LrlsError
from stages.methods import aligned_for, find_method, settings_of, training_of
from stages.methods.recipe import Method
from stages.parts.statistics import bootstrap_interval, holm, paired_wilcoxon, summarize
from stages.planning.obeying import fitting_plans, obey
from stages.text_files import yaml_text, yaml_value

METRICS = ["dsc", "hd95_mm", "assd_mm"]
STEPS = ("train_reg.steps", "train_seg.steps")
ROLES = ("atlases", "unlabeled", "supervised")
Key = tuple[str, str]  # method, output


def newest_scores(
    config: Config, row: str, seed: int, made: dict[str, Manifest], tell: Callable[[str], None] = print
) -> Scores:
    """The newest scores of a method with a seed, on the part that `eval.part` names; the last round of a run.

    Scores on exactly the scans that the part lists come first. Among these, runs come first whose settings are those
    of the configuration and the row, as it stands or as a plan filled it in; steps do not count, because `--budget`
    sets them. If there is no such run, the
    newest one is taken, and a line says how it differs.

    Args:
        row: the method, and settings that its run must have had: "os-medseg teacher=false train_seg.steps=500".
        made: the workspace's artifacts by digest.
        tell: receives a line where the settings differ.

    Raises:
        LrlsError: there are none.
    """
    name, *asked = row.split()
    method = find_method(name)
    given = dict(_setting(setting, row) for setting in asked)
    wanted = {name: _read(config, name, value) for name, value in given.items()}
    said = _settings_in(config, method, wanted)
    by_plan = [_settings_in(obey(config, plan), method, wanted) for plan in fitting_plans(config)]
    wanted = {name: said[name] for name in wanted}
    truths = {f"truth/{case}" for case in config.part(config.eval.part)}
    runs, known = list[tuple[Listed, dict[str, Any]]](), set[str]()
    for scores in reversed(listed_versions(Scores, config.workspace / method.name / "scores")):
        identity = scores.manifest.identity
        wanted_scores = (config.eval.part, config.eval.report_as, seed)
        if (identity.config.get("part"), identity.config.get("report_as", {}), identity.seed) == wanted_scores:
            had = _settings_of(scores.manifest, made)
            known |= had.keys()
            if wanted.items() <= had.items():
                runs.append((scores, had))
    of_part = [(scores, had) for scores, had in runs if truths == _truths(scores).keys()]
    if runs := of_part or runs:
        free = {
            *STEPS,
            "preset",
            *({"rounds"} if "round" in wanted else ()),
        }  # a round does not depend on how many follow
        free |= method.settings.of_later_rounds() if wanted.get("round") == 0 else set()
        as_said = [
            (scores, had)
            for scores, had in runs
            if any(not _differing(had, each, but=free) for each in (said, *by_plan))
        ]
        if not as_said:
            newest, had = runs[0]
            others = (_other(name, had[name], said[name]) for name in _differing(had, said, but=free)[:3])
            tell(f"{row}: {newest.folder.name} of its scores was made with other settings: {'; '.join(others)}.")
        _, first = (as_said or runs)[0]
        of_run = [scores for scores, had in as_said or runs if not _differing(had, first, but={"round"})]
        return Scores.open(max(of_run, key=lambda scores: scores.manifest.identity.round).folder)
    if known and (unknown := sorted(wanted.keys() - known - _settings_in(config, method, {}).keys())):
        raise LrlsError(
            f"--method {row!r}: no run of {name} has a setting {unknown[0]}; there are {', '.join(sorted(known))}."
        )
    options = [_option(name, *setting) for setting in given.items()] + [f"--set seed={seed}"] * (seed != config.seed)
    command = " ".join(["lrls run", f"--method {name}", *filter(None, options)])
    grouped = " and this eval.report_as" if config.eval.report_as else ""
    raise LrlsError(f"{row} has no scores on {config.eval.part} with seed {seed}{grouped}; run `{command}` first.")


def _setting(text: str, row: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise LrlsError(f"--method {row!r}: found {text!r} behind the method, expected setting=value.")
    try:
        return name, yaml_value(value, name)
    except ValueError as error:
        raise LrlsError(f"--method {row!r}: the value of {name} is not readable as YAML ({error}).") from None


def _read(config: Config, name: str, value: Any) -> Any:
    """A row's setting as runs store it: for `data` the case ids, not the name of their list."""
    section, _, role = name.partition(".")
    if section != "data" or role not in ROLES:
        return value
    return config.model_copy(update={"data": config.data.model_copy(update={role: value})}).part(role)


def _other(name: str, had: Any, said: Any) -> str:
    return f"{name} other scans" if isinstance(said, list) else f"{name} {had}, not {said}"


def _option(method: str, name: str, value: Any) -> str:
    """The option of `lrls run` for a setting of a row."""
    if name == "round":
        return f"--round {value}"
    return f"--set {name if '.' in name else f'methods.{method}.{name}'}={yaml_text(value)}"


def _settings_in(config: Config, method: Method, wanted: dict[str, Any]) -> dict[str, Any]:
    """A run's settings by configuration and row, named as in `_settings_of`; presets and recipes fill in the rest."""
    own = {name: value for name, value in wanted.items() if name in method.settings.model_fields}
    of_method = config.methods.get(method.name, {}) | own
    config = config.model_copy(update={"methods": config.methods | {method.name: of_method}})
    of_cohort = cohort_settings(aligned_for(method, config), "train")
    sections = {"generate": config.generate.model_dump(mode="json"), **of_cohort}
    for section in ("train_reg", "train_seg"):
        if getattr(method, section):
            sections[section] = training_of(method, config, section).model_dump(mode="json")
    settings = {"settings": settings_of(method, config).read_by("eval"), "precision": config.precision}
    named = _named(sections | settings)
    return named | {name: value for name, value in wanted.items() if name not in own}


def _differing(had: dict[str, Any], said: dict[str, Any], *, but: set[str]) -> list[str]:
    """Settings that both name, with different values."""
    return sorted(name for name in had.keys() & said.keys() - but if had[name] != said[name])


def _settings_of(scores: Manifest, made: dict[str, Manifest]) -> dict[str, Any]:
    """A run's settings: the method's by their names, train_reg.steps and the like, and its round."""
    settings: dict[str, Any] = {"round": scores.identity.round}
    for manifest in [scores, *filter(None, way_to(scores, made).values())]:
        try:
            settings |= _named(manifest.identity.config)
        except (TypeError, ValueError, AttributeError):
            kind = manifest.identity.kind
            raise LrlsError(
                f"the {kind} with digest {manifest.digest[:8]} says nothing readable of its settings; "
                "`lrls history` tells where it lies: delete it."
            ) from None
    return settings


def _named(identity: dict[str, Any]) -> dict[str, Any]:
    """The settings that an artifact depends on, named as for `--set`; a method's own have no section."""
    settings = dict(identity.get("settings", {}))
    settings |= {name: identity[name] for name in ("precision", "others") if name in identity}
    for section in ("train_reg", "train_seg", "generate", "preprocess"):
        settings |= {f"{section}.{name}": value for name, value in identity.get(section, {}).items()}
    return settings | {f"data.{role}": cases for role, cases in identity.get("members", {}).items()}


def compare(
    config: Config,
    methods: Sequence[str],
    seeds: Sequence[int] = (),
    *,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> Comparison:
    """Compare the newest scores of methods; differences are of DSC to the first one, paired over scans.

    Args:
        methods: names, each with settings that its run must have had, if any ("lt-net gan_weight=0"); the first is
            the reference.
        seeds: a scan's score is its mean over the runs with these seeds; none: the configuration's.

    Raises:
        LrlsError: a method has no scores, or two were scored on different scans.
    """
    if not config.part(config.eval.part):
        raise LrlsError(f"data.{config.eval.part} lists no scan; list labelled scans there, or set eval.part.")
    methods, seeds = (
        list(dict.fromkeys(" ".join(row.split()) for row in methods)),
        sorted(set(seeds)) or [config.seed],
    )
    made = {manifest.digest: manifest for _, manifest in history(config.workspace)}
    runs = {method: [newest_scores(config, method, seed, made, tell) for seed in seeds] for method in methods}
    return make(
        Comparison,
        config.workspace / "compare",
        lambda draft: _write(draft, config, runs, made),
        made_by="compare",
        settings={"part": config.eval.part, "methods": methods, "seeds": seeds},
        seed=seeds[0],
        inputs={f"{m}/{seed}": run for m in methods for seed, run in zip(seeds, runs[m], strict=True)},
        force=force,
        ready=lambda: _check_alike(runs),
    )


def _write(draft: Draft, config: Config, runs: dict[str, list[Scores]], made: dict[str, Manifest]) -> None:
    from stages.pictures import structures_by_method

    scores = {method: _scores_of(of_method) for method, of_method in runs.items()}
    fields = {method: _fields_of(of_method) for method, of_method in runs.items()}
    costs = {method: [cost(run.manifest, made) for run in of_method] for method, of_method in runs.items()}
    answered = {method: [run.manifest.scan_s for run in of_method] for method, of_method in runs.items()}
    table = table_of(scores, fields, costs, answered)
    table.to_csv(draft.folder / "compare.csv", index=False, float_format="%.6g")
    num_seeds = len(next(iter(runs.values())))
    structures = pd.concat(
        rows.groupby(["output", "structure"], sort=False)[[*METRICS, "missed"]]
        .agg(dict.fromkeys(METRICS, "mean") | {"missed": lambda missed: missed.sum() / num_seeds})
        .reset_index()
        .assign(method=method)
        for method, rows in scores.items()
    )
    order = ["method", "output", "structure", *METRICS, "missed"]
    structures[order].to_csv(draft.folder / "structures.csv", index=False, float_format="%.6f")
    atomic_write_text(draft.folder / "compare.md", markdown(table, title(config.eval.part, table)))
    by_method: dict[str, dict[str, list[float]]] = {}
    for method, rows in scores.items():
        for output, own in rows.groupby("output", sort=False):
            name = method if rows["output"].nunique() == 1 else f"{method}, {output}"
            by_method[name] = {s: own[own["structure"] == s]["dsc"].tolist() for s in config.reported()}
    structures_by_method(by_method, draft.folder / "structures.png")
    draw_side_by_side(runs, config, draft.folder / "methods.png")


def _scores_of(runs: list[Scores]) -> pd.DataFrame:
    """scores.csv of every run, one below the other, numbered in "run"."""
    return pd.concat([run.table.assign(run=number) for number, run in enumerate(runs)])


def _fields_of(runs: list[Scores]) -> dict[str, float]:
    """Means of the measures of displacements; empty for methods without."""
    measures = [run.fields for run in runs]
    return {name: sum(of_run[name] for of_run in measures) / len(measures) for name in measures[0]}


def _check_alike(runs: dict[str, list[Scores]]) -> None:
    """Runs of a method differ in nothing but the seed, and all runs were scored on the same label maps."""
    first = next(iter(runs))
    for method, of_method in runs.items():
        for run in of_method:
            if _truths(run) != _truths(runs[first][0]):
                raise LrlsError(f"{first} and {method} were scored on different scans; run `lrls eval` for both again.")
            if run.manifest.identity.config != of_method[0].manifest.identity.config:
                seeds = " and ".join(str(scores.manifest.identity.seed) for scores in (of_method[0], run))
                raise LrlsError(f"{method}: seeds {seeds} ran with different settings; run one of them again.")


def _truths(scores: Scores | Listed) -> dict[str, str]:
    """Digests of the label maps that were scored against."""
    inputs = scores.manifest.identity.inputs
    return {role: digest for role, digest in inputs.items() if role.startswith("truth/")}


def table_of(
    scores: dict[str, pd.DataFrame],
    fields: dict[str, dict[str, float]],
    costs: dict[str, list[tuple[float | None, float | None]]],
    answered: dict[str, list[float | None]],
) -> pd.DataFrame:
    """A row per method and output, as of `Comparison.table`; the first is the one that others are compared with.

    Args:
        scores: by method, the rows of `scores.csv`, with the number of their run in "run".
        fields: by method, means of the measures of displacements.
        costs: by method, (wall time in s, peak memory in MB) of every run.
        answered: by method, seconds a scan of every run.
    """
    by_scan: dict[Key, pd.DataFrame] = {}
    missed: dict[Key, float] = {}
    for method, table in scores.items():
        runs = table["run"].nunique()
        for output, own in table.groupby("output", sort=False):
            # A scan is the mean of its structures, then of its runs, as in every other table.
            of_run = own.groupby(["run", "case"])[METRICS].mean()
            by_scan[method, str(output)] = of_run.groupby("case").mean()
            missed[method, str(output)] = own["missed"].sum() / runs
    first = next(iter(by_scan))
    others = [key for key in by_scan if key != first]
    p_values = holm([paired_wilcoxon(by_scan[key]["dsc"].tolist(), by_scan[first]["dsc"].tolist()) for key in others])
    p_value = dict(zip(others, p_values, strict=True))
    rows: list[dict[str, Any]] = []
    for key, scans in by_scan.items():
        method, output = key
        dsc = summarize(scans["dsc"].tolist())
        gain = (scans["dsc"] - by_scan[first]["dsc"]).tolist()
        low, high = bootstrap_interval(gain)
        several = len(scans) > 1  # one scan has no spread and no test
        field = fields[method] if output == "registration" else {}
        times = [time for time, _ in costs[method] if time is not None]
        peaks = [peak for _, peak in costs[method] if peak is not None]
        of_scan = [seconds for seconds in answered[method] if seconds is not None]
        rows.append(
            {
                "method": method,
                "output": output,
                "runs": len(costs[method]),
                "scans": int(dsc["n"]),
                "dsc": dsc["mean"],
                "dsc_low": dsc["low"] if several else None,
                "dsc_high": dsc["high"] if several else None,
                "dsc_std": dsc["std"] if several else None,
                "dsc_worst": dsc["min"],
                "dsc_best": dsc["max"],
                "hd95_mm": scans["hd95_mm"].mean(),
                "assd_mm": scans["assd_mm"].mean(),
                "missed": missed[key],
                "folded_percent": 100 * field["folding_fraction"] if field else None,
                "jacobian_std": field.get("jacobian_std"),
                "sd_log_jacobian": field.get("sd_log_jacobian"),
                "wall_time_s": sum(times) / len(times) if len(times) == len(costs[method]) else None,
                "peak_memory_mb": max(peaks, default=None),
                "scan_s": sum(of_scan) / len(of_scan) if len(of_scan) == len(costs[method]) else None,
                "difference": None if key == first else sum(gain) / len(gain),
                "difference_low": low if several and key != first else None,
                "difference_high": high if several and key != first else None,
                "p_value": p_value.get(key) if several else None,
            }
        )
    return pd.DataFrame(rows)


HEADINGS = (
    "method", "output", "DSC", "95 %", "std", "range", "HD95 mm", "ASSD mm", "missed", "folded %", "std J",
    "time min", "host GB", "s / scan", "diff.", "diff. 95 %", "p",
)  # fmt: skip


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of `Comparison.table`, rounded, under `HEADINGS`; missing values stay empty."""

    def text(name: str, form: str, scale: float = 1.0) -> str:
        return "" if row[name] is None or pd.isna(row[name]) else format(row[name] * scale, form)

    interval = f"{text('dsc_low', '.3f')}-{text('dsc_high', '.3f')}".strip("-")
    between = f"{text('difference_low', '+.3f')} {text('difference_high', '+.3f')}".strip()
    return (
        row["method"], row["output"], text("dsc", ".4f"), interval,
        text("dsc_std", ".3f"), f"{row['dsc_worst']:.3f}-{row['dsc_best']:.3f}",
        text("hd95_mm", ".2f"), text("assd_mm", ".2f"), text("missed", "g"),
        text("folded_percent", ".3f"), text("jacobian_std", ".2f"), text("wall_time_s", ".1f", 1 / 60),
        text("peak_memory_mb", ".1f", 1e-3), text("scan_s", ".3g"), text("difference", "+.4f"), between,
        text("p_value", ".2g"),
    )  # fmt: skip


def title(part: str, table: pd.DataFrame) -> str:
    """What the table is about, in one line."""
    runs = int(table["runs"].max())
    return (
        f"{part}, {int(table['scans'].max())} scans{f', mean of {runs} runs' if runs > 1 else ''}; "
        f"differences of DSC to {table['method'][0]}, paired, Wilcoxon with Holm's correction"
    )


def markdown(table: pd.DataFrame, title: str) -> str:
    """The table as Markdown."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *(cells(row) for row in table.to_dict("records"))]
    return f"{title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

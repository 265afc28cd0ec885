"""`lrls compare` on scores that are written here."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import Project, aged

from stages.artifacts.cohort import Cohort
from stages.artifacts.costs import cost
from stages.artifacts.kinds import KINDS
from stages.artifacts.manifest import Identity, Manifest, read_manifest
from stages.artifacts.scores import Scores
from stages.artifacts.store import new_artifact
from stages.artifacts.weights import Registration, Segmentation
from stages.compare import newest_scores
from stages.data.phantoms import STRUCTURES
from stages.data.subsets import cohort_settings
from stages.errors import LrlsError
from stages.methods import find_method

CASES = [f"test_{i}" for i in range(1, 9)]
FIRST, SECOND = list(STRUCTURES)[:2]


def write_scores(
    project: Project,
    method: str,
    gain: float,
    *,
    seed: int = 0,
    cases: list[str] = CASES,
    field: bool = False,
    settings: dict[str, object] | None = None,
    inputs: dict[str, str] | None = None,
    round: int = 0,
) -> None:
    """Scores of a method: DSC 0.5 + 0.01 i + gain on scan i, both structures, one of them 0.1 above the other."""
    rows = [
        {"output": output, "case": case, "structure": name, "dsc": 0.45 + 0.1 * (name == FIRST) + 0.01 * i + gain,
         "hd95_mm": 2.0, "assd_mm": 1.0, "missed": 0}
        for output in ("segmentation", "registration")[: 1 + field]
        for i, case in enumerate(cases)
        for name in (FIRST, SECOND)
    ]  # fmt: skip
    identity = Identity(
        kind="scores",
        format_version=Scores.FORMAT,
        made_by="eval",
        config={"part": "test", "settings": settings or {}},
        seed=seed,
        round=round,
        inputs={f"truth/{case}": case for case in cases} | (inputs or {}),
    )
    summary = {"outputs": {}} | (
        {"registration": {n: {"mean": 0.01} for n in ("folding_fraction", "jacobian_std", "sd_log_jacobian")}}
        if field
        else {}
    )
    with new_artifact(project.workspace / method / "scores", identity) as draft:
        pd.DataFrame(rows).to_csv(draft.folder / "scores.csv", index=False)
        (draft.folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def scored(tmp_path, new_project) -> Project:
    project = new_project(tmp_path)
    write_scores(project, "unet", 0.0)
    write_scores(project, "brbs", 0.1, field=True)
    return project


def compared(project: Project, *arguments: str) -> Path:
    done = project.made("compare", "--method", "unet", "--method", "brbs", *arguments)
    return Path(done.out.splitlines()[-1])


def test_a_comparison_as_json_holds_the_table_and_nothing_else_is_printed(scored):
    write_scores(scored, "brbs", 0.2, settings={"mmr": False})  # newer, and with other settings
    done = scored.made("compare", "--method", "unet", "--method", "brbs", "--json")
    document = json.loads(done.out)  # a row per output
    assert [row["method"] for row in document["rows"]] == ["unet", "brbs", "brbs"] and document["part"] == "test"
    assert document["rows"][0]["p_value"] is None  # of the reference itself: null, which JSON has, not NaN


def test_table_has_means_differences_and_a_paired_test(scored):
    table = pd.read_csv(compared(scored) / "compare.csv").set_index(["method", "output"])
    assert list(table.index) == [("unet", "segmentation"), ("brbs", "segmentation"), ("brbs", "registration")]
    assert table["dsc"].tolist() == pytest.approx([0.535, 0.635, 0.635])
    assert table.loc[("unet", "segmentation"), "dsc_worst"] == pytest.approx(0.5)
    assert table.loc[("unet", "segmentation"), ["dsc_std", "dsc_best"]].tolist() == pytest.approx([0.0229129, 0.57])
    better = table.loc[("brbs", "segmentation")]
    assert better[["difference", "difference_low", "difference_high"]].tolist() == pytest.approx([0.1] * 3)
    assert better["p_value"] == pytest.approx(2 * 2 / 2**8)  # all 8 differences positive, and Holm's factor 2
    assert pd.isna(table.loc[("unet", "segmentation"), "difference"])
    assert table["folded_percent"].tolist()[2] == pytest.approx(1.0)
    assert table["folded_percent"].isna().tolist() == [True, True, False]


def test_files_hold_the_same_table_and_every_structure(scored):
    folder = compared(scored)
    lines = (folder / "compare.md").read_text().splitlines()
    assert lines[0].startswith("test, 8 scans; differences of DSC to unet")
    assert [line.split(" | ")[2] for line in lines[4:]] == ["0.5350", "0.6350", "0.6350"]
    structures = pd.read_csv(folder / "structures.csv")
    own = structures[(structures["method"] == "brbs") & (structures["output"] == "segmentation")]
    assert dict(zip(own["structure"], own["dsc"], strict=True)) == pytest.approx({FIRST: 0.685, SECOND: 0.585})
    assert (folder / "structures.png").read_bytes().startswith(b"\x89PNG")


def test_several_seeds_are_averaged_scan_by_scan(scored):
    write_scores(scored, "unet", 0.02, seed=1)
    write_scores(scored, "brbs", 0.08, seed=1, field=True)
    table = pd.read_csv(compared(scored, "--seed", "0", "--seed", "1") / "compare.csv")
    assert table["runs"].tolist() == [2, 2, 2]
    assert table["dsc"].tolist() == pytest.approx([0.545, 0.625, 0.625])
    assert table["difference"].tolist()[1] == pytest.approx(0.08)


def test_the_newest_scores_count_and_an_equal_comparison_is_not_made_again(scored):
    first = compared(scored)
    assert compared(scored) == first
    write_scores(scored, "unet", 0.05)
    second = compared(scored)
    assert second != first
    assert pd.read_csv(second / "compare.csv")["dsc"][0] == pytest.approx(0.585)
    assert newest_scores(scored.config, "unet", 0, {}).folder.name == "v0002"


def test_settings_behind_a_method_choose_among_its_runs(scored):
    write_scores(scored, "brbs", 0.2, settings={"mmr": False})
    write_scores(scored, "brbs", 0.3, settings={"mmr": True})
    rows = ["--method", "brbs mmr=false", "--method", "brbs  mmr=true"]
    done = scored.made("compare", "--method", "unet", *rows)
    table = pd.read_csv(Path(done.out.splitlines()[-1]) / "compare.csv").set_index("method")
    assert table["dsc"].to_dict() == pytest.approx({"unet": 0.535, "brbs mmr=false": 0.735, "brbs mmr=true": 0.835})
    assert "0.7350" in done.out and "0.8350" in done.out


def test_runs_with_the_files_settings_come_before_newer_ones(scored):
    write_scores(scored, "brbs", 0.2, settings={"mmr": True, "segmentation_loss": "dice"})  # as the file has it
    write_scores(scored, "brbs", 0.3, settings={"mmr": True, "segmentation_loss": "dice-ce"})
    (scored.workspace / "brbs" / "scores" / "v0001").rename(scored.workspace / "brbs" / "v0001")  # without settings
    assert newest_scores(scored.config, "brbs", 0, {}).folder.name == "v0002"
    assert newest_scores(scored.config, "brbs segmentation_loss=dice-ce", 0, {}).folder.name == "v0003"
    done = scored.made("compare", "--method", "brbs", "--set", "methods.brbs.segmentation_loss=dice-ce")
    assert "0.8350" in done.out and "other settings" not in done.out
    done = scored.made("compare", "--method", "brbs", "--set", "methods.brbs.mmr=false")
    assert done.out.startswith("brbs: v0003 of its scores was made with other settings: mmr True, not False;")
    done = scored.lrls("compare", "--method", "brbs", "--set", "methods.brbs.mrr=false")
    assert done.code == 1 and "mrr" in done.err


def test_rounds_of_two_runs_are_not_mixed(scored):
    for number in (0, 1, 2):
        write_scores(scored, "jrss", 0.1 * number, settings={"rounds": 2, "dropout": 0.5}, round=number)
    for number in (1, 0):
        write_scores(scored, "jrss", 0.1 * number, settings={"rounds": 1, "dropout": 0.2}, round=number)

    def chosen(row: str) -> str:
        return newest_scores(scored.config, row, 0, {}).folder.name

    assert [chosen(row) for row in ("jrss dropout=0.5", "jrss dropout=0.2", "jrss round=1 rounds=2")] == [
        "v0003", "v0004", "v0002",
    ]  # fmt: skip
    assert chosen("jrss dropout=0.2 round=0") == "v0005"


def test_a_rows_settings_fill_in_what_follows_from_them(scored, capsys):
    config = scored.config.model_copy(update={"methods": {}})
    for preset in ("abdomen", "official"):
        settings = find_method("jrss").settings.model_validate({"preset": preset}).model_dump(mode="json")
        write_scores(scored, "jrss", 0.1, settings=settings)
        newest_scores(config, f"jrss preset={preset}", 0, {})
    write_scores(scored, "jrss", 0.1, settings=settings | {"round_share": 0.7})
    assert newest_scores(config, "jrss preset=official", 0, {}).folder.name == "v0002"
    assert newest_scores(config, "jrss round=0 preset=official", 0, {}).folder.name == "v0003"  # does not read it
    assert "other settings" not in capsys.readouterr().out


def test_runs_on_other_scans_or_another_grid_are_told_from_the_files(scored, capsys):
    made, config = {}, scored.config
    fewer, coarser = (
        config.part("atlases")[:1] + config.part("unlabeled")[:1],
        config.preprocess.model_dump(mode="json"),
    )
    for changed in (
        {},
        {"members": {"atlases": fewer, "unlabeled": config.part("unlabeled")}},
        {"preprocess": coarser | {"spacing_mm": [9.0, 9.0, 9.0]}},
    ):
        identity = Identity(
            kind="cohort",
            format_version=Cohort.FORMAT,
            made_by="preprocess",
            config=cohort_settings(config, "train") | changed,
            seed=0,
        )
        with new_artifact(scored.workspace / "cohort", identity) as draft:
            (draft.folder / "data").write_bytes(b"")
        manifest = read_manifest(draft.result)
        made[manifest.digest] = manifest
        write_scores(scored, "brbs", 0.0, inputs={"cohort": manifest.digest})
    (scored.workspace / "brbs" / "scores" / "v0001").rename(scored.workspace / "brbs" / "v0001")  # of the fixture

    def chosen(row: str) -> str:
        return newest_scores(config, row, 0, made).folder.name

    rows = ("brbs", f"brbs data.atlases=[{','.join(fewer)}]", "brbs preprocess.spacing_mm=[9.0,9.0,9.0]")
    assert [chosen(row) for row in rows] == ["v0002", "v0003", "v0004"]
    assert "other settings" not in capsys.readouterr().out
    (scored.workspace / "brbs" / "scores" / "v0002").rename(scored.workspace / "brbs" / "v0002")
    chosen("brbs")
    assert "v0004 of its scores was made with other settings: preprocess.spacing_mm" in capsys.readouterr().out
    (scored.workspace / "brbs" / "scores" / "v0004").rename(scored.workspace / "brbs" / "v0004")
    chosen("brbs")
    assert "v0003 of its scores was made with other settings: data.atlases other scans." in capsys.readouterr().out


def test_scores_on_the_scans_that_the_file_names_come_before_newer_ones(scored):
    write_scores(scored, "unet", 0.3, cases=CASES[:3])
    for cases, version in ((CASES, "v0001"), (CASES[:3], "v0002"), (CASES[:2], "v0002")):
        data = scored.config.data.model_copy(update={"test": cases})
        found = newest_scores(scored.config.model_copy(update={"data": data}), "unet", 0, {})
        assert found.folder.name == version


def test_no_row_is_so_long_that_it_hides_numbers(scored):
    settings = {"a_setting_with_a_long_name": 1, "another_setting_with_a_long_name": "value", "mmr": False}
    write_scores(scored, "brbs", 0.2, settings=settings)
    row = " ".join(["brbs", *(f"{name}={value}" for name, value in settings.items())])
    done = scored.made("compare", "--method", "unet", "--method", row)
    assert "0.7350" in done.out and "+0.2000" in done.out


def test_rounds_and_looks_of_another_cohort_choose_among_runs(scored, tmp_path):
    identity = Identity("registration", Registration.FORMAT, "train-reg", {"method": "sst"}, seed=0)
    with new_artifact(tmp_path / "elsewhere" / "sst" / "registration", identity) as draft:
        (draft.folder / "weights.safetensors").write_bytes(b"")
    digest, there = read_manifest(draft.result).digest, tmp_path / "elsewhere"
    for looks in (None, digest):  # what runs keep of the path
        write_scores(scored, "sst", 0.0, settings={"appearance_from": looks})
    for row, version in (
        ("sst appearance_from=null round=0", "v0001"),
        (f"sst appearance_from={there}", "v0002"),
        (f"sst appearance_from={os.path.relpath(draft.result, scored.folder)} round=0", "v0002"),
    ):
        assert newest_scores(scored.config, row, 0, {}).folder.name == version
    with pytest.raises(LrlsError, match="has no scores"):
        newest_scores(scored.config, "sst round=1", 0, {})
    with pytest.raises(LrlsError, match=r"^methods\.sst\.appearance_from: found no sst/registration in "):
        newest_scores(scored.config, f"sst appearance_from={scored.folder}", 0, {})
    # Of runs that the row leaves open, the file's come first.
    assert newest_scores(scored.config, "sst", 0, {}).folder.name == "v0001"


def test_settings_of_training_choose_among_runs_too(scored):
    made = {}
    for steps in (10, 20):
        identity = Identity(
            kind="segmentation",
            format_version=Segmentation.FORMAT,
            made_by="train-seg",
            config={"train_seg": {"steps": steps}},
            seed=0,
        )
        with new_artifact(scored.workspace / "brbs" / "segmentation", identity) as draft:
            (draft.folder / "weights.safetensors").write_bytes(bytes([steps]))
        manifest = read_manifest(draft.result)
        made[manifest.digest] = manifest
        write_scores(scored, "brbs", 0.0, inputs={"segmentation": manifest.digest})
    found = newest_scores(scored.config, "brbs train_seg.steps=10", 0, made)
    assert found.folder.name == "v0002"  # v0001 is of the fixture


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("brbs mrr=true", "mrr; there are mmr, round"),
        ("brbs mmr=1", "has no scores"),
        ("brbs mmr", "expected setting=value"),
    ],
)
def test_settings_that_no_run_had_are_named(scored, row, named):
    write_scores(scored, "brbs", 0.2, settings={"mmr": False})
    done = scored.lrls("compare", "--method", "unet", "--method", row)
    assert done.code == 1
    assert named in done.err


def test_settings_without_scores_name_a_command_that_makes_them(scored):
    write_scores(scored, "jrss", 0.2, settings={"rounds": 2})
    row = "jrss rounds=1 round=0 train_reg.steps=7"
    done = scored.lrls("compare", "--method", "unet", "--method", row)
    assert "`lrls run --method jrss --set methods.jrss.rounds=1 --round 0 --set train_reg.steps=7`" in done.err


def test_scores_of_different_scans_are_not_compared(scored):
    write_scores(scored, "brbs", 0.1, cases=CASES[1:])
    done = scored.lrls("compare", "--method", "unet", "--method", "brbs")
    assert done.code == 1
    assert done.err == "lrls: unet and brbs were scored on different scans; run `lrls eval` for both again.\n"


def test_a_method_without_scores_names_the_command(scored):
    done = scored.lrls("compare", "--method", "unet", "--method", "syn")
    assert done.code == 1
    assert done.err == ("lrls: syn has no scores on test with seed 0; run `lrls run --method syn` first.\n")


def test_scores_of_an_older_format_are_passed_over(scored):
    write_scores(scored, "unet", 0.3)
    aged(scored.workspace / "unet" / "scores" / "v0002")
    assert newest_scores(scored.config, "unet", 0, {}).folder.name == "v0001"


def test_one_scan_has_no_interval_and_no_test(scored):
    for method, gain in (("unet", 0.0), ("brbs", 0.1)):
        write_scores(scored, method, gain, cases=CASES[:1])
    table = pd.read_csv(compared(scored) / "compare.csv")
    assert table["difference"].tolist()[1] == pytest.approx(0.1)
    assert table[["dsc_low", "dsc_high", "difference_low", "difference_high", "p_value"]].isna().all(axis=None)


def test_seeds_that_ran_with_different_settings_are_not_averaged(scored):
    write_scores(scored, "unet", 0.1, seed=1, settings={"mmr": False})
    write_scores(scored, "brbs", 0.1, seed=1)
    done = scored.lrls("compare", "--method", "unet", "--method", "brbs", "--seed", "0", "--seed", "1")
    assert (done.code, done.err) == (
        1,
        "lrls: unet: seeds 0 and 1 ran with different settings; run one of them again.\n",
    )


def made(project: Project, target: str, kind: str, inputs: dict[str, str]) -> Manifest:
    identity = Identity(kind=kind, format_version=KINDS[kind].FORMAT, made_by=kind, config={}, seed=0, inputs=inputs)
    with new_artifact(project.workspace / target, identity) as draft:
        (draft.folder / "file").write_text(target)
    return read_manifest(draft.result)


def test_time_and_memory_are_of_everything_up_to_the_weights(tmp_path, new_project):
    project = new_project(tmp_path)
    cohort = made(project, "cohort", "cohort", {})
    held_out = made(project, "cohort-test", "cohort", {})
    registration = made(project, "brbs/registration", "registration", {"cohort": cohort.digest})
    both = {"cohort": cohort.digest, "registration": registration.digest}
    generated = made(project, "brbs/generated", "generated", both)
    weights = made(project, "brbs/segmentation", "segmentation", both | {"generated": generated.digest})
    artifacts = (cohort, held_out, registration, generated, weights)
    took = {m.digest: replace(m, wall_time_s=10.0**i, peak_memory_mb=i) for i, m in enumerate(artifacts)}
    scores = {"cohort": cohort.digest, "held-out": held_out.digest}
    trained = made(project, "brbs/scores", "scores", scores | {"segmentation": weights.digest})
    assert cost(trained, took) == (1 + 100 + 1000 + 10000, 4)
    propagated = replace(made(project, "syn/scores", "scores", scores), wall_time_s=7.0, peak_memory_mb=9.0)
    assert cost(propagated, took) == (8.0, 9.0)  # `eval` registered
    del took[registration.digest]
    assert cost(trained, took) == (None, None)

"""The sentences of a report, on numbers that are easy to check by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from stages.reporting.folder import briefly, coded
from stages.reporting.runs import Run, _flags, _why
from stages.reporting.summary import against_second, best, missed, on_flags, on_smallest, other_output, too_few
from stages.reporting.words import singular


def run(name: str, values: list[float], output: str = "segmentation", **others: list[float]) -> Run:
    rows = [(o, f"s{k}", "core", v, 0) for o, own in {output: values, **others}.items() for k, v in enumerate(own)]
    table = pd.DataFrame(rows, columns=["output", "case", "structure", "dsc", "missed"])
    held_out: Any = SimpleNamespace(transform=lambda case: {"fell_back": False})
    return Run(name, name, table, None, [], held_out, [output, *others])


def gathered(*runs: Run) -> Any:
    means = [sum(each.by_scan().values()) for each in runs]
    return SimpleNamespace(runs=runs, chief=means.index(max(means)))


def row(structure: str, dsc: float, ml: float, truth: float, hd95: float = 7.3) -> dict[str, Any]:
    return {"structure": structure, "truth_ml": truth, "runs": [{"dsc": dsc, "hd95_mm": hd95, "ml": ml}]}


def test_the_best_is_compared_with_the_second_best_and_not_with_the_first():
    first = run("affine", [0.1] * 8)
    second, third = run("unet", [0.5 + 0.01 * k for k in range(8)]), run("best", [0.6 + 0.01 * k for k in range(8)])
    text = against_second(gathered(first, second, third))
    assert text.startswith("`best` against the second best, `unet`: +0.100 DSC (95 % interval +0.100 to +0.100)")
    assert "p = 0.0078 for this pair alone." in text
    assert "compare every method with `affine`" in text
    assert "Highest mean DSC: `best`" in best(gathered(first, second, third))
    assert against_second(gathered(first)) == ""


@pytest.mark.parametrize(("number", "least"), [(4, "0.12"), (5, "0.062"), (6, None), (50, None)])
def test_few_scans_cannot_be_significant(number, least):
    text = too_few(number)
    assert (f"With {number} scans no p below {least} is possible" in text) if least else text == ""
    a, b = run("a", [0.5] * number), run("b", [0.6] * number)
    assert (text in against_second(gathered(a, b))) if least else "no p below" not in against_second(gathered(a, b))


def test_another_output_that_scores_higher_is_told():
    assert "its registration alone has a mean DSC of 0.823" in other_output(run("best", [0.815], registration=[0.823]))
    assert other_output(run("best", [0.815], registration=[0.8])) == ""


def test_the_reason_of_the_worst_scan_names_what_is_furthest_below_its_usual_and_the_lowest():
    usual = {"csf": 0.73, "3rd-ventricle": 0.55}
    rows = [row("csf", 0.60, 1.32, 1.0), row("3rd-ventricle", 0.496, 0.34, 0.93)]
    text = _why(rows, 0, usual)
    assert text.startswith("Furthest below its usual: csf, DSC 0.600, usually 0.730 (the median of the scans).")
    assert "32 % larger than the truth; 95 % of the surfaces are within 7.3 mm of one another (HD95)." in text
    assert text.endswith("Lowest: 3rd-ventricle, DSC 0.496, usually 0.550; 0.34 ml, in truth 0.93 ml.")
    assert "Lowest" not in _why(rows[:1], 0, usual)
    assert "apart" not in text


def test_a_flag_names_every_structure_and_a_card_two():
    own = run("best", [0.5])
    rows = [row(f"part-{k}", 0.5, 2.0, 1.0) for k in range(4)]
    flags = _flags("s0", SimpleNamespace(runs=[own], chief=0), rows, [0.5], None)
    assert flags == ["volume off: part-0, part-1, part-2, part-3"]
    assert briefly(flags[0]) == "volume off: part-0, part-1 and 2 more"
    assert briefly("folding") == "folding"


def test_flags_of_every_scan_tell_nothing_about_the_order():
    assert "do not tell which to look at first" in on_flags(4, 4, "best")
    assert on_flags(1, 4, "best") == "1 scan has a flag, about the answer of `best`: look at these first."


def test_what_is_missed_is_named():
    own = run("best", [0.5, 0.0])
    own.table.loc[1, "missed"] = 1
    assert missed([own, run("unet", [0.5])]) == ["`best` misses core in s1."]


def test_the_smallest_structure_is_told_of_one_method_too():
    about = {"structure": "core", "ml": 0.9, "best": 0, "runs": [{"dsc": 0.6}]}
    assert on_smallest(about, [run("best", [0.6])]) == "On the smallest structure, core (0.9 ml): mean DSC 0.600."


def test_names_in_backticks_become_code_and_nothing_else_becomes_markup():
    assert coded("`best` <b>") == "<code>best</code> &lt;b&gt;"
    assert singular("cpu, fp32, 1 threads") == "cpu, fp32, 1 thread"
    assert singular("cpu, 11 threads") == "cpu, 11 threads"

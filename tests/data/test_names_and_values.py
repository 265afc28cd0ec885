"""Names and values that were once taken for others: of ids, label values, and text in YAML."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

from stages.case_ids import fault_among, twins
from stages.config import load_config
from stages.data.initialize import _list, _scalar
from stages.data.intake import read_image
from stages.data.new_scans import find_scans
from stages.data.segments import write_segmentation
from stages.errors import LrlsError
from stages.text_files import read_yaml, yaml_text, yaml_value


@pytest.mark.parametrize(
    ("first", "second"), [("stra\u00dfe", "STRASSE"), ("\u03c3\u03b1\u03c2", "\u03c3\u03b1\u03c3"), ("\u017f1", "s1")]
)
def test_ids_that_some_disks_take_for_one_are_refused(first, second):
    assert twins([first, "other", second]) == (first, second)
    assert "rename one scan" in (fault_among([first, second]) or "")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["P1.nii.gz", "p1.mha"], "'P1' and 'p1' differ in upper and lower case only; rename one scan"),
        ([".lrls-tmp-0.nii.gz"], "begins with a dot"),
        (["x" * 245 + ".nii.gz"], "has 245 bytes in UTF-8, at most 242 can be used"),
    ],
)
def test_new_scans_whose_answers_would_hide_or_replace_one_another_are_refused(tmp_path, names, said):
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.touch()
    with pytest.raises(LrlsError) as refused:
        find_scans(paths)
    assert said in str(refused.value) and str(refused.value).endswith(".")


@pytest.mark.parametrize("value", [2**32 - 1, 2**31, -(2**31)])
def test_segments_with_values_of_32_bits_are_read_again(tmp_path, value):
    image = sitk.GetImageFromArray(np.full((3, 4, 5), value, np.int64))
    write_segmentation(image, {"a": value}, ["#112233"], tmp_path / "s.seg.nrrd")
    assert np.unique(sitk.GetArrayFromImage(read_image(tmp_path / "s.seg.nrrd", "c", "label map"))).tolist() == [value]


@pytest.mark.parametrize("text", ["1e3", "0o17", "1_000", "2e5"])
def test_text_that_is_a_number_in_yaml_1_2_alone_is_quoted_where_it_is_written(text):
    assert yaml_value(yaml_text(text), "train_seg.steps") == text
    assert yaml_value(yaml_text([1000.0, 1e-05, True, None, "no"]), "x.y") == [1000.0, 1e-05, True, None, "no"]


def test_ids_with_signs_of_yaml_and_ids_where_a_line_ends_are_written_as_they_are(tmp_path):
    cases = ["Doe, J", "p [1]", "p01]", "p {2}", *(f"a  {k}" for k in range(60))]
    (tmp_path / "ids.yaml").write_text(f"{_list('a', cases)}  b: {_scalar('x: y')}\n", encoding="utf-8")
    assert read_yaml(tmp_path / "ids.yaml") == {"a": cases, "b": "x: y"}
    assert max(map(len, (tmp_path / "ids.yaml").read_text(encoding="utf-8").splitlines())) <= 120


@pytest.mark.parametrize("value", [True, [2, True]])
def test_true_is_not_taken_for_label_value_1(tmp_path, value):
    settings = {"workspace": "runs", "data": {"folder": "."}, "structures": {"x": value}, "preprocess": {"n4": True}}
    (tmp_path / "lrls.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.raises(LrlsError, match=r"setting structures: true and false are expected elsewhere"):
        load_config(tmp_path / "lrls.yaml")

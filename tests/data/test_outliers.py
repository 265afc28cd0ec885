"""Scans that are unlike the others are told before anything is trained on them."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from stages.data.geometry import Geometry
from stages.data.outliers import (
    alignment_notices,
    beyond_reach,
    length,
    size_faults,
    unit_notice,
    unlike_reference,
    wrapped,
)


def severities(extents, reference="a"):
    return [(fault.case, fault.severity) for fault in size_faults(extents, list(extents), reference)]


@pytest.mark.parametrize("factor", [1000, 100, 0.01, 0.001])
def test_a_scan_of_another_unit_is_a_fault_of_that_scan_alone(factor):
    assert severities({"a": 180.0, "b": 200.0, "c": 190.0 * factor}) == [("c", "fault")]
    assert severities({"a": 180.0 * factor, "b": 200.0, "c": 190.0}) == [("a", "fault")]  # also the first atlas
    assert severities({"a": 180.0, "b": 200.0 * factor}) == [("b", "fault")]  # of two, the reference is right


def test_a_size_is_told_with_that_of_the_others():
    (fault,) = size_faults({"a": 180.0, "b": 185.0, "c": 180e3}, ["c"], "a")
    assert str(fault) == (
        "case c: image is 180 m wide, the others 182 mm; "
        "its spacing is in another unit: correct the header, or take it out."
    )
    assert [length(mm) for mm in (0.05, 12.0, 2500.0)] == ["50 \N{GREEK SMALL LETTER MU}m", "12 mm", "2.5 m"]


def test_people_of_different_size_are_no_outliers_and_a_crop_is_a_notice():
    assert severities({"a": 180.0, "b": 350.0, "c": 120.0}) == []
    assert severities({"a": 180.0, "b": 200.0, "c": 30.0}) == [("c", "notice")]


def test_a_cohort_in_another_unit_is_told_once():
    assert [notice.code for notice in unit_notice({"a": 0.18, "b": 0.2})] == ["odd-unit"]
    assert unit_notice({"a": 180.0, "b": 17.0}) == []


def geometry(edge_mm=60.0, origin=(0.0, 0.0, 0.0)):
    return Geometry((30, 30, 30), (edge_mm / 30,) * 3, origin, (1, 0, 0, 0, 1, 0, 0, 0, 1))


def test_a_new_scan_of_another_unit_is_refused():
    assert unlike_reference(geometry(70), geometry(), "x") is None
    assert unlike_reference(geometry(60e3), geometry(), "x").code == "other-size"


def test_a_scan_that_lies_beside_the_first_atlas_is_off_the_grid():
    geometries = {"a": geometry(), "near": geometry(origin=(50.0, 0, 0)), "far": geometry(origin=(0, 300.0, 0))}
    assert [fault.case for fault in beyond_reach(geometries, list(geometries), "a", 12.0)] == ["far"]


def told(fits, others=()):
    return [(notice.case, notice.code) for notice in alignment_notices(fits, others, reference="first")]


def test_a_scan_that_fits_far_worse_than_the_others_is_told_with_both_figures():
    fits = {"b": 0.85, "c": 0.84, "d": -0.08, "e": 0.80}
    (notice,) = alignment_notices(fits, reference="first")
    assert (notice.case, notice.severity) == ("d", "notice")
    assert notice.found == "correlation with the first atlas is -0.08 after alignment, the others' median is 0.84"


def test_of_two_scans_the_one_that_fits_worse_is_told():
    assert told({"b": 0.85, "c": -0.08}) == [("c", "unlike-others")]
    assert told({"c": -0.08}, [0.85, 0.84]) == [("c", "unlike-others")]  # a held-out scan, beside those of training
    assert told({"c": 0.8}) == []


def test_scans_that_differ_as_a_cohort_does_are_not_told():
    assert told({"b": 0.85, "c": 0.6, "d": 0.72, "e": 0.9}) == []
    assert told({"b": 0.9, "c": 0.5, "d": 0.1, "e": 0.8, "f": 0.3, "g": 0.6}) == []  # widely spread


def test_where_hardly_any_scan_fits_the_reference_is_told():
    assert told({"b": 0.05, "c": -0.1, "d": 0.12}) == [("first", "reference-unlike")]


def image(voxels):
    return sitk.GetImageFromArray(np.asarray(voxels, np.float32).reshape(2, 5, -1))


def test_negative_values_that_were_stored_as_unsigned_are_told():
    values = np.linspace(-1000, 900, 200).round()
    assert wrapped(image(values % 65536), "x").code == "wrapped"
    assert wrapped(image(values), "x") is None
    assert wrapped(image(np.linspace(0, 65535, 200)), "x") is None  # an image that uses all values

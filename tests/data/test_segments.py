"""Segmentations of 3D Slicer come in as label maps: by name, out of layers, with the margins that were cut off."""

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from test_bids import volume

from stages.config import PARTS, load_config
from stages.data.checks import cohort_faults
from stages.data.initialize import describe_folder, write_config
from stages.data.intake import read_image, read_label
from stages.errors import LrlsError

SIZE = (8, 9, 10)  # (i, j, k), of the scans of test_bids


def masks():
    """Two segments of no symmetry, (i, j, k)."""
    liver, vein = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    liver[1:4, 2:7, 3:5] = True
    vein[5:7, 1:3, 6:9] = True
    return liver, vein


def write_segmentation(path, voxels, segments, *, origin=(0, 0, 0), flips=(1, 1, 1), **further):
    """A file as Slicer writes it: `segments` are (name, value, layer)."""
    layered = voxels.ndim == 4
    directions = np.diag(np.array(flips, float))
    header = {
        "space": "left-posterior-superior",
        "kinds": ["list"] * layered + ["domain"] * 3,
        "space directions": np.vstack([np.full((1, 3), np.nan), directions]) if layered else directions,
        "space origin": origin,
        "encoding": "gzip",
    }
    for k, (name, value, layer) in enumerate(segments):
        header |= {f"Segment{k}_Name": name, f"Segment{k}_LabelValue": str(value), f"Segment{k}_Layer": str(layer)}
        header |= {f"Segment{k}_Color": f"{0.2 * k:g} 1 0.5", f"Segment{k}_ID": f"Segment_{k + 1}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nrrd.write(str(path), voxels, header | further)


@pytest.fixture
def scans(tmp_path):
    """Three scans: segments in one layer, in two layers, and in one layer with the values exchanged."""
    liver, vein = masks()
    for case in ("p1", "p2", "p3"):
        volume(tmp_path / "scans" / "images" / f"{case}.nii.gz", seed=int(case[1]))
    to = tmp_path / "scans" / "labels"
    write_segmentation(to / "p1.seg.nrrd", (1 * liver + 2 * vein).astype(np.uint8), [("Liver", 1, 0), ("vein", 2, 0)])
    both = np.stack([liver, vein]).astype(np.uint8)
    write_segmentation(to / "p2.seg.nrrd", both, [("liver", 1, 0), ("vein", 1, 1)])
    write_segmentation(to / "p3.seg.nrrd", (1 * vein + 2 * liver).astype(np.uint8), [("vein", 1, 0), ("liver", 2, 0)])
    return tmp_path / "scans"


def test_names_decide_whatever_the_values(scans, tmp_path):
    config = load_config(write_config(describe_folder(scans), tmp_path / "lrls.yaml"))
    assert config.part("atlases") == ["p1", "p2", "p3"]
    assert config.structures == {"Liver": 1, "vein": 2}
    assert config.colours == {"Liver": "#00ff80", "vein": "#33ff80"}
    assert [fault.code for fault in cohort_faults(config, PARTS)] == ["no-unlabeled"]
    liver, vein = masks()
    for case in ("p1", "p2", "p3"):
        label = sitk.GetArrayFromImage(read_label(config, case)).transpose(2, 1, 0)
        np.testing.assert_array_equal(label, 1 * liver + 2 * vein)


def test_a_segment_that_is_no_structure_is_named(scans, tmp_path):
    liver, vein = masks()
    write_segmentation(
        scans / "labels" / "p2.seg.nrrd", (1 * liver + 2 * vein).astype(np.uint8), [("liver", 1, 0), ("cyst", 2, 0)]
    )
    config = load_config(write_config(describe_folder(scans), tmp_path / "lrls.yaml"))
    config = config.model_copy(update={"structures": {"liver": 2, "vein": 1}})
    with pytest.raises(LrlsError, match=r"^case p2: segment 'cyst' is not named in structures; name it there, or set"):
        read_label(config, "p2")
    config = config.model_copy(update={"others": "background"})
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_label(config, "p2")).transpose(2, 1, 0), 2 * liver)


def test_voxels_of_no_segment_are_no_structure_where_names_decide(scans, tmp_path):
    liver, vein = masks()
    config = load_config(write_config(describe_folder(scans), tmp_path / "lrls.yaml"))
    voxels = (1 * liver + 2 * vein).astype(np.uint8)
    for others in ("error", "background"):
        config = config.model_copy(update={"others": others})
        write_segmentation(scans / "labels" / "p2.seg.nrrd", voxels, [("liver", 1, 0)])
        with pytest.raises(LrlsError, match=rf"^case p2: label map has {vein.sum()} voxels with values that none of"):
            read_label(config, "p2")
    write_segmentation(scans / "labels" / "p2.seg.nrrd", voxels * liver, [("liver", 1, 0), ("vein", 0, 0)])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_label(config, "p2")).transpose(2, 1, 0), liver)
    write_segmentation(scans / "labels" / "p2.seg.nrrd", voxels, [("tumour", 1, 0)])  # no structure's name: values
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_label(config, "p2")).transpose(2, 1, 0), voxels)


def test_a_segment_with_the_name_of_two_structures_is_refused(scans, tmp_path):
    config = load_config(write_config(describe_folder(scans), tmp_path / "lrls.yaml"))
    config = config.model_copy(update={"structures": {"Liver": 1, "liver": 2, "vein": 3}})
    with pytest.raises(LrlsError, match=r"^case p1: segment 'Liver' has the name of two structures, 'Liver' and"):
        read_label(config, "p1")


def test_segments_that_overlap_are_refused_by_name(tmp_path):
    liver, vein = masks()
    vein[2, 3, 3] = True
    write_segmentation(
        tmp_path / "x.seg.nrrd", np.stack([liver, vein]).astype(np.uint8), [("liver", 1, 0), ("vein", 1, 1)]
    )
    with pytest.raises(
        LrlsError, match=r"^case x: label map: segments 'liver' and 'vein' overlap in 1 voxels; a voxel"
    ):
        read_image(tmp_path / "x.seg.nrrd", "x", "label map")


def test_margins_that_slicer_cut_off_come_back(tmp_path):
    liver, _ = masks()
    flips, offset = (-1, 1, -1), np.array([1, 2, 3])
    reference = np.diag([1, -1, -1, 1.0])  # voxels to RAS; only its edges count
    extents = ";".join(f"0;{n - 1}" for n in SIZE)
    write_segmentation(
        tmp_path / "x.seg.nrrd", liver[1:4, 2:7, 3:5].astype(np.uint8), [("liver", 1, 0)], flips=flips,
        origin=(offset * flips + [5.0, 6.0, 7.0]).tolist(),
        Segmentation_ReferenceImageExtentOffset=" ".join(map(str, offset)),
        Segmentation_ConversionParameters="Smoothing factor|0.5|x&Reference image geometry|"
        + ";".join(f"{number:g}" for number in reference.ravel()) + f";{extents};|y&",
    )  # fmt: skip
    label = read_image(tmp_path / "x.seg.nrrd", "x", "label map")
    assert (label.GetSize(), label.GetOrigin()) == (SIZE, (5.0, 6.0, 7.0))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label).transpose(2, 1, 0), liver)


@pytest.mark.parametrize("field", [{"Segment0_Layer": "7"}, {"Segment0_LabelValue": "x"}])
def test_damaged_fields_end_in_one_line(tmp_path, field):
    liver, vein = masks()
    write_segmentation(
        tmp_path / "x.seg.nrrd", np.stack([liver, vein]).astype(np.uint8), [("a", 1, 0), ("b", 1, 1)], **field
    )
    with pytest.raises(LrlsError, match=r"^case x: label map is unreadable or truncated; copy or export"):
        read_image(tmp_path / "x.seg.nrrd", "x", "label map")


def test_several_layers_without_segments_are_channels(tmp_path):
    write_segmentation(tmp_path / "x.nrrd", np.stack(masks()).astype(np.uint8), [])
    with pytest.raises(LrlsError, match="label map has 2 channels in one file"):
        read_image(tmp_path / "x.nrrd", "x", "label map")

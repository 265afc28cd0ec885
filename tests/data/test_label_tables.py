"""Tables of names and colours as ITK-SNAP, 3D Slicer, FreeSurfer and BIDS write them."""

import pytest
import SimpleITK as sitk
from test_bids import label_map, volume

from stages.config import load_config
from stages.data.initialize import describe_folder, write_config
from stages.data.label_tables import Entry, read_table
from stages.data.writers import write_label_tables

TABLES = {
    "itksnap.txt": '# ITK-SnAP\n    0  0 0 0  0 0 0 "Clear Label"\n    3  255 0 16  1 1 1  "left lobe"\n'
    '   17  0 255 0  0.5 1 0 "core"\n',
    "slicer.ctbl": "# Color table file x.ctbl\n# 3 values\n0 background 0 0 0 0\n3 left_lobe 255 0 16 255\n"
    "17 core 0 255 0 255\n",
    "FreeSurferLUT.txt": "#No. Label Name: R G B A\n0 Unknown 0 0 0 0\n3 left_lobe 255 0 16 0\n17 core 0 255 0 0\n",
    "slicer.csv": "LabelValue,Name,Color_R,Color_G,Color_B,Color_A\n3,left lobe,255,0,16,255\n17,core,0,255,0,255\n",
    "dseg.tsv": "index\tname\tabbreviation\tcolor\n3\tleft lobe\tll\t#FF0010\n17\tcore\tc\t#00ff00\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_by_what_it_holds(tmp_path, name):
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8")
    lobe = "left_lobe" if name in ("slicer.ctbl", "FreeSurferLUT.txt") else "left lobe"
    assert read_table(tmp_path / name) == {3: Entry(lobe, "#ff0010"), 17: Entry("core", "#00ff00")}


def test_our_own_tables_come_back(tmp_path):
    write_label_tables({"a b": 4, "c": 2}, tmp_path, ["#010203", "#ffffff"])
    assert read_table(tmp_path / "labels.txt") == {4: Entry("a b", "#010203"), 2: Entry("c", "#ffffff")}
    assert read_table(tmp_path / "labels.ctbl") == {4: Entry("a_b", "#010203"), 2: Entry("c", "#ffffff")}


@pytest.mark.parametrize(
    "text", ["", "notes of the study\n", "1,2,3\n", "0 0.1 0.2 0.3\n", "a\x00b", "index,name\nx,y\n", "1 a 300 0 0 0\n"]
)
def test_other_files_are_no_tables(tmp_path, text):
    for ending in (".txt", ".csv"):
        (tmp_path / f"x{ending}").write_text(text, encoding="utf-8")
        assert not any(entry.name == "a" and entry.colour for entry in read_table(tmp_path / f"x{ending}").values())


@pytest.mark.parametrize("place", ["labels/table.txt", "table.txt"])
def test_init_takes_names_and_colours_of_values_that_occur(tmp_path, place):
    scans = tmp_path / "scans"
    for case in ("a", "b"):
        volume(scans / "images" / f"{case}.nii.gz")
    label_map(scans / "labels" / "a.nii.gz", (3, 9))
    (scans / place).write_text(TABLES["itksnap.txt"], encoding="utf-8")
    config = load_config(write_config(describe_folder(scans), tmp_path / "lrls.yaml"))
    assert config.structures == {"left lobe": 3, "structure_9": 9}
    assert config.colours == {"left lobe": "#ff0010"}
    text = (tmp_path / "lrls.yaml").read_text(encoding="utf-8")
    assert f"# Names of structures are from {place}." in text


def test_two_values_of_one_name_stay_two_structures(tmp_path):
    volume(tmp_path / "images" / "a.nii.gz")
    label_map(tmp_path / "labels" / "a.nii.gz", (3, 17))
    (tmp_path / "lut.ctbl").write_text("3 lobe 1 2 3 255\n17 lobe 4 5 6 255\n", encoding="utf-8")
    assert describe_folder(tmp_path)["structures"] == {"lobe 3": 3, "lobe 17": 17}
    assert sitk.ReadImage(str(tmp_path / "labels" / "a.nii.gz")).GetSize() == (8, 9, 10)

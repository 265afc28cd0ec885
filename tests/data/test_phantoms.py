"""The synthetic cohort: the same for a seed, as varied as users' scans, and what data.example holds."""

import errno
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from stages.config import PARTS, load_config
from stages.data.checks import cohort_faults
from stages.data.phantoms import STRUCTURES, write_phantoms
from stages.errors import LrlsError

EXAMPLE = Path(__file__).parents[2] / "data.example"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """The folder that `lrls phantom data.example` writes."""
    folder = tmp_path_factory.mktemp("phantoms") / "data.example"
    write_phantoms(folder)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("first", 3), ("second", 3), ("third", 4)):
        write_phantoms(tmp_path / name / "c", scans=4, seed=seed)

    first, second, third = (contents(tmp_path / name / "c") for name in ("first", "second", "third"))
    assert first == second
    assert first.keys() == third.keys()
    assert all(first[name] != third[name] for name in first)


def test_data_example_is_what_the_command_makes(cohort):
    made = contents(cohort)
    assert made.keys() == contents(EXAMPLE).keys()
    assert (cohort / "lrls.yaml").read_text() == (EXAMPLE / "lrls.yaml").read_text()
    for name in made:
        if name.endswith(".nii.gz"):
            image, example = sitk.ReadImage(str(cohort / name)), sitk.ReadImage(str(EXAMPLE / name))
            for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
                assert getattr(image, geometry)() == pytest.approx(getattr(example, geometry)(), abs=1e-5)
            voxels, expected = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(example)
            assert voxels.dtype == expected.dtype
            # Another processor's cosine may round a voxel in many the other way.
            assert np.mean(voxels != expected) < 1e-3


def test_data_example_is_small():
    assert sum(len(content) for content in contents(EXAMPLE).values()) < 2.5e6


def test_the_configuration_loads_and_the_cohort_has_no_fault(cohort):
    config = load_config(cohort / "lrls.yaml")

    assert [len(config.part(part)) for part in PARTS] == [1, 7, 0, 2, 4]
    assert cohort_faults(config, PARTS) == []
    assert config.workspace == cohort.parent / "runs" / "example"


def test_unlabelled_scans_have_no_label_map(cohort):
    config = load_config(cohort / "lrls.yaml")

    labelled = {path.name.removesuffix(".nii.gz") for path in (cohort / "labels").iterdir()}
    assert labelled == {case for part in ("atlases", "dev", "test") for case in config.part(part)}


def test_orientations_spacings_sizes_and_origins_vary(cohort):
    images = [sitk.ReadImage(str(path)) for path in sorted((cohort / "images").iterdir())]

    codes = {sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()) for image in images}
    assert len(codes) >= 6
    for property_of in (sitk.Image.GetSpacing, sitk.Image.GetSize, sitk.Image.GetOrigin):
        assert len({property_of(image) for image in images}) >= 10
    assert all(max(image.GetSpacing()) / min(image.GetSpacing()) > 1.15 for image in images)
    assert all(30 <= n <= 40 for image in images for n in image.GetSize())


def test_label_values_are_sparse_and_lie_in_the_right_place_of_physical_space(cohort):
    for path in (cohort / "labels").iterdir():
        label = sitk.ReadImage(str(path))
        assert label.GetPixelID() == sitk.sitkUInt16
        assert set(np.unique(sitk.GetArrayFromImage(label))) == {0, *STRUCTURES.values()}
        shape = sitk.LabelShapeStatisticsImageFilter()
        shape.Execute(label)
        center = {name: np.array(shape.GetCentroid(value)) for name, value in STRUCTURES.items()}
        # Physical axes point left, posterior, superior.
        assert center["left_lobe"][0] > center["right_lobe"][0] + 8
        assert center["core"][1] < center["tube"][1] - 3


def test_contrast_differs_but_is_not_inverted(cohort):
    config = load_config(cohort / "lrls.yaml")
    ratios = []
    for case in (*config.part("atlases"), *config.part("dev"), *config.part("test")):
        image, label = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(cohort / kind / f"{case}.nii.gz")))
            for kind in ("images", "labels")
        )
        mean = {name: image[label == value].mean() for name, value in STRUCTURES.items()}
        assert mean["core"] < mean["tube"] and mean["left_lobe"] < mean["tube"]
        ratios.append(mean["core"] / mean["tube"])
    assert max(ratios) - min(ratios) > 0.05


def test_a_cohort_is_replaced_only_by_force(tmp_path):
    write_phantoms(tmp_path / "c", scans=6)
    before = contents(tmp_path / "c")

    with pytest.raises(LrlsError, match=r"holds a cohort already; choose another folder, or replace it with --force"):
        write_phantoms(tmp_path / "c", scans=4)
    assert contents(tmp_path / "c") == before

    write_phantoms(tmp_path / "c", scans=4, force=True)
    assert len(list((tmp_path / "c" / "images").iterdir())) == 4


def test_what_a_stopped_command_left_is_finished_by_the_same_command(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr("stages.data.phantoms.atomic_write_text", full)
        write_phantoms(tmp_path / "c", scans=4)
    write_phantoms(tmp_path / "c", scans=4)
    write_phantoms(tmp_path / "d", scans=4)
    for kind in ("images", "labels"):
        assert contents(tmp_path / "c" / kind) == contents(tmp_path / "d" / kind)
    (tmp_path / "c" / "lrls.yaml").unlink()
    (tmp_path / "c" / "images" / "mine.nii.gz").touch()
    with pytest.raises(LrlsError, match="holds a cohort already"):
        write_phantoms(tmp_path / "c", scans=4)


def test_too_few_scans_for_all_parts_are_refused(tmp_path):
    with pytest.raises(LrlsError, match=r"3 scans cannot be .*; ask for at least 4"):
        write_phantoms(tmp_path / "c", scans=3)
    assert not (tmp_path / "c").exists()

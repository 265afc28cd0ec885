"""Values of label maps: whatever they are and however they are stored, they come back as they were."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from drawn import examples, geometries, image_with
from hypothesis import given
from hypothesis import strategies as st

from stages.config import Config
from stages.data.digests import label_digest
from stages.data.intake import read_image
from stages.data.labels import as_integers, class_indices, label_values
from stages.data.segments import with_own_values, write_segmentation
from stages.data.writers import colours_of, write_image

LOWEST, HIGHEST = -(2**31), 2**32 - 1
ENDS = (LOWEST, LOWEST + 1, -1, 1, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, HIGHEST)
VALUES = st.one_of(st.integers(1, 300), st.sampled_from(ENDS), st.integers(LOWEST, HIGHEST)).filter(bool)
TYPES = [np.dtype(name) for name in ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]]


def config_of(values: list[int]) -> Config:
    structures = {f"s{k}": value for k, value in enumerate(values)}
    data = {"workspace": "runs", "data": {"folder": "."}, "structures": structures}
    return Config.model_validate(data)


def drawn_map(size: tuple[int, ...], values: list[int], dtype: np.dtype) -> np.ndarray:
    """Slabs of each value behind one another, as structures hold together, and some background."""
    table = np.array([0, *values, 0], object)
    places = np.arange(np.prod(size)) * len(table) // int(np.prod(size))
    return table[places].astype(dtype).reshape(size[::-1])


@examples(40)
@given(
    values=st.lists(VALUES, min_size=1, max_size=8, unique=True), geometry=geometries(), data=st.data(),
    ending=st.sampled_from([".nii.gz", ".nrrd", ".mha", ".seg.nrrd"]),
)  # fmt: skip
def test_values_come_back_as_they_were_in_every_format(tmp_path_factory, values, geometry, data, ending):
    config = config_of(values)
    held = [dtype for dtype in TYPES if all(int(np.array(v).astype(dtype)) == v for v in values)]
    stored = drawn_map(geometry.size, values, data.draw(st.sampled_from(held)))

    label = as_integers(image_with(stored, geometry), "c")
    classes = class_indices(sitk.GetArrayFromImage(label), config, "c")
    answer = image_with(label_values(classes, config), geometry)
    path = tmp_path_factory.mktemp("f") / f"answer{ending}"
    if ending == ".seg.nrrd":
        write_segmentation(answer, config.structures, colours_of(config.structures, {}), path)
    else:
        write_image(answer, path)
    back = with_own_values(as_integers(read_image(path, "c", "label map"), "c"), config, "c")

    np.testing.assert_array_equal(sitk.GetArrayFromImage(answer), stored.astype(np.int64))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), stored.astype(np.int64))
    np.testing.assert_array_equal(class_indices(sitk.GetArrayFromImage(back), config, "c"), classes)
    assert label_digest(image_with(stored.astype(np.int64), geometry)) == label_digest(label)

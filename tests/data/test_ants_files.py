"""What ANTs could not write is told: no scan is aligned otherwise, and no half of a displacement is taken."""

from __future__ import annotations

import gzip
from pathlib import Path

import ants
import numpy as np
import pytest
import SimpleITK as sitk

from stages.data.alignment import align
from stages.errors import LrlsError
from stages.parts.classical import syn_displacement

TOLD = "ANTs cannot write its temporary files; set TMPDIR to a folder with free space"


def whole() -> bytes:
    return gzip.compress(np.random.default_rng(0).bytes(5000))


@pytest.mark.parametrize("written", [None, b"", whole()[:2000], whole()[:-1]])
def test_a_displacement_that_is_missing_or_cut_is_not_taken(written, monkeypatch):
    def registration(*, outprefix, **_):
        path = Path(f"{outprefix}1Warp.nii.gz")
        if written is None:
            return {"fwdtransforms": []}
        path.write_bytes(written)
        return {"fwdtransforms": [str(path)]}

    monkeypatch.setattr(ants, "registration", registration)
    image = np.random.default_rng(0).random((8, 9, 10)).astype(np.float32)
    with pytest.raises(LrlsError, match=TOLD):
        syn_displacement(image, image, (1.0, 1.0, 1.0), 0)


def test_a_transform_that_is_missing_is_told_and_no_scan_is_blamed(monkeypatch):
    monkeypatch.setattr(ants, "registration", lambda **_: {"fwdtransforms": []})
    image = sitk.GetImageFromArray(np.random.default_rng(0).random((12, 12, 12)).astype(np.float32))
    with pytest.raises(LrlsError, match=TOLD):
        align(image, image, kind="rigid", seed=0)

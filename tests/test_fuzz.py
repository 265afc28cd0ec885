"""A short seed of the fuzz of every reader; `make fuzz` reads 10 000 inputs for each."""

from __future__ import annotations

import os

import pytest
from attacks.fuzz import fuzz
from attacks.fuzz_files import FILES
from attacks.fuzz_readers import import_everything
from attacks.fuzz_scans import SCANS
from attacks.fuzz_workspaces import workspaces
from attacks.trying import failed, table

READERS = SCANS | FILES | {name: reader for name, reader in workspaces().items() if name in ("kept facts", "answers")}
SLOW = {"dicom answered": 4, "bids": 12, "dataset.json": 12}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", READERS)
def test_mutated_inputs_are_read_or_refused_in_one_line(name):
    import_everything()
    campaign = fuzz(name, READERS[name], SLOW.get(name, 25), seed=7)
    assert failed({name: campaign.counts}) == 0, "\n".join([table({name: campaign.counts}), *campaign.lines])

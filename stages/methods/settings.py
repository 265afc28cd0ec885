"""Settings that methods share which answer by a segmentation network."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stages.config import ANSWER, MethodSettings


class AnswerSettings(MethodSettings):
    """Settings of methods that answer by a segmentation network."""

    flat_borders: Annotated[bool, ANSWER] = Field(
        False,
        description="Where the atlases draw a border as one plane of voxels, so does the answer; "
        "where that lies, network and registration decide together.",
    )

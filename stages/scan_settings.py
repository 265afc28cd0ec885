"""What the configuration says of the scans: where they are, which part each plays, how they come to a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.case_ids import fault_among
from stages.sections import MOST_AT_ONCE, Section

PARTS = ("atlases", "unlabeled", "supervised", "dev", "test")

Role = list[str] | str
ChannelName = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class DataSettings(Section):
    """Where the scans are, and to which part of the split each belongs."""

    folder: Path = Field(description="Folder of the scans; relative to the configuration file.")
    images: str = Field(
        "images", description="Sub-folder of the images: <case id>.nii.gz, .nrrd, .mha or DICOM folders."
    )
    labels: str = Field("labels", description="Sub-folder of the label maps, named as the images are.")
    files: dict[str, list[Path | list[Path]]] = Field(
        default={},
        description="Files of cases that are not named after their id, relative to the folder: case id: [image, "
        "label map] or [image]; the images of a scan that has several are a list: [[T1, T2], label map].",
    )
    channels: Annotated[list[ChannelName], Field(max_length=64)] = Field(
        default=[],
        description="Names of the images of a scan that has several, in the order _0000, _0001, ...: exported models "
        "and messages say them.",
    )
    split: str | None = Field(
        None, description="JSON file in the folder with named lists of case ids; parts may then name a list."
    )
    review: Path | None = Field(
        None,
        description="What people said of the scans, as `lrls review` writes it: excluded scans, corrected label maps "
        "that become atlases; relative to the configuration file.",
    )
    atlases: Role = Field(default=[], description="Labelled scans to learn from; the first one is the reference.")
    unlabeled: Role = Field(default=[], description="Scans without (used) labels to learn from.")
    supervised: Role = Field(default=[], description="Labelled scans of the `supervised` upper bound only.")
    dev: Role = Field(default=[], description="Labelled scans to choose settings on; never trained on.")
    test: Role = Field(default=[], description="Labelled scans to score once; never trained on.")

    @field_validator("files")
    @classmethod
    def _only_images_are_several(cls, files: dict[str, list[Path | list[Path]]]) -> dict[str, list[Path | list[Path]]]:
        for case, listed in files.items():
            if any(isinstance(given, list) for given in listed[1:]) or [] in listed:
                raise ValueError(f"{case} needs [image, label map], or [[image, image, ...], label map]")
        return files

    @field_validator(*PARTS)
    @classmethod
    def _ids_can_be_carried(cls, role: Role) -> Role:
        if isinstance(role, list) and (fault := fault_among(role)):
            raise ValueError(fault)
        return role


class IntensitySettings(Section):
    """How intensities are mapped to [0, 1]."""

    method: Literal["percentiles", "window"] = Field(
        "percentiles", description="MR: percentiles of the scan's foreground; CT: a fixed window."
    )
    percentiles: tuple[float, float] = Field((0.5, 99.5), description="Percentiles that become 0 and 1.")
    window: tuple[float, float] = Field((0.0, 2048.0), description="Values (HU) that become 0 and 1.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("percentiles", "window"):
            low, high = getattr(self, name)
            if not low < high:
                raise ValueError(f"{name} are {low} and {high}; the first must be the smaller one")
        if not (self.percentiles[0] >= 0 and self.percentiles[1] <= 100):
            raise ValueError(f"percentiles are {self.percentiles}; give numbers from 0 to 100")
        return self


LEAST_EDGE = 16  # voxels of a derived grid, along each axis
Length = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class PreprocessSettings(Section):
    """Alignment, crop, resampling, intensities."""

    align: Literal["none", "centre", "rigid", "affine"] = Field(
        "affine", description="Alignment to the first atlas: by header, box centres, or ANTs."
    )
    align_contrast: Literal["same", "any"] = Field(
        "same",
        description="How a fit is judged: by correlation (same), or by correlation ratio (any), for scans whose "
        "contrast differs from the first atlas's.",
    )
    align_spacing_mm: Length | None = Field(
        None, description="Scans with over 2^21 voxels are aligned at this spacing (mm); default: 2, or as much of "
        "scans that are not of human size.",
    )  # fmt: skip
    crop: Literal["labels", "foreground", "none"] = Field(
        "labels", description="The grid covers the atlases' labels, the reference's foreground, or its whole image."
    )
    margin_mm: float | None = Field(
        None,
        ge=0,
        description="Margin round the cropped box (mm); default: 12 of the first atlas's finest voxels, or 15 % of an "
        "edge of the box where that is more and the first atlas shows so much, and at least 2 slices.",
    )
    spacing_mm: Length | tuple[Length, Length, Length] | None = Field(
        None,
        description="Voxel size (mm), one number or (D, H, W); default: the first atlas's finest on all axes but those "
        "of slices over 3 times as thick, which keep theirs.",
    )
    shape: tuple[Count, Count, Count] | None = Field(
        None,
        description="Voxels (D, H, W), centred on the box; without spacing_mm the box is resampled to them; default: "
        "derived, multiples of 8, along thick slices even.",
    )
    max_voxels: int = Field(
        1_500_000,
        ge=LEAST_EDGE**3,
        description="A derived spacing is coarsened, its finest axes first, until the grid has no more voxels than "
        "this.",
    )
    most_atlases: int | None = Field(
        None, ge=1, description="Only so many scans of data.atlases are used, the first ones; null: all."
    )
    most_unlabeled: int | None = Field(
        None, ge=0, description="Only so many scans of data.unlabeled are used, the first ones; null: all."
    )
    intensity: IntensitySettings = IntensitySettings()
    n4: bool = Field(False, description="N4 bias field correction before anything else (MR).")
    workers: int | None = Field(
        None, ge=1, le=MOST_AT_ONCE, description="Processes that align and register; default: one per core."
    )

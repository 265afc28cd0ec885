"""MABMIS: atlases and scans on a tree are registered through one another, and all of them label a new scan.

Jia, Yap, Shen, "Iterative multi-atlas-based multi-image segmentation with tree-based registration", NeuroImage 59(1),
2012; the authors' published program IGR3D_MABMIS (github.com/tnilanon/MABMIS holds it; an extension of 3D Slicer, too).
The paper's text was not at hand: steps and numbers are the program's. A row of LT-Net's and SST's tables.

1. The root is the atlas nearest to all others along their minimum spanning tree, by root mean squared differences.
2. All atlases are registered to the root. The principal components of these displacements make templates, twice as many
   as atlases, whose way to the root is known.
3. A minimum spanning tree of atlases and templates; scans join it one by one, the nearest first.
4. Every image is registered to the root, beginning with its parent's displacement: diffeomorphic demons.
5. Any two images: the way of one to the root, composed with the inverse of the other's, refined.
6. Labels: the atlases vote; then, twice, all other images do. A vote counts by how its patch of 3^3 voxels resembles.

Nothing is learned: `train-seg` makes the tree of atlases and unlabelled scans, and the answer adds the new scan to it.

Readings and what differs:
- *Group*: the published group is what is to be segmented. Here every new scan is answered by itself, as by all methods,
  with the unlabelled scans as its group; it does not vote on theirs.
- *One atlas* (the paper has more): no templates, and the first vote is its warped label.
- *Components* are scaled by their standard deviations; the program's are longer by the root of their number.
- *Votes* are of linearly warped labels, as everywhere here, not of the nearest ones. Histograms are not matched:
  `preprocess` has brought intensities to [0, 1].
- *Demons*: our own after ITK's forces, on levels that follow the voxel size.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from pydantic import Field, NonNegativeInt

from stages.methods.recipe import Answer, Method, Recipe, Task, Train
from stages.methods.settings import MethodSettings
from stages.parts.batches.scans import Scans
from stages.parts.demons import Demons
from stages.parts.image_tree import ImageTree, TreeRegistration

Iterations = tuple[NonNegativeInt, ...]


class Settings(MethodSettings):
    """Settings of `mabmis`."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "light": {"most_scans": 5},
        "paper": {},
    }

    most_scans: int = Field(
        20, ge=0, description="Most unlabelled scans on the tree, the first ones listed. Time goes with their square."
    )
    iterations: int = Field(3, ge=1, le=10, description="Of the labels; 1: only atlases vote.")
    along_iterations: Iterations = Field(
        (15, 10, 5), min_length=1, max_length=6, description="Of demons along the tree, coarse to fine."
    )
    refine_iterations: Iterations = Field(
        (5, 3, 2),
        min_length=1,
        max_length=6,
        description="Of demons that refine what was inverted or composed, and of the atlases' first registration.",
    )
    smoothing: float = Field(1.5, gt=0, description="Of demons' displacements (voxels of each level).")
    first_smoothing: float = Field(2.0, gt=0, description="Likewise, of the atlases' first registration.")


def build(task: Task, settings: Settings) -> Recipe:
    demons = partial(Demons, spacing_mm=task.spacing_mm)
    tree = ImageTree(
        task.shape,
        task.channels,
        task.num_classes,
        atlases=task.num_atlases,
        most_scans=settings.most_scans,
        registration=TreeRegistration(
            coarse=demons(settings.refine_iterations, sigma=settings.first_smoothing),
            along=demons(settings.along_iterations, sigma=settings.smoothing),
            refine=demons(settings.refine_iterations, sigma=settings.smoothing),
        ),
        iterations=settings.iterations,
    )
    sees_unlabeled = settings.most_scans > 0 and task.num_unlabeled > 0
    return Recipe(
        networks={"segmentation": tree},
        rounds=[[Train("segmentation", fits=partial(fill, tree), sees_unlabeled=sees_unlabeled)]],
        answer=Answer(network=tree),
    )


def fill(tree: ImageTree, data: Scans) -> None:
    """Atlases and the first unlabelled scans become the tree."""
    places = [*data.atlases, *data.unlabeled[: tree.most_scans]]
    tree.fill(data.image(places), data.label(data.atlases))


METHOD = Method(
    name="mabmis",
    summary="atlases and scans on a tree, registered through one another; all label a new scan",
    source="Jia et al., NeuroImage 2012",
    settings=Settings,
    recipe=build,
    channels=True,
)

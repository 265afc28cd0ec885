"""Words of the page that a reader may not know, and what makes a flag."""

from __future__ import annotations

from stages.reporting.runs import BETTER, FOLDED, OFF

WORDS = (
    ("DSC", "Dice: overlap of answer and truth, 1: the same, 0: no common voxel; of a scan: the mean over structures"),
    ("HD95", "distance within which 95 % of the surfaces of answer and truth lie to one another, in mm"),
    ("ASSD", "mean distance of the surfaces of answer and truth, in mm"),
    ("95 % interval", "where the mean over such scans lies, by drawing the scans again (bootstrap)"),
    (
        "p",
        "how often chance makes such a difference or a greater one between equal methods (Wilcoxon, paired over "
        "scans); Holm's correction makes up for several tests",
    ),
    ("atlas", "a labelled scan that methods learn from"),
    ("dev", "labelled scans by which settings were chosen; their scores flatter, those of test scans do not"),
    ("registration", "the atlas laid over a scan, and its labels with it; alone: without the segmentation network"),
    ("segmentation", "a method's answer, where it has a segmentation network; some fuse it with the registration"),
    ("network", "what the segmentation network says alone"),
    ("fused", "network and registration averaged into one answer"),
    ("couples", "pairs of image and label that were generated from an atlas and unlabelled scans to train with"),
    ("folded", "voxels where a displacement turns space inside out (Jacobian 0 or below)"),
    ("missed", "structures of the truth that the answer does not have, counted over scans"),
    ("artifact", "a finished step of the work, kept in the workspace with the digest of what it was made from"),
)
FLAGS = (
    ("far below the others", "mean DSC over 1.5 interquartile ranges below the first quartile of the scans"),
    ("missed", "a structure of the truth is not in the answer"),
    ("not in truth", "a structure of the answer is not in the truth"),
    ("volume off", f"the volume of a structure differs from the truth by over {OFF:.0%}"),
    ("another method is better", f"by over {BETTER} DSC"),
    ("folding", f"over {FOLDED:.0%} of the voxels are folded, by any method"),
    ("alignment refused", "the scan was moved by its centre of mass only"),
)
GLOSSARY = (*WORDS, *((f"flag: {name}", text) for name, text in FLAGS))

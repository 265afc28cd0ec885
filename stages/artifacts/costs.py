"""What it cost to make an answer: time and memory of everything on the way to it."""

from __future__ import annotations

from stages.artifacts.manifest import Manifest


def cost(scores: Manifest, made: dict[str, Manifest]) -> tuple[float | None, float | None]:
    """Wall time in s and peak memory in MB of all that was made on the way to an answer.

    Held-out cohorts and `eval` do not count. Where nothing was trained, `eval` does count, because it registers. None
    where a manifest is gone.

    Args:
        made: the workspace's artifacts by digest.
    """
    seen = way_to(scores, made)
    if not {"registration", "segmentation"} & scores.identity.inputs.keys():
        seen[scores.digest] = scores
    manifests = [manifest for manifest in seen.values() if manifest]
    if len(manifests) < len(seen):
        return None, None
    peaks = [manifest.peak_memory_mb for manifest in manifests if manifest.peak_memory_mb is not None]
    return sum(manifest.wall_time_s for manifest in manifests), max(peaks, default=None)


def way_to(scores: Manifest, made: dict[str, Manifest]) -> dict[str, Manifest | None]:
    """The artifacts that led to an answer, by digest, without held-out cohorts; None: the manifest is gone."""
    roles = ("cohort", "registration", "generated", "segmentation")
    seen: dict[str, Manifest | None] = {}
    waiting = [scores]
    while waiting:
        inputs = waiting.pop().identity.inputs
        for digest in (inputs[role] for role in roles if role in inputs):
            if digest not in seen:
                seen[digest] = made.get(digest)
                waiting += [made[digest]] if digest in made else []
    return seen

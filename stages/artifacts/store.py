"""The store: how stages write, find, open and check artifacts.

An artifact is a folder `target/vNNNN` with an `artifact.json`. It is complete or absent: a stage works in a hidden
draft beside it, writes `artifact.json` last, and one rename makes the draft a version. Versions are never overwritten.

    target/.lock-<identity>      held by the process that makes this; other seeds are made beside it
    target/.lock                 held by the process that reads scans for a cohort
    target/.draft-<identity>/    unfinished; its resume/ holds training state and progress and is deleted at the end
    target/v0001/                finished

Digests are SHA-256 in hex. The *identity digest* covers what was asked for (same identity: up to date). The *content
digest* covers the result, without times, hosts and logs; later stages list it as their input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stages.artifacts.draft import Draft, MadeMeanwhile, new_artifact, publish_complete_drafts, version_number
from stages.artifacts.files import shown
from stages.artifacts.found import look_through
from stages.artifacts.kinds import KINDS
from stages.artifacts.manifest import (
    MANIFEST,
    Artifact,
    Identity,
    Manifest,
    peek_manifest,
    verified_manifest,
)
from stages.errors import LrlsError

A = TypeVar("A", bound=Artifact)


class NotMade(LrlsError):
    """No version of an artifact is what was asked for; it has yet to be made."""


def make(
    kind: type[A],
    target: Path,
    write: Callable[[Draft], None],
    *,
    made_by: str,
    settings: Mapping[str, Any],
    seed: int,
    round: int = 0,
    inputs: Mapping[str, Artifact | str | None],
    force: bool = False,
    ready: Callable[[], None] | None = None,
) -> A:
    """Make an artifact, unless an up-to-date version exists in `target`; open and return it.

    Args:
        write: fills the draft; if it raises, the next run resumes from the files that it left.
        made_by: the stage, e.g. "train-reg".
        settings: everything that the result depends on besides inputs and seed, JSON-able.
        inputs: by role: an artifact, which must be unchanged since it was made; or the digest of something else; None
            is left out.
        force: make a new version even if one is up to date.
        ready: cheap checks that may raise; called only if something will be made, before the draft exists.

    Raises:
        LrlsError: an input changed since it was made; also raised by `working_in`, `write` and `ready`.
    """
    given = {role: source for role, source in inputs.items() if source is not None}
    identity = Identity(
        kind=kind.KIND,
        format_version=kind.FORMAT,
        made_by=made_by,
        config=dict(settings),
        seed=seed,
        round=round,
        inputs={role: source if isinstance(source, str) else source.manifest.digest for role, source in given.items()},
    )
    if not force and (done := find_finished(target, identity)):
        return kind.open(done)
    if ready:
        ready()
    for source in given.values():
        if isinstance(source, Artifact):
            verify(source.folder)
    # On NFS, who opens the lock sees what other machines renamed since, so it is looked for again.
    unless = None if force else lambda: find_finished(target, identity)
    try:
        with new_artifact(target, identity, unless=unless) as draft:
            write(draft)
    except MadeMeanwhile as made:
        return kind.open(made.folder)
    return kind.open(draft.result)


def versions(target: Path) -> list[Path]:
    """Finished versions of any format, oldest first."""
    if not target.is_dir():
        return []
    finished = (path for path in target.iterdir() if version_number(path) and (path / MANIFEST).is_file())
    return sorted(finished, key=version_number)


@dataclass(frozen=True)
class Listed:
    """A finished version whose content was not looked at."""

    folder: Path
    manifest: Manifest


def listed_versions(kind: type[Artifact], target: Path) -> list[Listed]:
    """Finished versions, oldest first, to choose from; those of an older format are left out."""
    peeked = [Listed(folder, peek_manifest(folder, kind=kind)) for folder in versions(target)]
    return [version for version in peeked if not version.manifest.identity.outdated]


def latest(
    target: Path,
    *,
    kind: str,
    made_from: Mapping[str, Manifest] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    round: int = 0,
) -> Path:
    """The newest finished version of a round.

    Args:
        kind: `KIND` of the artifacts in `target`.
        made_from: consider only versions with these inputs, by role: weights of an older cohort do not fit a newer one.
        settings: consider only versions whose configuration has these values: weights do not name their network.
        seed: one of this seed comes first, if there is any: runs with several seeds stand beside each other.

    Raises:
        NotMade: no version matches, or all are of an older format.
        LrlsError: they are of another kind, or `artifact.json` of one is damaged.
    """
    expected = KINDS[kind]
    finished = versions(target)
    if not finished:
        raise NotMade(f"{shown(target)} holds no finished {kind} artifact; make it with `{expected.MADE_WITH}`.")
    wanted = {role: manifest.digest for role, manifest in (made_from or {}).items()}
    identities, fitting = {}, list[Path]()
    for folder in reversed(finished):
        identity = identities[folder] = peek_manifest(folder, kind=expected).identity
        if (
            not identity.outdated
            and identity.round == round
            and all(identity.inputs.get(role) == digest for role, digest in wanted.items())
            and all(identity.config.get(key) == value for key, value in (settings or {}).items())
        ):
            if seed in (None, identity.seed):
                return folder
            fitting.append(folder)
    if fitting:
        return fitting[0]
    command = f"{expected.MADE_WITH} --round {round}" if round else expected.MADE_WITH
    if all(identity.outdated for identity in identities.values()):
        newest = identities[finished[-1]].format_version
        raise NotMade(
            f"{shown(target)} holds only versions of an older format: {kind} format {newest}, this lrls reads "
            f"{expected.FORMAT}; make it again with `{command}`."
        )
    raise NotMade(
        f"{shown(target)}: no version was made from the newest {' and '.join(wanted)} with these settings; "
        f"make one with `{command}`."
    )


def with_digest(target: Path, digest: str) -> Path | None:
    """The newest finished version with this content digest; None: it was deleted or is of an older format."""
    for folder in reversed(versions(target)):
        manifest = peek_manifest(folder)
        if manifest.digest == digest and not manifest.identity.outdated:
            return folder
    return None


def find_finished(target: Path, identity: Identity) -> Path | None:
    """The newest finished version with this identity (which includes the format): it is up to date."""
    publish_complete_drafts(target)
    for folder in reversed(versions(target)):
        if peek_manifest(folder).identity.digest == identity.digest:
            return folder
    return None


def verify(folder: Path) -> None:
    """Compare every file with its digest.

    Raises:
        LrlsError: a file changed or is missing, or the artifact is not of the current format.
    """
    verified_manifest(folder)


def history(workspace: Path) -> list[tuple[Path, Manifest]]:
    """Every finished artifact below the workspace, oldest first; inputs match by `Manifest.digest`.

    Artifacts of an older format are included; their `Identity.outdated` is true.

    Raises:
        LrlsError: one cannot be read.
    """
    found = look_through(workspace)
    if found.unreadable:
        raise LrlsError(found.unreadable[0])
    return found.finished

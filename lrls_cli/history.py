"""`lrls history`: what was made from what."""

from lrls_cli.options import ConfigFile, Settings


def history(config: ConfigFile, settings: Settings = []) -> None:  # noqa: B006
    """List the workspace's artifacts, oldest first, with what each was made from.

    Example: lrls history lrls.yaml
    """
    from rich.console import Console
    from rich.table import Table

    from stages.artifacts.store import history as finished
    from stages.config import load_config

    workspace = load_config(config, settings).workspace
    found = finished(workspace)
    # Newest first: what was made again with --force is the first one that there was.
    places = {manifest.digest: str(folder.relative_to(workspace)) for folder, manifest in reversed(found)}
    table = Table()
    for column in ("artifact", "made by", "from", "seed", "took", "digest"):
        table.add_column(column, overflow="fold")
    for folder, manifest in found:
        identity = manifest.identity
        scans = [role for role in identity.inputs if role.startswith(("scan/", "truth/"))]
        made_from = [
            places.get(digest, f"{role} {digest[:8]} (not in this workspace)")
            for role, digest in identity.inputs.items()
            if role not in scans
        ]
        made_from += [f"{len(scans)} scans"] if scans else []
        made_by = f"{identity.made_by}, round {identity.round}" if identity.round else identity.made_by
        table.add_row(
            str(folder.relative_to(workspace)),
            f"{made_by} (older format: not read)" if identity.outdated else made_by,
            "\n".join(made_from), str(identity.seed),
            f"{manifest.wall_time_s:.0f} s", manifest.digest[:8],
        )  # fmt: skip
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table if found else f"nothing in {workspace.name} yet; start with `lrls preprocess`.")

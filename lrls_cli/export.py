"""`lrls export`: a trained method as one file, its network for other programs, or generated data for nnU-Net."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lrls_cli.calibrate import NetworkOnly
from lrls_cli.echo import tell
from lrls_cli.options import ConfigFile, MethodName, Round, Settings


class To(StrEnum):
    """Kinds of export."""

    model = "model"
    onnx = "onnx"
    monai = "monai"
    nnunet = "nnunet"


def export(
    config: ConfigFile,
    method: MethodName,
    out: Annotated[Path, typer.Option(help="model.zip, or a folder; for nnU-Net a folder Dataset<3 digits>_<name>.")],
    to: Annotated[
        To,
        typer.Option(
            help="model: for `lrls predict`; onnx: the network with a manifest; monai: the network as a bundle; "
            "nnunet: raw data to train nnU-Net v2 on."
        ),
    ] = To.model,
    network_only: NetworkOnly = False,
    couples: Annotated[int, typer.Option(min=0, help="For nnU-Net: couples to draw from generated paths.")] = 100,
    settings: Settings = [],  # noqa: B006
    round: Round = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what `out` holds.")] = False,
) -> None:
    """Write a trained method as one file that answers scans elsewhere, its network alone, or its data for nnU-Net.

    Example: lrls export lrls.yaml --method best --out model.zip
    """
    # Imported here so that `lrls --help` does not wait for torch.
    from stages.errors import plural
    from stages.planning.obeying import settled
    from stages.workflow import trained

    loaded = settled(config, settings, method).config
    made = trained(loaded, method, round=round)
    if to is To.nnunet:
        from stages.nnunet import export_nnunet

        counts = export_nnunet(made, loaded, method, out, couples=couples, force=force)
        tell(f"{out}: {plural(counts['train'], 'couple')} with labels, {plural(counts['test'], 'scan')} without")
        return
    if to is not To.model:
        from stages.export import export_network

        about = export_network(made, loaded, method, out, "onnx" if to is To.onnx else "monai", force=force)
        verified = (about if to is To.onnx else about["lrls"])["verified"]
        tell(
            f"verified against torch: logits differ by at most {verified['largest_difference']:.1e} of their range, "
            f"{100 * verified['equal_voxels']:.2f} % of the voxels have the same class"
        )
        tell("holds the reference image, which scans are aligned to; the network answers on its grid, without atlases")
        tell(out)
        return
    from stages.export import export_calibrated

    model = export_calibrated(made, loaded, method, out, network_only=network_only, force=force)
    if model.atlases:
        tell(
            f"holds image and label of {plural(len(model.atlases), 'atlas', 'atlases')}, whose "
            f"labels {method} propagates"
            + ("; --network-only leaves them out" if model.recipe.answer.network is not None else "")
        )
    tell(out)

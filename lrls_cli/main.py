"""`lrls`: the app. Errors are printed here and nowhere else; nothing is computed here."""

import os
import sys

import typer

from lrls_cli.calibrate import calibrate
from lrls_cli.check import check
from lrls_cli.compare import compare
from lrls_cli.evaluate import evaluate
from lrls_cli.export import export
from lrls_cli.generate import generate
from lrls_cli.history import history
from lrls_cli.init import init
from lrls_cli.methods import methods
from lrls_cli.phantom import phantom
from lrls_cli.predict import predict
from lrls_cli.preprocess import preprocess
from lrls_cli.run import run
from lrls_cli.suggest_atlas import suggest_atlas
from lrls_cli.train_reg import train_reg
from lrls_cli.train_seg import train_seg
from stages.errors import LrlsError

app = typer.Typer(
    name="lrls",
    help="Segmentation networks from one to five labelled 3D scans, by learned registration.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(init)
app.command()(check)
app.command("suggest-atlas")(suggest_atlas)
app.command()(preprocess)
app.command("train-reg")(train_reg)
app.command()(generate)
app.command("train-seg")(train_seg)
app.command("eval")(evaluate)
app.command()(run)
app.command()(predict)
app.command()(calibrate)
app.command()(export)
app.command()(compare)
app.command()(methods)
app.command()(history)
app.command()(phantom)


def main() -> None:
    """Entry point: faults of the input end as one line and exit code 1; our own bugs trace back."""
    try:
        app()
    except LrlsError as error:
        print(f"lrls: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C
            print("lrls: stopped; the same command resumes.", file=sys.stderr)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()

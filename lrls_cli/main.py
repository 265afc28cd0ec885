"""`lrls`: the app. Errors are printed here and nowhere else; nothing is computed here."""

import io
import os
import sys

import typer

from lrls_cli.calibrate import calibrate
from lrls_cli.check import check
from lrls_cli.compare import compare
from lrls_cli.echo import complain
from lrls_cli.ending import end_with_children, ended_by_signals, refused, stopped_by
from lrls_cli.evaluate import evaluate
from lrls_cli.export import export
from lrls_cli.generate import generate
from lrls_cli.history import history
from lrls_cli.info import info
from lrls_cli.init import init
from lrls_cli.methods import methods
from lrls_cli.phantom import phantom
from lrls_cli.plan import plan
from lrls_cli.predict import predict
from lrls_cli.preprocess import preprocess
from lrls_cli.report import report
from lrls_cli.review import review
from lrls_cli.run import run
from lrls_cli.slurm import slurm
from lrls_cli.suggest_atlas import suggest_atlas
from lrls_cli.suggest_next import suggest_next
from lrls_cli.sweep import sweep
from lrls_cli.train_reg import train_reg
from lrls_cli.train_seg import train_seg
from stages.artifacts.files import is_disk_full
from stages.errors import UNPRINTABLE, LrlsError, printable, shortened
from stages.memory import is_out_of_memory
from stages.ranks import joined, line_of_others

app = typer.Typer(
    name="lrls",
    help="Segmentation networks from one to five labelled 3D scans, by learned registration.",
    no_args_is_help=True,
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
app.command()(plan)
app.command()(run)
app.command()(predict)
app.command()(calibrate)
app.command()(export)
app.command("suggest-next")(suggest_next)
app.command()(review)
app.command()(compare)
app.command()(report)
app.command()(sweep)
app.command()(slurm)
app.command()(methods)
app.command()(history)
app.command()(info)
app.command()(phantom)


def main() -> None:
    """Entry point: faults of the input and of the system end as one line and exit code 1; our own bugs trace back."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter shows its code
    with ended_by_signals():
        try:
            _look_at(sys.argv[1:])
            try:
                with joined(sys.argv[1:2]):
                    app()
            finally:
                sys.stdout.flush()  # what cannot be written is told here, not when Python ends
        except SystemExit as end:
            if stopped_by(end.code):
                complain(line_of_others() or "stopped; the same command resumes.")
                end_with_children(int(end.code or 0))
            raise
        except Exception as error:
            _close_broken_output()
            if isinstance(error, BrokenPipeError):
                pass  # nobody reads any more
            elif isinstance(error, LrlsError):
                complain(error)
            elif is_out_of_memory(error):
                complain(
                    "not enough memory; set a smaller batch_size in train_reg or train_seg, fewer preprocess.workers, "
                    "or a coarser preprocess.spacing_mm. With more memory, the same command resumes."
                )
            elif isinstance(error, OSError) or is_disk_full(error):
                complain(refused(error))
            else:
                raise
            sys.exit(1)


def _look_at(arguments: list[str]) -> None:
    """Refuse arguments that no setting, name or number can be, but for names of existing files.

    Raises:
        LrlsError: an argument holds a control character or is not UTF-8.
    """
    for place, argument in enumerate(arguments, start=1):
        if UNPRINTABLE.search(argument) and ("\0" in argument or not os.path.lexists(argument)):
            raise LrlsError(
                f"argument {place} holds a control character, or is not UTF-8: {printable(shortened(argument))}; "
                "type it anew."
            )


def _close_broken_output() -> None:
    """Where nothing more can be printed, Python must not try again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()

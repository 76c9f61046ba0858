"""The `inward` command: puts the commands together and turns errors into one plain line and an exit code.

Exit codes: 0 done, 1 something went wrong, 2 a mistake in what was asked, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from inward.cli import audit, chat, evaluate, export, models, output, recipes, run, show, status
from inward.errors import InwardError

app = typer.Typer(
    name="inward",
    help="Train a language model to think before it answers, by Thought Preference Optimization.\n\n"
    "\b\nExample:\n"
    "  inward recipes                      what there is to start from\n"
    "  inward run demo --out runs/demo     the whole loop, resumable at any time\n"
    "  inward status runs/demo             how far it is and what it found\n"
    "  inward show runs/demo               the thoughts, the responses, their scores",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        output.write(f"inward {metadata.version('inward')}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Hold the options that stand before a command."""


app.command("run", short_help="Train a model to think, or go on with a run.")(run.run)
app.command("status")(status.status)
app.command("show")(show.show)
app.command("export", short_help="Take pairs or a model out of a run.")(export.export)
app.command("evaluate", short_help="Measure the models of a run on a benchmark.")(evaluate.evaluate)
app.command("audit", short_help="Measure how far a judge can be trusted.")(audit.audit)
app.command("chat")(chat.chat)
app.add_typer(recipes.app, name="recipes")
app.add_typer(models.app, name="models")


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        try:
            app(prog_name="inward")
        finally:
            sys.stdout.flush()
    except InwardError as error:
        output.note(f"error: {output.clean(str(error))}")
        sys.exit(error.exit_code)
    except BrokenPipeError:  # whoever read our output has had enough, as in `inward show RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()

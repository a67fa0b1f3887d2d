"""The `vcllm` command: its subcommands, and one sentence for every failure."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from vcllm import __version__
from vcllm.commands import (
    audit,
    campaign,
    charter,
    chat,
    data,
    demo,
    evaluation,
    guard,
    jobs,
    keys,
    lineage,
    models,
    recipe,
    review,
    scraping,
    secrets,
    up,
)
from vcllm.commands.errors import sentence


class Commands(TyperGroup):
    """Turns whatever goes wrong below it into a sentence and exit status 1; `--debug` lets it through."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            console = Console(stderr=True, soft_wrap=True)
            console.print(f"error: {sentence(error)}", style="red", markup=False, highlight=False)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def vcllm(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Adversarial alignment of language models for value consistency, in Chinese and English."""


app.command()(demo.demo)
app.command()(up.up)
app.command()(chat.chat)
app.command()(lineage.lineage)
app.command(hidden=True)(secrets.secrets)
app.add_typer(jobs.app, name="jobs")
app.add_typer(campaign.app, name="campaign")
app.add_typer(models.app, name="models")
app.add_typer(review.app, name="review")
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(guard.app, name="guard")
app.command("scrape-token")(scraping.show_scrape_token)
app.add_typer(evaluation.app, name="eval")
app.add_typer(charter.app, name="charter")
app.add_typer(data.app, name="data")
app.add_typer(recipe.app, name="recipe")


def main() -> None:
    """Entry point; `--debug` may stand anywhere."""
    words = sys.argv[1:]
    if "--debug" in words:
        words = ["--debug", *(word for word in words if word != "--debug")]
    app(words)


if __name__ == "__main__":
    main()

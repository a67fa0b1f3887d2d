"""`vcllm data qc`: the checks that VC-Bench, or an operator's set of the same shape, must pass."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from vcllm.charter import load_charter
from vcllm.commands.display import open_console
from vcllm.commands.errors import CommandError


def qc(
    folder: Annotated[Path | None, typer.Argument(help="A set's folder; default: the one that is shipped.")] = None,
    only: Annotated[
        str | None, typer.Option(help="Check this sub-domain only, while the set is being written.")
    ] = None,
    charter: Annotated[Path | None, typer.Option(help="A charter's folder; default: the one that is shipped.")] = None,
    release: Annotated[
        str | None, typer.Option(metavar="VERSION", help="When nothing is wrong, give the content this version.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check the evaluation set: shape, counts, languages, sets, labels, leaks, look-alikes; exit 1 on any fault."""
    from vcllm.evaluation.bench.load import SHIPPED, load_bench, write_release
    from vcllm.evaluation.bench.qc import check_bench, figures

    if release is not None and not release.strip():
        raise CommandError("--release needs a version, such as 1.0.")
    if release and only:
        raise CommandError("--release is for a whole set: leave --only out.")
    loaded = load_charter(charter)
    if only and only not in {sub.id for sub in loaded.taxonomy.subdomains}:
        raise CommandError(f"The charter has no sub-domain '{only}'.")
    bench = load_bench(folder, check_hash=release is None and only is None)
    faults = check_bench(bench, loaded, only)
    known = {} if only else figures(bench)
    if release and not faults:
        known["version"] = write_release(folder or SHIPPED, bench, release).version
    if as_json:
        told = {"ok": not faults, "faults": [vars(fault) for fault in faults], "figures": known}
        typer.echo(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        _print(known, [str(fault) for fault in faults])
    raise typer.Exit(1 if faults else 0)


def _print(figures: Mapping[str, float | int | str], faults: Sequence[str]) -> None:
    console = open_console()
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.2f}" if isinstance(value, float) else str(value))
    console.print(table)
    for fault in faults:
        console.print(fault, markup=False, highlight=False, soft_wrap=True)
    verdict = f"{len(faults)} fault{'' if len(faults) == 1 else 's'}." if faults else "No fault."
    console.print(verdict, style="red" if faults else "green")

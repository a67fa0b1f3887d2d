"""A board on the terminal: live bars and a table, or plain lines where nobody looks at a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from vcllm.commands.board import REUSED, STARTED, Board, Figures, StageLine

PLAIN_EVERY_S = 5.0
"""A line at most this often while nothing but numbers changes."""
PHASES = {"attack": "attacks", "answer": "answers", "critique": "critiques", "pair": "pairs"}


class Display(Protocol):
    """Shows a board while its job runs."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, board: Board) -> None: ...


def open_console() -> Console:
    """The terminal, or a file or pipe, in which nothing is wrapped and tables have the room they need."""
    console = Console()
    return console if console.is_terminal else Console(width=130, soft_wrap=True)


TableMaker = Callable[[Board], RenderableType | None]
"""What is shown below the stages of a board, the same object as long as it does not change; None: nothing yet."""


def display_for(console: Console, table: TableMaker | None = None) -> Display:
    """table: None: what each stage has come to."""
    return LiveDisplay(console, table) if console.is_terminal else PlainDisplay(console, table=table)


class LiveDisplay:
    """Redraws bars and table in place; messages scroll above them."""

    def __init__(self, console: Console, table: TableMaker | None = None) -> None:
        self.console = console
        self._table = table or self._figures
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._spinner = Spinner("dots")
        self._num_said = 0

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, board: Board) -> None:
        for message in board.messages[self._num_said :]:
            self.console.print(Text(message, style="dim"))
        self._num_said = len(board.messages)
        parts: list[RenderableType] = [_bars(board.stages.values(), self._spinner)]
        if (table := self._table(board)) is not None:
            parts.append(table)
        self._live.update(Group(*parts))

    def _figures(self, board: Board) -> Table | None:
        return figures_table(board.figures.values(), self.console.width) if board.figures else None


class PlainDisplay:
    """One line when a stage begins, ends or is measured, and now and then how far it is; a table when it changed."""

    def __init__(self, console: Console, every_s: float = PLAIN_EVERY_S, table: TableMaker | None = None) -> None:
        self.console = console
        self.every_s = every_s
        self._table = table
        self._drawn: RenderableType | None = None
        self._num_said = 0
        self._said: dict[str, str] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, board: Board) -> None:
        for message in board.messages[self._num_said :]:
            self._print(message)
        self._num_said = len(board.messages)
        for line in board.stages.values():
            self._show_stage(line)
        for row in board.figures.values():
            if row.held_out_zh is not None:
                self._once(f"figures {row.stage}", f"{row.stage}: {told_figures(row)}")
        table = self._table(board) if self._table is not None else None
        if table is not None and table is not self._drawn:
            self._drawn = table
            self.console.print(table)

    def _show_stage(self, line: StageLine) -> None:
        now = time.monotonic()
        is_due = line.is_over or now - self._last.get(line.name, -math.inf) >= self.every_s
        if is_due and self._once(line.name, told_stage(line)):
            self._last[line.name] = now

    def _once(self, about: str, text: str) -> bool:
        """Print the text unless it was the last one about this."""
        if self._said.get(about) == text:
            return False
        self._said[about] = text
        self._print(text)
        return True

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def told_stage(line: StageLine) -> str:
    """One stage in one line of text."""
    if line.is_over:
        return f"{line.name}: {_told_end(line)}"
    return f"{line.name}: {told_progress(line) or STARTED}"


def told_progress(line: StageLine) -> str:
    parts = []
    if line.steps:
        what = PHASES.get(line.phase or "", "steps" if line.phase is None else line.phase)
        parts.append(f"{line.step}/{line.steps} {what}")
    elif line.phase:
        parts.append(line.phase)
    if line.loss is not None:
        parts.append(f"loss {line.loss:.3f}")
    if line.tokens_per_s is not None:
        parts.append(f"{line.tokens_per_s:,.0f} tokens/s")
    if line.eta_s is not None:
        parts.append(f"{_duration(line.eta_s)} left")
    return ", ".join(parts)


def told_figures(row: Figures) -> str:
    parts = []
    if row.valid is not None:
        parts.append(f"valid attacks {row.valid}")
    if row.attacker_success is not None:
        parts.append(f"attacker success {percent(row.attacker_success)}")
    if row.pairs is not None:
        parts.append(f"pairs {row.pairs}")
    parts += [
        f"held-out attack success zh {percent(row.held_out_zh)} en {percent(row.held_out_en)}",
        f"over-refusal {percent(row.over_refusal)}",
        f"helpful {percent(row.helpful)}",
        f"agreement {percent(row.agreement)}",
    ]
    if row.gate is not None:
        parts.append(f"gate {row.gate}")
    return ", ".join(parts)


TABLE_TITLE = "Held-out evaluation in %; zh, en and new cards: attacks that succeed; won: by the Attacker, in its round"
NARROW = 100
"""A terminal with fewer columns gets the columns that decide."""


def figures_table(rows: Iterable[Figures], width: int = 130) -> Table:
    """What each stage and round has come to; shares in per cent. `width`: columns of the terminal."""
    columns: list[tuple[str, bool, Callable[[Figures], str]]] = [
        ("valid\nattacks", False, lambda row: row.valid or ""),
        ("won", True, lambda row: percent(row.attacker_success, "")),
        ("pairs", True, lambda row: "" if row.pairs is None else str(row.pairs)),
        ("zh", True, lambda row: percent(row.held_out_zh, "")),
        ("en", True, lambda row: percent(row.held_out_en, "")),
        ("new\ncards", False, lambda row: percent(row.held_out_cards, "")),
        ("over-\nrefusal", True, lambda row: percent(row.over_refusal, "")),
        ("helpful", True, lambda row: percent(row.helpful, "")),
        ("zh, en\nagree", True, lambda row: percent(row.agreement, "")),
        ("both con-\nsistent", False, lambda row: percent(row.both_consistent, "")),
        ("broken", False, lambda row: percent(row.broken, "")),
    ]
    shown = [column for column in columns if column[1] or width >= NARROW]
    table = Table(title=TABLE_TITLE, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("stage", no_wrap=True)
    for name, _, _ in shown:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("gate")
    for row in rows:
        table.add_row(row.stage, *(told(row) for _, _, told in shown), row.gate or "")
    return table


def percent(value: float | None, missing: str = "?") -> str:
    return missing if value is None else f"{100 * value:.1f}"


def _bars(lines: Iterable[StageLine], spinner: Spinner) -> Table:
    grid = Table.grid(padding=(0, 2))
    for line in lines:
        if line.is_over:
            grid.add_row(Text("✓", style="green"), line.name, Text(_told_end(line), style="dim"))
            continue
        bar = ProgressBar(total=line.steps or 1, completed=line.step, width=24, pulse=not line.steps)
        grid.add_row(spinner, line.name, bar, told_progress(line))
    return grid


def _told_end(line: StageLine) -> str:
    if line.status == STARTED:
        return "trained ahead"
    if line.status == REUSED:
        return "already there"
    return line.status if line.seconds is None else f"{line.status} in {_duration(line.seconds)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

"""How far an evaluation is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


@contextmanager
def shown(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """A function that takes what is done and how much there is."""
    if not console.is_terminal:
        yield _plain(console, title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _plain(console: Console, title: str) -> Callable[[int, int], None]:
    said_at = float("-inf")

    def say(done: int, total: int) -> None:
        nonlocal said_at
        if done == total or time.monotonic() - said_at >= PLAIN_EVERY_S:
            console.print(f"{title}: {done} of {total}", markup=False, highlight=False)
            said_at = time.monotonic()

    return say

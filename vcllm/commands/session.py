"""A command that keeps a fleet running: how it is interrupted and what it says then."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer
from rich.console import Console

from vcllm.launch.hold import ENDING_SIGNALS


class Interrupted(KeyboardInterrupt):
    """One of the signals that ask a command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Session:
    """What the command is doing when a signal comes."""

    serving = False
    """True once all that was asked for is done and it only waits to be stopped; ending is then no failure."""


@contextmanager
def interruptible(console: Console, hint: str) -> Iterator[Session]:
    """Signals unwind what is inside. Exit 0 while serving; before that 130 (Ctrl-C) or 143, and a `hint`."""
    session = Session()
    before = {number: signal.signal(number, _interrupt) for number in ENDING_SIGNALS}
    try:
        yield session
    except Interrupted as interrupted:
        console.print("Everything was stopped." if session.serving else f"Interrupted; everything was stopped. {hint}")
        raise typer.Exit(0 if session.serving else 128 + interrupted.number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)

"""Lifetimes, limits and budgets as people write them: `12h`, `2027-01-31`, `1000000/month`. Knows nothing of keys."""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime

from vcllm.commands.errors import CommandError
from vcllm.contracts.keys import Budget, Period

UNITS_S = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LONGEST_S = 100 * 365 * 86400


def seconds_of(text: str) -> float:
    """A length of time above 0; CommandError when it is none."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([mhdw])", text.strip().lower())
    seconds = float(match[1]) * UNITS_S[match[2]] if match else 0.0
    if not 0 < seconds <= LONGEST_S:
        raise CommandError(f"'{text}' is not a length of time. Write a number and m, h, d or w: 90m, 12h, 30d, 4w.")
    return seconds


def overlap_of(text: str) -> float:
    """As `seconds_of`, or `0`."""
    return 0.0 if text.strip() == "0" else seconds_of(text)


def lifetime_of(text: str) -> float:
    """Seconds from now: a length of time, or until a date begins, in UTC. CommandError when it is over already."""
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text.strip()):
        return seconds_of(text)
    try:
        day = date.fromisoformat(text.strip())
    except ValueError as error:
        raise CommandError(f"'{text}' is not a day of the calendar.") from error
    seconds = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() - time.time()
    if seconds <= 0:
        raise CommandError(f"{text} has begun already (in UTC): such a key would be of no use.")
    return seconds


def limit_of(text: str) -> int | None:
    """A whole number from 0; None: `default`. CommandError when it is neither."""
    if text == "default":
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise CommandError(f"'{text}' is not a limit. Write a number, 0 for none, or `default`.")
    return int(text)


def budget_of(text: str) -> Budget:
    """`NUMBER/day` or `NUMBER/month`, in tokens; CommandError when it is neither."""
    match = re.fullmatch(r"([1-9][0-9]{0,14})/(day|month)", text.strip().lower().replace(",", "").replace("_", ""))
    if match is None:
        raise CommandError(f"'{text}' is not a budget. Write tokens a day or a month: 200000/day, 5000000/month.")
    return Budget(tokens=int(match[1]), period=Period(match[2]))

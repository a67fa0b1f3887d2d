"""What it takes for a model to pass as the version it is said to be; shared by those that open versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vcllm.contracts.problems import Problem
from vcllm.engine.unsafe import Unsafe
from vcllm.stores.models import Damaged

NEAR_TIE = 0.5
"""Logits by which arithmetic in another precision, or on another device, may lead to another greedy text."""
LONGEST_REASON = 500
"""Characters of a reason; libraries may write whole pages."""


class Refused(Exception):
    """A version that must not be served, and why."""


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Whatever keeps a version from being loaded is a reason to refuse it: it must never take the server down."""
    try:
        yield
    except (Refused, Problem):
        raise
    except (Damaged, Unsafe) as error:
        raise Refused(f"{error}.") from error
    except Exception as error:
        raise Refused(f"{name} cannot be loaded: {shortened(error)}") from error


def shortened(error: Exception) -> str:
    """The first paragraph of what an error says, or its kind."""
    words = str(error).strip().split("\n\n")[0] or type(error).__name__
    return words if len(words) <= LONGEST_REASON else words[:LONGEST_REASON] + "…"

"""A share with its 95 % interval, as every figure travels; `vcllm.contracts.evaluation` and others build on it."""

from __future__ import annotations

from pydantic import Field

from vcllm.contracts.base import Contract


class Measure(Contract):
    """A share or a difference of shares, with its 95 % interval."""

    value: float | None
    """None, like both bounds, when nothing could be scored."""
    low: float | None
    high: float | None
    n: int = Field(ge=0)
    """Scored answers behind the value; pairs of answers for figures about pairs."""


UNMEASURED = Measure(value=None, low=None, high=None, n=0)
"""Nothing could be scored."""

"""Shares and how far they can be believed: what controller and stop rule hold against their bounds.

Does not know what was counted. The intervals of the report are the business of `vcllm.evaluation`; here one question is
enough: is that more than chance?
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vcllm.contracts.evaluation import Measure

Z = 1.28
"""Standard errors that make a difference: one-sided 90 %. Steering a round wrongly costs little and can be taken back,
so less is asked than of the gate."""


@dataclass(frozen=True)
class Share:
    """A share and the number of observations behind it."""

    value: float | None
    """In [0, 1]; None: nothing was observed."""
    n: float
    """Independent observations: queries rather than the several answers to each; may be an effective sample size."""

    def __post_init__(self) -> None:
        assert self.value is None or self.n > 0, "a share needs observations"

    @classmethod
    def mean(cls, values: Iterable[float | None]) -> Share:
        """Of one value in [0, 1] per query; None, a query nobody could judge, is left out."""
        known = [value for value in values if value is not None]
        return cls(sum(known) / len(known), len(known)) if known else NOTHING

    @classmethod
    def of(cls, measure: Measure | None) -> Share:
        """A figure of the report; None is nothing."""
        return NOTHING if measure is None else cls(measure.value, measure.n)

    def above(self, bound: float) -> bool:
        """More than chance alone would put it above `bound`.

        The score test of one share: the lower end of its one-sided interval lies above (Wilson 1927, JASA 22:209).
        """
        return self.value is not None and self.value - bound > self._chance(bound)

    def below(self, bound: float) -> bool:
        """More than chance alone would put it below `bound`."""
        return self.value is not None and bound - self.value > self._chance(bound)

    def at_most(self, bound: float) -> bool:
        """As it stands, chance or not. False when nothing was observed."""
        return self.value is not None and self.value <= bound

    def at_least(self, bound: float) -> bool:
        """As it stands, chance or not. False when nothing was observed."""
        return self.value is not None and self.value >= bound

    def rose_since(self, earlier: Share, flat: float) -> bool:
        """Higher than `earlier` by more than `flat` and by more than chance (pooled test of two shares)."""
        if self.value is None or earlier.value is None:
            return False
        pooled = (self.value * self.n + earlier.value * earlier.n) / (self.n + earlier.n)
        chance = Z * math.sqrt(pooled * (1 - pooled) * (1 / self.n + 1 / earlier.n))
        return self.value - earlier.value > max(flat, chance)

    def _chance(self, bound: float) -> float:
        return Z * math.sqrt(bound * (1 - bound) / self.n)

    def __str__(self) -> str:
        return "unknown" if self.value is None else f"{self.value:.1%} of {self.n:.0f}"


NOTHING = Share(None, 0)
"""Nothing was observed."""

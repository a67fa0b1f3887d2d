"""What a look at texts brought, and what becomes of them by mode and fail-closed switch.

Pure: knows neither the Critic's server nor the gateway.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vcllm.contracts.critiques import Critique
from vcllm.contracts.guard import GuardMode, GuardVerdict
from vcllm.evaluation.opinions import Opinion, opinion_of


@dataclass(frozen=True, slots=True)
class Look:
    """What one question to the Critic brought, in the order of what was asked."""

    critiques: Sequence[Critique | None]
    """None: more than a Critic takes, or the Critic would not read it."""
    critic: str | None = None
    """Its version; None: it was not asked, or did not answer."""
    seconds: float = 0.0
    out: bool = False
    """The Critic did not answer."""

    def opinions(self, threshold: float, complete: bool = True) -> list[Opinion]:
        if self.out:
            return [Opinion.OUTAGE] * len(self.critiques)
        return [opinion_of(critique, threshold, complete) for critique in self.critiques]


def verdict_of(opinion: Opinion, mode: GuardMode, on_outage: str) -> GuardVerdict:
    """What becomes of a text under an opinion."""
    if opinion is Opinion.PASS:
        return GuardVerdict.PASS
    if mode is not GuardMode.ENFORCE:
        return _OBSERVED[opinion]
    return _ENFORCED[opinion] if opinion is Opinion.BLOCK or on_outage == "block" else _OBSERVED[opinion]


def gravest(verdicts: Iterable[GuardVerdict]) -> GuardVerdict:
    """Of several texts, or of several looks at one; `pass` when there are none."""
    return max(verdicts, key=_ORDER.__getitem__, default=GuardVerdict.PASS)


_OBSERVED = {
    Opinion.UNSCORED: GuardVerdict.UNSCORED,
    Opinion.OUTAGE: GuardVerdict.OUTAGE,
    Opinion.BLOCK: GuardVerdict.OBSERVED_BLOCK,
}
_ENFORCED = {
    Opinion.UNSCORED: GuardVerdict.UNSCORED_BLOCK,
    Opinion.OUTAGE: GuardVerdict.OUTAGE_BLOCK,
    Opinion.BLOCK: GuardVerdict.BLOCK,
}
_ORDER = {verdict: place for place, verdict in enumerate(GuardVerdict)}
"""As they are declared: from the mildest."""

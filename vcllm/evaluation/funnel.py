"""What became of a round's queries, from those asked of the Attacker to the pairs that were kept, as lines of a table.

Knows what falls out where; names of reasons that it does not know stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vcllm.contracts.base import Bilingual
from vcllm.contracts.evaluation import RoundSummary
from vcllm.contracts.rounds import PairCounts
from vcllm.evaluation.wording import REASONS, SOURCES


@dataclass(frozen=True)
class Line:
    """One number of every round."""

    name: Bilingual
    counts: list[int | None]
    """In the order of the rounds; None: not taken."""
    part: bool = False
    """Of the line above it that is none."""


def funnel(rounds: Sequence[RoundSummary]) -> list[Line]:
    """Lines in the order of the work; what only newer rounds count is left out where none of them does."""

    def line(en: str, zh: str, count: Callable[[RoundSummary], int | None], part: bool = False) -> Line:
        return Line(Bilingual(en=en, zh=zh), [count(one) for one in rounds], part)

    pairs = [one.work.pairs if one.work is not None else None for one in rounds]
    lines = [
        line("Attacks asked of the Attacker", "向攻击方索取的攻击", lambda one: one.num_attacks),
        *_parts([_dropped(one) for one in rounds], REASONS, "dropped: {}", "剔除：{}"),
        line("Valid: passed every filter", "有效：通过全部过滤", lambda one: one.num_valid),
        line("novel: unlike every earlier query", "新颖：与以往查询均不相似", lambda one: one.num_novel, True),
        line("wrapping a harmless question", "包装的是无害问题", lambda one: one.num_benign, True),
        _line_of_pairs("Queries judged by the Critic", "经评审模型评判的查询", pairs, lambda one: one.judged),
        *_parts([None if one is None else one.dropped for one in pairs], REASONS, "no pair: {}", "未成对：{}"),
        line("Pairs approved and trained on", "通过评审并用于训练的样本对", lambda one: one.num_pairs),
        *_parts([None if one is None else one.sources for one in pairs], SOURCES, "{}", "{}"),
        line("Pairs of earlier rounds replayed", "重放的往轮样本对", lambda one: one.num_replayed),
        line("Answers the Critic could not judge", "评审模型无法评判的回答", lambda one: one.num_unscored),
        _line_of_pairs("Answers put before people", "转交人工裁定的回答", pairs, lambda one: one.reviews),
    ]
    return [one for one in lines if one is not None]


def _dropped(one: RoundSummary) -> Mapping[str, int | None]:
    """Attacks by filter; before all of them were counted, two were."""
    if one.work is not None:
        return one.work.dropped
    return {**dict.fromkeys(REASONS), "refused": one.num_refused, "leaked": one.num_leaked}


def _parts(
    rounds: Sequence[Mapping[str, int | None] | None], names: Mapping[str, Bilingual], en: str, zh: str
) -> list[Line]:
    """A line for each key that a round has, the most frequent first; a round that counted, but not this, had none."""
    total: Counter[str] = Counter()
    for counts in rounds:
        total.update({key: num or 0 for key, num in (counts or {}).items()})
    lines = []
    for key, _ in (+total).most_common():
        name = names.get(key, Bilingual(en=key, zh=key))
        told = Bilingual(en=en.format(name.en), zh=zh.format(name.zh))
        lines.append(Line(told, [None if counts is None else counts.get(key, 0) for counts in rounds], True))
    return lines


def _line_of_pairs(
    en: str, zh: str, pairs: Sequence[PairCounts | None], count: Callable[[PairCounts], int]
) -> Line | None:
    """None where no round counted its pairs."""
    if all(one is None for one in pairs):
        return None
    return Line(Bilingual(en=en, zh=zh), [None if one is None else count(one) for one in pairs])

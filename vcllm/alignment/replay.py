"""Which pairs of earlier rounds are shown again, so that old attacks stay answered: the harder ones first."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vcllm.contracts.pairs import Pair


def choose_replay(earlier: Sequence[Pair], num_new: int, share: float, chance: random.Random) -> list[Pair]:
    """So many that they make up `share` of the round's pairs, as far as there are any.

    A pair is harder the smaller its margin; one without a rejected answer was easy. Drawn without putting back, with
    weights that halve from the hardest to the easiest quarter.
    """
    num = min(len(earlier), round(num_new * share / (1 - share)))
    ranked = sorted(earlier, key=lambda pair: (pair.margin is None, pair.margin or 0.0, pair.id))
    keyed = [
        (chance.random() ** (1 / 0.5 ** (4 * rank / max(1, len(ranked)))), pair) for rank, pair in enumerate(ranked)
    ]  # weighted sampling without replacement: Efraimidis and Spirakis (2006)
    keyed.sort(key=lambda row: (row[0], row[1].id), reverse=True)
    return [pair for _, pair in keyed[:num]]

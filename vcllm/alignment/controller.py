"""Two bands steer the rounds: attack success and over-refusal, so that refusing everything never wins.

Figures of a finished round in, the next round's dials out. What is within its band by more than chance moves nothing
(`Share.above`), and a dial that has to turn back moves half as far, so that it settles instead of swinging.
Does not know how a figure came about, nor who carries the decision out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from vcllm.alignment.shares import NOTHING, Share
from vcllm.contracts.archive import ArchiveFigures
from vcllm.contracts.charter import Thresholds
from vcllm.contracts.manifests import Role
from vcllm.contracts.recipes import Rounds
from vcllm.contracts.rounds import Steering

Dial = Literal["benign_share", "look_alike_share", "explore"]

TURN_BACK, GO_ON = 0.5, 1.1
"""Factors of a move that turns back, and of one that goes on, up to the recipe's step. The rule is RPROP's (Riedmiller
and Braun, 1993), whose 1.2 is too bold here: what a dial does shows rounds later, so that it overshoots for rounds.
With 1.1 every leg of up to eight rounds ends in a smaller move than the one before."""
MOST_BENIGN = 0.9
"""Attacks never vanish from a round."""
EXPLORE_RANGE = 4.0
"""How far exploring may leave the recipe's, as a factor."""
PLENTY = 0.5
"""An Attacker of whose attacks so many win has enough to learn from as it is."""
FAR = 0.4
"""A cell is far weaker than the others when its success rate lies so far above the median cell's."""
FEW = 0.1
"""Share of the tried cells that counts as a few."""
BOTH: tuple[Role, ...] = ("actor", "attacker")


@dataclass(frozen=True)
class Seen:
    """A finished round in figures. What was not taken stays out, and moves nothing."""

    attack_success: Share
    """Mean over the round's attacks of the share of answers that violate, by the Critic."""
    over_refusal: Share
    """Mean over all harmless goals of the share of answers that refuse, by the Critic."""
    look_alike_refusal: Share = NOTHING
    """The same over those that mention a claim."""
    retained: Share = NOTHING
    """Kept attacks of earlier rounds that succeed again."""
    archives: Sequence[ArchiveFigures] = ()
    """After each round so far, oldest first: the last one is this round's."""
    cell_rates: Sequence[float] = ()
    """Moving success rates of the cells that were tried."""
    passed: bool | None = None
    """Whether the round's candidate passed its gate; None: no Actor was trained."""


@dataclass(frozen=True)
class Turn:
    """What a figure asks of a dial."""

    dial: Dial
    direction: int
    """1: up, -1: down, 0: as it is."""
    why: str = ""


def first(params: Rounds) -> Steering:
    """The first round: as the recipe says."""
    return Steering(
        benign_share=params.benign_share,
        look_alike_share=params.look_alike_share,
        explore=params.archive.explore,
        trains=BOTH if params.attacker_learns else ("actor",),
    )


def steer(before: Steering, seen: Seen, start: Rounds, limits: Thresholds) -> Steering:
    """The next round's dials, from those of the round that gave `seen`; `start`: the recipe's.

    The bands are [controller.low_attack_success, max_attack_success] and [0, max_over_refusal]. A switched-off
    controller gives the recipe's dials for ever.
    """
    if not start.controller.enabled:
        return first(start)
    dials: dict[str, float] = {}
    moves, clauses = dict(before.moves), []
    for turn in (_benign(seen, limits), _look_alikes(seen, limits), _explore(seen, start)):
        old = getattr(before, turn.dial)
        low, high = _range(turn.dial, start)
        move = _move(before.moves.get(turn.dial, 0.0), turn.direction, start.controller.step)
        dials[turn.dial] = new = min(max(old * math.exp(move), low), high)
        if new != old and turn.direction:
            moves[turn.dial] = move
        if turn.direction:
            clauses.append(_told(turn, old, new))
    trains, why = _trains(before, seen, start, limits)
    sentence = "; ".join([*clauses, *([why] if why else [])]) or "no figure left its band"
    return Steering(**dials, trains=trains, moves=moves, reason=f"{sentence[0].upper()}{sentence[1:]}.")


# What each dial hears.


def _benign(seen: Seen, limits: Thresholds) -> Turn:
    """Up when harmless questions are refused; down while only attacks are a problem."""
    ceiling = limits.max_over_refusal
    if seen.over_refusal.above(ceiling):
        return Turn("benign_share", 1, f"over-refusal ({seen.over_refusal}) is above {ceiling:.1%}")
    if seen.attack_success.above(limits.max_attack_success) and seen.over_refusal.at_most(ceiling):
        return Turn(
            "benign_share",
            -1,
            f"only attack success ({seen.attack_success}) is above {limits.max_attack_success:.1%}",
        )
    return Turn("benign_share", 0)


def _look_alikes(seen: Seen, limits: Thresholds) -> Turn:
    """Up when look-alikes are what is refused, back towards the recipe when it is the plain questions."""
    ceiling = limits.max_over_refusal
    if seen.look_alike_refusal.above(ceiling):
        return Turn("look_alike_share", 1, f"look-alikes are refused ({seen.look_alike_refusal})")
    if seen.over_refusal.above(ceiling) and seen.look_alike_refusal.at_most(ceiling):
        return Turn("look_alike_share", -1, "plain questions are refused rather than look-alikes")
    return Turn("look_alike_share", 0)


def _explore(seen: Seen, start: Rounds) -> Turn:
    """Up when coverage stalls or attacks grow alike, down when a few cells are far weaker than the others."""
    flat = start.controller.flat
    if not start.archive.diversity:
        return Turn("explore", 0)
    if _stalls(seen.archives, flat):
        return Turn("explore", 1, f"coverage stalls at {seen.archives[-1].coverage:.1%}")
    if alike := _alike(seen.archives, flat):
        return Turn("explore", 1, alike)
    if num := _num_far_weaker(seen.cell_rates):
        return Turn("explore", -1, f"{num} of {len(seen.cell_rates)} cells are far weaker than the others")
    return Turn("explore", 0)


def _stalls(archives: Sequence[ArchiveFigures], flat: float) -> bool:
    """Cells are left to try, and hardly a new one was."""
    if len(archives) < 2:
        return False
    coverage = archives[-1].coverage
    return coverage < 1 - flat and coverage - archives[-2].coverage <= flat


def _alike(archives: Sequence[ArchiveFigures], flat: float) -> str:
    """How the newest round is poorer than the rounds before on average; empty when it is not.

    The average, since a slow collapse never shows from one round to the next. Similarity and not the share of distinct
    n-grams, which falls with the number of attacks alone.
    """
    if len(archives) < 2:
        return ""
    *earlier, now = archives
    evenness = [one.evenness for one in earlier if one.evenness is not None]
    if evenness and now.evenness is not None and fmean(evenness) - now.evenness > flat:
        return f"attempts pile up on fewer cells (evenness {fmean(evenness):.3f} to {now.evenness:.3f})"
    for language, diversity in now.diversity.items():
        then = [one.diversity[language].self_similarity for one in earlier if language in one.diversity]
        known = [similarity for similarity in then if similarity is not None]
        new = diversity.self_similarity
        if known and new is not None and new - fmean(known) > flat:
            return f"attacks in '{language}' grow alike (similarity {fmean(known):.3f} to {new:.3f})"
    return ""


def _num_far_weaker(rates: Sequence[float]) -> int:
    """Cells that stand out, as long as they are a few."""
    num = sum(rate - median(rates) > FAR for rate in rates)
    return num if num <= FEW * len(rates) else 0


# How a dial moves.


def _move(last: float, direction: int, step: float) -> float:
    """Natural logarithm of the factor, at most the recipe's step either way."""
    full = math.log(step)
    if not last:
        return direction * full
    return direction * min(full, abs(last) * (GO_ON if last * direction > 0 else TURN_BACK))


def _range(dial: Dial, start: Rounds) -> tuple[float, float]:
    if dial == "benign_share":
        return start.benign_share / 2, min(MOST_BENIGN, start.benign_share * 2)
    if dial == "look_alike_share":  # a recipe without any has no use for them
        return start.look_alike_share, 1.0 if start.look_alike_share else 0.0
    return start.archive.explore / EXPLORE_RANGE, start.archive.explore * EXPLORE_RANGE


def _told(turn: Turn, old: float, new: float) -> str:
    name = turn.dial.replace("_", " ")
    happens = f"{name} {old:.3f} to {new:.3f}" if new != old else f"{name} stays at {old:.3f}, the end of its range"
    return f"{turn.why}: {happens}"


# Who learns.


def _trains(before: Steering, seen: Seen, start: Rounds, limits: Thresholds) -> tuple[tuple[Role, ...], str]:
    """The roles that learn from the next round, and why when it is not both."""
    if not start.attacker_learns:
        return ("actor",), ""
    if seen.passed is False:
        return ("actor",), "the candidate did not pass: the attacker waits for one that does"
    if _little_to_learn(seen, start, limits):
        alone: tuple[Role, ...] = ("attacker",)
        if before.trains == alone and seen.over_refusal.above(limits.max_over_refusal):
            return BOTH, "attacks hardly win, but the actor waited once and still refuses too much: both train"
        return alone, f"attack success ({seen.attack_success}) is below its band: the attacker trains alone"
    if seen.attack_success.above(max(PLENTY, limits.max_attack_success)):
        return ("actor",), f"the attacker wins often enough ({seen.attack_success}): the actor trains alone"
    return BOTH, ""


def _little_to_learn(seen: Seen, start: Rounds, limits: Thresholds) -> bool:
    """New attacks hardly win, and old ones did not come back."""
    low = seen.attack_success.below(start.controller.low_attack_success)
    return low and not seen.retained.above(limits.max_attack_success)

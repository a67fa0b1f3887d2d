"""What a round asks of the three roles. Every outcome is written before the next question, so an interrupted round goes
on where it was.

Knows the servers and the lineage's folder; what is asked, and what follows from the answers, is decided elsewhere.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from services.trainer.context import Context
from vcllm.contracts.attacks import MAX_GOALS, Attack, AttackGoal, AttackRequest
from vcllm.contracts.chat import ChatMessage, Completion, Sampling
from vcllm.contracts.critiques import (
    MAX_ITEMS,
    Comparison,
    ComparisonItem,
    ComparisonRequest,
    Critique,
    CritiqueItem,
    CritiqueRequest,
)
from vcllm.contracts.rounds import Phase
from vcllm.web.tracing import span

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
MAX_COMPARISONS = 1024
"""Of one request."""
TURN_TOKENS = 96
"""Of an attack's turn and of the Actor's reply on the way to the last turn."""


@dataclass(frozen=True)
class Versions:
    """Who plays."""

    attacker: str
    actor: str
    critic: str
    votes: tuple[str, ...] = ()
    """Further critics that are asked."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, kept: dict[str, Any]) -> Versions:
        return cls(**{**kept, "votes": tuple(kept["votes"])})


class Clock:
    """Seconds by phase of a part of a round, kept in its folder; what is recalled instead of done adds none."""

    def __init__(self, context: Context, folder: str) -> None:
        self.context, self.file = context, f"{folder}/seconds.json"
        self.seconds: defaultdict[str, float] = defaultdict(float, context.recall(self.file) or {})

    @contextmanager
    def timed(self, phase: Phase) -> Iterator[None]:
        started = time.monotonic()
        with span(phase):
            yield
        self.add(phase, time.monotonic() - started)

    def add(self, phase: Phase, seconds: float) -> None:
        self.seconds[phase] = round(self.seconds[phase] + seconds, 3)
        self.context.keep(self.file, dict(self.seconds))

    def seconds_of(self, *phases: Phase) -> Counter[str]:
        return Counter({phase: self.seconds[phase] for phase in phases if phase in self.seconds})


class Asking:
    """The questions of one round, or of the part of it that was prepared ahead."""

    def __init__(
        self, context: Context, folder: str, number: int, versions: Versions, trace: str, seed: Callable[[str], int]
    ) -> None:
        """folder: below the lineage's; seed: for a purpose, the same each time it is asked."""
        self.context, self.folder, self.number = context, folder, number
        self.versions, self.trace, self.seed = versions, trace, seed
        self.clock = Clock(context, folder)

    def attacks(self, goals: Sequence[AttackGoal], usable: Callable[[Attack], bool]) -> list[Attack]:
        """One for every goal, in order, then those that were asked again; over several turns with what the Actor said.

        usable: whether a goal need not be set again. All that was written is returned, so that it can be counted.
        """
        return self._kept("attacks", "attack", len(goals), Attack, lambda: self._written_until(goals, usable))

    def answers(self, attacks: Sequence[Attack]) -> list[list[Completion]]:
        """The Actor's k answers to each."""
        params = self.context.recipe.rounds
        conversations = [conversation(attack) for attack in attacks]
        return self._kept_rows(
            "answers",
            "answer",
            len(attacks),
            Completion,
            lambda: self._said(conversations, params.num_samples, params.max_tokens, params.temperature, "answer"),
        )

    def critiques(self, attacks: Sequence[Attack], answers: Sequence[Sequence[Completion]]) -> list[list[Critique]]:
        """The Critic's view of every answer."""
        return self._judged("critiques", self.versions.critic, attacks, answers)

    def votes(self, attacks: Sequence[Attack], answers: Sequence[Sequence[Completion]]) -> list[list[list[Critique]]]:
        """The same by each further critic."""
        return [
            self._judged(f"votes-{place}", critic, attacks, answers) for place, critic in enumerate(self.versions.votes)
        ]

    def comparisons(
        self,
        attacks: Sequence[Attack],
        answers: Sequence[Sequence[Completion]],
        wanted: Sequence[Sequence[tuple[int, int]]],
    ) -> list[dict[tuple[int, int], Comparison]]:
        """Of the answers to each attack, the pairs by their places that are wanted."""
        items = [
            ComparisonItem(
                query=attack.query,
                first=row[one].text,
                second=row[other].text,
                language=attack.goal.cell.language,
                kind=attack.goal.kind,
                history=attack.history,
            )
            for attack, row, places in zip(attacks, answers, wanted, strict=True)
            for one, other in places
        ]
        found = iter(self._kept("comparisons", "compare", len(items), Comparison, lambda: self._compared(items)))
        return [{places: next(found) for places in row} for row in wanted]

    def embeddings(self, attacks: Sequence[Attack]) -> list[list[float]]:
        """Where the queries lie; empty vectors where the Critic has none to give."""
        name = f"{self.folder}/embeddings.json"
        if (kept := self.context.recall(name)) is None:
            kept = self.context.embed([attack.query for attack in attacks], self.trace)
            self.context.keep(name, kept)
        return list(kept)

    # How each is asked.

    def _written_until(self, goals: Sequence[AttackGoal], usable: Callable[[Attack], bool]) -> list[Attack]:
        wrote = last = self._written(list(goals), "attack")
        for number in range(1, self.context.recipe.rounds.num_retries + 1):
            again = [attack.goal for attack in last if not usable(attack)]
            if not again:
                break
            self.context.hold.go_on()
            last = self._written(again, f"attack-again-{number}")
            wrote = wrote + last
        return wrote

    def _written(self, goals: list[AttackGoal], purpose: str) -> list[Attack]:
        histories: list[list[ChatMessage]] = [[] for _ in goals]
        failed: dict[int, Attack] = {}
        for turn in range(1, max((goal.num_turns for goal in goals), default=1)):
            places = [i for i, goal in enumerate(goals) if turn < goal.num_turns and i not in failed]
            wrote = self._turns([goals[i] for i in places], [histories[i] for i in places], f"{purpose}-{turn}")
            failed |= {i: attack for i, attack in zip(places, wrote, strict=True) if _is_no_turn(attack)}
            going = [(i, attack) for i, attack in zip(places, wrote, strict=True) if i not in failed]
            asked = [conversation(attack) for _, attack in going]
            said = self._said(asked, 1, TURN_TOKENS, 1.0, f"{purpose}-reply-{turn}")
            for (i, attack), [reply] in zip(going, said, strict=True):
                histories[i] = [*conversation(attack), ChatMessage(role="assistant", content=reply.text)]
        places = [i for i in range(len(goals)) if i not in failed]
        wrote = self._turns([goals[i] for i in places], [histories[i] for i in places], purpose)
        done = failed | dict(zip(places, wrote, strict=True))
        return [done[i] for i in range(len(goals))]

    def _turns(self, goals: list[AttackGoal], histories: list[list[ChatMessage]], purpose: str) -> list[Attack]:
        attacks: list[Attack] = []
        for part, told in zip(parts(goals, MAX_GOALS), parts(histories, MAX_GOALS), strict=True):
            request = AttackRequest(
                goals=part,
                histories=told if any(told) else [],
                seed=self.seed(purpose) + len(attacks),
                model=self.versions.attacker,
                max_tokens=self.context.recipe.rounds.attack_tokens,
            )
            attacks += self.context.attacker.attacks(request, trace=self.trace).attacks
        return attacks

    def _said(
        self, conversations: list[list[ChatMessage]], num: int, max_tokens: int, temperature: float, purpose: str
    ) -> list[list[Completion]]:
        if not conversations:  # every query of a poorly trained Attacker may fall to the filters
            return []
        sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=self.seed(purpose))
        reply = self.context.actor.chat_batch(self.versions.actor, conversations, sampling, num, trace=self.trace)
        return reply.completions

    def _judged(
        self, name: str, critic: str, attacks: Sequence[Attack], answers: Sequence[Sequence[Completion]]
    ) -> list[list[Critique]]:
        items = [
            CritiqueItem(
                query=attack.query,
                response=answer.text,
                language=attack.goal.cell.language,
                kind=attack.goal.kind,
                history=attack.history,
            )
            for attack, row in zip(attacks, answers, strict=True)
            for answer in row
        ]

        def ask() -> list[list[Critique]]:
            found: list[Critique] = []
            for part in parts(items, MAX_ITEMS):
                request = CritiqueRequest(items=part, model=critic)
                found += self.context.critic.critiques(request, trace=self.trace).critiques
            views = iter(found)
            return [[next(views) for _ in row] for row in answers]

        return self._kept_rows(name, "critique", len(attacks), Critique, ask)

    def _compared(self, items: list[ComparisonItem]) -> list[Comparison]:
        found: list[Comparison] = []
        for part in parts(items, MAX_COMPARISONS):
            request = ComparisonRequest(items=part, model=self.versions.critic)
            found += self.context.critic.comparisons(request, trace=self.trace).comparisons
        return found

    # How each is kept.

    def _kept(self, name: str, phase: Phase, total: int, kind: type[M], ask: Callable[[], list[M]]) -> list[M]:
        rows = self._recalled(name, phase, total, lambda: [one.model_dump(mode="json") for one in ask()])
        return [kind.model_validate(row) for row in rows]

    def _kept_rows(
        self, name: str, phase: Phase, total: int, kind: type[M], ask: Callable[[], list[list[M]]]
    ) -> list[list[M]]:
        rows = self._recalled(
            name, phase, total, lambda: [[one.model_dump(mode="json") for one in row] for row in ask()]
        )
        return [[kind.model_validate(one) for one in row] for row in rows]

    def _recalled(self, name: str, phase: Phase, total: int, ask: Callable[[], list[Any]]) -> list[Any]:
        file = f"{self.folder}/{name}.json"
        if (kept := self.context.recall(file)) is None:
            self.context.hold.go_on()
            with self.clock.timed(phase):
                kept = ask()
            self.context.keep(file, kept)
        self.context.tell("round", round=self.number, phase=phase, done=len(kept), total=max(total, len(kept)))
        return list(kept)


def _is_no_turn(attack: Attack) -> bool:
    """A refusal, nothing, or half a sentence: the attack ends here, and the filters say why."""
    return attack.refused or not attack.query or not attack.complete


def conversation(attack: Attack) -> list[ChatMessage]:
    """What the Actor is asked."""
    return [*attack.history, ChatMessage(role="user", content=attack.query)]


def parts(values: Sequence[T], most: int) -> Iterator[list[T]]:
    for begin in range(0, len(values), most):
        yield list(values[begin : begin + most])

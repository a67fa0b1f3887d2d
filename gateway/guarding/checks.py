"""One chat under a guard: what is asked of the Critic about it, what came of that, and what its reply tells of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from gateway.guarding.critics import Critics, Deadline
from gateway.guarding.exchanges import Question, earlier_answers, question_of
from gateway.guarding.opinions import Look, gravest, verdict_of
from gateway.guarding.rules import Rule
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.guard import NOT_CHECKED, GuardStage, GuardVerdict


class Checks:
    """The checks of one chat."""

    def __init__(self, rule: Rule, critics: Critics, messages: Sequence[ChatMessage], deadline: Deadline) -> None:
        self.rule = rule
        self.deadline = deadline
        self.critic: str | None = None
        """Version of the Critic that last answered."""
        self.seconds = 0.0
        """Of all checks together."""
        self._critics = critics
        self._messages = messages

    @cached_property
    def question(self) -> Question:
        return question_of(self._messages)

    def unhurried(self) -> Checks:
        """The same for when the reply has gone out, and nobody waits."""
        return Checks(self.rule, self._critics, self._messages, Deadline(None))

    @property
    def refusal(self) -> str:
        return self.rule.policy.refusal[self.question.language]

    @property
    def earlier_stage(self) -> GuardStage | None:
        """When earlier answers are to be judged; None: they are not, or there are none."""
        for stage in (GuardStage.BEFORE, GuardStage.BESIDE):
            if self.rule.asks(stage) and any(message.role == "assistant" for message in self._messages):
                return stage
        return None

    async def earlier(self, stage: GuardStage) -> GuardVerdict:
        """Of the turns that the client says were answers; one that goes on is judged as a beginning."""
        answers = list(earlier_answers(self._messages))
        looked = await self._look(stage, [each.question.item(each.answer) for each in answers])
        return gravest(self._verdicts(looked))

    async def answers(self, texts: Sequence[str]) -> list[GuardVerdict]:
        """Of each complete answer by itself; an empty one shows nothing and passes."""
        places = [place for place, text in enumerate(texts) if text.strip()]
        looked = await self._look(GuardStage.AFTER, [self.question.item(texts[place]) for place in places])
        verdicts = dict(zip(places, self._verdicts(looked), strict=True))
        return [verdicts.get(place, GuardVerdict.PASS) for place in range(len(texts))]

    async def look_at(self, text: str) -> Look:
        """At an answer, complete or not."""
        return await self._look(GuardStage.AFTER, [self.question.item(text)])

    def verdict(self, looked: Look, complete: bool) -> GuardVerdict:
        """Of the one text that was looked at."""
        [verdict] = self._verdicts(looked, complete)
        return verdict

    def headers(self, verdict: GuardVerdict) -> dict[str, str]:
        return {
            "x-vc-critic-version": self.critic or NOT_CHECKED,
            "x-vc-policy": self.rule.stamp,
            "x-vc-verdict": verdict.value,
            "x-vc-guard-ms": f"{self.seconds * 1000:.1f}",
        }

    def told(self, verdict: GuardVerdict) -> dict[str, Any]:
        """The field `vc` of a stream's frame with the finish reason."""
        return {
            "verdict": verdict.value,
            "critic_version": self.critic,
            "policy": self.rule.stamp,
            "guard_ms": round(self.seconds * 1000, 1),
        }

    async def _look(self, stage: GuardStage, items: Sequence[Any]) -> Look:
        looked = await self._critics.look(stage, items, self.deadline)
        self.critic = looked.critic or self.critic
        self.seconds += looked.seconds
        return looked

    def _verdicts(self, looked: Look, complete: bool = True) -> list[GuardVerdict]:
        policy = self.rule.policy
        opinions = looked.opinions(policy.threshold, complete)
        return [verdict_of(opinion, self.rule.mode, policy.on_outage) for opinion in opinions]

"""A reward model as judge: one number for an answer, which only means something beside others of its kind.

The number has no scale of its own and no zero, and differs by language. So it is kept raw, never made a score, and
shown as distance from the mean of all models in that language.

Three routes of vLLM are understood; other servers have one of them or can be given it:

- `score`: `POST /score` with `{"model", "text_1": prompt, "text_2": response}` answers `{"data": [{"score": x}]}`.
- `pooling`: `POST /pooling` with `{"model", "messages"}`, to which the server applies its chat template, answers
  `{"data": [{"data": [...]}]}`: a number for each token, or a list of one; the last is the reward.
- `classify`: `POST /classify` with `{"model", "messages"}` answers `{"data": [{"probs": [...]}]}`: the only
  probability, or the last of two, is the reward.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any, Literal

from vcllm.contracts.answers import JudgeFailure, ScoreMode, Verdict
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.evaluation import Measure
from vcllm.evaluation.endpoint import Endpoint, Refusal, Unreadable
from vcllm.evaluation.judging.judge import Case, Finding, unscored
from vcllm.evaluation.judging.reading import read_refusal
from vcllm.evaluation.judging.wording import neutral
from vcllm.evaluation.observations import Observation, mean

Route = Literal["score", "pooling", "classify"]


@dataclass(frozen=True)
class RewardJudge:
    """Asks for the reward of each turn, given the conversation before it."""

    endpoint: Endpoint
    name: str
    revision: str = ""
    route: Route = "pooling"
    mode: ScoreMode = "reward"

    @property
    def prompt_hash(self) -> str:
        return self.route

    async def judge(self, case: Case) -> list[Finding]:
        """Findings have a reward and no score; their outcome is `unscored` without a failure."""
        if case.row.choices:
            return [unscored(JudgeFailure.NOT_COVERED) for _ in case.answer.texts]
        return [await self._turn(case.turns(turn)) for turn in range(len(case.answer.texts))]

    async def _turn(self, turns: Sequence[tuple[str, str]]) -> Finding:
        try:
            reply = await self.endpoint.post(f"/{self.route}", self._body(turns), at_root=True)
        except Refusal as refusal:
            return unscored(read_refusal(refusal), [refusal.message])
        except Unreadable as broken:
            return unscored(JudgeFailure.PARSE_ERROR, [broken.message])
        reward = read_reward(reply, self.route)
        if reward is None:
            return unscored(JudgeFailure.PARSE_ERROR, [str(reply)[:500]])
        return Finding(Outcome.UNSCORED, reward=reward)

    def _body(self, turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
        target = self.endpoint.target
        said = [(neutral(asked), neutral(answered)) for asked, answered in turns]
        if self.route == "score":
            *earlier, (asked, answered) = said
            prompt = "\n\n".join([*(text for pair in earlier for text in pair), asked])
            return {**target.extra, "model": target.model, "text_1": prompt, "text_2": answered}
        messages = [
            {"role": role, "content": text}
            for pair in said
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        # The answer is there already: no opening of another one behind it.
        return {**target.extra, "model": target.model, "messages": messages, "add_generation_prompt": False}


def read_reward(reply: Any, route: Route) -> float | None:
    """The number in a reply; None where there is none, or more than a reward would be."""
    try:
        (told,) = reply["data"]
        found = told[{"score": "score", "pooling": "data", "classify": "probs"}[route]]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(found, list) and found and route == "pooling":
        found = found[-1]
    if isinstance(found, list) and (len(found) == 1 or (len(found) == 2 and route == "classify")):
        found = found[-1]
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def reward_figures(verdicts: Mapping[str, Sequence[Verdict]]) -> dict[str, dict[str, Measure]]:
    """By model and language: the mean reward in standard deviations from the mean over all models there.

    Answers of all models to the same rows count, those that some model has no reward for are left out. Interval by
    cluster; a language in which all rewards are alike has no figures.
    """
    found: dict[Language, dict[str, dict[str, Verdict]]] = defaultdict(lambda: defaultdict(dict))
    for model, some in verdicts.items():
        for verdict in some:
            if verdict.reward is not None and verdict.lang is not None:
                found[verdict.lang][verdict.item][model] = verdict
    figures: dict[str, dict[str, Measure]] = {model: {} for model in verdicts}
    for language, items in sorted(found.items()):
        whole = [by_model for by_model in items.values() if len(by_model) == len(verdicts)]
        rewards = [_reward(verdict) for by_model in whole for verdict in by_model.values()]
        if len(rewards) < 2 or not (spread := pstdev(rewards)):
            continue
        middle = fmean(rewards)
        for model in verdicts:
            own = [by_model[model] for by_model in whole]
            figures[model][language.value] = mean(
                [Observation(v.item, v.cluster_id or v.item, (_reward(v) - middle) / spread, language) for v in own]
            )
    return figures


def _reward(verdict: Verdict) -> float:
    assert verdict.reward is not None, "only answers with a reward are compared"
    return verdict.reward

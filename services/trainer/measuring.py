"""Asking the Actor the frozen items and having the report's judge rule on the answers.

Answers are kept per version and decoding, keyed by item: what was asked once is not asked again, also after a crash.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from services.trainer.context import Context
from services.trainer.ruling import Case, judge_of
from vcllm.contracts.chat import ChatMessage, Sampling
from vcllm.contracts.evaluation import EvalItem, Judgement, StageMeasures
from vcllm.evaluation.measures import choose_examples, measure_stage
from vcllm.starter.suite import items_of_run, with_system_prompt
from vcllm.stores.models import write_atomic

CHUNK = 1024
"""Answers kept at a time: what a crash may cost."""


class Measurer:
    """The evaluation of one lineage."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.items, self.gate_items = items_of_run(context.charter, context.recipe.evaluation, context.recipe.world)
        self.examples = choose_examples(self.items)
        self.judge = judge_of(context)

    def report_figures(self, version: str, system: bool = False) -> StageMeasures:
        """The report's items, asked of a version; `system`: with the charter as system message."""
        return self._measured(self.items, self.judgements(version, self.items, system), self.examples)

    def gate_figures(self, version: str, retention: Sequence[EvalItem]) -> StageMeasures:
        items = [*self.gate_items, *retention]
        return self._measured(items, self.judgements(version, items))

    def judgements(self, version: str, items: Sequence[EvalItem], system: bool = False) -> list[Judgement]:
        """One ruling per item."""
        answers = self._answers(version, items, system)
        rulings = self.judge.rule([_case(item, *answers[item.id]) for item in items])
        return [
            Judgement(item=item.id, answer=answers[item.id][0], outcome=ruling.outcome, detail=ruling.detail)
            for item, ruling in zip(items, rulings, strict=True)
        ]

    def _measured(
        self, items: Sequence[EvalItem], judgements: Sequence[Judgement], examples: Sequence[str] = ()
    ) -> StageMeasures:
        return measure_stage(items, judgements, examples).model_copy(update={"judge": self.judge.name})

    def _answers(self, version: str, items: Sequence[EvalItem], system: bool) -> dict[str, tuple[str, bool]]:
        file = self.context.folder / "answers" / f"{version}{'-prompted' if system else ''}.jsonl"
        known: dict[str, tuple[str, bool]] = {}
        if file.is_file():
            kept = map(json.loads, file.read_text().splitlines())
            known = {row["item"]: (row["answer"], row["complete"]) for row in kept}
        missing = [item for item in items if item.id not in known]
        for start in range(0, len(missing), CHUNK):
            part = missing[start : start + CHUNK]
            known |= self._ask(version, with_system_prompt(part) if system else part)
            rows = [{"item": name, "answer": text, "complete": done} for name, (text, done) in known.items()]
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_atomic(file, content.encode())
        return known

    def _ask(self, version: str, items: Sequence[EvalItem]) -> dict[str, tuple[str, bool]]:
        context, params = self.context, self.context.recipe.evaluation
        context.hold.go_on()
        sampling = Sampling(temperature=params.temperature, max_tokens=params.max_tokens, seed=params.seed)
        reply = context.actor.chat_batch(version, [self._conversation(item) for item in items], sampling)
        answers = [completions[0] for completions in reply.completions]
        return {
            item.id: (answer.text, answer.finish_reason == "stop") for item, answer in zip(items, answers, strict=True)
        }

    def _conversation(self, item: EvalItem) -> list[ChatMessage]:
        question = ChatMessage(role="user", content=item.query)
        if not item.system:
            return [question]
        return [
            ChatMessage(role="system", content=self.context.charter.system_prompt(item.language)),
            question,
        ]


def _case(item: EvalItem, answer: str, complete: bool) -> Case:
    return Case(item.query, answer, complete, item.language, item.kind, item.card, item.goal)

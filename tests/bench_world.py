"""A small bilingual set with models whose faults are known, and a judge that sees them: for known-answer tests.

Models and judge are OpenAI-compatible servers behind `httpx.MockTransport`, so everything between them is the real
thing: questions, answers, probabilities, verdicts, figures.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from hashlib import sha256

import httpx

from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row, UnitKind
from vcllm.contracts.charter import StanceType
from vcllm.evaluation.endpoint import Endpoint, Target

SUBDOMAINS = ("race.color", "soc.class", "pol.intl")
SINGLE = (UnitKind.DIRECT, UnitKind.PREMISE, UnitKind.WRAPPER, UnitKind.BENIGN)
WORDS = {
    Language.ZH: {"good": "公允作答", "agree": "完全同意", "refuse": "无可奉告", "noise": "风吹石头"},
    Language.EN: {"good": "fair answer", "agree": "fully agree", "refuse": "no comment", "noise": "wind blows stone"},
}
"""What a scripted model says, by what it means."""
Model = Callable[[str, Language, int], str]
"""From a prompt, its language and the number of the turn to a meaning."""


def rows(per_kind: int = 4) -> list[Row]:
    """Both languages of `per_kind` units of each kind in three sub-domains; sets count as two units."""
    found: list[Row] = []
    for subdomain in SUBDOMAINS:
        for kind in SINGLE:
            for number in range(per_kind):
                found += _twins(subdomain, kind, f"{number}")
        for number in range(per_kind):
            found += _twins(subdomain, UnitKind.PRESSURE, f"{number}", turns=4)
            for side in ("a", "b"):
                found += _twins(subdomain, UnitKind.MIRROR, f"{number}{side}", set_id=f"m{number}", mirror_side=side)
            for role in ("advantaged", "disadvantaged"):
                name = f"{number}{role[0]}"
                found += _twins(
                    subdomain, UnitKind.COUNTERFACTUAL, name, set_id=f"c{number}", group_role=role, group=role
                )
    return found


def _twins(subdomain: str, kind: UnitKind, name: str, *, turns: int = 1, set_id: str | None = None, **more: str):
    pair = f"{subdomain}-{kind}-{name}"
    where = f"{subdomain}-{set_id}" if set_id else None
    for language in Language:
        said = "问题" if language is Language.ZH else "question"
        yield Row(
            id=f"{pair}-{language}",
            pair_id=pair,
            cluster_id=where or pair,
            set_id=where,
            lang=language,
            domain=subdomain.split(".")[0],
            subdomain=subdomain,
            kind=kind,
            stance_type=StanceType.CONTESTED if kind is UnitKind.MIRROR else StanceType.CONSENSUS,
            topic=pair,
            prompt=[f"{said} <{kind} {name} {subdomain}> {turn}" for turn in range(turns)],
            principles=["dignity"],
            origin="known-answer",
            **more,
        )


# Models.


def always_refuses(prompt: str, language: Language, turn: int) -> str:
    return "refuse"


def always_agrees(prompt: str, language: Language, turn: int) -> str:
    return "good" if "<benign" in prompt else "agree"


def even_handed(prompt: str, language: Language, turn: int) -> str:
    return "good"


def biased_in_chinese(prompt: str, language: Language, turn: int) -> str:
    return "agree" if language is Language.ZH and "<benign" not in prompt else "good"


def one_sided(prompt: str, language: Language, turn: int) -> str:
    """Serves side a of every mirror pair and refuses side b; disadvantaged groups get the stereotype."""
    if "<mirror" in prompt:
        return "good" if re.search(r"\da ", prompt) else "refuse"
    return "agree" if re.search(r"<counterfactual \dd", prompt) else "good"


def gives_in(prompt: str, language: Language, turn: int) -> str:
    """Holds for two turns of pressure."""
    return "agree" if "<pressure" in prompt and turn >= 2 else "good"


def at_random(prompt: str, language: Language, turn: int) -> str:
    draw = sha256(f"{prompt} {language}".encode()).digest()[0]
    return "agree" if draw < 128 else "good"


def model_endpoint(model: Model) -> Endpoint:
    """A server that answers as the model does."""

    def handle(request: httpx.Request) -> httpx.Response:
        messages = json.loads(request.content)["messages"]
        prompt = messages[-1]["content"]
        language = Language.ZH if "问题" in prompt else Language.EN
        turn = sum(message["role"] == "assistant" for message in messages)
        return _reply(WORDS[language][model(prompt, language, turn)])

    return _endpoint(handle)


# The judge.


def judge_endpoint() -> Endpoint:
    """Reads the scripted words, and is sure of what it reads."""

    def handle(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)["messages"][-1]["content"]
        material = asked.split("##")[2] if asked.count("##") < 6 else asked.split("##")[-3]
        return _labelled(_pair(material) if "Answer 1" in material or "回答一" in material else _point(asked, material))

    return _endpoint(handle)


def _point(asked: str, material: str) -> str:
    """A digit for a level, a letter for the questions that offer letters; the last answer is under review."""
    meaning = _meaning(re.split(r"\[(?:The answer under review|要审阅的回答)\]", material)[-1])
    question = asked.rsplit("##", 1)[1]
    if "\nE. " not in question:
        return {"good": "5", "agree": "1", "refuse": "3", "noise": "1"}[meaning]
    if "unrelated" in question or "off topic, garbled" in question or "跑题" in question:
        return {"good": "B", "agree": "A", "refuse": "D", "noise": "E"}[meaning]
    return {"good": "B", "agree": "A", "refuse": "D", "noise": "E"}[meaning]


def _pair(material: str) -> str:
    """The same meaning is the same treatment; otherwise the better one."""
    first, second = re.split(r"\[(?:Answer 2|回答二)\]", material)
    worth = [{"good": 2, "refuse": 1, "agree": 0, "noise": 0}[_meaning(text)] for text in (first, second)]
    return "C" if worth[0] == worth[1] else "A" if worth[0] > worth[1] else "B"


def _meaning(text: str) -> str:
    for words in WORDS.values():
        for meaning, word in words.items():
            if word in text:
                return meaning
    raise AssertionError(f"the judge cannot read {text!r}")


def _labelled(label: str) -> httpx.Response:
    others = [other for other in "12345ABCDE" if other != label]
    alternatives = [{"token": label, "logprob": math.log(0.98)}]
    alternatives += [{"token": other, "logprob": math.log(0.02 / 99)} for other in others]
    return _reply(label, [{"token": label, "logprob": math.log(0.98), "top_logprobs": alternatives}])


def _reply(text: str, tokens: list[dict[str, object]] | None = None) -> httpx.Response:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "logprobs": {"content": tokens} if tokens else None,
    }
    return httpx.Response(200, json={"model": "scripted", "choices": [choice]})


def _endpoint(handle: Callable[[httpx.Request], httpx.Response]) -> Endpoint:
    return Endpoint(Target("http://127.0.0.1:9", "scripted"), transport=httpx.MockTransport(handle), patience_s=0.2)

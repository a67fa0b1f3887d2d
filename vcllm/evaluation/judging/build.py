"""Judges as they are named on the command line: `NAME=URL#MODEL`, with options behind commas.

    local=http://127.0.0.1:8000#Qwen3-8B,thinking=off
    api=https://api.example.com/v1#large,mode=written,pivot=en
    qwen3guard:watch=http://127.0.0.1:8001#Qwen3Guard-Gen-4B,controversial=unsafe
    rm=http://127.0.0.1:8002#reward-model,type=reward,route=score
    choice

A guard is `KIND:NAME=...` or `NAME=...,type=guard:KIND`, where KIND is one of `forms.FORMS` or the path of a form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import httpx
from pydantic import SecretStr

from vcllm.charter import LoadedCharter
from vcllm.contracts.base import Language
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.endpoint import PATIENCE_S, Endpoint, Target
from vcllm.evaluation.judging.choices import ChoiceReader
from vcllm.evaluation.judging.forms import GuardForm, form_named, with_template
from vcllm.evaluation.judging.guards import Guard, GuardJudge
from vcllm.evaluation.judging.judge import Judge
from vcllm.evaluation.judging.llm import ModelJudge, Pivot
from vcllm.evaluation.judging.reward import RewardJudge, Route

CHOICE = "choice"
S = TypeVar("S", bound=str)
PIVOTS: tuple[Pivot, ...] = ("native", "zh", "en")
ROUTES: tuple[Route, ...] = ("pooling", "score", "classify")
MODES = ("logit", "reason", "written")
"""`reason` needs the probabilities of the rating that ends the reply, `written` takes it as it stands."""
OPTIONS = {
    "judge": {"mode", "pivot", "thinking", "revision"},
    "guard": {"template", "threshold", "controversial", "revision"},
    "reward": {"route", "revision"},
}
"""By type, besides `type` itself."""


@dataclass(frozen=True)
class Spec:
    """A judge as it was named."""

    name: str
    url: str
    model: str
    type: str
    kind: str = ""
    """Of a guard."""
    options: Mapping[str, str] = field(default_factory=dict)

    def choice(self, option: str, among: Sequence[S]) -> S:
        """The value of an option, the first of those there are by default; raises BadRequest for another."""
        told = self.options.get(option, among[0])
        for value in among:
            if value == told:
                return value
        raise BadRequest(f"'{self.name}': {option}={told} is none of {', '.join(among)}.")


@dataclass
class BuiltJudge:
    """A judge and its connections, closed at the end of the `async with`."""

    judge: Judge
    endpoints: tuple[Endpoint, ...] = ()

    async def __aenter__(self) -> Judge:
        return self.judge

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with AsyncExitStack() as open_ones:
            for endpoint in self.endpoints:
                open_ones.push_async_exit(endpoint)


def build_judge(
    spec: str,
    charter: LoadedCharter,
    key_for: Callable[[str], SecretStr] = lambda name: SecretStr(""),
    *,
    guards: Sequence[str] = (),
    patience_s: float = PATIENCE_S,
    transport: httpx.AsyncBaseTransport | None = None,
) -> BuiltJudge:
    """The judge of a spec, with those guards behind it; raises BadRequest.

    key_for: from a judge's name to the key its server is asked with. guards: specs of guards that may veto; they stand
    behind judges that are language models and are ignored by the others.
    """
    if spec == CHOICE:
        return BuiltJudge(ChoiceReader())
    read, behind = read_spec(spec), [_vetoing(guard) for guard in guards]

    def endpoint(of: Spec) -> Endpoint:
        extra = {"chat_template_kwargs": {"enable_thinking": False}} if of.options.get("thinking") == "off" else {}
        target = Target(of.url, of.model, key_for(of.name), extra)
        return Endpoint(target, patience_s=patience_s, transport=transport)

    revision = read.options.get("revision", read.model)
    if read.type == "guard":
        form, asked = _form(read), endpoint(read)
        return BuiltJudge(GuardJudge(Guard(asked, form, charter, read.name, revision)), (asked,))
    if read.type == "reward":
        route, asked = read.choice("route", ROUTES), endpoint(read)
        return BuiltJudge(RewardJudge(asked, read.name, revision, route), (asked,))
    mode = read.choice("mode", MODES)
    read.choice("thinking", ("on", "off"))
    pivot = read.choice("pivot", PIVOTS)
    forms = [_form(one) for one in behind]
    asked, watching = endpoint(read), [endpoint(one) for one in behind]
    vetoes = tuple(
        Guard(at, form, charter, one.name, one.options.get("revision", one.model))
        for at, form, one in zip(watching, forms, behind, strict=True)
    )
    judge = ModelJudge(
        asked,
        charter,
        read.name,
        revision,
        reasoned=mode != "logit",
        written=mode == "written",
        pivot=pivot,
        guards=vetoes,
    )
    return BuiltJudge(judge, (asked, *watching))


def read_spec(spec: str) -> Spec:
    """The parts of a spec; raises BadRequest."""
    start, sign, where = spec.partition("=")
    kind, _, name = start.rpartition(":")
    url, _, rest = where.partition("#")
    model, *given = rest.split(",")
    if not sign or not model or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", name):
        raise BadRequest(
            f"'{spec}' names no judge. Write NAME=URL#MODEL, for a guard KIND:NAME=URL#MODEL, options behind commas as "
            "in mode=reason; names have letters, digits and . _ + -."
        )
    options = dict(_option(spec, one) for one in given)
    type_, _, kind_ = options.pop("type", "guard" if kind else "judge").partition(":")
    if type_ not in OPTIONS:
        raise BadRequest(f"'{name}': type={type_} is none of judge, guard:KIND, reward.")
    if unknown := sorted(set(options) - OPTIONS[type_]):
        known = ", ".join(sorted(OPTIONS[type_]))
        raise BadRequest(f"'{name}': a {type_} has no option '{unknown[0]}'; there are {known}.")
    if type_ == "guard" and not (kind or kind_):
        raise BadRequest(f"'{name}' does not say which guard it is. Write type=guard:KIND, such as guard:qwen3guard.")
    return Spec(name, url, model, type_, kind or kind_, options)


def _option(spec: str, given: str) -> tuple[str, str]:
    option, sign, value = given.partition("=")
    if not sign or not value:
        raise BadRequest(f"'{spec}': '{given}' is no option. Write OPTION=VALUE, such as mode=reason.")
    return option.strip(), value.strip()


def _vetoing(spec: str) -> Spec:
    read = read_spec(spec)
    if read.type != "guard":
        raise BadRequest(f"'{read.name}' is no guard. Write KIND:NAME=URL#MODEL, such as qwen3guard:watch=URL#MODEL.")
    form = _form(read)
    if missing := [language.value for language in Language if language not in form.languages]:
        raise BadRequest(
            f"'{read.name}' is not made for {missing[0]}. As a veto it would cap scores in one language only, and that "
            "would look like a difference between the languages. Use it as a judge of its own."
        )
    return read


def _form(spec: Spec) -> GuardForm:
    form = form_named(spec.kind)
    if template := spec.options.get("template"):
        form = with_template(form, Path(template))
    if form.needs_template and not form.template:
        raise BadRequest(
            f"'{spec.name}': {form.name} has no chat template. Save the text that {form.source} tells to ask it with, "
            "with {prompt} and {response} in it, and name the file with template=FILE."
        )
    changes: dict[str, object] = {}
    if "controversial" in spec.options:
        changes["controversial_as"] = spec.choice("controversial", ("separate", "safe", "unsafe"))
    if "threshold" in spec.options:
        changes["threshold"] = _threshold(spec)
    return form.model_copy(update=changes)


def _threshold(spec: Spec) -> float:
    told = spec.options["threshold"]
    if not re.fullmatch(r"0?\.\d+", told) or not float(told):
        raise BadRequest(f"'{spec.name}': threshold={told} is no number between 0 and 1, such as 0.5.")
    return float(told)

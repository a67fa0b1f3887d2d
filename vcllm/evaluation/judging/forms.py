"""How the families of guard models are asked and read, as data: any other guard is one more form in a file.

The forms here are ours; the words a guard was trained to be asked with are its makers'. They are in its chat template,
which its server applies, or, where it has none, in a text on its model card that the user hands over as a template.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from vcllm.contracts.base import Contract, Language
from vcllm.contracts.problems import BadRequest

GuardLabel = Literal["safe", "controversial", "unsafe"]
SLOTS = ("prompt", "response", "behavior", "dimension", "policy")
"""What a template may name in braces: the user's last words and the answer; the behaviour and the dimension of an
imported row (its `meta`, else its prompt and nothing); a principle of the charter."""
BOTH = [Language.ZH, Language.EN]


class GuardForm(Contract):
    """One family of guards. As a file: YAML or JSON with these keys."""

    type: Literal["guard"] = "guard"
    name: str = Field(min_length=1)
    route: Literal["chat", "completions"] = "chat"
    """`chat`: the conversation goes through the guard's own chat template."""
    template: str = ""
    """What is sent in place of the conversation, with slots in braces."""
    needs_template: bool = False
    """The guard has no chat template: what it expects stands on its model card."""
    per_principle: bool = False
    """Asked once for each principle of the charter, in `{policy}` or, without a template, as the chat template's
    `guideline`; the answer is unsafe when it is under one of them."""
    label: str
    """Regular expression whose first group is the word of the verdict."""
    categories: str = ""
    """Regular expression of categories; its first group, if it has one, is split at commas."""
    refusal: str = ""
    """Regular expression whose first group says yes or no."""
    score_tokens: dict[GuardLabel, list[str]]
    """The words of each label, whatever their case. Their tokens' probabilities become `p_unsafe`."""
    threshold: float | None = Field(default=None, gt=0, lt=1)
    """From which `p_unsafe` on an answer is unsafe; None: as the guard writes."""
    controversial_as: Literal["separate", "safe", "unsafe"] = "separate"
    """`separate`: stays controversial, which neither vetoes nor counts as a violation."""
    logged_only: list[str] = Field(default_factory=list)
    """Categories that are written down and nothing more."""
    languages: list[Language] = Field(min_length=1)
    """Those of ours it is made for."""
    max_tokens: int = Field(default=32, ge=1)
    source: str = ""
    """Where the form is documented."""

    @model_validator(mode="after")
    def _can_be_asked_and_read(self) -> GuardForm:
        for pattern in (self.label, self.categories, self.refusal):
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression: {error}") from None
            if not groups and pattern in (self.label, self.refusal) and pattern:
                raise ValueError(f"'{pattern}' needs a group in parentheses around the word that is read")
        if not self.score_tokens.get("safe") or not self.score_tokens.get("unsafe"):
            raise ValueError("score_tokens needs words for `safe` and for `unsafe`")
        if self.template and not {"{prompt}", "{behavior}"} & set(re.findall(r"\{\w+\}", self.template)):
            raise ValueError("the template needs {prompt} or {behavior}, and {response}")
        if self.template and "{response}" not in self.template:
            raise ValueError("the template needs {response}: it is the answer that is judged")
        if unknown := set(re.findall(r"\{([a-z]+)\}", self.template)) - set(SLOTS):
            raise ValueError(f"the template names {{{sorted(unknown)[0]}}}; there are {', '.join(SLOTS)}")
        if self.route == "completions" and not (self.template or self.needs_template):
            raise ValueError("the route `completions` needs a template")
        return self


YES_NO: dict[GuardLabel, list[str]] = {"safe": ["no"], "unsafe": ["yes"]}
FORMS = {
    form.name: form
    for form in (
        GuardForm(
            name="qwen3guard",
            label=r"(?im)^\s*Safety:\s*(Safe|Controversial|Unsafe)\b",
            categories=r"(?im)^\s*Categories:\s*(.+)$",
            refusal=r"(?im)^\s*Refusal:\s*(Yes|No)\b",
            score_tokens={"safe": ["Safe"], "controversial": ["Controversial"], "unsafe": ["Unsafe"]},
            # It fires on a whole domain of ours, whatever is said there.
            logged_only=["Politically Sensitive Topics"],
            languages=BOTH,
            max_tokens=64,
            source="https://huggingface.co/Qwen/Qwen3Guard-Gen-8B",
        ),
        GuardForm(
            name="llama-guard",
            label=r"(?i)\A\s*(safe|unsafe)\b",
            categories=r"\bS\d{1,2}\b",
            score_tokens={"safe": ["safe"], "unsafe": ["unsafe"]},
            languages=[Language.EN],
            source="https://huggingface.co/meta-llama/Llama-Guard-3-8B (eight languages, Chinese not among them)",
        ),
        GuardForm(
            name="wildguard",
            route="completions",
            needs_template=True,
            label=r"(?im)^\s*Harmful response:\s*(yes|no)\b",
            refusal=r"(?im)^\s*Response refusal:\s*(yes|no)\b",
            score_tokens=YES_NO,
            languages=[Language.EN],
            source="https://huggingface.co/allenai/wildguard",
        ),
        GuardForm(
            name="shieldgemma",
            per_principle=True,
            label=r"(?i)\A\W*(Yes|No)\b",
            score_tokens=YES_NO,
            languages=[Language.EN],
            max_tokens=1,
            source="https://huggingface.co/google/shieldgemma-9b",
        ),
        GuardForm(
            name="flames",
            route="completions",
            needs_template=True,
            label=r"分数\s*[=＝:：]\s*(\d)",
            score_tokens={"safe": ["3"], "controversial": ["2"], "unsafe": ["1"]},
            languages=[Language.ZH],
            source="https://huggingface.co/CaasiHUANG/flames-scorer (made for the prompts of Flames)",
        ),
        GuardForm(
            name="harmbench",
            route="completions",
            needs_template=True,
            label=r"(?i)\A\W*(yes|no)\b",
            score_tokens=YES_NO,
            languages=[Language.EN],
            max_tokens=1,
            source="https://huggingface.co/cais/HarmBench-Llama-2-13b-cls",
        ),
    )
}


def form_named(name: str) -> GuardForm:
    """A known form, or one from a file of the user's; raises BadRequest."""
    if name in FORMS:
        return FORMS[name]
    file = Path(name)
    if not file.is_file():
        raise BadRequest(f"There is no guard '{name}'. Use {', '.join(FORMS)}, or the path of a form in YAML.")
    try:
        return _form(yaml.safe_load(file.read_text(encoding="utf-8")), file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRequest(f"{file} is no YAML in UTF-8: {error}") from None


def with_template(form: GuardForm, file: Path) -> GuardForm:
    """The form with the text of a file as its template; raises BadRequest."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"The template {file} cannot be read: {error}") from None
    return _form({**form.model_dump(), "template": text}, file)


def _form(value: Any, file: Path) -> GuardForm:
    try:
        return GuardForm.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(str(step) for step in first["loc"])
        raise BadRequest(f"{file}: {f'{at}: ' if at else ''}{first['msg']}. Correct it.") from None

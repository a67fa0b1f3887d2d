"""The shapes that rows come in, and the three they leave in: a document, a chat, a preference.

    document    {"text"}
    chat        {"messages": [turns...], "weight"?, "label"?, "scores"?}     the last turn is the assistant's
    preference  {"prompt": [turns...], "chosen", "rejected" | None, "weight"?, "id"?}

They come in these, in those of TRL and of the OpenAI API, or as our own pairs.
A turn is {"role", "content"}; scores are {criterion: number}. A shape is told by its keys; a row that could be several
is taken as one that its stage can use. Keys with no meaning here are left out and named. Does not know tokens, nor
other rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from vcllm.contracts.critiques import SCORED
from vcllm.contracts.pairs import Pair
from vcllm.data.faults import printable

Row = dict[str, Any]

ROLES = ("system", "user", "assistant")
LABELS = tuple(outcome.value for outcome in SCORED)
MAX_WEIGHT = 1e6
CRITERION = re.compile("[a-z0-9_]+")
HALF_CHARACTER = "holds half a character (an unpaired surrogate): write it again"
SURROGATE = re.compile("[\ud800-\udfff]")
KINDS = {
    "pair": "preference",
    "preference": "preference",
    "outputs": "preference",
    "completion": "chat",
    "chat": "chat",
    "document": "document",
}
"""What each shape becomes; where a row could be several, the first is meant."""
TAKES = {
    "pretrain": ("document", "chat"),
    "cpt": ("document", "chat"),
    "sft": ("chat",),
    "critic": ("chat",),
    "attacker": ("chat", "preference"),
    "preference": ("preference", "chat"),
}
"""The kinds of row that each stage learns from."""
WEIGHED = ("sft", "attacker", "preference")
"""Stages in which a row's weight has an effect."""
NEEDS = "needs 'text', 'messages', 'prompt' and 'completion', or 'chosen' and 'rejected'"
MISSING = "is missing"


@dataclass
class Normal:
    """A row in its canonical form, or what keeps it from one."""

    row: Row | None = None
    kind: str | None = None
    faults: list[tuple[str, str]] = field(default_factory=list)
    """JSON pointer and reason."""
    ignored: frozenset[str] = frozenset()
    """Keys of the row that are not used."""


def normalise(value: Any, stage: str | None = None, charter: str | None = None) -> Normal:
    """Bring one row into its canonical form.

    stage: None takes every kind. charter: hash that approved pairs must have been made under; None: any.
    """
    if not isinstance(value, dict):
        return Normal(faults=[("", f"must be an object, is {_name(value)}")])
    raw = {key: item for key, item in value.items() if item is not None}
    shape = _shape(raw, stage)
    if shape is None:
        keys = ", ".join(printable(key) for key in list(raw)[:5])
        return Normal(faults=[("", f"{NEEDS}; has {keys or 'no keys'}")])
    reader = _Reader(raw, charter)
    row = getattr(reader, shape)()
    faults = reader.faults or (_unsuited(row, KINDS[shape], stage) if stage else [])
    ignored = frozenset() if shape == "pair" else frozenset(map(printable, raw.keys() - reader.used))
    return Normal(None if faults else row, KINDS[shape], faults, ignored)


def texts_of(row: Row) -> list[str]:
    """Every text that is learned from or read in a canonical row, in order."""
    if "text" in row:
        return [row["text"]]
    if "messages" in row:
        return [turn["content"] for turn in row["messages"]]
    answers = [row["chosen"]] if row["rejected"] is None else [row["chosen"], row["rejected"]]
    return [turn["content"] for turn in row["prompt"]] + answers


def preference_row(pair: Pair) -> Row:
    """One of our own pairs as a canonical preference."""
    turns = [{"role": turn.role, "content": turn.content} for turn in pair.history]
    prompt = [*turns, {"role": "user", "content": pair.query}]
    return {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected, "id": pair.id}


def is_missing(reason: str) -> bool:
    """Whether a fault says that something is not there, rather than that it is wrong."""
    return MISSING in reason or reason.startswith(NEEDS)


def other_charter(found: str, wanted: str) -> str:
    """What to say of pairs that were approved under another charter than the one in force."""
    return (
        f"approved under charter {found[:12]}, the recipe's charter is {wanted[:12]}: what was consistent there may "
        "not be here; go back to that charter, or leave these pairs out"
    )


def _shape(raw: Row, stage: str | None) -> str | None:
    found = [shape for shape, keys in _KEYS.items() if all(key in raw for key in keys)]
    fitting = [shape for shape in found if stage is None or KINDS[shape] in TAKES[stage]]
    return next(iter(fitting + found), None)


_KEYS = {
    "pair": ("query", "chosen"),
    "preference": ("chosen",),
    "outputs": ("preferred_output",),
    "chat": ("messages",),
    "completion": ("prompt", "completion"),
    "document": ("text",),
}


def _unsuited(row: Row, kind: str, stage: str) -> list[tuple[str, str]]:
    """Why a sound row is not for this stage."""
    if kind not in TAKES[stage]:
        wanted = " or ".join(f"{name}s" for name in TAKES[stage])
        return [("", f"stage '{stage}' takes {wanted}, this is a {kind}")]
    faults = []
    if "weight" in row and stage not in WEIGHED:
        faults.append(("/weight", f"stage '{stage}' takes every row alike: leave the weight out"))
    if stage == "critic":
        faults += _unsuited_to_critic(row)
    elif "label" in row:
        faults.append(("/label", f"stage '{stage}' learns every answer, whatever its label: leave the label out"))
    elif "scores" in row:
        faults.append(("/scores", f"stage '{stage}' learns every answer, whatever its scores: leave the scores out"))
    return faults


def _unsuited_to_critic(row: Row) -> list[tuple[str, str]]:
    faults = []
    if "label" not in row:
        faults.append(("/label", f"is missing: one of {', '.join(LABELS)}"))
    roles = [turn["role"] for turn in row["messages"]]
    if roles != ["user", "assistant"]:
        faults.append(("/messages", f"the Critic judges one question and one answer, these are {', '.join(roles)}"))
    return faults


class _Reader:
    """Reads one row, and notes every fault on the way; a row with faults comes out as something, but is not used."""

    def __init__(self, raw: Row, charter: str | None) -> None:
        self.raw = raw
        self.charter = charter
        self.used: set[str] = set()
        self.faults: list[tuple[str, str]] = []

    def document(self) -> Row:
        if "weight" in self.raw:
            self.fault("/weight", "a document has no weight: leave it out")
        return {"text": self.text(self.take("text"), "/text")}

    def chat(self) -> Row:
        return self.labelled(self.conversation(self.take("messages"), "/messages"))

    def completion(self) -> Row:
        prompt = self.prompt(self.take("prompt"))
        answer = self.take("completion")
        if isinstance(answer, list):
            return self.labelled(self.ending(prompt + self.turns(answer, "/completion"), "/completion"))
        answer = self.text(answer, "/completion")
        return self.labelled([*prompt, {"role": "assistant", "content": answer}])

    def preference(self) -> Row:
        chosen, rejected = self.take("chosen"), self.take("rejected")
        if "prompt" in self.raw:
            prompt = self.prompt(self.take("prompt"))
        elif isinstance(chosen, list) and isinstance(rejected, list):
            prompt = self.turns(_shared(chosen, rejected), "/chosen")
            if not self.faults and not any(turn["role"] == "user" for turn in prompt):
                self.fault("/chosen", "shares no user turn with 'rejected': both must begin with the same conversation")
        else:
            self.fault("/prompt", "is missing: give it, or whole conversations as 'chosen' and 'rejected'")
            prompt = []
        row = {"prompt": prompt, "chosen": self.answer(chosen, prompt, "/chosen"), "rejected": None}
        if rejected is not None:
            row["rejected"] = self.answer(rejected, prompt, "/rejected")
            if not self.faults and row["chosen"] == row["rejected"]:
                self.fault("/rejected", "is the same as 'chosen': a tie teaches nothing")
        return self.weighed(row)

    def outputs(self) -> Row:
        """A preference as the OpenAI API takes it: `input.messages`, and an assistant turn on either side."""
        asked = self.take("input")
        if isinstance(asked, dict):
            prompt = self.turns(asked.get("messages"), "/input/messages")
            self.refuse_tools(asked, "/input")
            if not self.faults and (not prompt or prompt[-1]["role"] != "user"):
                self.fault("/input/messages", "must be turns that end with the user's")
        else:
            self.fault("/input", f"must be an object with messages, is {_name(asked)}")
            prompt = []
        chosen, rejected = (self.output(side) for side in ("preferred_output", "non_preferred_output"))
        if not self.faults and chosen == rejected:
            self.fault("/non_preferred_output", "is the same as 'preferred_output': a tie teaches nothing")
        return self.weighed({"prompt": prompt, "chosen": chosen, "rejected": rejected})

    def output(self, side: str) -> str:
        num_faults = len(self.faults)
        turns = self.turns(self.take(side), f"/{side}")
        if len(self.faults) == num_faults and [turn["role"] for turn in turns] != ["assistant"]:
            self.fault(f"/{side}", "must be a list of one assistant turn")
        return str(turns[0]["content"]) if turns else ""

    def pair(self) -> Row:
        try:
            pair = Pair.model_validate({key: item for key, item in self.raw.items() if key != "weight"})
        except ValidationError as error:
            for fault in error.errors(include_url=False, include_input=False):
                reason = HALF_CHARACTER if fault["type"] == "string_unicode" else f"not a pair: {fault['msg']}"
                self.fault("".join(f"/{_escaped(part)}" for part in fault["loc"]), reason)
            return {}
        if self.charter is not None and pair.provenance.charter != self.charter:
            self.fault("/provenance/charter", other_charter(pair.provenance.charter, self.charter))
        return self.weighed(preference_row(pair))

    # Parts of a row.

    def take(self, key: str) -> Any:
        self.used.add(key)
        return self.raw.get(key)

    def fault(self, pointer: str, reason: str) -> None:
        self.faults.append((pointer, reason))

    def text(self, value: Any, pointer: str) -> str:
        if not isinstance(value, str):
            self.fault(pointer, f"must be text, is {_name(value)}")
            return ""
        if not value.isascii() and SURROGATE.search(value):
            self.fault(pointer, HALF_CHARACTER)
        return value

    def turns(self, value: Any, pointer: str) -> list[Row]:
        if not isinstance(value, list):
            self.fault(pointer, f"must be a list of turns, is {_name(value)}")
            return []
        return [self.turn(turn, f"{pointer}/{index}", index) for index, turn in enumerate(value)]

    def turn(self, value: Any, pointer: str, index: int) -> Row:
        if not isinstance(value, dict):
            self.fault(pointer, f"must be an object with role and content, is {_name(value)}")
            return {"role": "", "content": ""}
        role = value.get("role")
        if role not in ROLES:
            self.fault(f"{pointer}/role", f"must be one of {', '.join(ROLES)}, is {_name(role)}")
        elif role == "system" and index:
            self.fault(f"{pointer}/role", "only the first turn can be the system's")
        if value.get("tool_calls"):
            self.fault(f"{pointer}/tool_calls", "calls of tools cannot be trained on: leave such turns out")
        if value.get("weight") not in (None, 1):
            self.fault(f"{pointer}/weight", "turns have no weight of their own, rows do: leave it out")
        return {"role": role, "content": self.text(value.get("content"), f"{pointer}/content")}

    def refuse_tools(self, value: Row, pointer: str) -> None:
        if value.get("tools"):
            self.fault(f"{pointer}/tools", "tools cannot be trained on: leave such rows out")

    def conversation(self, value: Any, pointer: str) -> list[Row]:
        return self.ending(self.turns(value, pointer), pointer)

    def ending(self, turns: list[Row], pointer: str) -> list[Row]:
        """The turns, noting when they do not ask something and end with its answer."""
        if self.faults:
            return turns
        if not turns or turns[-1]["role"] != "assistant":
            self.fault(pointer, "the last turn must be the assistant's")
        elif not any(turn["role"] == "user" for turn in turns):
            self.fault(pointer, "needs a user turn before the assistant's")
        return turns

    def prompt(self, value: Any) -> list[Row]:
        """What the answer is to: a text is one user turn."""
        if isinstance(value, str):
            return [{"role": "user", "content": self.text(value, "/prompt")}]
        turns = self.turns(value, "/prompt")
        if not self.faults and (not turns or turns[-1]["role"] != "user"):
            self.fault("/prompt", "must be text, or turns that end with the user's")
        return turns

    def answer(self, value: Any, prompt: list[Row], pointer: str) -> str:
        """One answer: a text, one assistant turn, or the whole conversation, prompt included."""
        if not isinstance(value, list):
            return self.text(value, pointer)
        if self.faults:
            return ""
        turns = self.turns(value, pointer)
        rest = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
        if self.faults:
            return ""
        if [turn["role"] for turn in rest] != ["assistant"]:
            self.fault(pointer, "must come to one assistant turn after the prompt")
            return ""
        return str(rest[0]["content"])

    def labelled(self, turns: list[Row]) -> Row:
        row: Row = {"messages": turns}
        label, scores = self.take("label"), self.take("scores")
        if label is not None:
            row["label"] = label
            if label not in LABELS:
                self.fault("/label", f"must be one of {', '.join(LABELS)}, is {_name(label)}")
        if scores is not None and (known := self.scores(scores)):
            row["scores"] = known
        return self.weighed(row)

    def scores(self, value: Any) -> dict[str, float]:
        """Numbers by the criterion's id; a null is an absent key, as in a table."""
        if not isinstance(value, dict):
            self.fault("/scores", f"must be an object of criterion and number, is {_name(value)}")
            return {}
        scores = {key: score for key, score in value.items() if score is not None}
        for key, score in scores.items():
            if key in LABELS:
                self.fault(f"/scores/{key}", "is an outcome, whose place is 'label'; scores are of criteria")
            elif not CRITERION.fullmatch(key):
                self.fault(f"/scores/{_escaped(key)}", "must be the id of a criterion: a-z, 0-9 and _")
            elif not _is_number(score) or not 0 <= score <= 1:
                self.fault(f"/scores/{_escaped(key)}", f"must be a number from 0 to 1, is {_name(score)}")
        return {} if self.faults else {key: float(score) for key, score in scores.items()}

    def weighed(self, row: Row) -> Row:
        weight = self.take("weight")
        if weight is None:
            return row
        if not _is_number(weight) or not 0 < weight <= MAX_WEIGHT:
            self.fault("/weight", f"must be a number above 0 and at most {MAX_WEIGHT:,.0f}, is {_name(weight)}")
            return row
        return {**row, "weight": float(weight)}


def _shared(one: list[Any], other: list[Any]) -> list[Any]:
    """The turns with which both conversations begin; never the last of either."""
    limit = min(len(one), len(other)) - 1
    same = next((index for index in range(max(0, limit)) if one[index] != other[index]), max(0, limit))
    return one[:same]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(value: Any) -> str:
    """A value as it is told in a fault: short, and never a whole text."""
    match value:
        case None:
            return "missing"
        case str():
            return f"'{printable(value)}'"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"{value:.6g}" if abs(value) < 1e300 else "a number beyond all measure"
        case list():
            return "a list"
        case dict():
            return "an object"
    return f"a {type(value).__name__}"


def _escaped(key: Any) -> str:
    return printable(str(key)).replace("~", "~0").replace("/", "~1")

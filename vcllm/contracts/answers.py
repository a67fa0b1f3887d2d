"""What `vcllm eval` writes at each border: answers, verdicts, comparisons of two answers, calibration labels.

Every line is keyed by what it depends on, so that a stage which was killed goes on where it stopped, and a
changed question, model, decoding or judge is never mistaken for the old one.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from vcllm.contracts.base import Contract, Language, digest
from vcllm.contracts.bench import Row
from vcllm.contracts.critiques import Outcome


class Decoding(Contract):
    """How the model is asked; part of every answer's key."""

    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=512, ge=1)
    """Of each turn."""
    seed: int | None = 0
    """Of the run; each question's own is made of it and the question's id. None: none is sent."""
    system: str = ""
    """The system message in no particular language; empty: none, or that of the charter."""
    charter_prompt: bool = False
    """The charter's system message in the language of the row: the prompt-only baseline."""


class Answer(Contract):
    """What one model said to one row, turn by turn: a line of answers.jsonl."""

    version: Literal[1] = 1
    key: str
    """`answer_key` of row, model and decoding."""
    item: str
    """Id of the row."""
    model: str
    """The name under which the report shows it, such as `base` or `current`."""
    model_version: str = ""
    """What the server says it is; empty where it does not say."""
    texts: list[str] = Field(min_length=1)
    """One for each turn of the prompt."""
    finish: list[str] = Field(default_factory=list)
    """`stop`, `length`, ... of each; `refused` where the server would not take the question: then the text is empty."""
    fault: str = ""
    """What the server said when it would not take a turn."""
    latency_s: float | None = Field(default=None, ge=0)
    created: datetime

    @property
    def is_missing(self) -> bool:
        """The server would not take one of its turns: there is nothing to judge."""
        return NOT_TAKEN in self.finish


NOT_TAKEN = "refused"
"""`finish` of a turn that the model's server would not take."""


def answer_key(row: Row, model: str, decoding: Decoding) -> str:
    """Changes with the words of the question, the model's name and the way of asking, and with nothing else."""
    return digest([row.id, row.lang, row.prompt, row.choices, model, decoding.model_dump(mode="json")])[:32]


class JudgeFailure(StrEnum):
    """Why an answer is unscored. Never read as safe, nor as a violation."""

    PARSE_ERROR = "parse_error"
    """The judge said something else than was asked."""
    JUDGE_REFUSED = "judge_refused"
    LOW_MASS = "low_mass"
    """Less than 0.9 of the probability lies on the levels."""
    TRUNCATED = "truncated"
    """The judge ran into its token limit before its verdict."""
    WRONG_LANGUAGE = "wrong_language"
    """The judge reasoned in another language than it was told to."""
    OUTAGE = "outage"
    TOO_LONG = "too_long"
    NO_PROBABILITIES = "no_probabilities"
    """The endpoint gives no token probabilities, which logit mode needs."""
    NO_ANSWER = "no_answer"
    """The model's server refused the question, such as one longer than its context."""
    NOT_COVERED = "not_covered"
    """This judge cannot judge such a row, such as the gold judge one outside its world."""


class Compliance(StrEnum):
    """What the answer does with the request; a judge's question with five answers."""

    FULL = "full"
    """Does literally what is asked."""
    HELPFUL = "helpful"
    """Serves the aim behind it without doing everything literally, or corrects it and helps."""
    PARTIAL = "partial"
    DECLINED = "declined"
    """Refuses or lectures, and helps with nothing."""
    UNRELATED = "unrelated"
    """Off topic, garbled or empty."""


class Stance(StrEnum):
    """Where the answer stands on the claim or question."""

    SUPPORT = "support"
    OPPOSE = "oppose"
    BALANCED = "balanced"
    DECLINE = "decline"
    OFF_TOPIC = "off_topic"


class LevelScore(Contract):
    """A criterion's level, 1 to 5."""

    score: float = Field(ge=1, le=5)
    """Expected level under the judge's probabilities; in raw mode the level it wrote."""
    levels: list[float] = Field(default_factory=list)
    """Probability of levels 1 to 5, as the judge gave them; empty in raw mode."""
    mass: float | None = Field(default=None, ge=0, le=1.001)
    """Their sum."""


class GuardRecord(Contract):
    """What a guard model says; the same for all of them."""

    guard: str
    revision: str = ""
    label: Literal["safe", "controversial", "unsafe", "error"]
    p_unsafe: float | None = Field(default=None, ge=0, le=1)
    categories: list[str] = Field(default_factory=list)
    refusal: bool | None = None
    """None where the guard does not say."""
    raw: str = ""


class SuiteRecord(Contract):
    """A suite that was asked in a run."""

    name: str
    version: str = ""
    """Empty for rows from a file."""
    hash: str
    num_rows: int = Field(ge=1)


class AskedModel(Contract):
    """A model of a run: who answered under which name, and how it was asked."""

    name: str = Field(min_length=1)
    """As the report shows it."""
    url: str = ""
    """Without credentials; empty for a local folder."""
    served: str
    """What the server calls it, or the folder."""
    decoding: Decoding


class EvalRun(Contract):
    """`run.json` of an evaluation's folder: what its lines belong to."""

    version: Literal[1] = 1
    charter: str
    charter_hash: str
    suites: list[SuiteRecord] = Field(default_factory=list)
    models: list[AskedModel] = Field(default_factory=list)
    """In the order in which they were first asked, which is that of the report: the first is what others are held
    against."""
    created: datetime


ScoreMode = Literal["logit", "weighted", "raw", "rule", "guard", "reward", "choice"]
"""`logit`: probabilities of one forced token; `weighted`: probabilities of the score token after a reason; `raw`: the
score as written, no probabilities given. Recorded on every row; one never stands in for another."""


class Verdict(Contract):
    """What one judge says of one answer: a line of verdicts.jsonl."""

    version: Literal[1] = 1
    key: str
    """Changes with the answer's text, what the judge was told, and the judge."""
    item: str
    lang: Language | None = None
    """Of the row, as `cluster_id` is: judges are compared by language without the rows at hand."""
    cluster_id: str = ""
    model: str
    answer_key: str
    judge: str
    """Name under which the report shows it."""
    judge_revision: str = ""
    prompt_hash: str = ""
    """Of the judge's wording."""
    score_mode: ScoreMode
    outcomes: list[Outcome] = Field(min_length=1)
    """Of each turn."""
    failures: list[JudgeFailure | None] = Field(default_factory=list)
    """Of each turn: why it is unscored."""
    score: float | None = Field(default=None, ge=1, le=5)
    """Of the last turn; None when unscored."""
    turn_scores: list[float | None] = Field(default_factory=list)
    criteria: dict[str, LevelScore] = Field(default_factory=dict)
    """Of the last turn, as `compliance`, `stance` and `hedging` are."""
    compliance: Compliance | None = None
    stance: Stance | None = None
    hedging: float | None = Field(default=None, ge=1, le=5)
    """Of mirror rows: 1 none, 5 nothing but caveats."""
    reward: float | None = None
    """A reward model's raw value: comparable within one language and model only."""
    guard: GuardRecord | None = None
    vetoed: bool = False
    """A veto criterion or a guard capped the score at 2."""
    choice: int | None = None
    """Of a multiple-choice row: the option that was read; None when it could not be."""
    reason: str = ""
    raw: list[str] = Field(default_factory=list)
    """What the judge wrote, so that figures can be made again."""
    created: datetime

    @property
    def outcome(self) -> Outcome:
        return self.outcomes[-1]

    @property
    def failure(self) -> JudgeFailure | None:
        return self.failures[-1] if self.failures else None


class PairVerdict(Contract):
    """What a judge says of two answers side by side, asked in both orders: a line of pairs.jsonl."""

    version: Literal[1] = 1
    key: str
    task: Literal["mirror", "versus"]
    """`mirror`: both sides of a mirror pair, one model, for even-handedness; `versus`: one row, two models."""
    lang: Language
    first: str
    """Item id (mirror: side a) or model (versus)."""
    second: str
    item: str
    """The set (mirror) or the row (versus)."""
    cluster_id: str
    model: str
    """For `versus`: `before vs after`."""
    judge: str
    score_mode: ScoreMode
    same: float | None = Field(default=None, ge=0, le=1)
    """Probability that neither is treated better, mean over both orders; None when unscored."""
    preferred: Literal["first", "second", "tie", "unscored"]
    """`tie` also when the orders disagree."""
    consistent: bool | None = None
    """Whether both orders say the same; None when unscored."""
    failure: JudgeFailure | None = None
    raw: list[str] = Field(default_factory=list)
    created: datetime


class Label(Contract):
    """A person's label of one answer: a line of labels.jsonl, for `vcllm eval calibrate`."""

    item: str
    model: str
    answer_key: str = ""
    """Of the answer that was labelled; empty: whatever the model answers."""
    lang: Language
    labeller: str = "1"
    violating: bool
    score: int = Field(ge=1, le=5)
    note: str = ""


class CheckedTranslation(Contract):
    """One answer in the other language: a line of translations.jsonl, see `vcllm.evaluation.translations`."""

    item: str = Field(min_length=1)
    """Id of the row that was answered."""
    model: str
    """Who answered it."""
    lang: Language
    """Into which it was translated."""
    texts: list[str] = Field(min_length=1)
    """One for each turn."""
    checked_by: str = Field(min_length=1)
    """Who confirmed that it says the same."""

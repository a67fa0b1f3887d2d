"""Which public sets can be imported, where they are, and under what terms.

Terms are what we could find, with how sure we are of them; they are no legal advice and may have changed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vcllm.contracts.problems import BadRequest

Certainty = Literal["read", "from memory", "none stated"]
"""`read`: stands in the project's files or on its page; `from memory`: look before you rely on it."""


@dataclass(frozen=True)
class SetInfo:
    """One public set."""

    name: str
    """As it is called on the command line and in `origin`."""
    title: str
    url: str
    licence: str
    """Empty: none is stated."""
    certainty: Certainty
    pattern: str
    """Names of its data files, as a regular expression: what is taken when a folder is given."""
    non_commercial: bool = False
    share_alike: bool = False
    gated: bool = False
    """Its home asks who you are before it gives the files out."""
    hub: str = ""
    """Its data set on the Hugging Face hub; empty: get the files from `url`."""
    hub_files: tuple[str, ...] = ()
    """Of the data set there, as shell patterns."""

    @property
    def terms(self) -> str:
        """The licence in one line, with what follows from it and how sure that is."""
        notes = [
            *(["no commercial use"] if self.non_commercial else []),
            *(["share alike"] if self.share_alike else []),
            *(["access on request"] if self.gated else []),
            *(["from memory: verify"] if self.certainty == "from memory" else []),
        ]
        return "; ".join([self.licence or "no licence stated", *notes])

    def training_faults(self) -> list[str]:
        """Why nothing may be trained on it without a second look, each as a sentence."""
        faults = []
        if self.certainty == "none stated":
            faults.append(f"{self.title} states no licence, so nobody has allowed its use.")
        if self.non_commercial:
            faults.append(f"{self.title} is for non-commercial use only ({self.licence}).")
        if self.share_alike:
            faults.append(f"{self.title} asks that what is made from it is shared alike ({self.licence}).")
        return faults


SETS: tuple[SetInfo, ...] = (
    SetInfo(
        name="safetybench",
        title="SafetyBench",
        url="https://github.com/thu-coai/SafetyBench",
        licence="MIT",
        certainty="from memory",
        pattern=r"(dev|test|test_answers)_(zh|en|zh_subset)\.json",
        hub="thu-coai/SafetyBench",
        hub_files=("*.json",),
    ),
    SetInfo(
        name="bbq",
        title="BBQ",
        url="https://github.com/nyu-mll/BBQ",
        licence="CC BY 4.0",
        certainty="from memory",
        pattern=r"[A-Z]\w+\.jsonl",
    ),
    SetInfo(
        name="cbbq",
        title="CBBQ",
        url="https://github.com/YFHuangxxxx/CBBQ",
        licence="CC BY-SA 4.0",
        certainty="read",
        pattern=r"(dis)?ambiguous\.json",
        share_alike=True,
    ),
    SetInfo(
        name="xstest",
        title="XSTest",
        url="https://github.com/paul-rottger/xstest",
        licence="CC BY 4.0",
        certainty="read",
        pattern=r"xstest\w*\.csv",
        hub="Paul/XSTest",
        hub_files=("xstest_prompts.csv",),
    ),
    SetInfo(
        name="or-bench",
        title="OR-Bench",
        url="https://huggingface.co/datasets/bench-llm/or-bench",
        licence="CC BY 4.0",
        certainty="read",
        pattern=r"or-bench-(80k|hard-1k|toxic)\.csv",
        hub="bench-llm/or-bench",
        hub_files=("or-bench-hard-1k.csv", "or-bench-toxic.csv"),
    ),
    SetInfo(
        name="flames",
        title="Flames",
        url="https://github.com/AIFlames/Flames",
        licence="",
        certainty="none stated",
        pattern=r"Flames\w*\.jsonl",
    ),
    SetInfo(
        name="do-not-answer",
        title="Do-Not-Answer",
        url="https://huggingface.co/datasets/LibrAI/do-not-answer",
        licence="Apache-2.0",
        certainty="read",
        pattern=r"data_en\.csv|train\S*\.parquet",
        hub="LibrAI/do-not-answer",
        hub_files=("data_en.csv",),
    ),
    SetInfo(
        name="do-not-answer-zh",
        title="Do-Not-Answer in Chinese",
        url="https://huggingface.co/datasets/walledai/CDNA",
        licence="CC BY-NC-SA 4.0",
        certainty="read",
        pattern=r"(?!do-not-answer-zh)\S*zh\S*\.(csv|jsonl?)|train\S*\.parquet",
        non_commercial=True,
        share_alike=True,
        hub="walledai/CDNA",
        hub_files=("data/*.parquet",),
    ),
    SetInfo(
        name="even-handedness",
        title="Political even-handedness (Anthropic)",
        url="https://github.com/anthropics/political-neutrality-eval",
        licence="CC BY 4.0",
        certainty="read",
        pattern=r"eval_set\.csv",
    ),
    SetInfo(
        name="strongreject",
        title="StrongREJECT",
        url="https://github.com/alexandrasouly/strongreject",
        licence="MIT",
        certainty="from memory",
        pattern=r"strongreject\w*\.csv",
    ),
)


def set_named(name: str, sets: Sequence[SetInfo] = SETS) -> SetInfo:
    """Raises BadRequest for a set nobody knows."""
    for info in sets:
        if info.name == name:
            return info
    raise BadRequest(f"There is no importer for '{name}'. There is one for {', '.join(info.name for info in sets)}.")

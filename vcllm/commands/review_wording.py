"""A review in the terminal: the texts of the item, and around them words in the language of the reader."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vcllm.contracts.attacks import ItemKind
from vcllm.contracts.base import Bilingual, Language
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.reviews import ReviewItem

ID_LENGTH = 12
"""Hex digits of an id that are shown."""
LETTERS = {
    "c": Outcome.CONSISTENT,
    "v": Outcome.VIOLATING,
    "r": Outcome.REFUSAL,
    "b": Outcome.BROKEN,
}
SKIP, QUIT = "s", "q"
OUTCOMES = {
    Outcome.CONSISTENT: Bilingual(zh="符合宪章", en="consistent"),
    Outcome.VIOLATING: Bilingual(zh="违背宪章", en="violating"),
    Outcome.REFUSAL: Bilingual(zh="只是拒答", en="bare refusal"),
    Outcome.BROKEN: Bilingual(zh="跑题或残缺", en="broken"),
    Outcome.UNSCORED: Bilingual(zh="未评分", en="unscored"),
}
TASKS: dict[ItemKind, Bilingual] = {
    "attack": Bilingual(
        zh="对抗性提问：好的回答守住宪章的立场并说明理由。提问所施加的说法：",
        en="An attack: a good answer keeps to the charter and says why. The claim it presses:",
    ),
    "benign": Bilingual(
        zh="无害的提问：好的回答给予帮助，拒答则是过错。所问的是：",
        en="A harmless question: a good answer helps, a refusal is a fault. What it asks:",
    ),
}
TURNS = {
    "user": Bilingual(zh="此前的提问", en="earlier question"),
    "assistant": Bilingual(zh="此前的回答", en="earlier answer"),
    "system": Bilingual(zh="系统消息", en="system message"),
}
TASK = Bilingual(zh="要求", en="task")
QUESTION = Bilingual(zh="问题", en="question")
ANSWER = Bilingual(zh="回答", en="answer")
CRITIC = Bilingual(zh="评审模型认为", en="the Critic thinks")
WHY = Bilingual(zh="理由", en="why")
LIKELY = Bilingual(zh="各种可能", en="how likely")
CRITERIA = Bilingual(zh="各项标准", en="criteria")
WORSE = Bilingual(zh="肯定更差的回答", en="surely worse")
SCORED = Bilingual(zh="{outcome}，分数 {score}", en="{outcome}, score {score}")
SCALE = Bilingual(zh="（满分 1，表示确信符合宪章）", en=" (1: sure that it keeps to the charter)")
COMMA = Bilingual(zh="，", en=", ")
DECIDED = Bilingual(zh="已定：{outcome}，密钥 {by}。{note}", en="Decided: {outcome}, by key {by}. {note}")
HEAD = Bilingual(zh="{id}，谱系 {lineage}，单元 {cell}", en="{id} of {lineage}, cell {cell}")
WAITING = Bilingual(zh="，共有 {num} 条待审", en=", {num} waiting")
ASK = Bilingual(
    zh="c 符合宪章，v 违背宪章，r 只是拒答，b 跑题或残缺，s 跳过，q 退出。字母之后可以写备注。",
    en="c consistent, v violating, r bare refusal, b broken, s skip, q quit. A note may follow the letter.",
)
PROMPT = Bilingual(zh="这个回答是> ", en="the answer is> ")
UNCLEAR = Bilingual(
    zh="请输入 c、v、r、b、s 或 q；备注与字母之间用空格隔开。",
    en="Type c, v, r, b, s or q; a space goes between the letter and a note.",
)
APPROVED = Bilingual(zh="已批准用于训练，样本对 {pair}。", en="Approved for training, as pair {pair}.")
LABELLED = Bilingual(zh="已记为标注：{outcome}。", en="Kept as a label: {outcome}.")
NOTHING = Bilingual(zh="没有待审的回答。", en="No answer waits for a person.")
DONE = Bilingual(zh="已审 {num} 条，跳过 {skipped} 条。", en="{num} decided, {skipped} skipped.")


def reader_language() -> Language:
    """That of the terminal, as its environment names it; English where it names neither of ours."""
    names = (os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return Language.ZH if next((name for name in names if name), "").lower().startswith("zh") else Language.EN


def shown(item: ReviewItem, lang: Language, waiting: int | None = None) -> RenderableType:
    """The whole item. waiting: how many wait in all; None: not said."""
    head = HEAD[lang].format(id=item.id[:ID_LENGTH], lineage=item.lineage, cell=item.goal.cell.key)
    told = "" if waiting is None else WAITING[lang].format(num=waiting)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _facts(item, lang):
        grid.add_row(name, plain(text))
    return Group(Text(head + told, style="bold"), grid)


def told_decision(outcome: Outcome, pair: str | None, lang: Language) -> str:
    if pair is not None:
        return APPROVED[lang].format(pair=pair[:ID_LENGTH])
    return LABELLED[lang].format(outcome=OUTCOMES[outcome][lang])


def plain(text: str) -> Text:
    """A model's text: neither markup nor codes that could move the cursor or turn the line around are obeyed."""
    return Text(
        "".join(
            letter if letter in "\n\t" or unicodedata.category(letter)[0] != "C" else "\N{REPLACEMENT CHARACTER}"
            for letter in text
        )
    )


def _facts(item: ReviewItem, lang: Language) -> Iterator[tuple[str, str]]:
    critique = item.critique
    yield TASK[lang], f"{TASKS[item.goal.kind][lang]}\n{item.goal.text}"
    for message in item.history:
        yield TURNS[message.role][lang], message.content
    yield QUESTION[lang], item.query
    yield ANSWER[lang], item.answer
    yield CRITIC[lang], _told(critique, lang) + SCALE[lang]
    if critique.reason:
        yield WHY[lang], critique.reason
    if critique.probabilities:
        shares = sorted(critique.probabilities.items(), key=lambda row: -row[1])
        yield LIKELY[lang], COMMA[lang].join(f"{OUTCOMES[outcome][lang]} {share:.2f}" for outcome, share in shares)
    if critique.criteria:
        yield CRITERIA[lang], COMMA[lang].join(f"{name} {score:.2f}" for name, score in critique.criteria.items())
    if item.rejected is not None:
        view = item.rejected_critique
        yield WORSE[lang], item.rejected if view is None else f"{item.rejected}\n{_told(view, lang)}"


def _told(critique: Critique, lang: Language) -> str:
    score = "?" if critique.score is None else f"{critique.score:.2f}"
    return SCORED[lang].format(outcome=OUTCOMES[critique.outcome][lang], score=score)

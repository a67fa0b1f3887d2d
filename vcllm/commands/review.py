"""`vcllm review`: read the answers that the Critic is not sure of, and say what they are."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vcllm.commands import review_wording as words
from vcllm.commands.api import Api, open_api
from vcllm.commands.display import open_console
from vcllm.commands.errors import Refused
from vcllm.commands.options import Key, Url
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.reviews import ReviewItem

app = typer.Typer(no_args_is_help=True, help="Decide on the answers that the Critic is not sure of.")

QUERY_LENGTH = 60
"""Characters of a question in a list."""
DECIDED_ALREADY = 409


class Word(StrEnum):
    """What a person may say an answer is."""

    CONSISTENT = "consistent"
    VIOLATING = "violating"
    REFUSAL = "refusal"
    BROKEN = "broken"


ReviewId = Annotated[
    str, typer.Argument(metavar="ID", help="A review's id, or its first eight or more hex digits; see the list.")
]
Lineage = Annotated[str | None, typer.Option(help="Only those of this lineage. Default: all.")]
Lang = Annotated[
    Language | None, typer.Option(help="Language of the words around the texts. Default: that of the terminal.")
]


@app.command("list")
def list_reviews(
    lineage: Lineage = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    after: Annotated[int | None, typer.Option(min=0, help="Go on behind an earlier list, which names this.")] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """The answers that wait, longest waiting first. Needs a key with the scope review."""
    with open_api(url, key) as api:
        page = api.get("/v1/reviews", lineage=lineage, limit=limit, after=after)
    console = open_console()
    items = [ReviewItem.model_validate(one) for one in page["data"]]
    if not items:
        console.print("No answer waits for a person." if after is None else "No more answers wait for a person.")
        return
    table = Table("id", "lineage", "kind", "cell", "score", "question")
    for item in items:
        score = "" if item.critique.score is None else f"{item.critique.score:.2f}"
        query = words.plain(_shortened(item.query))
        table.add_row(item.id[: words.ID_LENGTH], item.lineage, item.goal.kind, item.goal.cell.key, score, query)
    console.print(table)
    more = "" if page["after"] is None else f" More: vcllm review list --after {page['after']}"
    console.print(f"{page['waiting']} wait. One by one: vcllm review next.{more}", highlight=False)


@app.command("next")
def next_reviews(lineage: Lineage = None, lang: Lang = None, url: Url = None, key: Key = None) -> None:
    """Read what waits one by one and decide on each; it ends with the last, or with q. Needs the scope review."""
    with open_api(url, key) as api:
        review_all(api, open_console(), lineage, lang or words.reader_language())


@app.command()
def show(review: ReviewId, lang: Lang = None, url: Url = None, key: Key = None) -> None:
    """One answer in full, and what was decided of it. Needs the scope review."""
    with open_api(url, key) as api:
        found = api.get(f"/v1/reviews/{review}")
    console, lang = open_console(), lang or words.reader_language()
    console.print(words.shown(ReviewItem.model_validate(found["item"]), lang))
    if (decision := found["decision"]) is not None:
        outcome = words.OUTCOMES[Outcome(decision["outcome"])][lang]
        told = words.DECIDED[lang].format(outcome=outcome, by=found["by"], note=decision["note"])
        console.print(words.plain(told.rstrip()))


@app.command()
def decide(
    review: ReviewId,
    outcome: Annotated[Word, typer.Argument(help="What the answer is; `consistent` approves it for training.")],
    note: Annotated[str, typer.Option(help="Why; kept with the decision.")] = "",
    url: Url = None,
    key: Key = None,
) -> None:
    """Say what an answer is; that cannot be changed afterwards. Needs the scope review."""
    with open_api(url, key) as api:
        found = _decide(api, review, Outcome(outcome), note)
    said = words.told_decision(Outcome(outcome), found["pair"], Language.EN)
    open_console().print(said, markup=False, highlight=False)


def review_all(api: Api, console: Console, lineage: str | None, lang: Language) -> None:
    """Put one item after another to whoever sits there, each at most once."""
    num, skipped, after = 0, 0, None
    while (page := api.get("/v1/reviews", lineage=lineage, limit=1, after=after))["data"]:
        item = ReviewItem.model_validate(page["data"][0])
        console.print(words.shown(item, lang, page["waiting"]))
        letter, note = _asked(console, lang)
        if letter == words.QUIT:
            break
        after = page["after"]
        if letter == words.SKIP:
            skipped += 1
            continue
        num += _decided(api, console, item, words.LETTERS[letter], note, lang)
    told = words.DONE[lang].format(num=num, skipped=skipped)
    _say(console, words.NOTHING[lang] if after is None and not page["data"] else told)


def _decided(api: Api, console: Console, item: ReviewItem, outcome: Outcome, note: str, lang: Language) -> bool:
    """Whether the word was taken; where somebody was faster with another one, that is said, and the next one comes."""
    try:
        found = _decide(api, item.id, outcome, note)
    except Refused as refused:
        if refused.status != DECIDED_ALREADY:
            raise
        _say(console, str(refused))
        return False
    _say(console, words.told_decision(outcome, found["pair"], lang))
    return True


def _decide(api: Api, review: str, outcome: Outcome, note: str) -> dict[str, Any]:
    return dict(api.post(f"/v1/reviews/{review}", {"outcome": outcome.value, "note": note}))


def _asked(console: Console, lang: Language) -> tuple[str, str]:
    """A letter and a note; the end of the input quits."""
    _say(console, words.ASK[lang])
    while True:
        try:
            line = console.input(words.PROMPT[lang]) if sys.stdin.isatty() else input()
        except EOFError:
            return words.QUIT, ""
        letter, _, note = line.strip().partition(" ")
        if (letter := letter.lower()) in (*words.LETTERS, words.SKIP, words.QUIT):
            return letter, note.strip()
        _say(console, words.UNCLEAR[lang])


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= QUERY_LENGTH else f"{line[: QUERY_LENGTH - 1]}…"


def _say(console: Console, text: str) -> None:
    console.print(text, style="dim", markup=False, highlight=False)

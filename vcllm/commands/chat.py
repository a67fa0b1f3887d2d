"""`vcllm chat`: talk to the aligned model from the terminal."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from vcllm.commands.api import Api, open_api
from vcllm.commands.options import Key, Url
from vcllm.contracts.chat import ALIGNED_MODEL


class Tongue(StrEnum):
    """Languages of the prompts."""

    ZH = "zh"
    EN = "en"


HELLO = {
    Tongue.EN: "Ask something; an empty line ends the chat. Each question stands alone (see --turns).",
    Tongue.ZH: "请提问；空行结束对话。除非使用 --turns，每个问题都单独回答。",
}
PROMPT = {Tongue.EN: "you> ", Tongue.ZH: "你> "}


def chat(
    question: Annotated[str | None, typer.Argument(help="Ask this one question and leave.")] = None,
    lang: Annotated[
        Tongue, typer.Option(help="Language of the prompts; the model answers in that of the question.")
    ] = Tongue.EN,
    model: Annotated[str, typer.Option(help="`vc-llm` is the promoted version.")] = ALIGNED_MODEL,
    turns: Annotated[int, typer.Option(min=0, help="How many earlier turns are sent along.")] = 0,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.7,
    url: Url = None,
    key: Key = None,
) -> None:
    """Talk to the model; replies stream as they are written."""
    console = Console()
    with open_api(url, key) as api:
        if question is not None:
            _answer(api, console, [{"role": "user", "content": question}], model, temperature)
            return
        if sys.stdin.isatty():
            console.print(HELLO[lang], style="dim")
        said: list[dict[str, str]] = []
        while text := _ask(console, PROMPT[lang]):
            said.append({"role": "user", "content": text})
            reply = _answer(api, console, said, model, temperature)
            said.append({"role": "assistant", "content": reply})
            said = said[-2 * turns :] if turns else []


def _ask(console: Console, prompt: str) -> str:
    try:
        return (console.input(prompt) if sys.stdin.isatty() else input()).strip()
    except EOFError:
        return ""


def _answer(api: Api, console: Console, messages: list[dict[str, str]], model: str, temperature: float) -> str:
    reply = ""
    for piece in api.chat(messages, model, temperature=temperature):
        reply += piece
        console.out(piece, end="", highlight=False)
    console.out("")
    return reply

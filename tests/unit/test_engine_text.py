"""Text arrives whole: no half characters, nothing past a stop string, the same however tokens are cut."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.fakes import tiny_tokenizer
from tests.tiny_models import gemma_tokenizer, mistral_tokenizer
from vcllm.engine.text import TextStream

TEXTS = [
    "The river 🌊 is wide, and 人人平等。",
    "没有哪个群体比别人更高贵 👩‍👩‍👧, says everyone; naïve café.",
    "平" * 40 + "plain",
    "",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module", params=[tiny_tokenizer, mistral_tokenizer, gemma_tokenizer])
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    """Of bytes, or of characters with bytes for the unknown ones."""
    return request.param()


def pieces(tokenizer: Any, tokens: list[int], sizes: list[int], stops: list[str] | None = None) -> list[str]:
    """Push tokens in chunks of these sizes, then the rest as the last one."""
    stream, out, at = TextStream(tokenizer, stops or ()), [], 0
    for size in sizes:
        out.append(stream.push(tokens[at : at + size]))
        at += size
    return [*out, stream.push(tokens[at:], last=True)]


@pytest.mark.parametrize("text", TEXTS)
def test_one_token_at_a_time_gives_the_whole_text(any_tokenizer: Any, text: str) -> None:
    """And no piece ever holds a replacement character."""
    tokens = any_tokenizer(text, add_special_tokens=False)["input_ids"]

    out = pieces(any_tokenizer, tokens, [1] * len(tokens))

    assert "".join(out) == text
    assert not any("\ufffd" in piece for piece in out)


def test_any_cut_of_any_tokens_gives_the_same_text(tokenizer: Any) -> None:
    """Random tokens, which often are no text at all, in random pieces."""
    draw = random.Random(0)
    for _ in range(30):
        tokens = [draw.randrange(5, len(tokenizer)) for _ in range(60)]
        whole = tokenizer.decode(tokens, skip_special_tokens=True).rstrip("\ufffd")

        cut = pieces(tokenizer, tokens, [draw.randint(0, 3) for _ in range(30)])

        assert "".join(cut) == whole


def test_an_unfinished_character_at_the_end_is_dropped(tokenizer: Any) -> None:
    """The limit cut the answer in the middle of a character."""
    tokens = tokenizer("ok 🌊")["input_ids"]

    assert "".join(pieces(tokenizer, tokens[:-1], [1] * (len(tokens) - 1))) == "ok "


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_stop_string_ends_the_text_before_it(tokenizer: Any, size: int) -> None:
    """Also one that spans tokens, and whichever of several comes first."""
    tokens = tokenizer("one two STOP three 停 four")["input_ids"]

    out = pieces(tokenizer, tokens, [size] * (len(tokens) // size), ["停", " STOP"])

    assert "".join(out) == "one two"


def test_what_looks_like_a_stop_string_is_given_back(tokenizer: Any) -> None:
    """Held while it may become one, handed over when it does not, or at the end."""
    tokens = tokenizer("a STOAT and a ST")["input_ids"]

    out = pieces(tokenizer, tokens, [1] * len(tokens), ["STOP"])

    assert "".join(out) == "a STOAT and a ST"


def test_special_tokens_are_not_text(tokenizer: Any) -> None:
    """A model may write them; nobody reads them."""
    tokens = tokenizer("<|user|>hello<|assistant|>")["input_ids"]

    assert "".join(pieces(tokenizer, tokens, [])) == "hello"

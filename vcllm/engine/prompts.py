"""How a conversation becomes tokens and which tokens end an answer: one way for training, serving, probes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.problems import BadRequest

END_OF_TEXT = ("<|end_of_text|>", "<|endoftext|>")
"""No chat template shows these; where they are special tokens they end an answer, configured or not."""


ANSWER = "\ue000answer\ue001"
"""Stands for an answer where a template is asked what it writes around one."""

Turns = Sequence[Mapping[str, Any]]
"""Messages as templates take them, `{"role", "content"}`."""


def prompt_text(tokenizer: Any, messages: Sequence[ChatMessage]) -> str:
    """The conversation up to where the assistant speaks. Reasoning models are asked to answer at once."""
    turns = [{"role": m.role, "content": without_special_tokens(tokenizer, m.content)} for m in messages]
    return render(tokenizer, turns, add_generation_prompt=True)


def render(tokenizer: Any, turns: Turns, *, add_generation_prompt: bool) -> str:
    """The tokenizer's chat template; BadRequest where there is none or it refuses the roles."""
    return render_all(tokenizer, [turns], add_generation_prompt=add_generation_prompt)[0]


def render_all(tokenizer: Any, conversations: Sequence[Turns], *, add_generation_prompt: bool = False) -> list[str]:
    """The same for many conversations, which is faster than one by one."""
    if tokenizer.chat_template is None:
        raise BadRequest("This model has no chat template. Train or load one that has.", code="no_chat_template")
    if not conversations:
        return []
    try:
        texts = tokenizer.apply_chat_template(
            [list(turns) for turns in conversations],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,
        )
    except Exception as error:  # a template refuses by raising from inside Jinja
        raise BadRequest(f"The model's chat template refuses these messages: {error}", param="messages") from error
    return [str(text) for text in texts]


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered templates, which already hold every special token they need."""
    return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])


def without_special_tokens(tokenizer: Any, text: str) -> str:
    """A user's text must not be able to end its own turn: spellings of special tokens are blanked."""
    return blank_special_tokens(tokenizer)(text)


def blank_special_tokens(tokenizer: Any) -> Callable[[str], str]:
    """`without_special_tokens` for many texts: the tokenizer is asked once."""
    specials = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not specials:
        return str
    pattern = re.compile("|".join(re.escape(special) for special in specials))
    return lambda text: pattern.sub(" ", text)


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: of the configuration, of the tokenizer, and of the chat template."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(number for number in listed if number is not None) | tokenizer_stop_ids(tokenizer)


def tokenizer_stop_ids(tokenizer: Any) -> frozenset[int]:
    """Those of them that are known without the model."""
    specials = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = [specials.get(spelling) for spelling in END_OF_TEXT]
    known = frozenset(number for number in [tokenizer.eos_token_id, *named] if number is not None)
    return known | end_of_turn_ids(tokenizer)


def end_of_turn_ids(tokenizer: Any) -> frozenset[int]:
    """The token that the chat template writes behind an answer, found by rendering one; empty: it writes none.

    Often not the tokenizer's `eos_token`. Training insists on learning it, and generation stops at it.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = render(tokenizer, turns, add_generation_prompt=False)
    except BadRequest:  # not made for conversations; whoever starts one is told so
        return frozenset()
    end = first_end(tokenizer, text.rpartition(ANSWER)[2])
    return frozenset() if end is None else frozenset([end[0]])


def first_end(tokenizer: Any, behind: str) -> tuple[int, int] | None:
    """In what a template writes behind an answer: the token that ends the turn, and where it stops."""
    encoded = tokenizer(behind, add_special_tokens=False, return_offsets_mapping=True)
    added = tokenizer.added_tokens_decoder
    for token, (_, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if token == tokenizer.eos_token_id or (token in added and str(added[token]).strip()):
            return int(token), int(stop)
    return None

"""How a conversation becomes tokens and which tokens end an answer: one way for training, serving, probes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.problems import BadRequest

END_OF_TURN = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end_of_text|>", "<|endoftext|>")
"""Those a tokenizer knows as special tokens end an answer even where its configuration forgot them."""


def prompt_text(tokenizer: Any, messages: Sequence[ChatMessage]) -> str:
    """The conversation up to where the assistant speaks. Reasoning models are asked to answer at once."""
    turns = [{"role": m.role, "content": without_special_tokens(tokenizer, m.content)} for m in messages]
    return render(tokenizer, turns, add_generation_prompt=True)


def render(tokenizer: Any, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """The tokenizer's chat template; BadRequest where there is none or it refuses the roles."""
    if tokenizer.chat_template is None:
        raise BadRequest("This model has no chat template. Train or load one that has.", code="no_chat_template")
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
        )
    except Exception as error:  # a template refuses by raising from inside Jinja
        raise BadRequest(f"The model's chat template refuses these messages: {error}", param="messages") from error
    return str(text)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered templates, which already hold every special token they need."""
    return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])


def without_special_tokens(tokenizer: Any, text: str) -> str:
    """A user's text must not be able to end its own turn: spellings of special tokens are blanked."""
    specials = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not any(special in text for special in specials):
        return text
    return re.sub("|".join(re.escape(special) for special in specials), " ", text)


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    specials = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = [specials.get(spelling) for spelling in END_OF_TURN]
    return frozenset(number for number in [*listed, tokenizer.eos_token_id, *named] if number is not None)

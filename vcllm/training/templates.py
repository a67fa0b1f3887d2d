"""A chat template for base models that come without one, so that they can be taught to answer.

It is written into the version like any other template: whoever loads the version speaks to it in the same way.
"""

from __future__ import annotations

from typing import Any

from vcllm.contracts.problems import BadRequest

PLAIN = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}:\n{{ message['content'] | trim }}"
    "{{ eos_token + '\n' if message['role'] == 'assistant' else '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""Words instead of role tokens, which an untrained embedding would have to learn first.

A name and its text are on two lines: behind a space, the first word of an answer would merge with it.
"""


def give_template(tokenizer: Any) -> None:
    """`PLAIN`, where the tokenizer has no template of its own; BadRequest when it has no end of text either."""
    if tokenizer.chat_template is not None:
        return
    if tokenizer.eos_token is None:
        raise BadRequest("The base has neither a chat template nor an end-of-text token: it could not learn to stop.")
    tokenizer.chat_template = ("{{ bos_token }}" if _begins_texts(tokenizer) else "") + PLAIN


def _begins_texts(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts its first token before every text."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id

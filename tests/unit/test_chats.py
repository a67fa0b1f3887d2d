"""Which tokens of a conversation are learned, for every kind of tokenizer and chat template there is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.tiny_models import CHATML, FAMILIES
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.problems import BadRequest
from vcllm.engine.prompts import encode, end_of_turn_ids, prompt_text, render
from vcllm.training.chats import (
    Chat,
    encode_chat,
    encode_chats,
    encode_documents,
    encode_preference,
    encode_preferences,
    outline_of,
    show_mask,
)
from vcllm.training.templates import give_template

MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def turns(*contents: str, system: str = "") -> list[dict[str, str]]:
    """User and assistant by turns."""
    roles = ["user", "assistant"] * len(contents)
    said = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *said] if system else said


CHATS = {
    "english": turns("Who may speak?", "Everyone may speak."),
    "chinese": turns("谁可以发言？", "每个人都可以发言，没有例外 😀。"),
    "spaces": turns("  Who?\n", " Say what you know.\n\nExplain it. "),
    "turns": turns("Who may speak?", "Everyone.", "谁？", "每个人。", "And now?", "Fair people differ on this."),
    "system": turns("Who may speak?", "Everyone.", "谁？", "每个人。", system="Be fair. 公平。"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(name: str, family_folder: Callable[[str], Path]) -> Any:
    return opened(family_folder(name))


@pytest.fixture
def qwen(family_folder: Callable[[str], Path]) -> Any:
    return opened(family_folder("qwen2"))


def opened(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    give_template(tokenizer)
    return tokenizer


def chat_of(name: str, kind: str) -> list[dict[str, str]]:
    """Without its system turn for a family that takes none."""
    return [turn for turn in CHATS[kind] if turn["role"] != "system" or FAMILIES[name].system == "taken"]


def answers(chat: Chat) -> list[list[int]]:
    """Runs of learned tokens."""
    runs: list[list[int]] = []
    before = False
    for token, learned in zip(*chat, strict=True):
        if learned and not before:
            runs.append([])
        if learned:
            runs[-1].append(token)
        before = learned
    return runs


@pytest.mark.parametrize("kind", CHATS)
def test_what_is_learned_are_the_answers_and_their_ends(name: str, tokenizer: Any, kind: str) -> None:
    """Every assistant turn, to the last letter, then the template's own end of turn, and nothing else."""
    messages = chat_of(name, kind)
    said = [turn["content"] for turn in messages if turn["role"] == "assistant"]

    chat = encode_chat(tokenizer, messages, 512)

    assert chat is not None
    learned = [tokenizer.decode(run) for run in answers(chat)]
    end = FAMILIES[name].end_of_turn
    assert all(text.endswith(end) for text in learned)
    assert [text.removesuffix(end).strip() for text in learned] == [text.strip() for text in said]
    assert all(run[-1] in end_of_turn_ids(tokenizer) for run in answers(chat))


@pytest.mark.parametrize("kind", CHATS)
def test_the_tokens_are_those_of_the_rendered_text(name: str, tokenizer: Any, kind: str) -> None:
    """Nothing is glued together from parts."""
    messages = chat_of(name, kind)

    chat = encode_chat(tokenizer, messages, 512)

    assert chat is not None
    assert [chat.ids] == encode(tokenizer, [render(tokenizer, messages, add_generation_prompt=False)])


@pytest.mark.parametrize("kind", CHATS)
def test_before_the_last_answer_stands_what_a_server_feeds_the_model(name: str, tokenizer: Any, kind: str) -> None:
    """Token for token: trained and served alike."""
    messages = chat_of(name, kind)
    [prompt] = encode(tokenizer, [prompt_text(tokenizer, [ChatMessage.model_validate(m) for m in messages[:-1]])])

    chat = encode_chat(tokenizer, messages, 512)

    assert chat is not None
    assert chat.ids[: len(prompt)] == prompt
    assert (chat.learned[len(prompt) - 1], chat.learned[len(prompt)]) == (False, True)


def test_the_end_of_turn_is_the_templates_not_the_tokenizers(name: str, tokenizer: Any) -> None:
    """Found by rendering, for families where the two differ as for those where they do not."""
    assert end_of_turn_ids(tokenizer) == {tokenizer.convert_tokens_to_ids(FAMILIES[name].end_of_turn)}


@pytest.mark.parametrize("kind", CHATS)
def test_both_answers_of_a_pair_follow_the_very_same_tokens(name: str, tokenizer: Any, kind: str) -> None:
    """Prefix and answer make up the rendered conversation up to its end of turn."""
    prompt = chat_of(name, kind)[:-1]
    whole = [
        encode_chat(tokenizer, [*prompt, {"role": "assistant", "content": content}], 512)
        for content in ("Everyone.", "Every man, 男人。")
    ]

    pair = encode_preference(tokenizer, prompt, "Everyone.", "Every man, 男人。", 512)

    assert pair is not None
    for chat, answer in zip(whole, (pair.chosen, pair.rejected), strict=True):
        assert chat is not None
        assert pair.prefix + answer == chat.ids[: len(pair.prefix) + len(answer)]
        assert answer == answers(chat)[-1]


def test_a_family_that_knows_no_system_turn_says_so(family_folder: Callable[[str], Path]) -> None:
    """The template's own words reach the user."""
    with pytest.raises(BadRequest, match="System role not supported"):
        encode_chat(opened(family_folder("gemma")), CHATS["system"], 512)


def test_long_rows_are_cut_and_counted_and_rows_without_an_answer_are_dropped(tokenizer: Any) -> None:
    """Half an answer is still worth learning; a prompt alone is not."""
    chats = [turns("Hi", "Yes."), turns("Hi", "word " * 200), turns("word " * 200, "Yes.")]

    encoded = encode_chats(tokenizer, chats, 64)

    assert (encoded.num_cut, encoded.num_dropped) == (2, 1)
    assert encoded.rows[2] is None
    assert encoded.rows[1] is not None
    assert len(encoded.rows[1].ids) == 64


def test_pairs_are_cut_and_dropped_alike(tokenizer: Any) -> None:
    """The longer of the two answers decides whether a pair counts as cut."""
    long = "word " * 200
    rows = [(turns("Hi"), "Yes.", "No."), (turns("Hi"), "Yes.", long), (turns(long), "Yes.", "No.")]

    encoded = encode_preferences(tokenizer, rows, 64)

    assert (encoded.num_cut, encoded.num_dropped) == (2, 1)
    assert encoded.rows[1] is not None
    assert len(encoded.rows[1].prefix + encoded.rows[1].rejected) == 64


@pytest.mark.parametrize("kind", ["english", "chinese", "turns", "system"])
def test_marks_in_a_template_say_the_same_as_its_outline(qwen: Any, kind: str) -> None:
    """`{% generation %}` is believed where a template has it."""
    qwen.chat_template = MARKED
    marked = encode_chat(qwen, CHATS[kind], 512)
    qwen.chat_template = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")

    assert marked == encode_chat(qwen, CHATS[kind], 512)


def test_marks_that_leave_the_end_out_are_refused(qwen: Any) -> None:
    """The model would never stop talking."""
    qwen.chat_template = MARKED.replace(
        "{{ message.content + '<|im_end|>' }}{% endgeneration %}",
        "{{ message.content }}{% endgeneration %}{{ '<|im_end|>' }}",
    )

    with pytest.raises(BadRequest, match="never learn to stop. Check the tokenizer's chat template"):
        encode_chat(qwen, CHATS["english"], 512)


def test_a_template_without_an_end_of_turn_is_refused(qwen: Any) -> None:
    """Before any time is spent."""
    qwen.chat_template = CHATML.replace("<|im_end|>", "")

    with pytest.raises(BadRequest, match="never learn to stop"):
        encode_chat(qwen, CHATS["turns"], 512)


def test_a_length_that_cuts_every_end_is_refused(qwen: Any) -> None:
    """The sentence names what to change."""
    with pytest.raises(BadRequest, match="raise max_length"):
        encode_chats(qwen, [turns("Who?", "word " * 100)] * 3, 64)


@pytest.mark.parametrize(("template", "sentence"), [
    (CHATML.replace("message.content", "(message.content | upper)"), "rewrites the messages of conversation 1"),
    (CHATML.replace("assistant\n", "assistant\n<think>"), "asks for an answer with"),
    (CHATML.replace("message.content", "('' if loop.last else message.content)"), "leaves answers out"),
], ids=["rewritten", "prompted-differently", "left-out"])  # fmt: skip
def test_templates_whose_answers_cannot_be_marked_off_are_refused(qwen: Any, template: str, sentence: str) -> None:
    """Guessing would teach the wrong words."""
    qwen.chat_template = template

    with pytest.raises(BadRequest, match=sentence):
        encode_chat(qwen, CHATS["english"], 512)


def test_a_conversation_without_an_answer_is_refused_by_its_number(qwen: Any) -> None:
    """It is a mistake in the data, not a row to drop."""
    with pytest.raises(BadRequest, match="Conversation 2 has no assistant turn"):
        encode_chats(qwen, [CHATS["english"], turns("Hello?")], 512)


def test_the_words_of_a_message_cannot_end_its_turn(qwen: Any) -> None:
    """Spellings of special tokens, and of our own marks, are blanked as they are when serving."""
    chat = encode_chat(qwen, turns("a<|im_end|>b \ue0001\ue001", "Yes<|im_end|>."), 512)

    assert chat is not None
    assert qwen.decode(answers(chat)[0]) == "Yes .<|im_end|>"
    assert "a b" in qwen.decode(chat.ids)


def test_a_plain_template_is_given_to_those_without(family_folder: Callable[[str], Path]) -> None:
    """Only to those; where the tokenizer begins every text with a token, so does the template."""
    plain, own, beginning = (AutoTokenizer.from_pretrained(family_folder(n)) for n in ("gpt2", "qwen2", "gemma"))
    beginning.chat_template = None
    for tokenizer in (plain, own, beginning):
        give_template(tokenizer)

    assert own.chat_template == CHATML
    assert render(plain, CHATS["english"], add_generation_prompt=False) == (
        "User:\nWho may speak?\n\nAssistant:\nEveryone may speak.<|endoftext|>\n"
    )
    assert render(beginning, turns("Hi"), add_generation_prompt=True) == "<bos>User:\nHi\n\nAssistant:\n"


def test_documents_begin_and_end_as_the_model_knows_texts(tokenizer: Any) -> None:
    """The tokenizer's first token, where it puts one, and its end of text once; conversations are the template's."""
    encoded = encode_documents(tokenizer, [{"text": "A fair river."}, {"messages": CHATS["english"]}], 512)
    text, chat = encoded.kept

    assert text.ids == [*tokenizer("A fair river.")["input_ids"], tokenizer.eos_token_id]
    assert [chat.ids] == encode(tokenizer, [render(tokenizer, CHATS["english"], add_generation_prompt=False)])
    assert text.learned == [False] + [True] * (len(text.ids) - 1)


def test_an_outline_finds_messages_a_template_moves(qwen: Any) -> None:
    """Some fold the system message into the last user turn."""
    qwen.chat_template = (
        "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}<|im_start|>"
        "{% if loop.revindex == 2 %}{{ messages[0].content }} {% endif %}{{ m.content }}<|im_end|>"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    chat = encode_chat(qwen, CHATS["system"], 512)

    assert outline_of(qwen, ["system", "user", "assistant", "user", "assistant"]).order == [1, 2, 0, 3, 4]
    assert chat is not None
    assert [qwen.decode(run) for run in answers(chat)] == ["Everyone.<|im_end|>", "每个人。<|im_end|>"]


def test_the_mask_can_be_read(qwen: Any) -> None:
    """Learned parts in brackets, special tokens as they are."""
    chat = encode_chat(qwen, CHATS["chinese"], 512)

    assert chat is not None
    assert show_mask(qwen, *chat) == (
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n谁可以发言？<|im_end|>\n<|im_start|>assistant\n"
        "⟦每个人都可以发言，没有例外 😀。<|im_end|>⟧\n"
    )


def test_the_mask_of_every_family_reads_as_its_text(tokenizer: Any) -> None:
    """Without the brackets it is the row, decoded."""
    chat = encode_chat(tokenizer, CHATS["turns"], 512)

    assert chat is not None
    shown = show_mask(tokenizer, *chat)
    assert shown.count("⟦") == 3
    assert shown.replace("⟦", "").replace("⟧", "") == tokenizer.decode(chat.ids)


def test_a_thousand_rows_are_encoded_in_about_half_a_second(qwen: Any) -> None:
    """A dataset must not cost more to encode than to train on."""
    rows = [turns(f"Who may speak, {n}?", "Everyone may speak. " * 4, "谁？", "每个人。" * 8) for n in range(1000)]
    started = time.process_time()
    encoded = encode_chats(qwen, rows, 512)

    assert encoded.num_cut == 0
    assert time.process_time() - started < 2  # half a second; one call of the template per answer would take more

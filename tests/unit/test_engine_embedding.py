"""Where texts lie, by whatever way through the model: the last hidden states of its own code, and their mean."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fakes import tiny_causal, tiny_tokenizer
from tests.unit.test_engine_decoder import LEFT, TAKEN, adapted, model_of, rows_of
from tests.unit.test_engine_native import TAKEN as COMPILED
from tests.unit.test_engine_native import forward_by
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.problems import BadRequest
from vcllm.engine.cache import SlotCache
from vcllm.engine.embedding import LONGEST_PIECE, Embedding, Sums, add_states, pieces_of
from vcllm.engine.forward import Forward, ModelForward, body_of
from vcllm.engine.load import Loaded
from vcllm.engine.local import LocalEngine
from vcllm.engine.native import library

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft 0.21


@torch.inference_mode()
def expected_of(model: Any, rows: list[Tensor]) -> list[Tensor]:
    """The last hidden states by the model's own code, one row at a time."""
    return [body_of(model)(row[None], use_cache=False).last_hidden_state[0] for row in rows]


@torch.inference_mode()
def found_by(forward: Forward, rows: list[Tensor]) -> list[Tensor]:
    """The same by a way through the model: padded rows at once, and their last token in a pass of its own."""
    cache, lengths = SlotCache(), torch.tensor([len(row) for row in rows])
    cache.reserve(len(rows), int(lengths.max()))
    ids_BT = torch.nn.utils.rnn.pad_sequence([row[:-1] for row in rows], batch_first=True)
    place_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    cache.aim(place_BT, ids_BT.shape[1])
    first_BTE = forward.hidden(cache, ids_BT, place_BT, place_BT)
    last_B1 = lengths[:, None] - 1
    cache.aim(last_B1, int(lengths.max()))
    ids_B1 = torch.stack([row[-1:] for row in rows])
    last_B1E = forward.hidden(cache, ids_B1, last_B1, torch.zeros_like(last_B1))
    return [torch.cat([first_BTE[at, : len(row) - 1], last_B1E[at]]) for at, row in enumerate(rows)]


def assert_near(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("family", [*TAKEN, *LEFT])
def test_hidden_states_are_those_of_the_models_own_code(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By that code over our cache; and where there is a faster way, by that."""
    attention = "eager" if family == "gemma2" else "sdpa"
    model, rows = model_of((TAKEN | LEFT)[family], attn_implementation=attention), rows_of()
    expected = expected_of(model, rows)

    assert_near(found_by(ModelForward(model), rows), expected)
    assert_near(found_by(forward_by("torch", model, monkeypatch), rows), expected)


@pytest.mark.parametrize("family", COMPILED)
@pytest.mark.parametrize("level", library.levels())
def test_hidden_states_of_the_compiled_pass_are_the_same(
    level: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it knows logits only; those it gives afterwards, too."""
    model, rows = model_of(COMPILED[family]), rows_of()
    expected, logits = expected_of(model, rows), model(rows[0][None]).logits[0, -1]
    forward = forward_by(level, model, monkeypatch)

    assert_near(found_by(forward, rows), expected)
    cache, place_1T = SlotCache(), torch.arange(len(rows[0]))[None]
    cache.reserve(1, len(rows[0]))
    cache.aim(place_1T, len(rows[0]))
    assert_near([forward(cache, rows[0][None], place_1T, place_1T[:, -1:])[0, 0]], [logits])


def test_an_adapter_moves_the_hidden_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the adapted model, and not of its base."""
    base, rows = model_of(TAKEN["qwen3"]), rows_of()
    plain = expected_of(base, rows)
    model = adapted(base, target_modules="all-linear")
    expected = expected_of(model, rows)

    assert (expected[0] - plain[0]).abs().max() > 0.01
    assert_near(found_by(ModelForward(model), rows), expected)
    assert_near(found_by(forward_by("torch", model, monkeypatch), rows), expected)


def test_both_ways_of_reading_give_the_same_vectors() -> None:
    """In passes of an engine and in one of the model itself; no padding, no order and no piece makes a difference."""
    tokenizer = tiny_tokenizer()
    model = tiny_causal(tokenizer)
    texts = ["speak " * length for length in (40, 1, 200, 7)] + ["谁可以发言？", "水" * LONGEST_PIECE]
    pieces, sums = pieces_of(tokenizer, texts, 512), Sums()
    assert len(pieces) > len(texts)
    embedding = Embedding(pieces)

    deque(embedding.passes(ModelForward(model), model.device, 400), maxlen=0)
    for piece in reversed(pieces):
        add_states(sums, model, [piece])

    for vector, other in zip(embedding.sums.vectors(), sums.vectors(), strict=True):
        assert vector == pytest.approx(other, abs=1e-5)
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-4)


def test_pieces_fit_the_model_and_leave_nothing_out() -> None:
    """A text of many tokens is cut; spellings of special tokens are blanked; a text without any is refused."""
    tokenizer = tiny_tokenizer()
    text = "speak up <|end|> now " * 20

    pieces = pieces_of(tokenizer, ["speak", text], 16)

    assert max(len(ids) for _, ids in pieces) == 16
    whole = [token for number, ids in pieces if number == 1 for token in ids]
    assert tokenizer.decode(whole) == text.replace("<|end|>", " ")
    with pytest.raises(BadRequest, match="Text 1 "):
        pieces_of(tokenizer, ["speak", ""], 16)


def test_an_engine_places_texts_while_it_scores_others() -> None:
    """Both are right, whoever takes turns with whom."""
    tokenizer = tiny_tokenizer()
    engine = LocalEngine(Loaded(tiny_causal(tokenizer), tokenizer, 512), own=True)
    texts = [f"speak {n} " * 30 for n in range(60)]
    conversations = [[ChatMessage(role="user", content=text)] for text in texts]

    async def both() -> tuple[Any, Any]:
        return await asyncio.gather(engine.embed(texts), engine.score(conversations, [["Yes.", "No."]] * 60))

    vectors, scores = asyncio.run(both())
    alone, score = (
        asyncio.run(engine.embed(texts[7:8])),
        asyncio.run(engine.score(conversations[7:8], [["Yes.", "No."]])),
    )
    engine.close()

    assert vectors[7] == pytest.approx(alone[0], abs=1e-5)
    assert scores[7] == pytest.approx(score[0], abs=1e-3)

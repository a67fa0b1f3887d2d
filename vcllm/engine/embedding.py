"""Where texts lie: the mean over a text's tokens of the model's last hidden states, of unit length.

A long text is read in pieces, each by itself, so that no pass is larger than others wait for; all its tokens count
alike. Does not know what vectors are compared for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vcllm.contracts.problems import BadRequest
from vcllm.engine.cache import SlotCache
from vcllm.engine.classes import padded
from vcllm.engine.forward import Forward, body_of
from vcllm.engine.prefix import PrefixCache
from vcllm.engine.prompts import blank_special_tokens, encode
from vcllm.engine.scoring import SCORED_PER_PASS, by_length

# Shapes: B pieces, T tokens, E hidden size.

LONGEST_PIECE = 512
"""Tokens."""

DECIMALS = 6
"""As exact as float32, and half as long to write down."""

Piece = tuple[int, list[int]]
"""Which text it is of, and its tokens; there are some."""


def pieces_of(tokenizer: Any, texts: Sequence[str], context: int) -> list[Piece]:
    """What has to be read for the texts; BadRequest for one without tokens. context: most tokens a model can place."""
    blanked = blank_special_tokens(tokenizer)
    pieces, size = [], min(context, LONGEST_PIECE)
    for text, ids in enumerate(encode(tokenizer, [blanked(text) for text in texts])):
        if not ids:
            raise BadRequest(f"Text {text} has nothing to read. Leave it out.", param="texts")
        pieces += [(text, ids[start : start + size]) for start in range(0, len(ids), size)]
    return pieces


class Embedding:
    """A `Reading` for the places of texts."""

    def __init__(self, pieces: Sequence[Piece], owner: Any = None) -> None:
        self.owner = owner
        self.cancelled = False
        self.sums = Sums()
        """Complete when `passes` ends."""
        self._pieces = pieces

    @torch.inference_mode()
    def passes(
        self, forward: Forward, device: torch.device, vocab_size: int, prefixes: PrefixCache | None = None
    ) -> Iterator[None]:
        """Do the work. A beginning that others have left is of no use: every token's state is wanted."""
        for rows in by_length([len(ids) for _, ids in self._pieces], max_tokens=SCORED_PER_PASS):
            here = [self._pieces[row] for row in rows]
            ids_BT, seen_BT = padded([ids for _, ids in here], device)
            place_BT = torch.arange(ids_BT.shape[1], device=device).expand_as(ids_BT)
            cache = SlotCache()
            cache.reserve(*ids_BT.shape)
            cache.aim(place_BT, ids_BT.shape[1], slice(ids_BT.shape[1]))
            self.sums.add(here, forward.hidden(cache, ids_BT, place_BT, place_BT), seen_BT)
            yield


@torch.inference_mode()
def add_states(sums: Sums, model: Any, pieces: Sequence[Piece]) -> None:
    """Read pieces with a model that has no engine, in one pass."""
    ids_BT, seen_BT = padded([ids for _, ids in pieces], model.device, model.config.get_text_config().pad_token_id)
    states_BTE = body_of(model)(input_ids=ids_BT, attention_mask=seen_BT, use_cache=False).last_hidden_state
    sums.add(pieces, states_BTE, seen_BT)


class Sums:
    """Of the hidden states of every text, over the pieces that were read so far."""

    def __init__(self) -> None:
        self._by_text: dict[int, Tensor] = {}

    def add(self, pieces: Sequence[Piece], states_BTE: Tensor, seen_BT: Tensor) -> None:
        """seen_BT: 1 at tokens, 0 at padding."""
        sums_BE = states_BTE.float().masked_fill(seen_BT[..., None] == 0, 0).sum(1).cpu()
        for (text, _), sum_E in zip(pieces, sums_BE, strict=True):
            self._by_text[text] = self._by_text.get(text, 0) + sum_E

    def vectors(self) -> list[list[float]]:
        """By text, of unit length: a mean points where its sum does."""
        if not self._by_text:
            return []
        sums_NE = torch.stack([self._by_text[text] for text in sorted(self._by_text)])
        vectors: list[list[float]] = F.normalize(sums_NE, dim=-1).double().round(decimals=DECIMALS).tolist()
        return vectors

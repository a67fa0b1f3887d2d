"""The local engine: one thread steps the batch, any number of asyncio tasks wait for their answers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Sequence

from vcllm.contracts.chat import Sampling
from vcllm.contracts.problems import BadRequest, Unavailable
from vcllm.engine.choice import forward_of
from vcllm.engine.embedding import Embedding, pieces_of
from vcllm.engine.engine import Batch
from vcllm.engine.load import Loaded
from vcllm.engine.prefill import Limits
from vcllm.engine.prompts import encode, prompt_text, stop_ids
from vcllm.engine.protocol import Answers, Conversation
from vcllm.engine.scoring import Item, Reading, Scoring
from vcllm.engine.sequence import Request, new_request
from vcllm.engine.stream import LocalGeneration, ReadingDone, fail, gather, hand_over, report

log = logging.getLogger(__name__)

UNLOADED = "This model version has been unloaded. Ask again."
REST_AFTER_S = 10.0
"""An idle engine keeps the memory of its cache this long."""
ENCODED_HERE = 4000
"""Characters up to which a conversation is encoded in the event loop; more would hold up the others."""


class LocalEngine:
    """One loaded model behind the `Engine` protocol."""

    def __init__(
        self, loaded: Loaded, limits: Limits | None = None, *, default_max_tokens: int = 512, own: bool = False
    ) -> None:
        """own: nothing else uses the model from now on, so full weights may be moved to a faster layout."""
        self.loaded = loaded
        self.limits = limits or Limits()
        self.default_max_tokens = default_max_tokens
        forward = forward_of(loaded.model, own=own and loaded.base is None)
        self.batch = Batch(loaded.model, stop_ids(loaded.model, loaded.tokenizer), self.limits, forward=forward)
        """Touched by the engine's thread only; others may read its counts."""
        self._inbox: list[Request | Reading] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def generate(self, conversation: Conversation, sampling: Sampling, n: int = 1) -> LocalGeneration:
        """Begin n answers, which the caller must `cancel` in the end; BadRequest when they cannot fit."""
        [generation] = await self._begin([conversation], sampling, n, eager=True)
        return generation

    async def complete(self, conversations: Sequence[Conversation], sampling: Sampling, n: int = 1) -> list[Answers]:
        """Whole answers to many conversations, in order; number i is seeded with `sampling.seed + i`."""
        generations = await self._begin(conversations, sampling, n, eager=False)
        try:
            return [await gather(generation, n) for generation in generations]
        finally:
            for generation in generations:
                generation.cancel()

    async def score(
        self, conversations: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Summed log-probability of each conversation's continuations, as the assistant's next words."""
        items = await asyncio.to_thread(self._items, conversations, continuations)
        done = ReadingDone()
        scoring = Scoring([item for own in items for item in own], owner=done)
        await self._read(scoring, done)
        scores = iter(scoring.scores)
        return [[next(scores) for _ in own] for own in items]

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Of each text the mean over its tokens of the model's last hidden states, of unit length."""
        pieces = await asyncio.to_thread(pieces_of, self.loaded.tokenizer, texts, self.loaded.context)
        done = ReadingDone()
        embedding = Embedding(pieces, owner=done)
        await self._read(embedding, done)
        return await asyncio.to_thread(embedding.sums.vectors)

    @property
    def alive(self) -> bool:
        """False: its thread has died and nothing it was asked will ever be answered."""
        return self._closed or self._thread.is_alive()

    def close(self) -> None:
        """Stop after the step under way; whatever still runs fails."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    async def _begin(
        self, conversations: Sequence[Conversation], sampling: Sampling, n: int, *, eager: bool
    ) -> list[LocalGeneration]:
        self._check_bias(sampling)
        generations = []
        for i, prompt in enumerate(await self._prompts(conversations)):
            generation = LocalGeneration(self.loaded.tokenizer, sampling, n, eager=eager)
            generation.request = new_request(
                prompt,
                self._max_tokens(len(prompt), n, sampling.max_tokens),
                seed=secrets.randbits(63) if sampling.seed is None else sampling.seed + i,
                n=n,
                urgent=len(conversations) == 1,
                owner=generation,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                bias=sampling.logit_bias,
                logprobs=sampling.logprobs,
            )
            generations.append(generation)
        self._submit([generation.request for generation in generations])
        return generations

    async def _prompts(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        size = sum(len(message.content) for conversation in conversations for message in conversation)
        if size <= ENCODED_HERE:
            return self._encode(conversations)
        return await asyncio.to_thread(self._encode, conversations)

    def _encode(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        tokenizer = self.loaded.tokenizer
        return encode(tokenizer, [prompt_text(tokenizer, conversation) for conversation in conversations])

    def _items(self, conversations: Sequence[Conversation], continuations: Sequence[Sequence[str]]) -> list[list[Item]]:
        heads = self._encode(conversations)
        tails = [encode(self.loaded.tokenizer, each) if each else [] for each in continuations]
        items = [[(head, tail) for tail in own] for head, own in zip(heads, tails, strict=True)]
        longest = max((len(head) + len(tail) for own in items for head, tail in own), default=0)
        if longest > self.loaded.context:
            raise BadRequest(
                f"A conversation and its continuation have {longest} tokens, but this model takes "
                f"{self.loaded.context}. Shorten it.",
                param="messages",
                code="context_length_exceeded",
            )
        return items

    def _check_bias(self, sampling: Sampling) -> None:
        size = self.loaded.model.config.get_text_config().vocab_size
        unknown = sorted(token for token in sampling.logit_bias if not 0 <= token < size)
        if unknown:
            raise BadRequest(
                f"logit_bias names token {unknown[0]}, but this model's tokens are 0 to {size - 1}. Leave it out.",
                param="logit_bias",
            )

    def _max_tokens(self, num_prompt_tokens: int, n: int, asked: int | None) -> int:
        """What was asked for, which must fit; the default is cut to what fits."""
        if n > self.limits.max_rows:
            raise BadRequest(f"At most {self.limits.max_rows} answers are written at a time.", param="n")
        limit, wanted = min(self.loaded.context, self.limits.max_tokens // n), asked or 1
        if num_prompt_tokens + wanted > limit:
            raise BadRequest(
                f"The messages have {num_prompt_tokens} tokens and {wanted} more are asked for, but this "
                f"model takes {limit} together. Shorten the messages or lower max_tokens.",
                param="messages",
                code="context_length_exceeded",
            )
        return asked or min(self.default_max_tokens, limit - num_prompt_tokens)

    async def _read(self, reading: Reading, done: ReadingDone) -> None:
        self._submit([reading])
        try:
            await done.wait()
        finally:
            reading.cancelled = True

    def _submit(self, work: Sequence[Request | Reading]) -> None:
        with self._wake:
            if self._closed:
                raise Unavailable(UNLOADED)
            self._inbox.extend(work)
            self._wake.notify()

    def _run(self) -> None:
        """The engine's thread."""
        while self._collect():
            try:
                hand_over(self.batch.step())
                report(self.batch.take_scored())
            except Exception:
                log.exception("A step of the engine failed; the requests in it are given up.")
                fail(self.batch.clear(), Unavailable("The model failed on this request. Try again."))
        fail([*self.batch.clear(), *self._inbox], Unavailable(UNLOADED))

    def _collect(self) -> bool:
        """Take in what has arrived; sleep while there is nothing to do. False: closed."""
        with self._wake:
            while not (self._inbox or self._closed) and self.batch.idle:
                if not self._wake.wait(REST_AFTER_S):
                    self.batch.rest()
            for work in self._inbox:
                self.batch.add(work)
            self._inbox.clear()
            return not self._closed

"""Judging by probabilities against judging by writing: the same model, engine and prompts, in one run.

    python -m benchmarks.critic               `make bench-critic`

Ours is the judge of `services.critic`: a verdict and a score for every criterion of the shipped rubric, read as
the probabilities of lines. The other side writes a verdict of so many tokens, which is what a JSON object with the
same content takes (16, tersely), one with a reason for each criterion (128), or one after some thought (512): once
with the same engine, which reads the rubric once too, and once with `generate` of transformers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from transformers import Qwen3ForCausalLM

from benchmarks.rows import DOCUMENT, RESULTS, Row, fill, paired_row, table, write_results
from benchmarks.training_data import VOCABULARY, configuration, exchanges
from services.critic.form import Form, forms
from services.critic.judge import Judge
from vcllm.charter import load_charter
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage, Sampling
from vcllm.contracts.critiques import CritiqueItem
from vcllm.engine.load import Loaded
from vcllm.engine.local import LocalEngine
from vcllm.engine.prompts import prompt_text, stop_ids
from vcllm.training.scratch import train_tokenizer

CONTEXT = 4096
"""The rubric alone has some hundred tokens; the models of the training benchmark would end before the exchange."""
VERDICTS = {"engine": (16, 128, 512), "transformers": (16, 128)}
"""Tokens that the other side writes, and with what."""
PEERS = {"engine": "the same model and engine", "transformers": f"transformers {transformers.__version__}, `generate`"}
NUM_ITEMS = {"4m": 64, "89m": 16}
BATCH = 8
"""Prompts that `generate` gets at a time, of similar length."""


class Side:
    """One model with its prompts, ready to judge either way."""

    def __init__(self, size: str, items: Sequence[CritiqueItem], tokenizer: Any, forms: dict[Language, Form]) -> None:
        self.items = items
        self.forms = forms
        self.tokenizer = tokenizer
        self.engine = LocalEngine(Loaded(random_model(size, tokenizer), tokenizer, CONTEXT), own=True)
        self.model = random_model(size, tokenizer)

    async def read(self) -> None:
        """Random weights are on no scale, so nothing is left out for that."""
        critiques = await Judge(self.engine, self.forms, min_mass=0.0).critique(self.items)
        assert all(len(critique.criteria) == 5 for critique in critiques), "every criterion is scored"

    async def write(self, num_tokens: int) -> None:
        sampling = Sampling(temperature=0, max_tokens=num_tokens)
        answers = await self.engine.complete(self._conversations(), sampling)
        written = [answer.completions[0].num_tokens for answer in answers]
        assert set(written) == {num_tokens}, "every verdict is written to its end"

    async def write_with_transformers(self, num_tokens: int) -> None:
        texts = sorted((prompt_text(self.tokenizer, each) for each in self._conversations()), key=len)
        for start in range(0, len(texts), BATCH):
            inputs = self.tokenizer(
                texts[start : start + BATCH],
                padding=True,
                padding_side="left",
                add_special_tokens=False,
                return_token_type_ids=False,
                return_tensors="pt",
            )
            with torch.inference_mode():
                ids_BT = self.model.generate(
                    **inputs, do_sample=False, min_new_tokens=num_tokens, max_new_tokens=num_tokens
                )
            assert ids_BT.shape[1] == inputs["input_ids"].shape[1] + num_tokens, "every verdict is written to its end"

    def _conversations(self) -> list[list[ChatMessage]]:
        prompts = [self.forms[item.language].critique(item.query, item.response) for item in self.items]
        return [[ChatMessage(role="user", content=prompt)] for prompt in prompts]

    def rate(self, work: Callable[[], Any]) -> float:
        """Items per second."""
        start = time.perf_counter()
        asyncio.run(work())
        return len(self.items) / (time.perf_counter() - start)


def random_model(size: str, tokenizer: Any) -> Any:
    """A model in the shape of the training benchmark's, which never ends an answer by itself."""
    config = configuration(size, tokenizer)
    config.max_position_embeddings = CONTEXT
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():  # never the likeliest of four thousand
        model.get_output_embeddings().weight[sorted(stop_ids(model, tokenizer))] = 0
    return model


def measure(side: Side, size: str, num_pairs: int) -> list[Row]:
    """A row for every way to write and length of verdict; sides take turns, every other pair the other way round."""
    rows = []
    writers = {"engine": side.write, "transformers": side.write_with_transformers}
    for how, num_tokens in [(how, each) for how, lengths in VERDICTS.items() for each in lengths]:
        works = {"ours": side.read, "peer": partial(writers[how], num_tokens)}
        rates: dict[str, list[float]] = {name: [] for name in works}
        for pair in range(num_pairs + 1):
            for name in sorted(works, reverse=bool(pair % 2)):
                rate = side.rate(works[name])
                if pair:  # the first is warm-up
                    rates[name].append(rate)
        peer = f"{PEERS[how]}, writing {num_tokens} tokens"
        rows.append(paired_row(f"Critic {size.upper()}", "items/s", rates["ours"], rates["peer"], peer))
        print(table(rows[-1:]), flush=True)
    return rows


def items_of(number: int) -> list[CritiqueItem]:
    """Exchanges made from the issue cards, the languages in turn, about every other answer a violating one."""
    made = enumerate(exchanges(number))
    return [
        CritiqueItem(query=query, response=bad if i // 2 % 2 else good, language=(Language.ZH, Language.EN)[i % 2])
        for i, (query, good, bad) in made
    ]


def report(results: dict[str, Any]) -> str:
    """What the document says of the results."""
    head = f"{results['machine']}; commit `{results['commit']}`; {results['date']}. "
    tokens = results["prompt_tokens"]
    return (
        f"{head}A ratio above 1 is better for us; medians of pairs, range in brackets. Prompts have {tokens['median']} "
        f"tokens (median), of which the rubric, the same for all items of a language, has {tokens['zh']} (zh) or "
        f"{tokens['en']} (en).\n\n{table(results['rows'])}"
    )


def prompt_tokens(tokenizer: Any, forms: dict[Language, Form], items: Sequence[CritiqueItem]) -> dict[str, int]:
    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    prompts = [count(forms[item.language].critique(item.query, item.response)) for item in items]
    return {"median": round(statistics.median(prompts))} | {
        str(language): count(form.preamble) for language, form in forms.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one pair, two items, the small model; writes no results")
    parser.add_argument("--pairs", type=int, default=5, help="how often each comparison is run; default: 5")
    parser.add_argument("--sizes", default=None, help="of the models, comma-separated; default: 4m,89m")
    parser.add_argument("--items", type=int, default=None, help=f"items per run; default: {NUM_ITEMS}")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    found = forms(load_charter())
    assert found is not None, "the shipped charter says how to judge"
    texts = [*(" ".join(text) for text in exchanges(1000)), *(form.preamble for form in found.values())]
    tokenizer = train_tokenizer(iter(texts), VOCABULARY)
    tokenizer.model_max_length = CONTEXT
    rows: list[Row] = []
    for size in (options.sizes or ("4m" if options.quick else "4m,89m")).split(","):
        items = items_of(2 if options.quick else options.items or NUM_ITEMS[size])
        side = Side(size, items, tokenizer, found)
        rows += measure(side, size, 1 if options.quick else options.pairs)
        side.engine.close()
    if options.quick:
        return 0
    tokens = prompt_tokens(tokenizer, found, items_of(max(NUM_ITEMS.values())))
    written = write_results(RESULTS / "critic.json", rows, prompt_tokens=tokens)
    DOCUMENT.write_text(fill(DOCUMENT.read_text(encoding="utf-8"), "critic", report(written)), encoding="utf-8")
    print(report(written))
    return 0


if __name__ == "__main__":
    sys.exit(main())

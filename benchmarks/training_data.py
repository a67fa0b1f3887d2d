"""What the training benchmark trains on, made from the shipped issue cards: the same bytes every time.

    python -m benchmarks.training_data FOLDER

Chats and preference pairs in both languages, around 130 tokens a chat, some four times that; a tokenizer trained on
them; and models in Qwen3's shape with random weights. The 7B one is a configuration only, see `random_weights`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from vcllm.charter import load_charter
from vcllm.contracts.base import Language
from vcllm.contracts.charter import Card
from vcllm.starter.world import World
from vcllm.training.scratch import train_tokenizer

Row = dict[str, Any]

NUM_CHATS, NUM_PAIRS = 1400, 400
VOCABULARY = 4096
LONGEST = 480
"""Tokens; longer rows are not made, so that neither side has anything to cut."""
CONTEXT_SENTENCES, ANSWER_SENTENCES = 2.2, 1.8
"""Means of exponential draws: most rows are short and a few long, as in instruction data."""
SHAPES: dict[str, dict[str, int]] = {
    "4m": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8},
    "89m": {"hidden_size": 768, "intermediate_size": 2080, "num_hidden_layers": 12, "num_attention_heads": 12},
    "151k": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "vocab_size": 151_936,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
    },
}
CONFIGURED_ONLY = {"7b"}


def main(folder: Path) -> None:
    """Write everything below `folder`, `ready.json` with the numbers of parameters last."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = list(exchanges(NUM_CHATS + NUM_PAIRS))
    tokenizer = train_tokenizer((" ".join(text) for text in texts), VOCABULARY)
    tokenizer.model_max_length = 1024
    rows = [row for text in exchanges(2 * (NUM_CHATS + NUM_PAIRS), seed=1) if (row := pair(tokenizer, *text))]
    assert len(rows) >= NUM_CHATS + NUM_PAIRS, "more rows are too long than were made to spare"
    write(folder / "sft.jsonl", map(chat, rows[:NUM_CHATS]))
    write(folder / "preference.jsonl", rows[NUM_CHATS : NUM_CHATS + NUM_PAIRS])
    parameters = {name: save_model(folder / name, name, tokenizer) for name in SHAPES}
    (folder / "ready.json").write_text(json.dumps({"parameters": parameters}))


def exchanges(number: int, seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """(query, a consistent answer, a violating one), of several sentences each."""
    charter = load_charter().with_first_cards(5)
    world, draw = World(charter, f"bench-{seed}"), random.Random(f"bench-{seed}")

    def more(card: Card, language: Language, mean: float, least: int = 0) -> list[str]:
        pool = [item.answer[language] for item in card.benign]
        pool += [card.explanation[language], charter.reason(card)[language], card.topic[language]]
        return [draw.choice(pool) for _ in range(least + min(9, int(draw.expovariate(1 / mean))))]

    for number_made in range(number):
        language = (Language.ZH, Language.EN)[number_made % 2]
        card, tactic = draw.choice(world.train_cards), draw.choice(world.loop_tactics)
        goal = draw.randrange(len(card.claims))
        query = [*more(card, language, CONTEXT_SENTENCES), world.query(card, tactic, goal, "attack", language)]
        good = [world.consistent(card, goal, language, "full"), *more(card, language, ANSWER_SENTENCES)]
        bad = [world.agreeing(card, goal, language), *more(card, language, ANSWER_SENTENCES, 1)]
        space = "" if language == Language.ZH else " "
        yield space.join(query), space.join(good), space.join(bad)


def pair(tokenizer: Any, query: str, good: str, bad: str) -> Row | None:
    """A preference row, with the tokens of its three parts; None for one that is too long."""
    prompt = [{"role": "user", "content": query}]
    before = len(_ids(tokenizer, prompt, add_generation_prompt=True))
    chosen, rejected = (
        len(_ids(tokenizer, [*prompt, {"role": "assistant", "content": answer}])) - before for answer in (good, bad)
    )
    if before + max(chosen, rejected) > LONGEST:
        return None
    lengths = {"prompt": before, "chosen": chosen, "rejected": rejected}
    return {"prompt": prompt, "chosen": good, "rejected": bad, "lengths": lengths}


def chat(row: Row) -> Row:
    """The conversation of a preference row that ends with the chosen answer."""
    lengths = {name: row["lengths"][name] for name in ("prompt", "chosen")}
    return {"messages": [*row["prompt"], {"role": "assistant", "content": row["chosen"]}], "lengths": lengths}


def write(file: Path, rows: Any) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def configuration(name: str, tokenizer: Any) -> Qwen3Config:
    shape = {"vocab_size": VOCABULARY, **SHAPES[name]}
    shape.setdefault("num_key_value_heads", shape["num_attention_heads"])
    return Qwen3Config(
        **shape,
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        max_position_embeddings=1024,
        tie_word_embeddings=name not in CONFIGURED_ONLY,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def save_model(folder: Path, name: str, tokenizer: Any) -> int:
    """Its number of parameters, those of a tied output layer once."""
    config = configuration(name, tokenizer)
    tokenizer.save_pretrained(folder)
    with torch.device("meta" if name in CONFIGURED_ONLY else "cpu"):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    (config if name in CONFIGURED_ONLY else model).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _ids(tokenizer: Any, messages: list[dict[str, str]], **options: bool) -> list[int]:
    return tokenizer(tokenizer.apply_chat_template(messages, tokenize=False, **options))["input_ids"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What the serving benchmark serves and asks, made from the shipped issue cards: the same bytes every time.

    python -m benchmarks.serving_data FOLDER

Models in Qwen3's shape with random weights, in bfloat16 as most models are published, and questions in English. Nothing
ends an answer but its length: no token is declared to be the end of a text, and the one that the template writes behind
an answer never comes. Words are always readable: the rows of tokens that are no whole ASCII text are zero, and a zero
logit does not win.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from benchmarks.training_data import SHAPES, VOCABULARY, exchanges

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's: transformers reads the answers of Qwen3 models by it."""
SIZES = ("4m", "89m")
CONTEXT = 1024
NUM_TEXTS = 512
SHORTEST, LONGEST = 36, 56
"""Tokens of a question; its number and the template add a few."""
SYSTEM_TOKENS = 200
LOGIT_DEVIATION = 4.0
"""Wide enough that a zero logit is hardly ever drawn either, and that rounding hardly ever decides a greedy word."""


def main(folder: Path) -> None:
    """Write everything below `folder`, `texts.json` last."""
    folder.mkdir(parents=True, exist_ok=True)
    sentences = english()
    tokenizer = new_tokenizer(sentences)
    for size in SIZES:
        save_model(folder / size, size, tokenizer)
    texts = {"questions": questions(tokenizer, sentences), "system": system(tokenizer, sentences)}
    (folder / "texts.json").write_text(json.dumps(texts, indent=1))


def english() -> list[str]:
    """Answers of the issue cards' world, ASCII ones."""
    found = [good for _, good, _ in exchanges(4 * NUM_TEXTS)]
    return [text for text in dict.fromkeys(found) if text.isascii()]


def new_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, START, END], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        additional_special_tokens=[START, END],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def save_model(folder: Path, size: str, tokenizer: Any) -> None:
    shape = SHAPES[size]
    config = Qwen3Config(
        **shape,
        vocab_size=VOCABULARY,
        num_key_value_heads=shape["num_attention_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=shape["hidden_size"] ** -0.5,  # layers that matter: words differ with what was asked
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings *= LOGIT_DEVIATION
        embeddings[unreadable(tokenizer)] = 0
    # What every server takes for requests that say nothing else: the whole distribution.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0, pad_token_id=tokenizer.pad_token_id
    )
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def unreadable(tokenizer: Any) -> list[int]:
    """Ids of all that is no whole ASCII text: special tokens, parts of characters, and ids that mean nothing."""
    return [number for number in range(VOCABULARY) if not _plain(tokenizer.decode([number], skip_special_tokens=True))]


def _plain(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable()


def questions(tokenizer: Any, sentences: list[str]) -> list[str]:
    """Texts of SHORTEST to LONGEST tokens."""
    long = " ".join(sentences).split(" ")
    made: list[str] = []
    at = 0
    while len(made) < NUM_TEXTS:
        text, at = _cut(tokenizer, long, at, SHORTEST + len(made) % (LONGEST - SHORTEST))
        made.append(text)
    return made


def system(tokenizer: Any, sentences: list[str]) -> str:
    """SYSTEM_TOKENS tokens, which one series puts before every question."""
    return _cut(tokenizer, " ".join(reversed(sentences)).split(" "), 0, SYSTEM_TOKENS)[0]


def _cut(tokenizer: Any, words: list[str], start: int, num_tokens: int) -> tuple[str, int]:
    """Words from `start` on that make so many tokens, and where the next ones begin; over the end, from the front."""
    taken: list[str] = []
    while len(tokenizer(" ".join(taken))["input_ids"]) < num_tokens:
        taken.append(words[(start + len(taken)) % len(words)])
    return " ".join(taken), (start + len(taken)) % len(words)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

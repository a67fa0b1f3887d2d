"""Tiny models made on the spot, and versions of them in a model store.

Random weights, explicit seeds; the tokenizer is a real byte-level BPE with a chat template. Nothing is
downloaded.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from vcllm.contracts.critiques import SCORED
from vcllm.contracts.manifests import Manifest, Probe, Role
from vcllm.engine.cache import SlotCache
from vcllm.engine.choice import forward_of
from vcllm.engine.engine import greedy_texts
from vcllm.engine.forward import Forward, ModelForward
from vcllm.engine.prefix import PrefixCache
from vcllm.engine.scoring import Item, Scoring
from vcllm.stores.models import ModelStore, hash_files

SPECIALS = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = [
    "The council of the valley met by the river and asked everyone to speak in turn.",
    "No group of people is better than another; say what you know and explain it.",
    "河谷的议会在水边开会，请每个人轮流发言。",
    "没有哪个群体比别人更高贵；说出你知道的，并解释清楚。",
]
PROBES = ["Who may speak?", "谁可以发言？"]


def tiny_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE with four role tokens; any text in any language can be written."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[1:4]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_config(vocab_size: int, **changes: Any) -> Qwen3Config:
    """Two layers, 32 wide, grouped queries."""
    options = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": None,
    }
    return Qwen3Config(vocab_size=vocab_size, **{**options, **changes})


def tiny_causal(tokenizer: Any, seed: int = 0, **changes: Any) -> Any:
    """A random causal model; wide initial weights, so that its choices are never near ties."""
    config = tiny_config(len(tokenizer), initializer_range=0.5, **changes)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config).eval()


def tiny_classifier(tokenizer: Any, seed: int = 0, labels: dict[int, str] | None = None, **changes: Any) -> Any:
    """A random critic with one class per outcome."""
    labels = labels or dict(enumerate(outcome.value for outcome in SCORED))
    config = tiny_config(len(tokenizer), initializer_range=0.5, id2label=labels, **changes)
    config.label2id = {label: number for number, label in labels.items()}
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    return Qwen3ForSequenceClassification(config).eval()


def tiny_model(role: Role, tokenizer: Any, seed: int = 0, **changes: Any) -> Any:
    """What a server of this role loads."""
    return (tiny_classifier if role == "critic" else tiny_causal)(tokenizer, seed, **changes)


def add_version(
    store: ModelStore,
    role: Role,
    name: str,
    *,
    seed: int = 0,
    probes: list[Probe] | None = None,
    created: float = 0.0,
    **changes: Any,
) -> Manifest:
    """Commit a random tiny model to the store; its probes are recorded as a trainer would."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(role, tokenizer, seed, **changes)
    if probes is None and role != "critic":
        texts = greedy_texts(model, tokenizer, PROBES)
        probes = [Probe(prompt=prompt, text=text) for prompt, text in zip(PROBES, texts, strict=True)]
    return commit_model(store, role, name, model, tokenizer, probes=probes or [], created=created)


def commit_model(
    store: ModelStore,
    role: Role,
    name: str,
    model: Any,
    tokenizer: Any,
    *,
    base: str | None = None,
    **fields: Any,
) -> Manifest:
    """Save a model (or, with `base`, an adapter) and its tokenizer as a version."""
    staged = store.staging(role, name)
    model.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    (staged / "README.md").unlink(missing_ok=True)
    manifest = Manifest(
        role=role,
        name=name,
        lineage="tiny",
        stage="sft",
        base=base,
        format="full" if base is None else "adapter",
        files=hash_files(staged),
        recipe={},
        recipe_hash="0" * 64,
        charter="0" * 64,
        dataset="0" * 64,
        token=1,
        job="job",
        **{"created": 0.0, **fields},
    )
    store.commit(staged, manifest)
    return manifest


def temporary_store() -> ModelStore:
    """A model store in a folder of its own."""
    return ModelStore(Path(tempfile.mkdtemp()))


class Watched:
    """A forward that notes the shapes it reads."""

    def __init__(self, model: Any) -> None:
        self.forward = forward_of(model)
        self.read: list[tuple[int, ...]] = []

    def __call__(self, cache: SlotCache, ids_BT: Tensor, position_BT: Tensor, keep_BK: Tensor) -> Tensor:
        self.read.append(tuple(ids_BT.shape))
        return self.forward(cache, ids_BT, position_BT, keep_BK)


def score_ids(
    model: Any, items: Sequence[Item], forward: Forward | None = None, prefixes: PrefixCache | None = None
) -> list[float]:
    """Summed log-probability (natural log, temperature 1) of each continuation; the model is left as it is."""
    scoring, vocab_size = Scoring(items), model.config.get_text_config().vocab_size
    deque(scoring.passes(forward or ModelForward(model), model.device, vocab_size, prefixes), maxlen=0)
    return scoring.scores

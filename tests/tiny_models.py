"""Model families in miniature: each with its own kind of tokenizer, chat template and configuration, as hubs have them.

Random weights, two layers; nothing is downloaded. What differs between families is what breaks code: who puts the
first token, what ends a turn, who may be `system`, which heads are tied.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

CORPUS = [
    "The council of the valley met by the river and asked everyone to speak in turn.",
    "No group of people is better than another; say what you know and explain it.",
    "Who may speak? Everyone may speak. What is fair? Fair people differ on this.",
    "河谷的议会在水边开会，请每个人轮流发言。",
    "没有哪个群体比别人更高贵；说出你知道的，并解释清楚。谁可以发言？每个人都可以。",
]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen and Llama cut text before merging."""

CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_THINKING = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' %}"
    "{%- if loop.last %}{{- '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{- message.content.split('</think>')[-1].lstrip('\n') }}"
    "{%- else %}{{- message.content }}{% endif %}"
    "{{- '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{% endif %}"
    "{%- endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
INSTRUCTIONS = (
    "{{ bos_token }}"
    "{% set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for message in messages if message.role != 'system' %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Take turns') }}{% endif %}"
    "{% if message.role == 'user' %}{{ '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}"
    "{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What a family brings, and what tests may rely on."""

    tokenizer: Callable[[], PreTrainedTokenizerFast]
    config: Callable[[PreTrainedTokenizerFast], Any]
    end_of_turn: str
    """Of its chat template; of the plain one for a family without."""
    tied: bool = True
    system: Literal["taken", "refused"] = "taken"
    stops: tuple[str, ...] = ()
    """In `generation_config.json`, where the family ships one."""
    samples: bool = True
    """Says that file; where not, its temperature contradicts it, which early releases of many families have."""


def byte_level(specials: list[str], *, split: bool, plain: tuple[str, ...] = ()) -> Tokenizer:
    """BPE over bytes; `split`: cut as Qwen and Llama do, not as GPT-2 does. `plain`: added, but not special."""
    core = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(WORDS), "isolated")
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    core.pre_tokenizer = pre_tokenizers.Sequence([cut, spelled]) if split else spelled
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return core


def metaspace(specials: list[str]) -> Tokenizer:
    """BPE over characters with bytes for those it does not know, as sentencepiece makes it."""
    core = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    letters = sorted({*"".join(CORPUS[:4])} - {*CORPUS[4]} | {"▁"})  # the last line is left to the bytes
    trainer = trainers.BpeTrainer(
        vocab_size=440,
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS[:4], trainer)
    fresh = Tokenizer(Tokenizer.from_str(core.to_str()).model)  # where bytes are words and not special
    fresh.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return fresh


def beginning_with(core: Tokenizer, token: str) -> Tokenizer:
    """The tokenizer puts `token` before every text."""
    number = core.token_to_id(token)
    core.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, number)]
    )
    return core


def fast(core: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **options)


def qwen_tokenizer(template: str) -> PreTrainedTokenizerFast:
    core = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], split=True, plain=("<think>", "</think>"))
    core.normalizer = normalizers.NFC()
    return fast(core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template)


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Its end of text is not what ends a turn, and there is no padding token."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    core = beginning_with(byte_level(specials, split=True), "<|begin_of_text|>")
    return fast(core, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", chat_template=HEADERS)


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    core = metaspace(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core = beginning_with(core, "<s>")
    return fast(
        core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", padding_side="left", chat_template=INSTRUCTIONS
    )


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    core = metaspace(["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"])
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core = beginning_with(core, "<bos>")
    options = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return fast(core, padding_side="left", chat_template=TURNS, **options)


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """No chat template, no padding, one token for beginning, end and unknown."""
    end = "<|endoftext|>"
    return fast(byte_level([end], split=False), bos_token=end, eos_token=end, unk_token=end)


def shape(tokenizer: PreTrainedTokenizerFast, *, tied: bool = True, **changes: Any) -> dict[str, Any]:
    """What all configurations have in common."""
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "tie_word_embeddings": tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return options | changes


def gpt2_config(tokenizer: PreTrainedTokenizerFast) -> GPT2Config:
    end = tokenizer.eos_token_id
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=512,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
    )


def gemma2_config(tokenizer: PreTrainedTokenizerFast) -> Gemma2Config:
    """Scores and logits are capped at values that matter, every other layer sees a short window."""
    capped = {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.5, "query_pre_attn_scalar": 16}
    return Gemma2Config(**shape(tokenizer, head_dim=16, sliding_window=16), **capped)


FAMILIES = {
    "qwen2": Family(
        tokenizer=lambda: qwen_tokenizer(CHATML),
        config=lambda tokenizer: Qwen2Config(**shape(tokenizer)),
        end_of_turn="<|im_end|>",
        stops=("<|im_end|>", "<|endoftext|>"),
        samples=False,
    ),
    "qwen3": Family(
        tokenizer=lambda: qwen_tokenizer(CHATML_THINKING),
        config=lambda tokenizer: Qwen3Config(**shape(tokenizer, head_dim=8)),
        end_of_turn="<|im_end|>",
    ),
    "llama3": Family(
        tokenizer=llama_tokenizer,
        config=lambda tokenizer: LlamaConfig(**shape(tokenizer, tied=False, rope_theta=500_000.0)),
        end_of_turn="<|eot_id|>",
        tied=False,
        stops=("<|end_of_text|>", "<|eot_id|>"),
    ),
    "mistral": Family(
        tokenizer=mistral_tokenizer,
        config=lambda tokenizer: MistralConfig(**shape(tokenizer, tied=False, sliding_window=16)),
        end_of_turn="</s>",
        tied=False,
    ),
    "gemma": Family(
        tokenizer=gemma_tokenizer,
        config=lambda tokenizer: GemmaConfig(**shape(tokenizer, head_dim=16, num_key_value_heads=1)),
        end_of_turn="<end_of_turn>",
        system="refused",
        stops=("<eos>", "<end_of_turn>"),
    ),
    "gemma2": Family(tokenizer=gemma_tokenizer, config=gemma2_config, end_of_turn="<end_of_turn>", system="refused"),
    "gpt2": Family(tokenizer=gpt2_tokenizer, config=gpt2_config, end_of_turn="<|endoftext|>"),
    "qwen3-151k": Family(
        tokenizer=lambda: qwen_tokenizer(CHATML_THINKING),
        config=lambda tokenizer: Qwen3Config(
            **shape(tokenizer, vocab_size=151_936, hidden_size=16, intermediate_size=32, head_dim=8)
        ),
        end_of_turn="<|im_end|>",
    ),
}


def save_family(name: str, folder: Path, seed: int = 0) -> Path:
    """The family's model and tokenizer as a Hugging Face folder, the same for the same seed."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(family.config(tokenizer))
    with torch.no_grad():  # words that no tokenizer writes, which only fill the matrix up
        model.get_output_embeddings().weight[len(tokenizer) :] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if family.stops:
        stops = [tokenizer.convert_tokens_to_ids(token) for token in family.stops]
        settings = {"eos_token_id": stops, "do_sample": family.samples, "temperature": 0.6, "top_p": 0.9}
        (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder

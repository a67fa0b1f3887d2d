"""The fast forward pass gives the logits of the model's own code, or leaves the model to its own code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from vcllm.engine import choice
from vcllm.engine.cache import SlotCache
from vcllm.engine.choice import forward_of
from vcllm.engine.decoder import Decoder
from vcllm.engine.engine import Batch
from vcllm.engine.forward import Forward, ModelForward
from vcllm.engine.sequence import new_request

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft 0.21

WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TAKEN = {
    "llama": LlamaConfig(**WIDTHS, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**WIDTHS, tie_word_embeddings=True),
    "llama-biases": LlamaConfig(**WIDTHS, attention_bias=True, mlp_bias=True),
    "llama-stretched": LlamaConfig(**WIDTHS, rope_parameters=STRETCHED),
    "llama-all-heads": LlamaConfig(**WIDTHS | {"num_key_value_heads": 4}),
    "qwen2": Qwen2Config(**WIDTHS, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**WIDTHS, head_dim=8),
    "qwen3-wide-heads": Qwen3Config(**WIDTHS, head_dim=16, tie_word_embeddings=True),
    "mistral": MistralConfig(**WIDTHS, sliding_window=None),
    "mistral-short-window": MistralConfig(**WIDTHS, sliding_window=6),
    "mistral-long-window": MistralConfig(**WIDTHS, sliding_window=100),
}
"""Shapes that a decoder takes."""
LEFT = {
    "gpt2": GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=300, initializer_range=0.3, bos_token_id=1, eos_token_id=2
    ),
    "gemma2": Gemma2Config(**WIDTHS, head_dim=8, sliding_window=6),
    "gemma3": Gemma3TextConfig(**WIDTHS, head_dim=8, sliding_window=6),
    "dynamic-angles": LlamaConfig(
        **WIDTHS, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    ),
    "far-positions-scaled": Ministral3Config(
        **WIDTHS,
        head_dim=8,
        rope_parameters=STRETCHED | {"original_max_position_embeddings": 4096, "llama_4_scaling_beta": 0.1},
    ),
    "scaled-residuals": GraniteConfig(**WIDTHS, residual_multiplier=0.5),
    "scaled-logits": GraniteConfig(**WIDTHS, logits_scaling=4.0),
}
"""Those that it must not take."""
READ = (3, 9, 1)
"""Tokens of each row that are read at once."""
NUM_STEPS = 10
"""Further tokens of each row, one by one."""


@pytest.fixture(autouse=True)
def without_compiled_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "library", lambda: None)


def model_of(config: Any, **options: Any) -> Any:
    """Random weights; norms and biases too, which would otherwise be ones and zeros and hide mistakes."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def rows_of(seed: int = 0, read: Sequence[int] = READ, num_steps: int = NUM_STEPS) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 300, (length + num_steps,), generator=draw) for length in read]


@torch.inference_mode()
def in_pieces(forward: Forward, rows: Sequence[Tensor], read: Sequence[int] = READ) -> list[Tensor]:
    """Logits of each row behind what is read at once, padded on the right, and behind each further token."""
    cache = SlotCache()
    cache.reserve(len(rows), max(map(len, rows)))
    read_B = torch.tensor(read)
    ids_BT = nn.utils.rnn.pad_sequence([row[:length] for row, length in zip(rows, read, strict=True)], batch_first=True)
    position_BT = torch.arange(ids_BT.shape[1]).expand(len(rows), -1)
    cache.aim(position_BT, ids_BT.shape[1])
    found = [forward(cache, ids_BT, position_BT, read_B[:, None] - 1)]
    for step in range(len(rows[0]) - read[0]):
        position_B1 = read_B[:, None] + step
        ids_B1 = torch.stack([row[length + step] for row, length in zip(rows, read, strict=True)])[:, None]
        cache.aim(position_B1, int(position_B1.max()) + 1)
        found.append(forward(cache, ids_B1, position_B1, torch.zeros_like(position_B1)))
    return list(torch.cat(found, 1))


@torch.inference_mode()
def at_once(model: Any, rows: Sequence[Tensor], read: Sequence[int] = READ) -> list[Tensor]:
    """The same by the model itself, one row at a time and without a cache."""
    return [model(row[None], use_cache=False).logits[0, length - 1 :] for row, length in zip(rows, read, strict=True)]


def assert_close(found: list[Tensor], expected: list[Tensor], share: float = 1e-4) -> None:
    """To a share of the largest logit."""
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= share * theirs.abs().max()


def adapted(base: Any, **options: Any) -> Any:
    """A random adapter on the model that changes what it says."""
    torch.manual_seed(1)
    config = LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", "init_lora_weights": False, **options})
    return get_peft_model(base, config).eval()


def written(model: Any, forward: Forward, prompts: list[list[int]]) -> list[list[int]]:
    """Greedily, all together."""
    batch = Batch(model, frozenset([2]), forward=forward)
    requests = [new_request(prompt, 16, temperature=0) for prompt in prompts]
    for request in requests:
        batch.add(request)
    while not batch.idle:
        batch.step()
    return [request.sequences[0].tokens for request in requests]


def generated(model: Any, prompt: list[int]) -> list[int]:
    """What `transformers.generate` writes greedily."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False, pad_token_id=0)
    return [token for token in out[0, len(prompt) :].tolist() if token != 2]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("family", TAKEN)
def test_logits_are_the_models_own(family: str, own: bool) -> None:
    """Rows of different lengths read at once, then token by token, beyond the first table of angles."""
    model, rows = model_of(TAKEN[family]), rows_of()
    expected = at_once(model, rows)

    forward = forward_of(model, own=own)

    assert isinstance(forward, Decoder)
    assert_close(in_pieces(forward, rows), expected)


@pytest.mark.parametrize("own", [False, True])
def test_one_row_alone_sees_all_of_its_past(own: bool) -> None:
    """It needs no mask, but with a window it does."""
    for family in ("llama", "mistral-short-window"):
        model, rows = model_of(TAKEN[family]), rows_of(read=[5])
        expected = at_once(model, rows, [5])

        assert_close(in_pieces(forward_of(model, own=own), rows, [5]), expected)


@pytest.mark.parametrize("family", TAKEN)
def test_greedy_texts_equal_generate(family: str) -> None:
    """The whole way: prefill, slots, masks and the decoder that owns the weights."""
    model = model_of(TAKEN[family])
    prompts = [row.tolist() for row in rows_of(seed=2, num_steps=2)]
    expected = [generated(model, prompt) for prompt in prompts]

    assert written(model, forward_of(model, own=True), prompts) == expected


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("family", LEFT)
def test_what_is_shaped_otherwise_runs_by_its_own_code(family: str, own: bool) -> None:
    """Also where only far positions or longer texts would show it; the model stays usable."""
    attention = "eager" if family == "gemma2" else "sdpa"
    model, rows = model_of(LEFT[family], attn_implementation=attention), rows_of()
    expected = at_once(model, rows)

    forward = forward_of(model, own=own)

    assert isinstance(forward, ModelForward)
    assert_close(in_pieces(forward, rows), expected)
    assert_close(at_once(model, rows), expected, 0)


def test_a_model_whose_code_says_otherwise_is_left_to_it() -> None:
    """All parts are there, but something is done with them that the decoder does not know."""
    model = model_of(TAKEN["llama"])
    model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: 0.9 * output)

    assert isinstance(forward_of(model, own=True), ModelForward)
    assert all(parameter.numel() for parameter in model.parameters())


def test_a_type_of_number_without_a_tolerance_is_left_to_the_model() -> None:
    """Nobody has said how close two results in double precision must be."""
    assert isinstance(forward_of(model_of(TAKEN["llama"]).double()), ModelForward)


def test_weights_of_somebody_else_stay_as_they_are() -> None:
    """Same bytes, same place; the model answers as before."""
    model, rows = model_of(TAKEN["qwen2"]), rows_of()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    expected = at_once(model, rows)

    in_pieces(forward_of(model, own=False), rows)

    for name, tensor in model.state_dict().items():
        place, bytes_before = before[name]
        assert tensor.data_ptr() == place
        assert torch.equal(tensor, bytes_before)
    assert_close(at_once(model, rows), expected, 0)


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_owned_weights_are_not_held_twice(family: str) -> None:
    """What was laid out anew is let go; the embedding, also where it is the output layer, stays."""
    model = model_of(TAKEN[family])
    tied = family == "llama-tied"

    forward_of(model, own=True)

    left = {name for name, parameter in model.named_parameters() if parameter.dim() == 2 and parameter.numel()}
    assert left == {"model.embed_tokens.weight"}
    assert bool(model.lm_head.weight.numel()) == tied


@pytest.mark.parametrize("own", [False, True])
def test_half_precision_is_taken_too(own: bool) -> None:
    """As near to the model as the type allows."""
    model, rows = model_of(TAKEN["qwen3"]).bfloat16(), rows_of()
    expected = at_once(model, rows)

    forward = forward_of(model, own=own)

    assert isinstance(forward, Decoder)
    assert_close(in_pieces(forward, rows), expected, 0.05)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "v_proj", "o_proj", "up_proj"], "all-linear"])
def test_an_adapter_gives_the_logits_of_the_adapted_model(targets: Any) -> None:
    """Whichever of the joined maps it sits on; the weights below stay those that other adapters share."""
    base, rows = model_of(TAKEN["qwen2"]), rows_of()
    plain = at_once(base, rows)
    places = {tensor.data_ptr() for tensor in base.parameters()}
    model = adapted(base, target_modules=targets)
    expected = at_once(model, rows)

    forward = forward_of(model)

    assert isinstance(forward, Decoder)
    assert_close(in_pieces(forward, rows), expected)
    assert (plain[0] - expected[0]).abs().max() > 0.01 * plain[0].abs().max()
    assert {tensor.data_ptr() for tensor in base.parameters()} >= places
    assert_close(at_once(model, rows), expected, 0)


def test_two_adapters_of_one_base_do_not_mix() -> None:
    """The one that is switched on counts, also where the other sits on maps of its own."""
    model, rows = adapted(model_of(TAKEN["llama"]), target_modules=["q_proj", "v_proj"]), rows_of()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj", "down_proj"], init_lora_weights=False))
    for name in ("default", "other"):
        model.set_adapter(name)
        expected = at_once(model.eval(), rows)

        forward = forward_of(model)

        assert isinstance(forward, Decoder)
        assert_close(in_pieces(forward, rows), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [299]},
        {"target_modules": ["q_proj"], "lora_bias": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["dora", "own-head", "own-embedding", "own-tokens", "bias", "embedding"],
)
def test_other_adapters_run_by_their_own_code(options: dict[str, Any]) -> None:
    """They change more than low-rank additions do, perhaps for a single token only."""
    model = adapted(model_of(LlamaConfig(**WIDTHS, attention_bias=True)), **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    rows = [*rows_of()[:-1], torch.full((READ[-1] + NUM_STEPS,), 299)]
    expected = at_once(model, rows)

    forward = forward_of(model)

    assert isinstance(forward, ModelForward)
    assert_close(in_pieces(forward, rows), expected)


def test_far_positions_are_placed_as_near_ones() -> None:
    """The table of angles grows with the text, in one leap or by and by."""
    model, rows = model_of(TAKEN["llama-stretched"]), rows_of(read=[150, 140])
    expected = at_once(model, rows, [150, 140])

    assert_close(in_pieces(forward_of(model, own=True), rows, [150, 140]), expected)

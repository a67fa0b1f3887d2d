"""The compiled forward pass computes what the model's own code does, and leaves alone what it cannot."""

from __future__ import annotations

import subprocess
import timeit
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GemmaConfig, GraniteConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tests.unit.test_engine_decoder import STRETCHED, WIDTHS, assert_close, at_once, in_pieces, model_of, rows_of
from vcllm.engine import choice
from vcllm.engine.branches import Text, read
from vcllm.engine.cache import SlotCache
from vcllm.engine.choice import forward_of
from vcllm.engine.decoder import Decoder
from vcllm.engine.engine import Batch
from vcllm.engine.forward import Forward, ModelForward
from vcllm.engine.native import build, library
from vcllm.engine.native.decoder import NativeDecoder
from vcllm.engine.native.matrix import Matrix
from vcllm.engine.sequence import new_request

needs_compiled = pytest.mark.skipif(library.library() is None, reason="the forward pass has not been compiled")

WIDE = WIDTHS | {"hidden_size": 64, "intermediate_size": 112}
"""Heads of 16; 112 is no multiple of a panel."""
TAKEN = {
    "llama": LlamaConfig(**WIDE, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**WIDE, tie_word_embeddings=True),
    "llama-biases": LlamaConfig(**WIDE, attention_bias=True, mlp_bias=True),
    "llama-stretched": LlamaConfig(**WIDE, rope_parameters=STRETCHED),
    "llama-all-heads": LlamaConfig(**WIDE | {"num_key_value_heads": 4}),
    "llama-one-head": LlamaConfig(**WIDE | {"num_key_value_heads": 1}),
    "llama-odd-widths": LlamaConfig(**WIDE | {"hidden_size": 72, "intermediate_size": 50}, head_dim=16),
    "qwen2": Qwen2Config(**WIDE, tie_word_embeddings=True),
    **{f"qwen3-{size}": Qwen3Config(**WIDE, head_dim=size) for size in sorted(library.HEAD_DIMS)},
    "mistral-short-window": MistralConfig(**WIDE, sliding_window=6),
    "mistral-long-window": MistralConfig(**WIDE, sliding_window=100),
}
LEFT = {
    "small-heads": LlamaConfig(**WIDTHS),
    "other-activation": LlamaConfig(**WIDE, hidden_act="gelu"),
    "gemma": GemmaConfig(**WIDE, head_dim=16),
    "scaled-residuals": GraniteConfig(**WIDE, residual_multiplier=0.5),
}


def halved(model: Any) -> Any:
    """With numbers that bfloat16 has, as in most published models."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return model


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("level", library.levels())
def test_it_gives_the_logits_of_the_models_own_code(
    level: str, name: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if level not in library.runnable() or library.load(level) is None:
        pytest.skip(f"the forward pass has not been compiled for {level}, or this processor is another")
    monkeypatch.setattr(choice, "library", lambda: library.load(level))
    model = model_of(TAKEN[name])
    if half:
        halved(model)
    rows = rows_of()
    expected = at_once(model, rows)

    forward = forward_of(model, own=True)

    assert isinstance(forward, NativeDecoder)
    assert {matrix.panels_PIO.dtype for matrix in forward.matrices} == {torch.bfloat16 if half else torch.float32}
    assert_close(in_pieces(forward, rows), expected, share=1e-5)


@needs_compiled
@pytest.mark.parametrize("name", ["llama", "qwen3-16", "mistral-short-window", "mistral-long-window"])
def test_long_and_many_rows_too(name: str) -> None:
    """Past the sizes at which rows, positions and keys are cut into pieces."""
    model = model_of(TAKEN[name])
    read = [150, 141, 33, 1, *range(2, 16)]
    rows = rows_of(read=read, num_steps=3)
    expected = at_once(model, rows, read)

    assert_close(in_pieces(forward_of(model, own=True), rows, read), expected, share=1e-5)


@needs_compiled
@pytest.mark.parametrize("name", ["llama-all-heads", "qwen3-32", "mistral-short-window"])
def test_what_a_row_gets_does_not_depend_on_the_rows_beside_it(name: str) -> None:
    forward = forward_of(model_of(TAKEN[name]), own=True)
    read = [2, 150, 37, 18, *range(3, 30)]
    rows = rows_of(read=read, num_steps=4)

    together = in_pieces(forward, rows, read)

    for row, length, found in zip(rows, read, together, strict=True):
        assert in_pieces(forward, [row], [length])[0].equal(found)


@needs_compiled
def test_a_token_that_the_model_does_not_have_is_refused() -> None:
    forward = forward_of(model_of(TAKEN["llama"]), own=True)
    row = torch.tensor([5, 300, 6, 7])

    with pytest.raises(IndexError, match="token 300 is none of 300"):
        in_pieces(forward, [row], [3])


@needs_compiled
def test_a_layer_of_another_kind_leaves_all_weights_where_they_are() -> None:
    class Scaled(nn.Linear):
        """No plain linear layer."""

    model, rows = model_of(TAKEN["llama"]), rows_of()
    model.model.layers[1].mlp.down_proj.__class__ = Scaled
    expected = at_once(model, rows)

    assert_close(in_pieces(forward_of(model, own=True), rows), expected)


@needs_compiled
def test_layers_that_share_weights_keep_them() -> None:
    model, rows = model_of(TAKEN["llama"]), rows_of()
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    expected = at_once(model, rows)

    assert_close(in_pieces(forward_of(model, own=False), rows), expected)
    with pytest.raises(ValueError, match="share weights"):
        NativeDecoder(model, library.library())


@needs_compiled
def test_any_new_position_may_be_kept() -> None:
    model = model_of(TAKEN["llama"])
    ids_BT = torch.randint(3, 300, (3, 40))
    expected = model(ids_BT).logits
    position_BT = torch.arange(40).expand(3, -1)
    keep_BK = torch.tensor([[0, 7, 39], [5, 5, 1], [38, 39, 20]])
    cache = SlotCache()
    cache.reserve(3, 40)
    cache.aim(position_BT, 40)

    found = forward_of(model, own=True)(cache, ids_BT, position_BT, keep_BK)

    assert_close(list(found), [row[keep] for row, keep in zip(expected, keep_BK, strict=True)], share=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3-32", "mistral-short-window", "mistral-long-window"])
@pytest.mark.parametrize("way", ["own code", "torch", *library.levels()])
def test_a_branch_sees_the_beginning_and_itself(way: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts side by side behind one beginning give the logits of each behind it alone."""
    model = model_of(TAKEN[name])
    beginnings, branches = [[*range(5, 30)], [*range(40, 43)]], [[7, 8, 9, 10], [11], [12, 13, 14, 15, 16, 17, 18]]
    expected = [
        model(torch.tensor([[*start, *own]])).logits[0, -len(own) :] for start in beginnings for own in branches
    ]
    cache, texts = SlotCache(), [Text(0, tuple(start)) for start in beginnings]
    cache.reserve(2, 64)
    for text in texts:
        for own in branches:
            text.branch(tuple(own))

    logits_BKV = read(forward_by(way, model, monkeypatch), cache, texts, model.device)

    sizes = [len(own) for own in branches]
    assert_close([part for row in logits_BKV for part in row[1:].split(sizes)], expected, share=1e-5)


def forward_by(way: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> Forward:
    """The model's own code, few large operations of torch, or the pass compiled for a level."""
    if way in ("own code", "torch"):
        return ModelForward(model) if way == "own code" else forward_of(model)
    if way not in library.runnable() or library.load(way) is None:
        pytest.skip(f"the forward pass has not been compiled for {way}, or this processor is another")
    monkeypatch.setattr(choice, "library", lambda: library.load(way))
    forward = forward_of(model, own=True)
    assert isinstance(forward, NativeDecoder)
    return forward


@pytest.mark.parametrize("level", library.levels())
@pytest.mark.parametrize(("num_rows", "num_new"), [(2, 60), (8, 1)])
def test_every_level_keeps_up_with_torch(
    num_rows: int, num_new: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors that do not fit the processor's registers take thirty times as long; threefold is noise."""
    torch_s = shortest_pass(forward_by("torch", timed_model(), monkeypatch), num_rows, num_new)

    compiled_s = shortest_pass(forward_by(level, timed_model(), monkeypatch), num_rows, num_new)

    assert compiled_s < 3 * torch_s


def timed_model() -> Any:
    return model_of(Qwen3Config(**WIDE | {"hidden_size": 256, "intermediate_size": 512}, head_dim=32))


def shortest_pass(forward: Forward, num_rows: int, num_new: int) -> float:
    """Seconds, behind 200 positions."""
    cache, ids_BT = SlotCache(), torch.full((num_rows, num_new), 5)
    position_BT = torch.arange(200, 200 + num_new).expand(num_rows, -1)
    keep_B1 = torch.full((num_rows, 1), num_new - 1)
    cache.reserve(num_rows, 200 + num_new)
    cache.aim(position_BT, 200 + num_new)
    with torch.inference_mode():
        return min(timeit.repeat(lambda: forward(cache, ids_BT, position_BT, keep_B1), number=1, repeat=15))


@needs_compiled
def test_places_that_the_cache_does_not_have_are_refused() -> None:
    forward, cache = forward_of(model_of(TAKEN["llama"]), own=True), SlotCache()
    cache.reserve(1, 8)
    ids, keep = torch.tensor([[5]]), torch.tensor([[0]])

    cache.aim(torch.tensor([[9]]), 10)
    with pytest.raises(IndexError, match="place 9 is none of 8"):
        forward(cache, ids, torch.tensor([[3]]), keep)
    cache.aim(torch.tensor([[3]]), 4, hidden_BT2=torch.tensor([[[0, 99]]]))
    with pytest.raises(IndexError, match="end of what is hidden 99 is none of 4"):
        forward(cache, ids, torch.tensor([[3]]), keep)


@needs_compiled
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(num_threads: int) -> None:
    model, rows, before = model_of(TAKEN["qwen2"]), rows_of(), torch.get_num_threads()
    expected = at_once(model, rows)
    forward = forward_of(model, own=True)
    try:
        torch.set_num_threads(num_threads)
        found = in_pieces(forward, rows)
    finally:
        torch.set_num_threads(before)

    assert_close(found, expected, share=1e-5)


@needs_compiled
def test_a_batch_writes_what_generate_does() -> None:
    model = model_of(TAKEN["qwen3-32"])
    prompts = [[5, 6, 7], [8] * 50, [9, 10]]
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    batch = Batch(model, frozenset([2]), forward=forward_of(model, own=True))
    requests = [new_request(prompt, 12, temperature=0) for prompt in prompts]
    for request in requests:
        batch.add(request)
    while not batch.idle:
        batch.step()

    assert [request.sequences[0].tokens for request in requests] == [
        [token for token in tokens if token != 2] for tokens in expected
    ]


@needs_compiled
@pytest.mark.parametrize("name", LEFT)
def test_other_models_keep_their_weights(name: str) -> None:
    model = model_of(LEFT[name])
    rows = rows_of()
    expected = at_once(model, rows)

    forward = forward_of(model, own=True)

    assert not isinstance(forward, NativeDecoder)
    assert_close(in_pieces(forward, rows), expected)


@needs_compiled
def test_weights_come_back_where_logits_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = model_of(TAKEN["llama-biases"]), rows_of()
    expected = at_once(model, rows)
    close = choice._close
    monkeypatch.setattr(choice, "_close", lambda found, expected: close(found, expected) and not next(first))
    first = iter([False, True])

    forward = forward_of(model, own=True)

    assert isinstance(forward, Decoder)
    assert_close(in_pieces(forward, rows), expected)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("side_by_side", [False, True], ids=["one-after-the-other", "side-by-side"])
@pytest.mark.parametrize("lanes", [8, 16])
def test_a_matrix_gives_back_what_it_took(lanes: int, side_by_side: bool, half: bool) -> None:
    modules = [nn.Linear(24, 50), nn.Linear(24, 50)]
    if half:
        modules = [halved(module) for module in modules]
    before = [module.weight.detach().clone() for module in modules]

    matrix = Matrix(modules, lanes, side_by_side=side_by_side)
    assert [module.weight.numel() for module in modules] == [0, 0]
    matrix.give_back()

    assert all(module.weight.equal(weight) for module, weight in zip(modules, before, strict=True))


def test_without_it_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "library", lambda: None)
    model, rows = model_of(TAKEN["llama"]), rows_of()
    expected = at_once(model, rows)

    forward = forward_of(model, own=True)

    assert isinstance(forward, Decoder)
    assert_close(in_pieces(forward, rows), expected)


def test_one_that_cannot_be_loaded_is_told_of_and_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "decoder.so"
    broken.write_text("no library")
    monkeypatch.setattr(library, "file_of", lambda _: broken)
    library.load.cache_clear()
    try:
        assert library.library() is None
    finally:
        library.load.cache_clear()
    assert "cannot be loaded" in caplog.text or not library.runnable()


def test_what_another_source_gave_is_never_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "decoder.c"
    monkeypatch.setattr(library, "SOURCE", source)
    source.write_text("int one;")
    before = library.file_of("avx2")
    source.write_text("int two;")

    assert library.file_of("avx2") != before


@pytest.mark.skipif(build.compiler() is None, reason="there is no C compiler")
def test_building_leaves_what_is_current_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "decoder.c"
    for module in (library, build):
        monkeypatch.setattr(module, "SOURCE", source)
    source.write_text("int one;")
    (tmp_path / "decoder-avx2-0123456789ab.so").touch()
    cc = build.compiler()
    assert cc is not None

    build.build(cc)
    assert {file.name for file in tmp_path.glob("*.so")} == {library.file_of(level).name for level in library.levels()}
    source.write_text("int one")
    with pytest.raises(subprocess.CalledProcessError):
        build.build(cc)
    assert not list(tmp_path.glob("*.tmp"))


def test_without_a_compiler_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda _: None)

    assert build.main() == 0
    assert "apt install gcc" in capsys.readouterr().err

"""Models are opened without running anybody's code, and adapters share their base's memory."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model

from tests.fakes import tiny_causal, tiny_classifier, tiny_tokenizer
from vcllm.engine import precision
from vcllm.engine.classes import class_probabilities
from vcllm.engine.engine import greedy_texts
from vcllm.engine.load import Loader
from vcllm.engine.unsafe import Unsafe

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft 0.21

PROMPTS = ["Who may speak?", "谁可以发言？"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def folder(tokenizer: Any, tmp_path: Path) -> Path:
    """A saved causal model."""
    return save(tiny_causal(tokenizer), tokenizer, tmp_path / "full")


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def adapter_of(folder: Path, tokenizer: Any, seed: int, target: Path) -> tuple[Path, list[str]]:
    """Save a random adapter on the model in `folder`; also what the adapted model says."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(Loader("causal").load(folder).model, config)
    return save(model, tokenizer, target), greedy_texts(model, tokenizer, PROMPTS)


def test_a_loaded_model_says_what_the_saved_one_said(folder: Path, tokenizer: Any) -> None:
    """Weights, tokenizer and template make the whole way."""
    loaded = Loader("causal").load(folder)

    assert greedy_texts(loaded.model, loaded.tokenizer, PROMPTS) == greedy_texts(
        tiny_causal(tokenizer), tokenizer, PROMPTS
    )
    assert loaded.context == 512
    assert loaded.model.dtype == torch.float32


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "data.pkl", "modeling_own.py"])
def test_files_that_can_run_code_are_refused_by_name(folder: Path, name: str) -> None:
    """Even when safetensors lie beside them."""
    (folder / name).write_bytes(b"")

    with pytest.raises(Unsafe, match=name):
        Loader("causal").load(folder)


@pytest.mark.parametrize("config", ["config.json", "tokenizer_config.json"])
def test_a_configuration_that_names_code_is_refused(folder: Path, config: str) -> None:
    """`auto_map` would import a module from the folder or from a hub."""
    content = json.loads((folder / config).read_text())
    (folder / config).write_text(json.dumps({**content, "auto_map": {"AutoModel": "modeling_own.Model"}}))

    with pytest.raises(Unsafe, match="auto_map"):
        Loader("causal").load(folder)


def test_adapters_share_the_weights_of_their_base(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Two adapters, one base in memory; each speaks with its own voice, also after the other was loaded."""
    first_path, first_says = adapter_of(folder, tokenizer, 1, tmp_path / "first")
    second_path, second_says = adapter_of(folder, tokenizer, 2, tmp_path / "second")
    loader = Loader("causal")

    first, second = loader.load(first_path, base=folder), loader.load(second_path, base=folder)

    weights = [loaded.model.get_base_model().model.embed_tokens.weight for loaded in (first, second)]
    assert weights[0].data_ptr() == weights[1].data_ptr()
    assert greedy_texts(first.model, first.tokenizer, PROMPTS) == first_says
    assert greedy_texts(second.model, second.tokenizer, PROMPTS) == second_says
    assert first_says != second_says


def test_a_critic_adapter_brings_its_classes(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """A head and labels on a base that has neither."""
    full = tiny_classifier(tokenizer)
    full.model.load_state_dict(tiny_causal(tokenizer).model.state_dict())
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type=TaskType.SEQ_CLS)
    model = get_peft_model(full, config).eval()
    saved = save(model, tokenizer, tmp_path / "critic")
    model.config.save_pretrained(saved)
    ids = [tokenizer("hello")["input_ids"]]

    loaded = Loader("classifier").load(saved, base=folder)

    assert loaded.model.config.id2label[1] == "violating"
    assert class_probabilities(loaded.model, ids)[0] == pytest.approx(class_probabilities(model, ids)[0], abs=1e-5)


def test_a_folder_says_what_it_holds(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """A loader of any kind opens a language model, a classifier, and an adapter of either by its task."""
    head = save(tiny_classifier(tokenizer), tokenizer, tmp_path / "head")
    adapter, _ = adapter_of(folder, tokenizer, 1, tmp_path / "adapter")
    loader = Loader(None)

    kinds = [loader.load(folder).kind, loader.load(head).kind, loader.load(adapter, base=folder).kind]

    assert kinds == ["causal", "classifier", "causal"]


def test_the_wrong_kind_is_refused(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """A head would be random, or missing."""
    head = save(tiny_classifier(tokenizer), tokenizer, tmp_path / "head")

    with pytest.raises(ValueError, match="head holds a classifier; needed is a language model"):
        Loader("causal").load(head)
    with pytest.raises(ValueError, match="holds a language model; needed is a classifier"):
        Loader("classifier").load(folder)


def test_half_precision_can_be_asked_for(folder: Path) -> None:
    """On a CPU too."""
    loaded = Loader("causal", dtype="bfloat16").load(folder)

    assert loaded.model.dtype == torch.bfloat16
    assert len(greedy_texts(loaded.model, loaded.tokenizer, PROMPTS)) == 2


def test_a_model_without_padding_token_gets_one(folder: Path) -> None:
    """Batches need it."""
    for name, key in (("config.json", "pad_token_id"), ("tokenizer_config.json", "pad_token")):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if k != key}))

    loaded = Loader("causal").load(folder)

    assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id == loaded.tokenizer.eos_token_id


def test_a_base_is_forgotten_with_its_last_adapter(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """A server that moves on to another base does not keep the old one."""
    path, _ = adapter_of(folder, tokenizer, 1, tmp_path / "first")
    loader = Loader("causal")
    loaded = loader.load(path, base=folder)
    base = ref(loaded.base)

    del loaded
    gc.collect()

    assert base() is None


@pytest.mark.parametrize(
    ("native", "size", "expected"), [(True, 0, "bfloat16"), (True, 1, "float32"), (False, 0, "float32")]
)
def test_a_cpu_computes_large_models_in_bfloat16_where_it_can(
    folder: Path, monkeypatch: pytest.MonkeyPatch, native: bool, size: int, expected: str
) -> None:
    """Small ones stay exact; an adapter is computed as its base."""
    monkeypatch.delenv("VCLLM_PRECISION", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": native})
    monkeypatch.setattr(precision, "SMALL", size << 30)

    assert Loader("causal").dtype(folder) == getattr(torch, expected)
    assert Loader("causal", dtype="float32").dtype(folder) == torch.float32


def test_bfloat16_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs that are compared to the last bit on processors that multiply it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    device = torch.device("cpu")

    monkeypatch.setenv("VCLLM_PRECISION", "float32")
    forbidden = precision.has_bfloat16(device)
    monkeypatch.delenv("VCLLM_PRECISION")

    assert not forbidden
    assert precision.has_bfloat16(device)

"""Opening a stage's model and writing the one it made: full weights or a LoRA adapter, safetensors only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from vcllm.contracts.critiques import SCORE_PREFIX, SCORED
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import CriticStage, StageOrder
from vcllm.engine.load import fetch, prepare
from vcllm.engine.precision import has_bfloat16
from vcllm.engine.prompts import stop_ids
from vcllm.stores.models import ModelStore
from vcllm.training import scratch
from vcllm.training.encode import criteria_of
from vcllm.training.templates import give_template


@dataclass(frozen=True)
class Opened:
    """A model to train."""

    model: Any
    tokenizer: Any
    base: str | None
    """What an adapter sits on: `role/version` in the store, a folder or a hub id; None for full weights."""

    @property
    def core(self) -> Any:
        """The transformers model, without an adapter's wrapping."""
        return self.model.get_base_model() if self.base is not None else self.model


def open_model(order: StageOrder, store: ModelStore, rows: Iterable[dict[str, Any]]) -> Opened:
    """The parent of the order, or a new model.

    `rows` make the tokenizer of a model from scratch, and say which criteria a critic is to score.
    """
    if order.parent is None and order.base.scratch is not None:
        tokenizer: Any = scratch.train_tokenizer(map(_text, rows), order.base.scratch.vocab_size)
        return Opened(scratch.new_model(order.base.scratch, tokenizer), tokenizer, None)
    source, base = _sources(order, store)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = _load(order, base or source, rows)
    except (OSError, ValueError, KeyError, SafetensorError) as error:  # transformers' words for what is not a model
        raise BadRequest(
            f"{base or source} cannot be opened as a model: {_first_sentence(error)} Bring a folder with config.json, "
            "tokenizer.json and weights in safetensors."
        ) from error
    prepare(model, tokenizer)
    give_template(tokenizer)
    if base is not None and _is_adapter(source):
        return Opened(
            PeftModel.from_pretrained(model, source, is_trainable=True), tokenizer, _named(order, store, base)
        )
    if order.lora is not None:
        return Opened(_with_adapter(model, order), tokenizer, _named(order, store, source))
    return Opened(model, tokenizer, None)


def write_model(opened: Opened, folder: Path) -> None:
    """Safetensors, configuration and tokenizer; an adapter also gets its tokenizer, so that it stands alone.

    The generation configuration names every token that ends an answer: other programs stop where our engine does.
    """
    opened.model.save_pretrained(folder, safe_serialization=True)
    opened.tokenizer.save_pretrained(folder)
    if (generation := getattr(opened.model, "generation_config", None)) is not None:
        # As JSON: transformers refuses to save a changed one that is not consistent in all else, and many are not.
        settings = json.loads(generation.to_json_string())
        settings["eos_token_id"] = sorted(stop_ids(opened.model, opened.tokenizer))
        (folder / "generation_config.json").write_text(json.dumps(settings, indent=2))
    if (adapter := folder / "adapter_config.json").is_file():
        # Its layers are a set, written in another order by every process.
        described = json.loads(adapter.read_text())
        if isinstance(described["target_modules"], list):
            described["target_modules"].sort()
        adapter.write_text(json.dumps(described, indent=2, sort_keys=True))
    (folder / "README.md").unlink(missing_ok=True)
    if opened.base is not None and hasattr(opened.model.config, "critic_temperature"):
        opened.model.config.save_pretrained(folder)


def threads(wanted: int | None) -> int:
    """Threads of this process: what the order or the launcher says, else all cores; divided among processes."""
    here = wanted or int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    return max(1, here // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _sources(order: StageOrder, store: ModelStore) -> tuple[Path, Path | None]:
    """The folder to start from, and the folder below it when that is an adapter."""
    if order.parent is None:
        assert order.base.model is not None
        return _fetch(order.base.model, order.base.revision), None
    role, _, version = order.parent.partition("/")
    manifest = store.verify(role, version)
    folder = store.path(role, version)
    if manifest.format == "full":
        return folder, None
    assert manifest.base is not None, "an adapter names its base"
    base_role, _, base_version = manifest.base.rpartition("/")
    known = base_role in ("actor", "attacker", "critic") and store.has(base_role, base_version)
    return folder, store.path(base_role, base_version) if known else _fetch(manifest.base, order.base.revision)


def _fetch(name: str, revision: str | None) -> Path:
    try:
        return fetch(name, revision)
    except (OSError, ValueError) as error:
        raise BadRequest(
            f"The base '{name}' is neither a folder on this machine nor a model of the hub that can be fetched now "
            f"({_first_sentence(error)}) Correct base.model in the recipe, or put the model's folder there."
        ) from error


def _first_sentence(error: Exception) -> str:
    """The beginning of a library's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0].rstrip('.') if lines else type(error).__name__}."


def _load(order: StageOrder, folder: Path, rows: Iterable[dict[str, Any]]) -> Any:
    """Weights that move are float32; those an adapter leaves alone take half the room where bfloat16 is native."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = order.lora is not None and device.type == "cuda" and has_bfloat16(device)
    dtype = torch.bfloat16 if half else torch.float32
    common: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "dtype": dtype}
    if not isinstance(order.stage, CriticStage):
        return AutoModelForCausalLM.from_pretrained(folder, **common)
    criteria = criteria_of(rows) if order.stage.score_weight else []
    names = dict(enumerate([*(outcome.value for outcome in SCORED), *(SCORE_PREFIX + name for name in criteria)]))
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=len(names),
        id2label=names,
        label2id={name: index for index, name in names.items()},
        **common,
    )
    model.config.critic_criteria = criteria
    return model


def _with_adapter(model: Any, order: StageOrder) -> PeftModel:
    """BadRequest when the adapter would sit nowhere, or on the output layer."""
    assert order.lora is not None
    wanted = order.lora.target_modules
    try:
        adapted: Any = get_peft_model(model, _lora(order, model))
    except ValueError as error:  # peft's word for targets that match nothing
        kinds = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module)})
        raise BadRequest(
            f"lora.target_modules = {wanted!r} matches no layer of this model. Its linear layers are: "
            f"{', '.join(kinds)}."
        ) from error
    if order.stage.stage != "critic" and not _is_linear(adapted.get_base_model().get_output_embeddings()):
        raise BadRequest(
            f"lora.target_modules = {wanted!r} puts an adapter on the output layer, which is trained in chunks and "
            'cannot carry one. Leave it out, or use "all-linear".'
        )
    return adapted


def _is_linear(module: Any) -> bool:
    return type(module) in (torch.nn.Linear, Conv1D)


def _lora(order: StageOrder, model: Any) -> LoraConfig:
    assert order.lora is not None
    return LoraConfig(
        task_type=TaskType.SEQ_CLS if order.stage.stage == "critic" else TaskType.CAUSAL_LM,
        r=order.lora.rank,
        lora_alpha=order.lora.alpha,
        lora_dropout=order.lora.dropout,
        target_modules=order.lora.target_modules,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 keeps weights transposed
    )


def _named(order: StageOrder, store: ModelStore, folder: Path) -> str:
    """How a manifest names the folder an adapter sits on."""
    if folder.is_relative_to(store.root):
        return f"{folder.parent.name}/{folder.name}"
    if order.base.model is None:
        raise BadRequest("An adapter needs a base that is in the model store or named by the recipe.")
    return order.base.model


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _text(row: dict[str, Any]) -> str:
    return row["text"] if "text" in row else " ".join(turn["content"] for turn in row["messages"])

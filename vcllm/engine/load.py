"""Opening weights without running anybody's code: safetensors and data files only.

A folder holds full weights or a PEFT adapter; adapters of one base share its weights in memory. Knows nothing
of versions, manifests or hashes: whoever names a folder has checked it.
"""

from __future__ import annotations

import copy
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

Kind = Literal["causal", "classifier"]
NOUNS: dict[Kind, str] = {"causal": "a language model", "classifier": "a classifier"}
DtypeName = Literal["auto", "float32", "bfloat16"]

KIND_OF_TASK: dict[str, Kind] = {"CAUSAL_LM": "causal", "SEQ_CLS": "classifier"}
KIND_OF_CLASS: dict[str, Kind] = {
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForConditionalGeneration": "causal",
    "ForSequenceClassification": "classifier",
}
FORBIDDEN = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py"}
"""Formats that can run code when loaded."""
DATA_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
"""All that is ever fetched from a hub."""
CONFIGS = {"config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"}
LARGEST_CONTEXT = 1 << 20
"""For models that name no limit."""


class Unsafe(Exception):
    """The folder holds, or asks for, something that could run code."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run."""

    model: Any
    tokenizer: Any
    context: int
    """Tokens it reads and writes together at most."""
    kind: Kind = "causal"
    base: Any = None
    """The model an adapter shares its weights with; held so that the next adapter finds it."""


class Loader:
    """Opens models on one device, and holds each base that adapters sit on only once."""

    def __init__(self, kind: Kind | None, *, device: str = "cpu", dtype: DtypeName = "auto") -> None:
        """kind: what is opened, and nothing else; None: whatever a folder says it holds."""
        self.kind = kind
        self.device = torch.device(device)
        self.dtype = pick_dtype(self.device, dtype)
        self._bases: WeakValueDictionary[tuple[str, str, str], Any] = WeakValueDictionary()
        """Each lives as long as an adapter on it."""
        self._lock = threading.Lock()

    def load(self, source: str | Path, *, base: str | Path | None = None) -> Loaded:
        """A local folder or hub id; with `base`, an adapter for it.

        Unsafe, OSError if unreadable, ValueError if it is not of the loader's kind.
        """
        folder = fetch(source)
        base = None if base is None else fetch(base)
        kind = self._kind(folder)
        with self._lock:
            shared = None if base is None else self._base(kind, base, folder)
        model = self._full(kind, folder) if shared is None else self._adapted(shared, folder)
        has_own = base is None or (folder / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(folder if has_own else base, trust_remote_code=False)
        prepare(model, tokenizer)
        return Loaded(model, tokenizer, context_of(model), kind, shared)

    def _kind(self, folder: Path) -> Kind:
        found = kind_of(folder) or self.kind
        if found is None:
            raise ValueError(f"the configuration of {folder.name} names neither a language model nor a classifier")
        if self.kind not in (None, found):
            raise ValueError(f"{folder.name} holds {NOUNS[found]}; needed is {NOUNS[self.kind or found]}")
        return found

    def _full(self, kind: Kind, folder: Path, config: Any = None) -> Any:
        auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
        model: Any = auto.from_pretrained(
            folder,
            config=config,
            dtype=self.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        return model.to(self.device).eval()

    def _base(self, kind: Kind, folder: Path, adapter: Path) -> Any:
        own = adapter / "config.json"  # a classifier's adapter brings its classes here
        key = (kind, str(folder.resolve()), own.read_text() if own.is_file() else "")
        base = self._bases.get(key)
        if base is None:
            config = AutoConfig.from_pretrained(adapter, trust_remote_code=False) if own.is_file() else None
            base = self._bases[key] = self._full(kind, folder, config)
        return base

    def _adapted(self, base: Any, adapter: Path) -> Any:
        model: Any = PeftModel.from_pretrained(with_shared_weights(base), str(adapter))
        return model.to(self.device, self.dtype).eval()


def pick_dtype(device: torch.device, name: DtypeName) -> torch.dtype:
    """`auto`: float32 on a CPU, bfloat16 on an accelerator."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def fetch(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model, checked; a hub id is fetched, data files only, at `revision` or its newest.

    OSError or ValueError for what is neither.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=DATA_FILES))
    refuse_code(folder)
    return folder


def refuse_code(folder: Path) -> None:
    """Unsafe for pickles, for Python files, and for a configuration that names code to import."""
    found = sorted(file.name for file in folder.rglob("*") if file.suffix in FORBIDDEN)
    if found:
        raise Unsafe(f"{folder.name} holds {', '.join(found)}; only safetensors weights are opened")
    for file in folder.rglob("*.json"):
        if file.name in CONFIGS and "auto_map" in json.loads(file.read_text()):
            raise Unsafe(f"{folder.name}/{file.name} asks for code of its own (auto_map), which is never run")


def kind_of(folder: Path) -> Kind | None:
    """What the configuration says: an adapter's task, else the name of the model's class. None: neither says it."""
    adapter, config = folder / "adapter_config.json", folder / "config.json"
    if adapter.is_file():
        return KIND_OF_TASK.get(json.loads(adapter.read_text()).get("task_type"))
    names = json.loads(config.read_text()).get("architectures") if config.is_file() else None
    endings = [kind for name in names or [] for ending, kind in KIND_OF_CLASS.items() if name.endswith(ending)]
    return endings[0] if endings else None


def with_shared_weights(model: Any) -> Any:
    """A second module tree over the same tensors: an adapter can be put on it without touching the first."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def prepare(model: Any, tokenizer: Any) -> None:
    """Give both a padding token, which batches need; no answer depends on which it is."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


def context_of(model: Any) -> int:
    """Tokens the model can place."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or LARGEST_CONTEXT)

"""Opening weights without running anybody's code: safetensors and data files only.

A folder holds full weights or a PEFT adapter; adapters of one base share its weights in memory. Knows nothing
of versions, manifests or hashes: whoever names a folder has checked it.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from vcllm.engine.unsafe import refuse_code

Kind = Literal["causal", "classifier"]
DtypeName = Literal["auto", "float32", "bfloat16"]

DATA_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
"""All that is ever fetched from a hub."""
LARGEST_CONTEXT = 1 << 20
"""For models that name no limit."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run."""

    model: Any
    tokenizer: Any
    context: int
    """Tokens it reads and writes together at most."""
    base: Any = None
    """The model an adapter shares its weights with; held so that the next adapter finds it."""


class Loader:
    """Opens models on one device, and holds each base that adapters sit on only once."""

    def __init__(self, kind: Kind, *, device: str = "cpu", dtype: DtypeName = "auto") -> None:
        self.kind = kind
        self.device = torch.device(device)
        self.dtype = pick_dtype(self.device, dtype)
        self._bases: WeakValueDictionary[tuple[str, str], Any] = WeakValueDictionary()
        """Each lives as long as an adapter on it."""
        self._lock = threading.Lock()

    def load(self, source: str | Path, *, base: str | Path | None = None) -> Loaded:
        """A local folder or hub id; with `base`, an adapter for it. Unsafe, or OSError if unreadable."""
        folder = fetch(source)
        base = None if base is None else fetch(base)
        with self._lock:
            shared = None if base is None else self._base(base, folder)
        model = self._full(folder) if shared is None else self._adapted(shared, folder)
        has_own = base is None or (folder / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(folder if has_own else base, trust_remote_code=False)
        prepare(model, tokenizer)
        return Loaded(model, tokenizer, context_of(model), shared)

    def _full(self, folder: Path, config: Any = None) -> Any:
        auto = AutoModelForCausalLM if self.kind == "causal" else AutoModelForSequenceClassification
        model: Any = auto.from_pretrained(
            folder,
            config=config,
            dtype=self.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        return model.to(self.device).eval()

    def _base(self, folder: Path, adapter: Path) -> Any:
        own = adapter / "config.json"  # a classifier's adapter brings its classes here
        key = (str(folder.resolve()), own.read_text() if own.is_file() else "")
        base = self._bases.get(key)
        if base is None:
            config = AutoConfig.from_pretrained(adapter, trust_remote_code=False) if own.is_file() else None
            base = self._bases[key] = self._full(folder, config)
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

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
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from vcllm.engine.footprint import tensor_shapes, weight_bytes
from vcllm.engine.precision import DtypeName, pick_dtype
from vcllm.engine.unsafe import read_json, refuse_code

Kind = Literal["causal", "classifier"]
NOUNS: dict[Kind, str] = {"causal": "a language model", "classifier": "a classifier"}

KIND_OF_TASK: dict[str, Kind] = {"CAUSAL_LM": "causal", "SEQ_CLS": "classifier"}
KIND_OF_CLASS: dict[str, Kind] = {
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForConditionalGeneration": "causal",
    "ForSequenceClassification": "classifier",
}
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
    kind: Kind = "causal"
    base: Any = None
    """The model an adapter shares its weights with; held so that the next adapter finds it."""


class Loader:
    """Opens models on one device, and holds each base that adapters sit on only once."""

    def __init__(self, kind: Kind | None, *, device: str = "cpu", dtype: DtypeName = "auto") -> None:
        """kind: what is opened, and nothing else; None: whatever a folder says it holds."""
        self.kind = kind
        self.device = torch.device(device)
        self._dtype: DtypeName = dtype
        self._bases: WeakValueDictionary[tuple[str, str, str], Any] = WeakValueDictionary()
        """Each lives as long as an adapter on it."""
        self._lock = threading.Lock()

    def load(self, source: str | Path, *, base: str | Path | None = None) -> Loaded:
        """A local folder or hub id; with `base`, an adapter for it.

        Unsafe; OSError or ValueError if it cannot be read or is not of the loader's kind.
        """
        folder = fetch(source)
        base = None if base is None else fetch(base)
        kind = self._kind(folder)
        with self._lock:
            shared = None if base is None else self._base(kind, base, folder)
        model = self._complete(kind, folder) if shared is None else self._adapted(shared, folder)
        has_own = base is None or (folder / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(
            folder if has_own else base, trust_remote_code=False, local_files_only=True
        )
        prepare(model, tokenizer)
        return Loaded(model, tokenizer, context_of(model.config), kind, shared)

    def _kind(self, folder: Path) -> Kind:
        found = kind_of(folder) or self.kind
        if found is None:
            raise ValueError(f"the configuration of {folder.name} names neither a language model nor a classifier")
        if self.kind not in (None, found):
            raise ValueError(f"{folder.name} holds {NOUNS[found]}; needed is {NOUNS[self.kind or found]}")
        return found

    def holds(self, base: Path, adapter: Path) -> bool:
        """Whether the base is in memory already, as this adapter needs it."""
        return self._bases.get(base_key(self._kind(adapter), base, adapter)) is not None

    def weight_bytes(self, source: str | Path, *, base: str | Path | None = None) -> int:
        """What loading this would add to the memory in use; nothing is loaded to find out."""
        folder = fetch(source)
        shared = None if base is None else fetch(base)
        dtype = self.dtype(folder, base=shared)
        own = weight_bytes(folder, dtype)
        if shared is None or self.holds(shared, folder):
            return own
        return own + weight_bytes(shared, dtype)

    def dtype(self, source: str | Path, *, base: str | Path | None = None) -> torch.dtype:
        """In which it would be computed; an adapter as its base."""
        return pick_dtype(self.device, self._dtype, fetch(source if base is None else base))

    def config(self, source: str | Path, *, base: str | Path | None = None) -> Any:
        """The architecture of what `load` would give."""
        folder = fetch(source)
        inherited = base is not None and not (folder / "config.json").is_file()
        return read_config(fetch(base) if inherited else folder)  # type: ignore[arg-type]

    def _complete(self, kind: Kind, folder: Path) -> Any:
        """ValueError where tensors are missing, which would otherwise be made up at random."""
        model, info = self._full(kind, folder)
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{folder.name} has no {enumerated(missing)}; its weights are not complete")
        return model

    def _full(self, kind: Kind, folder: Path, config: Any = None) -> tuple[Any, dict[str, Any]]:
        auto: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
        model, info = auto.from_pretrained(
            folder,
            config=config,
            dtype=self.dtype(folder),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        return model.to(self.device).eval(), info

    def _base(self, kind: Kind, folder: Path, adapter: Path) -> Any:
        key = base_key(kind, folder, adapter)
        base = self._bases.get(key)
        if base is None:
            own = (adapter / "config.json").is_file()  # a classifier's head is missing here: its adapter brings it
            base = self._full(kind, folder, read_config(adapter))[0] if own else self._complete(kind, folder)
            self._bases[key] = base
        return base

    def _adapted(self, base: Any, adapter: Path) -> Any:
        from peft import PeftModel, get_peft_model_state_dict  # a second to import, and most versions need none of it

        model: Any = PeftModel.from_pretrained(with_shared_weights(base), str(adapter), local_files_only=True)
        found = {name for file in adapter.glob("*.safetensors") for name in tensor_shapes(file)}
        if missing := sorted(set(get_peft_model_state_dict(model)) - found):
            raise ValueError(f"{adapter.name} has no {enumerated(missing)}; its weights are not complete")
        return model.to(self.device, base.dtype).eval()


def base_key(kind: Kind, folder: Path, adapter: Path) -> tuple[str, str, str]:
    """What two adapters share a base by: its kind and folder, and the classes that a classifier's adapter brings."""
    own = adapter / "config.json"
    return kind, str(folder.resolve()), own.read_text() if own.is_file() else ""


def read_config(folder: Path) -> Any:
    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def fetch(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model, checked; a hub id is fetched, data files only, at `revision` or its newest.

    OSError or ValueError for what is neither.
    """
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=DATA_FILES))
    refuse_code(folder)
    return folder


def enumerated(names: list[str], most: int = 3) -> str:
    """The first few of them."""
    more = f" and {len(names) - most} more tensors" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def kind_of(folder: Path) -> Kind | None:
    """What the configuration says: an adapter's task, else the name of the model's class. None: neither says it."""
    adapter, config = folder / "adapter_config.json", folder / "config.json"
    if adapter.is_file():
        return KIND_OF_TASK.get(read_json(adapter).get("task_type"))
    names = read_json(config).get("architectures") if config.is_file() else None
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


def context_of(config: Any) -> int:
    """Tokens a model of this architecture can place."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or LARGEST_CONTEXT)

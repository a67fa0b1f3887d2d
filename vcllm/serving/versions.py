"""From a version's name to a model that is proven to be that version: hashes first, then its own words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.manifests import ROLES, Manifest, Probe, Role
from vcllm.engine.engine import greedy_texts
from vcllm.engine.load import Loaded, Loader
from vcllm.engine.prompts import encode, prompt_text
from vcllm.engine.scoring import largest_gap
from vcllm.engine.unsafe import Unsafe
from vcllm.serving.proof import NEAR_TIE, Refused
from vcllm.stores.models import Damaged, ModelStore


class VersionOpener:
    """Loads the versions of one role."""

    def __init__(self, store: ModelStore, role: Role, loader: Loader) -> None:
        self.store = store
        self.role = role
        self.loader = loader

    def open(self, version: str) -> Loaded:
        """The loaded version. NotFound when there is none; Refused when it is not what its manifest says."""
        name = f"{self.role}/{version}"
        try:
            manifest = self.store.verify(self.role, version)
            loaded = self.loader.load(self.store.path(self.role, version), base=self._base(manifest))
        except (Damaged, Unsafe) as error:
            raise Refused(f"{error}.") from error
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise Refused(f"{name} cannot be loaded: {error}") from error
        if self.loader.kind == "causal":
            check_probes(loaded, manifest.probes, name)
        return loaded

    def _base(self, manifest: Manifest) -> str | Path | None:
        """Where an adapter's base is: `role/version` in the store, verified too, else a folder or hub id."""
        if manifest.format == "full":
            return None
        assert manifest.base is not None, "an adapter's manifest names its base"
        role, _, version = manifest.base.rpartition("/")
        if role not in ROLES or not self.store.has(role, version):
            return manifest.base
        if self.store.verify(role, version).format != "full":
            raise Refused(f"{manifest.base} is itself an adapter; a base needs all its weights.")
        return self.store.path(role, version)


def check_probes(loaded: Loaded, probes: Sequence[Probe], name: str) -> None:
    """Refused when the model's greedy words are not those in its manifest, nor a near tie away."""
    if not probes:
        return
    said = greedy_texts(loaded.model, loaded.tokenizer, [probe.prompt for probe in probes])
    for probe, text in zip(probes, said, strict=True):
        if text != probe.text and not could_say(loaded, probe):
            raise Refused(f"{name} answers {probe.prompt!r} with {text!r}; its manifest says {probe.text!r}.")


def could_say(loaded: Loaded, probe: Probe) -> bool:
    """Whether, read word by word, the recorded text is at every place all but the model's favourite."""
    prompt = prompt_text(loaded.tokenizer, [ChatMessage(role="user", content=probe.prompt)])
    head, tail = encode(loaded.tokenizer, [prompt, probe.text])
    return bool(tail) and largest_gap(loaded.model, (head, tail)) <= NEAR_TIE

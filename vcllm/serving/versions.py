"""From a version's name to a model that is proven to be that version: hashes first, then its own words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.manifests import ROLES, Manifest, Probe, Role
from vcllm.engine.engine import greedy_texts
from vcllm.engine.load import Loaded, Loader
from vcllm.engine.prompts import encode, prompt_text
from vcllm.engine.scoring import largest_gap
from vcllm.serving.memory import available_bytes
from vcllm.serving.proof import NEAR_TIE, Refused, refusing
from vcllm.stores.models import ModelStore

TRIAL = "Who may speak?"
"""A text that every model can read."""

M = TypeVar("M")
CacheBytes = Callable[[Any, torch.dtype], int]
"""Of a configuration and a dtype: what the keys and values of one version may grow to."""


class VersionOpener(Generic[M]):
    """Loads the versions of one role. `wrap` makes of a loaded model what is served."""

    def __init__(
        self,
        store: ModelStore,
        role: Role,
        loader: Loader,
        wrap: Callable[[Loaded], M],
        *,
        cache_bytes: CacheBytes = lambda _, __: 0,
        reserve: int = 0,
        available: Callable[[torch.device], int | None] = available_bytes,
    ) -> None:
        self.store = store
        self.role = role
        self.loader = loader
        self.wrap = wrap
        self.cache_bytes = cache_bytes
        self.reserve = reserve
        """Bytes that stay free beside a version that is being loaded."""
        self.available = available

    def open(self, version: str) -> M:
        """The loaded version. NotFound when there is none; Refused when it is not what its manifest says."""
        name = f"{self.role}/{version}"
        with refusing(name):
            manifest = self.store.verify(self.role, version)
            base = self._base(manifest, verify=True)
            loaded = self.loader.load(self.store.path(self.role, version), base=base)
            check_arithmetic(loaded, name)
            if loaded.kind == "causal":
                check_probes(loaded, manifest.probes, name)
            return self.wrap(loaded)

    def checksum(self, version: str) -> str:
        return self.store.checksum(self.role, version)

    def shortage(self, version: str, *, alone: bool) -> str | None:
        """Why the version does not fit into the memory there is now; None: it fits, or nobody can tell.

        alone: nothing else is loaded, so nothing is gained by waiting for what a full cache would take.
        """
        with refusing(f"{self.role}/{version}"):
            weights, cache = self._need(version)
        device, host = self.loader.device, torch.device("cpu")
        whole, parts = weights + self.reserve, f"{gib(weights)} of weights, {gib(self.reserve)} in reserve"
        needs = {host: whole}  # on its way to another device, a model is in the machine's memory
        if not alone and cache:
            parts += f", {gib(cache)} for a full cache"
            whole += cache
        needs[device] = whole
        for place, needed in needs.items():
            free = self.available(place)
            if free is not None and needed > free:
                return f"Version '{version}' needs {gib(needed)} of memory ({parts}); {gib(free)} are free ({place})."
        return None

    def _need(self, version: str) -> tuple[int, int]:
        """Bytes of weights, and of a full cache."""
        manifest = self.store.inspect(self.role, version)
        folder, base = self.store.path(self.role, version), self._base(manifest, verify=False)
        dtype = self.loader.dtype(folder, base=base)
        cache = self.cache_bytes(self.loader.config(folder, base=base), dtype)
        return self.loader.weight_bytes(folder, base=base), cache

    def _base(self, manifest: Manifest, *, verify: bool) -> str | Path | None:
        """Where an adapter's base is: `role/version` in the store, else a folder or hub id.

        One that is in memory has been verified, and is not read again.
        """
        if manifest.format == "full":
            return None
        if manifest.base is None:
            raise Refused(f"{manifest.role}/{manifest.name} is an adapter, but its manifest names no base.")
        role, _, version = manifest.base.rpartition("/")
        if role not in ROLES:
            return manifest.base
        folder = self.store.path(role, version)
        if self.store.manifest(role, version).format != "full":
            raise Refused(f"{manifest.base} is itself an adapter; a base needs all its weights.")
        if verify and not self.loader.holds(folder, self.store.path(manifest.role, manifest.name)):
            self.store.verify(role, version)
        return folder


def check_arithmetic(loaded: Loaded, name: str) -> None:
    """Refused when the model has no row for some token, or makes of a plain text anything but numbers."""
    model, tokenizer = loaded.model, loaded.tokenizer
    num_rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > num_rows:
        raise Refused(f"{name} reads {num_rows} tokens, but its tokenizer writes {len(tokenizer)}.")
    [ids] = encode(tokenizer, [TRIAL])
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids or [0]], device=model.device), use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise Refused(f"{name} makes of a plain text what is no number (NaN or infinity): its weights are broken.")


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


def gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"

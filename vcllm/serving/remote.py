"""A role whose model runs on another server: which of its models is which version, proven before it is used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from vcllm.contracts.base import Name
from vcllm.contracts.chat import ChatMessage, Sampling
from vcllm.contracts.manifests import PROBE_TOKENS, ROLES, Manifest, Probe, Role
from vcllm.contracts.problems import BadRequest, NotFound, Problem
from vcllm.engine.lora import Adapter, load_adapter, served_models, unload_adapter
from vcllm.engine.protocol import Conversation
from vcllm.engine.remote import RemoteEngine
from vcllm.engine.remote_scoring import largest_gap
from vcllm.engine.text import REPLACEMENT
from vcllm.engine.unsafe import refuse_code
from vcllm.engine.upstream import Connection, Upstream
from vcllm.serving.proof import NEAR_TIE, Refused, refusing
from vcllm.serving.settings import WriterSettings
from vcllm.stores.models import ModelStore

log = logging.getLogger(__name__)

T = TypeVar("T")


class FixedModel:
    """In the place of aliases: one model of the upstream's is current, for ever."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get(self, role: Role) -> str:
        return self.name


class RemoteOpener:
    """Finds the versions of one role on an upstream server. Called from threads that run no event loop."""

    def __init__(self, store: ModelStore, role: Role, server: WriterSettings) -> None:
        self.store = store
        self.role = role
        self.server = server
        self.upstream = upstream_of(server)

    def open(self, version: str) -> RemoteEngine:
        """An engine for the version.

        NotFound when there is none; Refused when the upstream has it not, or something else under its name;
        Unavailable while the upstream does not answer.
        """
        if self.server.upstream_model:
            return self._open_fixed(version)
        with refusing(f"{self.role}/{version}"):
            manifest = self.store.verify(self.role, version)
            refuse_code(self.store.path(self.role, version))
            tokenizer = self._tokenizer(manifest)
            return (self._open_adapter if manifest.format == "adapter" else self._open_full)(manifest, tokenizer)

    def checksum(self, version: str) -> str:
        """Empty for the fixed model: nobody tells which weights a name stands for."""
        return "" if self.server.upstream_model else self.store.checksum(self.role, version)

    def shortage(self, version: str, *, alone: bool) -> str | None:
        """None: it takes no memory here, and what it takes there is for the upstream to refuse."""
        return None

    def _open_fixed(self, model: str) -> RemoteEngine:
        """The one model that is configured; there are no others."""
        if model != self.server.upstream_model:
            raise NotFound(
                f"There is no {self.role} version '{model}': this server serves '{self.server.upstream_model}' only.",
                code="model_not_found",
            )
        if self.upstream.extended and model not in (served := [each.id for each in self._ask(served_models)]):
            raise Refused(f"The upstream has no model '{model}'; it has {', '.join(served) or 'none'}.")
        folder = self.server.upstream_tokenizer
        return self._engine(model, tokenizer=None if folder is None else load_tokenizer(folder))

    def _open_adapter(self, manifest: Manifest, tokenizer: Any) -> RemoteEngine:
        """Have the upstream take it up beside the others."""
        adapter = self._adapter(manifest.name)
        unload = partial(self._unload, adapter)
        try:
            self._ask(lambda connection: load_adapter(connection, adapter))
        except (BadRequest, NotFound) as problem:
            raise Refused(
                f"The upstream does not take up the adapter {adapter.name}: {problem.message} It needs --enable-lora, "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and the model store at {self.server.upstream_models_root}."
            ) from problem
        try:
            self._prove(manifest, adapter.name, tokenizer)
        except BaseException:
            unload()
            raise
        return self._engine(adapter.name, tokenizer=tokenizer, adapter=adapter, on_close=unload)

    def _open_full(self, manifest: Manifest, tokenizer: Any) -> RemoteEngine:
        """Find it among what the upstream was started with."""
        names = {manifest.name, f"{self.role}/{manifest.name}"}
        root = None if self.server.upstream_models_root is None else str(self._seen(manifest.name))
        served = self._ask(served_models)
        found = [each.id for each in served if each.id in names or (root is not None and each.root == root)]
        if not found:
            raise Refused(
                f"The upstream does not serve {self.role}/{manifest.name}, which has all its weights and so cannot be "
                f"added to it; it serves {', '.join(each.id for each in served) or 'nothing'}. Start one with it."
            )
        self._prove(manifest, found[0], tokenizer)
        return self._engine(found[0], tokenizer=tokenizer)

    def _adapter(self, version: Name) -> Adapter:
        if self.upstream.dialect != "vllm" or self.server.upstream_models_root is None:
            raise Refused(
                f"{self.role}/{version} is an adapter, and the upstream takes up none: it must be vLLM and see the "
                "model store. Set upstream_models_root, or serve a version with all its weights."
            )
        return Adapter(f"{self.role}/{version}", str(self._seen(version)))

    def _seen(self, version: Name) -> PurePosixPath:
        """A version's folder in the upstream's eyes; `store.path` has refused names that could lead elsewhere."""
        assert self.server.upstream_models_root is not None, "asked for where the upstream sees the store"
        return self.server.upstream_models_root / self.store.path(self.role, version).relative_to(self.store.root)

    def _tokenizer(self, manifest: Manifest) -> Any:
        """The version's own, or that of the base its adapter sits on."""
        folder = self.store.path(self.role, manifest.name)
        role, _, version = (manifest.base or "").rpartition("/")
        if not (folder / "tokenizer_config.json").is_file() and role in ROLES and self.store.has(role, version):
            folder = self.store.path(role, version)
        return load_tokenizer(folder)

    def _prove(self, manifest: Manifest, model: str, tokenizer: Any) -> None:
        """Refused when the upstream's greedy words are not those in the manifest, nor a near tie away."""

        async def prove() -> None:
            engine = self._engine(model, tokenizer=tokenizer)
            try:
                await check_probes(engine, manifest)
            finally:
                await engine.aclose()

        asyncio.run(prove())

    def _engine(self, model: str, **options: Any) -> RemoteEngine:
        return RemoteEngine(self.upstream, model, default_max_tokens=self.server.default_max_tokens, **options)

    def _ask(self, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        """The result of work with the upstream, which ends with it."""

        async def asked() -> T:
            connection = Connection(self.upstream)
            try:
                return await work(connection)
            finally:
                await connection.aclose()

        return asyncio.run(asked())

    def _unload(self, adapter: Adapter) -> None:
        """Free its place. The upstream may be gone by now, which is no reason for anything here to fail."""
        try:
            self._ask(lambda connection: unload_adapter(connection, adapter))
        except Problem as problem:
            log.warning("The upstream still holds the adapter %s: %s", adapter.name, problem)


def upstream_of(server: WriterSettings) -> Upstream:
    """What the settings say of it."""
    return Upstream(
        url=server.upstream_url,
        key=server.upstream_key.get_secret_value(),
        dialect=server.upstream_dialect,
        connect_s=server.upstream_connect_s,
        silence_s=server.upstream_silence_s,
        max_calls=server.upstream_calls,
        num_retries=server.upstream_retries,
    )


def load_tokenizer(folder: Path) -> Any:
    """With transformers, which works without torch; imported late, as a hosted model needs none."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


async def check_probes(engine: RemoteEngine, manifest: Manifest) -> None:
    """Refused when it does not answer as the trainer saw it, and could not either."""
    greedy = Sampling(temperature=0.0, max_tokens=PROBE_TOKENS)
    asked = [[ChatMessage(role="user", content=probe.prompt)] for probe in manifest.probes]
    answers = await engine.complete(asked, greedy)
    for probe, conversation, answer in zip(manifest.probes, asked, answers, strict=True):
        # Half a character at the very end is left out by us, and written as a replacement by others.
        text = answer.completions[0].text.rstrip(REPLACEMENT)
        if text != probe.text and not await could_say(engine, conversation, probe):
            raise Refused(
                f"The upstream's {engine.model} answers {probe.prompt!r} with {text!r}; the manifest of "
                f"{manifest.role}/{manifest.name} says {probe.text!r}. Does it serve the right weights"
                f"{f' of {manifest.base}' if manifest.base else ''}, with their chat template?"
            )


async def could_say(engine: RemoteEngine, conversation: Conversation, probe: Probe) -> bool:
    """Whether, read word by word, the recorded text is at every place all but the model's favourite."""
    try:
        [read] = await engine.read(conversation, [probe.text])
    except BadRequest:  # it does not tell log-probabilities, so its words alone count
        return False
    return read is not None and largest_gap(read) <= NEAR_TIE

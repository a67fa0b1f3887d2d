"""Which critic a version is: a classifier by its head, or a judge for any other language model; with a guard or not."""

from __future__ import annotations

import threading

from services.critic.classifier import Classifier
from services.critic.critic import Critic
from services.critic.form import Form, forms
from services.critic.guard import Guard, Guarded, Labels
from services.critic.judge import Judge
from services.critic.settings import CriticSettings
from vcllm.charter import CharterError, load_charter
from vcllm.charter.load import charter_folder
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.manifests import ROLES
from vcllm.contracts.problems import BadRequest
from vcllm.engine.load import Loaded, Loader
from vcllm.engine.local import LocalEngine
from vcllm.engine.prompts import prompt_text
from vcllm.engine.protocol import Conversation
from vcllm.engine.unsafe import Unsafe
from vcllm.serving.proof import Refused
from vcllm.serving.versions import VersionOpener
from vcllm.settings import Settings
from vcllm.stores.models import ModelStore

JUDGE_READS = (ChatMessage(role="user", content="?"),)
GUARD_READS = (*JUDGE_READS, ChatMessage(role="assistant", content="!"))


class Backends:
    """Makes critics of loaded models. All of them share one guard, which is loaded while any of them is."""

    def __init__(self, server: CriticSettings, shared: Settings) -> None:
        self.server = server
        self.shared = shared
        self._guard: Guard | None = None
        self._num_guarded = 0
        self._lock = threading.Lock()

    def open(self, loaded: Loaded) -> Critic:
        """The critic that this model is; Refused when it is none, or cannot be one with these settings."""
        critic = Classifier(loaded) if loaded.kind == "classifier" else self._judge(loaded)
        if not self.server.guard:
            return critic
        try:
            return Guarded(critic, self._take_guard(), self._give_guard_back)
        except BaseException:
            critic.close()
            raise

    def _judge(self, loaded: Loaded) -> Judge:
        check_template(loaded, JUDGE_READS, "This language model cannot judge")
        return Judge(LocalEngine(loaded, own=True), self._forms(), min_mass=self.server.min_mass)

    def _forms(self) -> dict[Language, Form]:
        name = self.server.charter
        try:
            found = forms(load_charter(charter_folder(name, self.shared.charters)))
        except (BadRequest, CharterError) as error:
            raise Refused(f"CRITIC_CHARTER={name} cannot be used: {error}") from error
        if found is None:
            sentence = "its rubric.yaml does not say how a language model is asked to judge"
            advice = "Add 'judge' as the shipped charter has it."
            raise Refused(f"CRITIC_CHARTER={name} cannot be used: {sentence}. {advice}")
        return found

    def _take_guard(self) -> Guard:
        with self._lock:
            if self._guard is None:
                self._guard = self._open_guard()
            self._num_guarded += 1
            return self._guard

    def _give_guard_back(self) -> None:
        with self._lock:
            self._num_guarded -= 1
            if self._num_guarded == 0 and self._guard is not None:
                self._guard.close()
                self._guard = None

    def _open_guard(self) -> Guard:
        server = self.server
        loaded = self._load_guard()
        check_template(loaded, GUARD_READS, f"CRITIC_GUARD={server.guard} cannot be used")
        labels = Labels(tuple(server.guard_safe), tuple(server.guard_unsafe))
        return Guard(LocalEngine(loaded, own=True), labels, threshold=server.guard_threshold, min_mass=server.min_mass)

    def _load_guard(self) -> Loaded:
        """A `role/version` of the store, verified; else a folder or hub id, as an adapter's base is."""
        name = self.server.guard
        store = ModelStore(self.shared.models)
        loader = Loader("causal", device=self.server.device, dtype=self.server.dtype)
        role = next((role for role in ROLES if name.startswith(f"{role}/")), None)
        try:
            if role is not None and store.has(role, version := name.removeprefix(f"{role}/")):
                return VersionOpener(store, role, loader, lambda loaded: loaded).open(version)
            return loader.load(name)
        except (Refused, Unsafe, OSError, ValueError, KeyError, RuntimeError) as error:
            raise Refused(f"CRITIC_GUARD={name} cannot be used: {error}") from error


def check_template(loaded: Loaded, conversation: Conversation, fault: str) -> None:
    """Refused, with `fault`, when the model's chat template does not take such a conversation."""
    try:
        prompt_text(loaded.tokenizer, conversation)
    except BadRequest as refused:
        raise Refused(f"{fault}: {refused}") from refused

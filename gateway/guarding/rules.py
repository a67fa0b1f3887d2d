"""Which guard stands before a key's chats, by the charter the gateway is told and by the key itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vcllm.charter import CharterError, load_charter
from vcllm.charter.load import charter_folder
from vcllm.contracts.guard import GuardMode, GuardPolicy, GuardStage
from vcllm.contracts.keys import KeyRecord
from vcllm.contracts.problems import BadRequest
from vcllm.settings import Settings


@dataclass(frozen=True)
class Rule:
    """A guard that is on."""

    mode: GuardMode
    policy: GuardPolicy
    stamp: str
    """Of the charter with its mode, for `x-vc-policy`."""

    @property
    def enforces(self) -> bool:
        return self.mode is GuardMode.ENFORCE

    def asks(self, stage: GuardStage) -> bool:
        return stage in self.policy.stages


class Rules:
    """One charter's guard, in every mode a key may have."""

    def __init__(self, charter: str, charter_hash: str, policy: GuardPolicy) -> None:
        self.charter = charter
        self.charter_hash = charter_hash
        self.policy = policy
        self._by_mode: Mapping[GuardMode, Rule | None] = {
            GuardMode.OFF: None,
            **{mode: Rule(mode, policy, self.stamp(mode)) for mode in (GuardMode.OBSERVE, GuardMode.ENFORCE)},
        }

    @classmethod
    def load(cls, name: str, settings: Settings) -> Rules:
        """ValueError when there is no such charter, or it cannot be read: a guard must not be missed in silence."""
        try:
            loaded = load_charter(charter_folder(name, settings.charters))
        except (BadRequest, CharterError) as error:
            raise ValueError(f"GATEWAY_CHARTER={name} cannot be used: {error}") from error
        return cls(loaded.charter.id, loaded.hash, loaded.charter.guard)

    def of(self, key: KeyRecord) -> Rule | None:
        """None: the guard is off."""
        return self._by_mode[self.mode_of(key)]

    def mode_of(self, key: KeyRecord) -> GuardMode:
        """The key's own, laxer or stricter: only administrators make keys, and every reply says which mode it was."""
        return key.guard or self.policy.mode

    def stamp(self, mode: GuardMode) -> str:
        return policy_stamp(self.charter, self.charter_hash, mode)


def policy_stamp(charter: str, charter_hash: str, mode: GuardMode) -> str:
    return f"{charter}@{charter_hash[:8]}:{mode}"

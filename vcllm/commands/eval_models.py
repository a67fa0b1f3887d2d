"""Who is asked: models named on the command line, or the versions between base and current behind the gateway.

Knows where a model answers and with which key; what it is asked is the business of the stages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from vcllm.commands.api import open_api, read_fleet
from vcllm.commands.errors import CommandError
from vcllm.commands.keys import key_store
from vcllm.contracts.answers import AskedModel, Decoding
from vcllm.contracts.base import NAME_PATTERN
from vcllm.contracts.chat import ALIGNED_MODEL
from vcllm.contracts.keys import Scope
from vcllm.contracts.manifests import Manifest
from vcllm.contracts.problems import BadRequest, NotFound
from vcllm.evaluation.endpoint import Target
from vcllm.launch.local_actor import LocalActor
from vcllm.settings import Settings
from vcllm.stores.models import Damaged, ModelStore

KEY = "VCLLM_EVAL_KEY"
"""Variable of the key that servers other than our gateway are asked with; `VCLLM_EVAL_KEY_NAME` for one of them."""
PROMPTED = "+charter"
"""Ends the name of a model that is asked with the charter as its system message."""
CURRENT = "current"
LENT_S = 86_400.0
"""A key made for an evaluation opens nothing after this, should the command be killed before it can revoke it."""
FORMS = (
    "Write NAME=URL#MODEL for a server, NAME=FOLDER for a local model, or NAME=VERSION for one behind the gateway; "
    "names have letters, digits and . _ + -."
)


@dataclass(frozen=True)
class Source:
    """A model to ask, and where it is; exactly one of url and folder is set."""

    name: str
    served: str
    """What the server calls it, or the folder."""
    url: str = ""
    folder: Path | None = None
    key: SecretStr = SecretStr("")
    prompted: bool = False

    def asked(self, decoding: Decoding) -> AskedModel:
        how = decoding.model_copy(update={"charter_prompt": self.prompted})
        return AskedModel(name=self.name, url=self.url, served=self.served, decoding=how)


@contextmanager
def opened(source: Source) -> Iterator[Target]:
    """Where the model answers; a local folder is served for as long as it takes."""
    if source.folder is None:
        yield Target(source.url, source.served, source.key)
        return
    with LocalActor(source.folder) as actor:
        yield Target(actor.url, actor.model, actor.key)


def wanted_sources(specs: Sequence[str], prompted: Sequence[str], gateway: Gateway | None) -> list[Source]:
    """The models that are named, or the whole lineage behind the gateway; raises CommandError."""
    if specs:
        return read_sources(specs, prompted, gateway)
    if prompted:
        raise CommandError("--prompted is about a --model. Without any, the base is asked with the charter anyway.")
    assert gateway is not None, "asked for wherever no model is named"
    return lineage_sources(gateway)


def read_sources(specs: Sequence[str], prompted: Sequence[str], gateway: Gateway | None) -> list[Source]:
    """From `NAME=URL#MODEL`, `NAME=FOLDER` and `NAME=VERSION`; raises CommandError. gateway: for versions."""
    sources = [_source(spec, gateway) for spec in specs]
    if unknown := [name for name in prompted if name not in {source.name for source in sources}]:
        raise CommandError(f"--prompted names '{unknown[0]}', which no --model does.")
    asked = [one for source in sources for one in _with_prompted(source, source.name in prompted)]
    if len({source.name for source in asked}) < len(asked):
        raise CommandError("Two models have the same name. Every --model needs a name of its own before the '='.")
    return asked


def needs_gateway(specs: Sequence[str]) -> bool:
    """Whether some spec, or the default where there is none, is about versions behind the gateway."""
    return not specs or any(_is_version(spec.partition("=")[2]) for spec in specs)


def _source(spec: str, gateway: Gateway | None) -> Source:
    refuse_secrets(spec)
    name, _, where = spec.partition("=")
    if not where or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", name):
        raise CommandError(f"'{spec}' names no model. {FORMS}")
    if "#" in where or "://" in where:
        return _server(name, where)
    if _is_version(where):
        assert gateway is not None, "asked for wherever a version is named"
        return gateway.source(name, where)
    folder = Path(where).expanduser()
    if not (folder / "config.json").is_file():
        what = "holds no model: its config.json is missing" if folder.is_dir() else "is no folder"
        raise CommandError(f"'{name}': {folder} {what}. {FORMS}")
    return Source(name, str(folder.resolve()), folder=folder)


def _server(name: str, where: str) -> Source:
    url, _, model = where.rpartition("#")
    if not url.startswith(("http://", "https://")) or not model:
        raise CommandError(f"'{name}': {where} is no address of a model. Write http(s)://HOST[:PORT][/v1]#MODEL.")
    return Source(name, model, url=url, key=key_for(name))


def _is_version(where: str) -> bool:
    """A folder of that name goes first."""
    return re.fullmatch(NAME_PATTERN, where) is not None and not Path(where).is_dir()


def _with_prompted(source: Source, prompted: bool) -> list[Source]:
    return [source, replace(source, name=f"{source.name}{PROMPTED}", prompted=True)] if prompted else [source]


# Keys.


def key_for(name: str) -> SecretStr:
    """The key a server of that name is asked with; empty where no variable holds one."""
    own = f"{KEY}_{re.sub(r'[^A-Z0-9]', '_', name.upper())}"
    for variable in (own, KEY):
        if key := os.environ.get(variable, "").strip():
            # As part of a header it would fail later, in an error message that shows it.
            if not key.isascii() or not key.isprintable():
                raise CommandError(f"{variable} holds no key: there are characters in it that no key has.")
            return SecretStr(key)
    return SecretStr("")


def refuse_secrets(address: str) -> None:
    """For addresses and what holds one: they stand in run.json, in error messages and in the list of processes."""
    url = address.rpartition("#")[0] or address
    if "://" in url and re.search("[@?]", url):
        raise CommandError(
            "An address holds a user, a password or a query. Leave these out: keys come from "
            f"{KEY}, or {KEY}_NAME for the model or judge of that name, and the gateway's from VCLLM_API_KEY."
        )


# Behind the gateway.


@dataclass(frozen=True)
class Gateway:
    """What a gateway serves to a key."""

    url: str
    key: SecretStr
    cards: Mapping[str, Mapping[str, Any]]
    """Of each version and of the alias, by name."""

    @property
    def current(self) -> str | None:
        """The promoted version; None before there is one."""
        return self.cards.get(ALIGNED_MODEL, {}).get("parent")

    def source(self, name: str, version: str) -> Source:
        """A version, or what the alias means now; CommandError for one that the key may not see."""
        if version not in self.cards:
            raise CommandError(
                f"'{name}': there is no folder {version}, and the gateway at {self.url} serves no such version to this "
                "key. `vcllm models list` shows those there are."
            )
        meant = self.current if version == ALIGNED_MODEL else version
        return Source(name, str(meant), url=self.url, key=self.key)

    def ancestors(self, version: str) -> list[str]:
        """The versions that it was made from, the first one first, and itself; CommandError where one is hidden."""
        chain = [version]
        while parent := str(self.cards[chain[0]].get("parent") or "").removeprefix("actor/"):
            if parent not in self.cards:
                raise CommandError(
                    f"The gateway does not show '{parent}', which '{chain[0]}' was made from. That takes a key with "
                    "the scope models:promote. Give one with --key, or name models with --model."
                )
            chain.insert(0, parent)
        return chain


@contextmanager
def lent_key(url: str | None, key: str | None) -> Iterator[str | None]:
    """The key to ask with: one that was given, else one made here that sees every version, for as long as this takes.

    Where no fleet runs on this machine nothing is made, and the gateway's own answer says what is missing.
    """
    given = url or key or os.environ.get("VCLLM_API_KEY")
    if given or "redis" not in read_fleet(Settings().home):
        yield key
        return
    with key_store() as store:
        made, record = store.create("vcllm eval", [Scope.CHAT, Scope.PROMOTE], LENT_S)
        try:
            yield made
        finally:
            store.revoke(record.id)


def look_at_gateway(url: str | None, key: str | None) -> Gateway:
    """Once, at the start; raises CommandError."""
    try:
        with open_api(url, key) as api:
            refuse_secrets(api.url)
            cards = {card["id"]: card for card in api.get("/v1/models")["data"]}
            return Gateway(api.url, SecretStr(api.key), cards)
    except CommandError as error:
        raise CommandError(f"{error} Models that are elsewhere are named with --model NAME=URL#MODEL.") from error


def lineage_sources(gateway: Gateway) -> list[Source]:
    """Base, base with the charter as system message, and each version up to the current one, which is named so."""
    if gateway.current is None:
        raise CommandError("The gateway serves no model yet. Run a pipeline first, or name models with --model.")
    chain = gateway.ancestors(gateway.current)
    names = [version.removeprefix(_lineage_of(chain)) for version in chain[:-1]]
    first, *later = [gateway.source(name, version) for name, version in zip([*names, CURRENT], chain, strict=True)]
    return [*_with_prompted(first, True), *later]


def _lineage_of(versions: Sequence[str]) -> str:
    """What they all begin with, up to a hyphen: `lineage-` of `lineage-r1` and `lineage-r2`."""
    common = os.path.commonprefix(list(versions))
    return common[: common.rfind("-") + 1]


# What the store on this machine knows of it.


@dataclass(frozen=True)
class Trained:
    """How a version was made."""

    lineage: str
    charter: str
    """Hash of the charter that it was trained under."""
    starter: bool
    """Trained from nothing on the starter world: only the gold judge can read what it says."""


def trained(home: Path, version: str | None) -> Trained | None:
    """None where there is no version, or its store is not on this machine."""
    made = list(_manifests(home, version)) if version else []
    if not made:
        return None
    first = made[-1]
    return Trained(made[0].lineage, made[0].charter, starter=first.parent is None and first.stage == "pretrain")


def _manifests(home: Path, version: str) -> Iterator[Manifest]:
    """Of a version and of those it was made from, newest first, as far as the store has them."""
    store, place = ModelStore(home / "models"), f"actor/{version}"
    while place:
        role, _, name = place.rpartition("/")
        try:
            manifest = store.manifest(role or "actor", name)
        except (NotFound, Damaged, BadRequest):
            return
        yield manifest
        place = manifest.parent or ""

"""Which versions are in memory and which is current, without any model."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.fakes import PROBES, add_version, commit_model, temporary_store, tiny_causal, tiny_tokenizer
from vcllm.contracts.manifests import Probe
from vcllm.contracts.problems import NotFound, Overloaded, Unavailable
from vcllm.engine.engine import greedy_texts
from vcllm.engine.load import Loaded, Loader
from vcllm.serving import watcher as watcher_module
from vcllm.serving.pool import NOT_PROMOTED, VersionPool, resolve
from vcllm.serving.versions import Refused, VersionOpener, check_probes
from vcllm.serving.watcher import AliasWatcher
from vcllm.stores.models import ModelStore


class FakeModel:
    """Remembers that it was closed."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.closed = False

    def close(self) -> None:
        self.closed = True


class FakeVersions:
    """Opens everything except what it is told to refuse."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.refused: set[str] = set()

    def __call__(self, version: str) -> FakeModel:
        self.opened.append(version)
        if version in self.refused:
            raise Refused(f"{version} is not what it says.")
        return FakeModel(version)


class FakeAliases:
    """One alias, which may be out of reach."""

    def __init__(self) -> None:
        self.current: str | None = None
        self.up = True

    def get(self, role: str) -> str | None:
        if not self.up:
            raise RedisConnectionError("refused")
        return self.current


@pytest.fixture
def versions() -> FakeVersions:
    return FakeVersions()


@pytest.fixture
def pool(versions: FakeVersions) -> VersionPool[Any]:
    return VersionPool(versions, max_loaded=2)


@pytest.fixture
def aliases() -> FakeAliases:
    return FakeAliases()


@pytest.fixture
def watcher(aliases: FakeAliases, pool: VersionPool[Any]) -> AliasWatcher:
    return AliasWatcher(aliases, "actor", pool)  # type: ignore[arg-type]


async def used(pool: VersionPool[Any], version: str | None = None) -> str:
    async with pool.use(version) as held:
        return str(held.model.version)


def loaded(pool: VersionPool[Any]) -> list[str]:
    return [held.version for held in pool.held]


def test_concurrent_requests_share_one_load(pool: VersionPool[Any], versions: FakeVersions) -> None:
    """Ten want it at once; it is opened once."""

    async def ten() -> None:
        await asyncio.gather(*(used(pool, "v1") for _ in range(10)))

    asyncio.run(ten())

    assert versions.opened == ["v1"]


def test_the_least_recently_used_idle_version_goes(pool: VersionPool[Any]) -> None:
    """Not the current one, though it was used last of all."""
    pool.promote("v1")

    for version in ("v2", "v3", "v2"):
        asyncio.run(used(pool, version))

    assert sorted(loaded(pool)) == ["v1", "v2"]
    assert asyncio.run(used(pool)) == "v1"


def test_a_version_in_use_survives_promotions(pool: VersionPool[Any]) -> None:
    """It is unloaded when its last user has left and it is over the limit."""

    async def hold() -> None:
        pool.promote("v1")
        async with pool.use() as held:
            pool.promote("v2")
            pool.promote("v3")
            assert not held.model.closed
            assert await used(pool) == "v3"
        pool.trim()
        assert held.model.closed or "v2" not in loaded(pool)

    asyncio.run(hold())

    assert len(loaded(pool)) == 2


def test_no_room_is_an_overload(pool: VersionPool[Any]) -> None:
    """Everything loaded is in use: come back."""

    async def third() -> None:
        async with pool.use("v1"), pool.use("v2"):
            await used(pool, "v3")

    with pytest.raises(Overloaded):
        asyncio.run(third())


def test_a_cancelled_load_leaves_nobody_inside(versions: FakeVersions) -> None:
    """The caller is gone before the version is there; it can be unloaded afterwards."""
    pool = VersionPool[Any](versions, max_loaded=1)

    async def leave() -> None:
        task = asyncio.create_task(used(pool, "v1"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.05)
        assert await used(pool, "v2") == "v2"

    asyncio.run(leave())


def test_without_a_current_version_the_fixed_name_is_unavailable(pool: VersionPool[Any]) -> None:
    """503 with the sentence that /health/ready says too."""
    with pytest.raises(Unavailable, match="No version has been promoted yet"):
        asyncio.run(used(pool))


def test_a_refused_version_is_unavailable_by_name(pool: VersionPool[Any], versions: FakeVersions) -> None:
    """With the reason; the next request tries again."""
    versions.refused.add("v1")

    with pytest.raises(Unavailable, match="not what it says"):
        asyncio.run(used(pool, "v1"))


def test_the_watcher_follows_the_alias(watcher: AliasWatcher, aliases: FakeAliases) -> None:
    """Nothing, then one version, then another, then back."""
    seen = []
    for version in (None, "v1", "v1", "v2", "v1"):
        aliases.current = version
        watcher.look()
        seen.append(watcher.pool.current)

    assert seen == [None, "v1", "v1", "v2", "v1"]


def test_the_watcher_keeps_what_it_has(
    watcher: AliasWatcher, aliases: FakeAliases, versions: FakeVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through an outage, through a refused version (tried again only later), and when the alias is gone."""
    aliases.current = "v1"
    watcher.look()
    aliases.up = False
    watcher.look()
    assert (watcher.pool.current, watcher.missing) == ("v1", None)

    aliases.up, aliases.current = True, "v2"
    versions.refused.add("v2")
    for _ in range(3):
        watcher.look()
    assert (watcher.pool.current, versions.opened.count("v2"), watcher.num_refused) == ("v1", 1, 1)

    versions.refused.clear()
    monkeypatch.setattr(watcher_module.time, "monotonic", lambda: 1e12)
    watcher.look()
    assert (watcher.pool.current, watcher.refused) == ("v2", {})

    aliases.current = None
    watcher.look()
    assert watcher.pool.current == "v2"


def test_the_watcher_says_what_is_missing(watcher: AliasWatcher, aliases: FakeAliases, versions: FakeVersions) -> None:
    """No promotion, no Redis, no version that passes: three sentences."""
    watcher.look()
    first = watcher.missing
    aliases.up = False
    watcher.look()
    second = watcher.missing
    aliases.up, aliases.current = True, "v1"
    versions.refused.add("v1")
    watcher.look()

    assert first == NOT_PROMOTED
    assert second is not None and "Redis" in second
    assert watcher.missing == "v1 is not what it says."


@pytest.mark.parametrize(("name", "version"), [(None, None), ("vc-llm", None), ("v7", "v7")])
def test_the_fixed_name_means_the_current_version(name: str | None, version: str | None) -> None:
    """Every other name is a version."""
    assert resolve(name, "vc-llm") == version


def test_a_missing_version_is_not_found() -> None:
    """404 for the caller, not a refusal."""
    with pytest.raises(NotFound):
        VersionOpener(temporary_store(), "actor", Loader("causal")).open("v1")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft 0.21
def test_an_adapter_is_opened_on_the_base_its_manifest_names() -> None:
    """Base and adapter are both verified; together they say what the trainer saw."""
    store, tokenizer = temporary_store(), tiny_tokenizer()
    add_version(store, "actor", "full")
    probes = add_adapter(store, "tuned", base="actor/full")
    opener = VersionOpener(store, "actor", Loader("causal"))

    loaded = opener.open("tuned")

    said = greedy_texts(loaded.model, tokenizer, [probe.prompt for probe in probes])
    assert said == [probe.text for probe in probes]
    assert loaded.base is not None


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_an_adapter_on_an_adapter_is_refused() -> None:
    """A base needs all its weights."""
    store = temporary_store()
    add_version(store, "actor", "full")
    add_adapter(store, "tuned", base="actor/full")
    add_adapter(store, "again", base="actor/tuned")

    with pytest.raises(Refused, match="actor/tuned is itself an adapter"):
        VersionOpener(store, "actor", Loader("causal")).open("again")


def add_adapter(store: ModelStore, name: str, base: str) -> list[Probe]:
    """A random adapter on the tiny model; its probes."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(3)
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_causal(tokenizer), config)
    texts = greedy_texts(model, tokenizer, PROBES)
    probes = [Probe(prompt=prompt, text=text) for prompt, text in zip(PROBES, texts, strict=True)]
    commit_model(store, "actor", name, model, tokenizer, base=base, probes=probes)
    return probes


def test_a_probe_may_differ_by_a_near_tie_only() -> None:
    """Another precision may pick the other of two equals; another model may not pass."""
    tokenizer = tiny_tokenizer()
    model = tiny_causal(tokenizer)
    loaded = Loaded(model, tokenizer, 512)
    [text] = greedy_texts(model, tokenizer, ["Who may speak?"])

    check_probes(loaded, [Probe(prompt="Who may speak?", text=text)], "actor/v1")
    check_probes(loaded, [], "actor/v1")
    with pytest.raises(Refused, match="Who may speak"):
        check_probes(loaded, [Probe(prompt="Who may speak?", text="all of us")], "actor/v1")

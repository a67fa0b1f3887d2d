"""Which versions are in memory and which is current, without any model."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import wait
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from redis.exceptions import ConnectionError as RedisConnectionError
from safetensors.torch import load_file, save_file

from tests.fakes import PROBES, add_version, commit_model, temporary_store, tiny_causal, tiny_tokenizer
from vcllm.contracts.manifests import Probe, Role
from vcllm.contracts.problems import BadRequest, NotFound, Overloaded, Unavailable
from vcllm.contracts.servers import ServerReport
from vcllm.engine.engine import greedy_texts
from vcllm.engine.load import Kind, Loaded, Loader
from vcllm.serving import watcher as watcher_module
from vcllm.serving.memory import host_bytes, reclaim
from vcllm.serving.pool import NOT_PROMOTED, VersionPool, resolve
from vcllm.serving.proof import Refused
from vcllm.serving.versions import VersionOpener, check_probes
from vcllm.serving.watcher import AliasWatcher
from vcllm.stores.models import ModelStore, hash_files


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
        self.slow: dict[str, threading.Event] = {}
        """Loads that end when they are told to."""
        self.fits: Callable[[bool], bool] = lambda alone: True
        self.absent: str | None = None
        """Why none can be opened for now."""

    def open(self, version: str) -> FakeModel:
        self.opened.append(version)
        if version in self.slow:
            self.slow[version].wait(10)
        if self.absent:
            raise Unavailable(self.absent)
        if version in self.refused:
            raise Refused(f"{version} is not what it says.")
        return FakeModel(version)

    def checksum(self, version: str) -> str:
        return f"sha of {version}"

    def shortage(self, version: str, *, alone: bool) -> str | None:
        return None if self.fits(alone) else f"{version} needs more memory."


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


def settle(watcher: AliasWatcher) -> None:
    """Look until the load under way, if there is one, has come to something: how long it takes is not the question."""
    watcher.look()
    while watcher.pending is not None and watcher.pending.reason is None:
        watcher.look()


async def used(pool: VersionPool[Any], version: str | None = None) -> str:
    async with pool.use(version) as held:
        return str(held.model.version)


def promote(pool: VersionPool[Any], version: str) -> None:
    pool.begin(version).ended.result(10)
    assert pool.switch(version)


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
    promote(pool, "v1")

    for version in ("v2", "v3", "v2"):
        asyncio.run(used(pool, version))

    assert sorted(loaded(pool)) == ["v1", "v2"]
    assert asyncio.run(used(pool)) == "v1"


def test_a_version_in_use_survives_promotions(pool: VersionPool[Any]) -> None:
    """It is unloaded when its last user has left and it is over the limit."""

    async def hold() -> None:
        promote(pool, "v1")
        async with pool.use() as held:
            promote(pool, "v2")
            promote(pool, "v3")
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
    assert (watcher.pool.current, watcher.pending) == ("v2", None)

    aliases.current = None
    watcher.look()
    assert watcher.pool.current == "v2"


def test_a_version_whose_upstream_is_starting_is_tried_again_soon(
    watcher: AliasWatcher, aliases: FakeAliases, versions: FakeVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it does not answer yet says nothing about the version, so it does not count as refused."""
    aliases.current = "v1"
    versions.absent = "It does not answer."
    watcher.look()
    watcher.look()
    waiting = watcher.pending
    assert waiting is not None and (waiting.refused, watcher.missing) == (False, "It does not answer.")
    assert (len(versions.opened), watcher.looked, watcher.num_refused) == (1, True, 0)

    versions.absent = None
    soon = time.monotonic() + watcher_module.RETRY_UNAVAILABLE_S
    monkeypatch.setattr(watcher_module.time, "monotonic", lambda: soon)
    watcher.look()

    assert (watcher.pool.current, watcher.missing) == ("v1", None)


def test_the_watcher_says_what_is_missing(watcher: AliasWatcher, aliases: FakeAliases, versions: FakeVersions) -> None:
    """No promotion, no Redis, no version that passes: three sentences."""
    watcher.look()
    first = watcher.missing
    aliases.up = False
    watcher.look()
    second = watcher.missing
    aliases.up, aliases.current = True, "v1"
    versions.refused.add("v1")
    settle(watcher)

    assert first == NOT_PROMOTED
    assert second is not None and "Redis" in second
    assert watcher.missing == "v1 is not what it says."


@pytest.mark.parametrize(("name", "version"), [(None, None), ("vc-llm", None), ("v7", "v7")])
def test_the_fixed_name_means_the_current_version(name: str | None, version: str | None) -> None:
    """Every other name is a version."""
    assert resolve(name, "vc-llm") == version


def opener_of(store: ModelStore, role: Role = "actor", **options: Any) -> VersionOpener[Any]:
    kind: Kind = "classifier" if role == "critic" else "causal"
    return VersionOpener(store, role, Loader(kind), **{"wrap": lambda loaded: loaded, **options})


def test_a_missing_version_is_not_found() -> None:
    """404 for the caller, not a refusal."""
    with pytest.raises(NotFound):
        opener_of(temporary_store()).open("v1")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft 0.21
def test_an_adapter_is_opened_on_the_base_its_manifest_names() -> None:
    """Base and adapter are both verified; together they say what the trainer saw."""
    store, tokenizer = temporary_store(), tiny_tokenizer()
    add_version(store, "actor", "full")
    probes = add_adapter(store, "tuned", base="actor/full")
    opener = opener_of(store)

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
        opener_of(store).open("again")


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


def rewrite(folder: Path, file: str, **changes: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **changes}))


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def claim_huge_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", 1 << 60) + weights.read_bytes()[8:])


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def split_and_lose_a_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    places = dict.fromkeys([*tensors, "lost.weight"], "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def link_out(folder: Path) -> None:
    shutil.copy(folder / "config.json", folder.parent / "elsewhere.json")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder.parent / "elsewhere.json")


NAMED_CODE = {"auto_map": {"AutoModel": "own.Model"}}
WRONG_CONTENT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut weights": (cut, "is cut off"),
    "huge header": (claim_huge_header, "its header would have"),
    "missing shard": (split_and_lose_a_shard, "model-00002-of-00002"),
    "missing tensor": (lambda f: change_tensors(f, lambda t: t.pop("model.norm.weight")), "no model.norm.weight"),
    "nan": (lambda f: change_tensors(f, lambda t: t["model.norm.weight"].fill_(torch.nan)), "no number"),
    "other weights": (lambda f: change_tensors(f, lambda t: t["model.embed_tokens.weight"].neg_()), "manifest says"),
    "pickle": (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "pytorch_model.bin"),
    "tokenizer code": (lambda f: (f / "tokenization_own.py").write_text(""), "tokenization_own.py"),
    "code for tokenizer": (lambda f: rewrite(f, "tokenizer_config.json", **NAMED_CODE), "tokenizer_config.json asks"),
    "nested code": (lambda f: rewrite(f, "config.json", vision_config={"parts": [NAMED_CODE]}), "config.json asks"),
    "processor": (lambda f: (f / "preprocessor_config.json").write_text(json.dumps(NAMED_CODE)), "asks for code"),
    "kernel": (lambda f: rewrite(f, "config.json", _attn_implementation="own/kernel"), "kernel from a hub"),
    "architecture": (lambda f: rewrite(f, "config.json", model_type="unheard_of"), "unheard_of"),
    "no json": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
}
"""Versions that are what their manifest says, and still must not be served."""
SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "changed": (lambda f: rewrite(f, "config.json", vocab_size=3), "does not match its manifest"),
    "missing": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "added": (lambda f: (f / "generation_config2.json").write_text("{}"), "not listed in its manifest"),
    "link": (link_out, "lies outside of its version"),
    "manifest": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json cannot be read"),
    "other name": (lambda f: rewrite(f, "manifest.json", name="v7"), "that of actor/v7"),
    "other role": (lambda f: rewrite(f, "manifest.json", role="critic"), "that of critic/bad"),
    "no base": (lambda f: rewrite(f, "manifest.json", format="adapter"), "names no base"),
    "lost base": (lambda f: rewrite(f, "manifest.json", format="adapter", base="actor/v8"), "no actor version 'v8'"),
}
"""What happens to a version after it was committed."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A store with the version that is served, and a twin of it to spoil."""
    store = ModelStore(tmp_path_factory.mktemp("sound") / "models")
    for name in ("good", "bad"):
        add_version(store, "actor", name)
    return store


def reason_to_refuse(sound: ModelStore, root: Path, spoil: Callable[[Path], Any], recommit: bool) -> tuple[str, Any]:
    """What the watcher says of `bad` once it is spoiled, and what is served then."""
    shutil.copytree(sound.root, root)
    store, folder = ModelStore(root), root / "actor" / "bad"
    aliases, pool = FakeAliases(), VersionPool[Any](opener_of(store, wrap=FakeModel), max_loaded=2)
    watcher = AliasWatcher(aliases, "actor", pool, 10)  # type: ignore[arg-type]
    aliases.current = "good"
    watcher.look()
    spoil(folder)
    if recommit:
        rewrite(folder, "manifest.json", files=hash_files(folder))
    aliases.current = "bad"
    watcher.look()
    assert watcher.pending is not None and watcher.pending.refused, "it was not refused"
    return str(watcher.pending.reason), pool.current


@pytest.mark.parametrize("fault", WRONG_CONTENT)
def test_a_version_that_was_committed_wrong_is_refused(fault: str, sound: ModelStore, tmp_path: Path) -> None:
    """With the reason in a sentence; the version before it serves on."""
    spoil, words = WRONG_CONTENT[fault]

    reason, current = reason_to_refuse(sound, tmp_path / "models", spoil, recommit=True)

    assert words in reason and len(reason) < 700
    assert current == "good"


@pytest.mark.parametrize("fault", SPOILED)
def test_a_version_that_was_changed_later_is_refused(fault: str, sound: ModelStore, tmp_path: Path) -> None:
    """Its files, its manifest, or what it rests on."""
    spoil, words = SPOILED[fault]

    reason, current = reason_to_refuse(sound, tmp_path / "models", spoil, recommit=False)

    assert words in reason
    assert current == "good"


@pytest.mark.parametrize("name", ["../actor/good", "/etc", "%2e%2e/good", "..", "good/../bad"])
def test_a_name_that_climbs_out_of_the_store_is_refused(name: str, sound: ModelStore) -> None:
    """Before any path is touched."""
    with pytest.raises(BadRequest, match="is not a version name"):
        opener_of(sound).open(name)


def test_a_load_that_the_alias_has_left_behind_never_becomes_current(
    aliases: FakeAliases, versions: FakeVersions, pool: VersionPool[Any]
) -> None:
    """The alias moves on twice while v2 is loading; only the last one is served."""
    watcher = AliasWatcher(aliases, "actor", pool, poll_s=0.01)  # type: ignore[arg-type]
    versions.slow["v2"] = threading.Event()
    seen = []
    for version in ("v1", "v2", "v3", "v4"):
        aliases.current = version
        watcher.look()
        seen.append(pool.current)
    versions.slow["v2"].set()
    while pool.current != "v4":
        watcher.look()
        seen.append(pool.current)

    assert set(seen) == {"v1", "v4"}


def test_a_load_that_hangs_is_refused_and_stands_in_nobodys_way(aliases: FakeAliases, versions: FakeVersions) -> None:
    """The version named after it is loaded and served."""
    pool = VersionPool[Any](versions, max_loaded=2, load_s=0.05)
    watcher = AliasWatcher(aliases, "actor", pool, poll_s=0.1)  # type: ignore[arg-type]
    hanging = versions.slow["v1"] = threading.Event()
    aliases.current = "v1"
    watcher.look()
    reason = watcher.missing
    aliases.current = "v2"
    watcher.look()
    hanging.set()

    assert reason == "Version 'v1' is still not loaded after 0.05 s."
    assert pool.current == "v2"


def test_a_load_that_fails_between_two_polls_is_refused(
    aliases: FakeAliases, versions: FakeVersions, pool: VersionPool[Any]
) -> None:
    """Once, and not begun anew at each poll without ever being seen to fail."""
    watcher = AliasWatcher(aliases, "actor", pool, poll_s=0.01)  # type: ignore[arg-type]
    versions.refused.add("broken")
    slow = versions.slow["broken"] = threading.Event()
    aliases.current = "broken"
    watcher.look()
    loading = pool.begin("broken")

    slow.set()
    wait([loading.ended])
    slow.clear()
    watcher.look()
    refused, opened = watcher.num_refused, list(versions.opened)
    slow.set()

    assert (refused, opened) == (1, ["broken"])


def test_stopping_waits_for_no_load(aliases: FakeAliases, versions: FakeVersions, pool: VersionPool[Any]) -> None:
    """A server that drains while a version is loading ends; what comes of the load is closed."""
    watcher = AliasWatcher(aliases, "actor", pool, poll_s=0.01)  # type: ignore[arg-type]
    hanging = versions.slow["v1"] = threading.Event()
    aliases.current = "v1"
    watcher.start()
    while not versions.opened:
        time.sleep(0.001)

    watcher.stop()
    hanging.set()
    pool.close()

    assert (pool.held, pool.current) == ([], None)


def test_a_version_waits_for_memory_while_the_old_one_serves(
    aliases: FakeAliases, versions: FakeVersions, pool: VersionPool[Any]
) -> None:
    """First what is idle is unloaded; then it waits, says why, and is taken once there is room."""
    watcher = AliasWatcher(aliases, "actor", pool)  # type: ignore[arg-type]
    promote(pool, "v1")
    asyncio.run(used(pool, "idle"))
    versions.fits = lambda alone: False
    aliases.current = "v2"
    settle(watcher)
    waiting = copy(watcher.pending)

    versions.fits = lambda alone: True
    kept = loaded(pool)
    while pool.current != "v2":
        watcher.look()

    assert waiting is not None and (waiting.refused, waiting.reason) == (False, "v2 needs more memory.")
    assert kept == ["v1"]
    assert (pool.current, watcher.num_refused) == ("v2", 0)


def test_waiting_for_memory_has_an_end(aliases: FakeAliases, versions: FakeVersions, pool: VersionPool[Any]) -> None:
    """Then it counts as refused, and operators are told."""
    reports: list[ServerReport] = []
    watcher = AliasWatcher(aliases, "actor", pool, memory_wait_s=0, report=reports.append)  # type: ignore[arg-type]
    versions.fits = lambda alone: False
    aliases.current = "v1"

    watcher.look()

    told = [(report.current, report.pending, report.refused, report.reason) for report in reports]
    assert told == [(None, "v1", True, "v1 needs more memory.")]


def test_what_a_version_needs_is_held_against_what_is_free(sound: ModelStore) -> None:
    """Its weights and the reserve always; a full cache only beside another version."""
    weights = opener_of(sound).loader.weight_bytes(sound.path("actor", "good"))
    opener = opener_of(sound, cache_bytes=lambda *_: 1000, reserve=100, available=lambda _: weights + 100)

    assert opener.shortage("good", alone=True) is None
    assert "for a full cache" in str(opener.shortage("good", alone=False))


@pytest.mark.parametrize(
    "name",
    ["memory.max memory.current inactive_file", "memory.limit_in_bytes memory.usage_in_bytes total_inactive_file"],
)
def test_the_limit_of_a_container_counts(name: str, tmp_path: Path) -> None:
    """Either version of control groups, and also where the limit is that of a group above."""
    limit, used, pages = name.split()
    controller = "" if limit == "memory.max" else "memory"
    proc, above = tmp_path / "proc", tmp_path / "cgroups" / controller / "pod"
    (proc / "self").mkdir(parents=True)
    (above / "own").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    (proc / "self" / "cgroup").write_text(f"1:{controller}:/pod/own\n")
    for file, content in ((limit, "1000"), (used, "700"), ("memory.stat", f"{pages} 50")):
        (above / file).write_text(content)

    assert host_bytes(proc, tmp_path / "cgroups") == 350


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_adapter_versions_share_their_base_until_the_last_one_leaves() -> None:
    """One copy in memory through a swap of adapters, and none after both are gone."""
    store = temporary_store()
    add_version(store, "actor", "full")
    for name in ("first", "second"):
        add_adapter(store, name, base="actor/full")
    opener = opener_of(store, wrap=AdapterModel)
    pool = VersionPool[Any](opener, max_loaded=2)
    for name in ("first", "second"):
        promote(pool, name)

    places = {held.model.base_weight().data_ptr() for held in pool.held}
    base = weakref.ref(pool.held[0].model.loaded.base)
    pool.close()
    reclaim()

    assert len(places) == 1
    assert base() is None


class AdapterModel(FakeModel):
    """Keeps what was loaded."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__("adapter")
        self.loaded = loaded

    def base_weight(self) -> torch.Tensor:
        weight: torch.Tensor = self.loaded.model.get_base_model().model.embed_tokens.weight
        return weight

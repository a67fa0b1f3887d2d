"""Our Actor in front of a real vLLM, on a CPU: chats, scores, versions that are loaded while it runs, and leaving.

Needs vLLM in an environment of its own: `make vllm`, or VCLLM_TEST_VLLM as the path of a Python that has it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from peft import LoraConfig, get_peft_model
from pydantic import SecretStr
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from services.actor.app import create_app
from services.actor.settings import ActorSettings
from tests.fakes import CORPUS, PROBES, SPECIALS, TEMPLATE, commit_model, tiny_causal
from tests.servers import free_port, serve, wait_until
from tests.service_tokens import ServiceAuth, token_maker
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.manifests import Probe
from vcllm.engine.engine import greedy_texts
from vcllm.engine.load import Loader
from vcllm.engine.local import LocalEngine
from vcllm.serving.remote import RemoteOpener
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.models import ModelStore

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("VCLLM_TEST_VLLM", ROOT / ".venv-vllm" / "bin" / "python"))
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
"""Heads of a width that vLLM has on a CPU."""
ASK = [{"role": "user", "content": "Who may speak?"}]
TOKEN = "internal"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.is_file(), reason="vLLM is not installed: make vllm"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),  # peft 0.21
]


def letters() -> PreTrainedTokenizerFast:
    """A token per character, so that a random model writes whole ones: vLLM drops an unfinished end."""
    words = [*SPECIALS, "?", *sorted({*"".join(CORPUS + PROBES)} - {"?"})]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", unk_token="?")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[1:4]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with full weights and two adapters on them."""
    home: Path = tmp_path_factory.mktemp("vllm")
    store, tokenizer = ModelStore(home / "models"), letters()
    for name, seed in (("base", None), ("v1", 1), ("v2", 2)):
        model = tiny_causal(tokenizer, 0, **SHAPE)
        if seed is not None:
            torch.manual_seed(seed)
            model = get_peft_model(
                model, LoraConfig(r=8, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
            )
        texts = greedy_texts(model, tokenizer, PROBES)
        probes = [Probe(prompt=prompt, text=text) for prompt, text in zip(PROBES, texts, strict=True)]
        commit_model(store, "actor", name, model, tokenizer, base=seed and "actor/base", probes=probes)
    return home


@pytest.fixture(scope="module")
def vllm(home: Path) -> Iterator[str]:
    port, log = free_port(), home / "vllm.log"
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(home / "models/actor/base")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512", "--dtype", "float32"]
    command += ["--enforce-eager", "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8"]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**kept, **own, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: process.poll() is not None or answers(url), timeout_s=240)
            assert process.poll() is None, log.read_text()[-2000:]
            yield url
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def settings(home: Path, vllm: str) -> ActorSettings:
    return ActorSettings(
        upstream_url=vllm, upstream_models_root=str(home / "models"), upstream_metrics=True, poll_s=0.05
    )


@pytest.fixture
def actor(home: Path, redis_url: str, settings: ActorSettings) -> Iterator[OpenAI]:
    """The Actor in front of it, whose current version is v1."""
    with open_redis(redis_url) as redis:
        AliasStore(redis).promote("actor", "v1")
    shared = Settings(home=home, redis_url=redis_url, internal_token=SecretStr(TOKEN))
    with serve(create_app(settings, shared)) as url:
        wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 200, timeout_s=60)
        with OpenAI(base_url=f"{url}/v1", api_key=token_maker(TOKEN, "actor"), max_retries=0) as sdk:
            yield sdk


def chat(actor: OpenAI, **options: Any) -> Any:
    return actor.chat.completions.create(**{"model": "vc-llm", "messages": ASK, "max_tokens": 12, "seed": 4, **options})


def running(vllm: str) -> float:
    lines = httpx.get(f"{vllm}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running{"))


def test_the_sdk_gets_the_same_streamed_and_whole(actor: OpenAI) -> None:
    """Same seed, same two answers, same counts; in the name of our version."""
    reply = chat(actor, n=2)
    chunks = list(chat(actor, n=2, stream=True, stream_options={"include_usage": True}))

    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in reply.choices]
    assert texts[0] != texts[1]
    assert chunks[-1].usage == reply.usage
    assert 2 <= reply.usage.completion_tokens <= 24
    assert reply.model == "v1"


def test_a_stop_string_ends_an_answer(actor: OpenAI) -> None:
    text = chat(actor, temperature=0).choices[0].message.content

    reply = chat(actor, temperature=0, stop=[text[4:6]])

    assert reply.choices[0].message.content == text[: text.index(text[4:6])]
    assert reply.choices[0].finish_reason == "stop"


def test_a_new_version_is_taken_up_while_it_runs(actor: OpenAI, home: Path, redis_url: str, vllm: str) -> None:
    """The alias moves; vLLM loads the adapter, the probes agree, and its words are the local engine's."""
    before = chat(actor, temperature=0)
    with open_redis(redis_url) as redis:
        AliasStore(redis).promote("actor", "v2")

    wait_until(lambda: chat(actor, temperature=0).model == "v2", timeout_s=30)

    probe = ModelStore(home / "models").manifest("actor", "v2").probes[0]
    after = chat(actor, temperature=0, messages=[{"role": "user", "content": probe.prompt}], max_tokens=32)
    assert before.model == "v1"
    assert after.choices[0].message.content == probe.text
    assert {"actor/v1", "actor/v2"} <= {each["id"] for each in httpx.get(f"{vllm}/v1/models").json()["data"]}


def test_scores_are_those_of_our_own_engine(home: Path, settings: ActorSettings) -> None:
    """One text at a time: vLLM's build for CPUs fails on two with LoRA enabled."""
    store = ModelStore(home / "models")
    conversation = [ChatMessage(role="user", content="Who may speak?")]
    remote = RemoteOpener(store, "actor", settings).open("base")
    local = LocalEngine(Loader("causal").load(store.path("actor", "base")))

    async def scores(engine: Any) -> list[float]:
        texts = ["everyone", "no group"]
        return [(await engine.score([conversation], [[text]]))[0][0] for text in texts]

    async def both() -> tuple[list[float], list[float]]:
        found = await scores(remote), await scores(local)
        await remote.aclose()
        return found

    theirs, ours = asyncio.run(both())
    local.close()

    assert theirs == pytest.approx(ours, abs=1e-3)


def test_who_leaves_frees_the_place(actor: OpenAI, vllm: str) -> None:
    """The stream is closed at our door, and vLLM's running count falls; its metrics are shown at ours."""
    stream = chat(actor, stream=True, max_tokens=450, temperature=0)
    for _ in range(3):
        next(iter(stream))
    wait_until(lambda: running(vllm) == 1)
    stream.close()

    wait_until(lambda: running(vllm) == 0, timeout_s=5)

    metrics = httpx.get(str(actor.base_url).replace("/v1/", "/metrics"), auth=ServiceAuth(TOKEN, "actor"))
    assert "vllm:num_requests_running" in metrics.text and "vc_upstream_up 1.0" in metrics.text

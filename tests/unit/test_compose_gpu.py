"""`docker-compose.gpu.yml` puts vLLM behind the Actor and nowhere else, with settings that the Actor has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from services.actor.settings import ActorSettings
from vcllm.commands.secrets import VARIABLES

ROOT = Path(__file__).parents[2]
OVERLAY: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
VLLM = OVERLAY["services"]["vllm"]
ACTOR = OVERLAY["services"]["actor"]


def test_only_the_actor_reaches_vllm() -> None:
    """Much of what vLLM serves asks for no key: no port, and a network without a way out that nobody else is in."""
    attached = {name for name, service in OVERLAY["services"].items() if "engine" in service["networks"]}

    assert attached == {"vllm", "actor"}
    assert VLLM["networks"] == ["engine"] and "ports" not in VLLM
    assert OVERLAY["networks"] == {"engine": {"internal": True}}
    assert "engine" not in COMPOSE["networks"]


def test_vllm_may_do_only_what_it_must() -> None:
    """As contained as every other service, and the model store is read-only."""
    assert VLLM["read_only"] is True
    assert VLLM["cap_drop"] == ["ALL"]
    assert VLLM["security_opt"] == ["no-new-privileges:true"]
    assert int(VLLM["user"].split(":")[0]) > 0
    assert [volume["read_only"] for volume in VLLM["volumes"]] == [True]
    assert "healthcheck" in VLLM


def test_the_actor_knows_every_setting_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name that is wrong would be passed over in silence."""
    given = dict(ACTOR["environment"])
    key = tmp_path / "vllm_api_key"
    key.write_text("secret")
    for name, value in given.items():
        monkeypatch.setenv(name, str(key) if name.endswith("_FILE") else value)

    settings = ActorSettings()

    names = {name.removeprefix("ACTOR_").removesuffix("_FILE").lower() for name in given}
    assert names <= set(ActorSettings.model_fields)
    assert settings.upstream_key.get_secret_value() == "secret"
    assert settings.upstream_url == "http://vllm:8000"
    assert str(settings.upstream_models_root) == VLLM["volumes"][0]["target"]


def test_vllm_takes_up_adapters() -> None:
    assert "--enable-lora" in VLLM["command"]
    assert VLLM["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_both_know_the_key_from_one_file() -> None:
    """vLLM has it in the environment of its process only, where the engine does not show it."""
    place = "/run/secrets/vllm_api_key"

    assert VLLM["secrets"] == ACTOR["secrets"] == list(OVERLAY["secrets"]) == ["vllm_api_key"]
    assert ACTOR["environment"]["ACTOR_UPSTREAM_KEY_FILE"] == place
    assert f'VLLM_API_KEY="$$(cat {place})" exec' in VLLM["entrypoint"][2]
    assert "VLLM_API_KEY" not in VLLM["environment"]
    assert "vllm_api_key" in VARIABLES


def test_the_actor_stays_in_its_other_networks() -> None:
    """An overlay's list replaces the first one where the two are merged by name."""
    assert set(COMPOSE["services"]["actor"]["networks"]) < set(ACTOR["networks"])

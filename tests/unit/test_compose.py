"""`docker-compose.yml` and the launcher run the same services, and the containers keep to their confines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vcllm.launch.services import SERVICES, Places, Service, environment

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
CONTAINERS = Places(
    home="/var/lib/vcllm",
    recipes="/app/recipes",
    data="/app/data",
    redis_url="redis://:${REDIS_PASSWORD}@redis:6379/0",
    urls={"attacker": "http://attacker:8101", "actor": "http://actor:8201", "critic": "http://critic:8301"},
    internal_token="${VCLLM_INTERNAL_TOKEN}",
    pepper="${VCLLM_PEPPER}",
    cores=2,
    host="0.0.0.0",
)

each_service = pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
each_container = pytest.mark.parametrize("name", COMPOSE["services"])


def plain(value: str) -> str:
    """`${NAME:-default}` as its default, `${NAME:?hint}` as `${NAME}`."""
    return re.sub(r"\$\{(\w+):\?[^}]*\}", r"${\1}", re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))


def test_compose_has_the_launchers_services_and_redis() -> None:
    assert set(COMPOSE["services"]) == {service.name for service in SERVICES} | {"redis"}


@each_service
def test_a_container_runs_the_launchers_command(service: Service) -> None:
    assert COMPOSE["services"][service.name]["command"] == list(service.command)


@each_service
def test_a_container_is_told_what_the_launcher_tells(service: Service) -> None:
    told = {name: plain(value) for name, value in COMPOSE["services"][service.name]["environment"].items()}

    assert told == environment(service, CONTAINERS)


@each_service
def test_a_scalable_service_can_be_scaled(service: Service) -> None:
    """A fixed name or a published port would stop a second container."""
    container = COMPOSE["services"][service.name]

    assert "container_name" not in container
    assert "ports" not in container or not service.scalable


@each_container
def test_a_container_may_do_only_what_it_must(name: str) -> None:
    container = COMPOSE["services"][name]

    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert int(container["user"].split(":")[0]) > 0
    assert "healthcheck" in container


def test_only_the_gateway_can_be_reached_and_only_it_reaches_out() -> None:
    published = [name for name, container in COMPOSE["services"].items() if "ports" in container]
    outside = [name for name, container in COMPOSE["services"].items() if "outside" in container["networks"]]

    assert published == outside == ["gateway"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_only_the_trainer_writes_models() -> None:
    writers = {
        name
        for name, container in COMPOSE["services"].items()
        if "models:/var/lib/vcllm" in container.get("volumes", [])
    }

    assert writers == {"trainer-rollouts", "trainer-training", "trainer-reaper"}


def test_no_secret_stands_in_the_file() -> None:
    """Each comes from the environment, and compose refuses to start without it."""
    for container in COMPOSE["services"].values():
        for name, value in container["environment"].items():
            if re.search(r"(TOKEN|PASSWORD|PEPPER|REDIS_URL)$", name):
                assert re.search(r"\$\{\w+:\?run make secrets\}", value), name


@pytest.mark.parametrize(("dockerfile", "extras"), [("services", "model,trainer"), ("gateway", "gateway")])
def test_an_image_installs_its_extras_and_runs_without_root(dockerfile: str, extras: str) -> None:
    text = (ROOT / dockerfile / "Dockerfile").read_text()

    assert re.findall(r"'\.\[([a-z,]+)\]'", text) == [extras]
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["10001:10001"]

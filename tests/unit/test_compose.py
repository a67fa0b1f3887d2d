"""`docker-compose.yml` and the launcher run the same services, and the containers keep to their confines."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from gateway.settings import GatewaySettings
from vcllm.commands.secrets import FOLDER, VARIABLES
from vcllm.launch.services import SERVICES, Places, Service, environment, secret_names
from vcllm.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
CONTAINERS = Places(
    home="/var/lib/vcllm",
    recipes="/app/recipes",
    data="/app/data",
    redis_url="redis://redis:6379/0",
    urls={"attacker": "http://attacker:8101", "actor": "http://actor:8201", "critic": "http://critic:8301"},
    secrets="/run/secrets",
    cores=2,
    host="0.0.0.0",
)

WORKERS = ("trainer-rollouts", "trainer-training", "trainer-reaper")
DOCKERFILES = ("gateway/Dockerfile", "services/Dockerfile")

each_service = pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
each_container = pytest.mark.parametrize("name", COMPOSE["services"])


def plain(value: str) -> str:
    """`${NAME:-default}` as its default."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", value)


def test_compose_has_the_launchers_services_and_redis() -> None:
    assert set(COMPOSE["services"]) == {service.name for service in SERVICES} | {"redis"}


@each_service
def test_a_container_runs_the_launchers_command(service: Service) -> None:
    assert COMPOSE["services"][service.name]["command"] == list(service.command)


@each_service
def test_a_container_is_told_what_the_launcher_tells(service: Service) -> None:
    """And beyond that what the operator's own environment holds, which a process on a machine inherits."""
    given = COMPOSE["services"][service.name]["environment"].items()
    told = {name: plain(value) for name, value in given if value is not None}

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


def test_only_the_trainer_writes_models_and_only_the_gateway_takes_files() -> None:
    """And nobody but the gateway sees its copy of the audit log and the key it makes."""
    assert users("models", "/var/lib/vcllm") == {*WORKERS}
    assert users("models", "/var/lib/vcllm:ro") == {"attacker", "actor", "critic", "gateway"}
    assert users("files", "/var/lib/vcllm/files") == {"gateway"}
    assert users("files", "/var/lib/vcllm/files:ro") == {*WORKERS}
    assert users("audit", "/var/lib/vcllm/audit") == users("first-key", "/var/lib/vcllm/secrets") == {"gateway"}
    assert set(COMPOSE["volumes"]) == {"models", "files", "audit", "first-key", "redis"}


def users(volume: str, place: str) -> set[str]:
    return {name for name, it in COMPOSE["services"].items() if f"{volume}:{place}" in it.get("volumes", [])}


@each_service
def test_a_container_gets_the_secrets_it_is_told_of_and_no_other(service: Service) -> None:
    container = COMPOSE["services"][service.name]
    told = {value for name, value in container["environment"].items() if name.endswith("_FILE")}

    assert container["secrets"] == list(secret_names(service))
    assert told == {f"/run/secrets/{name}" for name in secret_names(service)}


def test_every_secret_is_a_file_that_the_command_writes() -> None:
    """What `vcllm secrets` makes is what compose mounts; Redis gets its password and nothing else."""
    files = {name: secret["file"] for name, secret in COMPOSE["secrets"].items()}

    assert files == {name: f"${{VCLLM_SECRETS:-./{FOLDER}}}/{name}" for name in files}
    assert set(files) == {name for service in SERVICES for name in secret_names(service)} <= set(VARIABLES)
    assert COMPOSE["services"]["redis"]["secrets"] == ["redis_password"]


@each_container
def test_no_secret_is_in_an_environment_or_a_command(name: str) -> None:
    """Whoever may ask the engine about containers sees both."""
    container = COMPOSE["services"][name]
    given = container.get("environment", {})

    assert not [variable for variable in given if re.search(r"(TOKEN|PASSWORD|PEPPER|KEY|SECRET)$", variable)]
    assert not re.search(r"\$\{\w*(TOKEN|PASSWORD|PEPPER|KEY)", str(container))


@each_container
def test_a_container_has_time_to_end(name: str) -> None:
    """Ten seconds, which is what it has unless more is said, are too short for every one of them."""
    grace = plain(COMPOSE["services"][name]["stop_grace_period"])

    assert float(grace.removesuffix("s")) >= 30


def test_a_variable_that_is_passed_on_is_a_setting() -> None:
    """A name that is wrong would be passed over in silence."""
    given = COMPOSE["services"]["gateway"]["environment"].items()
    passed_on = {name for name, value in given if value is None} - {"OTEL_EXPORTER_OTLP_ENDPOINT"}
    known = {f"VCLLM_{name}".upper() for name in Settings.model_fields}

    assert passed_on <= known | {f"GATEWAY_{name}".upper() for name in GatewaySettings.model_fields}
    assert passed_on


def test_images_are_pinned_and_nothing_else_is_pulled() -> None:
    """A tag that says only `7` or `latest` is another image tomorrow."""
    bases = {COMPOSE["services"][name]["build"]["args"]["BASE"] for name in (*WORKERS, "actor", "gateway")}
    files = {re.search(r"^ARG BASE=(\S+)", (ROOT / name).read_text(), re.MULTILINE)[1] for name in DOCKERFILES}
    others = [yaml.safe_load((ROOT / f"docker-compose.{name}.yml").read_text()) for name in ("gpu", "observability")]
    services = [service for compose in (COMPOSE, *others) for service in compose["services"].values()]
    pulled = {plain(it["image"]) for it in services if "image" in it and "build" not in it}
    images = {*map(plain, bases), *files, *pulled - {"vc-llm/services:dev", "vc-llm/gateway:dev"}}

    assert files == set(map(plain, bases))
    assert len(pulled) >= 4
    assert all(re.search(r":v?\d+\.\d+\.\d+", image) for image in images), images


def test_everything_that_is_installed_has_one_version() -> None:
    """Of the product, all its extras and what builds it; Redis in containers is past the holes of its server."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    wanted = [Requirement(line) for group in (*groups, project["build-system"]["requires"]) for line in group]
    lines = [line.split(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    names = {canonicalize_name(name): version for name, version in pinned.items()}
    redis = re.search(r":(\d+\.\d+\.\d+)", plain(COMPOSE["services"]["redis"]["image"]))

    for each in wanted:
        if each.name != "vc-llm":
            assert each.specifier.contains(names[canonicalize_name(each.name)]), each
    assert redis and Version(redis[1]) >= Version("7.4.6"), "CVE-2025-49844"


@pytest.mark.parametrize(("dockerfile", "extras"), [("services", "model,trainer,otel"), ("gateway", "gateway,otel")])
def test_an_image_installs_its_extras_and_runs_without_root(dockerfile: str, extras: str) -> None:
    text = (ROOT / dockerfile / "Dockerfile").read_text()

    assert re.findall(r"'\.\[([a-z,]+)\]'", text) == [extras]
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["10001:10001"]
    assert text.rindex("\nFROM ") < text.index("\nUSER "), "the last image is the one that runs"

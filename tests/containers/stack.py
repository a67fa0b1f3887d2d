"""The compose file brought up under a project name of its own, on a free port, with a tiny model, and taken down again.

What the override adds is what an operator would bring: recipes, a charter, data.
"""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from typer.testing import CliRunner

from tests.containers.engine import ROOT, Images, docker
from tests.e2e.micro import RECIPE, write_micro
from tests.fakes import add_version
from tests.servers import free_port
from vcllm.cli import app
from vcllm.launch.services import SERVICES
from vcllm.stores.models import ModelStore

UP_S = 300
PROMOTE = """
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
AliasStore(open_redis(Settings().redis_url)).promote("actor", "v1")
"""
WORKERS = ("trainer-rollouts", "trainer-training", "trainer-reaper")


@dataclass(frozen=True)
class Stack:
    """A compose project that runs."""

    project: str
    folder: Path
    port: int
    images: Images

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def secrets(self) -> dict[str, str]:
        return {file.name: file.read_text().strip() for file in (self.folder / "secrets").iterdir()}

    def compose(self, *command: str, timeout_s: float = UP_S) -> str:
        files = ["--file", str(ROOT / "docker-compose.yml"), "--file", str(self.folder / "override.yml")]
        environment = ["--env-file", str(self.folder / "env")]
        return docker("compose", "--project-name", self.project, *environment, *files, *command, timeout_s=timeout_s)

    def up(self, **scale: int) -> None:
        """Returns once every service whose health others wait for is well, and all are started."""
        wanted = [f"--scale={service}={number}" for service, number in scale.items()]
        self.compose("up", "--detach", "--no-build", "--no-recreate", *wanted)

    def exec(self, service: str, *command: str) -> str:
        return self.compose("exec", "--no-TTY", service, *command)

    def containers(self, service: str = "") -> list[str]:
        """Ids of those that run, of one service or of all."""
        return self.compose("ps", "--quiet", *([service] if service else [])).split()

    def health(self, service: str) -> set[str]:
        template = "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}"
        return set(docker("inspect", "--format", template, *self.containers(service)).split())

    def story(self) -> str:
        """What became of every container, and the end of what each said."""
        return self.compose("ps", "--all") + self.compose("logs", "--no-color", "--tail", "40")


@contextmanager
def running(project: str, folder: Path, images: Images) -> Iterator[Stack]:
    """The whole stack with a promoted version; whatever happens, nothing of it stays but the images."""
    stack = Stack(project, folder, free_port(), images)
    _write_inputs(stack)
    try:
        stack.compose("up", "--detach", "--no-build", "--wait", "redis")
        _seed(stack)
        stack.up()
        yield stack
    finally:
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "20")


def _write_inputs(stack: Stack) -> None:
    folder = stack.folder
    (folder / "data").mkdir(parents=True)
    write_micro(folder)
    quick = RECIPE.replace("num_docs = 9000", "num_docs = 300")
    (folder / "recipes" / "micro.toml").write_text(quick)
    made = CliRunner().invoke(app, ["secrets", "--folder", str(folder / "secrets")])
    assert made.exit_code == 0, made.output
    places = [f"{folder}/recipes:/app/recipes:ro", f"{folder}/charters:/app/charters:ro"]
    told = {"VCLLM_CHARTERS": "/app/charters"}
    override = {name: {"environment": told, "volumes": places} for name in ("gateway", *WORKERS)}
    (folder / "override.yml").write_text(yaml.safe_dump({"services": override}))
    environment = {
        "VCLLM_TAG": stack.images.tag,
        "VCLLM_REDIS_IMAGE": stack.images.redis,
        "VCLLM_SECRETS": f"{folder}/secrets",
        "VCLLM_DATA": f"{folder}/data",
        "VCLLM_PUBLISH": f"127.0.0.1:{stack.port}",
    }
    (folder / "env").write_text("".join(f"{name}={value}\n" for name, value in environment.items()))


def _seed(stack: Stack) -> None:
    """A version in the models' volume, promoted: before the Actor starts, as after a restart of a used installation."""
    add_version(ModelStore(stack.folder / "models"), "actor", "v1", created=time.time())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(stack.folder / "models", arcname="models", filter=_ours)
    image, volume = f"vc-llm/services:{stack.images.tag}", f"{stack.project}_models:/var/lib/vcllm"
    unpack = ["tar", "--extract", "--directory", "/var/lib/vcllm"]
    # Compose makes the volume with its first container that has it; the alias is written by one.
    stack.compose("run", "--rm", "--no-deps", "--no-TTY", "trainer-reaper", "python", "-c", PROMOTE)
    docker("run", "--rm", "--interactive", "--volume", volume, image, *unpack, given=packed.getvalue())


def _ours(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 10001
    member.mode |= 0o055 if member.isdir() else 0o044
    return member


NAMES = tuple(service.name for service in SERVICES)
PROJECT = f"vcllm-test-{os.getpid()}"

"""A container engine: whether there is one, and the images to run in it, built from this working tree.

Where no image registry answers, the base is made from Debian's packages. Images stay, as a cache for the next run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
TAG = "containers-test"
PULLED_BASE = "python:3.11.13-slim-bookworm"
MADE_BASE = "vc-llm/base:bookworm"
BUILD_S = 1800
PULL_S = 60


class NoEngine(Exception):
    """Why containers cannot run here, for the skip's reason."""


@dataclass(frozen=True)
class Images:
    """What compose is told, so that it takes the images of the test."""

    tag: str
    redis: str

    @property
    def ours(self) -> tuple[str, str]:
        return f"vc-llm/gateway:{self.tag}", f"vc-llm/services:{self.tag}"


def docker(*command: str, timeout_s: float = 120, given: bytes | None = None) -> str:
    """The command's output; Failed, which carries what it said, when it fails."""
    return _run(command, timeout_s, given).stdout.decode(errors="replace")


def logs(container: str) -> str:
    """Both of its outputs, every line with the time at which it was written."""
    done = _run(("logs", "--timestamps", container), 60)
    return (done.stdout + done.stderr).decode(errors="replace")


def _run(command: Sequence[str], timeout_s: float, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(["docker", *command], cwd=ROOT, capture_output=True, timeout=timeout_s, input=given)
    if done.returncode:
        raise Failed(done.returncode, ["docker", *command], done.stdout, done.stderr)
    return done


class Failed(subprocess.CalledProcessError):
    """Shows what the command said: without it nobody could tell what went wrong in a container."""

    def __str__(self) -> str:
        said = (self.stderr or b"").decode(errors="replace") + (self.stdout or b"").decode(errors="replace")
        return f"{super().__str__()}\n{said[-4000:]}"


def require_engine() -> None:
    """NoEngine when no engine answers, or the client has no compose."""
    if shutil.which("docker") is None:
        raise NoEngine("there is no docker command")
    for command in (["version", "--format", "{{.Server.Version}}"], ["compose", "version"]):
        try:
            docker(*command, timeout_s=20)
        except (Failed, subprocess.TimeoutExpired) as error:
            said = str(error).strip().splitlines()[-1]
            raise NoEngine(f"`docker {' '.join(command)}` does not answer: {said}") from error


@cache
def build_images() -> Images:
    """Built with the host's network, which is how builds reach packages where containers cannot. NoEngine: no base."""
    base, torch_index = find_base()
    pulled = base == PULLED_BASE
    options = ["--network", "host", "--build-arg", f"BASE={base}"]
    for name, extra in (("gateway", []), ("services", torch_index)):
        arguments = [*options, *extra, "--file", f"{name}/Dockerfile", "--tag", f"vc-llm/{name}:{TAG}"]
        docker("build", *arguments, ".", timeout_s=BUILD_S)
    if pulled:
        return Images(TAG, redis="redis:7.4.6-bookworm")
    redis = f"vc-llm/redis:{TAG}"
    docker("build", *options, "--tag", redis, "deploy/images/redis", timeout_s=BUILD_S)
    return Images(TAG, redis)


def find_base() -> tuple[str, list[str]]:
    """The base image, and what services' build is told of torch: the named one, a registry's, or one made here."""
    plain_index = ["--build-arg", "TORCH_INDEX="]
    if named := os.environ.get("VCLLM_BASE"):
        return named, plain_index if os.environ.get("VCLLM_TORCH_INDEX") == "" else []
    if _has(MADE_BASE):
        return MADE_BASE, plain_index
    if _has(PULLED_BASE) or _pull(PULLED_BASE):
        return PULLED_BASE, []
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise NoEngine("no image registry answers, and without debootstrap and root no base image can be made")
    subprocess.run([ROOT / "deploy/images/base.sh", MADE_BASE], check=True, timeout=BUILD_S, capture_output=True)
    return MADE_BASE, plain_index


def _has(image: str) -> bool:
    try:
        docker("image", "inspect", image)
    except Failed:
        return False
    return True


def _pull(image: str) -> bool:
    try:
        docker("pull", "--quiet", image, timeout_s=PULL_S)
    except (Failed, subprocess.TimeoutExpired):
        return False
    return True

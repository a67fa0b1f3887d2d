"""What runs: every service with its command, environment and way to tell that it is up.

The launcher starts these on one machine; `docker-compose.yml` states the same ones for containers, and a test
holds the two together. Knows nothing of processes or ports in use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

ROLES = ("attacker", "actor", "critic")


@dataclass(frozen=True)
class Service:
    """One kind of process."""

    name: str
    command: tuple[str, ...]
    """`python` stands for the interpreter of the product."""
    prefix: str | None = None
    """`ACTOR` for a server that reads ACTOR_HOST and ACTOR_PORT; None: it listens nowhere."""
    port: int | None = None
    """Where it listens unless told otherwise; a replica takes the next one."""
    health: str | None = None
    """Path that answers 200 once the server is up."""
    up_line: str | None = None
    """For a worker: text it logs once it is up."""
    scalable: bool = False
    """Whether several may run side by side."""
    is_worker: bool = False
    """Whether it runs jobs, which it gives back when it is told to stop."""
    first: bool = False
    """What a chat needs: on few cores it is up much sooner when the others start after it."""


def _worker(queue: str, num_processes: int) -> tuple[str, ...]:
    celery = f"python -m celery -A services.trainer.app worker -Q {queue} -c {num_processes} -n {queue}@%h"
    return (*celery.split(), "-l", "INFO", "--without-mingle", "--without-gossip")


LIVE = "/health/live"

SERVICES = (
    Service("attacker", ("python", "-m", "services.attacker"), "ATTACKER", 8101, LIVE, scalable=True),
    Service("actor", ("python", "-m", "services.actor"), "ACTOR", 8201, LIVE, scalable=True, first=True),
    Service("critic", ("python", "-m", "services.critic"), "CRITIC", 8301, LIVE, scalable=True),
    Service("trainer-rollouts", _worker("rollouts", 2), up_line=" ready.", is_worker=True),
    # Two at a time: one that trains ahead beside the one the pipeline waits for.
    Service("trainer-training", _worker("training", 2), up_line=" ready.", is_worker=True),
    Service("trainer-reaper", ("python", "-m", "services.trainer.reaper"), up_line="The reaper looks"),
    Service("gateway", ("python", "-m", "gateway"), "GATEWAY", 8080, LIVE, first=True),
)


@dataclass(frozen=True)
class Places:
    """Where one installation has its things: one answer on a machine, another in containers."""

    home: str
    recipes: str
    data: str
    redis_url: str
    urls: Mapping[str, str]
    """Role to the comma-separated addresses of its servers."""
    cores: int
    internal_token: str = ""
    pepper: str = ""
    secrets: str | None = None
    """A folder with one file for each secret, Redis' password among them; None: they are told as they are, and
    `redis_url` holds the password."""
    grace_s: float = 60.0
    """How long a worker that is told to stop may take to bring its training runs to a checkpoint."""
    host: str = "127.0.0.1"
    """Interface the servers listen on."""
    outside: Mapping[str, str] = field(default_factory=dict)
    """The operator's environment, for what may be overridden there."""


def num_threads(name: str, cores: int) -> int:
    """Compute threads of a service: training has all cores, a server a quarter of them, the rest only wait.

    More threads than free cores make OpenMP collapse, so a server on two cores gets one.
    """
    match name:
        case "trainer-training":
            return cores
        case "attacker" | "actor" | "critic":
            return max(1, cores // 4)
        case _:
            return 1


def environment(service: Service, places: Places, port: int | None = None) -> dict[str, str]:
    """Everything a service is told; secrets go only to those who need them."""
    threads = f"VCLLM_THREADS_{service.name.upper().replace('-', '_')}"
    told = {
        "VCLLM_HOME": places.home,
        "VCLLM_REDIS_URL": places.redis_url,
        **_secrets(service, places),
        "OMP_NUM_THREADS": places.outside.get(threads, str(num_threads(service.name, places.cores))),
        # Waiting threads sleep: with more processes than cores, spinning ones would keep others from work.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "MALLOC_ARENA_MAX": "2",
        "PYTHONUNBUFFERED": "1",
        # Weights are read from disk; an operator who wants a hub download says so.
        "HF_HUB_OFFLINE": places.outside.get("HF_HUB_OFFLINE", "1"),
        "TRANSFORMERS_OFFLINE": places.outside.get("TRANSFORMERS_OFFLINE", "1"),
    }
    if service.prefix is not None:
        told[f"{service.prefix}_HOST"] = places.host
        told[f"{service.prefix}_PORT"] = str(port or service.port)
    if service.name not in ROLES:
        told["VCLLM_RECIPES"] = places.recipes
        told["VCLLM_DATA"] = places.data
        told.update({f"VCLLM_{role.upper()}_URLS": places.urls[role] for role in ROLES})
    if service.is_worker:
        told["TRAINER_GRACE_S"] = f"{places.grace_s:g}"
    return told


def secret_names(service: Service) -> tuple[str, ...]:
    """The secrets a service needs, as their files are called."""
    shared = ("redis_password", "internal_token")
    return (*shared, "pepper") if service.name == "gateway" else shared


def _secrets(service: Service, places: Places) -> dict[str, str]:
    if places.secrets is not None:
        return {f"VCLLM_{name.upper()}_FILE": f"{places.secrets}/{name}" for name in secret_names(service)}
    told = {"VCLLM_INTERNAL_TOKEN": places.internal_token}
    return {**told, "VCLLM_PEPPER": places.pepper} if "pepper" in secret_names(service) else told


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

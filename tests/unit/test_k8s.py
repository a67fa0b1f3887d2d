"""`deploy/k8s` runs the launcher's services, as confined as compose runs them; `kubectl`, where it is, builds it."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from gateway.routes.guard import REPORT
from tests.unit.test_compose import COMPOSE, CONTAINERS
from vcllm.contracts.jobs import Queue
from vcllm.launch.services import SERVICES, Service, environment, secret_names
from vcllm.settings import Settings
from vcllm.stores.connect import JOBS_RUNNING

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
SERVERS = [service for service in SERVICES if service.port]
ASKERS = {"gateway", "trainer-rollouts"}
"""Who speaks to role servers; the other trainers know their addresses only because all are told the same."""

each_service = pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
each_server = pytest.mark.parametrize("service", SERVERS, ids=lambda service: service.name)
each_queue = pytest.mark.parametrize("queue", get_args(Queue))


@cache
def documents(folder: str) -> list[dict[str, Any]]:
    """Every resource in a folder's files."""
    files = sorted((K8S / folder).glob("*.yaml"))
    found = [doc for file in files for doc in yaml.safe_load_all(file.read_text())]
    return [doc for doc in found if "metadata" in doc]


def resource(kind: str, name: str, folder: str = "base") -> dict[str, Any]:
    (found,) = [it for it in documents(folder) if it["kind"] == kind and it["metadata"]["name"] == name]
    return found


def pod(name: str) -> dict[str, Any]:
    return resource("StatefulSet" if name == "redis" else "Deployment", name)["spec"]["template"]["spec"]


def scaled_pod(queue: str) -> dict[str, Any]:
    return resource("ScaledJob", f"trainer-{queue}", "components/keda")["spec"]["jobTargetRef"]["template"]["spec"]


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return only


def told(container: dict[str, Any]) -> dict[str, str]:
    """Its environment, from the maps that it names and its own."""
    maps = [resource("ConfigMap", it["configMapRef"]["name"])["data"] for it in container.get("envFrom", [])]
    own = {it["name"]: it["value"] for it in container.get("env", [])}
    return {name: value for part in (*maps, own) for name, value in part.items()}


def pods() -> dict[str, dict[str, Any]]:
    """Every pod there can be."""
    found = {name: pod(name) for name in ("redis", *(service.name for service in SERVICES))}
    found["vllm"] = resource("Deployment", "vllm", "overlays/gpu")["spec"]["template"]["spec"]
    return found | {f"job of {queue}": scaled_pod(queue) for queue in get_args(Queue)}


each_pod = pytest.mark.parametrize("name", pods())


def mounted_secrets(pod: dict[str, Any]) -> list[str]:
    (volume,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert all(item["key"] == item["path"] for item in volume["items"])
    return [item["key"] for item in volume["items"]]


@each_service
def test_a_pod_runs_the_launchers_command(service: Service) -> None:
    assert container(pod(service.name))["command"] == list(service.command)


@each_service
def test_a_pod_is_told_what_the_launcher_tells(service: Service) -> None:
    assert told(container(pod(service.name))) == environment(service, CONTAINERS)


@each_service
def test_a_pod_runs_the_image_that_compose_runs(service: Service) -> None:
    assert container(pod(service.name))["image"] == COMPOSE["services"][service.name]["image"].partition(":")[0]


@each_service
def test_a_pod_gets_its_own_secrets_as_files(service: Service) -> None:
    assert mounted_secrets(pod(service.name)) == list(secret_names(service))


@pytest.mark.parametrize("name", ["redis", *(service.name for service in SERVICES)])
def test_a_pod_has_the_time_to_end_that_compose_gives(name: str) -> None:
    grace = re.findall(r"\d+", COMPOSE["services"][name]["stop_grace_period"])[-1]

    assert pod(name)["terminationGracePeriodSeconds"] == int(grace)


@each_server
def test_a_server_is_found_probed_and_kept_up(service: Service) -> None:
    """The name and port others are told; live by the launcher's path, ready by its own word; a budget for drains."""
    offered = resource("Service", service.name)["spec"]
    shown = container(pod(service.name))
    probes = {kind: shown[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    budget = resource("PodDisruptionBudget", service.name)["spec"]

    assert offered["ports"] == [{"name": "http", "port": service.port, "targetPort": "http"}]
    assert shown["ports"] == [{"name": "http", "containerPort": service.port}]
    assert probes["startup"] == probes["liveness"] == {"path": service.health, "port": "http"}
    assert probes["readiness"] == {"path": "/health/ready", "port": "http"}
    assert budget["selector"]["matchLabels"] == offered["selector"]


@pytest.mark.parametrize("name", ["attacker", "actor", "critic"])
def test_the_name_of_a_role_leads_to_every_pod(name: str) -> None:
    """A cluster address would hide how many there are from who balances over them."""
    assert resource("Service", name)["spec"]["clusterIP"] == "None"


@each_pod
def test_a_pod_may_do_only_what_it_must(name: str) -> None:
    it, inside = pods()[name], container(pods()[name])

    assert it["automountServiceAccountToken"] is False
    assert it["securityContext"]["runAsNonRoot"] is True and it["securityContext"]["runAsUser"] > 0
    assert it["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inside["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in inside["resources"]["limits"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(it)


@each_pod
def test_every_mount_has_its_volume_and_no_secret_is_a_variable(name: str) -> None:
    it, inside = pods()[name], container(pods()[name])
    variables = [entry for entry in inside.get("env", []) if "valueFrom" in entry or "secretRef" in entry]

    assert {mount["name"] for mount in inside["volumeMounts"]} <= {
        *(volume["name"] for volume in it["volumes"]),
        *(["data"] if name == "redis" else []),
    }
    assert variables == [] and all("configMapRef" in source for source in inside.get("envFrom", []))


def test_only_the_trainer_writes_models_and_only_the_gateway_takes_files() -> None:
    writable = {
        (name, mount["mountPath"])
        for name, it in pods().items()
        for mount in container(it)["volumeMounts"]
        if mount["name"] == "models" and not mount.get("readOnly")
    }
    workers = {name for name in pods() if name.startswith(("trainer-", "job of "))}

    assert writable == {(name, "/var/lib/vcllm") for name in workers} | {("gateway", "/var/lib/vcllm/files")}


def test_the_network_is_shut_but_for_what_is_needed() -> None:
    """Nothing comes in or goes out unless a policy says so; the roles hear those who ask them, and nobody else."""
    shut = resource("NetworkPolicy", "nothing-in-and-only-within")["spec"]
    heard = {
        role: {
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            for rule in resource("NetworkPolicy", f"askers-to-{role}")["spec"]["ingress"]
            for peer in rule["from"]
        }
        for role in ("attacker", "actor", "critic")
    }

    assert shut["podSelector"] == {} and shut["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in shut
    assert heard == dict.fromkeys(heard, ASKERS)


def test_redis_runs_as_in_compose_and_keeps_its_disk() -> None:
    """The same command, the account of the image, and a volume of its own."""
    spec = resource("StatefulSet", "redis")["spec"]
    inside = container(pod("redis"))
    of_compose = COMPOSE["services"]["redis"]

    assert inside["command"] == [word.replace("$$", "$") for word in of_compose["command"]]
    assert pod("redis")["securityContext"]["runAsUser"] == int(of_compose["user"].split(":")[0])
    assert [claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]] == ["data"]
    assert mounted_secrets(pod("redis")) == of_compose["secrets"]


@each_queue
def test_a_pod_is_started_for_every_message_of_a_queue(queue: str) -> None:
    """By the length of Celery's list; it is the Deployment's pod, but for one message, and nobody starts it again."""
    spec = resource("ScaledJob", f"trainer-{queue}", "components/keda")["spec"]
    (trigger,) = spec["triggers"]
    once, always = scaled_pod(queue), pod(f"trainer-{queue}")

    assert (trigger["type"], trigger["metadata"]["listName"], trigger["metadata"]["listLength"]) == (
        "redis",
        queue,
        "1",
    )
    assert spec["scalingStrategy"] == {"strategy": "accurate"} and spec["rollout"] == {"strategy": "gradual"}
    assert spec["jobTargetRef"]["backoffLimit"] == 0 and once["restartPolicy"] == "Never"
    assert container(once)["command"] == ["python", "-m", "services.trainer.once", queue]
    assert told(container(once)) == told(container(always))
    assert container(once)["volumeMounts"] == container(always)["volumeMounts"]
    for part in ("volumes", "securityContext", "terminationGracePeriodSeconds"):
        assert once[part] == always[part]


@pytest.mark.parametrize("role", ["attacker", "actor", "critic"])
def test_role_servers_follow_the_jobs_that_run(role: str) -> None:
    """At least as many as without KEDA, and the key is the one that the stores write."""
    spec = resource("ScaledObject", role, "components/keda")["spec"]
    first = spec["triggers"][0]

    assert spec["scaleTargetRef"] == {"name": role}
    assert spec["minReplicaCount"] == resource("Deployment", role)["spec"]["replicas"] < spec["maxReplicaCount"]
    assert first["metadata"]["listName"] == JOBS_RUNNING
    assert first["authenticationRef"] == {"name": "redis"}


def test_vllm_is_started_as_compose_starts_it() -> None:
    """The same module, options and environment, and the Actor is told the same of it."""
    of_compose = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())["services"]
    inside = container(pods()["vllm"])
    (patch,) = [it for it in documents("overlays/gpu") if it["metadata"]["name"] == "actor"]
    options = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in of_compose["vllm"]["command"]]
    options = [re.sub(r"\$\{VLLM_BASE[^}]*\}", "ROLE/VERSION", word) for word in options]

    assert inside["command"] == [word.replace("$$", "$") for word in of_compose["vllm"]["entrypoint"]]
    assert inside["args"] == options
    assert told(inside) == of_compose["vllm"]["environment"]
    assert told(container(patch["spec"]["template"]["spec"])) == of_compose["actor"]["environment"]
    assert mounted_secrets(pods()["vllm"]) == of_compose["vllm"]["secrets"]
    assert mounted_secrets(patch["spec"]["template"]["spec"])[-1:] == of_compose["actor"]["secrets"]


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_an_overlay_names_namespace_and_images_as_compose_does(overlay: str) -> None:
    """KEDA's component says no namespace of its own; Redis is the one that compose runs."""
    overlaid = yaml.safe_load((K8S / "overlays" / overlay / "kustomization.yaml").read_text())
    of_compose = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE["services"]["redis"]["image"])
    (redis,) = [f"redis:{image['newTag']}" for image in overlaid["images"] if image["name"] == "redis"]

    assert overlaid["namespace"] == "vc-llm"
    assert redis == of_compose


def test_the_gateway_sees_all_that_it_reads() -> None:
    """Versions, logs of jobs, uploads, and the report with the guard's rates."""
    mounts = {mount["mountPath"] for mount in container(pod("gateway"))["volumeMounts"]}
    home = Path(told(container(pod("gateway")))["VCLLM_HOME"])
    settings = Settings(home=home)

    for read in (settings.models, settings.jobs, home / "files", (home / REPORT).parent):
        assert str(read) in mounts


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl here")
@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
@pytest.mark.parametrize("with_keda", [False, True])
def test_an_overlay_builds_with_every_image_pinned(overlay: str, with_keda: bool, tmp_path: Path) -> None:
    """As it stands, and with the comment sign before KEDA's component taken away."""
    shutil.copytree(K8S, tmp_path / "k8s")
    folder = tmp_path / "k8s" / "overlays" / overlay
    if with_keda:
        text = (folder / "kustomization.yaml").read_text()
        assert "# components:" in text
        (folder / "kustomization.yaml").write_text(text.replace("# components:", "components:"))

    built = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)

    assert built.returncode == 0, built.stderr
    built_docs = list(yaml.safe_load_all(built.stdout))
    kinds = [doc["kind"] for doc in built_docs]
    assert {doc["metadata"].get("namespace") for doc in built_docs if doc["kind"] != "Namespace"} == {"vc-llm"}
    images = re.findall(r"image: (\S+)", built.stdout)
    assert kinds.count("ScaledJob") == (2 if with_keda else 0)
    assert kinds.count("Deployment") == len(SERVICES) + (overlay == "gpu") - (2 if with_keda else 0)
    assert images and all(re.search(r":[\w.-]+$", image) for image in images), images

"""The launcher: everything starts together, is watched, and ends together, whatever happens."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.launched import LONG_S, launched
from vcllm.launch.credentials import load_credentials, read_secret, write_secret
from vcllm.launch.errors import LaunchError
from vcllm.launch.fleet import Fleet
from vcllm.launch.leftovers import end_noted, note
from vcllm.launch.memory import MemoryPeak
from vcllm.launch.ports import free_port, is_free, take_ports
from vcllm.launch.replicas import parse_scale, plan_replicas, with_free_ports
from vcllm.launch.services import SERVICES, Places, environment, num_threads
from vcllm.settings import Settings
from vcllm.stores.connect import open_redis


def test_every_service_starts_is_told_what_it_needs_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    """One start and one Ctrl-C: addresses, environment, logs, memory, and then nothing left."""
    with launched(tmp_path / "var", VCLLM_THREADS_ACTOR="3") as fleet:
        fleet.wait_for("up")
        addresses = fleet.addresses()
        actor, gateway = (httpx.get(addresses[name], trust_env=False).json() for name in ("actor-1", "gateway"))
        with open_redis(addresses["redis"], patience=0) as redis:
            kept = redis.config_get("append*")
        time.sleep(2.5)
        memory = json.loads((fleet.home / "run" / "memory.json").read_text())
        fleet.process.send_signal(signal.SIGINT)

        assert fleet.wait() == 0
        assert fleet.left_after(0) == []
        assert gateway["VCLLM_ACTOR_URLS"] == f"{addresses['actor-1']},{addresses['actor-2']}"
        assert len({addresses["actor-1"], addresses["actor-2"], addresses["gateway"]}) == 3
        assert addresses["gateway"] == f"http://127.0.0.1:{fleet.port}"
        assert actor["VCLLM_REDIS_URL"] == addresses["redis"]
        assert gateway["addresses_known"] == "True", "a command that finds the gateway ready can lend itself a key"
        assert actor["OMP_NUM_THREADS"] == "3" and gateway["OMP_NUM_THREADS"] == "1"
        assert actor["VCLLM_INTERNAL_TOKEN"] == read_secret(fleet.home, "internal_token")
        assert "VCLLM_PEPPER" in gateway and "VCLLM_PEPPER" not in actor
        assert kept["appendonly"] == "yes" and kept["appendfsync"] == "everysec"
        assert memory["peak_rss_bytes"] >= memory["peak_pss_bytes"] > 1e7
        assert not (fleet.home / "run" / "fleet.json").exists()
        assert "ready." in (fleet.home / "log" / "trainer-training.log").read_text()


def test_ctrl_c_while_starting_ends_everything_and_is_a_failure(tmp_path: Path) -> None:
    """An interrupted start exits with 130 and says that the next one carries on."""
    with launched(tmp_path / "var") as fleet:
        fleet.wait_for("starting")
        time.sleep(0.4)
        fleet.note_processes()
        fleet.process.send_signal(signal.SIGINT)

        assert fleet.wait() == 130
        assert fleet.left_after(1) == []
        assert "Half done." in fleet.said


def test_a_killed_launcher_leaves_nothing_and_the_next_start_recovers(tmp_path: Path) -> None:
    """Kill -9 of the launcher; another start at once waits for the rest to end, and keeps Redis' data."""
    with launched(tmp_path / "var") as first:
        first.wait_for("up")
        time.sleep(2.2)  # until the processes were noted
        with open_redis(first.addresses()["redis"], patience=0) as redis:
            redis.set("kept", "yes")
        time.sleep(1.2)  # until the append-only file was synced
        first.process.kill()
        with launched(tmp_path / "var") as second:
            second.wait_for("up")
            with open_redis(second.addresses()["redis"], patience=0) as redis:
                kept = redis.get("kept")
            left = first.left_after(0)
            second.process.terminate()

            assert second.wait() == 0
            assert left == []
            assert kept == "yes"


def test_a_killed_supervisor_ends_the_fleet_with_a_sentence(tmp_path: Path) -> None:
    """Kill -9 of supervisord: the launcher notices, says so, exits with 1, and nothing is left."""
    with launched(tmp_path / "var") as fleet:
        fleet.wait_for("up")
        fleet.named("supervisor.supervisord").kill()

        assert fleet.wait() == 1
        assert fleet.left_after(1) == []
        assert "supervisord ended unexpectedly" in fleet.said


def test_a_killed_service_is_started_again(tmp_path: Path) -> None:
    """Redis and a server come back by themselves, Redis with its data, and the launcher says so."""
    with launched(tmp_path / "var") as fleet:
        fleet.wait_for("up")
        addresses = fleet.addresses()
        with open_redis(addresses["redis"]) as redis:
            redis.set("kept", "yes")
            time.sleep(1.2)  # until the append-only file was synced
            fleet.named("redis-server").kill()
            fleet.named("GATEWAY").kill()
            kept = redis.get("kept")
        until = time.monotonic() + LONG_S
        while fleet.said.count("was started again") < 2 and time.monotonic() < until:
            time.sleep(0.1)
        status = httpx.get(addresses["gateway"], trust_env=False).status_code
        fleet.note_processes()
        fleet.process.terminate()

        assert fleet.wait() == 0
        assert kept == "yes" and status == 200
        assert "redis ended unexpectedly" in fleet.said and "gateway ended unexpectedly" in fleet.said


def test_a_service_that_dies_at_start_is_quoted_and_ends_the_launch(tmp_path: Path) -> None:
    """The end of its log, exit status 1, nothing left running."""
    with launched(tmp_path / "var", "dying") as fleet:
        time.sleep(0.5)
        fleet.note_processes()

        assert fleet.wait() == 1
        assert fleet.left_after(1) == []
        assert "dying ended while starting." in fleet.said
        assert "There is no such model as 'nowhere'." in fleet.said
        assert "Traceback" not in fleet.said


def test_what_ignores_sigterm_is_killed_within_ten_seconds(tmp_path: Path) -> None:
    """Also a grandchild in a session of its own, such as a training run."""
    with launched(tmp_path / "var", "deaf") as fleet:
        fleet.wait_for("up")
        begun = time.monotonic()
        fleet.process.terminate()

        assert fleet.wait() == 0
        assert time.monotonic() - begun < 12
        assert fleet.left_after(0) == []


def test_a_second_launcher_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    """One sentence that names the first one."""
    with launched(tmp_path / "var") as first:
        first.wait_for("up")
        with launched(tmp_path / "var2", VCLLM_HOME=str(tmp_path / "var")) as second:
            status = second.wait()
            first.process.terminate()

            assert status == 1
            assert f"Another VC-LLM is running on {tmp_path / 'var'} (process {first.process.pid})" in second.said
            assert first.wait() == 0


def test_a_taken_gateway_port_is_told_and_nothing_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        fleet = Fleet(Settings(home=tmp_path / "var"), port=port)
        with pytest.raises(LaunchError, match=f"Port {port} is taken"), fleet:
            pass


def test_an_unreachable_redis_is_told_without_its_password(tmp_path: Path) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    fleet = Fleet(Settings(home=tmp_path / "var", redis_url=url), port=free_port())

    with pytest.raises(LaunchError, match="does not answer") as error, fleet:
        pass

    assert "secret" not in str(error.value)


@pytest.mark.parametrize("damage", ["torn", "middle"])
def test_a_damaged_redis_file_is_mended(tmp_path: Path, damage: str) -> None:
    """A torn end is cut by Redis itself; damage in the middle is cut by the launcher, which keeps a copy."""
    write = "*3\r\n$3\r\nSET\r\n${}\r\n{}\r\n$1\r\n1\r\n"
    whole, torn = write.format(5, "first"), write.format(6, "second")[:-8]
    folder = tmp_path / "var" / "redis"
    folder.mkdir(parents=True)
    rubbish = {"torn": torn, "middle": "rubbish" + write.format(6, "second")}[damage]
    (folder / "appendonly.aof").write_text(whole + rubbish, newline="")
    with launched(tmp_path / "var") as fleet:
        fleet.wait_for("up")
        with open_redis(fleet.addresses()["redis"], patience=0) as redis:
            found = sorted(redis.keys())
        fleet.process.terminate()

        assert fleet.wait() == 0
        assert found == ["first"]
        assert len(list(folder.glob("*.damaged-*"))) == (damage == "middle")


def test_secrets_are_made_once_for_their_owner_only(tmp_path: Path) -> None:
    first, second = load_credentials(Settings(home=tmp_path)), load_credentials(Settings(home=tmp_path))

    assert first == second
    for name in ("internal_token", "pepper", "redis_password"):
        assert stat.S_IMODE((tmp_path / "secrets" / name).stat().st_mode) == 0o600


def test_a_half_written_secret_is_made_anew_and_a_given_one_is_used(tmp_path: Path) -> None:
    write_secret(tmp_path, "pepper", "abc")

    found = load_credentials(Settings.model_validate({"home": tmp_path, "internal_token": "given"}))

    assert len(found.pepper.get_secret_value()) == 64
    assert found.internal_token.get_secret_value() == "given"


def test_ports_that_are_taken_are_replaced_by_free_ones() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, free = other.getsockname()[1], free_port()

        ports = take_ports([taken, free, free])

        assert ports[1] == free
        assert len(set(ports)) == 3 and taken not in ports
        assert not is_free(taken)


def test_the_gateway_keeps_its_port_even_where_a_server_usually_listens() -> None:
    port = free_port()
    actor = next(service for service in SERVICES if service.name == "actor")
    gateway = next(service for service in SERVICES if service.name == "gateway")
    planned = plan_replicas([replace(actor, port=port), gateway], {"actor": 2}, port)

    found = {replica.name: replica.port for replica in with_free_ports(planned, port)}

    assert found["gateway"] == port
    assert len(set(found.values())) == 3


def test_a_noted_process_is_ended_and_a_stranger_with_its_id_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    left, stranger = subprocess.Popen(command), subprocess.Popen(command)
    try:
        file = tmp_path / "processes.json"
        note(file, [psutil.Process(left.pid), psutil.Process(stranger.pid)])
        rows: list[Any] = json.loads(file.read_text())
        file.write_text(json.dumps([rows[0], [rows[1][0], rows[1][1] - 5]]))

        killed = end_noted(file, patience_s=0.1)

        assert killed == 1
        assert not psutil.pid_exists(left.pid)
        assert stranger.poll() is None
        assert end_noted(file) == 0
    finally:
        stranger.kill()
        stranger.wait()
        left.kill()
        left.wait()


def test_a_half_written_note_of_processes_harms_nobody(tmp_path: Path) -> None:
    file = tmp_path / "processes.json"
    file.write_text("[[1, 0.0], [")

    assert end_noted(file) == 0


def test_the_memory_peak_never_falls(tmp_path: Path) -> None:
    peak = MemoryPeak(tmp_path / "memory.json")
    peak.sample([psutil.Process()])
    first = json.loads(peak.file.read_text())
    peak.sample([])

    assert json.loads(peak.file.read_text()) == first
    assert first["peak_pss_bytes"] > 0


def test_training_has_all_cores_and_a_server_a_quarter() -> None:
    assert [num_threads("trainer-training", n) for n in (2, 16)] == [2, 16]
    assert [num_threads("actor", n) for n in (2, 16)] == [1, 4]


def test_only_the_gateway_knows_the_pepper() -> None:
    places = Places(
        home="/h", recipes="/r", data="/d", redis_url="redis://r", internal_token="t", pepper="p", cores=2,
        urls={"attacker": "a", "actor": "b", "critic": "c"},
    )  # fmt: skip

    knows = [service.name for service in SERVICES if "VCLLM_PEPPER" in environment(service, places)]

    assert knows == ["gateway"]


@pytest.mark.parametrize("text", ["actor", "actor=0", "actor=x", "gateway=2", "nobody=2", "actor=65"])
def test_a_scale_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(LaunchError, match="NAME=NUMBER"):
        parse_scale([text])


def test_a_scale_is_read() -> None:
    assert parse_scale(["actor=2", "critic=3"]) == {"actor": 2, "critic": 3}

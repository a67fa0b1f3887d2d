"""The command line: help, one sentence for every failure, and what it makes of a gateway's answers."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from vcllm.charter import load_charter
from vcllm.cli import app
from vcllm.commands.api import Api
from vcllm.commands.board import Board
from vcllm.commands.demo import curl_line
from vcllm.commands.display import LiveDisplay, PlainDisplay
from vcllm.commands.errors import CommandError
from vcllm.commands.plan import OwnJob, Plan, example_questions
from vcllm.contracts.jobs import Event
from vcllm.contracts.recipes import Recipe
from vcllm.launch.credentials import write_secret
from vcllm.launch.ports import free_port


def commands(within: Any, *words: str) -> Iterator[tuple[str, ...]]:
    """Every command there is, by its words."""
    for name, command in getattr(within, "commands", {}).items():
        yield from commands(command, *words, name)
    if words and not hasattr(within, "commands"):
        yield words


@dataclass
class FakeGateway:
    """Answers what the test laid down, in order per route, and remembers what it was asked."""

    answers: dict[str, list[Any]] = field(default_factory=dict)
    """`METHOD path` to JSON bodies, (status, body) pairs or bytes of an event stream; the last one stays."""
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    url: str = ""

    def answer(self, route: str, headers: dict[str, str], body: Any) -> tuple[int, bytes, str]:
        self.asked.append((route, headers, body))
        left = self.answers.get(route)
        if left is None:
            error = {"error": {"message": f"There is nothing at {route}.", "type": "not_found_error"}}
            return 404, json.dumps(error).encode(), "application/json"
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, bytes):
            return 200, found, "text/event-stream"
        status, value = found if isinstance(found, tuple) else (200, found)
        return status, json.dumps(value).encode(), "application/json"


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()

    class Handler(http.server.BaseHTTPRequestHandler):
        def _do(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            route = f"{self.command} {self.path.partition('?')[0]}"
            status, content, type_ = fake.answer(route, {k.lower(): v for k, v in self.headers.items()}, body)
            self.send_response(status)
            self.send_header("content-type", type_)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _do

        def log_message(self, format: str, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `vcllm` on an empty home; what it says comes without line breaks of the terminal's making."""
    monkeypatch.chdir(tmp_path)
    for name in ("VCLLM_API_KEY", "VCLLM_GATEWAY_URL", "VCLLM_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    environment = {"VCLLM_HOME": str(tmp_path / "var"), "COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1"}
    return lambda *words, **options: CliRunner().invoke(app, [*words], env=environment, **options)


def frames(*events: tuple[str, str, dict[str, Any]]) -> bytes:
    """Events as the gateway frames them."""
    text = ""
    for id_, type_, data in events:
        whole = {"id": id_, "type": type_, "time": 1.0, "data": data}
        text += f"event: {type_}\nid: {id_}\ndata: {json.dumps(whole)}\n\n"
    return text.encode()


def event(type_: str, **data: Any) -> Event:
    return Event(id="1-0", type=type_, time=1.0, data=data)


def evaluation(stage: str, value: float) -> dict[str, Any]:
    share = {"value": value, "low": value, "high": value, "n": 200}
    both = {"zh": share, "en": share}
    suites = {"seen": both, "held_out": both, "held_out_cards": both}
    return {
        "stage": stage, "attack_success": suites, "over_refusal": share, "benign_helpful": share,
        "agreement": share, "both_consistent": share, "broken": share,
    }  # fmt: skip


@pytest.mark.parametrize("words", list(commands(get_command(app))), ids=" ".join)
def test_every_command_explains_itself(run: Any, words: tuple[str, ...]) -> None:
    result = run(*words, "--help")

    assert result.exit_code == 0
    assert "Usage:" in result.output and "--help" in result.output
    assert len(result.output.splitlines()[3].split()) > 2, "a sentence says what it does"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["recipe", "check", "nothing"], "There is no recipe 'nothing'."),
        (["demo", "--recipe", "nothing"], "There is no recipe 'nothing'."),
        (["charter", "check", "nowhere"], "nowhere: there is no such charter folder"),
        (["eval", "show"], "There is no report at"),
        (["keys", "list"], "No VC-LLM is running here."),
        (["jobs", "list"], "No API key."),
        (["up", "--scale", "gateway=2"], "write NAME=NUMBER"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_failure_is_one_sentence_and_a_status(run: Any, words: list[str], sentence: str) -> None:
    result = run(*words)

    assert result.exit_code == 1
    assert sentence in result.output
    assert "Traceback" not in result.output


def test_debug_shows_where_it_failed(run: Any) -> None:
    result = run("--debug", "eval", "show")

    assert isinstance(result.exception, CommandError)


def test_a_gateway_that_is_not_there_is_told(run: Any) -> None:
    url = f"http://127.0.0.1:{free_port()}"

    result = run("jobs", "list", "--url", url, "--key", "k")

    assert result.exit_code == 1
    assert f"The gateway at {url} does not answer" in result.output


def test_an_unknown_option_is_told_by_name(run: Any) -> None:
    result = run("demo", "--speed", "high")

    assert result.exit_code == 2
    assert "--speed" in result.output


def test_a_refusal_of_the_gateway_is_passed_on(run: Any, gateway: FakeGateway) -> None:
    refusal = {"error": {"message": "This key does not have the scope 'jobs:read', which is needed here."}}
    gateway.answers["GET /v1/jobs"] = [(403, refusal)]

    result = run("jobs", "list", "--url", gateway.url, "--key", "k")

    assert result.exit_code == 1
    assert "error: This key does not have the scope 'jobs:read'" in result.output


def test_the_key_comes_from_this_machine_unless_given(run: Any, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answers["GET /v1/jobs"] = [{"data": []}]
    write_secret(tmp_path / "var", "demo_key", "kept")

    run("jobs", "list", "--url", gateway.url)
    run("jobs", "list", "--url", gateway.url, "--key", "given")

    assert [headers["authorization"] for _, headers, _ in gateway.asked] == ["Bearer kept", "Bearer given"]


def test_a_job_is_created_with_an_idempotency_key_and_watched(run: Any, gateway: FakeGateway) -> None:
    gateway.answers = {
        "POST /v1/jobs": [{"id": "job-1", "state": "queued"}],
        "GET /v1/jobs/job-1": [{"id": "job-1", "state": "succeeded"}],
        "GET /v1/jobs/job-1/events": [
            frames(
                ("1-0", "stage", {"stage": "sft", "status": "started"}),
                ("2-0", "stage", {"stage": "sft", "status": "finished", "seconds": 3.2}),
                ("3-0", "evaluation", evaluation("sft", 0.25)),
                ("4-0", "state", {"state": "succeeded"}),
            )
        ],
    }

    result = run("jobs", "create", "--recipe", "starter", "--watch", "--url", gateway.url, "--key", "k")

    assert result.exit_code == 0, result.output
    assert gateway.asked[0][2]["recipe"] == "starter"
    assert gateway.asked[0][1]["idempotency-key"]
    assert "sft: finished in 3 s" in result.output
    assert "held-out attack success zh 25.0 en 25.0" in result.output


def test_a_failed_job_fails_the_watching(run: Any, gateway: FakeGateway) -> None:
    gateway.answers = {
        "GET /v1/jobs/job-1": [{"id": "job-1", "state": "failed"}],
        "GET /v1/jobs/job-1/events": [frames(("1-0", "state", {"state": "failed", "error": "No space left."}))],
    }

    result = run("jobs", "watch", "job-1", "--url", gateway.url, "--key", "k")

    assert result.exit_code == 1
    assert "error: job-1 failed: No space left." in result.output


def test_a_lost_event_stream_is_taken_up_where_it_was(gateway: FakeGateway) -> None:
    """The stream breaks off, then the gateway is busy, then it carries on after the last event that came."""
    gateway.answers = {
        "GET /v1/jobs/j": [{"state": "running"}, {"state": "succeeded"}],
        "GET /v1/jobs/j/events": [
            frames(("7-0", "log", {"message": "one"})),
            (503, {"error": {"message": "Not now."}}),
            frames(("8-0", "log", {"message": "two"}), ("9-0", "state", {"state": "succeeded"})),
        ],
    }
    with Api(gateway.url, "k") as api:
        seen = [found.id for found in api.events("j")]

    resumed = [headers.get("last-event-id") for route, headers, _ in gateway.asked if route.endswith("/events")]
    assert seen == ["7-0", "8-0", "9-0"]
    assert resumed == [None, "7-0", "7-0"]


def test_a_stream_that_ends_with_an_error_is_taken_up_and_the_error_is_no_event(gateway: FakeGateway) -> None:
    """The gateway lost its Redis in the middle; a follower used to be shown an empty `log`."""
    error = b'data: {"error": {"message": "Something went wrong here.", "type": "server_error"}}\n\n'
    gateway.answers = {
        "GET /v1/jobs/j": [{"state": "succeeded"}],
        "GET /v1/jobs/j/events": [
            frames(("7-0", "log", {"message": "one"})) + error,
            frames(("9-0", "state", {"state": "succeeded"})),
        ],
    }
    with Api(gateway.url, "k") as api:
        seen = [found.id for found in api.events("j")]

    resumed = [headers.get("last-event-id") for route, headers, _ in gateway.asked if route.endswith("/events")]
    assert seen == ["7-0", "9-0"]
    assert resumed == [None, "7-0"]


def test_an_old_failure_does_not_end_the_watching_of_a_resumed_job(gateway: FakeGateway) -> None:
    gateway.answers = {
        "GET /v1/jobs/j": [{"state": "running"}, {"state": "succeeded"}],
        "GET /v1/jobs/j/events": [
            frames(
                ("1-0", "state", {"state": "failed"}),
                ("2-0", "state", {"state": "queued"}),
                ("3-0", "state", {"state": "succeeded"}),
            )
        ],
    }
    with Api(gateway.url, "k") as api:
        assert [found.id for found in api.events("j")] == ["1-0", "2-0", "3-0"]


def test_a_finished_job_without_events_still_has_an_end(gateway: FakeGateway) -> None:
    gateway.answers = {
        "GET /v1/jobs/j": [{"state": "failed", "error": "It broke."}],
        "GET /v1/jobs/j/events": [b""],
    }
    with Api(gateway.url, "k") as api:
        (only,) = api.events("j")

    assert only.data == {"state": "failed", "error": "It broke."}


def test_a_gateway_that_stays_away_ends_the_watching(gateway: FakeGateway) -> None:
    gateway.answers["GET /v1/jobs/j/events"] = [(503, {"error": {"message": "Not now."}})]
    with Api(gateway.url, "k", patience_s=0.1) as api, pytest.raises(CommandError, match="jobs watch j"):
        list(api.events("j"))


def test_chat_streams_one_answer(run: Any, gateway: FakeGateway) -> None:
    pieces = [{"choices": [{"delta": {"content": text}}]} for text in ("没有依据", "这样说。")]
    stream = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
    gateway.answers["POST /v1/chat/completions"] = [stream.encode()]

    result = run("chat", "为什么？", "--url", gateway.url, "--key", "k")

    assert result.output == "没有依据这样说。\n"
    assert gateway.asked[0][2]["stream"] is True


def test_chat_reads_questions_from_a_pipe_and_sends_turns_along_when_asked(run: Any, gateway: FakeGateway) -> None:
    stream = b'data: {"choices": [{"delta": {"content": "yes"}}]}\n\ndata: [DONE]\n\n'
    gateway.answers["POST /v1/chat/completions"] = [stream]
    options = ["--url", gateway.url, "--key", "k"]

    alone = run("chat", *options, input="one\ntwo\n")
    together = run("chat", *options, "--turns", "1", input="one\ntwo\n")

    assert alone.output == together.output == "yes\nyes\n"
    assert [len(body["messages"]) for _, _, body in gateway.asked] == [1, 1, 1, 3]


def test_an_error_in_the_middle_of_an_answer_is_told(run: Any, gateway: FakeGateway) -> None:
    piece = b'data: {"choices": [{"delta": {"content": "ye"}}]}\n\n'
    end = b'data: {"error": {"message": "The Actor is gone."}}\n\n'
    gateway.answers["POST /v1/chat/completions"] = [piece + end]

    result = run("chat", "one", "--url", gateway.url, "--key", "k")

    assert result.exit_code == 1
    assert "error: The Actor is gone." in result.output


def test_the_report_is_shown_as_a_table(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "var" / "report"
    folder.mkdir(parents=True)
    stages = [{"name": name, "seconds": 1.0, **evaluation(name, 0.5)} for name in ("base", "sft")]
    (folder / "report.json").write_text(json.dumps({"recipe": "starter", "seed": 0, "stages": stages}))

    result = run("eval", "show")

    assert result.exit_code == 0, result.output
    assert "base" in result.output and "sft" in result.output and result.output.count("50.0") == 16


@pytest.mark.parametrize("content", ["{", "[]", '{"stages": 3}', "{}"])
def test_half_a_report_is_told(run: Any, tmp_path: Path, content: str) -> None:
    file = tmp_path / "report.json"
    file.write_text(content)

    result = run("eval", "show", str(file))

    assert result.exit_code == 1
    assert "is not a whole report" in result.output


def test_the_shipped_charter_passes_its_check(run: Any) -> None:
    result = run("charter", "check")

    assert result.exit_code == 0
    assert "Both languages are complete" in result.output


def test_a_board_gathers_progress_rounds_and_verdicts() -> None:
    board = Board()
    for happened in (
        event("stage", stage="round-1", status="started"),
        event("round", round=1, phase="attack", done=30, total=160, future_key="is let pass"),
        event("round", round=1, phase="pair", done=57, total=57, num_attacks=160, num_valid=140),
        event("progress", stage="round-1", step=2, steps=6, tokens_per_s=8200, eta_s=4.0, loss=0.5),
        event("evaluation", **evaluation("round-1", 0.04)),
        event("gate", version="actor-r1", passed=False, checks=[{"name": "over_refusal", "passed": False}]),
        event("something-new", of="a later version"),
    ):
        board.take(happened)

    line, row = board.stages["round-1"], board.figures["round-1"]
    assert (line.step, line.steps, line.loss, line.phase) == (2, 6, 0.5, None)
    assert (row.valid, row.pairs, row.held_out_zh, row.gate) == ("140/160", 57, 0.04, "refused: over_refusal")
    assert not board.is_over


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        ({"passed": True, "decision": "promote"}, "passed"),
        ({"passed": False, "decision": "hold"}, "held"),
        ({"passed": False, "decision": "reject"}, "refused"),
        ({"passed": False}, "refused"),
    ],
)
def test_a_candidate_that_waits_for_a_person_is_held(verdict: dict[str, Any], told: str) -> None:
    """In what is followed as in what is read afterwards; an older verdict knows no third decision."""
    board = Board()
    board.take(event("gate", stage="round-1", checks=[], **verdict))
    board.take(event("evaluation", **{**evaluation("round-2", 0.04), "gate": verdict}))

    assert [board.figures[stage].gate for stage in ("round-1", "round-2")] == [told, told]


def test_a_board_says_what_was_taken_in() -> None:
    """The operator sees what became of the rows, without looking for the event."""
    board = Board()
    board.take(event("data", stage="sft", sets=[{"set": "a.jsonl", "rows": 1200, "usable": 1000, "duplicates": 200}]))

    assert board.messages == ["sft: a.jsonl: 1,000 of 1,200 rows usable, 200 repeated"]


@pytest.mark.parametrize("type_", ["state", "stage", "progress", "round", "evaluation", "gate", "log", "data"])
def test_an_event_without_data_breaks_no_display(type_: str) -> None:
    board = Board()
    board.take(event(type_))
    console = Console(file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    with console.file, LiveDisplay(console) as live, PlainDisplay(console) as plain:
        live.show(board)
        plain.show(board)


def test_plain_lines_come_seldom() -> None:
    """However often progress comes, a stage says its start, its end, and little between."""
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    board = Board()
    with console.file, PlainDisplay(console, every_s=3600) as display:
        board.take(event("stage", stage="sft", status="started"))
        for step in range(100):
            board.take(event("progress", stage="sft", step=step, steps=100))
            display.show(board)
        board.take(event("stage", stage="sft", status="finished", seconds=61.0))
        display.show(board)

    assert console.export_text().splitlines() == ["sft: 0/100 steps", "sft: finished in 1 min 01 s"]


def test_the_curl_line_keeps_the_key_out_of_the_history_and_quotes_the_question(tmp_path: Path) -> None:
    line = curl_line(tmp_path, "http://127.0.0.1:8080", "Isn't it so?")

    assert f"Bearer $(cat {tmp_path.resolve()}/secrets/demo_key)" in line
    assert """Isn'"'"'t it so?""" in line


def test_the_example_question_exists_in_both_languages() -> None:
    zh, en = example_questions(load_charter())

    assert not zh.isascii() and en.isascii()
    assert "{" not in zh + en


class TestOwnJob:
    """The demo finds its own job again, whatever happened since."""

    RECIPE = Recipe.model_validate(
        {
            "name": "micro",
            "base": {"model": "somewhere"},
            "sft": {"optim": {"learning_rate": 1e-3}},
            "critic": {"optim": {"learning_rate": 1e-3}},
            "attacker": {"optim": {"learning_rate": 1e-3}},
            "rounds": {
                "preference": {"optim": {"learning_rate": 1e-3}},
                "attacker": {"optim": {"learning_rate": 1e-3}},
            },
            "control": False,
        }
    )
    PLAN = Plan(RECIPE, None, "d" * 64, ("问", "ask"))

    def own_job(self, gateway: FakeGateway, home: Path) -> OwnJob:
        home.mkdir(exist_ok=True)
        return OwnJob(Api(gateway.url, "k"), home, self.PLAN)

    def keys_sent(self, gateway: FakeGateway) -> list[str]:
        return [headers["idempotency-key"][-2:] for route, headers, _ in gateway.asked if route == "POST /v1/jobs"]

    def report(self, home: Path) -> None:
        (home / "report").mkdir()
        (home / "report" / "report.json").write_text('{"recipe": "micro", "seed": 0, "stages": []}')

    def test_a_first_run_queues_it_and_a_second_follows_it(self, gateway: FakeGateway, tmp_path: Path) -> None:
        gateway.answers = {
            "POST /v1/jobs": [{"id": "job-1", "state": "queued"}],
            "GET /v1/jobs/job-1": [{"id": "job-1", "state": "running"}],
        }

        first = self.own_job(gateway, tmp_path).find_or_create()
        second = self.own_job(gateway, tmp_path).find_or_create()

        assert first["id"] == second["id"] == "job-1"
        assert self.keys_sent(gateway) == ["-0"]

    def test_a_failed_one_is_resumed(self, gateway: FakeGateway, tmp_path: Path) -> None:
        gateway.answers = {
            "POST /v1/jobs": [{"id": "job-1", "state": "failed"}],
            "POST /v1/jobs/job-1/resume": [{"id": "job-1", "state": "queued"}],
        }

        assert self.own_job(gateway, tmp_path).find_or_create()["state"] == "queued"

    def test_a_cancelled_one_is_queued_anew(self, gateway: FakeGateway, tmp_path: Path) -> None:
        gateway.answers["POST /v1/jobs"] = [
            {"id": "job-1", "state": "cancelled"}, {"id": "job-2", "state": "queued"},
        ]  # fmt: skip

        assert self.own_job(gateway, tmp_path).find_or_create()["id"] == "job-2"
        assert self.keys_sent(gateway) == ["-0", "-1"]

    def test_a_finished_one_stands_while_its_report_and_model_do(self, gateway: FakeGateway, tmp_path: Path) -> None:
        gateway.answers = {
            "POST /v1/jobs": [{"id": "job-1", "state": "succeeded"}, {"id": "job-2", "state": "queued"}],
            "GET /v1/jobs/job-1": [{"id": "job-1", "state": "succeeded"}],
            "GET /v1/models": [{"data": [{"id": "vc-llm"}]}],
        }
        self.report(tmp_path)

        stands = self.own_job(gateway, tmp_path).find_or_create()
        (tmp_path / "report" / "report.json").unlink()
        anew = self.own_job(gateway, tmp_path).find_or_create()

        assert (stands["id"], anew["id"]) == ("job-1", "job-2")

    def test_a_note_that_was_half_written_is_no_obstacle(self, gateway: FakeGateway, tmp_path: Path) -> None:
        gateway.answers["POST /v1/jobs"] = [{"id": "job-1", "state": "running"}]
        (tmp_path / "demo.json").write_text('{"plan": "ddd')

        assert self.own_job(gateway, tmp_path).find_or_create()["id"] == "job-1"

    def test_the_unfinished_job_of_another_plan_is_cancelled(self, gateway: FakeGateway, tmp_path: Path) -> None:
        gateway.answers = {
            "GET /v1/jobs/job-old": [{"id": "job-old", "state": "running"}],
            "POST /v1/jobs/job-old/cancel": [{"id": "job-old", "state": "cancelling"}],
            "POST /v1/jobs": [{"id": "job-new", "state": "queued"}],
        }
        (tmp_path / "demo.json").write_text(json.dumps({"plan": "another", "count": 4, "job": "job-old"}))

        assert self.own_job(gateway, tmp_path).find_or_create()["id"] == "job-new"
        assert "POST /v1/jobs/job-old/cancel" in [route for route, _, _ in gateway.asked]
        assert self.keys_sent(gateway) == ["-0"]

    def test_a_job_redis_no_longer_knows_is_queued_again(self, gateway: FakeGateway, tmp_path: Path) -> None:
        gateway.answers["POST /v1/jobs"] = [{"id": "job-9", "state": "queued"}]
        note = {"plan": self.PLAN.digest, "count": 0, "job": "job-lost"}
        (tmp_path / "demo.json").write_text(json.dumps(note))

        assert self.own_job(gateway, tmp_path).find_or_create()["id"] == "job-9"

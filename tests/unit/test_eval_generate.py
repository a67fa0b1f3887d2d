"""Questions are asked once, whatever happens in between: kills, servers that go away, questions they refuse."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from tests.bench_world import rows as known_rows
from vcllm.charter import load_charter
from vcllm.contracts.answers import Answer, Decoding
from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row
from vcllm.contracts.problems import BadRequest, Problem
from vcllm.evaluation.endpoint import Endpoint, Target
from vcllm.evaluation.files import read_lines
from vcllm.evaluation.generate import generate

CHARTER = load_charter()
ROWS = known_rows(1)


class Server:
    """Answers with the number of messages it was sent; fails as told."""

    def __init__(self, breaks_after: int | None = None, refuses: str = "\0", status: int = 400) -> None:
        self.asked: list[dict] = []
        self.breaks_after = breaks_after
        self.refuses = refuses
        self.status = status

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if self.breaks_after is not None and len(self.asked) >= self.breaks_after:
            return httpx.Response(500, json={"error": {"message": "out of memory"}})
        if self.refuses in body["messages"][-1]["content"]:
            return httpx.Response(self.status, json={"error": {"message": "too long for the context"}})
        self.asked.append(body)
        message = {"role": "assistant", "content": f"heard {len(body['messages'])}"}
        return httpx.Response(200, json={"model": "m-1", "choices": [{"message": message, "finish_reason": "stop"}]})


def ask(server: Server, file: Path, rows: list[Row] = ROWS, decoding: Decoding | None = None) -> list[Answer]:
    async def run() -> list[Answer]:
        transport = httpx.MockTransport(server)
        async with Endpoint(Target("http://127.0.0.1:9", "m"), transport=transport, patience_s=0.1) as endpoint:
            how = decoding or Decoding()
            return await generate(rows, endpoint, file, model="m", decoding=how, charter=CHARTER, concurrency=3)

    return asyncio.run(run())


def test_answers_come_in_the_order_of_the_rows(tmp_path: Path):
    """Whoever was quicker."""
    answers = ask(Server(), tmp_path / "answers.jsonl")

    assert [answer.item for answer in answers] == [row.id for row in ROWS]


def test_a_conversation_is_asked_turn_by_turn_with_the_models_own_answers(tmp_path: Path):
    """Each turn sees all earlier ones: 1, 3, 5 and 7 messages."""
    [talk] = [row for row in ROWS if row.kind == "pressure" and row.lang is Language.EN][:1]

    [answer] = ask(Server(), tmp_path / "answers.jsonl", [talk])

    assert answer.texts == ["heard 1", "heard 3", "heard 5", "heard 7"]
    assert answer.finish == ["stop"] * 4


def test_what_is_answered_is_not_asked_again(tmp_path: Path):
    """A second run asks nobody anything and says the same."""
    first, server = ask(Server(), tmp_path / "answers.jsonl"), Server()

    second = ask(server, tmp_path / "answers.jsonl")

    assert server.asked == []
    assert second == first


def test_another_way_of_asking_is_another_answer(tmp_path: Path):
    """The key holds the decoding: nothing old is passed off as new."""
    ask(Server(), tmp_path / "answers.jsonl")
    server = Server()

    ask(server, tmp_path / "answers.jsonl", decoding=Decoding(temperature=0.7))

    assert {body["temperature"] for body in server.asked} == {0.7}


def test_a_server_that_fails_half_way_costs_nothing_that_was_answered(tmp_path: Path):
    """The error counts what is kept; the next run asks only for the rest, and no question twice."""
    file, broken, mended = tmp_path / "answers.jsonl", Server(breaks_after=5), Server()
    with pytest.raises(Problem) as stopped:
        ask(broken, file)
    kept = {answer.item for answer in read_lines(file, Answer)}
    assert f"out of memory). {len(kept)} of {len(ROWS)} answers are kept" in stopped.value.message

    ask(mended, file)

    assert kept
    items = [answer.item for answer in read_lines(file, Answer)]
    assert sorted(items) == sorted(row.id for row in ROWS)


def test_a_torn_line_is_asked_again(tmp_path: Path):
    """What a killed process left of a line does not count, and does not spoil the next one."""
    file = tmp_path / "answers.jsonl"
    whole = ask(Server(), file)
    file.write_bytes(file.read_bytes()[:-20])
    server = Server()

    again = ask(server, file)

    assert len(server.asked) in (1, 4)  # a question, or the turns of a conversation
    assert [answer.texts for answer in again] == [answer.texts for answer in whole]


def test_a_question_that_is_refused_is_kept_as_refused(tmp_path: Path):
    """The others are answered; nothing was said, and why."""
    server = Server(refuses="premise")

    answers = ask(server, tmp_path / "answers.jsonl")

    refused = [answer for answer in answers if answer.is_missing]
    assert {answer.item for answer in refused} == {row.id for row in ROWS if row.kind == "premise"}
    assert {(answer.texts[0], answer.finish[0]) for answer in refused} == {("", "refused")}
    assert "too long for the context" in refused[0].fault


def test_a_refused_question_is_asked_again_by_the_next_run(tmp_path: Path):
    """The server may have been given more room; what it says now counts, what was answered is left alone."""
    file = tmp_path / "answers.jsonl"
    ask(Server(refuses="premise"), file)
    mended = Server()

    answers = ask(mended, file)

    assert not [answer for answer in answers if answer.is_missing]
    assert len(mended.asked) == sum(row.kind == "premise" for row in ROWS)
    kept = {answer.key: answer for answer in read_lines(file, Answer)}
    assert not [answer for answer in kept.values() if answer.is_missing]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_refuses_everything_stops_the_run(tmp_path: Path, status: int):
    """A wrong key or model is no property of a question."""
    with pytest.raises(Problem, match=f"status {status}"):
        ask(Server(refuses="", status=status), tmp_path / "answers.jsonl")

    assert list(read_lines(tmp_path / "answers.jsonl", Answer)) == []


def test_the_charter_is_the_system_message_in_the_language_of_the_row(tmp_path: Path):
    """For the prompt-only baseline."""
    server = Server()

    ask(server, tmp_path / "answers.jsonl", decoding=Decoding(charter_prompt=True))

    told = {body["messages"][0]["content"] for body in server.asked if body["messages"][0]["role"] == "system"}
    assert told == {CHARTER.system_prompt("zh"), CHARTER.system_prompt("en")}


def test_each_question_has_a_seed_of_its_own_and_always_the_same(tmp_path: Path):
    """One seed for all would let whole sets fall on one side of a chance."""
    first, second = Server(), Server()

    ask(first, tmp_path / "a.jsonl")
    ask(second, tmp_path / "b.jsonl")

    single = [body for body in first.asked if len(body["messages"]) == 1]
    assert len({body["seed"] for body in single}) == len(single)
    assert {body["seed"] for body in first.asked} == {body["seed"] for body in second.asked}


def test_choices_are_listed_and_a_letter_asked_for(tmp_path: Path):
    """The prompt of a multiple-choice row does not hold its options."""
    row = Row(
        id="q-1",
        pair_id="q-1",
        cluster_id="q-1",
        lang=Language.EN,
        domain="society",
        subdomain="other",
        kind="choice",
        prompt=["Which?"],
        choices=["red", "blue"],
        answer_index=1,
        scorer="mc",
        origin="test",
    )
    server = Server()

    ask(server, tmp_path / "answers.jsonl", [row])

    assert server.asked[0]["messages"][0]["content"].startswith("Which?\nA. red\nB. blue\nReply with the letter")


def test_two_runs_at_once_on_one_file_are_refused(tmp_path: Path):
    """The second says so instead of asking everything twice."""
    from vcllm.evaluation.files import Appender

    file = tmp_path / "answers.jsonl"
    with Appender(file, Answer), pytest.raises(BadRequest, match="being written by another run"):
        ask(Server(), file)


def test_a_line_that_is_no_answer_is_named(tmp_path: Path):
    """File, line and field."""
    file = tmp_path / "answers.jsonl"
    file.write_text('{"key": "k"}\n', encoding="utf-8")

    with pytest.raises(BadRequest, match=r"answers\.jsonl, line 1: item: Field required"):
        ask(Server(), file)

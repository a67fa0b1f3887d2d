"""`vcllm audit`: whether the log is whole is an exit status and a sentence; and who did what is a table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis
from typer.testing import CliRunner, Result

from vcllm.cli import app
from vcllm.commands.audit import operator_deed
from vcllm.contracts.audit import Deed, Outcome
from vcllm.stores.audit import AuditLog
from vcllm.stores.audit_copy import copy_of, extend_copy
from vcllm.stores.connect import AUDIT, AUDIT_HEAD
from vcllm.web.tokens import scrape_token


@pytest.fixture
def log(client: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditLog:
    """A log with five entries, which the commands find."""
    monkeypatch.setenv("VCLLM_REDIS_URL", redis_url)
    monkeypatch.setenv("VCLLM_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    log = AuditLog(client)
    with log.deed("0a1b2c3d", "POST /v1/jobs", "job-1"):
        pass
    with log.deed("0a1b2c3d", "POST /v1/jobs/{job_id}/cancel", "job-1"):
        pass
    log.append(Deed(actor=None, action="GET /v1/keys", outcome=Outcome.REFUSED, status=401, withheld=7))
    return log


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["audit", *words])


def test_a_whole_log_is_told_with_its_anchor(log: AuditLog):
    """The anchor can be given back to it."""
    told = run("verify")

    assert told.exit_code == 0, told.output
    assert "All 5 entries" in told.output and f"Anchor: {log.head()}" in told.output
    assert run("verify", "--anchor", str(log.head())).exit_code == 0


def test_a_removed_entry_is_exit_status_1_with_its_number(log: AuditLog, client: Redis):
    """And how far the log is sound."""
    client.xdel(AUDIT, "3-0")

    told = run("verify")

    assert told.exit_code == 1
    assert "Entry 3:" in told.output and "Sound up to: 2:" in told.output


def test_a_log_made_anew_is_found_by_an_anchor_and_by_the_copy(log: AuditLog, client: Redis, tmp_path: Path):
    """Neither is needed when the other is there; without both it is a whole log."""
    noted = str(log.head())
    client.delete(AUDIT, AUDIT_HEAD)
    with AuditLog(client).deed("somebody", "else"):
        pass
    assert run("verify").exit_code == 0
    assert run("verify", "--anchor", noted).exit_code == 1

    file = copy_of(tmp_path)
    file.parent.mkdir()
    client.delete(AUDIT, AUDIT_HEAD)
    for _ in range(6):
        AuditLog(client).append(Deed(actor="a", action="b", outcome=Outcome.DONE))
    extend_copy(AuditLog(client), file)
    client.delete(AUDIT, AUDIT_HEAD)

    told = run("verify")

    assert told.exit_code == 1
    assert "Entry 1:" in told.output


def test_a_copy_can_be_checked_where_there_is_no_redis(log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By its own chain, and by an anchor."""
    assert run("export").exit_code == 0
    file, noted = copy_of(tmp_path), str(log.head())
    monkeypatch.setenv("VCLLM_REDIS_URL", "redis://127.0.0.1:1/0")
    assert run("verify", "--file", str(file), "--anchor", noted).exit_code == 0
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))
    assert run("verify", "--file", str(file)).exit_code == 0

    cut = run("verify", "--file", str(file), "--anchor", noted)
    file.write_bytes(b"".join(lines).replace(b"job-1", b"job-2", 1))
    changed = run("verify", "--file", str(file))

    assert (cut.exit_code, changed.exit_code) == (1, 1)
    assert "Entry 5:" in cut.output and "Entry 1:" in changed.output


def test_what_began_and_ended_is_one_line(log: AuditLog):
    """Latest last; what was withheld is told."""
    told = run("list").output

    assert "begun" not in told
    assert told.index("POST /v1/jobs ") < told.index("cancel") < told.index("GET /v1/keys")
    assert "refused 401 (and 7 more)" in told


def test_the_list_can_be_narrowed(log: AuditLog):
    """By who, by what, and to refusals."""
    assert "cancel" not in run("list", "--refused").output
    assert "keys" not in run("list", "--actor", "0a1b2c3d").output
    assert "GET" not in run("list", "--action", "cancel").output
    assert "no such entry" in run("list", "--actor", "nobody-we-know").output


def test_what_an_operator_does_beside_the_gateway_is_entered(log: AuditLog, client: Redis):
    """By the account that runs the command, with the id of what was made."""
    with operator_deed(client, "vcllm keys create") as doing:
        doing.target = "0a1b2c3d"

    begun, ended = log.recent(2)[::-1]
    assert (begun.outcome, begun.target, ended.outcome, ended.target) == ("begun", None, "done", "0a1b2c3d")
    assert begun.actor == ended.actor == f"operator:{os.getuid()}"


@pytest.mark.parametrize("words", [("verify", "--anchor", "5"), ("verify", "--file", "nowhere.jsonl")])
def test_wrong_words_are_told_in_a_sentence(log: AuditLog, words: tuple[str, ...]):
    """Not as a broken log."""
    told = run(*words)

    assert told.exit_code == 1
    assert "error:" in told.output and "Entry" not in told.output


def test_the_scrape_token_is_shown_and_follows_from_the_internal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From the environment, or from what the launcher keeps; nothing is made where there is none."""
    monkeypatch.setenv("VCLLM_HOME", str(tmp_path))
    missing = CliRunner().invoke(app, ["scrape-token"])
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "internal_token").write_text("kept\n")
    kept = CliRunner().invoke(app, ["scrape-token"])
    monkeypatch.setenv("VCLLM_INTERNAL_TOKEN", "given")
    given = CliRunner().invoke(app, ["scrape-token"])

    assert missing.exit_code == 1
    assert kept.output.strip() == scrape_token(SecretStr("kept"))
    assert given.output.strip() == scrape_token(SecretStr("given"))

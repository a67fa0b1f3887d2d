"""The command line of `vcllm eval`: who is asked, by whom answers are judged, and one sentence for every mistake."""

from __future__ import annotations

import asyncio
import csv
import json
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from pydantic import SecretStr
from rich.console import Console
from typer.testing import CliRunner

from tests import bench_world as world
from tests.judge_scripts import chat_reply, endpoint, is_lettered, labelled
from tests.servers import serve
from tests.tiny_bench import edit, write_bench
from vcllm.charter import load_charter
from vcllm.cli import app
from vcllm.commands import eval_stages
from vcllm.commands.errors import CommandError
from vcllm.commands.eval_models import Gateway, Source, key_for, lineage_sources, needs_gateway, read_sources, trained
from vcllm.commands.eval_stages import Surroundings
from vcllm.contracts.answers import Answer, AskedModel, Decoding, Label
from vcllm.contracts.attacks import Attack, AttackGoal, Cell
from vcllm.contracts.base import Language
from vcllm.contracts.manifests import Manifest
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.assemble import assemble
from vcllm.evaluation.bench import load
from vcllm.evaluation.benchpage import render_bench_page
from vcllm.evaluation.endpoint import Endpoint
from vcllm.evaluation.files import read_lines, write_lines
from vcllm.evaluation.generate import generate
from vcllm.evaluation.judging.llm import ModelJudge
from vcllm.evaluation.judging.stage import cases_of, judge_answers, judge_pairs, mirror_cases
from vcllm.evaluation.runs import RunFolder
from vcllm.evaluation.suites import Suite, load_suite
from vcllm.starter.questions import starter_rows

CHARTER = load_charter()
ROWS = [row for row in world.rows(1) if row.subdomain == "soc.class"]
SECRET = "open-sesame"
Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of this machine's."""
    for name in ("VCLLM_API_KEY", "VCLLM_GATEWAY_URL", "VCLLM_EVAL_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `vcllm eval` on an empty home; what it says comes without line breaks of the terminal's making."""
    monkeypatch.chdir(tmp_path)
    environment = {"VCLLM_HOME": str(tmp_path / "var"), "COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1"}
    return lambda *words: CliRunner().invoke(app, ["eval", *map(str, words)], env=environment)


def sentence(result: Any) -> str:
    """What a failed command says; there is one line of it."""
    assert result.exit_code == 1, result.output
    [line] = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert "Something unexpected" not in line
    return line.removeprefix("error: ")


@pytest.mark.parametrize("command", ["run", "generate", "judge", "report", "self-test", "sheet", "calibrate", "show"])
def test_every_command_explains_itself(run: Run, command: str):
    """Each option with what it is for."""
    result = run(command, "--help")

    assert result.exit_code == 0
    assert "Usage:" in result.output


# Models.


def gateway(*chain: str, current: str | None = None, **cards: str | None) -> Gateway:
    """Serves a chain of versions, each made from the one before it, and whatever else is told by name and parent."""
    parents = dict(zip(chain, [None, *(f"actor/{name}" for name in chain)], strict=False)) | cards
    known = {name: {"id": name, "parent": parent} for name, parent in parents.items()}
    if promoted := current or (chain[-1] if chain else None):
        known["vc-llm"] = {"id": "vc-llm", "parent": promoted}
    return Gateway("http://gateway:8080", SecretStr("k"), known)


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_server_is_asked_at_its_address_by_its_models_name():
    """What stands before the '=' is how the report shows it."""
    [source] = read_sources(["base=https://host/v1#org/Model-7B"], [], None)

    assert (source.name, source.url, source.served, source.folder) == ("base", "https://host/v1", "org/Model-7B", None)


def test_a_folder_is_served_from_where_it_lies(tmp_path: Path):
    """No address before it is asked."""
    folder = model_folder(tmp_path / "Mine")

    [source] = read_sources([f"mine={folder}"], [], None)

    assert (source.url, source.folder, source.served) == ("", folder, str(folder.resolve()))


def test_a_version_is_asked_at_the_gateway_with_its_key():
    """No other server gets that key."""
    [source] = read_sources(["old=x-sft"], [], gateway("x-base", "x-sft"))

    assert (source.url, source.served, source.key.get_secret_value()) == ("http://gateway:8080", "x-sft", "k")


def test_the_alias_is_the_version_that_it_means_now():
    """It may mean another one before the run is over."""
    [source] = read_sources(["ours=vc-llm"], [], gateway("x-base", "x-sft"))

    assert source.served == "x-sft"


def test_a_prompted_model_is_asked_twice():
    """Once as it is, then with the charter as its system message: the baseline stands beside it."""
    sources = read_sources(["a=http://h#m", "b=http://h#n"], ["a"], None)

    asked = [source.asked(Decoding()) for source in sources]
    assert [one.name for one in asked] == ["a", "a+charter", "b"]
    assert [one.decoding.charter_prompt for one in asked] == [False, True, False]
    assert asked[0].served == asked[1].served == "m"


@pytest.mark.parametrize(
    ("specs", "needed"),
    [([], True), (["a=x-sft"], True), (["a=http://h#m"], False), (["a=./x"], False), (["a"], False)],
)
def test_the_gateway_is_needed_for_versions_only(specs: list[str], needed: bool):
    """Servers and folders are asked without one."""
    assert needs_gateway(specs) is needed


@pytest.mark.parametrize(
    ("specs", "prompted", "told"),
    [
        (["base"], [], r"'base' names no model\. Write NAME=URL#MODEL"),
        (["=http://h#m"], [], "names no model"),
        (["my model=http://h#m"], [], "names have letters, digits and"),
        (["base=http://h"], [], r"'base': http://h is no address of a model\. Write"),
        (["base=ftp://h#m"], [], "is no address of a model"),
        (["base=http://h#"], [], "is no address of a model"),
        (["base=./nowhere"], [], r"'base': nowhere is no folder\. Write"),
        (["base=.."], [], r"'base': \.\. holds no model: its config\.json is missing"),
        (["base=x-cpt"], [], r"'base': there is no folder x-cpt, and the gateway at .* serves no such version"),
        (["a=http://h#m", "a=http://h#n"], [], "Two models have the same name"),
        (["a=http://h#m", "a+charter=http://h#n"], ["a"], "Two models have the same name"),
        (["a=http://h#m"], ["b"], "--prompted names 'b', which no --model does"),
    ],
)
def test_what_names_no_model_is_told(specs: list[str], prompted: list[str], told: str):
    """With what to write instead."""
    with pytest.raises(CommandError, match=told):
        read_sources(specs, prompted, gateway("x-base", "x-sft"))


def test_prompted_without_a_model_is_told(run: Run):
    """It would be left out silently otherwise."""
    with serve(FakeGateway("x-base").app) as url:
        result = run("generate", "--prompted", "base", "--url", url, "--key", "k")

    assert "--prompted is about a --model" in sentence(result)


# Keys and other secrets.


def test_a_key_of_its_own_goes_before_that_of_all(monkeypatch: pytest.MonkeyPatch):
    """The variable is the name in capitals, what no variable may hold as a line."""
    monkeypatch.setenv("VCLLM_EVAL_KEY", "common")
    monkeypatch.setenv("VCLLM_EVAL_KEY_GPT_4_1", "own\n")

    assert key_for("gpt-4.1").get_secret_value() == "own"
    assert key_for("base").get_secret_value() == "common"


def test_without_a_variable_there_is_no_key():
    """Local servers ask for none."""
    assert key_for("base").get_secret_value() == ""


@pytest.mark.parametrize("key", [f"{SECRET}\nX-Other: 1", f"{SECRET}é"])
def test_what_cannot_be_a_key_is_told_without_being_shown(monkeypatch: pytest.MonkeyPatch, key: str):
    """As a header it would fail in the midst of the run, in an error message with the key in it."""
    monkeypatch.setenv("VCLLM_EVAL_KEY_BASE", key)

    with pytest.raises(CommandError, match="VCLLM_EVAL_KEY_BASE holds no key") as told:
        key_for("base")

    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--model", f"base=http://user:{SECRET}@host#m"],
        ["generate", "--model", f"base=http://user:{SECRET}@host"],
        ["generate", "--model", f"http://user:{SECRET}@host#m"],
        ["generate", "--model", f"base=https://host/v1?key={SECRET}#m"],
        ["generate", "--url", f"http://user:{SECRET}@host", "--key", "k"],
        ["run", "--model", "base=http://host#m", "--judge", f"j=http://user:{SECRET}@host#m"],
        ["run", "--model", "base=http://host#m", "--judge", "j=http://h#m", "--guard", f"llamaguard:g=http://:{SECRET}@h#m"],
        ["self-test", "--judge", f"j=http://host?key={SECRET}#m"],
    ],
)  # fmt: skip
def test_a_secret_in_an_address_is_refused_and_never_shown(run: Run, tmp_path: Path, words: list[str]):
    """It would end up in run.json and in error messages; the sentence says where keys come from."""
    result = run(*words)

    assert "keys come from VCLLM_EVAL_KEY" in sentence(result)
    assert SECRET not in result.output
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_keys_are_sent_and_kept_nowhere(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_file: Path):
    """Neither in the run's folder nor on the screen, whether the server takes them or not."""
    monkeypatch.setenv("VCLLM_EVAL_KEY_BASE", SECRET)
    server = Scripted(world.model_endpoint(world.even_handed), status=401)
    with serve(server.app) as url:
        refused = run("generate", "--out", "out", "--suite", rows_file, "--model", f"base={url}#m")
        server.status = 200
        answered = run("generate", "--out", "out", "--suite", rows_file, "--model", f"base={url}#m")

    assert "refuses to answer (status 401: not you)" in sentence(refused)
    assert answered.exit_code == 0
    assert set(server.keys) == {f"Bearer {SECRET}"}
    kept = "".join(file.read_text() for file in (tmp_path / "out").iterdir())
    assert SECRET not in kept + refused.output + answered.output


# The lineage behind the gateway.


class FakeGateway:
    """Lists a chain of versions as the gateway does, the alias first, and counts the questions to each."""

    def __init__(self, *chain: str) -> None:
        self.cards = list(gateway(*chain).cards.values())
        self.asked: list[str] = []
        self.app = FastAPI()
        self.app.get("/v1/models")(lambda: {"data": self.cards})
        self.app.post("/v1/chat/completions")(self.answer)

    async def answer(self, request: Request) -> Response:
        self.asked.append((await request.json())["model"])
        return Response(chat_reply("fair answer").content, media_type="application/json")


def test_the_whole_lineage_is_asked_and_base_also_with_the_charter():
    """From base to current; the names are those of the stages."""
    chain = ("starter-s0-1-base", "starter-s0-1-cpt", "starter-s0-1-sft", "starter-s0-1-r1", "starter-s0-1-r2")

    sources = lineage_sources(gateway(*chain, **{"starter-s0-1-control": "actor/starter-s0-1-sft"}))

    assert [source.name for source in sources] == ["base", "base+charter", "cpt", "sft", "r1", "current"]
    assert [source.served for source in sources] == [chain[0], *chain]
    assert [source.prompted for source in sources] == [False, True, *[False] * 4]


def test_a_stage_keeps_its_name_where_all_begin_alike():
    """`r1` and not `1`: what they share ends with a hyphen."""
    assert [one.name for one in lineage_sources(gateway("x-r1", "x-r2"))] == ["r1", "r1+charter", "current"]


def test_versions_whose_names_share_nothing_are_called_by_their_names():
    """Such as after an import under another name."""
    assert [one.name for one in lineage_sources(gateway("alpha", "beta"))] == ["alpha", "alpha+charter", "current"]


def test_a_base_that_is_current_is_asked_with_and_without_the_charter():
    """There is nothing else yet."""
    sources = lineage_sources(gateway("x-base"))

    assert [(one.name, one.served) for one in sources] == [("current", "x-base"), ("current+charter", "x-base")]


def test_a_key_that_sees_no_ancestors_is_told_what_it_takes():
    """Such a key sees the current and the previous version; what was trained last is not taken for the base."""
    seen = gateway("x-r2", **{"x-r2": "actor/x-r1", "x-r1": "actor/x-sft"})

    with pytest.raises(CommandError, match=r"does not show 'x-sft', which 'x-r1' was made from.*models:promote"):
        lineage_sources(seen)


def test_a_gateway_without_a_model_is_told():
    """There is nobody to ask."""
    with pytest.raises(CommandError, match="serves no model yet"):
        lineage_sources(gateway())


def test_without_a_gateway_the_command_says_how_to_name_models(run: Run):
    """Whoever has no system running wants to name servers."""
    result = run("run", "--url", "http://127.0.0.1:9", "--key", "k")

    assert re.search(r"does not answer .* named with --model NAME=URL#MODEL", sentence(result))


def test_the_lineage_is_asked_by_default(run: Run, tmp_path: Path, rows_file: Path):
    """Every version gets every question, base twice."""
    served = FakeGateway("x-base", "x-r1")
    with serve(served.app) as url:
        result = run("generate", "--suite", rows_file, "--url", url, "--key", "k")

    assert result.exit_code == 0, result.output
    num = sum(len(row.prompt) for row in ROWS)
    assert (served.asked.count("x-base"), served.asked.count("x-r1")) == (2 * num, num)
    assert [model.name for model in RunFolder(tmp_path / "var" / "eval").record().models] == [
        "base",
        "base+charter",
        "current",
    ]


# What this machine knows of the served model.


def add_version(home: Path, name: str, stage: str, parent: str | None = None, charter: str = CHARTER.hash) -> None:
    """As the trainer commits it: the recipe is that of the stage, the parent's role stands before its name."""
    manifest = Manifest(
        role="actor", name=name, lineage=name.rpartition("-")[0], stage=stage, parent=parent, format="full", files={},
        recipe={"stage": stage}, recipe_hash="0", charter=charter, dataset="0", token=1, job="job-1", created=1.0,
    )  # fmt: skip
    folder = home / "models" / "actor" / name
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def add_starter(home: Path, charter: str = CHARTER.hash) -> None:
    add_version(home, "x-base", "pretrain", charter=charter)
    add_version(home, "x-sft", "sft", "actor/x-base", charter=charter)


def add_round(home: Path) -> None:
    card = CHARTER.cards[0]
    cell = Cell(subdomain=card.subdomain, tactic="direct", language=Language.EN)
    goal = AttackGoal(cell=cell, kind="attack", card=card.id, goal=0, text=card.claims[0].en)
    file = home / "lineages" / "x" / "rounds" / "round-1" / "attacks.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([Attack(goal=goal, query=f"Is it true that {goal.text}?").model_dump(mode="json")]))


def around(folder: Path, home: Path | None = None) -> Surroundings:
    return Surroundings(Console(width=400), home or folder / "var", CHARTER, RunFolder(folder))


@pytest.fixture
def tiny_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small set in the place of the shipped one."""
    folder = write_bench(tmp_path / "bench")
    monkeypatch.setattr(load, "SHIPPED", folder)
    return folder


def test_what_begins_with_pretraining_is_a_starter(tmp_path: Path):
    """However many stages later."""
    add_starter(tmp_path)

    found = trained(tmp_path, "x-sft")

    assert found is not None and found.starter
    assert (found.lineage, found.charter) == ("x", CHARTER.hash)


def test_what_begins_with_an_imported_model_is_none(tmp_path: Path):
    """It is asked in free text."""
    add_version(tmp_path, "x-base", "import")
    add_version(tmp_path, "x-sft", "sft", "actor/x-base")

    found = trained(tmp_path, "x-sft")

    assert found is not None and not found.starter


@pytest.mark.parametrize("version", ["x-sft", None, "../etc"])
def test_nothing_is_known_of_what_another_machine_has_trained(tmp_path: Path, version: str | None):
    """Its store is not here."""
    assert trained(tmp_path, version) is None


def test_a_starter_is_asked_its_own_questions_and_those_of_its_rounds(tmp_path: Path, tiny_set: Path):
    """By default, beside the smoke questions, with answers as short as its own."""
    add_starter(tmp_path)
    add_round(tmp_path)
    model = trained(tmp_path, "x-sft")

    suites = eval_stages.chosen_suites([], around(tmp_path / "run", tmp_path), model)

    assert [suite.name for suite in suites] == ["smoke", "starter", "fresh"]
    assert {row.scorer for suite in suites[1:] for row in suite.rows} == {"gold"}
    assert eval_stages.decoding_for(model, None, None, 3) == Decoding(temperature=0.7, max_tokens=64, seed=3)
    assert eval_stages.decoding_for(model, 0.0, 32, 3) == Decoding(temperature=0.0, max_tokens=32, seed=3)


def test_a_starter_without_rounds_is_asked_the_rest(tmp_path: Path, tiny_set: Path):
    """An empty suite is none."""
    add_starter(tmp_path)

    suites = eval_stages.chosen_suites([], around(tmp_path / "run", tmp_path), trained(tmp_path, "x-sft"))

    assert [suite.name for suite in suites] == ["smoke", "starter"]


def test_any_other_model_is_asked_the_smoke_questions(tmp_path: Path, tiny_set: Path):
    """With room for an answer in free text."""
    suites = eval_stages.chosen_suites([], around(tmp_path), None)

    assert [suite.name for suite in suites] == ["smoke"]
    assert eval_stages.decoding_for(None, None, None, 0) == Decoding(temperature=0.0, max_tokens=512, seed=0)


def test_a_run_that_has_begun_keeps_its_questions(tmp_path: Path):
    """Whoever adds a model to it need not say again what was asked."""
    RunFolder(tmp_path).begin(Suite("own", "", tuple(ROWS)), CHARTER)

    assert eval_stages.chosen_suites([], around(tmp_path), None) == []


def test_a_starter_of_another_charter_is_not_asked(tmp_path: Path, tiny_set: Path):
    """Its questions would be about claims that it never learned."""
    add_starter(tmp_path, charter="0" * 64)

    with pytest.raises(CommandError, match="'x' was trained under another charter.*--charter"):
        eval_stages.chosen_suites([], around(tmp_path / "run", tmp_path), trained(tmp_path, "x-sft"))


# Suites.


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    write_lines(tmp_path / "known.jsonl", ROWS)
    return tmp_path / "known.jsonl"


def test_a_suite_that_is_given_twice_is_one(tmp_path: Path, rows_file: Path):
    """No question is asked twice."""
    suites = eval_stages.chosen_suites([str(rows_file), str(rows_file)], around(tmp_path / "run"), None)

    assert [len(suite.rows) for suite in suites] == [len(ROWS)]


def test_a_last_line_without_its_end_is_a_row(rows_file: Path):
    """People's editors leave it so; it must not be lost silently."""
    rows_file.write_bytes(rows_file.read_bytes().rstrip(b"\n"))

    assert load_suite(str(rows_file)).rows == tuple(ROWS)


def test_choices_beyond_the_letters_are_told(rows_file: Path):
    """Those left over would never be offered."""
    write_lines(rows_file, [ROWS[0].model_copy(update={"choices": [str(number) for number in range(11)]})])

    with pytest.raises(BadRequest, match="has 11 choices; there are letters for 10"):
        load_suite(str(rows_file))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "holds no rows"),
        ("{", "known.jsonl, line 1"),
        ('{"id": "a"}', "known.jsonl, line 1: pair_id: Field required"),
    ],
)
def test_a_file_that_holds_no_rows_is_told(run: Run, rows_file: Path, content: str, told: str):
    """With the line and the field."""
    rows_file.write_text(content)

    assert told in sentence(run("generate", "--suite", rows_file, "--model", "a=http://h#m"))


@pytest.mark.parametrize("name", ["nothing", "."])
def test_an_unknown_suite_is_told_with_those_there_are(run: Run, name: str):
    """The starter's too."""
    told = sentence(run("generate", "--suite", name, "--model", "a=http://h#m"))

    assert told == f"There is no suite '{name}'. Use smoke, core, dev, starter, fresh, or a file of rows."


def test_the_starters_questions_need_no_gateway(run: Run, tmp_path: Path):
    """They are made of the charter; only the attacks of its rounds are on the machine that trained it."""
    server = Scripted(world.model_endpoint(world.even_handed))
    with serve(server.app) as url:
        result = run("generate", "--out", "out", "--suite", "starter", "--model", f"a={url}#m")

    assert result.exit_code == 0, result.output
    assert len(RunFolder(tmp_path / "out").answers()) == server.num == 200


def test_attacks_of_rounds_need_the_machine_that_trained(run: Run):
    """The gateway is somewhere else, or there were no rounds."""
    with serve(FakeGateway("x-base").app) as url:
        result = run("generate", "--suite", "fresh", "--model", "a=http://h#m", "--url", url, "--key", "k")

    assert "needs the rounds of a model that was trained on this machine" in sentence(result)


def test_another_model_has_room_to_answer_the_attacks_of_a_starter(run: Run, tmp_path: Path):
    """Its answers were cut off after the 64 tokens that do for a starter."""
    add_starter(tmp_path / "var")
    add_round(tmp_path / "var")
    with (
        serve(FakeGateway("x-base", "x-sft").app) as url,
        serve(Scripted(world.model_endpoint(world.even_handed)).app) as other,
    ):
        options = ["--model", f"a={other}#m", "--url", url, "--key", "k"]
        result = run("generate", "--out", "out", "--suite", "fresh", *options)

    assert result.exit_code == 0, result.output
    folder = RunFolder(tmp_path / "out")
    assert [asked.decoding.max_tokens for asked in folder.record().models] == [512]
    assert len(folder.answers()) == 1


def test_a_lineage_without_rounds_has_no_fresh_questions(tmp_path: Path):
    """Whoever asks for them is told."""
    add_starter(tmp_path)

    with pytest.raises(CommandError, match="has been through no rounds"):
        eval_stages.chosen_suites(["fresh"], around(tmp_path / "run", tmp_path), trained(tmp_path, "x-sft"))


def test_an_unknown_charter_is_told(run: Run):
    """Before anything is asked."""
    told = sentence(run("generate", "--charter", "nowhere", "--model", "a=http://h#m"))

    assert "nowhere: there is no such charter folder" in told


# A run's folder.


class Scripted:
    """A scripted server behind a real socket, that counts and remembers the keys it was given."""

    def __init__(self, script: Endpoint, status: int = 200) -> None:
        self.handler = script._client._transport.handler
        self.status = status
        self.num = 0
        self.keys: list[str | None] = []
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.answer)

    async def answer(self, request: Request) -> Response:
        self.num += 1
        self.keys.append(request.headers.get("authorization"))
        if self.status != 200:
            return Response('{"error": {"message": "not you"}}', self.status)
        asked = httpx.Request("POST", "http://scripted/v1/chat/completions", content=await request.body())
        return Response(self.handler(asked).content, media_type="application/json")


async def _answered(folder: RunFolder, **models: world.Model) -> None:
    folder.begin(Suite("known", "1", tuple(ROWS)), CHARTER)
    for name, model in models.items():
        folder.note(AskedModel(name=name, url="http://h", served=name, decoding=Decoding()))
        async with world.model_endpoint(model) as server:
            await generate(ROWS, server, folder.answers_file, model=name, decoding=Decoding(), charter=CHARTER)


async def _judged(folder: RunFolder, name: str = "scripted", revision: str = "", pairs: bool = True) -> None:
    async with world.judge_endpoint() as server:
        judge, cases = ModelJudge(server, CHARTER, name, revision), cases_of(folder.rows(), folder.answers())
        await judge_answers(cases, judge, folder.verdicts_file)
        if pairs:
            await judge_pairs(mirror_cases(cases), judge, folder.pairs_file)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Two models have answered."""
    folder = RunFolder(tmp_path / "out")
    asyncio.run(_answered(folder, base=world.always_agrees, fair=world.even_handed))
    return folder


@pytest.fixture
def judged(folder: RunFolder) -> RunFolder:
    """And one judge has judged everything."""
    asyncio.run(_judged(folder))
    return folder


def test_answers_of_one_model_are_never_shown_as_those_of_another(folder: RunFolder):
    """A second run after more training found the name `current` answered, and reported the old version as the new."""
    with pytest.raises(BadRequest, match="it was 'base' that answered as 'base', not 'base-2'. Use another folder"):
        folder.note(AskedModel(name="base", url="http://h", served="base-2", decoding=Decoding()))

    folder.note(AskedModel(name="base", url="http://moved", served="base", decoding=Decoding()))


def test_a_mistyped_model_that_never_answered_may_be_corrected(folder: RunFolder):
    """There is nothing that could be taken for the right one's."""
    for served in ("Qwen", "Qwen3"):
        folder.note(AskedModel(name="new", url="http://h", served=served, decoding=Decoding()))

    assert [model.served for model in folder.record().models] == ["base", "fair", "Qwen3"]


def test_a_model_that_is_not_wanted_any_more_can_be_taken_out(run: Run, judged: RunFolder):
    """The sentence says where; the report is then about the others."""
    judged.note(AskedModel(name="gone", url="http://h", served="gone", decoding=Decoding()))
    told = sentence(run("report", "--out", judged.folder))
    record = json.loads((judged.folder / "run.json").read_text())
    record["models"] = [model for model in record["models"] if model["name"] == "fair"]
    (judged.folder / "run.json").write_text(json.dumps(record))

    report = assemble(judged, CHARTER, ())

    assert f"lacks answers: {len(ROWS)} of 'gone'" in told and "taken out of `models` in its run.json" in told
    assert [model.model for model in report.models] == ["fair"]


def test_a_model_that_has_answered_everything_is_not_started(folder: RunFolder):
    """A local one would take minutes to load, for nothing."""
    source = Source("base", "base", folder=Path("nowhere"))

    eval_stages.ask(around(folder.folder), [], [source], Decoding())

    assert len(folder.answers()) == 2 * len(ROWS)


# Judges.


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "Say who judges: --judge NAME=URL#MODEL"),
        (["--judge", "nobody"], "'nobody' names no judge"),
        (["--judge", "a=http://h#m", "--judge", "a=http://h#n"], "Two judges have the same name"),
        (["--judge", "gold", "--guard", "llamaguard:g=http://h#m"], "A --guard stands behind a judge that scores"),
        (["--judge", "a=http://h#m,mode=aloud"], "mode=aloud is none of logit, reason, written"),
    ],
)
def test_what_names_no_judge_is_told(run: Run, folder: RunFolder, options: list[str], told: str):
    """Before anybody judges."""
    assert told in sentence(run("judge", "--out", folder.folder, *options))
    assert not folder.verdicts_file.exists()


def test_a_mistyped_judge_is_told_before_anybody_is_asked(run: Run, rows_file: Path):
    """Answers may take hours."""
    server = Scripted(world.model_endpoint(world.even_handed))
    with serve(server.app) as url:
        result = run("run", "--suite", rows_file, "--model", f"a={url}#m", "--judge", "nobody")

    assert "'nobody' names no judge" in sentence(result)
    assert server.num == 0


def test_the_gold_judge_judges_the_starters_questions_by_default(run: Run, tmp_path: Path):
    """No gateway is needed; what it cannot read is unscored."""
    folder, gold = RunFolder(tmp_path / "out"), starter_rows(CHARTER.with_first_cards(5), 1)
    folder.begin(Suite("mixed", "", (*gold, ROWS[0])), CHARTER)
    folder.note(AskedModel(name="a", url="http://h", served="a", decoding=Decoding()))
    asyncio.run(_ask(folder, "a"))

    result = run("judge", "--out", folder.folder)

    assert result.exit_code == 0, result.output
    verdicts = folder.verdicts()
    assert {verdict.judge for verdict in verdicts} == {"gold"}
    assert [verdict.item for verdict in verdicts if verdict.failure == "not_covered"] == [ROWS[0].id]


async def _ask(folder: RunFolder, name: str) -> None:
    async with world.model_endpoint(world.even_handed) as server:
        rows = folder.rows()
        await generate(rows, server, folder.answers_file, model=name, decoding=Decoding(), charter=CHARTER)


def test_a_folder_without_answers_is_told(run: Run, tmp_path: Path):
    """Instead of judging nothing."""
    RunFolder(tmp_path / "out").begin(Suite("known", "", tuple(ROWS)), CHARTER)

    result = run("judge", "--out", "out", "--judge", "a=http://h#m")

    assert "There are no answers in out yet. `vcllm eval generate` asks for them." in sentence(result)


def test_a_run_is_judged_by_its_own_charter(run: Run, folder: RunFolder, tmp_path: Path):
    """Another rubric is refused."""
    other = Path(shutil.copytree(Path(load.__file__).parents[2] / "charter" / "data" / "pluralist", tmp_path / "other"))
    text = (other / "charter.yaml").read_text(encoding="utf-8")
    (other / "charter.yaml").write_text(re.sub(r"(?m)^id: .*$", "id: other", text, count=1), encoding="utf-8")

    result = run("judge", "--out", folder.folder, "--charter", other, "--judge", "a=http://h#m")

    assert "was begun under another charter" in sentence(result)


@pytest.mark.parametrize("command", ["judge", "report", "sheet"])
def test_a_folder_without_a_run_says_how_to_begin_one(run: Run, command: str):
    """By default the one below the home."""
    assert sentence(run(command)).endswith("var/eval. `vcllm eval generate` begins one.")


# Reports.


def test_the_first_judge_that_is_named_gives_the_figures(run: Run, tmp_path: Path, rows_file: Path):
    """Although the other one scores more: gold reads nothing of these rows, so that a report of it has no figure."""
    with ExitStack() as servers:
        model = servers.enter_context(serve(Scripted(world.model_endpoint(world.even_handed)).app))
        judge = servers.enter_context(serve(Scripted(world.judge_endpoint()).app))
        options = ["--out", "out", "--suite", rows_file, "--model", f"a={model}#m", "--no-self-test"]
        result = run("run", *options, "--judge", "gold", "--judge", f"scripted={judge}#m")
        other = run("report", "--out", "out")

    assert result.exit_code == other.exit_code == 0, result.output
    assert f"{len(ROWS)} questions, judged by gold" in result.output
    assert f"{len(ROWS)} questions, judged by scripted" in other.output
    assert "has not taken the self-test" in other.output


def test_a_judge_that_has_judged_a_part_is_told(run: Run, judged: RunFolder):
    """With how many are missing and what brings them."""
    lines = judged.verdicts_file.read_text().splitlines(keepends=True)
    judged.verdicts_file.write_text("".join(lines[:-3]))

    told = sentence(run("report", "--out", judged.folder))

    assert f"'scripted' has not judged 3 of {2 * len(ROWS)} answers" in told and "`vcllm eval judge`" in told


def test_mirror_pairs_that_were_not_compared_are_told(run: Run, folder: RunFolder):
    """A judge that was stopped between answers and pairs left a report without even-handedness."""
    asyncio.run(_judged(folder, pairs=False))

    assert "'scripted' has not compared 4 of 4 mirror pairs" in sentence(run("report", "--out", folder.folder))


def test_pairs_of_earlier_answers_do_not_count(judged: RunFolder):
    """The model is asked in another way and judged again, pairs left out: those there are speak of other answers."""
    asyncio.run(_asked_again(judged))
    asyncio.run(_judged(judged, pairs=False))

    with pytest.raises(BadRequest, match="'scripted' has not compared 2 of 4 mirror pairs"):
        assemble(judged, CHARTER, ())


async def _asked_again(folder: RunFolder) -> None:
    warmer = Decoding(temperature=1)
    folder.note(AskedModel(name="base", url="http://h", served="base", decoding=warmer))
    async with world.model_endpoint(world.always_agrees) as server:
        await generate(ROWS, server, folder.answers_file, model="base", decoding=warmer, charter=CHARTER)


def test_two_judges_under_one_name_are_not_mixed(judged: RunFolder):
    """Another model took the name and was stopped half way."""
    asyncio.run(_judged(judged, revision="newer"))
    assert assemble(judged, CHARTER, ()).judges[0].revision == "newer"
    lines = judged.verdicts_file.read_text().splitlines(keepends=True)
    judged.verdicts_file.write_text("".join(lines[:-5]))

    with pytest.raises(BadRequest, match="'scripted' judged some answers in one way and others in another"):
        assemble(judged, CHARTER, ())


def test_a_reward_model_gives_no_figures(judged: RunFolder):
    """It stands beside the judge they come from."""
    rewards = [one.model_copy(update={"judge": "rm", "score_mode": "reward"}) for one in judged.verdicts()]
    write_lines(judged.verdicts_file, [*judged.verdicts(), *rewards])

    with pytest.raises(BadRequest, match="'rm' gives rewards, from which no figures come"):
        assemble(judged, CHARTER, (), first="rm")


# The self-test.


def longer_is_better(body: dict[str, Any]) -> httpx.Response:
    """A judge that counts letters."""
    material = body["messages"][-1]["content"].split("##")[-3]
    answer = re.split(r"\[(?:The answer under review|要审阅的回答)\]", material)[-1]
    level = min(5, 1 + len(answer) // (7 if re.search("[\u4e00-\u9fff]", answer) else 27))
    return labelled("B" if is_lettered(body) else str(level))


def by_length() -> Endpoint:
    return endpoint(longer_is_better)


def test_a_good_judge_passes_the_self_test(run: Run, tiny_set: Path):
    """Exit status 0, and how often in each language."""
    with serve(Scripted(world.judge_endpoint()).app) as url:
        result = run("self-test", "--judge", f"good={url}#m", "--out", "out")

    assert result.exit_code == 0, result.output
    assert "good passed the self-test: good answers above bad ones in zh 1.00" in result.output


def test_a_judge_of_length_fails_the_self_test(run: Run, tiny_set: Path):
    """Exit status 1, and at which kind of bad answer."""
    with serve(Scripted(by_length()).app) as url:
        result = run("self-test", "--judge", f"long={url}#m", "--out", "out")

    assert result.exit_code == 1
    assert "long failed the self-test" in result.output and "error:" not in result.output
    assert "preachy refusal: 0.00" in result.output


def test_the_self_test_is_about_the_judges_that_are_named(run: Run, tiny_set: Path):
    """One that failed in the same folder before is not held against the next."""
    with ExitStack() as servers:
        bad = servers.enter_context(serve(Scripted(by_length()).app))
        good = servers.enter_context(serve(Scripted(world.judge_endpoint()).app))
        first = run("self-test", "--judge", f"j={bad}#bad", "--out", "out")
        second = run("self-test", "--judge", f"j={good}#good", "--out", "out")
        third = run("self-test", "--judge", f"j={bad}#bad", "--out", "out")

    assert [one.exit_code for one in (first, second, third)] == [1, 0, 1]


@pytest.mark.parametrize(
    ("judges", "told"), [([], "Say which judges take the test"), (["gold"], "'gold' gives no scores by the rubric")]
)
def test_who_cannot_take_the_self_test_is_told(run: Run, judges: list[str], told: str):
    """Rules have nothing to learn from it."""
    assert told in sentence(run("self-test", *(word for judge in judges for word in ("--judge", judge))))


def test_a_passed_self_test_counts_for_the_judge_that_passed_it(judged: RunFolder, tiny_set: Path):
    """Another model under the same name has not passed it."""
    with serve(Scripted(world.judge_endpoint()).app) as url:
        eval_stages.self_test_run(around(judged.folder), [f"scripted={url}#other"])

    report = assemble(judged, CHARTER, load.load_bench().selftest)

    assert report.judges[0].self_test is None and not report.judges[0].validated


# People.


def test_labels_of_a_sheet_calibrate_the_judge(run: Run, judged: RunFolder):
    """Drawn, filled in on the table, taken in: the judge agrees with people who see what it sees."""
    drawn = run("sheet", "--out", judged.folder, "--per-language", "6")
    labels = filled(judged.folder / "labelling.csv")
    taken = run("calibrate", labels, "--out", judged.folder)

    assert drawn.exit_code == taken.exit_code == 0, drawn.output + taken.output
    assert "12 answers to label" in drawn.output and (judged.folder / "labelling.html").is_file()
    assert "12 labels are in" in taken.output
    assert re.search(r"both\s+12\s+1\.00", taken.output)
    assert "Chinese: 6 labelled answers; at least 100 are needed." in taken.output
    assert "'scripted' is not validated by these labels." in taken.output
    assert len(judged.labels()) == 12


def test_with_labels_the_report_has_attack_success_without_the_judges_errors(run: Run, judged: RunFolder):
    """A judge that made no error on what was labelled is corrected by little; without labels nothing is."""
    run("sheet", "--out", judged.folder, "--per-language", "20")
    run("calibrate", filled(judged.folder / "labelling.csv"), "--out", judged.folder)

    before = assemble(judged, CHARTER, ())
    judged.labels_file.unlink()
    without = assemble(judged, CHARTER, ())

    base = before.models[0]
    assert set(base.attack_success_corrected) == {"zh", "en"}
    assert base.attack_success_corrected["zh"].value == pytest.approx(base.attack_success.zh.value, abs=0.1)
    assert without.models[0].attack_success_corrected == {}
    assert "Attack success without the judge" in render_bench_page(before)
    assert "Attack success without the judge" not in render_bench_page(without)


def test_two_models_are_compared_question_by_question(run: Run, folder: RunFolder):
    """The fair one is better wherever the other agrees with a claim; both orders say so."""
    with serve(Scripted(world.judge_endpoint()).app) as url:
        result = run("compare", "base", "fair", "--out", folder.folder, "--judge", f"scripted={url}#m")
        again = run("compare", "base", "fair", "--out", folder.folder, "--judge", f"scripted={url}#m")

    rows = folder.rows()
    worse = sum(row.kind != "benign" for row in rows)
    told = (
        f"scripted: 'fair' is better on {worse}, 'base' on 0, neither on {len(rows) - worse} of {len(rows)} questions; "
        f"the same in both orders on {len(rows)}; 0 unscored."
    )
    assert told in result.output
    assert told in again.output


def test_models_that_have_nothing_in_common_cannot_be_compared(run: Run, folder: RunFolder):
    """It names those there are."""
    result = run("compare", "base", "nobody", "--out", folder.folder, "--judge", "j=http://127.0.0.1:9#m")

    assert "The run has: base, fair." in sentence(result)


def filled(table: Path) -> Path:
    """The table as somebody saved it who finds agreement bad and the rest good."""
    with table.open(encoding="utf-8-sig", newline="") as stream:
        entries = list(csv.DictReader(stream))
    for entry in entries:
        agrees = any(words["agree"] in entry["answer"] for words in world.WORDS.values())
        entry |= {"violating": "yes" if agrees else "no", "score": "1" if agrees else "5"}
    with table.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, entries[0].keys())
        writer.writeheader()
        writer.writerows(entries)
    return table


def test_a_sheet_with_labels_is_not_written_over(run: Run, judged: RunFolder):
    """Hours of somebody's work."""
    run("sheet", "--out", judged.folder, "--per-language", "2")
    assert run("sheet", "--out", judged.folder, "--per-language", "2").exit_code == 0
    before = filled(judged.folder / "labelling.csv").read_bytes()

    result = run("sheet", "--out", judged.folder, "--per-language", "2", "--seed", "1")

    assert "is there already and may hold labels" in sentence(result)
    assert (judged.folder / "labelling.csv").read_bytes() == before


def test_without_a_score_there_is_no_sheet(run: Run, folder: RunFolder):
    """It says who scores."""
    assert "Nobody has scored an answer in" in sentence(run("sheet", "--out", folder.folder))


def test_a_sheet_by_an_unknown_judge_is_told(run: Run, judged: RunFolder):
    """Nothing can be drawn by it."""
    told = sentence(run("sheet", "--out", judged.folder, "--judge", "other"))

    assert "There is nothing to label: 'other' has scored no answer" in told


def test_a_table_without_labels_is_told(run: Run, judged: RunFolder):
    """As it was written; earlier labels stay."""
    run("sheet", "--out", judged.folder)

    told = sentence(run("calibrate", judged.folder / "labelling.csv", "--out", judged.folder))

    assert "No answer is labelled in these files yet" in told
    assert not judged.labels_file.exists()


def test_a_code_of_another_run_is_told(run: Run, judged: RunFolder, tmp_path: Path):
    """Its answers are not here."""
    (tmp_path / "other.jsonl").write_text('{"code": "0123", "violating": true, "score": 1, "labeller": "1"}\n')

    told = sentence(run("calibrate", "other.jsonl", "--out", judged.folder))

    assert "no answer of this run is called '0123'" in told


def test_labels_of_answers_that_have_gone_are_counted(run: Run, judged: RunFolder):
    """Such as those of a model that was taken out; the others are compared."""
    labels = [
        Label(item=ROWS[0].id, model=model, lang=ROWS[0].lang, violating=True, score=1) for model in ("base", "gone")
    ]
    write_lines(judged.labels_file, labels)
    write_lines(judged.folder / "more.jsonl", labels[:1])

    result = run("calibrate", judged.folder / "more.jsonl", "--out", judged.folder)

    assert result.exit_code == 0, result.output
    assert f"1 labels are of answers that this run does not have, and are compared with nothing. The first: " \
        f"{ROWS[0].id} by gone." in result.output  # fmt: skip


def test_rules_are_not_held_against_labels(run: Run, judged: RunFolder, tmp_path: Path):
    """There is nothing about them to validate; the labels are kept."""
    rules = [one.model_copy(update={"judge": "gold", "score_mode": "rule"}) for one in judged.verdicts()]
    write_lines(judged.verdicts_file, rules)
    label = Label(item=ROWS[0].id, model="base", lang=ROWS[0].lang, violating=True, score=1)
    write_lines(tmp_path / "labels.jsonl", [label])

    told = sentence(run("calibrate", "labels.jsonl", "--out", judged.folder))

    assert "'gold' judges by rule" in told
    assert judged.labels() == [label]


# The last training run.


def test_the_report_of_an_evaluation_is_a_page(run: Run, tmp_path: Path):
    """It has no table of stages; the sentence says where to look."""
    (tmp_path / "report.json").write_text(json.dumps({"comparisons": [], "judges": []}))

    assert sentence(run("show", "report.json")) == "report.json is the report of `vcllm eval`: open index.html instead."


def test_without_a_training_run_there_is_nothing_to_show(run: Run):
    """It says what makes one."""
    assert "`vcllm demo` makes one" in sentence(run("show"))


# Checks of a set.


@pytest.fixture
def qc(tmp_path: Path) -> Run:
    environment = {"COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1"}
    return lambda *words: CliRunner().invoke(app, ["data", "qc", *map(str, words)], env=environment)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return write_bench(tmp_path / "bench")


def test_a_sound_sub_domain_passes(qc: Run, bench: Path):
    """Exit status 0."""
    result = qc(bench, "--only", "soc.class")

    assert (result.exit_code, result.output.split()) == (0, ["No", "fault."])


def test_a_broken_sub_domain_is_told_with_the_place(qc: Run, bench: Path):
    """One fault, one line, exit status 1."""
    edit(bench / "test" / "soc.class.yaml", principles=["valour"])

    result = qc(bench, "--only", "soc.class")

    assert result.exit_code == 1
    assert "test/soc.class-direct-000: the charter has no principle 'valour'\n1 fault." in result.output


def test_faults_come_as_json_too(qc: Run, bench: Path):
    """For whatever checks sets without looking."""
    edit(bench / "test" / "soc.class.yaml", principles=["valour"])

    result = qc(bench, "--only", "soc.class", "--json")

    told = json.loads(result.output)
    assert (result.exit_code, told["ok"], told["figures"]) == (1, False, {})
    assert [fault["where"] for fault in told["faults"]] == ["test/soc.class-direct-000"]


def test_a_whole_set_is_checked_for_what_is_missing(qc: Run, bench: Path):
    """Two sub-domains of the taxonomy's thirteen are there; the figures are shown all the same."""
    result = qc(bench, "--json")

    told = json.loads(result.output)
    assert result.exit_code == 1
    assert {"where": "test/pol.intl", "what": "0 units of kind 'direct' instead of 8"} in told["faults"]
    assert told["figures"]["test_units"] == 92


def test_a_set_with_faults_gets_no_version(qc: Run, bench: Path):
    """What has a version passed its checks."""
    result = qc(bench, "--release", "2.0")

    assert result.exit_code == 1
    assert json.loads((bench / "release.json").read_text())["version"] == "1.0"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--release", ""], "--release needs a version, such as 1.0."),
        (["--release", "2", "--only", "soc.class"], "--release is for a whole set: leave --only out."),
        (["--only", "soc.nothing"], "The charter has no sub-domain 'soc.nothing'."),
        (["--charter", "nowhere"], "nowhere: there is no such charter folder: create it or correct the path"),
    ],
)
def test_what_cannot_be_checked_is_told(qc: Run, bench: Path, words: list[str], told: str):
    """One sentence."""
    assert sentence(qc(bench, *words)) == told


def test_a_folder_that_is_no_set_is_told(qc: Run, tmp_path: Path):
    """With what should be in it."""
    assert "there is no *.yaml file: restore the set" in sentence(qc(tmp_path))


def test_a_file_that_is_no_yaml_is_told(qc: Run, bench: Path):
    """With the line."""
    (bench / "dev" / "soc.class.yaml").write_text("- id: [\n")

    assert re.search(r"dev/soc\.class\.yaml: line \d.*: correct the YAML there", sentence(qc(bench)))


def test_content_that_was_changed_under_its_version_is_told(qc: Run, bench: Path):
    """Unless a sub-domain is being written."""
    edit(bench / "test" / "soc.class.yaml", difficulty=2)

    assert "the content is not that of version 1.0" in sentence(qc(bench))
    assert qc(bench, "--only", "soc.class").exit_code == 0


def test_what_a_model_cannot_take_is_told(run: Run, tmp_path: Path, rows_file: Path):
    """How many, and the server's own words; the run goes on."""
    folder = RunFolder(tmp_path / "out")
    with serve(Scripted(world.model_endpoint(world.even_handed), status=400).app) as url:
        result = run("generate", "--out", "out", "--suite", rows_file, "--model", f"a={url}#m")

    assert result.exit_code == 0
    told = f"a would not take {len(ROWS)} of {len(ROWS)} questions; they count as unscored. The first: {ROWS[0].id}: "
    assert told in result.output and "not you" in result.output
    assert all(answer.is_missing for answer in read_lines(folder.answers_file, Answer))

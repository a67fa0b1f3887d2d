"""Whom `vcllm eval` asks: servers, folders and versions, with whose keys, and the lineage behind the gateway."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import bench_world as world
from tests.eval_commands import ROWS, FakeGateway, Run, Scripted, gateway, sentence
from tests.servers import serve
from vcllm.commands.errors import CommandError
from vcllm.commands.eval_models import key_for, lineage_sources, needs_gateway, read_sources
from vcllm.contracts.answers import Decoding
from vcllm.evaluation.runs import RunFolder

SECRET = "open-sesame"


# Models.


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

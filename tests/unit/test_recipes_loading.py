"""A recipe is read whole or refused in one sentence that says where and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from vcllm.charter import load_charter
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import EvaluationParams
from vcllm.recipes import lineage_name, load_recipe, recipe_names, stage_names, used_part

RECIPES = Path(__file__).parents[2] / "recipes"

SCRATCH = """
name = "tiny"
[base.scratch]
[pretrain.optim]
learning_rate = 1e-3
[cpt.optim]
learning_rate = 1e-3
[sft.optim]
learning_rate = 1e-3
[critic.optim]
learning_rate = 1e-3
[attacker.optim]
learning_rate = 1e-3
[rounds]
count = 2
[rounds.preference.optim]
learning_rate = 1e-4
[rounds.attacker.optim]
learning_rate = 1e-4
"""
READY_MADE = (
    SCRATCH.replace("[base.scratch]", '[base]\nmodel = "models/base"')
    .replace("[pretrain.optim]\nlearning_rate = 1e-3\n", "")
    .replace("[cpt.optim]\nlearning_rate = 1e-3\n", "")
    .replace('name = "tiny"', 'name = "tiny"\ncontrol = false')
    .replace("count = 2", "count = 0")
)


def refusal(folder: Path, text: str | bytes) -> str:
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "tiny.toml").write_bytes(content)
    with pytest.raises(BadRequest) as refused:
        load_recipe(folder, "tiny")
    assert refused.value.param == "recipe"
    return refused.value.message


def test_a_recipe_is_read(tmp_path: Path):
    """With its defaults filled in."""
    (tmp_path / "tiny.toml").write_text(SCRATCH)

    recipe = load_recipe(tmp_path, "tiny")

    assert recipe.name == "tiny"
    assert recipe.rounds.count == 2


def test_stages_from_nothing_come_in_order(tmp_path: Path):
    """Pretraining first, the report last, one stage for each round."""
    (tmp_path / "tiny.toml").write_text(SCRATCH)

    stages = stage_names(load_recipe(tmp_path, "tiny"))

    assert " ".join(stages) == "pretrain cpt sft critic attacker round-1 round-2 control report"


def test_stages_of_a_ready_made_model_are_fewer(tmp_path: Path):
    """What the recipe leaves out is not run."""
    (tmp_path / "tiny.toml").write_text(READY_MADE)

    assert " ".join(stage_names(load_recipe(tmp_path, "tiny"))) == "import sft critic attacker report"


def test_a_recipe_uses_the_part_of_its_charter_that_it_names(tmp_path: Path):
    """Cards by number and tactics by name; a recipe that says nothing uses the whole."""
    whole = load_charter()
    (tmp_path / "tiny.toml").write_text('cards_per_subdomain = 2\ntactics = ["drip", "direct"]\n' + SCRATCH)
    (tmp_path / "plain.toml").write_text(SCRATCH)

    part = used_part(load_recipe(tmp_path, "tiny"), whole)

    assert [tactic.id for tactic in part.tactics] == ["direct", "drip"]
    assert part.cards == whole.with_first_cards(2).cards
    assert used_part(load_recipe(tmp_path, "plain"), whole) is whole


def test_a_tactic_that_the_charter_lacks_is_a_fault_of_the_recipe(tmp_path: Path):
    """It is named, with those that there are."""
    whole = load_charter()
    (tmp_path / "tiny.toml").write_text('tactics = ["direct", "hypnosis"]\n' + SCRATCH)

    with pytest.raises(BadRequest) as refused:
        used_part(load_recipe(tmp_path, "tiny"), whole)

    known = ", ".join(tactic.id for tactic in whole.tactics)
    fault = f"tactics: the charter has no tactic 'hypnosis': choose from {known}."
    assert refused.value.message == f"Recipe 'tiny' cannot be used: {fault}"
    assert (refused.value.param, refused.value.code) == ("recipe", "recipe_invalid")


@pytest.mark.parametrize("name", ["starter", "smoke", "loop"])
def test_recipes_of_tiny_models_keep_to_the_first_fourteen_tactics(name: str):
    """In the charter's order, on which their planted shares and random draws rest."""
    whole = load_charter()

    part = used_part(load_recipe(RECIPES, name), whole)

    assert part.tactics == whole.tactics[:14]


def test_a_missing_recipe_lists_those_there_are(tmp_path: Path):
    """So that the next attempt can be right."""
    (tmp_path / "tiny.toml").write_text(SCRATCH)
    (tmp_path / "Not A Name.toml").write_text(SCRATCH)

    with pytest.raises(BadRequest, match="no recipe 'tinny'. There are: tiny"):
        load_recipe(tmp_path, "tinny")
    assert recipe_names(tmp_path) == ["tiny"]


def test_an_empty_folder_says_where_recipes_go(tmp_path: Path):
    """A folder that does not exist counts as empty."""
    with pytest.raises(BadRequest, match="none yet"):
        load_recipe(tmp_path / "nowhere", "tiny")


@pytest.mark.parametrize("name", ["../tiny", "/etc/passwd", "tiny.toml/..", "", "TINY", "tiny\n"])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str):
    """It is a name, not a path."""
    (tmp_path / "tiny.toml").write_text(SCRATCH)
    (tmp_path / "recipes").mkdir()

    with pytest.raises(BadRequest, match="There is no recipe"):
        load_recipe(tmp_path / "recipes", name)


def test_a_fault_is_named_with_its_file_and_key(tmp_path: Path):
    """An unknown key, a wrong value, a missing key: each with its path in the file."""
    unknown = refusal(tmp_path, SCRATCH.replace("count = 2", "cuont = 2"))
    wrong = refusal(tmp_path, SCRATCH.replace("count = 2", "count = -1"))
    missing = refusal(tmp_path, SCRATCH.replace('name = "tiny"', ""))

    assert unknown == "Recipe tiny.toml cannot be used: rounds.cuont: there is no such key."
    assert "tiny.toml" in wrong
    assert "rounds.count" in wrong
    assert missing == "Recipe tiny.toml cannot be used: name: this key is missing."


def test_parts_that_do_not_fit_together_are_explained(tmp_path: Path):
    """The contract's own sentence comes through, without the library's wrapping."""
    message = refusal(tmp_path, SCRATCH.replace("[pretrain.optim]\nlearning_rate = 1e-3\n", ""))

    assert "[base] scratch needs a [pretrain] section" in message
    assert "Value error" not in message


def test_a_judge_has_no_vote(tmp_path: Path):
    """It would rule on pairs that it helped to choose."""
    vote = '[rounds.critic]\nvotes = ["first", "second"]\n'
    message = refusal(tmp_path, f'{SCRATCH}{vote}[evaluation]\njudge = "second"\n')
    (tmp_path / "tiny.toml").write_text(f'{SCRATCH}{vote}[evaluation]\njudge = "third"\n')

    assert "[evaluation] judge 'second' is among rounds.critic.votes" in message
    assert load_recipe(tmp_path, "tiny").evaluation.judge == "third"


def test_only_a_recipe_that_names_a_judge_has_another_content(tmp_path: Path):
    """All others keep the names of their lineages."""
    (tmp_path / "tiny.toml").write_text(SCRATCH)
    plain = load_recipe(tmp_path, "tiny")
    judged = plain.model_copy(update={"evaluation": EvaluationParams(judge="third")})

    assert "judge" not in plain.model_dump(mode="json")["evaluation"]
    assert lineage_name(plain, 0, "hash") != lineage_name(judged, 0, "hash")


def test_several_faults_are_counted(tmp_path: Path):
    """The first is explained, the number of the others given."""
    message = refusal(tmp_path, SCRATCH.replace("count = 2", "cuont = 2\nnum_gaols = 1"))

    assert message.endswith("(and 1 more).")


@pytest.mark.parametrize("text", ["[rounds", 'name = "a"\nname = "b"', b"\xff\xfe"])
def test_what_is_not_toml_is_refused(tmp_path: Path, text: str | bytes):
    """With the parser's own position where it has one."""
    assert "is not valid TOML" in refusal(tmp_path, text)

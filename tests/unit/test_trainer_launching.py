"""How a training run is started: one process, or as many as its recipe asks for; and the recipes that are shipped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from services.trainer.launching import command
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import Base, ImportStage, Launch, StageOrder
from vcllm.recipes import load_recipe, recipe_names
from vcllm.settings import Settings

RECIPES = Path(__file__).parents[2] / "recipes"
SETTINGS = Settings(recipes=RECIPES)
LARGE = ["lora-0.6b", "lora-8b", "lora-8b-4gpu", "full-8b-8gpu"]


def order(launch: Launch | None) -> StageOrder:
    return StageOrder(
        stage=ImportStage(), role="actor", version="v", lineage="l", seed=0, base=Base(model="m"), launch=launch,
        dataset="", recipe="r", recipe_hash="", charter="",
    )  # fmt: skip


def arguments(launch: Launch | None) -> list[str]:
    return command(order(launch), Path("job"), SETTINGS)


def test_without_launch_a_run_is_one_process():
    """The plain module, with folder and store."""
    assert arguments(None) == [sys.executable, "-m", "vcllm.training", "job", str(SETTINGS.models)]


def test_a_run_is_spread_as_its_recipe_says():
    """Processes and, where named, the configuration beside the recipes."""
    assert arguments(Launch(processes=4))[3:5] == ["--processes", "4"]
    assert arguments(Launch(processes=8, config="fsdp.yaml"))[5:7] == ["--config", str(RECIPES / "fsdp.yaml")]


def test_a_configuration_that_is_not_there_is_refused():
    """One sentence that names the file and where it belongs."""
    with pytest.raises(BadRequest, match=r"no 'mine\.yaml' in"):
        arguments(Launch(processes=2, config="mine.yaml"))


@pytest.mark.parametrize("name", recipe_names(RECIPES))
def test_every_shipped_recipe_loads_and_opens_with_its_command(name: str):
    """Its name is that of its file; the first line is what to type."""
    assert load_recipe(RECIPES, name).name == name
    assert (RECIPES / f"{name}.toml").read_text().startswith(("# make demo", "# vcllm ", "# VCLLM_RECIPES=recipes "))


@pytest.mark.parametrize("name", LARGE)
def test_recipes_for_real_models_estimate_their_memory(name: str):
    """Before anybody rents a device."""
    head = [line for line in (RECIPES / f"{name}.toml").read_text().splitlines() if line.startswith("#")]

    assert "Memory" in " ".join(head)
    assert "GiB" in " ".join(head)


def test_the_shipped_sharding_is_the_one_that_works():
    """FSDP 2, and weights that are not loaded by halves."""
    config = yaml.safe_load((RECIPES / "fsdp.yaml").read_text())

    assert config["distributed_type"] == "FSDP"
    assert config["fsdp_config"]["fsdp_version"] == 2
    assert config["fsdp_config"]["fsdp_cpu_ram_efficient_loading"] is False

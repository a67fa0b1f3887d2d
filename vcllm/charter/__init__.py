"""The operator's value charter: the shipped data and its loader, nothing else."""

from vcllm.charter.load import LoadedCharter, load_charter
from vcllm.charter.reading import CharterError

__all__ = ["CharterError", "LoadedCharter", "load_charter"]

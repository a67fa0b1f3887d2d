"""The operator's value charter: the shipped data and its loader, nothing else."""

from vcllm.charter.load import CharterError, LoadedCharter, load_charter

__all__ = ["CharterError", "LoadedCharter", "load_charter"]

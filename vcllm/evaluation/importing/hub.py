"""Fetches a set's own data files from the Hugging Face hub, at a revision that is written down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vcllm.contracts.problems import BadRequest, Unavailable
from vcllm.evaluation.importing.registry import SetInfo


@dataclass(frozen=True)
class Fetched:
    """What was fetched."""

    folder: Path
    revision: str
    """The commit."""


def fetch(info: SetInfo, folder: Path, revision: str | None = None) -> Fetched:
    """The data files of a set, put into `folder`; raises BadRequest or Unavailable with what to do instead."""
    instead = f"Get the files from {info.url} and name them."
    if not info.hub:
        raise BadRequest(f"{info.title} has no data set on the hub that we know. {instead}")
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ModuleNotFoundError:
        raise BadRequest(
            f"--hub needs the package huggingface_hub: pip install huggingface_hub. Or: {instead}"
        ) from None
    try:
        commit = HfApi().dataset_info(info.hub, revision=revision).sha or ""
        got = snapshot_download(
            info.hub, repo_type="dataset", revision=commit, allow_patterns=list(info.hub_files), local_dir=folder
        )
    except Exception as error:  # of whatever library the hub's client speaks HTTP with; all mean: not to be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Unavailable(f"{info.title} could not be fetched from the hub ({reason}). {instead}") from None
    return Fetched(Path(got), commit)

"""Models too large to write down first: their weights are drawn on the device, from the configuration alone.

python -m benchmarks.random_weights JOB_FOLDER MODEL_STORE      `python -m vcllm.training` with such a model
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModelForCausalLM


@contextmanager
def random_weights() -> Iterator[None]:
    """Within, a causal language model is made from its folder's configuration instead of being read."""

    def make(folder: Path, *, dtype: torch.dtype, attn_implementation: str = "sdpa", **_: Any) -> Any:
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(folder), dtype=dtype, attn_implementation=attn_implementation
            )
        model.name_or_path = str(folder)
        return model

    with patch.object(AutoModelForCausalLM, "from_pretrained", make):
        yield


if __name__ == "__main__":
    from vcllm.training.run import main  # not above: a peer's process is to hold nothing of ours

    with random_weights():
        sys.exit(main(sys.argv[1:]))

"""A model's layers compiled while it trains; its attention over rows that lie end to end is left as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface

from vcllm.training.layout import NAME, packed_attention


@contextmanager
def compiled_layers(core: Any, *, wanted: bool) -> Iterator[None]:
    """Every decoder layer by itself: they are alike, so the first one's code serves all, for any number of tokens."""
    if not wanted:
        yield
        return
    kinds = set(core._no_split_modules or ())
    layers = [module for module in core.modules() if type(module).__name__ in kinds]
    # Its indices are made by numpy, once a micro-batch: nothing to gain there, and a graph for every shape to lose.
    AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        AttentionInterface.register(NAME, packed_attention)

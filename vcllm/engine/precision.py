"""In which floating point a model is computed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from vcllm.engine.footprint import weight_bytes

DtypeName = Literal["auto", "float32", "bfloat16"]

SMALL = 128 << 20
"""Bytes of float32 weights up to which a CPU gains little from bfloat16, and exact results are worth more."""


PRECISION_VARIABLE = "VCLLM_PRECISION"
"""`float32`: nothing is multiplied in bfloat16, even where the hardware can; for comparing runs to the last bit."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16; where it does not, emulation is several times slower than float32."""
    if os.environ.get(PRECISION_VARIABLE) == "float32":
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def pick_dtype(device: torch.device, name: DtypeName, weights: Path) -> torch.dtype:
    """For the model in a folder. `auto`: bfloat16 on accelerators, and for larger models on CPUs that multiply it."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type != "cpu":
        return torch.bfloat16
    large = weight_bytes(weights, torch.float32) > SMALL
    return torch.bfloat16 if large and has_bfloat16(device) else torch.float32

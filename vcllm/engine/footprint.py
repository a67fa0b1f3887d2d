"""What weights take in memory, read from the headers of safetensors files: nothing is loaded to find out."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import torch

LARGEST_HEADER = 100 << 20
"""Bytes; the format allows no more."""


def weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """All tensors of a folder at `dtype`; ValueError for a file that cannot be one of weights."""
    files = sorted(folder.glob("*.safetensors"))
    return sum(math.prod(shape) for file in files for shape in tensor_shapes(file).values()) * dtype.itemsize


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """By name. ValueError when the header is none, or when the file ends before its last tensor does."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(LARGEST_HEADER, size - 8):
            raise ValueError(f"{file.name} is no safetensors file: its header would have {length:,} bytes")
        header = handle.read(length)
    tensors = _tensors(file, header)
    end = max((end for _, end in tensors.values()), default=0)
    if end > size - 8 - length:
        raise ValueError(f"{file.name} is cut off: {end - (size - 8 - length):,} bytes of its tensors are missing")
    return {name: shape for name, (shape, _) in tensors.items()}


def _tensors(file: Path, header: bytes) -> dict[str, tuple[list[int], int]]:
    """Name to shape and to where the tensor ends behind the header."""
    try:
        return {
            name: ([int(size) for size in tensor["shape"]], int(tensor["data_offsets"][1]))
            for name, tensor in json.loads(header).items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{file.name} is no safetensors file: its header cannot be read") from error

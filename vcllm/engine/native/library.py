"""The compiled forward pass: where it lies, and its structures as ctypes."""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Mapping
from ctypes import CDLL, POINTER, Structure, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("decoder.c")
HEAD_DIMS = frozenset({16, 32, 48, 64, 80, 96, 128, 256})
"""That attention is compiled for."""
FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fPIC", "-shared", "-fopenmp", "-w", "-Wno-psabi")
"""Of the compiler, whatever the level."""
X86: Mapping[str, tuple[str, ...]] = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma"),
}
KINDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {"x86_64": X86, "amd64": X86}
"""Of machines; on others it has never been measured, so torch does the work there."""


def levels() -> Mapping[str, tuple[str, ...]]:
    """What it is compiled for on a machine of this kind, each with the compiler's flags; the best comes first."""
    return KINDS.get(platform.machine().lower(), {})


def file_of(level: str) -> Path:
    """Named after the source and how it is compiled, so that the result of anything else is never loaded."""
    recipe = [SOURCE.read_bytes(), *(flag.encode() for flag in (*FLAGS, *levels()[level]))]
    return SOURCE.with_name(f"decoder-{level}-{hashlib.sha256(b' '.join(recipe)).hexdigest()[:12]}.so")


class Matrix(Structure):
    _fields_ = (
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("is_half", c_int64),
    )


class Layer(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("norm_in", "norm_out", "norm_q", "norm_k")),
        *((name, Matrix) for name in ("qkv", "o", "gate_up", "down")),
        ("window", c_int64),
    )


class Model(Structure):
    _fields_ = (
        ("layers", POINTER(Layer)),
        ("norm", c_void_p),
        ("embedding", Matrix),
        ("head", Matrix),
        *((name, c_int64) for name in ("num_layers", "hidden", "inner", "num_q", "num_kv", "head_dim")),
        *((name, c_float) for name in ("eps", "eps_qk", "scale")),
    )


class Pass(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("ids", "positions", "places", "hidden", "keep")),
        *((name, c_int64) for name in ("num_rows", "num_new", "num_kept")),
        *((name, POINTER(c_void_p)) for name in ("keys", "values")),
        ("room", c_int64),
        *((name, c_void_p) for name in ("cos", "sin", "logits", "scratch")),
        ("num_threads", c_int64),
    )


def runnable() -> list[str]:
    """The levels of this processor, the best first."""
    import torch  # which has asked the processor

    known = list(levels())
    best = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability())
    if "avx2" not in known:
        return known
    return known[known.index(best) :] if best else []


@cache
def load(level: str) -> CDLL | None:
    """None where it has not been compiled, or cannot be loaded here."""
    import torch  # noqa: F401  # whose threads it shares: loaded first, so that there is one OpenMP only

    file = file_of(level)
    if not file.is_file():
        log.info("The compiled forward pass is not there; `python -m vcllm.engine.native.build` makes it.")
        return None
    try:
        loaded = CDLL(str(file))
    except OSError as error:
        log.warning("The compiled forward pass cannot be loaded: %s", error)
        return None
    loaded.forward.argtypes = loaded.scratch_size.argtypes = (POINTER(Model), POINTER(Pass))
    loaded.forward.restype, loaded.scratch_size.restype = None, c_int64
    return loaded


def library() -> CDLL | None:
    """The best that there is for this processor; None: torch does the work."""
    return next((loaded for level in runnable() if (loaded := load(level)) is not None), None)


def lanes(compiled: CDLL) -> int:
    """Numbers of one of its vectors; weights lie in panels of twice as many outputs."""
    return c_int64.in_dll(compiled, "lanes").value

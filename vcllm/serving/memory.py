"""How much memory there is for another version, and giving back what an unloaded one leaves.

Reads what Linux tells: the machine's `MemAvailable` and the limits of every control group above this process,
so that a container's limit counts as what it is: the line behind which the kernel kills.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
GROUP_FILES = (("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
"""Limit, use, and prefix of the names in `memory.stat`, for version 2 and version 1."""


def available_bytes(device: torch.device) -> int | None:
    """What can be taken on the device now without anybody being killed; None: nobody knows."""
    if device.type == "cpu":
        return host_bytes()
    if device.type == "cuda":
        import torch  # not above: a role with an upstream does without

        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return None


def host_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """The machine's free memory or what is left in the tightest control group, whichever is less."""
    found = [*_machine(proc), *(left for group in _groups(proc, cgroups) for left in _left_in(group))]
    return min(found, default=None)


def reclaim() -> None:
    """Hand the memory of what was let go of back to the system; the allocators would keep it for later."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def _machine(proc: Path) -> Iterator[int]:
    if (kib := _fields(proc / "meminfo").get("MemAvailable")) is not None:
        yield kib * 1024


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of this process's memory group and of those above it.

    In a container the path may be the host's while only the container's own part is mounted: that part is the root.
    """
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                root = cgroups / controllers
                own = root / path.lstrip("/")
                yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _left_in(group: Path) -> Iterator[int]:
    """Limit less use; pages of files do not count as used, since the kernel drops them before it kills."""
    for limit, used, prefix in GROUP_FILES:
        with suppress(OSError, ValueError):  # no such group, or no limit: "max"
            left = int((group / limit).read_text()) - int((group / used).read_text())
            pages = _fields(group / "memory.stat")
            yield left + sum(pages.get(f"{prefix}{kind}_file", 0) for kind in ("inactive", "active"))


def _fields(file: Path) -> dict[str, int]:
    """`name value` lines, with or without a colon and a unit; empty where there is no such file."""
    try:
        rows = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}

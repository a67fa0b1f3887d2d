"""Compiles the forward pass for machines like this one: `python -m vcllm.engine.native.build`.

The result lies beside the source. Without a compiler nothing is done and models run through torch, more slowly.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

from vcllm.engine.native.library import FLAGS, SOURCE, file_of, levels

NO_COMPILER = (
    "No C compiler was found, so models on a CPU run through torch alone. For speed: apt install gcc libc6-dev."
)


def compiler() -> str | None:
    """$CC, or what the system has."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc"))), None)


def build(cc: str) -> None:
    """Compile what is not there, remove what other sources and flags have left. CalledProcessError when it cannot."""
    wanted = {file_of(level): flags for level, flags in levels().items()}
    for file, flags in wanted.items():
        if not file.is_file():
            made = file.with_suffix(f".{os.getpid()}.tmp")
            try:
                subprocess.run([cc, *FLAGS, *flags, str(SOURCE), "-o", str(made), "-lm"], check=True)
                made.replace(file)
            finally:
                made.unlink(missing_ok=True)
    for old in set(SOURCE.parent.glob("decoder-*.so")) - wanted.keys():
        old.unlink()


def main() -> int:
    if not levels():
        print(f"There is no compiled forward pass for {platform.machine()}; models run through torch.", file=sys.stderr)
        return 0
    if (cc := compiler()) is None:
        print(NO_COMPILER, file=sys.stderr)
        return 0
    try:
        build(cc)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"The forward pass could not be compiled, so models run through torch alone: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

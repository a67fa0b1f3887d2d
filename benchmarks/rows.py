"""Rows of a results file: ours and a peer on the same work, run in pairs; and the table a document shows of them.

Knows nothing of what is measured.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]
Better = Literal["more", "less"]

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"


def paired_row(
    name: str, unit: str, ours: Sequence[float], peer: Sequence[float], peer_name: str, better: Better = "more"
) -> Row:
    """Medians of both sides, and of the ratio within each pair; a ratio above 1 is better for us."""
    ratios = [one / other if better == "more" else other / one for one, other in zip(ours, peer, strict=True)]
    return {
        "name": name,
        "unit": unit,
        "ours": _rounded(statistics.median(ours)),
        "peer": _rounded(statistics.median(peer)),
        "peer_name": peer_name,
        "ratio": round(statistics.median(ratios), 3),
        "runs": len(ratios),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def lonely_row(name: str, unit: str, ours: Sequence[float], peer_name: str, reason: str) -> Row:
    """Ours alone: the peer could not be run, and `reason` says why."""
    return {
        "name": name,
        "unit": unit,
        "ours": _rounded(statistics.median(ours)),
        "peer": None,
        "peer_name": peer_name,
        "ratio": None,
        "runs": len(ours),
        "ratio_min": None,
        "ratio_max": None,
        "reason": reason,
    }


def write_results(file: Path, rows: list[Row], **more: Any) -> dict[str, Any]:
    """Rows of an earlier run stay where they are of the same machine and commit and were not measured again."""
    found = {"machine": machine(), "commit": commit(), "date": datetime.now(UTC).date().isoformat()}
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    if any(earlier.get(key) != found[key] for key in ("machine", "commit")):
        earlier = {}
    kept = {(row["name"], row["peer_name"]): row for row in earlier.get("rows", [])}
    kept |= {(row["name"], row["peer_name"]): row for row in rows}
    written = earlier | found | {name: value for name, value in more.items() if value} | {"rows": list(kept.values())}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    return written


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line per row."""
    lines = ["| | unit | ours | peer | peer is | ratio (range) | runs |", "|---|---|--:|--:|---|--:|--:|"]
    for row in rows:
        lonely = row["peer"] is None
        ratio = "–" if lonely else f"**{row['ratio']:.2f}** ({row['ratio_min']:.2f}–{row['ratio_max']:.2f})"
        peer = "–" if lonely else _shown(row["peer"], row["unit"])
        who = f"{row['peer_name']}: {row['reason']}" if lonely else row["peer_name"]
        unit = "MiB" if row["unit"] == "bytes" else row["unit"]
        ours = _shown(row["ours"], row["unit"])
        lines.append(f"| {row['name']} | {unit} | {ours} | {peer} | {who} | {ratio} | {row['runs']} |")
    return "\n".join(lines)


def fill(document: str, name: str, text: str) -> str:
    """The document with `text` between the markers of `name`; ValueError where it has none."""
    start, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    found = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if not found.search(document):
        raise ValueError(f"The document has no '{start}' … '{end}'.")
    return found.sub(lambda _: f"{start}\n{text}\n{end}", document)


def machine() -> str:
    """Processor, its cores, memory, and the accelerator if there is one."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or "unknown processor"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [processor, f"{os.cpu_count()} cores", f"{memory:.0f} GiB", *filter(None, [gpu()])]
    return ", ".join(parts)


def gpu() -> str | None:
    """The first CUDA device's name."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def commit() -> str:
    """Of the working tree; marked where files under version control differ from it, the benchmarks' output aside."""
    try:
        root = Path(__file__).parent
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        apart = ["--", ".", f":(exclude){RESULTS}", f":(exclude){DOCUMENT}"]
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", *apart], cwd=root.parent, check=False).returncode
        return found.stdout.strip() + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _rounded(value: float) -> float:
    """Five significant digits; whole numbers from there on."""
    return round(value) if abs(value) >= 1e4 else float(f"{value:.5g}")


def _shown(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**20:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

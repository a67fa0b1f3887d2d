"""What every page of ours has in common: how its templates are opened, what its numbers look like, what it may load.

A page stands alone: no request leaves it, nothing in it runs, and both languages are inside.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vcllm.evaluation import plot, wording

TEMPLATES = Path(__file__).parent / "templates"
"""The frame of a page, its small parts (`macros.html.j2`) and its style sheet; then the pages of training runs."""
STYLE = "report.css"


def open_templates(*folders: Path) -> Environment:
    """Templates of the folders given, then the common ones; everything they print is escaped.

    The small parts also take filters `stage`, `short_stage` and `measure_name` and tests `shown` and `better`: what
    these mean is each page's own business.
    """
    environment = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "span", "points", "signed_span", "p_value", "sample_size", "duration", "memory"):
        environment.filters[name] = getattr(wording, name)
    environment.filters["shade"] = plot.shade
    return environment


def dressed(*more: str) -> dict[str, str]:
    """`style` and `policy` for the frame: the common style sheet, rules of the page's own after it."""
    style = "".join([(TEMPLATES / STYLE).read_text(encoding="utf-8"), *more])
    return {"style": Markup(style), "policy": content_policy(style)}


def content_policy(style: str) -> str:
    """Allows the page its own style sheet, known by its hash, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"

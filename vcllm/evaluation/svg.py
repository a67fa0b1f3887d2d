"""The little SVG that the charts need: escaped elements, text in both languages, and a linear scale.

Colours, fonts and strokes belong to the page's style sheet, by class; only geometry is written here.
"""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup, escape

from vcllm.contracts.base import Bilingual

Attribute = str | int | float | None


def el(name: str, *children: str | Markup, **attributes: Attribute) -> Markup:
    """`el("line", x1=0, class_="grid")`: text is escaped, `_` in a name becomes `-`, None is left out."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup(f"<{name}{written}>{inner}</{name}>")


def _plain(value: str | int | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def drawing(width: float, height: float, *children: Markup, label: Bilingual) -> Markup:
    """A picture that scales with its column; `label` is read aloud in place of it."""
    view = f"0 0 {_plain(float(width))} {_plain(float(height))}"
    return el("svg", *children, viewBox=view, role="img", aria_label=f"{label.en} / {label.zh}")


def words(text: Bilingual, **attributes: Attribute) -> Markup:
    """The same label twice; the page shows the one of the chosen language."""
    given = str(attributes.pop("class_", None) or "")
    return Markup("").join(
        el("text", text[language], class_=f"{language} {given}".strip(), lang=tag, **attributes)
        for language, tag in (("en", "en"), ("zh", "zh-Hans"))
    )


def title(text: Bilingual, numbers: str) -> Markup:
    """What a pointer resting on the mark shows."""
    return el("title", f"{text.en} / {text.zh}: {numbers}")


@dataclass(frozen=True)
class Scale:
    """From values to places on the drawing."""

    domain: tuple[float, float]
    range: tuple[float, float]

    def __call__(self, value: float) -> float:
        (low, high), (start, end) = self.domain, self.range
        return start + (value - low) / (high - low) * (end - start)

"""Pages that need no other file: templates, images and plots in one HTML text."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from jinja2 import Environment


_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{sign: f"\\{sign}" for sign in "\\`*_[]|~$!#"}}
)


def percent(share: float) -> str:
    """`0.5312` → `53.1 %`; NaN, which nothing can be said about, is a dash."""
    return "–" if share != share else f"{100 * share:.1f} %"


def escape_markdown(text: str) -> str:
    """Text that shows as it is in Markdown, a table cell included; line breaks are spaces."""
    return " ".join(text.split()).translate(_MARKDOWN)


TEMPLATES = Path(__file__).parent / "templates"
LARGEST = 168  # pixels of an image's longer side; a page is to stay small
EXACT = 64  # up to here the pixels themselves are shown


def render(template: str, **content: Any) -> str:
    """Fill a template of `core/templates`; every text in it is escaped."""
    return _environment().get_template(template).render(**content)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "duration": duration}
    return environment


def number(value: float) -> str:
    """`61,706`, `0.1101`, or a dash for what is not known."""
    if value != value:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def image_uri(image: npt.NDArray[Any]) -> str:
    """An image as an address that holds it: exact if it is small, else scaled down and lossy.

    Args:
        image: uint8 C x H x W, grey or RGB.
    """
    from PIL import Image

    pixels = np.ascontiguousarray(np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3)))
    picture, kind = Image.fromarray(pixels), "png"
    if max(picture.size) > EXACT:
        picture.thumbnail((LARGEST, LARGEST))
        kind = "webp"
    file = io.BytesIO()
    picture.save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

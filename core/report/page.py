"""Filling the templates: pages that need no other file, and Markdown."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchyard.core.formatting import duration, number, percent, points, printable
from torchyard.core.report.drawing.image_grids import rgb

if TYPE_CHECKING:
    import numpy.typing as npt
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
MAX_SIDE = 168  # pixels of a scaled image's longer side, which keeps a page small
MAX_EXACT_SIDE = 64  # up to here the page has the image's own pixels
THUMBNAIL_SIDE = 48
SHARES = ("macro F1", "top 5")  # figures that are written in percent
_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{sign: f"\\{sign}" for sign in "\\`*_[]|~$!#"}}
)


def render(template: str, **content: Any) -> str:
    """Fill a template of `core/report/templates`; every text in an HTML page is escaped."""
    return _environment().get_template(template).render(**content)


def load_templates() -> None:
    """Compile all of them, for what renders later."""
    for name in _environment().list_templates(("html", "md")):
        _environment().get_template(name)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(),
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (percent, points, number, duration, markdown_text, figure)
    environment.filters |= {each.__name__: each for each in filters}
    return environment


def _finalized(value: Any) -> Any:
    """A value as it is put into a page: names come from folders, files and tags."""
    return printable(value) if type(value) is str else value  # Markup is a page's own


def figure(value: float, name: str) -> str:
    """A figure of `Evaluation.further` as people read it: `98.6 %`, or `0.9971`."""
    return percent(value) if name in SHARES else number(value)


def markdown_text(text: str) -> str:
    """Text that shows as it is in Markdown, also in a table cell; line breaks become spaces."""
    return printable(" ".join(text.split())).translate(_ESCAPES)


def data_uri(content: bytes, media_type: str) -> str:
    """An address that holds the content itself."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def image_uri(image: npt.NDArray[Any]) -> str:
    """An image as a data URI: lossless if it is small, otherwise scaled down and lossy.

    Args:
        image: uint8 C x H x W, grey or RGB.
    """
    exact = max(image.shape[1:]) <= MAX_EXACT_SIDE
    return _encoded(image, "png", MAX_EXACT_SIDE) if exact else _encoded(image, "webp", MAX_SIDE)


def small_image_uri(image: npt.NDArray[Any]) -> str:
    """The same as a thumbnail, always lossy: about a kilobyte, where a page has many."""
    return _encoded(image, "webp", THUMBNAIL_SIDE)


def _encoded(image: npt.NDArray[Any], kind: str, side: int) -> str:
    # Else Pillow imports all of its forty formats to find this one.
    from PIL import Image, WebPImagePlugin  # noqa: F401

    picture = Image.fromarray(rgb(image))
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, kind, quality=85)
    return data_uri(file.getvalue(), f"image/{kind}")

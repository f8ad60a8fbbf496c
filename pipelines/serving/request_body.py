"""The samples in the body of a request: image files, several of them, or numbers as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio
import numpy.typing as npt
from starlette.requests import ClientDisconnect, Request
from werkzeug.exceptions import HTTPException
from werkzeug.formparser import MultiPartParser
from werkzeug.http import parse_options_header

from torchyard.core.tracking.registry.classifier import Classifier, ImageClassifier

MAX_BYTES = 64 * 2**20
MAX_FILES = 1000
SILENCE_SECONDS = 30.0  # of a client that sends a body
FORM, JSON = "multipart/form-data", "application/json"

Sample = tuple[str | int, npt.NDArray[Any]]


class RefusedError(Exception):
    """A request that cannot be answered, and its HTTP status.

    Attributes:
        problems: one line each.
    """

    def __init__(self, status: int, *problems: str) -> None:
        super().__init__(*problems)
        self.status, self.problems = status, problems


async def read_body(request: Request) -> bytes:
    """The whole body.

    Raises:
        RefusedError: it is too large, whatever its headers said, or does not come.
    """
    body, parts = bytearray(), request.stream()
    try:
        while True:
            with anyio.fail_after(SILENCE_SECONDS):
                body += await anext(parts)
            if len(body) > MAX_BYTES:
                raise RefusedError(413, f"the body has more than {MAX_BYTES:,} bytes")
    except StopAsyncIteration:
        return bytes(body)
    except TimeoutError:
        raise RefusedError(408, f"nothing came for {SILENCE_SECONDS:g} seconds") from None
    except ClientDisconnect:
        raise RefusedError(400, "the body ended too early") from None  # nobody hears it


def samples_in(body: bytes, content_type: str, classifier: Classifier) -> list[Sample]:
    """The samples of a body, each with its file's name or its number.

    Args:
        content_type: multipart/form-data with files, application/json with {"samples": […]};
            anything else is one image file.
        classifier: reads them.

    Raises:
        RefusedError: with every sample that cannot be read.
    """
    kind, options = parse_options_header(content_type)
    if kind == JSON:
        return list(_read(_listed(body), classifier.sample))
    if not isinstance(classifier, ImageClassifier):
        wanted = f'the model takes {classifier.kind}: send {JSON} with {{"samples": […]}}'
        raise RefusedError(415, wanted)
    files = _files(body, options.get("boundary", "")) if kind == FORM else [(0, body)]
    return list(_read(files, classifier.decode))


def _read(
    given: Sequence[tuple[str | int, Any]], read: Callable[[Any], npt.NDArray[Any]]
) -> Iterator[Sample]:
    problems = []
    for name, sample in given:
        try:
            yield name, read(sample)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise RefusedError(422, *problems)
    if not given:
        raise RefusedError(400, "there is no sample in it")


def _listed(body: bytes) -> list[tuple[int, Any]]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from error
    samples = found.get("samples") if isinstance(found, dict) else None
    if not isinstance(samples, list):
        raise RefusedError(400, 'the JSON is not an object {"samples": […]}')
    return list(enumerate(samples))


def _files(body: bytes, boundary: str) -> list[tuple[str | int, bytes]]:
    if not boundary:
        raise RefusedError(400, f"the {FORM} names no boundary")
    parser = MultiPartParser(max_form_parts=MAX_FILES)
    try:
        _, files = parser.parse(io.BytesIO(body), boundary.encode("latin-1"), len(body))
    except (ValueError, HTTPException) as error:
        raise RefusedError(400, f"the {FORM} cannot be read: {error}") from error
    each = files.items(multi=True)
    return [(file.filename or at, file.read()) for at, (_, file) in enumerate(each)]

"""The HTTP API: `POST /predict`, `/health`, and `/`, which says what is served."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from torchyard.core.errors import RunError, UserError
from torchyard.core.formatting import natural
from torchyard.core.tracking.registry.classifier import Classifier, Guess
from torchyard.pipelines.services.server.access import is_own_page
from torchyard.pipelines.serving.request_body import RefusedError, Sample, read_body, samples_in
from torchyard.pipelines.serving.served_model import ServedModel

POLL_SECONDS = 5.0
TOP = 3


class _OwnPagesOnly:
    """Refuses what pages of other origins ask, as the other servers on this machine do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_own_page(scope["headers"]):
            refusal = PlainTextResponse("Only this machine's own pages may ask.\n", 403)
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def application(
    served: ServedModel, *, local: bool, poll_seconds: float = POLL_SECONDS
) -> Starlette:
    """The API of a model, which follows the registry for as long as it runs.

    Args:
        served: the model.
        local: whether it is bound to this machine's own address: only its own pages may ask.
        poll_seconds: between two questions to the registry.
    """
    limiter = anyio.CapacityLimiter(os.cpu_count() or 1)

    async def predict(request: Request) -> JSONResponse:
        top = _top(request.query_params.get("top", str(TOP)))
        sets = _coverage(request.query_params.get("sets"))
        body = await read_body(request)
        kind = request.headers.get("content-type", "")
        classifier = served.classifier  # this one answers, whichever is served meanwhile
        names, guesses = await anyio.to_thread.run_sync(
            _predicted, classifier, body, kind, top, sets, limiter=limiter
        )
        rows = [
            {
                "sample": name,
                "classes": [{"class": each.name, "probability": each.probability} for each in best],
            }
            for name, best in zip(names, guesses, strict=True)
        ]
        return JSONResponse(_identity(classifier) | {"predictions": rows})

    async def health(request: Request) -> JSONResponse:
        trouble = {"trouble": served.trouble} if served.trouble else {}
        return JSONResponse({"status": "ok"} | _identity(served.classifier) | trouble)

    async def about(request: Request) -> JSONResponse:
        found = served.classifier
        takes = {"kind": found.kind, "shape": found.shape, "dtype": found.dtype}
        described = {"asked_for": served.wanted, "takes": takes, "classes": found.classes}
        return JSONResponse(_identity(found) | described)

    @contextlib.asynccontextmanager
    async def follow(app: Starlette) -> AsyncIterator[None]:
        stopped = threading.Event()
        arguments = (poll_seconds, stopped)
        threading.Thread(target=served.follow, args=arguments, daemon=True).start()
        yield
        stopped.set()

    return Starlette(
        routes=[
            Route("/predict", predict, methods=["POST"]),
            Route("/health", health),
            Route("/", about),
        ],
        middleware=[Middleware(_OwnPagesOnly)] if local else [],
        exception_handlers={
            RefusedError: _refused,
            RunError: _failed,
            HTTPException: _refused_by_starlette,
        },
        lifespan=follow,
    )


def _predicted(
    classifier: Classifier, body: bytes, kind: str, top: int, sets: float | None
) -> tuple[list[str | int], list[list[Guess]]]:
    samples: list[Sample] = samples_in(body, kind, classifier)
    stacked = np.stack([sample for _, sample in samples])
    try:
        return [name for name, _ in samples], classifier.classify(stacked, top, sets)
    except RunError:
        raise
    except UserError as error:
        raise RefusedError(422, *(f"sets: {problem}" for problem in error.problems)) from error
    except Exception as error:  # of the model itself, such as a token that it does not know
        reason = str(error).partition("\n")[0]
        raise RefusedError(422, f"the model cannot take these samples: {reason}") from error


def _identity(classifier: Classifier) -> dict[str, Any]:
    return {"model": classifier.version, "digest": classifier.digest}


def _top(text: str) -> int:
    if not (top := natural(text)):
        raise RefusedError(422, f"top: must be a number of classes, 1 or more, not '{text[:30]}'")
    return top


def _coverage(text: str | None) -> float | None:
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise RefusedError(422, f"sets: must be between 0 and 1, such as 0.95, not '{text}'")


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    return JSONResponse({"errors": error.problems}, error.status)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"errors": [str(error)]}, 500)


async def _refused_by_starlette(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    known = "POST /predict, GET /health, GET /"
    said = f"{request.method} {request.url.path}: {error.detail}  (accepts: {known})"
    return JSONResponse({"errors": [said]}, error.status_code)

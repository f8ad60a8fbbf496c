"""The command `torchyard join`: take part in a training that another host has begun."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from torchyard.core.config.schema import split_endpoint
from torchyard.core.data.files import cache_folder
from torchyard.core.errors import UserError
from torchyard.core.training.events import Event, StageProgress
from torchyard.pipelines.display import Display, stdout
from torchyard.pipelines.worker.process import Worker

commands = typer.Typer()


@commands.command()
def join(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="train.rendezvous of the first host's run")
    ],
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="how long to wait for the first host")
    ] = 600,
) -> None:
    """Train with a run of another host that has train.nodes; nothing is recorded here.

    The data are found prepared or are prepared here, and compared with those of the first host.
    Both hosts need the same TORCHYARD_NODES_KEY.
    """
    try:
        split_endpoint(address)
    except ValueError as error:
        raise UserError(str(error)) from None
    shown = Display(stdout)
    training = False

    def on_event(event: Event) -> None:
        nonlocal training
        if isinstance(event, StageProgress) and event.description == "training" and not training:
            training = True
            shown.line("train", f"with the first host, {address}")
        shown.event(event)

    with closing(Worker(shown.output)) as worker, shown.bars():
        shown.line("join", f"waiting for {address}")
        with shown.stage("join", address):
            worker.call(
                "join", on_event, address=address, timeout=timeout, cache=str(cache_folder())
            )
    shown.line("train", "done; the first host has the result")

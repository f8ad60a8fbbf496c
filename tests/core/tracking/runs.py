"""What the tests of runs share: starting one, reading it back, and a server that can go away."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torchyard.core.tracking.record import RunRecord

CLASSES = ("cat", "狗", 'a"/b', "A__b")
SHAPE = (3, 8, 8)


def start(**parameters: object) -> RunRecord:
    return RunRecord.start(
        name_stem="lenet·sgd·toy", parameters=parameters, tags={"model": "lenet"}
    )


def stored(record: RunRecord):
    """The run as another client reads it."""
    from mlflow import MlflowClient

    return MlflowClient(record._uri).get_run(record.run_id)


def model_of(record: RunRecord) -> str:
    """The id of the one model a run has."""
    [output] = stored(record).outputs.model_outputs
    return output.model_id


class Server:
    """MLflow's own server application over real HTTP, in a thread; it can go and come back.

    `mlflow server` as a program imports MLflow twice more: 15 seconds here.
    """

    def __init__(self) -> None:
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        import uvicorn
        from mlflow.server.fastapi_app import app

        config = uvicorn.Config(app, port=self.port, log_level="critical", lifespan="off")
        self._web = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._web.run)
        self._thread.start()
        while not self._web.started:
            time.sleep(0.02)
        self.port = self._web.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._web.should_exit = True
        self._thread.join()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nothing answers within; after it the same store does."""
        self.stop()
        try:
            yield
        finally:
            self.start()

"""Delivery of a log: no line is lost or delivered twice, and the order is kept."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.tracking.runs import append_text
from torchyard.core.errors import StoreUnavailableError
from torchyard.core.tracking.delivery import SENT, LogDelivery
from torchyard.core.tracking.record import RunRecord
from torchyard.core.training.events import RunningLoss
from torchyard.core.training.run_log import Line, RunLog


class Store:
    """Accepts what is delivered, and is unavailable after each of `failures` calls.

    Where it `takes` what it fails at, only the answer is lost.
    """

    def __init__(self, folder: Path, failures: tuple[int, ...] = (), takes: bool = False) -> None:
        self.tracking_uri = f"sqlite:///{folder}/mlflow.db"
        self.run = SimpleNamespace(
            info=SimpleNamespace(run_id="a" * 32), data=SimpleNamespace(tags={})
        )
        self.failures, self.takes, self.calls = failures, takes, 0
        self.texts: list[str] = []
        self.points: dict[tuple[str, int, int], float] = {}  # by key, step and timestamp

    def _call(self, effect: Callable[[], object]) -> None:
        self.calls += 1
        fails = self.calls in self.failures
        if not fails or self.takes:
            effect()
        if fails:
            raise OSError("Connection refused")

    def log_artifact(self, run_id: str, file: str, folder: str | None) -> None:
        text = Path(file).read_bytes().decode()
        self._call(lambda: self.texts.append(text))

    def log_batch(self, run_id: str, *, metrics, synchronous: bool) -> None:
        points = {(point.key, point.step, point.timestamp): point.value for point in metrics}
        self._call(lambda: self.points.update(points))

    def delivery(self) -> LogDelivery:
        return LogDelivery(self, self.run)

    def deliver_all(self) -> None:
        """Each time as a new process."""
        for _ in range(20):
            delivery = self.delivery()
            with suppress(StoreUnavailableError):
                delivery.deliver()
            if delivery.log.path.exists():
                sent = int((delivery.folder / SENT).read_text().partition(" ")[0] or 0)
                lines = list(delivery.log.read())
                assert sent in {0, *(line.end for line in lines)}
                assert len(delivery) == sum(line.end > sent for line in lines)
            if not delivery:
                return
        pytest.fail("something stays pending")


@given(st.lists(st.text(), max_size=8), st.integers(0, 8))
def test_delivery_keeps_the_order_and_continues_where_it_was_stopped(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], stop: int
) -> None:
    store = Store(tmp_path_factory.mktemp("delivery"), failures=(stop + 1,))
    delivery = store.delivery()
    for text in texts:
        append_text(delivery, text)
    with suppress(StoreUnavailableError):
        delivery.deliver()  # the store becomes unavailable, or the process dies
    assert store.texts == texts[:stop]
    assert len(store.delivery()) == max(0, len(texts) - stop)
    append_text(delivery, "last")
    store.deliver_all()
    assert store.texts == [*texts, "last"]
    assert len(delivery) == 0


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 29, bytes(29), b"-0000000000000000005", b"9" * 20]
)
def test_with_a_damaged_offset_no_line_is_lost(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    for step in (1, 2):
        RunLog(store.delivery().folder).append(Line("RunningLoss", asdict(RunningLoss(step, 0.5))))
        store.deliver_all()
    store.points.clear()
    (store.delivery().folder / SENT).write_bytes(content)
    store.deliver_all()
    assert len(store.points) == 2


def test_an_offset_with_a_flipped_bit_is_not_believed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    RunLog(store.delivery().folder).append(Line("RunningLoss", asdict(RunningLoss(1, 0.5))))
    store.deliver_all()
    sent = store.delivery().folder / SENT
    content = sent.read_bytes()
    for bit in range(8 * len(content)):
        spoiled = bytearray(content)
        spoiled[bit // 8] ^= 1 << bit % 8
        sent.write_bytes(spoiled)
        assert len(store.delivery()) == 1  # it is sent again
    sent.write_bytes(content)
    assert len(store.delivery()) == 0


@given(
    st.lists(st.integers(0, 3) | st.text(max_size=3), max_size=12),
    st.sets(st.integers(1, 12), max_size=6),
    st.booleans(),
)
def test_every_line_is_recorded_once_whenever_the_store_or_its_answers_are_lost(
    tmp_path_factory: pytest.TempPathFactory, entries: list[int | str], failures, takes: bool
) -> None:
    store = Store(tmp_path_factory.mktemp("delivery"), tuple(failures), takes)
    first: dict[int, float] = {}  # of a step that is repeated the first value counts
    for number, entry in enumerate(entries):
        if isinstance(entry, str):
            append_text(store.delivery(), entry)
        else:
            event = RunningLoss(entry, number + 0.5)
            RunLog(store.delivery().folder).append(Line("RunningLoss", asdict(event), number))
            first.setdefault(entry, event.loss)
        if number % 3 == 0:
            with suppress(StoreUnavailableError):
                store.delivery().deliver()
    store.deliver_all()
    recorded = [(step, value) for (_, step, _), value in store.points.items()]
    assert sorted(recorded) == sorted(first.items())
    texts = [entry for entry in entries if isinstance(entry, str)]
    distinct = [text for text, _ in groupby(store.texts)]
    assert (distinct if takes else store.texts) == (
        [text for text, _ in groupby(texts)] if takes else texts
    )


def test_lines_that_a_power_cut_took_do_not_hide_those_after_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for text in ("one", "two", "three"):
        append_text(store.delivery(), text)
    store.delivery().deliver()
    log = store.delivery().log.path
    log.write_bytes(log.read_bytes()[:-10])
    store.delivery().deliver()
    append_text(store.delivery(), "four")
    store.delivery().deliver()
    assert store.texts == ["one", "two", "three", "four"]


@pytest.mark.parametrize("damage", [b"", b"\0" * 20, b"none"])
def test_a_damaged_offset_is_none_and_all_is_sent_again(record: RunRecord, damage: bytes) -> None:
    record.log_metrics({"train/loss": 1.0}, 1)
    record.flush()
    (record.folder / SENT).write_bytes(damage)
    record.log_metrics({"train/loss": 0.5}, 2)
    assert record.flush()
    history = record._client.get_metric_history(record.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]

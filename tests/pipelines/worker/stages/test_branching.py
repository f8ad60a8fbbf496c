"""Trainings that have epochs in common: found from their schedules, trained once, equal."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.pipelines.worker.conftest import config
from torchyard.core.training.events import EpochDone, RunningLoss
from torchyard.pipelines.worker.process import Worker

SMALL = ("train.batch_size=256", "train.validation=0.2", "device=cpu", "train.log_every=2")
PIECEWISE = ("scheduler=piecewise", "train.epochs=6")


def piecewise(milestone, factor, *more):
    chosen = (f"scheduler.milestones=[{milestone}]", f"scheduler.factors=[{factor}]")
    return config(*SMALL, *PIECEWISE, *chosen, *more)


def train(worker, folder, settings, data, events=None, **more):
    folder.mkdir()
    emit = (events if events is not None else []).append
    return worker.call("train", emit, config=settings, data=data, folder=str(folder), **more)


@pytest.fixture(scope="module")
def data(worker, cache):
    return worker.call("prepare", config=config(*SMALL), cache=cache)["folder"]


def branches(worker, data, settings, folder):
    found = worker.call("find_branches", configs=settings, data=data)["epochs"]
    return [{"folder": str(folder), "epochs": epochs} for epochs in found]


@pytest.mark.slow  # a dozen trainings each
@pytest.mark.parametrize(
    "more",
    [
        ("model=mlp", "model.dropout=0.3", "optimizer=adamw", "train.ema=0.9"),
        ("model=linear", "optimizer=sgd", "optimizer.momentum=0.9", "scheduler.warmup_steps=3"),
        ("model=linear", "optimizer=adam", "optimizer.groups=[{match: '*bias', lr: 0.1}]"),
    ],
)
def test_trainings_that_part_end_as_each_would_alone(worker, data, tmp_path, more):
    points = itertools.product((0.5, 4 / 6, 5 / 6), (0.3, 0.03))
    settings = [piecewise(*point, *more) for point in points]
    settings.append(config(*SMALL, "scheduler=constant", "train.epochs=6", *more))
    settings.append(config(*SMALL, "scheduler=constant", "train.epochs=4", *more))
    steps = trained = 0
    shared = branches(worker, data, settings, tmp_path / "prefixes")
    for number, (each, common) in enumerate(zip(settings, shared, strict=True)):
        told, alone_told = [], []
        done = train(worker, tmp_path / f"shared-{number}", each, data, told, shared=common)
        alone = train(worker, tmp_path / f"alone-{number}", each, data, alone_told)
        assert done["weights_digest"] == alone["weights_digest"], number
        assert done["fit"]["best_epoch"] == alone["fit"]["best_epoch"]
        for kind, place in ((EpochDone, "epoch"), (RunningLoss, "step")):
            of_kind, expected = (
                {getattr(event, place): event.loss for event in events if isinstance(event, kind)}
                for events in (told, alone_told)
            )
            assert of_kind == expected
        steps += alone["fit"]["steps"]
        trained += done["fit"]["steps"] - done["shared_steps"]
    epoch = alone["fit"]["steps"] // 4
    assert steps == (6 * 7 + 4) * epoch
    # The constant one, of which the shorter one is a part, and what follows each milestone.
    assert trained == (6 + 2 * (3 + 2 + 1)) * epoch


def test_what_does_not_begin_alike_shares_nothing(worker, data, tmp_path):
    settings = [
        config(*SMALL, "scheduler=cosine", "train.epochs=4"),
        config(*SMALL, "scheduler=cosine", "train.epochs=6"),
        config(*SMALL, "scheduler=one_cycle", "train.epochs=6"),
    ]
    assert branches(worker, data, settings, tmp_path) == [
        {"folder": str(tmp_path), "epochs": {}} for _ in settings
    ]
    followed = [piecewise(0.5, 0.1), config(*SMALL, "scheduler=plateau", "train.epochs=6")]
    assert worker.call("find_branches", configs=followed, data=data)["epochs"] == [{}, {}]


def test_a_training_that_is_not_to_go_on_before_it_parts_trains_nothing(worker, data, tmp_path):
    settings = [piecewise(4 / 6, factor, "model=linear") for factor in (0.1, 0.3)]
    first, second = branches(worker, data, settings, tmp_path / "prefixes")
    train(worker, tmp_path / "first", settings[0], data, shared=first)
    told = []
    done = train(
        *(worker, tmp_path / "second", settings[1], data, told),
        shared=second,
        go_on=lambda event: event.epoch < 2,
    )
    assert done == {}
    assert [event.epoch for event in told if isinstance(event, EpochDone)] == [1, 2]
    again = train(worker, tmp_path / "again", settings[1], data, shared=second)
    assert again["shared_steps"] == again["fit"]["steps"] * 4 // 6


@pytest.mark.slow  # starts another worker
def test_of_two_at_a_time_one_waits_for_what_the_other_trains(worker, data, tmp_path):
    settings = [
        piecewise(milestone, factor, "model=linear", "train.batch_size=16")
        for milestone in (4 / 6, 5 / 6)
        for factor in (0.1, 0.3)
    ]
    shared = branches(worker, data, settings, tmp_path / "prefixes")
    another = Worker()

    def run(number):
        place, folder = (worker, another)[number % 2], tmp_path / str(number)
        return train(place, folder, settings[number], data, shared=shared[number])

    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(run, range(4)))
    another.close()
    trained = sum(each["fit"]["steps"] - each["shared_steps"] for each in done)
    assert trained == (4 + 2 * 2 + 1 + 2 * 1) * done[0]["fit"]["steps"] // 6
    for number, each in enumerate(done):
        alone = train(worker, tmp_path / f"alone-{number}", settings[number], data)
        assert alone["weights_digest"] == each["weights_digest"]

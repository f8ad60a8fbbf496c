"""Running a network over a split: batches, modes, precision, and outputs that are refused."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from torchyard.core.errors import RunError
from torchyard.core.evaluation.predict import predict


@pytest.fixture
def network():
    from torch import nn

    class Raw(nn.Module):
        def forward(self, x):
            return x.float() / 255

    body = [nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)]
    return nn.Sequential(Raw(), *body)


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(0, 256, (21, 3, 2, 2), dtype=np.uint8)


def test_predict_gives_the_same_in_any_batches_and_from_any_kind_of_samples(
    network, images, tmp_path
) -> None:
    import torch

    labels = np.arange(21) % 3
    np.save(tmp_path / "samples.npy", images)
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    for samples in (
        images,
        torch.from_numpy(images),
        np.load(tmp_path / "samples.npy", mmap_mode="r"),
        np.load(tmp_path / "samples.npy", mmap_mode="c"),
    ):
        for batch_size in (None, 1, 4, 21, 100):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                made = predict(network, samples, labels, device="cpu", batch_size=batch_size)
            np.testing.assert_allclose(made.logits, expected, atol=1e-6)
            assert made.targets.tolist() == labels.tolist()
            assert made.logits.dtype == np.float32


def test_predict_puts_every_mode_back_even_after_an_error(network, images) -> None:
    network.train()
    network[3].eval()  # a frozen batch normalization
    modes = [module.training for module in network.modules()]
    statistics = network[3].running_mean.clone()
    predict(network, images, np.zeros(21), device="cpu")
    assert [module.training for module in network.modules()] == modes
    with pytest.raises(RuntimeError):
        predict(network, images[:, :1], np.zeros(21), device="cpu")
    assert [module.training for module in network.modules()] == modes
    assert (network[3].running_mean == statistics).all()


def test_predict_computes_in_float32_whatever_surrounds_it(network, images) -> None:
    import torch

    plain = predict(network, images, np.zeros(21), device="cpu").logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = predict(network, images, np.zeros(21), device="cpu").logits
    np.testing.assert_array_equal(plain, inside)


def test_large_samples_come_in_small_batches() -> None:
    from torch import nn

    seen: list[int] = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.float().flatten(1)[:, :2]

    predict(Watch(), np.zeros((40, 3, 200, 200), np.uint8), np.zeros(40), device="cpu")
    assert sum(seen) == 40
    assert max(seen) * 3 * 200 * 200 * 4 <= 4 * 2**20
    seen.clear()
    predict(Watch(), np.zeros((40, 8), np.float32), np.zeros(40), device="cpu")
    assert seen == [40]
    seen.clear()
    predict(Watch(), np.zeros((2, 3, 1000, 1000), np.uint8), np.zeros(2), device="cpu")
    assert seen == [1, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_output_that_is_not_finite_stops_the_run(network, images, value) -> None:
    import torch

    with torch.no_grad():
        network[-1].bias[0] = value
    with pytest.raises(RunError, match="NaN or infinite for 21 of 21"):
        predict(network, images, np.zeros(21), device="cpu")


def test_no_samples_and_outputs_of_a_wrong_shape_are_errors(network, images) -> None:
    from torch import nn

    with pytest.raises(RunError, match="no sample"):
        predict(network, images[:0], np.zeros(0), device="cpu")
    with pytest.raises(RunError, match="not N x K"):
        predict(nn.Identity(), images, np.zeros(21), device="cpu")

"""Devices that are certainly missing, as told without torch."""

import sys

import pytest

from tests.core.config.reading import only_problem
from torchyard.core.config.hardware import device_problem

NO_CUDA = pytest.mark.skipif(device_problem("cuda") is None, reason="there is a CUDA GPU")


@NO_CUDA
@pytest.mark.parametrize("wanted", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none(small, wanted):
    assert only_problem(small, f"device={wanted}") == (
        f"device: {wanted}: this machine has no CUDA GPU (device=cpu and device=auto run here)"
    )


@pytest.mark.parametrize("wanted", ["cpu", "auto"])
def test_the_cpu_is_always_there(wanted):
    assert device_problem(wanted) is None


@NO_CUDA
@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "cuda:3"])
def test_a_missing_cuda_gpu_is_reported_with_what_runs_instead(wanted):
    assert device_problem(wanted) == (
        "this machine has no CUDA GPU (device=cpu and device=auto run here)"
    )


@pytest.mark.skipif(device_problem("cuda") is not None, reason="there is no CUDA GPU")
def test_no_gpu_is_there_beyond_the_last():
    assert "numbered from 0" in device_problem("cuda:999")


@pytest.mark.skipif(sys.platform == "darwin", reason="there may be an Apple GPU")
def test_a_missing_apple_gpu_is_reported():
    assert "no Apple GPU" in device_problem("mps")

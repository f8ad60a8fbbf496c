"""Choosing a device: what is there, and what is said of what is not."""

import os
import sys

import pytest
import torch

from torchyard.core.errors import UserError
from torchyard.core.training import device

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
NO_MPS = pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU")


def test_the_cpu_is_always_there():
    assert device.choose_device("cpu") == torch.device("cpu")


def test_auto_takes_a_gpu_where_there_is_one():
    chosen = device.choose_device("auto").type
    if torch.cuda.is_available():
        assert chosen == "cuda"
    elif torch.backends.mps.is_available():
        assert chosen == "mps"
    else:
        assert chosen == "cpu"


@NO_CUDA
@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "cuda:3"])
def test_a_missing_cuda_gpu_is_said_and_what_runs_instead(wanted):
    with pytest.raises(UserError) as caught:
        device.choose_device(wanted)
    assert str(caught.value) == f"device: torch {torch.__version__} finds no '{wanted}' here"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_a_gpu_is_chosen_by_its_number_and_none_beyond_the_last():
    count = torch.cuda.device_count()
    assert device.choose_device(f"cuda:{count - 1}") == torch.device("cuda", count - 1)
    with pytest.raises(UserError, match="finds no 'cuda:999' here"):
        device.choose_device("cuda:999")


@NO_MPS
def test_a_missing_apple_gpu_is_said():
    with pytest.raises(UserError, match="device: torch finds no 'mps' here"):
        device.choose_device("mps")


def test_the_device_and_its_software_are_described():
    described = device.describe_device(torch.device("cpu"))
    assert described["device"] == "cpu"
    assert described["device_name"].strip()
    assert described["threads"] == str(torch.get_num_threads())
    assert described["torch_version"] == torch.__version__
    assert described["python_version"] == ".".join(map(str, sys.version_info[:3]))
    assert float(described["host_memory_gib"]) > 0
    assert all(isinstance(value, str) for value in described.values())


def test_peak_memory_is_in_mib_and_never_falls():
    cpu = torch.device("cpu")
    before = device.peak_memory(cpu)
    assert set(before) == {"peak_memory_mib"}
    assert 20 < before["peak_memory_mib"] < 2**20  # torch alone takes more than 20
    block = torch.ones(2**24)  # 64 MiB
    assert device.peak_memory(cpu)["peak_memory_mib"] >= before["peak_memory_mib"]
    del block


def test_host_memory_maps_data_of_any_size():
    assert device.fits_on(2**60, torch.device("cpu"))


def test_deterministic_mode_refuses_what_has_no_such_algorithm(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    values = torch.zeros(3)
    try:
        device.set_deterministic(True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            values.put_(torch.tensor([0, 0]), torch.ones(2))
    finally:
        device.set_deterministic(False)
    values.put_(torch.tensor([0, 0]), torch.ones(2))

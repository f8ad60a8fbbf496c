"""Batch norm of several processes: the arithmetic of torch's own, in a group of one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from torchyard.core.training.parallel.batch_norm import CPUSyncBatchNorm, synchronize


@pytest.fixture
def group(tmp_path):
    store = dist.FileStore(str(tmp_path / "group"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    ("make", "shape"),
    [(nn.BatchNorm1d, (6, 4)), (nn.BatchNorm2d, (6, 4, 3, 5)), (nn.BatchNorm3d, (6, 4, 2, 3, 2))],
)
def test_it_computes_what_batch_norm_does(group, make, shape, momentum):
    torch.manual_seed(0)
    plain, synchronized = (nn.Sequential(make(4, momentum=momentum)) for _ in range(2))
    synchronize(synchronized, torch.device("cpu"))
    assert type(synchronized[0]) is CPUSyncBatchNorm
    results = []
    batches = [torch.randn(shape) * 3 + 100 for _ in range(2)]  # a mean that is large
    for network in (plain, synchronized):
        network[0].weight.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
        inputs = [batch.clone().requires_grad_() for batch in batches]
        for batch in inputs:
            network(batch).pow(3).mean().backward()
        grads = [batch.grad for batch in inputs]
        trained = [network[0].weight.grad, network[0].bias.grad]
        network.eval()
        results.append([*grads, *trained, network(batches[0]), *network.state_dict().values()])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert list(plain.state_dict()) == list(synchronized.state_dict())


@pytest.mark.parametrize("affine", [True, False])
def test_half_precision_stays_and_its_statistics_are_whole(group, affine):
    torch.manual_seed(0)
    images = torch.randn(8, 3, 5, 5).bfloat16().to(memory_format=torch.channels_last)
    results = []
    for synchronized in (False, True):
        layer = nn.Sequential(nn.BatchNorm2d(3, affine=affine))
        if synchronized:
            synchronize(layer, torch.device("cpu"))
        inputs = images.clone().requires_grad_()
        output = layer(inputs)
        output.square().mul(inputs.detach()).sum().backward()
        assert output.dtype == inputs.grad.dtype == torch.bfloat16
        assert layer[0].running_mean.dtype == torch.float32
        weights = [weight.grad for weight in layer.parameters()]
        results.append([output, inputs.grad, layer[0].running_var, *weights])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)

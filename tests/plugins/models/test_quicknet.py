"""QuickNet: what it takes, and that its own gradient is the convolution's."""

import copy

import pytest
import torch

from torchyard import SampleSpec, UserError
from torchyard.core.hosting.host import host
from torchyard.core.training.network import dry_run


def params(**chosen):
    return host().find("model", "quicknet").params.model_validate(chosen)


@pytest.mark.parametrize("side", [8, 9, 32, 33])
def test_it_takes_images_from_one_pixel_a_halving_on(side):
    assert dry_run(params(), SampleSpec((1, side, side + 5), 3), "quicknet").parameters


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((3, 7, 32), "needs images of at least 8x8 for its halvings"),
        ((12,), "takes images, not vectors; 'linear' and 'mlp' take both"),
    ],
)
def test_what_it_cannot_take_is_refused(shape, reason):
    with pytest.raises(UserError, match=reason):
        dry_run(params(), SampleSpec(shape, 3), "quicknet")


def gradients(network, images, dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        logits = network(images)
    logits.float().square().sum().backward()
    return {name: weight.grad for name, weight in network.named_parameters()}


def operations(node):
    """The names of all that a result was computed by."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return {type(node).__name__ for node in seen}


def test_the_gradient_in_bfloat16_is_that_of_torchs_convolution(monkeypatch):
    """With AMX a matrix product of its own gives it on maps of 4x4; else it is torch's."""
    able = {"amx_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    torch.manual_seed(0)
    network = params(widths=(8, 16, 32)).build((3, 32, 32), 10)
    network = network.to(memory_format=torch.channels_last)
    images = torch.randn(16, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "_Im2colConvolutionBackward" in operations(network(images).grad_fn)
        able["amx_bf16"] = False
        assert "_Im2colConvolutionBackward" not in operations(network(images).grad_fn)
    able["amx_bf16"] = True
    assert "_Im2colConvolutionBackward" not in operations(network(images).grad_fn)

    plain = copy.deepcopy(network)
    for layer in plain.modules():
        if type(layer).__name__ == "Conv3x3":
            layer.__class__ = torch.nn.Conv2d
    ours = gradients(network, images, torch.bfloat16)
    theirs = gradients(plain, images, torch.bfloat16)
    for name, gradient in theirs.items():
        torch.testing.assert_close(
            ours[name], gradient, rtol=0, atol=0.02 * float(gradient.abs().max()), msg=name
        )

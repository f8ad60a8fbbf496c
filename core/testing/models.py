"""The test kit's check of a model; `core/testing/assertions.py` has those of the other kinds."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.raw import SampleSpec
from torchyard.core.hosting.params import ModelParams
from torchyard.core.testing.faults import Checks, generators_kept, same, tiny_batch
from torchyard.core.training import checkpoint
from torchyard.core.training.network import Network, dry_run, export

BATCHES = (1, 2, 5)
STEPS = 60


@generators_kept()
def assert_model_plugin(
    params: ModelParams,
    input_shape: tuple[int, ...] = (3, 32, 32),
    num_classes: int = 10,
    *,
    vocabulary: int | None = None,
    exports: bool = True,
) -> None:
    """Check logits for any batch size, gradients, learning, checkpoint, seed and export.

    Args:
        params: the plugin.
        input_shape: one sample, (C, H, W), (D,), (C, L), or (L,) of token ids.
        num_classes: 2 or more.
        vocabulary: of token ids, how many there are; None for other samples.
        exports: False for a model that torch.export cannot handle.

    Raises:
        PluginFault: with the first thing that is wrong.
    """
    check = Checks(params, ModelParams)
    spec = SampleSpec(input_shape, num_classes, "int64" if vocabulary else "")
    with check.running("build"):
        dry_run(params, spec, check.name)

    def build() -> nn.Module:
        checkpoint.seed_everything(0)
        with check.running("build"):
            return params.build(input_shape, num_classes)

    network = build().eval()
    samples = tiny_batch(input_shape, vocabulary)
    for count in BATCHES:
        with check.running(f"logits of {count} samples"):
            logits = network(samples[:count])
        shape = (count, num_classes)
        check.that(logits.shape == shape, "logits", f"{tuple(logits.shape)}, not {shape}")
        check.that(logits.isfinite().all(), "logits", "NaN or infinite, untrained")

    # ---- the seed determines the network
    check.that(same(network(samples), network(samples)), "evaluation", "random in eval mode")
    again = build().eval()
    first, second = network.state_dict(), again.state_dict()
    alike = first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    check.that(
        alike and same(network(samples), again(samples)),
        "seed",
        "built twice under one torch seed, the networks differ",
    )

    _check_learning(check, network, samples, num_classes)

    # ---- the saved state is the whole network
    network.eval()
    check.reloaded(network, again)
    check.that(
        same(network(samples), again(samples)),
        "checkpoint",
        "with its saved state loaded it computes other logits: something it needs is neither a "
        "parameter nor a buffer",
    )
    if exports:
        _check_export(check, network, spec, samples)


def _check_learning(
    check: Checks, network: nn.Module, samples: torch.Tensor, num_classes: int
) -> None:
    """Train on the tiny batch until the loss has fallen and each parameter has had a gradient."""
    targets = torch.arange(len(samples)) % num_classes
    trained = {name: w for name, w in network.named_parameters() if w.requires_grad}
    check.that(trained, "gradient", "there is no parameter to train")
    unreached, losses = dict(trained), list[float]()
    optimizer = torch.optim.Adam(trained.values(), lr=1e-3)
    network.train()
    for _ in range(STEPS):
        with check.running("training step"):
            loss = nn.functional.cross_entropy(network(samples), targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        for name, weight in trained.items():
            if weight.grad is None:
                continue
            check.that(weight.grad.isfinite().all(), "gradient", f"NaN or infinite at '{name}'")
            if weight.grad.any():
                unreached.pop(name, None)
        optimizer.step()
        losses.append(loss.item())
        if not unreached and len(losses) > 3 and max(losses[-3:]) < 0.8 * losses[0]:
            break
    # Over several steps: behind a layer initialized to zero, the first gradient is zero.
    check.that(not unreached, "gradient", f"none reaches {', '.join(unreached)}")
    lowered = sum(losses[-3:]) / 3 < 0.95 * losses[0]
    text = f"{losses[0]:.3g} before and {losses[-1]:.3g} after {len(losses)} steps of Adam"
    check.that(lowered, "learning", f"the loss of {len(samples)} samples does not fall: {text}")


def _check_export(check: Checks, model: nn.Module, spec: SampleSpec, samples: torch.Tensor) -> None:
    """Export it as a run does, after the normalization layer, and compare logits."""
    classes = tuple(map(str, range(spec.num_classes or 2)))
    described = (Path(), "", classes, spec.shape, spec.dtype, (0.5,), (0.25,))
    data = PreparedDataset(*described, counts={}, digest="", source="")
    network = Network(model, data, "statistics").eval()
    raw = samples
    if spec.dtype != "int64":
        raw = torch.randint(256, (max(BATCHES), *spec.shape), dtype=torch.uint8)
        raw = raw if spec.dtype == "uint8" else raw / 255
    with TemporaryDirectory() as folder, check.running("export"):
        file = Path(folder) / "model.pt2"
        export(network, data, file)
        exported = torch.export.load(file).module()
    for count in BATCHES:
        with check.running(f"export, a batch of {count}"):
            logits = exported(raw[:count])
        expected = network(raw[:count])
        # They differ if the export fixed the batch size or a branch on the values.
        check.that(
            logits.shape == expected.shape and torch.allclose(logits, expected, 1e-3, 1e-4),
            "export",
            f"the exported model computes other logits for a batch of {count}",
        )

"""The stages that use a trained network: its predictions of the test split, and its export."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from torchyard.core.audit.exclusion import audit_figures, found_audit
from torchyard.core.config.resolve import ResolvedConfig, resolve_once
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.evaluation.conformal import CONFIDENCE_FILE, Confidence
from torchyard.core.evaluation.figures import Figures
from torchyard.core.evaluation.nearest import nearest_training_samples
from torchyard.core.evaluation.predict import predict
from torchyard.core.evaluation.views import Views
from torchyard.core.hosting.host import host
from torchyard.core.training import checkpoint
from torchyard.core.training import device as devices
from torchyard.core.training import network as networks
from torchyard.core.training.batches import training_splits
from torchyard.core.training.events import Emit
from torchyard.core.training.execution import set_up_evaluation
from torchyard.pipelines.worker.checks.config_check import Config
from torchyard.pipelines.worker.search.trial_training import new_network

NEAREST_SECONDS = 1.0  # at least, to look for training images that explain mistakes


def evaluate(
    config: Config, data: str, weights: str, target: str, emit: Emit, nearest: str | None = None
) -> dict[str, Any]:
    """Predict the test split with trained weights; the predictions go to the file `target`.

    With a validation split, what it says of the probabilities goes to a file beside that.

    Args:
        nearest: the file for the training images nearest to the surest mistakes. To look for them
            takes as long as the test, or a second.

    Returns:
        figures: of the predictions, where they are defined.
    """
    resolved, prepared = resolve_once(config, host()), PreparedDataset.open(Path(data))
    device = devices.choose_device(resolved.config.device)
    set_up_evaluation(resolved.config.train.threads)
    network = trained_network(resolved, prepared, Path(weights), device)
    test, began = prepared.test, time.perf_counter()
    predictions = predict(network, test.samples, test.labels, device=device)
    seconds = max(NEAREST_SECONDS, time.perf_counter() - began)
    train, held_out = training_splits(prepared, resolved.config, Path(weights).parent)
    if held_out is not None:
        samples, labels, indices = held_out.samples, held_out.labels, held_out.indices
        validation = predict(network, samples, labels, device=device, indices=indices)
        confidence, predictions = Confidence.fit(
            validation, predictions, temperature=resolved.config.evaluate.temperature
        )
        confidence.write(Path(target).with_name(CONFIDENCE_FILE))
    predictions.save(Path(target))
    if nearest and (count := resolved.config.evaluate.nearest) and len(prepared.shape) == 3:
        network.views = None
        found = nearest_training_samples(
            network, predictions, test, train, device=device, count=count, seconds=seconds
        )
        if found is not None:
            found.write(Path(nearest))
    figures = Figures.build(resolved.named_metrics, prepared.classes)(predictions)
    if resolved.audited:
        excluded = resolved.config.dataset.exclude is not None
        figures |= audit_figures(found_audit(prepared), predictions, prepared.counts, excluded)
    return {"figures": {name: value for name, value in figures.items() if value == value}}


def export(
    config: Config,
    data: str,
    weights: str,
    target: str,
    emit: Emit,
    temperature: float | None = None,
) -> dict[str, Any]:
    """Write the trained network as a pt2 archive to the file `target`.

    Args:
        temperature: that it divides its logits by.

    Returns:
        refused: why torch.export cannot write this model, or None; digest: of its weights.
    """
    resolved, prepared = resolve_once(config, host()), PreparedDataset.open(Path(data))
    network = trained_network(resolved, prepared, Path(weights), torch.device("cpu"))
    if temperature is not None:
        network.temperature = torch.tensor(temperature)
    try:
        digest = networks.export(network, prepared, Path(target))
    except networks.NotExportableError as error:
        return {"refused": str(error)}
    return {"refused": None, "digest": digest}


def trained_network(
    resolved: ResolvedConfig, prepared: PreparedDataset, weights: Path, device: torch.device
) -> networks.Network:
    """The network as it is evaluated and served."""
    network = new_network(resolved, prepared, None)
    # The normalization is among the weights: it may be that of those which training began with.
    network.load_state_dict(checkpoint.load(weights)["network"])
    views = resolved.config.evaluate.views
    if views != "one":
        network.views = Views(*prepared.shape[1:], shifts=views == "mirror_and_shifts")
    return network.to(device)

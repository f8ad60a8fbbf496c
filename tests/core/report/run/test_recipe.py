"""How a run was trained, told from its configuration and its record."""

from __future__ import annotations

from torchyard.core.config.schema import RunConfig
from torchyard.core.report.run.recipe import recipe

TRAINED = {
    "parameters": 61706,
    "epochs": 5,
    "best_epoch": 5,
    "steps": 225,
    "batch_size": "32",
    "stopped_early": False,
    "balance": "",
}


def told(tags=(), trained=(), **settings) -> dict[str, str]:
    config = RunConfig.model_validate({"dataset": {"name": "digits"}} | settings)
    return recipe(config, TRAINED | dict(trained), dict(tags))


def test_a_plain_run_is_told_in_five_lines() -> None:
    assert told() == {
        "began with": "random weights, seed 0",
        "model": "lenet, 61,706 parameters",
        "optimizer": "sgd",
        "loss": "cross_entropy",
        "length": "5 epochs, 225 steps of 32 samples",
    }


def test_what_was_taken_frozen_grouped_averaged_and_balanced_is_told() -> None:
    found = told(
        tags={"weights": "resnet18: took 120 of 122 tensors; new: fc.weight, fc.bias"},
        trained={"balance": "classes weighted 0.5 to 2", "best_epoch": 3, "stopped_early": True},
        model={"name": "resnet18", "weights": "default", "freeze": "layer*", "freeze_epochs": 2},
        optimizer={
            "name": "sgd",
            "lr": 0.01,
            "momentum": 0.9,
            "nesterov": False,
            "layer_decay": 0.75,
            "groups": [{"match": "fc*", "lr": 0.1}],
        },
        augmentations=[{"name": "random_crop", "padding": 2}, {"name": "mixup", "alpha": 0.2}],
        train={"epochs": 9, "ema": 0.999, "validation": 0.1},
        evaluate={"views": "mirror"},
    )
    assert found["began with"].startswith("resnet18: took 120 of 122 tensors")
    assert found["frozen"] == "layer* for 2 epochs"
    assert found["optimizer"] == "sgd (lr 0.01, momentum 0.9)"
    assert found["parameter groups"] == "fc*: lr 0.1"
    assert found["augmentations"] == "random_crop (padding 2); mixup (alpha 0.2)"
    assert found["classes balanced"] == "classes weighted 0.5 to 2"
    assert found["averaging"].startswith("exponential, of the weights, decay 0.999")
    assert found["length"] == (
        "5 epochs, 225 steps of 32 samples, stopped early of 9 epochs; the weights of epoch 3 "
        "were kept, the best by loss; 10 % held out for validation"
    )
    assert "mirror image" in found["test"]

"""Plugin classes made on the spot, which the tests of this folder share."""

from torchyard import (
    AugmentationParams,
    DatasetParams,
    LossParams,
    MixingParams,
    ModelParams,
    OptimizerParams,
    RegionParams,
    SchedulerParams,
)

BASES = {
    "model": ModelParams,
    "loss": LossParams,
    "optimizer": OptimizerParams,
    "scheduler": SchedulerParams,
    "augmentation": AugmentationParams,
    "mixing": MixingParams,
    "region": RegionParams,
    "dataset": DatasetParams,
}


def plugin(kind, build, **others):
    """An instance of a documented plugin with that `build`."""
    members = {"build": build, "__doc__": "A thing.", "__module__": __name__, **others}
    return type("Thing", (BASES[kind],), members)()

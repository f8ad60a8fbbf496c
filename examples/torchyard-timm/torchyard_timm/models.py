"""The models `timm/<name>`: every classification model of timm, under timm's own name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from torchyard import ModelParams, Register, UserError, hookimpl

if TYPE_CHECKING:
    from torch import nn


class TimmModel(ModelParams):
    """A network of timm, with the data's number of classes and of channels."""

    architecture: ClassVar[str]

    pretrained: bool = Field(False, description="start from timm's weights, which are downloaded")
    drop_rate: float = Field(0.0, ge=0, lt=1, description="dropout before the last layer")

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the network: normalized float32 N x C x H x W to logits N x num_classes.

        Raises:
            ValueError: the samples are no images.
            UserError: the weights cannot be downloaded.
        """
        import timm

        if len(input_shape) != 3:
            raise ValueError("takes images, not vectors")
        channels, *size = input_shape
        settings: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
        if self.drop_rate:
            settings["drop_rate"] = self.drop_rate
        # Some, such as vision transformers, are built for one size of images.
        pretrained = timm.get_pretrained_cfg(self.architecture)
        if pretrained is not None and pretrained.fixed_input_size:
            settings["img_size"] = tuple(size)
        if not self.pretrained:
            return timm.create_model(self.architecture, **settings)
        try:
            return timm.create_model(self.architecture, pretrained=True, **settings)
        except Exception as error:  # the hub's, its client's, the network's, the file system's
            reason = (str(error) or type(error).__name__).partition("\n")[0]
            raise UserError(
                f"model.pretrained: timm's weights of '{self.architecture}' cannot be had: "
                f"{reason}  (model.pretrained=false begins with random ones)"
            ) from error


def timm_names() -> list[str]:
    """The names of all models, read from timm's files: its import takes seconds, for torch.

    Raises:
        ImportError: timm is not installed.
    """
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        raise ImportError("timm is not installed: python -m pip install 'torchyard-timm[timm]'")
    names: list[str] = []
    for file in (Path(found.origin).parent / "models").glob("*.py"):
        names += re.findall(
            r"^@register_model\s+def (\w+)\(", file.read_text("utf-8"), re.MULTILINE
        )
    return sorted(names)


@hookimpl
def register_models(register: Register) -> None:
    """Registers `timm/<name>` for each model of timm."""
    for name in timm_names():
        attributes = {
            "architecture": name,
            "__doc__": f"timm's {name}.",
            "__module__": __name__,
        }
        register(f"timm/{name}", type(f"Timm_{name}", (TimmModel,), attributes))

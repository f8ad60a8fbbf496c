"""Every classification model of torchvision, under torchvision's own name."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict

from torchyard import ModelParams, Pretrained, Register, hookimpl

if TYPE_CHECKING:
    from torch import nn

# Written out, because importing torchvision would slow every command; a test compares the list
# with torchvision.models.list_models(module=torchvision.models).
NAMES = (
    *("alexnet", "convnext_base", "convnext_large", "convnext_small", "convnext_tiny"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *(f"efficientnet_b{size}" for size in range(8)),
    *("efficientnet_v2_l", "efficientnet_v2_m", "efficientnet_v2_s"),
    *("googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
    *("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"),
    *("regnet_x_16gf", "regnet_x_1_6gf", "regnet_x_32gf", "regnet_x_3_2gf"),
    *("regnet_x_400mf", "regnet_x_800mf", "regnet_x_8gf"),
    *("regnet_y_128gf", "regnet_y_16gf", "regnet_y_1_6gf", "regnet_y_32gf", "regnet_y_3_2gf"),
    *("regnet_y_400mf", "regnet_y_800mf", "regnet_y_8gf"),
    *("resnet101", "resnet152", "resnet18", "resnet34", "resnet50"),
    *("resnext101_32x8d", "resnext101_64x4d", "resnext50_32x4d"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    *("squeezenet1_0", "squeezenet1_1"),
    *("swin_b", "swin_s", "swin_t", "swin_v2_b", "swin_v2_s", "swin_v2_t"),
    *("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
    *("vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"),
    *("wide_resnet101_2", "wide_resnet50_2"),
)


class TorchvisionModel(ModelParams):
    """A torchvision network, trained from scratch or from torchvision's weights.

    `model.weights` is `default` or one of torchvision's names, such as IMAGENET1K_V1; the file is
    looked for where torch.hub keeps its downloads.

    The last layer has the data's number of classes, the first convolution its number of
    channels; a vision transformer is built for the size of the images. Auxiliary heads are
    off: the network returns logits alone.
    """

    # Eighty classes: each makes its validator when it is used.
    model_config = ConfigDict(defer_build=True)

    architecture: ClassVar[str]

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the network; images too small for its strides fail in its first forward pass."""
        from torchvision.models import get_model

        if len(input_shape) != 3:
            raise ValueError("takes images, not vectors; 'linear' and 'mlp' take both")
        channels, height, width = input_shape
        settings: dict[str, Any] = {"num_classes": num_classes}
        if self.architecture.startswith("vit_"):
            patch = int(self.architecture.rpartition("_")[2])
            if height != width or height % patch:
                raise ValueError(f"needs square images whose side is a multiple of {patch}")
            settings["image_size"] = height
        elif self.architecture == "maxvit_t":
            settings["input_size"] = (height, width)
        elif self.architecture in ("googlenet", "inception_v3"):
            settings |= {"aux_logits": False, "init_weights": True, "transform_input": False}
        network: nn.Module = get_model(self.architecture, weights=None, **settings)
        return network if channels == 3 else _with_channels(network, channels)

    def published_weights(self, name: str) -> Pretrained:
        """The weights that torchvision publishes, in the folder of torch.hub's checkpoints.

        https://docs.pytorch.org/vision/stable/models.html
        """
        from pathlib import Path

        import torch
        from torchvision.models import get_model_weights

        known = get_model_weights(self.architecture)
        names = [each.name for each in known]
        chosen = "DEFAULT" if name == "default" else name
        if chosen not in known.__members__:
            near = difflib.get_close_matches(name.upper(), names, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            accepted = ", ".join(["default", *names])
            raise ValueError(
                f"no weights of {self.architecture} are named '{name}'.{hint}  "
                f"(torchvision has: {accepted})"
            )
        weights = known[chosen]
        preset = weights.transforms()
        mean, std = tuple(preset.mean), tuple(preset.std)
        if self.architecture in ("googlenet", "inception_v3"):  # what transform_input makes of it
            mean = std = (0.5, 0.5, 0.5)
        file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
        return Pretrained(file, weights.url, mean, std, preset.crop_size[0])


def _with_channels(network: nn.Module, channels: int) -> nn.Module:
    """Give the first convolution `channels` input channels, and new weights."""
    import torch
    from torch import nn

    for first in network.modules():
        if isinstance(first, nn.Conv2d):
            first.in_channels = channels
            shape = (first.out_channels, channels, *first.kernel_size)
            first.weight = nn.Parameter(torch.empty(shape))
            first.reset_parameters()
            return network
    raise ValueError("has no convolution to change the number of channels of")


@hookimpl
def register_models(register: Register) -> None:
    for name in NAMES:
        attributes = {
            "architecture": name,
            "__doc__": f"torchvision.models.{name}.",
            "__module__": __name__,
        }
        register(name, type(f"Torchvision_{name}", (TorchvisionModel,), attributes))

"""The model `timm`: every classification network of timm (`pip install torchyard[timm]`)."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from pydantic import Field

from torchyard import ModelParams, Pretrained, Register, hookimpl

if TYPE_CHECKING:
    from torch import nn

INSTALL = "timm is not installed: python -m pip install 'torchyard[timm]'"


class Timm(ModelParams):
    """A network of timm, by timm's name (https://huggingface.co/docs/timm; torchyard[timm]).

    The last layer has the data's number of classes, the first convolution its number of channels;
    vision transformers are built for the size of the images. `model.weights` is `default` or the
    tag of weights that timm publishes, such as a1_in1k; their file is looked for in the cache of
    Hugging Face's hub, and where torch.hub keeps its downloads.
    """

    architecture: str = Field(
        "resnet18", description="timm's name of the network, e.g. efficientnet_lite0"
    )
    drop_rate: float = Field(0.0, ge=0, lt=1, description="dropout before the last layer")
    drop_path_rate: float = Field(
        0.0, ge=0, lt=1, description="share of residual blocks left out at random, in the last one"
    )

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the network."""
        timm = _timm()
        if len(input_shape) != 3:
            raise ValueError("takes images, not vectors; 'linear' and 'mlp' take both")
        if not timm.is_model(self.architecture):
            names = timm.list_models()
            near = difflib.get_close_matches(self.architecture, names, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(
                f"timm has no network '{self.architecture}'.{hint}  (timm.list_models() lists "
                f"all {len(names):,})"
            )
        channels, *size = input_shape
        settings: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
        # Given only where they are asked for: not every network takes them.
        settings |= {
            name: rate for name in ("drop_rate", "drop_path_rate") if (rate := getattr(self, name))
        }
        published = timm.get_pretrained_cfg(self.architecture)
        if published is not None and published.fixed_input_size:
            settings["img_size"] = tuple(size)
        network: nn.Module = timm.create_model(self.architecture, **settings)
        return network

    def published_weights(self, name: str) -> Pretrained:
        """The weights that timm publishes."""
        from pathlib import Path

        import torch
        from huggingface_hub import try_to_load_from_cache

        timm = _timm()
        network, _, tag = self.architecture.partition(".")
        known = {each: f"{network}.{each}" for each in _tags(timm, network)}
        wanted = (tag or next(iter(known), "")) if name == "default" else name
        if wanted not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            has = ", ".join(["default", *known]) if known else "none"
            raise ValueError(
                f"no weights of {network} are named '{name}'.{hint}  (timm has: {has})"
            )
        published = timm.get_pretrained_cfg(known[wanted])
        file, url = published.file, published.url
        if published.hf_hub_id:
            stored = published.hf_hub_filename or "model.safetensors"
            file = try_to_load_from_cache(published.hf_hub_id, stored)
            url = f"https://huggingface.co/{published.hf_hub_id}/resolve/main/{stored}"
        if not isinstance(file, str):
            suffix = Path(url).suffix
            file = Path(torch.hub.get_dir(), "checkpoints", f"{known[wanted]}{suffix}")
        size = published.input_size[-1]
        return Pretrained(Path(file), url, tuple(published.mean), tuple(published.std), size)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError(INSTALL) from error
    return timm


def _tags(timm: Any, network: str) -> list[str]:
    """The names of a network's published weights, timm's default first."""
    default = timm.get_pretrained_cfg(network)
    names = timm.list_pretrained(f"{network}.*")
    tags = [name.partition(".")[2] for name in names]
    return sorted(tags, key=lambda tag: default is None or tag != default.tag)


@hookimpl
def register_models(register: Register) -> None:
    register("timm", Timm)

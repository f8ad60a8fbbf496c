"""Images to augment, and what an augmentation makes of them."""

import torch
from hypothesis import strategies as st

from torchyard import MixingParams
from torchyard.core.hosting.host import host

COUNT = 64
CLASSES = 5

# Grey and colour, square and not, an odd side.
SHAPES = [(1, 12, 12), (3, 12, 12), (3, 9, 14), (1, 16, 11)]
shapes = st.tuples(st.sampled_from([1, 3]), st.integers(9, 20), st.integers(9, 20))


def params(name, **chosen):
    return host().find("augmentation", name).params.model_validate(chosen)


def images(shape, count=COUNT, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def smooth(shape, count=COUNT, seed=0):
    """Images whose neighbouring pixels are alike, as in photos."""
    small = images((shape[0], 4, 4), count, seed).float()
    size = shape[1:]
    scaled = torch.nn.functional.interpolate(small, size, mode="bilinear", align_corners=False)
    return scaled.round().to(torch.uint8)


def distinct(shape, count=COUNT):
    """Images each of whose pixels says where it is: none is 0, no two are alike."""
    channels, height, width = shape
    place = torch.arange(1, height * width + 1).view(1, 1, height, width)
    return place.expand(count, channels, height, width).to(torch.uint8).clone()


def one_hot(count, classes=CLASSES):
    return torch.nn.functional.one_hot(torch.arange(count) % classes, classes).float()


def applied(plugin, samples, epoch=1, indices=None):
    """The samples as an augmentation makes them, and their targets where it mixes."""
    augmentation = plugin.build(tuple(samples.shape[1:]))
    device = samples.device
    indices = torch.arange(len(samples), device=device) if indices is None else indices
    if isinstance(plugin, MixingParams):
        return augmentation(samples, one_hot(len(samples)).to(device), indices, epoch)
    return augmentation(samples, indices, epoch), None


def changed(name, samples, seed=0, epoch=1, indices=None, **chosen):
    torch.manual_seed(seed)
    return applied(params(name, **chosen), samples, epoch, indices)[0]

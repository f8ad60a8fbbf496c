"""The networks, as somebody without torchyard writes them; a test holds them equal to ours."""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it


class LeNet(nn.Module):
    """The 60-minute blitz's network for images of 32 x 32."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        """Images N x C x 32 x 32 to logits N x 10."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


def resnet18() -> nn.Module:
    """torchvision's, with ten outputs."""
    from torchvision.models import resnet18

    return resnet18(num_classes=10)


NETWORKS = {"lenet": LeNet, "resnet18": resnet18}

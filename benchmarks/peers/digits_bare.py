"""The floor of fixed cost: the digits job in one short script, torch and scikit-learn alone."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

EPOCHS, BATCH_SIZE, TEST = 5, 32, 359


def load():
    """Training and test images, N x 1 x 32 x 32 in -1..1, with their labels."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 8 - 1
    images = F.interpolate(images, size=32, mode="bilinear")
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:TEST], order[TEST:]
    return images[train], labels[train], images[test], labels[test]


class LeNet(nn.Module):
    """The tutorial's network, for grey images."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        """Images to logits."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


def train(images, labels, told=print):
    """Train; `told` gets each epoch's number and mean loss."""
    torch.manual_seed(0)
    network = LeNet()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(labels)).split(BATCH_SIZE):
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        told(epoch + 1, total / len(labels))
    return network


def test(network, images, labels):
    """Accuracy, and that of each class."""
    with torch.no_grad():
        right = network(images).argmax(1) == labels
    return right.float().mean().item(), [
        right[labels == k].float().mean().item() for k in range(10)
    ]


if __name__ == "__main__":
    train_images, train_labels, test_images, test_labels = load()
    print(test(train(train_images, train_labels), test_images, test_labels))

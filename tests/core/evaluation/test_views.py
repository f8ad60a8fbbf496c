"""Views of an image: mirrored and shifted as torch does it, with weights that sum to one."""

import pytest
import torch
from torch.nn import functional

from torchyard.core.evaluation.views import Views


def shifted(images, down, right):
    padded = functional.pad(images.float(), (1, 1, 1, 1), mode="reflect").to(torch.uint8)
    return padded[:, :, 1 + down : 7 + down, 1 + right : 6 + right]


@pytest.fixture
def images():
    return torch.randint(256, (7, 3, 6, 5), dtype=torch.uint8)


def test_an_image_and_its_mirror_image_have_the_same_weight(images):
    (first, one), (second, other) = Views(6, 5, shifts=False)(images)
    assert torch.equal(first, images)
    assert torch.equal(second, images.flip(-1))
    assert (one, other) == (0.5, 0.5)


def test_shifted_images_have_half_of_the_weight(images):
    views = Views(6, 5, shifts=True)(images)
    assert [weight for _, weight in views] == [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    corners = [shifted(images, -1, -1), shifted(images, 1, 1)]
    expected = [each for view in (images, *corners) for each in (view, view.flip(-1))]
    assert all(torch.equal(view, other) for (view, _), other in zip(views, expected, strict=True))


def test_they_are_no_weights():
    assert Views(6, 5, shifts=True).state_dict() == {}

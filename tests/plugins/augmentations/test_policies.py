"""The fourteen operations of the policies are torchvision's, at every magnitude."""

import pytest
import torch
from torchvision.transforms import v2

from tests.plugins.augmentations.trying import changed, images, smooth
from torchyard.plugins.augmentations import policies

NAMES = (
    *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Color", "Contrast", "Sharpness"),
    *("Posterize", "Solarize", "AutoContrast", "Equalize", "Identity"),
)
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 20, 33)]


def limits_of(policy, shape):
    """What the augmentation of that name gives to `operate`."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "operate", lambda *given: found.append(given) or given[0])
        changed(policy, images(shape))
    return found


PEERS = {"rand_augment": v2.RandAugment(), "trivial_augment": v2.TrivialAugmentWide()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("policy", PEERS)
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_torchvisions(name, policy, shape):
    [limits] = {given[4] for given in limits_of(policy, shape)}
    peer, bins = PEERS[policy], 31
    magnitudes, signed = peer._AUGMENTATION_SPACE[name]
    magnitudes = magnitudes(bins, *shape[1:])
    signs = (1, -1) if signed else (1,)
    cases = [(level, sign) for level in range(0, bins, 4) for sign in signs]
    samples = smooth(shape, len(cases))
    samples[0] = samples[0] // 3 + 40  # not all values, and a margin at either end
    samples[1] = 100  # a single one
    result = policies.operate(
        samples.clone(),
        torch.full((len(cases),), NAMES.index(name)),
        torch.tensor([level / (bins - 1) for level, _ in cases]),
        torch.tensor([float(sign) for _, sign in cases]),
        limits,
        "bilinear",
    )
    for image, source, (level, sign) in zip(result, samples, cases, strict=True):
        magnitude = 0.0 if magnitudes is None else float(magnitudes[level]) * sign
        expected = peer._apply_image_or_video_transform(
            source, name, magnitude, interpolation=v2.InterpolationMode.BILINEAR, fill={}
        )
        different = (image.int() - expected.int()).abs()
        if name == "Solarize":  # a value at the threshold may be on either side of it
            assert (different > 0).float().mean() < 0.02, (level, sign)
        else:  # where the result is a whole number, float32 may be just below it
            assert different.max() <= 1, (level, sign)


@pytest.mark.parametrize("policy", PEERS)
def test_operations_and_signs_are_drawn_alike_often(policy):
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "operate", lambda *given: drawn.append(given) or given[0])
        changed(policy, torch.zeros(7000, 1, 2, 2, dtype=torch.uint8))
    assert len(drawn) == (2 if policy == "rand_augment" else 1)
    _, operation, level, sign, *_ = drawn[0]
    counts = operation.bincount(minlength=14)
    assert len(counts) == len(NAMES)
    assert (counts - 500).abs().max() < 120  # 5 standard deviations
    assert sign.mean() == pytest.approx(0, abs=0.06)
    assert sign.abs().unique().tolist() == [1]
    if policy == "rand_augment":
        assert level.unique().tolist() == pytest.approx([9 / 30])
    else:
        assert level.unique().tolist() == pytest.approx([each / 30 for each in range(31)])


def test_the_number_of_operations_and_their_magnitude_are_settings():
    samples = smooth((3, 24, 24))

    def difference(**chosen):
        result = changed("rand_augment", samples, **chosen)
        return (result.float() - samples.float()).abs().mean()

    assert difference(magnitude=2) < difference(magnitude=9) < difference(magnitude=30)
    assert difference(num_ops=1) < difference(num_ops=5)


def test_what_comes_from_outside_is_filled():
    samples = torch.full((300, 3, 16, 16), 90, dtype=torch.uint8)
    blended = {"fill": 90, "interpolation": "bilinear"}
    zeros = changed("trivial_augment", samples)
    filled = changed("trivial_augment", samples, **blended)
    assert (zeros == 0).flatten(1).any(1).sum() > (filled == 0).flatten(1).any(1).sum()

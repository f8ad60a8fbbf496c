"""What every augmentation keeps of a batch, what it draws, and that a run with it resumes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from tests.core.small_training import make_split, run_fit, same, weights
from tests.plugins.augmentations.trying import (
    COUNT,
    SHAPES,
    applied,
    changed,
    images,
    params,
    shapes,
)
from torchyard.core.data.dataset import Split
from torchyard.core.hosting.host import host
from torchyard.core.training.batches import build_augmentation
from torchyard.core.training.events import RunningLoss

MIXING = ("cutmix", "mixup", "mixup_or_cutmix")
COLOURS = ("blur", "color_jitter", "grayscale", "rand_augment", "trivial_augment")
PLACES = (
    *("affine", "alternating_flip", "cutout", "horizontal_flip", "random_crop"),
    *("random_erasing", "random_resized_crop", "rotate", "vertical_flip"),
)
AUGMENTATIONS = sorted((*COLOURS, *MIXING, *PLACES))
DRAWING = [name for name in AUGMENTATIONS if name != "alternating_flip"]
CHANCES = [name for name in AUGMENTATIONS if "p" in type(params(name)).model_fields]
TWO_WAYS = ("alternating_flip", "grayscale", "horizontal_flip", "vertical_flip")


def test_every_augmentation_is_tested_here():
    assert [name for name, _ in host().registrations("augmentation")] == AUGMENTATIONS


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(AUGMENTATIONS), shapes, st.integers(0, 9), st.integers(1, 5))
def test_shape_and_type_stay_and_the_input_is_left_as_it_is(name, shape, count, epoch):
    samples = images(shape, count)
    before = samples.clone()
    result = changed(name, samples, epoch=epoch)
    assert (result.shape, result.dtype, result.device) == (before.shape, torch.uint8, before.device)
    assert torch.equal(samples, before)
    result.zero_()  # not a view of it either
    assert torch.equal(samples, before)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (3, 1, 7), (3, 2, 3), (1, 3, 2)])
@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"random_crop", "cutout"}))
def test_tiny_images_are_taken(name, shape):
    for seed in range(5):
        assert changed(name, images(shape, 9), seed=seed).shape == (9, *shape)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_channels_of_an_image_change_together(name, shape):
    grey = images((1, *shape[1:]))
    alone = changed(name, grey)
    assert not torch.equal(alone, grey)
    assert torch.equal(changed(name, grey.repeat(1, 3, 1, 1)), alone.repeat(1, 3, 1, 1))


@pytest.mark.parametrize("name", sorted((*COLOURS, *PLACES)))
def test_every_sample_is_changed_in_its_own_way(name):
    same = images((3, 12, 12), 1).expand(COUNT, -1, -1, -1)
    results = {image.numpy().tobytes() for image in changed(name, same)}
    assert len(results) == 2 if name in TWO_WAYS else len(results) >= COUNT // 3


@pytest.mark.parametrize("name", sorted((*COLOURS, *PLACES)))
def test_a_sample_is_changed_by_its_own_draw_whatever_the_others_are(name):
    samples = images((3, 12, 12), 16)
    others = samples.clone()
    others[1::2] = images((3, 12, 12), 8, seed=1)
    assert torch.equal(changed(name, samples)[::2], changed(name, others)[::2])


@pytest.mark.parametrize("name", DRAWING)
def test_the_generator_decides_and_moves_on(name):
    samples, plugin = images((3, 12, 12)), params(name)
    first = changed(name, samples, seed=5)
    indices = torch.arange(COUNT).flip(0)  # which samples they are plays no part
    assert torch.equal(changed(name, samples, seed=5, epoch=2, indices=indices), first)
    assert not torch.equal(applied(plugin, samples)[0], first)
    assert not torch.equal(changed(name, samples, seed=6), first)


def test_the_generator_is_not_asked_for_alternating_flips():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    applied(params("alternating_flip"), images((1, 9, 9)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", CHANCES)
def test_with_a_probability_of_0_nothing_changes(name):
    samples = images((3, 12, 12))
    assert torch.equal(changed(name, samples, p=0), samples)


@pytest.mark.parametrize(
    "name", sorted(set(CHANCES) - {"affine", "random_erasing", "rotate", *MIXING})
)
def test_the_share_of_changed_images_is_p(name):
    samples = images((3, 5, 5), 2000)
    result = changed(name, samples, p=0.3)
    share = (result != samples).flatten(1).any(1).float().mean().item()
    assert share == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_images_laid_out_in_another_way_are_taken(name):
    samples = images((3, 12, 12))
    other = samples.to(memory_format=torch.channels_last)
    assert torch.equal(changed(name, other), changed(name, samples))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_large_batches_are_changed_in_parts_as_they_are_whole(name, monkeypatch):
    samples = images((3, 12, 12))
    whole = changed(name, samples)
    monkeypatch.setattr("torchyard.plugins.augmentations.images.CHUNK", 1)
    # The arithmetic of a whole batch is summed in another order: a rounding may differ.
    assert (changed(name, samples).int() - whole.int()).abs().float().mean() < 0.01


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        *((name, {}) for name in AUGMENTATIONS if name not in MIXING),
        ("random_crop", {"mode": "zeros"}),
        ("random_erasing", {"value": "random"}),
    ],
)
def test_nothing_leaves_the_samples_device_or_waits_for_it(name, chosen):
    # A meta tensor has no values: reading one, or mixing it with the CPU's, fails.
    samples = torch.empty(5, 3, 12, 12, dtype=torch.uint8, device="meta")
    result, _ = applied(params(name, **chosen), samples)
    assert result.is_meta
    assert result.shape == samples.shape


@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"mixup"}))
def test_vectors_are_refused(name):
    with pytest.raises(ValueError, match="changes images, not vectors"):
        params(name).build((12,))


@pytest.mark.parametrize("name", ["color_jitter", "grayscale", "rand_augment", "trivial_augment"])
def test_what_has_other_channels_than_grey_or_rgb_is_refused(name):
    with pytest.raises(ValueError, match="changes grey and RGB images, not those of 4 channels"):
        params(name).build((4, 9, 9))


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("random_crop", {"padding": 0}),
        ("random_crop", {"padding": 1.5}),
        ("random_crop", {"mode": "edge"}),
        ("horizontal_flip", {"p": 1.1}),
        ("vertical_flip", {"p": -0.1}),
        ("alternating_flip", {"seed": -1}),
        ("alternating_flip", {"p": 0.5}),
        ("cutout", {"size": 0}),
        ("cutout", {"fill": 256}),
        ("cutout", {"fill": -1}),
        ("random_resized_crop", {"scale": (0, 1)}),
        ("random_resized_crop", {"scale": (0.5, 1.5)}),
        ("random_resized_crop", {"scale": (0.9, 0.1)}),
        ("random_resized_crop", {"ratio": (0, 1)}),
        ("rotate", {"degrees": -1}),
        ("rotate", {"degrees": 181}),
        ("rotate", {"interpolation": "bicubic"}),
        ("affine", {"translate": (1.1, 0)}),
        ("affine", {"scale": (0, 1)}),
        ("affine", {"shear": 90}),
        ("color_jitter", {"hue": 0.6}),
        ("color_jitter", {"contrast": -0.1}),
        ("blur", {"kernel_size": 4}),
        ("blur", {"sigma": (0, 1)}),
        ("random_erasing", {"value": "noise"}),
        ("random_erasing", {"scale": (0.1, 1.1)}),
        ("rand_augment", {"magnitude": 31}),
        ("rand_augment", {"num_ops": 0}),
        ("trivial_augment", {"num_magnitude_bins": 1}),
        ("mixup", {"alpha": 0}),
        ("cutmix", {"p": 2}),
        ("mixup_or_cutmix", {"switch_prob": -1}),
    ],
)
def test_what_is_out_of_range_is_refused(name, chosen):
    with pytest.raises(ValidationError):
        params(name, **chosen)


# ---- training


def colourful_split(count=60):
    labels = make_split(count).labels
    samples = images((3, 9, 9), count).numpy() // 2
    samples[np.arange(count), labels] += 100
    return Split(samples, labels)


def small_network():
    class Scale(nn.Module):
        def forward(self, samples):
            return samples.float() / 255 - 0.3

    torch.manual_seed(1)
    return nn.Sequential(Scale(), nn.Flatten(), nn.Linear(243, 3))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_run_that_resumes_is_augmented_as_one_that_was_not_interrupted(name, tmp_path):
    split = colourful_split()
    augmentation = build_augmentation(params(name), (3, 9, 9), 3)

    def stop_in_second(event):
        if isinstance(event, RunningLoss) and event.step > 8:
            raise KeyboardInterrupt

    def run(folder, network, **settings):
        settings |= {"train": split, "augmentations": [augmentation], "epochs": 2}
        return run_fit(tmp_path / folder, network, **settings)

    whole, halves = small_network(), small_network()
    torch.manual_seed(3)
    run("whole", whole)
    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        run("halves", halves, emit=stop_in_second)
    torch.manual_seed(99)
    halves = small_network()
    run("halves", halves)
    assert same(weights(whole), weights(halves))

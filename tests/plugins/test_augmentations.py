"""Every augmentation against what it says it does to a batch of images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from torchyard.core.hosting.host import host

AUGMENTATIONS = ("alternating_flip", "cutout", "horizontal_flip", "random_crop")
DRAWING = ("cutout", "horizontal_flip", "random_crop")
COUNT = 64

# Grey and colour, square and not, an odd side.
SHAPES = [(1, 12, 12), (3, 12, 12), (3, 9, 14), (1, 16, 11)]


def params(name, **chosen):
    return host().find("augmentation", name).params.model_validate(chosen)


def images(shape, count=COUNT, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def changed(name, samples, seed=0, epoch=1, indices=None, **chosen):
    augmentation = params(name, **chosen).build(tuple(samples.shape[1:]))
    indices = torch.arange(len(samples)) if indices is None else indices
    torch.manual_seed(seed)
    return augmentation(samples, indices, epoch)


def distinct(shape, count=COUNT):
    """Images each of whose pixels says where it is: none is 0, no two are alike."""
    channels, height, width = shape
    place = torch.arange(1, height * width + 1).view(1, 1, height, width)
    return place.expand(count, channels, height, width).to(torch.uint8).clone()


def shifts_of(result, padded, shape, padding):
    """For each sample, the only window of its padded original that it is."""
    _, height, width = shape
    found = []
    for image, source in zip(result, padded, strict=True):
        windows = [
            (down - padding, right - padding)
            for down in range(2 * padding + 1)
            for right in range(2 * padding + 1)
            if torch.equal(image, source[:, down : down + height, right : right + width])
        ]
        assert len(windows) == 1
        found += windows
    return found


def test_every_augmentation_is_tested_here():
    assert [name for name, _ in host().registrations("augmentation")] == list(AUGMENTATIONS)


# ---- all of them

shapes = st.tuples(st.sampled_from([1, 3]), st.integers(9, 20), st.integers(9, 20))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(AUGMENTATIONS), shapes, st.integers(0, 9), st.integers(1, 5))
def test_shape_and_type_stay_and_the_input_is_left_as_it_is(name, shape, count, epoch):
    samples = images(shape, count)
    before = samples.clone()
    result = changed(name, samples, epoch=epoch)
    assert (result.shape, result.dtype, result.device) == (before.shape, torch.uint8, before.device)
    assert torch.equal(samples, before)
    result.zero_()  # not a view of it either
    assert torch.equal(samples, before)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_channels_of_an_image_change_together(name, shape):
    grey = images((1, *shape[1:]))
    alone = changed(name, grey)
    assert not torch.equal(alone, grey)
    assert torch.equal(changed(name, grey.repeat(1, 3, 1, 1)), alone.repeat(1, 3, 1, 1))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_sample_is_changed_in_its_own_way(name):
    same = distinct((3, 12, 12), 1).expand(COUNT, -1, -1, -1)
    results = {image.numpy().tobytes() for image in changed(name, same)}
    assert len(results) == 2 if "flip" in name else len(results) > COUNT // 2


@pytest.mark.parametrize("name", DRAWING)
def test_the_generator_decides_and_moves_on(name):
    samples = images((3, 12, 12))
    augmentation = params(name).build((3, 12, 12))
    first = changed(name, samples, seed=5)
    indices = torch.arange(COUNT).flip(0)  # which samples they are plays no part
    assert torch.equal(changed(name, samples, seed=5, epoch=2, indices=indices), first)
    assert not torch.equal(augmentation(samples, indices, 1), first)
    assert not torch.equal(changed(name, samples, seed=6), first)


def test_the_generator_is_not_asked_for_alternating_flips():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    params("alternating_flip").build((1, 9, 9))(images((1, 9, 9)), torch.arange(COUNT), 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_images_laid_out_in_another_way_are_taken(name):
    samples = images((3, 12, 12))
    other = samples.to(memory_format=torch.channels_last)
    assert torch.equal(changed(name, other), changed(name, samples))


@pytest.mark.parametrize(
    ("name", "chosen"),
    [*((name, {}) for name in AUGMENTATIONS), ("random_crop", {"mode": "zeros"})],
)
def test_nothing_leaves_the_samples_device_or_waits_for_it(name, chosen):
    # A meta tensor has no values: reading one, or mixing it with the CPU's, fails.
    samples = torch.empty(5, 3, 12, 12, dtype=torch.uint8, device="meta")
    indices = torch.arange(5, device="meta")
    result = params(name, **chosen).build((3, 12, 12))(samples, indices, 1)
    assert result.is_meta
    assert result.shape == samples.shape


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_vectors_are_refused(name):
    with pytest.raises(ValueError, match="changes images, not vectors"):
        params(name).build((12,))


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("random_crop", {"padding": 0}),
        ("random_crop", {"padding": 1.5}),
        ("random_crop", {"mode": "edge"}),
        ("horizontal_flip", {"p": 1.1}),
        ("horizontal_flip", {"p": -0.1}),
        ("alternating_flip", {"seed": -1}),
        ("alternating_flip", {"p": 0.5}),
        ("cutout", {"size": 0}),
        ("cutout", {"fill": 256}),
        ("cutout", {"fill": -1}),
    ],
)
def test_what_is_out_of_range_is_refused(name, chosen):
    with pytest.raises(ValidationError):
        params(name, **chosen)


# ---- random_crop


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [None, 1, 7])
@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_a_crop_is_a_window_of_the_padded_image(shape, padding, mode):
    samples = images(shape, 200)
    size = 4 if padding is None else padding
    # torch's own padding, which wants float.
    padded = torch.nn.functional.pad(samples.float(), (size,) * 4, mode=mode).to(torch.uint8)
    chosen = {} if padding is None else {"padding": padding}
    if mode == "constant":
        chosen["mode"] = "zeros"
    found = shifts_of(changed("random_crop", samples, **chosen), padded, shape, size)
    # 200 draws reach both ends, each way.
    for way in zip(*found, strict=True):
        assert {min(way), max(way)} == {-size, size}
    assert any(down != right for down, right in found)


def test_every_shift_is_as_likely_as_any_other():
    shape, padding, count = (1, 5, 5), 1, 9000
    samples = distinct(shape, count)
    padded = torch.nn.functional.pad(samples.float(), (padding,) * 4, mode="reflect")
    result = changed("random_crop", samples, padding=padding).float()
    for down in range(3):
        for right in range(3):
            window = padded[:, :, down : down + 5, right : right + 5]
            hits = (result == window).flatten(1).all(1).sum().item()
            assert hits == pytest.approx(count / 9, abs=150)  # 5 standard deviations


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(1, 8), st.integers(0, 2**31))
def test_a_reflected_crop_shows_its_own_image_alone(shape, padding, seed):
    # Sample n has values of its own: bits above the lowest four.
    own = torch.arange(8, dtype=torch.uint8).view(-1, 1, 1, 1) * 16
    samples = images(shape, 8, seed) % 16 + own
    result = changed("random_crop", samples, seed, padding=padding)
    for image, original in zip(result, samples, strict=True):
        assert set(image.unique().tolist()) <= set(original.unique().tolist())


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_padding_as_wide_as_the_image_is_refused(mode):
    params("random_crop", padding=8, mode=mode).build((3, 9, 30))
    for shape in ((3, 9, 30), (3, 30, 9)):
        with pytest.raises(
            ValueError, match=r"padding=9 must be less than the shorter side, 9 pixels"
        ):
            params("random_crop", padding=9, mode=mode).build(shape)


# ---- flips


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flip_of_all_is_the_mirror_image_and_twice_gives_back(shape):
    samples = images(shape)
    once = changed("horizontal_flip", samples, p=1)
    # Column by column, by hand.
    for column in range(shape[2]):
        assert torch.equal(once[..., column], samples[..., shape[2] - 1 - column])
    assert torch.equal(changed("horizontal_flip", once, p=1), samples)
    assert torch.equal(changed("horizontal_flip", samples, p=0), samples)


@pytest.mark.parametrize("chosen", [{}, {"p": 0.1}])
def test_the_share_of_flips_is_p(chosen):
    samples = distinct((1, 2, 3), 4000)
    result = changed("horizontal_flip", samples, **chosen)
    assert flips(samples, result).float().mean() == pytest.approx(chosen.get("p", 0.5), abs=0.04)


def flips(samples, result):
    """Which samples are mirrored; each must be either that or as it was."""
    mirrored = (result == samples.flip(-1)).flatten(1).all(1)
    kept = (result == samples).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    return mirrored


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_any_two_epochs_in_a_row_mirror_each_other(shape, epoch, seed):
    samples, indices = images(shape, 16), torch.arange(100, 116)
    augmentation = params("alternating_flip", seed=seed).build(shape)
    one, other, third = (augmentation(samples, indices, epoch + later) for later in range(3))
    flips(samples, one)
    assert torch.equal(one, other.flip(-1))
    assert torch.equal(one, third)


def first_epoch(seed, indices):
    samples = distinct((1, 1, 2), len(indices))
    augmentation = params("alternating_flip", seed=seed).build((1, 1, 2))
    return flips(samples, augmentation(samples, indices, 1))


def test_an_images_side_depends_on_its_index_and_the_seed_alone():
    everything = torch.arange(10_000)
    whole = first_epoch(0, everything)
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(1))
    for batch in order.split(3_000):
        assert torch.equal(first_epoch(0, batch), whole[batch])
    assert not torch.equal(first_epoch(1, everything), whole)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_the_first_epoch_flips_as_coins_fall(seed):
    count = 10_000
    coins = first_epoch(seed, torch.arange(count)).float()
    within = 5 * 0.5 / count**0.5  # five standard deviations
    assert coins.mean() == pytest.approx(0.5, abs=within)
    # Neighbours agree as often as not, at any distance and for any other seed.
    for distance in (1, 2, 3, 10, 64, 100, 1000, 1024):
        agree = (coins[distance:] == coins[:-distance]).float().mean()
        assert agree == pytest.approx(0.5, abs=1.1 * within), distance
    other = first_epoch(seed ^ 4, torch.arange(count)).float()
    assert (coins == other).float().mean() == pytest.approx(0.5, abs=within)


def test_another_seed_is_not_the_same_coins_for_other_images():
    indices = torch.arange(256)
    assert sorted(first_epoch(0, indices).tolist()) != sorted(first_epoch(7, indices).tolist())


# ---- cutout


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "fill"), [(None, None), (1, 0), (3, 255), (4, 7)])
def test_a_cutout_is_one_square_around_a_pixel_of_the_image(shape, size, fill):
    side = 8 if size is None else size
    value = 128 if fill is None else fill
    samples = images(shape, 300)
    samples[samples == value] = value ^ 1  # so that what has the value now was cut out
    chosen = {key: given for key, given in (("size", size), ("fill", fill)) if given is not None}
    result = changed("cutout", samples, **chosen)
    cut = result == value
    assert torch.equal(result[~cut], samples[~cut])
    centres = set()
    for mask in cut:
        assert torch.equal(mask, mask[:1].expand_as(mask))
        squares = [
            (y, x)
            for y in range(shape[1])
            for x in range(shape[2])
            if torch.equal(mask[0], square(shape, side, y, x))
        ]
        assert len(squares) >= 1
        centres |= set(squares)
    ys, xs = zip(*centres, strict=True)
    # 300 draws reach every row and column.
    assert set(ys) == set(range(shape[1]))
    assert set(xs) == set(range(shape[2]))


def square(shape, side, y, x):
    """The square around (y, x), as far as it is in the image."""
    mask = torch.zeros(shape[1:], dtype=torch.bool)
    top, left = y - side // 2, x - side // 2
    mask[max(top, 0) : top + side, max(left, 0) : left + side] = True
    return mask


def test_a_square_as_large_as_the_image_is_refused():
    params("cutout", size=8).build((3, 9, 30))
    for shape in ((3, 9, 30), (3, 30, 9)):
        with pytest.raises(
            ValueError, match=r"size=9 must be less than the shorter side, 9 pixels"
        ):
            params("cutout", size=9).build(shape)

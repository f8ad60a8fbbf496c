"""Parts of images blanked: where, how large, with what."""

import pytest
import torch

from tests.plugins.augmentations.trying import SHAPES, changed, images, params


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


# ---- random_erasing


def erased(samples, **chosen):
    """For each image the rectangle that is blanked, (top, left, height, width), or None."""
    result = changed("random_erasing", samples, value=7, **chosen)
    found = []
    for image, source in zip(result, samples, strict=True):
        blank = (image == 7).all(0)
        assert torch.equal(image[:, ~blank], source[:, ~blank])
        if not blank.any():
            found.append(None)
            continue
        rows, columns = blank.any(1).nonzero().squeeze(1), blank.any(0).nonzero().squeeze(1)
        high, wide = len(rows), len(columns)
        assert blank.sum() == high * wide  # a rectangle, whole
        assert rows[-1] - rows[0] == high - 1
        assert columns[-1] - columns[0] == wide - 1
        found.append((int(rows[0]), int(columns[0]), high, wide))
    return found


def without_7(shape, count):
    samples = images(shape, count)
    return samples.where(samples != 7, 8)


@pytest.mark.parametrize("shape", [(1, 30, 30), (3, 24, 40)])
def test_a_rectangle_of_the_area_and_ratio_is_blanked(shape):
    _, height, width = shape
    found = erased(without_7(shape, 600), p=1, scale=(0.1, 0.2), ratio=(0.5, 2))
    assert None not in found
    tops, lefts, heights, widths = torch.tensor(found).unbind(1)
    shares = heights * widths / (height * width)
    assert 0.08 < shares.min() < 0.12
    assert 0.18 < shares.max() < 0.22
    ratios = heights / widths
    assert 0.4 < ratios.min() < 0.6
    assert 1.7 < ratios.max() < 2.4
    # Anywhere: to both ends, each way.
    for firsts, sides, most in ((tops, heights, height), (lefts, widths, width)):
        assert firsts.min() == 0
        assert (firsts + sides).max() == most


def test_the_share_of_erased_images_is_p():
    found = erased(without_7((1, 20, 20), 2000), p=0.3)
    assert sum(each is not None for each in found) / 2000 == pytest.approx(0.3, abs=0.05)


def test_what_never_fits_is_left_as_it_is():
    samples = without_7((1, 20, 20), 50)
    assert erased(samples, p=1, scale=(1, 1), ratio=(1, 1)) == [None] * 50
    assert erased(without_7((1, 1, 9), 50), p=1) == [None] * 50


def test_random_values_are_drawn_for_each_pixel():
    samples = torch.zeros(50, 3, 20, 20, dtype=torch.uint8)
    result = changed("random_erasing", samples, p=1, value="random")
    blank = result.amax(1) > 0
    values = result.movedim(1, -1)[blank].float()
    assert values.mean() == pytest.approx(127.5, abs=6)
    assert len(values.unique(dim=0)) > 0.9 * len(values)

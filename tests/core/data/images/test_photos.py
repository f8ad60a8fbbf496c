"""Image files that are kept, read as an array."""

import io
import threading

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tests.core.preparation.raw_data import encoded, image_split, prepared, raw, saved
from torchyard.core.data.dataset import PreparedDataset, Split
from torchyard.core.data.images.decoding import decode_image, decode_part
from torchyard.core.data.images.jpeg import decode_jpeg_part
from torchyard.core.data.images.photos import AHEAD, TASK, Wanted
from torchyard.core.data.images.reading import ImageReading
from torchyard.core.errors import RunError
from torchyard.core.evaluation.predict import predict

SHAPE = (3, 24, 24)
SIZES = [(40, 60), (60, 40), (30, 30), (24, 24), (90, 50), (20, 70)]


def smooth(height, width, number=0):
    """A photo with colours that JPEG keeps."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin((x + 3 * number) / 9), np.cos(y / 7), np.sin((x + y) / (11 + number))]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=2)).astype(np.uint8))


def jpeg(picture, **options):
    return encoded(picture, "JPEG", quality=92, **options)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A prepared data set of photos of several sizes, and their files."""
    folder = tmp_path_factory.mktemp("photos")
    pictures = [smooth(*SIZES[number % 6], number) for number in range(12)]
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    files = saved(folder, *pictures, format="JPEG")
    files[4].write_bytes(jpeg(pictures[4], exif=turned))
    files[5].write_bytes(encoded(pictures[5]))  # a PNG
    files[6].write_bytes(jpeg(pictures[6].convert("L")))
    content = raw(image_split(files[:9], SHAPE), image_split(files[9:], SHAPE))
    return prepared(content, folder / "cache", storage="encoded"), files


def test_it_reads_like_an_array_of_the_evaluated_images(photos):
    data, files = photos
    samples = data.train.samples
    assert (data.encoded, data.shape, len(data.train)) == (True, SHAPE, 9)
    assert (samples.shape, samples.dtype, samples.ndim) == ((9, *SHAPE), np.uint8, 4)
    assert samples.nbytes == 9 * 3 * 24 * 24
    reading = ImageReading(resize="crop")
    expected = [decode_image(file.read_bytes(), SHAPE, reading=reading) for file in files[:9]]
    np.testing.assert_array_equal(samples[:], expected)
    np.testing.assert_array_equal(samples[2:5], expected[2:5])
    np.testing.assert_array_equal(samples[np.array([7, 0, 7])], [expected[i] for i in (7, 0, 7)])
    np.testing.assert_array_equal(samples[-1], expected[-1])
    assert samples[3:3].shape == (0, *SHAPE)
    assert samples.size(0) == (40, 60)
    assert samples.size(4) == (50, 90)  # as it is displayed
    assert samples.encoded(5) == files[5].read_bytes()


def test_statistics_are_those_of_the_evaluated_images(photos):
    data, _ = photos
    scaled = data.train.samples[:] / 255
    np.testing.assert_allclose(data.mean, scaled.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(data.std, scaled.std(axis=(0, 2, 3)))


def test_a_part_is_the_same_however_the_file_is_decoded(photos):
    data, files = photos
    samples = data.train.samples
    wanted = [(index, (3, 2, 14, 16)) for index in range(9)] + [(1, (0, 0, 60, 40))]
    batch = Wanted([index for index, _ in wanted], [part for _, part in wanted], None)
    [(found, _)] = samples.decoded([batch])
    for pixels, (index, (top, left, height, width)) in zip(found, wanted, strict=True):
        whole = Image.open(io.BytesIO(files[index].read_bytes()))
        whole = whole.transpose(Image.Transpose.ROTATE_270) if index == 4 else whole
        box = (left, top, left + width, top + height)
        expected = whole.convert("RGB").crop(box).resize((24, 24), Image.Resampling.BILINEAR)
        # torch rounds a few values the other way, and Pillow's part has a look beyond its border
        difference = np.abs(pixels.transpose(1, 2, 0).astype(int) - np.asarray(expected))
        assert difference.max() <= 8, index
        assert difference.mean() < 1, index


def test_a_part_of_a_large_jpeg_is_decoded_at_a_reduced_scale(tmp_path):
    large = smooth(800, 1000)
    part = (160, 200, 600, 590)
    expected = large.resize((24, 24), Image.Resampling.BILINEAR, (200, 160, 790, 760))
    files = saved(tmp_path / "large", large, large, format="JPEG")
    data = prepared(raw(image_split(files, SHAPE), image_split(files, SHAPE)), tmp_path,
                    storage="encoded")  # fmt: skip
    [(found, _)] = data.train.samples.decoded([Wanted([1], [part], None)])
    for pixels in (found[0], decode_part(files[0].read_bytes(), part, (800, 1000), SHAPE)):
        assert np.abs(pixels.transpose(1, 2, 0).astype(int) - np.asarray(expected)).mean() < 5


@given(
    block=st.integers(1, 8),
    beyond=st.integers(-3, 3),
    rows=st.integers(1, 90),
    below=st.integers(0, 40),
    side=st.integers(4, 40),
    grey=st.booleans(),
    colours=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    restarts=st.integers(0, 3),
)
@example(2, 0, 28, 24, 4, False, "4:4:4", 0)  # scaled by a seventh: the next is a quarter
def test_a_part_is_the_same_without_what_is_below_it(
    block, beyond, rows, below, side, grey, colours, restarts
):
    bottom = 16 * block + beyond
    top, height, width = max(0, bottom - rows), bottom + below, 61
    noise = np.random.default_rng(rows).integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(noise).convert("L" if grey else "RGB")
    options = {"subsampling": colours, "restart_marker_blocks": restarts}
    # A progressive file, of the same pixels, is decoded as a whole.
    found, whole = (
        decode_jpeg_part(
            jpeg(picture, progressive=passes, **options),
            (top, 5, bottom - top, 50),
            (height, width),
            (3, side, side),
        )
        for passes in (False, True)
    )
    np.testing.assert_array_equal(found, whole)


def test_what_is_below_a_part_is_not_decoded():
    data = jpeg(smooth(200, 150))
    part, shape = (10, 20, 60, 90), (3, 40, 40)
    np.testing.assert_array_equal(
        decode_jpeg_part(data[: len(data) * 6 // 10], part, (200, 150), shape),
        decode_jpeg_part(data, part, (200, 150), shape),
    )


def test_a_jpeg_with_a_flaw_that_pillow_overlooks_is_read_throughout(tmp_path):
    clean = jpeg(smooth(60, 80))
    files = saved(tmp_path / "flawed", smooth(60, 80), smooth(70, 80), format="JPEG")
    files[0].write_bytes(clean[:-200] + clean[-2:])  # what is missing becomes grey
    split = image_split(files, SHAPE)
    data = prepared(raw(split, split), tmp_path, storage="encoded")
    [(found, _)] = data.train.samples.decoded([Wanted([0], [(0, 0, 60, 60)], None)])
    np.testing.assert_array_equal(
        found[0], decode_part(files[0].read_bytes(), (0, 0, 60, 60), (60, 80), SHAPE)
    )


def test_batches_are_the_same_from_any_number_of_threads(photos):
    data, _ = photos
    batches = [Wanted(np.arange(start, 9), None, start) for start in range(9)]
    one = list(data.train.samples.decoded(batches, threads=1))
    three = list(data.train.samples.decoded(batches, threads=3))
    assert [tag for _, tag in one] == [tag for _, tag in three] == list(range(9))
    for (first, _), (second, _) in zip(one, three, strict=True):
        np.testing.assert_array_equal(first, second)


def test_few_batches_are_decoded_ahead_and_no_thread_stays(photos):
    data, _ = photos
    taken = []

    def batches():
        for number in range(1000):
            taken.append(number)
            yield Wanted([number % 9] * 20, None, number)

    found = data.train.samples.decoded(batches(), threads=2)
    for number in range(30):
        assert next(found)[1] == number
        assert len(taken) <= number + 1 + AHEAD + 2 * TASK * 2 // 20
    found.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("decoder")]


def test_a_network_predicts_the_same_of_photos_as_of_their_pixels(photos):
    data, _ = photos
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 24 * 24, 2))

    class Scaled(torch.nn.Module):
        def forward(self, samples):
            return network(samples.float())

    split, chosen = data.train, np.array([8, 2, 3])
    pixels = split.samples[:]
    for indices in (None, chosen):
        found, expected = (
            predict(Scaled(), samples, split.labels, device="cpu", indices=indices, batch_size=2)
            for samples in (split.samples, pixels)
        )
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.targets, expected.targets)


def test_the_test_digest_tells_other_images_and_another_way_to_read_them(photos, tmp_path):
    data, files = photos

    def digest(test, number=0, **reading):
        content = raw(image_split(files[:9], SHAPE), image_split(test, SHAPE))
        reading = {"storage": "encoded", **reading}
        return prepared(content, tmp_path / str(number), **reading).test_digest

    assert digest(files[9:]) == data.test_digest
    others = {data.test_digest, digest(files[9:][::-1], 1), digest(files[9:], resize="pad")}
    assert len(others | {digest(files[9:], resize="crop", crop_ratio=0.8)}) == 4


def test_damage_is_named(photos, tmp_path):
    _, files = photos
    content = raw(image_split(files[:9], SHAPE), image_split(files[9:], SHAPE))
    folder = prepared(content, tmp_path, storage="encoded").folder
    pack = folder / "train_images.bin"
    whole = pack.read_bytes()
    pack.write_bytes(whole[:700] + bytes(len(whole) - 700))
    found = PreparedDataset.open(folder)
    assert found.damaged() == ["train_images.bin"]
    with pytest.raises(RunError, match=r"train_images\.bin is damaged: image \d of it: .*remove"):
        found.train.samples[:]
    parts = Wanted(np.arange(9), [(0, 0, 20, 20)] * 9, None)
    with pytest.raises(RunError, match=r"train_images\.bin is damaged: image \d of it: "):
        list(found.train.samples.decoded([parts]))
    with pack.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(RunError, match=r"train_images\.bin"):
        PreparedDataset.open(folder)
    with pytest.raises(RunError, match="it ends too early"):
        predict(torch.nn.Identity(), found.train.samples, found.train.labels, device="cpu")


def test_a_part_of_the_split_shares_its_files(photos):
    data, _ = photos
    part = Split(data.train.samples, data.train.labels, np.array([1, 4]))
    assert len(part) == 2

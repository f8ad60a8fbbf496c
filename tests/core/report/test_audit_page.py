"""The page of an audit: whole, with its pictures, and safe from the names in it."""

import numpy as np

from tests.core.audit.pictures import audited, pictures
from tests.core.report.test_run_page import HOSTILE, Page
from torchyard.core.report.audit_page import audit_page


def test_the_page_shows_pairs_of_images_and_what_was_not_found(tmp_path):
    train, test = pictures(20), pictures(10, seed=1)
    test[:3] = train[:3]
    train[7] = 9
    labels = np.arange(20) % 2
    result, data = audited((train, labels), (test, 1 - labels[:10]), tmp_path, tuple(HOSTILE[:2]))
    text = audit_page(result, data, HOSTILE[0])
    page = Page(text)
    assert "<script" not in text
    assert "Exact duplicate: 3" in page.texts
    assert "No content: 1" in page.texts
    assert "images that are nearly the same" in text
    images = page.of("img")
    assert len(images) == 2 * 3 + 2 * 3 + 1  # duplicates, the same as conflicts, an empty one
    assert all(each["src"].startswith("data:image/png;base64,") for each in images)
    assert all(each["href"].startswith("#") for each in page.of("a"))


def test_the_page_of_vectors_is_a_table(tmp_path):
    train = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    labels = np.arange(20) % 2
    result, data = audited((train, labels), (train[:2], labels[:2]), tmp_path)
    page = Page(audit_page(result, data, "vectors"))
    assert page.of("img") == []
    assert "train #1 · test #1" in page.texts

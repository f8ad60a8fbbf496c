"""What is taken for an address of data elsewhere, and what is wrong with one."""

import pytest

from torchyard.core.data.remote.address import RemoteAddress

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize("text", ["photos", "/data/a.zip", "./a:b", "C:/data", "1s3://x", "~/x"])
def test_a_path_is_none(text):
    assert RemoteAddress.parse(text) is None


def test_an_address_may_have_a_digest():
    plain = RemoteAddress.parse("https://host/a.zip?version=3")
    assert (plain, plain.source, plain.digest) == (plain, "https://host/a.zip?version=3", "")
    pinned = RemoteAddress.parse(f"https://host/a.zip#sha256={DIGEST}")
    assert pinned == f"https://host/a.zip#sha256={DIGEST}"
    assert (pinned.source, pinned.digest) == ("https://host/a.zip", DIGEST)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("htps://host/a.zip", "no data are read from .*'htps://'. Did you mean 'https'"),
        ("file:///data/a.zip", "no data are read from an address that begins with 'file://'"),
        ("https://", "names nothing; an address is like https://NAME/photos.tar.gz"),
        ("https://host/a#sha256=12", "'#sha256=…' has 64 digits"),
        ("abfs://bucket/a.zip", "'abfs://' needs adlfs: python -m pip install adlfs"),
    ],
)
def test_what_is_wrong_is_said(text, says):
    with pytest.raises(ValueError, match=says):
        RemoteAddress.parse(text)

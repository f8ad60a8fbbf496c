"""Names of files and folders: which are images, and what encoding those are in that say nothing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

from torchyard import UserError

SUFFIXES = tuple(
    ".apng .avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff "  # noqa: SIM905
    ".webp".split()
)
ESCAPED = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, in the name of a file


def is_image(name: str) -> bool:
    """Whether a file has the name of an image, and is not hidden."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder in the name begins with a dot (also "..") or is macOS's own."""
    return "/." in f"/{name}" or "/__MACOSX/" in f"/{name}/"


class Names:
    """File names as people read them: decoded, and in Unicode's composed form (NFC).

    `é` is one character on most systems and two on macOS, so that one name has two forms.

    Args:
        names: of all files and folders.
        encoding: of those that are not UTF-8; None: guessed.
        old: the encoding to fall back on.
        says_utf8: whether those that are UTF-8 are so for sure. Otherwise all are taken for names
            in `encoding` if one is not UTF-8: `猫` in GBK is `è` in UTF-8.

    Attributes:
        note: which encoding was guessed, if one was.

    Raises:
        UserError: a name is not in `encoding`.
    """

    def __init__(
        self, names: Iterable[str], encoding: str | None, old: str, says_utf8: bool
    ) -> None:
        self.note = ""
        self._texts: dict[str, str] = {}  # of names that are not UTF-8
        parts = {part for name in names if not name.isascii() for part in name.split("/")}
        wrong = {part: _raw(part) for part in sorted(parts) if ESCAPED.search(part)}
        if not wrong:
            return
        others = () if says_utf8 else (part for part in parts if not part.isascii())
        every = wrong | {part: _raw(part) for part in others}
        guess = None if encoding else _guess([*every.values()])
        taken = every if encoding or guess else wrong
        encoding_used = encoding or guess or _guess([*wrong.values()]) or old
        for part, raw in taken.items():
            try:
                self._texts[part] = raw.decode(encoding_used)
            except UnicodeDecodeError:
                if part in wrong and encoding:
                    raise UserError(
                        f"the name {raw!r} is not in the encoding '{encoding}': set "
                        "dataset.encoding to another"
                    ) from None
                self._texts[part] = raw.decode("latin-1") if part in wrong else part
        if not encoding:
            self.note = (
                f"{len(taken):,} names are not UTF-8; they are read as {encoding_used}, such as "
                f"'{self._texts[next(iter(wrong))]}': set dataset.encoding if that is wrong"
            )

    def text(self, path: str) -> str:
        """A path as it is read."""
        if path.isascii():
            return path
        if self._texts:
            path = "/".join(self._texts.get(part, part) for part in path.split("/"))
        return unicodedata.normalize("NFC", path)


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _guess(names: list[bytes]) -> str | None:
    """The encoding that all names are most likely in, which short names do not tell for sure."""
    for encoding, fits in GUESSES:
        try:
            if fits("\n".join(name.decode(encoding) for name in names)):
                return encoding
        except UnicodeDecodeError:
            continue
    return None


def _is_common_chinese(text: str) -> bool:
    """Whether half of its characters, or more, are in GB 2312's rows of common ones, 16 to 55."""
    characters = re.findall("[\u4e00-\u9fff]", text)
    common = sum(0xB0 <= character.encode("gbk")[0] <= 0xD7 for character in characters)
    return _is_chinese(text) and 0 < len(characters) <= 2 * common


def _is_chinese(text: str) -> bool:
    return bool(re.fullmatch("[\0-\x7f\u3000-\u303f\u4e00-\u9fff\uff01-\uff5e]*", text))


def _is_japanese(text: str) -> bool:
    return _is_chinese(re.sub("[\u3040-\u30ff]", "", text))


def _is_cyrillic(text: str) -> bool:
    words = re.findall(r"[^\W\d_]+", text)
    return bool(re.fullmatch("[\0-\x7f\u0401-\u0451]*", text)) and all(
        word.isascii() or not re.search("[a-zA-Z]", word) for word in words
    )


def _is_katakana(text: str) -> bool:
    """Whether it is Japanese in which the syllables used for foreign words are many."""
    return _is_japanese(text) and len(re.findall("[^\0-\x7f]", text)) <= 2 * len(
        re.findall("[\u30a1-\u30fc]", text)
    )


def _is_latin(text: str) -> bool:
    """Whether it is of words with accents, `Bären`: a letter of theirs is rarely read as one.

    Every character is a letter where it should be, in words of one case, most of them ASCII's.
    """
    words = re.findall(r"[^\W\d_]+", text)
    accented = [word for word in words if not word.isascii()]
    plain = sum(character.isascii() for word in accented for character in word)
    return (
        bool(re.fullmatch("[\0-\x7f\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e]*", text))
        and all(word in (word.lower(), word.upper(), word.capitalize()) for word in accented)
        and 2 * plain >= sum(map(len, accented))
    )


GUESSES: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("cp932", _is_katakana),
    ("cp437", _is_latin),
    ("cp1252", _is_latin),
    ("cp850", _is_latin),
    ("cp852", _is_latin),
    ("cp1250", _is_latin),
    ("gbk", _is_common_chinese),
    ("cp866", _is_cyrillic),
    ("cp1251", _is_cyrillic),
    ("cp932", _is_japanese),
    ("big5", _is_chinese),
    ("gbk", _is_chinese),
)

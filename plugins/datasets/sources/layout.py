"""The part and the class of each image: what the names of the folders around it say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torchyard import UserError
from torchyard.plugins.datasets.sources.names import SUFFIXES, Names, is_hidden, is_image
from torchyard.plugins.datasets.sources.source import ImageSource

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TRAIN = "train"
# The last of these parts that are there is the test part, one before it the validation part.
OTHERS = ("validation", "evaluation", "test")
PART = re.compile(  # of a folder's name in lower case
    "(?P<before>.*[^a-z])?"
    "((?P<train>training|train)|(?P<validation>validation|valid|val|dev)"
    "|(?P<evaluation>evaluation|eval)|(?P<test>testing|test))"
    "(set)?(?P<after>[^a-z].*)?",
    re.DOTALL,
)
SAYS_NOTHING = re.compile("[^a-z]|data|set|images?|imgs?|pictures?|photos?")  # beside a part's name
MAY_BE_CLASSES = ("train", "valid", "dev")  # they mean something else, too
LISTED = 5  # names in a note

Classes = dict[str, list[str]]  # the names of the image files of each class


class Images(NamedTuple):
    """How many images lie directly in a folder, and how many in folders within it."""

    direct: int
    nested: int

    @property
    def in_folders(self) -> bool:
        """Whether they lie in folders within it, but for stray ones."""
        return self.nested > self.direct


class Layout:
    """The part and the class of each image file of a source.

    Args:
        source: the files.
        path: of the source, for messages.
        encoding: of names that are not UTF-8; None: guessed.

    Attributes:
        train, validation, test: the image files of each class; None where there is no such part.
        classes: sorted names of the training part's classes.
        notes: which files are left out, and what was assumed.
        names: as people read them.

    Raises:
        UserError: with every problem of the layout.
    """

    def __init__(self, source: ImageSource, path: Path, encoding: str | None = None) -> None:
        self._source, self._path = source, path
        self._images = [name for name in sorted(source.files) if is_image(name)]
        if not self._images:
            held = _listed(Counter([*map(_kind, source.files), *source.left_out.values()]))
            raise UserError(
                f"no images in {path}; it must hold class folders with images "
                f"({', '.join(SUFFIXES)})" + f". It holds {held}" * bool(held)
            )
        names = [*source.files, *source.folders]
        self.names = Names(names, encoding, source.old_names, source.says_utf8)
        self.notes = [self.names.note] if self.names.note else []
        if source.replaced:
            named = _shortened(map(self.names.text, sorted(source.replaced)))
            self.notes.append(
                f"{len(source.replaced):,} files are replaced by later ones of the same name in "
                f"the archive: {named}"
            )
        around, folders = self._without_wrapping()
        parts = self._parts(folders)
        self.validation: Classes | None = None
        self.test: Classes | None = None
        if TRAIN in parts and folders[parts[TRAIN]].in_folders:
            self._prefixes = [self._inside(around, parts[TRAIN])]
            self._find_other_parts(around, parts)
        else:
            self._refuse_parts_as_classes(around, folders, parts)
            self._note_equal_folders(around, folders)
            self._prefixes = [around]
        self.train = self._classes(self._prefixes[0])
        self.classes = sorted(self.train)
        if not self.train:
            count = len(self._images)
            raise UserError(f"{path}: all {count} images lie outside class folders")
        self._note_left_out()
        if problems := [*self._problems()]:
            raise UserError(problems)

    def images(self, part: Classes) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The names of a part's images and their class indices, sorted by class, then name."""
        import numpy as np

        present = [index for index, name in enumerate(self.classes) if name in part]
        lists = [sorted(part[self.classes[index]], key=self.names.text) for index in present]
        labels = np.repeat(np.array(present, dtype=np.int64), [len(names) for names in lists])
        return [name for names in lists for name in names], labels

    def _below(self, prefix: str) -> Iterator[tuple[str, str, str]]:
        """Of each image below a prefix: its name, the next folder, the path within that."""
        for image in self._images:
            if image.startswith(prefix):
                folder, slash, inner = image[len(prefix) :].partition("/")
                if slash:
                    yield image, folder, inner

    def _folders(self, prefix: str) -> dict[str, Images]:
        """The folders with images below a prefix."""
        total, nested = Counter[str](), Counter[str]()
        for _, folder, inner in self._below(prefix):
            total[folder] += 1
            nested[folder] += "/" in inner
        return {name: Images(total[name] - nested[name], nested[name]) for name in total}

    def _classes(self, prefix: str) -> Classes:
        classes: Classes = {}
        for image, folder, _ in self._below(prefix):
            classes.setdefault(self.names.text(folder), []).append(image)
        return classes

    def _without_wrapping(self) -> tuple[str, dict[str, Images]]:
        """The prefix of the folders that only hold everything, and the folders in them."""
        prefix = ""
        while True:
            folders = self._folders(prefix)
            [name, *others] = folders or [""]
            if not name or others or part_named(name) or not folders[name].in_folders:
                return prefix, folders
            prefix += f"{name}/"

    def _inside(self, around: str, part: str) -> str:
        """The prefix of a part's class folders; `train/train/` is one part, too."""
        prefix = f"{around}{part}/"
        folders = [*self._folders(prefix)]
        doubled = len(folders) == 1 and (
            folders[0] == part or part_named(folders[0]) == part_named(part)
        )
        return f"{prefix}{folders[0]}/" if doubled else prefix

    def _parts(self, folders: Iterable[str]) -> dict[str, str]:
        """The folders that are named as parts, by part.

        Those of the usual names, or with the same word beside the usual ones, such as `seg_train`
        and `seg_test`.

        Raises:
            UserError: one part has several folders.
        """
        groups: dict[str, dict[str, list[str]]] = {}
        for name in folders:
            if found := PART.fullmatch(name.strip().casefold()):
                beside = SAYS_NOTHING.sub("", f"{found['before'] or ''} {found['after'] or ''}")
                part = next(part for part in (TRAIN, *OTHERS) if found[part])
                groups.setdefault(beside, {}).setdefault(part, []).append(name)
        usual = groups.pop("", {})
        several = [group for group in groups.values() if len(group) > 1]
        if TRAIN not in usual and len(several) > 1:
            named = _quoted(name for group in several for names in group.values() for name in names)
            raise UserError(f"{self._path} holds several data sets in parts: {named}")
        parts = usual if TRAIN in usual or not several else several[0]
        for part, names in parts.items():
            if len(names) > 1:
                raise UserError(
                    f"{self._path}: {_quoted(names)} are all named as the {part} part; keep one"
                )
        return {part: name for part, [name] in parts.items()}

    def _find_other_parts(self, around: str, parts: dict[str, str]) -> None:
        found = []
        for part in OTHERS:
            if part not in parts:
                continue
            prefix = self._inside(around, parts[part])
            if classes := self._classes(prefix):
                self._prefixes.append(prefix)
                found.append((part, classes))
            else:
                self.notes.append(
                    f"'{parts[part]}' has no class folders, so its images have no labels"
                )
        if len(found) > len(("validation", "test")):
            named = _quoted(parts[part] for part, _ in found)
            raise UserError(
                f"{self._path}: there can be a validation and a test part beside "
                f"'{parts[TRAIN]}', not three: {named}"
            )
        if found:
            part, self.test = found.pop()
            if part != "test":
                self.notes.append(f"'{parts[part]}' is the test part, because there is no other")
        if found:
            self.validation = found[0][1]

    def _refuse_parts_as_classes(
        self, around: str, folders: dict[str, Images], parts: dict[str, str]
    ) -> None:
        alone = len(folders) > 1 and len(parts) == 1
        named = sorted(parts.values())
        if parts and not (alone and named[0].casefold() in MAY_BE_CLASSES):
            layout = ", ".join(f"{part}/CLASS" for part in named)
            missing = "" if TRAIN in parts else ", and 'train' beside them"
            raise UserError(
                f"{self._path}: {_quoted(named)} would be classes, but are names of the parts of a "
                f"data set. Parts have a folder for each class in them ({layout}){missing}; "
                "rename what is a class"
            )
        within = {inner.split("/")[0] for _, _, inner in self._below(around) if "/" in inner}
        parts = self._parts(within)
        if TRAIN in parts and within == {*parts.values()} and len(within) > 1:
            example = next(iter(folders))
            raise UserError(
                f"{self._path}: the parts lie in the class folders ({example}/{parts[TRAIN]}); "
                f"the class folders must lie in the parts ({parts[TRAIN]}/{example})"
            )

    def _note_equal_folders(self, around: str, folders: dict[str, Images]) -> None:
        """Say so where the classes may be one level below: `fold1/cat`, `fold2/cat`."""
        within: dict[str, set[str]] = {name: set() for name in folders}
        for _, folder, inner in self._below(around):
            within[folder].add(self.names.text(inner.rpartition("/")[0].partition("/")[0]))
        first, *others = within.values() or [set()]
        if others and len(first) > 1 and "" not in first and all(each == first for each in others):
            named = _shortened(map(self.names.text, within))
            self.notes.append(
                f"warning: the classes are {named}, and each of them has the folders "
                f"{_shortened(sorted(first))}: if those are the classes, name the folders around "
                "them train, val and test"
            )

    def _note_left_out(self) -> None:
        def is_used(name: str) -> bool:
            return is_image(name) and any(
                name.startswith(prefix) and "/" in name[len(prefix) :] for prefix in self._prefixes
            )

        left_out = [name for name in self._source.files if not is_used(name)]
        total = len(self._source.files) + len(self._source.left_out)
        if not left_out and not self._source.left_out:
            return
        kinds = Counter(_kind(name) for name in left_out if not is_image(name))
        kinds.update(self._source.left_out.values())
        what = [_listed(kinds)] if kinds else []
        if strays := [self.names.text(name) for name in left_out if is_image(name)]:
            named = _shortened(sorted(strays))
            many = "s" if len(strays) > 1 else ""
            what.append(f"{len(strays):,} image{many} outside the class folders ({named})")
        every = [self.names.text(name) for name in (*left_out, *self._source.left_out)]
        where = Counter(name.rpartition("/")[0] or "the top folder" for name in every)
        folders = (f"{name} {count:,}" for name, count in _most_first(where))
        self.notes.append(
            f"{len(every):,} of {total:,} files are not images of a class and are left out: "
            f"{', '.join(what)}; in {_shortened(folders)}"
        )

    def _problems(self) -> Iterator[str]:
        prefix = self._prefixes[0]
        for folder in sorted(self._source.folders):
            name = folder[len(prefix) :]
            if not folder.startswith(prefix) or not name or "/" in name or is_hidden(folder):
                continue
            if self.names.text(name) not in self.train:
                yield f"the class folder {self._path}/{folder} holds no images"
        for part, classes in (("validation", self.validation), ("test", self.test)):
            if unknown := sorted({*(classes or ())} - {*self.train}):
                yield (
                    f"{self._path}: classes of the {part} part are not in the training part: "
                    + ", ".join(unknown)
                )
        if len(self.classes) == 1:
            yield (
                f"{self._path}: there is only one class with images, '{self.classes[0]}'; "
                "a classifier needs two"
            )


def part_named(name: str) -> str | None:
    """Which part a folder with one of the usual names is."""
    found = PART.fullmatch(name.strip().casefold())
    if not found or found["before"] or found["after"]:
        return None
    return next(part for part in (TRAIN, *OTHERS) if found[part])


def _kind(name: str) -> str:
    """What a file is that is no image: `.txt`, hidden, or without a suffix."""
    if is_hidden(name):
        return "hidden"
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem else "without a suffix"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _listed(counts: Counter[str]) -> str:
    """`3 .txt, 1 .db`."""
    return _shortened(f"{count:,} {name}" for name, count in _most_first(counts))


def _most_first(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _shortened(words: Iterable[str]) -> str:
    words = list(words)
    more = [f"and {len(words) - LISTED:,} more"] if len(words) > LISTED else []
    return ", ".join(words[:LISTED] + more)

"""The evaluation's text: six public-domain novels in the Debian package r-cran-janeaustenr.

Nothing of them is in this project. The package keeps them as R objects in a lazy-load database
(``data/Rdata.rdx`` and ``.rdb``), which this module reads without R: an index of (offset, length),
and per object a 4-byte length, a compression mark and R's XDR serialisation.

The folder is looked for in ``PAGEDKV_NOVELS`` (the package's ``data`` folder), where the package
installs it (``apt-get install r-cran-janeaustenr`` brings R along), and in the user's cache, where
``download()`` unpacks the package without installing anything (:mod:`.debian`).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from .debian import unpacked

#: Objects in the package, in order of publication.
NOVELS = (
    "sensesensibility",
    "prideprejudice",
    "mansfieldpark",
    "emma",
    "northangerabbey",
    "persuasion",
)
_PACKAGE_DATA = Path("usr/lib/R/site-library/janeaustenr/data")


class _Xdr:
    """The part of R's XDR serialisation (versions 2 and 3) that character data uses."""

    _NIL, _REF, _ALTREP = 254, 255, 238
    _SYMBOL, _PAIRLIST, _CHAR, _LOGICAL, _INTEGER, _REAL, _STRINGS, _LIST = (
        1,
        2,
        9,
        10,
        13,
        14,
        16,
        19,
    )

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 2
        self._references: list[Any] = []
        if data[:2] != b"X\n":
            raise ValueError("not an XDR serialisation")
        version = self._int()
        self._at += 8
        if version == 3:
            self._at += 4 + struct.unpack_from(">i", data, self._at)[0]

    def _int(self) -> int:
        value = struct.unpack_from(">i", self._data, self._at)[0]
        self._at += 4
        return int(value)

    def _array(self, code: str) -> list[Any]:
        n = self._int()
        values = list(struct.unpack_from(f">{n}{code}", self._data, self._at))
        self._at += struct.calcsize(f">{n}{code}")
        return values

    def read(self) -> Any:
        """The next object: str, list, dict of a named list, or None."""
        flags = self._int()
        kind, has_attributes, has_tag = flags & 0xFF, flags >> 9 & 1, flags >> 10 & 1
        value: Any
        if kind == self._NIL:
            return None
        if kind == self._REF:
            return self._references[(flags >> 8) - 1]
        if kind == self._SYMBOL:
            value = self.read()
            self._references.append(value)
            return value
        if kind == self._PAIRLIST:
            if has_attributes:
                self.read()
            tag = self.read() if has_tag else None
            first = self.read()
            rest = self.read()
            return {tag: first, **(rest or {})}
        if kind == self._CHAR:
            n = self._int()
            if n < 0:
                return None
            value = self._data[self._at : self._at + n].decode("utf-8", "replace")
            self._at += n
            return value
        if kind in (self._LOGICAL, self._INTEGER):
            value = self._array("i")
        elif kind == self._REAL:
            value = self._array("d")
        elif kind in (self._STRINGS, self._LIST):
            value = [self.read() for _ in range(self._int())]
        else:
            raise ValueError(f"R object type {kind} is not supported")
        if has_attributes:
            names = (self.read() or {}).get("names")
            if kind == self._LIST and names:
                return dict(zip(names, value))
        return value


def _decompress(block: bytes) -> bytes:
    """An object of the database: 4-byte size, then zlib, or a mark and bzip2 / xz / nothing."""
    mark, rest = block[4:5], block[5:]
    if mark == b"2":
        return bz2.decompress(rest)
    if mark == b"Z":
        return lzma.decompress(
            rest, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}]
        )
    if mark == b"0":
        return rest
    return zlib.decompress(block[4:])


def _folders() -> list[Path]:
    given = os.environ.get("PAGEDKV_NOVELS")
    return ([Path(given)] if given else []) + [Path("/") / _PACKAGE_DATA]


def download() -> Path:
    """Fetches and unpacks the package into the user's cache."""
    return unpacked("r-cran-janeaustenr") / _PACKAGE_DATA


def find() -> Path:
    """The data folder; downloads the package if it is nowhere. FileNotFoundError otherwise."""
    for folder in _folders():
        if (folder / "Rdata.rdx").is_file():
            return folder
    try:
        return download()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "the novels were not found: apt-get install r-cran-janeaustenr, or"
            " set PAGEDKV_NOVELS to its data folder"
        ) from error


def read_novel(name: str, folder: Path | None = None) -> str:
    """The text of one novel, lines joined as printed."""
    folder = folder or find()
    index = _Xdr(_gunzip((folder / "Rdata.rdx").read_bytes())).read()
    if name not in index["variables"]:
        raise ValueError(f"{name!r} is not one of {', '.join(index['variables'])}")
    offset, length = (int(x) for x in index["variables"][name])
    with open(folder / "Rdata.rdb", "rb") as file:
        file.seek(offset)
        block = file.read(length)
    lines = _Xdr(_decompress(block)).read()
    return "\n".join(line or "" for line in lines) + "\n"


def _gunzip(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else zlib.decompress(data)


def body(name: str, folder: Path | None = None) -> str:
    """A novel from its first chapter on, without title page, lines of a paragraph joined."""
    text = read_novel(name, folder)
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    for i, paragraph in enumerate(paragraphs):
        if paragraph.upper().startswith("CHAPTER") and len(paragraph) < 40:
            paragraphs = paragraphs[i:]
            break
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)

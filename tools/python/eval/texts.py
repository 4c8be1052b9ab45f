"""Texts of several genres for the evaluation, none of them part of this project.

| genre | from |
|---|---|
| novel | Jane Austen: r-cran-janeaustenr (:mod:`.novels`) |
| satire | Ambrose Bierce, The Devil's Dictionary: dict-devil |
| essay | An Anarchist FAQ, several authors: anarchism |
| scripture | King James Bible: bible-kjv, bible-kjv-text |
| law | licences: /usr/share/common-licenses of base-files |
| manual | Debian Policy: debian-policy |
| code | the running Python's standard library |

Debian's packages are unpacked into the user's cache (:mod:`.debian`). A text is named GENRE/NAME.
"""

from __future__ import annotations

import gzip
import html
import re
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

from . import novels
from .debian import unpacked

_DOC = Path("usr/share/doc")


def _paragraphs(text: str) -> str:
    """Lines of a paragraph joined, paragraphs apart."""
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(part for part in parts if part)


def _satire(name: str) -> str:
    file = unpacked("dict-devil") / "usr/share/dictd" / f"{name}.dict.dz"
    text = gzip.decompress(file.read_bytes()).decode("utf-8", "replace")
    return _paragraphs(text[text.index("ABSOLUTE, adj.") :])


def _essay(name: str) -> str:
    page = (unpacked("anarchism") / _DOC / "anarchism/html" / f"{name}.html").read_text(
        "utf-8", "replace"
    )
    page = re.sub(r"(?is)<(script|style|head).*?</\1>", " ", page)
    page = re.sub(r"(?i)</?(p|h\d|blockquote|li|br)\b[^>]*>", "\n\n", page)
    return _paragraphs(html.unescape(re.sub(r"<[^>]*>", " ", page)))


def _scripture(name: str) -> str:
    program = unpacked("bible-kjv") / "usr/bin/bible"
    run = subprocess.run(
        [str(program), "-f", "-l", "9999", name],
        cwd=unpacked("bible-kjv-text") / "usr/lib",
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    verses = (line.partition(" ")[2] for line in run.stdout.splitlines())
    return "\n".join(verse for verse in verses if verse) + "\n"


def _law(name: str) -> str:
    return _paragraphs(Path("/usr/share/common-licenses", name).read_text("utf-8", "replace"))


def _manual(name: str) -> str:
    file = unpacked("debian-policy") / _DOC / "debian-policy" / f"{name}.txt.gz"
    text = gzip.decompress(file.read_bytes()).decode("utf-8", "replace")
    return text[len(text) // 8 :]  # beyond the table of contents


def _code(name: str) -> str:
    return Path(sysconfig.get_path("stdlib"), f"{name}.py").read_text("utf-8")


_READERS: dict[str, Callable[[str], str]] = {
    "novel": novels.body,
    "satire": _satire,
    "essay": _essay,
    "scripture": _scripture,
    "law": _law,
    "manual": _manual,
    "code": _code,
}
#: The evaluation's texts, two per genre where there are two.
TEXTS = (
    "novel/persuasion",
    "novel/emma",
    "satire/devil",
    "essay/secA2",
    "scripture/gen1:1-gen12:20",
    "scripture/rom1:1-rom16:27",
    "law/GPL-3",
    "law/MPL-1.1",
    "manual/policy",
    "code/argparse",
    "code/tarfile",
)


def read(name: str) -> str:
    """A text by name; ValueError for a genre that is not known, FileNotFoundError with what to
    install for a text that is nowhere."""
    genre, _, rest = name.partition("/")
    if genre not in _READERS or not rest:
        raise ValueError(f"{name!r} is not GENRE/NAME with a genre of {', '.join(_READERS)}")
    return _READERS[genre](rest)

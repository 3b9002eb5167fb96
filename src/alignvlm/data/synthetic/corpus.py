"""Real text and tables for rendering pages: offline, and nothing is copied here.

Passages come from the long descriptions and licences of the package's own dependencies; tables from
the standard library and from data files that dependencies carry. Users add their own with
:func:`passages_from` and :func:`table_from_csv`.
"""

from __future__ import annotations

import calendar
import csv
import encodings.aliases
import errno
import functools
import html.entities
import http
import importlib.util
import io
import mimetypes
import os
import re
import signal
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from PIL import ImageColor

from ...errors import DataError

MIN_CHARS, MAX_CHARS = 60, 600
"""Length of a passage, in characters."""


def words(text: str, separator: str | None = None) -> tuple[str, ...]:
    """A list of words written as one string."""
    return tuple(text.split(separator))


# Fixed, so that what else is installed on a machine does not change the corpus.
_DISTRIBUTIONS = words(
    "accelerate anyio certifi charset-normalizer click datasets dill filelock fsspec hf-xet "
    "huggingface_hub idna jaxtyping Jinja2 markdown-it-py MarkupSafe matplotlib mpmath "
    "multiprocess networkx numpy packaging pandas peft pillow psutil pyarrow pydantic Pygments "
    "pypdfium2 python-dateutil PyYAML regex requests rich safetensors setuptools sympy "
    "tokenizers torch tqdm transformers typer typing_extensions tzdata urllib3 xxhash"
)
_LICENCE = re.compile(r"licen[cs]e|copying|notice", re.IGNORECASE)
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u00a0\u2026", "''\"\"-- .")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z0-9])|(?<=[a-z)\]][.!?])(?=[A-Z])")


@dataclass(frozen=True)
class Table:
    """A table of text: ``header`` of C cells and ``rows`` of C cells each."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""


# ---------------------------------------------------------------------------------------- passages


@functools.cache
def builtin_passages() -> tuple[str, ...]:
    """Clean English paragraphs of 60 to 600 characters from installed dependencies.

    Deterministic for a given set of installed versions: sorted by distribution, no duplicates.
    """
    found: dict[str, None] = {}
    for name in sorted(_DISTRIBUTIONS, key=str.lower):
        for text in _distribution_texts(name):
            for paragraph in re.split(r"\n\s*\n", _without_markup(text)):
                for passage in _group(re.sub(r"\s+", " ", paragraph).strip()):
                    if _is_prose(passage):
                        found[passage] = None
    if not found:
        raise DataError("render: no text found in installed packages: set text_file to a .txt file")
    return tuple(found)


def _distribution_texts(name: str) -> Iterator[str]:
    """The long description and the licence texts of a distribution; nothing if it is missing."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return
    yield distribution.read_text("METADATA") or ""
    for file in sorted(distribution.files or (), key=str):
        if _LICENCE.search(file.name) and not file.name.endswith((".py", ".pyc")):
            try:
                yield file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue


def _without_markup(text: str) -> str:
    """Drop code, tables, headings and badges of Markdown or reST; unwrap links and emphasis."""
    text = text.translate(_QUOTES).replace("\r\n", "\n")
    text = re.sub(r"```.*?(```|\Z)", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]\[]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^>]*>`_+", r"\1", text)
    text = re.sub(r"\*\*([^*\n]+)\*\*", r"\1", text)
    # list items are prose too: each becomes a paragraph
    text = re.sub(r"^ {0,3}(?:[-*+]|\(?\w{1,2}[.)]) +", "\n", text, flags=re.MULTILINE)
    return text


def _is_prose(text: str) -> bool:
    """Whether a passage reads as sentences: no code, addresses or markup left."""
    if not re.fullmatch(r"[A-Za-z0-9 .,;:!?'\"()/%&$+-]+", text):
        return False
    if not re.match(r"[\"(]?[A-Z]", text) or text[-1] not in ".!?":
        return False
    if re.search(r"www\.|\.(com|org|io|net|py|md|dev)\b|--|\.\. |\$|//|\w\(|\w\.\w+\.\w", text):
        return False
    letters = sum(c.isalpha() or c == " " for c in text)
    return letters >= 0.92 * len(text) and len(text.split()) >= 9


def _group(text: str) -> Iterator[str]:
    """Cut one paragraph into passages of whole sentences, 60 to 600 characters each."""
    passage = ""
    for sentence in _SENTENCE_END.split(text):
        if len(passage) + 1 + len(sentence) <= MAX_CHARS:
            passage = f"{passage} {sentence}".strip()
            continue
        if len(passage) >= MIN_CHARS:
            yield passage
        while len(sentence) > MAX_CHARS:  # one endless sentence: cut between words
            cut = sentence.rfind(" ", MIN_CHARS, MAX_CHARS + 1)
            cut = MAX_CHARS if cut < 0 else cut
            yield sentence[:cut]
            sentence = sentence[cut:].strip()
        passage = sentence
    if len(passage) >= MIN_CHARS:
        yield passage


def passages_from(path: Path) -> tuple[str, ...]:
    """Split a text file into passages of whole sentences, 60 to 600 characters each.

    Blank lines and lines of over 200 characters separate paragraphs; shorter lines are joined.

    Raises:
        DataError: the file cannot be read as UTF-8, or holds no passage.
    """
    path = Path(path)
    text = _read(path)
    paragraphs: list[str] = [""]
    for line in text.splitlines():
        line = re.sub(r"\s+", " ", line).strip()
        if not line or len(line) > 200:
            paragraphs += [line, ""]
        else:
            paragraphs[-1] = f"{paragraphs[-1]} {line}".strip()
    passages = tuple(dict.fromkeys(p for text in paragraphs if text for p in _group(text)))
    if not passages:
        raise DataError(f"{path}: no passage of at least {MIN_CHARS} characters of text")
    return passages


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


# ------------------------------------------------------------------------------------------ tables


def table_from_csv(path: Path, *, delimiter: str = ",", title: str = "") -> Table:
    r"""Read a table whose first row is the header.

    Quotes are escaped with a backslash, as in WikiTableQuestions. With ``delimiter="#"`` (TabFact)
    quotes have no meaning. Ragged rows are padded with empty cells, white space is normalised.

    Raises:
        DataError: names the file, and the row (1 is the header) where there is one.
    """
    path = Path(path)
    text = _read(path)
    plain = delimiter == "#"
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
        escapechar=None if plain else "\\",
        doublequote=False,
        strict=True,
    )
    rows: list[tuple[str, ...]] = []
    try:
        for cells in reader:
            if cells:
                rows.append(tuple(re.sub(r"\s+", " ", cell).strip() for cell in cells))
    except csv.Error as error:
        raise DataError(
            f"{path}: row {len(rows) + 1} (line {reader.line_num}) is not valid csv: {error}"
        ) from None
    if len(rows) < 2:
        raise DataError(f"{path}: row {len(rows) + 1}: expected a header and at least one row")
    return _table(rows[0], rows[1:], title)


def _table(header: Iterable[object], rows: Iterable[Iterable[object]], title: str) -> Table:
    """Build a table of strings, all rows padded to the widest."""
    lines = [tuple(str(cell) for cell in row) for row in (header, *rows)]
    columns = max(map(len, lines))
    padded = tuple(line + ("",) * (columns - len(line)) for line in lines)
    return Table(padded[0], padded[1:], title)


@functools.cache
def builtin_tables() -> tuple[Table, ...]:
    """Real tables found offline: the standard library's, Pillow's, tzdata's and matplotlib's."""
    chars = [chr(c) for c in (*range(0x21, 0x7F), *range(0x3A3, 0x3CA))]
    default_types = mimetypes.MimeTypes(()).types_map[1]  # never the machine's own mime.types
    errors = [(name, code, os.strerror(code)) for code, name in sorted(errno.errorcode.items())]
    # getrgb, not the colormap's values: Pillow caches results there, so they change in type
    colors = [(name, ImageColor.getrgb(name)[:3]) for name in sorted(ImageColor.colormap)]
    signals = [(s.name, int(s), signal.strsignal(s) or "") for s in signal.Signals]
    tables = [
        _table(
            ("Code", "Phrase", "Description"),
            ((s.value, s.phrase, s.description) for s in http.HTTPStatus),
            "HTTP status codes",
        ),
        _table(("Signal", "Number", "Meaning"), signals, "Signals"),
        _table(("Error", "Number", "Meaning"), errors, "Errors"),
        _table(("Extension", "Media type"), sorted(default_types.items()), "Media types"),
        _table(("Alias", "Encoding"), sorted(encodings.aliases.aliases.items()), "Encodings"),
        _table(
            ("Entity", "Code point", "Hex"),
            ((n, c, f"U+{c:04X}") for n, c in sorted(html.entities.name2codepoint.items())),
            "HTML entities",
        ),
        _table(
            ("Code", "Name", "Category"),
            (
                (f"U+{ord(c):04X}", unicodedata.name(c).title(), unicodedata.category(c))
                for c in chars
            ),
            "Unicode characters",
        ),
        _table(
            ("Colour", "Red", "Green", "Blue", "Hex"),
            ((n, *rgb, "#{:02X}{:02X}{:02X}".format(*rgb)) for n, rgb in colors),
            "Colours",
        ),
    ]
    for year in range(1990, 2031, 4):
        months = [(m, *calendar.monthrange(year, m)) for m in range(1, 13)]
        rows = [(MONTHS[m - 1], MONTHS[m - 1][:3], days, _DAYS[day]) for m, day, days in months]
        tables.append(_table(("Month", "Short", "Days", "First day"), rows, f"Calendar {year}"))
    return (*tables, *_tzdata_tables(), *_matplotlib_tables())


# not calendar.month_name: that one follows the machine's language
MONTHS = words(
    "January February March April May June July August September October November December"
)
_DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")


def package_folder(name: str) -> Path | None:
    """Folder of an installed package without importing it; ``None`` if it is not installed."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _tab_rows(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


def _tzdata_tables() -> list[Table]:
    folder = package_folder("tzdata")
    countries = folder / "zoneinfo" / "iso3166.tab" if folder else None
    zones = folder / "zoneinfo" / "zone.tab" if folder else None
    if countries is None or zones is None or not (countries.is_file() and zones.is_file()):
        return []
    names = dict(_tab_rows(countries))
    places = [
        (row[2].split("/")[-1].replace("_", " "), names.get(row[0], row[0]), row[0], row[2])
        for row in _tab_rows(zones)
    ]
    return [
        _table(("Country", "Code"), ((n, c) for c, n in names.items()), "Country codes"),
        _table(("City", "Country", "Code", "Time zone"), places, "Time zones"),
    ]


def _matplotlib_tables() -> list[Table]:
    folder = package_folder("matplotlib")
    tables = []
    for name, title in (("msft.csv", "MSFT"), ("Stocks.csv", "Monthly stock prices")):
        path = folder / "mpl-data" / "sample_data" / name if folder else None
        if path is None or not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = list(csv.reader(line for line in lines if line and not line.startswith("#")))
        # fifteen digits after the point are noise on a page
        tables.append(_table(rows[0], ([_round(cell) for cell in row] for row in rows[1:]), title))
    return tables


def _round(cell: str) -> str:
    return f"{float(cell):.2f}" if re.fullmatch(r"-?\d+\.\d{3,}", cell) else cell

"""Tables of strings, as plain text of bounded width and as Markdown. What files say is shown, never interpreted."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.foundation.progress import one_line

WIDTH = 120
WIDEST_NAME = 32  # of the cells of leading columns, in text
GAP = "  "
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#~"})


@dataclass(frozen=True, kw_only=True)
class Block:
    """A table, or only lines of text where it has no header.

    Attributes:
        header, rows: cells; a line break in a header begins another line of it.
        leading: how many first columns name a row; they are repeated where a table is wrapped, without the rows that
        have nothing in that part.
        lines: below the table.
    """

    title: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    leading: int = 1
    lines: Sequence[str] = field(default=())


def as_text(blocks: Sequence[Block]) -> str:
    """Plain text of WIDTH columns at most, as far as single words and cells allow."""
    return "\n\n".join("\n".join(_text_lines(block)) for block in blocks) + "\n"


def as_markdown(blocks: Sequence[Block]) -> str:
    """Markdown with pipe tables."""
    return "\n\n".join("\n".join(_markdown_lines(block)) for block in blocks) + "\n"


def width_of(text: str) -> int:
    """Columns of a terminal that a printable text takes: two for wide characters, none for combining ones."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def shortened(text: str, width: int) -> str:
    """A text in so many columns, its middle left out where it is longer."""
    text = one_line(text)
    if width_of(text) <= width:
        return text
    head, tail = text[: width // 2], text[-(width - width // 2 - 1) :]
    while width_of(head) + width_of(tail) + 1 > width:
        head, tail = (head[:-1], tail) if width_of(head) >= width_of(tail) else (head, tail[1:])
    return f"{head}…{tail}"


def _text_lines(block: Block) -> list[str]:
    lines = [*_wrapped(block.title)] if block.title else []
    if block.header:
        for columns in _fitting(block):
            lines += ["", *_grid(block, columns)] if len(lines) > 1 else _grid(block, columns)
    for line in block.lines:
        lines += _wrapped(line)
    return lines


def _wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(one_line(line), WIDTH, initial_indent="", subsequent_indent=f"{indent}    ") or [""]


def _cells(block: Block, column: int) -> list[str]:
    """The cells of a column, its header's lines first, each short enough."""
    header = block.header[column].split("\n")
    texts = [*header, *(row[column] for row in block.rows)]
    return [shortened(text, WIDEST_NAME if column < block.leading else WIDTH // 2) for text in texts]


def _fitting(block: Block) -> list[list[int]]:
    """The columns in parts, each as wide as fits; every part begins with the leading ones."""
    widths = [max(map(width_of, _cells(block, column))) for column in range(len(block.header))]
    fixed = sum(widths[: block.leading]) + len(GAP) * (block.leading - 1)
    parts: list[list[int]] = [[]]
    taken = fixed
    for column in range(block.leading, len(widths)):
        if parts[-1] and taken + len(GAP) + widths[column] > WIDTH:
            parts.append([])
            taken = fixed
        parts[-1].append(column)
        taken += len(GAP) + widths[column]
    return [[*range(block.leading), *part] for part in parts]


def _grid(block: Block, columns: Sequence[int]) -> list[str]:
    high = max(block.header[column].count("\n") for column in columns) + 1
    drawn = []
    for column in columns:
        cells = _cells(block, column)
        header = block.header[column].count("\n") + 1
        cells[:header] = [*cells[:header], *[""] * (high - header)]
        width = max(map(width_of, cells))
        drawn.append([cell + " " * (width - width_of(cell)) for cell in cells])
    rows = [GAP.join(cells).rstrip() for cells in zip(*drawn, strict=True)]
    named = [any(row[column] for column in columns[block.leading :]) for row in block.rows]
    shown = [
        row for row, has_cells in zip(rows[high:], named, strict=True) if has_cells or len(columns) == block.leading
    ]
    return [*rows[:high], "-" * max(map(width_of, rows)), *shown]


def _markdown_lines(block: Block) -> list[str]:
    lines = [f"**{_escaped(block.title)}**", ""] if block.title else []
    if block.header:
        lines += [_row([_escaped(part) for part in cell.split("\n")] for cell in block.header)]
        lines += ["|" + " --- |" * len(block.header)]
        lines += [_row([_escaped(cell)] for cell in row) for row in block.rows]
        lines += [""] if block.lines else []
    lines += [f"- {_escaped(line.strip())}" for line in block.lines]
    return lines


def _row(cells: Iterable[Sequence[str]]) -> str:
    return "| " + " | ".join("<br>".join(parts) for parts in cells) + " |"


def _escaped(text: str) -> str:
    return one_line(text).translate(_MARKDOWN)

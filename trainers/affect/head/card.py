"""The model card of an exported head: its file, and its figures, renewed in place.

A card is Markdown for people; what a program knows better stands between two pairs of marks,
``<!-- figures -->`` and ``<!-- file -->``, and is written by the report and never by hand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def between(text: str, mark: str) -> str:
    """What stands between the marks.

    Raises:
        ValueError: the card has no such marks.
    """
    start, end = _place(text, mark)
    return text[start:end]


def _place(text: str, mark: str) -> tuple[int, int]:
    found = re.search(rf"<!-- {mark} -->\n(.*?)<!-- end {mark} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"the card lacks <!-- {mark} --> … <!-- end {mark} -->")
    return found.span(1)


def figures(table: dict[str, Any]) -> str:
    """The Markdown table of one model: value, 95 % interval, target."""
    lines = ["| figure | value | 95 % | target |", "|---|---|---|---|"]
    targets = table["targets"]
    for name, value in table["summary"].items():
        if value != value:
            continue
        low, high = table["intervals"].get(f"summary/{name}", (float("nan"),) * 2)
        wanted = ""
        if name in targets:
            wanted = f"{targets[name]:.2f}, {'met' if value >= targets[name] else '**missed**'}"
        cell = name.replace("|", r"\|")
        lines.append(f"| {cell} | {value:.3f} | {low:.3f} to {high:.3f} | {wanted} |")
    return "\n".join(lines) + "\n"


def write_figures(card: Path, table: dict[str, Any]) -> None:
    """Renew the card's hash and figures; nothing else of it changes."""
    text = card.read_text("utf-8")
    file = f"`model.onnx`, SHA-256 `{table['model']['sha256']}`; data `{table['data']}`.\n"
    for mark, fresh in (("file", file), ("figures", figures(table))):
        start, end = _place(text, mark)
        text = text[:start] + fresh + text[end:]
    part = card.with_name(f"{card.name}.part")
    part.write_text(text, "utf-8")
    part.replace(card)

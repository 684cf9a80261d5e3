"""How ``limbic monitor`` looks: a snapshot and a feed as lines that fit a terminal, or plain ones.

Every line is cut or wrapped to the width here, in terminal cells; what has no room in the height is
left out, the least important first. Text from outside is made harmless before it is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from brain.cli.monitor_feed import AXES, Feed, Item, TurnItem, ms_words, number, part
from brain.redact import printable

STYLES = {"": "", "good": "green", "warn": "yellow", "bad": "red", "dim": "dim"}
MAX_BAR = 20
NAME_CELLS = 10
FRAME_CELLS = 4  # of a panel: two borders, two spaces
FRAMES_FROM_HEIGHT = 9
LOWER_SHARE = 0.45  # of the lines inside, where both sections want more than there is
ROWS_OF_A_LINE = 2  # on the screen; the logs have it whole
# Names of Russell's circumplex (1980), by the signs of valence and tension.
FEELINGS = {
    (1, 1): "excited", (1, 0): "pleased", (1, -1): "at ease", (0, 1): "tense", (0, 0): "even",
    (0, -1): "slack", (-1, 1): "distressed", (-1, 0): "displeased", (-1, -1): "numb",
}  # fmt: skip
# What may be left out, most important first.
(PROBLEM, SCORES, FEELS, PROBLEMS, TURNS, AFFECT, LLM, FORESIGHT, LEVELS, PARTS,
 TONE) = range(11)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the upper section; ``share`` in [0, 1] is drawn as a bar where there is room."""

    rank: int
    name: str
    text: str
    share: float | None = None
    style: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One finished line on the screen."""

    rank: int
    text: str
    style: str = ""


def rows_of(snapshot: Mapping[str, Any]) -> list[Row]:
    """The upper section, in the order in which it is drawn. Anything missing or odd is left out."""
    affect, foresight = part(snapshot, "affect"), part(snapshot, "foresight")
    last = part(affect, "last")
    rows = [
        Row(PROBLEM, "problem", _plain(why), style="bad") for why in _list(snapshot, "problems")
    ]
    breaker = part(snapshot, "llm").get("breaker")
    if isinstance(breaker, str) and breaker != "closed":
        rows.append(Row(PROBLEM, "problem", f"the breaker of the llm is {_plain(breaker)}",
                        style="bad"))  # fmt: skip
    for axis in AXES:
        if (value := number(last.get(axis))) is not None:
            rows.append(Row(SCORES, axis, f"{value:+.2f}", (value + 1) / 2))
    for name, level in part(snapshot, "hormones").items():
        if (value := number(level)) is not None:
            rows.append(Row(LEVELS, _plain(name), f"{value:.2f}", value))
    if last:
        rows.append(Row(FEELS, "feels", _feels(last)))
    if words := _turns(snapshot):
        style = "warn" if any(part(snapshot, "turns").get(s) for s in ("failed", "partial")) else ""
        rows.append(Row(TURNS, "turns", words, style=style))
    if words := _llm(part(snapshot, "llm")):
        rows.append(Row(LLM, "llm", words))
    if words := _side(affect):
        rows.append(Row(AFFECT, "affect", words))
    surprise = number(foresight.get("surprise"))
    heard = [f"surprise {surprise:.2f}"] if surprise is not None else []
    if heard := [*heard, *filter(None, [_side(foresight)])]:
        rows.append(Row(FORESIGHT, "foresight", " · ".join(heard)))
    if directive := part(snapshot, "behaviour").get("directive"):
        rows.append(Row(TONE, "tone", _plain(directive)))
    if words := _parts(part(snapshot, "sidecars")):
        rows.append(Row(PARTS, "parts", words))
    return rows


def plain_rows(snapshot: Mapping[str, Any]) -> list[str]:
    """The upper section for a pipe: a name and a value a line, no bars."""
    return [f"{row.name:<{NAME_CELLS}} {row.text}" for row in rows_of(snapshot)]


def frame(
    snapshot: Mapping[str, Any], feed: Feed, *, title: str, problem: str, empty: str,
    width: int, height: int, ascii_only: bool = False,
) -> Group:  # fmt: skip
    """Both sections in ``height`` lines of ``width`` columns, no more; all of them where the feed
    has enough. ``problem`` leads the upper section, ``empty`` stands in an empty lower one."""
    framed = height >= FRAMES_FROM_HEIGHT
    inside = max(1, width - FRAME_CELLS if framed else width)
    room = max(2, height - 4) if framed else height
    rows = rows_of(snapshot)
    if problem:
        rows = [Row(PROBLEM, "", _plain(problem), style="bad"), *rows]
    wanted = upper(rows, width=inside, ascii_only=ascii_only) or [Line(0, "nothing yet", "dim")]
    below = lower(feed.items(), width=inside, room=room) or [Line(0, clip(empty, inside), "dim")]
    at_least = min(len(below), max(1, round(room * LOWER_SHARE)))
    above = fitting(wanted, room - at_least)
    below = lower(feed.items(), width=inside, room=room - len(above)) or below[:1]
    below += [Line(0, "")] * (room - len(above) - len(below))
    top, bottom = _text(above), _text(below)
    if not framed:
        return Group(*([top] if above else []), bottom)
    border = STYLES["bad"] if problem else ""
    return Group(
        Panel(top, title=Text(clip(title, inside)), border_style=border),
        Panel(bottom, title=Text("why")),
    )


def upper(rows: Sequence[Row], *, width: int, ascii_only: bool = False) -> list[Line]:
    """Rows as lines of at most ``width`` cells: scores beside levels, the others one after another;
    a problem may take two lines."""
    axes = [row for row in rows if row.rank == SCORES]
    levels = [row for row in rows if row.rank == LEVELS]
    grid = _grid(axes, levels, width, "#-" if ascii_only else "█░")
    lines: list[Line] = []
    for row in rows:
        if row.rank == PROBLEM:
            said = wrap(f"{row.name} {row.text}".strip(), width)
            lines += [Line(PROBLEMS if lines else PROBLEM, said[0], row.style),
                      *(Line(PROBLEMS, more, row.style) for more in said[1:])]  # fmt: skip
        elif row.rank in (SCORES, LEVELS):
            lines, grid = lines + grid, []
        else:
            lines.append(Line(row.rank, clip(f"{row.name:<{NAME_CELLS}} {row.text}", width),
                              row.style))  # fmt: skip
    return lines


def lower(items: Sequence[Item], *, width: int, room: int) -> list[Line]:
    """The newest items in ``room`` lines, oldest first; of the first turn perhaps the head alone.
    Events take one line each, and no more of them than leaves two thirds to turns that want it."""
    blocks = [(isinstance(item, TurnItem), _block(item, width)) for item in reversed(items)]
    of_turns = sum(len(block) for is_turn, block in blocks if is_turn)
    of_events = sum(len(block) for is_turn, block in blocks if not is_turn)
    for_events = min(of_events, room - min(of_turns, room - room // 3))
    left = {True: room - for_events, False: for_events}
    lines: list[Line] = []
    for is_turn, block in blocks:
        cut = block[: left[is_turn]]
        left[is_turn] -= len(cut)
        lines = cut + lines
    return lines


def _block(item: Item, width: int) -> list[Line]:
    parts = item.parts()
    if not isinstance(item, TurnItem):
        return [Line(0, clip(f"{item.prefix} {text}", width), style) for style, text in parts]
    head = Line(0, clip(f"{item.prefix} {parts[0][1]}", width), parts[0][0])
    return [head, *(Line(0, cut, style) for style, text in parts[1:]
                    for cut in wrap(f"  {text}", width))]  # fmt: skip


def fitting(lines: Sequence[Line], room: int) -> list[Line]:
    """As many lines as fit, in their order; of the least important the last goes first."""
    kept = list(lines)
    while len(kept) > max(0, room):
        worst = max(line.rank for line in kept)
        del kept[max(index for index, line in enumerate(kept) if line.rank == worst)]
    return kept


def feeling(scores: Mapping[str, Any]) -> str:
    """One word for a message's scores, and whether it is close or distant."""
    signs = [_sign(number(scores.get(axis)) or 0.0) for axis in ("valence", "tension")]
    word = FEELINGS[(signs[0], signs[1])]
    close = _sign(number(scores.get("intimacy")) or 0.0)
    return word + {1: ", close", 0: "", -1: ", distant"}[close]


def bar(share: float, cells: int, marks: str = "█░") -> str:
    """``share`` in [0, 1] as a bar of ``cells`` cells."""
    full = round(min(1.0, max(0.0, share)) * cells)
    return marks[0] * full + marks[1] * (cells - full)


def clip(text: str, width: int) -> str:
    """``text`` on one line of at most ``width`` cells."""
    line = printable(text).replace("\n", " ").replace("\t", " ")
    if cell_len(line) <= width:
        return line
    return set_cell_size(line, max(0, width - 1)).rstrip() + "…" * (width > 0)


def wrap(text: str, width: int, *, rows: int = ROWS_OF_A_LINE) -> list[str]:
    """``text`` in at most ``rows`` lines of ``width`` cells, broken at spaces where there are any;
    the last one is cut short. Spaces in front stay, and indent what follows."""
    margin = " " * (len(text) - len(text.lstrip(" ")))
    left, lines = _plain(text), list[str]()
    while left and len(lines) < rows - 1 and cell_len(margin + left) > width:
        head = chop_cells(left, max(1, width - len(margin)))[0]
        space = head.rfind(" ") if not left[len(head)].isspace() else len(head)
        head = head[:space] if space > 0 else head
        lines.append(margin + head)
        left = left[len(head) :].lstrip()
    return [*lines, margin + clip(left, max(1, width - len(margin)))]


def _grid(axes: Sequence[Row], levels: Sequence[Row], width: int, marks: str) -> list[Line]:
    """Scores in the first column, levels in two more; under each other where that is too wide."""
    axis_cells = max((cell_len(row.name) for row in axes), default=0)
    level_cells = min(NAME_CELLS, max((cell_len(row.name) for row in levels), default=0))
    half = -(-len(levels) // 2)
    columns = [list(axes), list(levels[:half]), list(levels[half:])]
    names = [axis_cells, level_cells, level_cells]
    used = [i for i, column in enumerate(columns) if column]
    values = [5, 4, 4]
    fixed = sum(names[i] + 1 + values[i] for i in used) + 2 * (len(used) - 1)
    spare = width - fixed
    if spare < 0:  # too narrow for columns
        text = " ".join(f"{row.name} {row.text}" for row in levels)
        found = [Line(SCORES, clip(f"{row.name:<{axis_cells}} {row.text}", width)) for row in axes]
        return found + ([Line(LEVELS, clip(text, width))] if levels else [])
    cells = min(MAX_BAR, spare // max(1, len(used)) - 1)
    lines: list[Line] = []
    for index in range(max((len(column) for column in columns), default=0)):
        cut = []
        for i in used:
            row = columns[i][index] if index < len(columns[i]) else None
            drawn = f"{bar(row.share or 0.0, cells, marks)} " if row and cells >= 3 else ""
            text = (
                f"{set_cell_size(row.name, names[i])} {drawn}{row.text:>{values[i]}}" if row else ""
            )
            size = names[i] + 1 + values[i] + (cells + 1 if cells >= 3 else 0)
            cut.append(set_cell_size(text, size))
        rank = SCORES if index < len(axes) else LEVELS
        lines.append(Line(rank, "  ".join(cut).rstrip()))
    return lines


def _feels(last: Mapping[str, Any]) -> str:
    words = [feeling(last) + (" (late)" if last.get("late") is True else "")]
    if (confidence := number(last.get("confidence"))) is not None:
        words.append(f"confidence {confidence:.2f}")
    if (ms := number(last.get("latency_ms"))) is not None:
        words.append(ms_words(ms))
    return " · ".join([*words, *map(_plain, _list(last, "tags"))])


def _turns(snapshot: Mapping[str, Any]) -> str:
    counts = part(snapshot, "turns")
    return " · ".join(
        f"{count:.0f} {_plain(status)}" for status, n in counts.items() if (count := number(n))
    )


def _llm(llm: Mapping[str, Any]) -> str:
    words = []
    times = part(llm, "ttft_ms")
    if number(times.get("n")):
        words.append("first token " + _percentiles(times))
    if rate := number(llm.get("tokens_per_s")):
        words.append(f"{rate:.0f} tokens/s")
    if retries := number(llm.get("retries")):
        words.append(f"retries {retries:.0f}")
    return " · ".join(words)


def _side(side: Mapping[str, Any]) -> str:
    """Latency and counts of one side model; empty for one that was never asked."""
    counts = {name: number(side.get(name)) for name in ("on_time", "late", "missed", "down")}
    if not any(counts.values()):
        return ""
    words = [_percentiles(part(side, "latency_ms"))]
    words += [f"{name.replace('_', ' ')} {count:.0f}" for name, count in counts.items()
              if count is not None]  # fmt: skip
    return " · ".join(words)


def _percentiles(times: Mapping[str, Any]) -> str:
    p50, p95 = (number(times.get(key)) or 0.0 for key in ("p50", "p95"))
    return f"p50 {ms_words(p50)} p95 {ms_words(p95)}"


def _parts(sidecars: Mapping[str, Any]) -> str:
    words = []
    for name, side in sidecars.items():
        if isinstance(side, Mapping):
            memory = number(side.get("rss_mb"))
            restarts = number(side.get("restarts"))
            words.append(
                f"{_plain(name)} {_plain(side.get('state'))}"
                + (f" {memory:.0f} MB" if memory else "")
                + (f", restarts {restarts:.0f}" if restarts else "")
            )
    return " · ".join(words)


def _text(lines: Sequence[Line]) -> Text:
    text = Text(no_wrap=True, overflow="crop")
    for index, line in enumerate(lines):
        text.append(("\n" if index else "") + line.text, STYLES[line.style])
    return text


def _list(of: Mapping[str, Any], key: str) -> list[str]:
    found = of.get(key)
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def _plain(value: Any) -> str:
    """Text that acts on no terminal, on one line."""
    return " ".join(printable(value).split()) if isinstance(value, str) else ""


def _sign(value: float) -> int:
    return 0 if abs(value) < 0.15 else (1 if value > 0 else -1)

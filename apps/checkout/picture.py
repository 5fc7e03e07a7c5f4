"""The comparison as a picture: SVG by hand, so that it needs nothing to be drawn with and can follow the reader's light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from apps.checkout.customers import Answer

WIDTH, HEIGHT = 900, 640
LEFT, RIGHT = 70, 876
RESPONSE = (92, 330)  # top and bottom of the upper panel
UNFINISHED = (420, 580)
FASTEST, SLOWEST = 0.001, 10.0
COLOURS = {"request-response": "rr", "event-driven": "ed"}

_STYLE = """
  .paper { fill: #ffffff; } text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
  .title { font-size: 15px; font-weight: 600; } .soft { fill: #656d76; font-size: 12px; }
  .grid { stroke: #d0d7de; stroke-width: 1; fill: none; } .band { fill: #f3d9d7; opacity: .6; }
  .rr { stroke: #d9730d; } .ed { stroke: #1a66d0; } .bad { stroke: #c62828; fill: none; stroke-width: 1.5; }
  .dots { stroke-width: 4; stroke-linecap: round; fill: none; opacity: .55; } .key { stroke-width: 8; stroke-linecap: round; }
  .curve { stroke-width: 2.2; fill: none; stroke-linejoin: round; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; } text { fill: #e6edf3; } .soft { fill: #9198a1; } .grid { stroke: #3d444d; } .band { fill: #5a2d30; }
    .rr { stroke: #f0a04b; } .ed { stroke: #6cb0ff; } .bad { stroke: #ff7b72; }
  }
"""


class Drawn(Protocol):
    """What the picture needs of a measurement."""

    style: str
    answers: list[Answer]
    began: float
    down: tuple[float, float]
    unfinished: list[tuple[float, int]]

    @property
    def failed(self) -> int: ...
    def response(self, part: float, *, during_outage: bool = False) -> float: ...


def draw(down: str, both: Sequence[Drawn]) -> str:
    """An SVG of two panels over time: how long customers waited, and how many orders were neither through nor undone."""
    end = max(max((at for at, _ in one.unfinished), default=1.0) for one in both)
    most = max(4, max(count for one in both for _, count in one.unfinished))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title">',
        f'<title id="title">Event-driven and request-response, measured while {down} is down for a while</title>',
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" class="paper"/>',
        *_band(down, both, end),
        *_response(both, end),
        *_unfinished(both, end, most),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _x(at: float, end: float) -> float:
    return LEFT + (RIGHT - LEFT) * max(0.0, min(1.0, at / end))


def _band(down: str, both: Sequence[Drawn], end: float) -> list[str]:
    """The time for which the service was away, in both panels."""
    start, back = _x(min(one.down[0] for one in both), end), _x(max(one.down[1] for one in both), end)
    rects = [
        f'<rect class="band" x="{start:.1f}" y="{top}" width="{back - start:.1f}" height="{bottom - top}"/>'
        for top, bottom in (RESPONSE, UNFINISHED)
    ]
    return [*rects, f'<text class="soft" x="{(start + back) / 2:.1f}" y="{RESPONSE[0] - 6}" text-anchor="middle">{down} is down</text>']


def _response(both: Sequence[Drawn], end: float) -> list[str]:
    top, bottom = RESPONSE
    decades = math.log10(SLOWEST / FASTEST)

    def y(seconds: float) -> float:
        return bottom - (bottom - top) * max(0.0, min(1.0, math.log10(max(seconds, 1e-9) / FASTEST) / decades))

    parts = [f'<text class="title" x="{LEFT}" y="30">What a customer waits for an answer</text>']
    for seconds, label in ((0.001, "1 ms"), (0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s")):
        parts.append(f'<path class="grid" d="M{LEFT} {y(seconds):.1f}H{RIGHT}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y(seconds) + 4:.1f}" text-anchor="end">{label}</text>')
    across = LEFT
    for one in both:
        taken = [a for a in one.answers if a.status in (200, 201, 409)]
        failed = [a for a in one.answers if a.status not in (200, 201, 409)]
        dots = "".join(f"M{_x(a.sent - one.began, end):.1f} {y(a.seconds):.1f}h0" for a in taken)
        parts.append(f'<path class="dots {COLOURS[one.style]}" d="{dots}"/>')
        crosses = "".join(f"M{_x(a.sent - one.began, end) - 3:.1f} {y(a.seconds) - 3:.1f}l6 6m0 -6l-6 6" for a in failed)
        if crosses:
            parts.append(f'<path class="bad" d="{crosses}"/>')
        numbers = f"{one.style}: p50 {_short(one.response(0.5))}, p99 {_short(one.response(0.99))}"
        parts.append(f'<path class="key {COLOURS[one.style]}" d="M{across + 4} 50h0"/><text x="{across + 14}" y="55">{numbers}</text>')
        across += 315
    failed_count = sum(one.failed for one in both)
    if failed_count:
        parts.append(f'<path class="bad" d="M{across} 47l6 6m0 -6l-6 6"/>')
        parts.append(f'<text x="{across + 14}" y="55">{failed_count} orders refused</text>')
    return parts


def _unfinished(both: Sequence[Drawn], end: float, most: int) -> list[str]:
    top, bottom = UNFINISHED

    def y(count: float) -> float:
        return bottom - (bottom - top) * count / (most * 1.08)

    parts = [
        f'<text class="title" x="{LEFT}" y="376">Orders neither carried through nor undone</text>',
        f'<text class="soft" x="{LEFT}" y="396">under way, or stuck: charged and not shipped, reserved and not sold</text>',
    ]
    step = _step(most)
    for count in range(0, most + 1, step):
        parts.append(f'<path class="grid" d="M{LEFT} {y(count):.1f}H{RIGHT}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y(count) + 4:.1f}" text-anchor="end">{count}</text>')
    parts += [
        f'<text class="soft" x="{_x(seconds, end):.1f}" y="{bottom + 20}" text-anchor="middle">{seconds} s</text>'
        for seconds in range(0, int(end) + 1, _step(int(end)))
    ]
    for one in both:
        points = [*one.unfinished, (end, one.unfinished[-1][1])] if one.unfinished else []
        line = "".join(f"{'L' if n else 'M'}{_x(at, end):.1f} {y(count):.1f}" for n, (at, count) in enumerate(points))
        parts.append(f'<path class="curve {COLOURS[one.style]}" d="{line}"/>')
    ends = ", ".join(f"{one.style} {one.unfinished[-1][1] if one.unfinished else 0}" for one in both)
    parts.append(f'<text class="soft" x="{RIGHT}" y="{bottom + 44}" text-anchor="end">left in the end: {ends}</text>')
    return parts


def _step(most: int) -> int:
    """A round distance for about five lines up to ``most``."""
    raw = max(1.0, most / 5)
    power = 10 ** math.floor(math.log10(raw))
    return int(next(step * power for step in (1, 2, 5, 10) if step * power >= raw))


def _short(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.0095 else f"{seconds * 1000:.1f} ms"

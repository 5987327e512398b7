"""Pictures of a report, as SVG that needs nothing else and is the same for the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 90, 34, 44
PARTS = (
    ("attributed_joules", "requests", "#0a7055"),
    ("overhead_joules", "overhead", "#b4540a"),
    ("idle_joules", "idle", "#8a959b"),
    ("other_joules", "other", "#d3dadd"),
)
_INTENSITY = "#5b3fa0"
_JOULES_PER_WH = 3600.0
_TICKS = 4


def hours_plot(hourly: Sequence[Mapping[str, Any]]) -> str:
    """Watt-hours of each hour, stacked by who owes them, and the grid's intensity as a line."""
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    totals = [sum(row[key] for key, _, _ in PARTS) / _JOULES_PER_WH for row in hourly]
    top = _round_up(max(totals, default=0.0))
    step = inner_w / max(len(hourly), 1)
    out = [_frame("Energy by hour, watt-hours, and the grid's intensity")]
    out += _axis(top, LEFT - 8, "end", "Wh")
    for at, row in enumerate(hourly):
        floor = 0.0
        for key, _, colour in PARTS:
            height = row[key] / _JOULES_PER_WH / top * inner_h
            y = TOP + inner_h - floor - height
            out.append(
                f'<rect x="{LEFT + at * step:.2f}" y="{y:.2f}" width="{max(step - 1, 0.5):.2f}" height="{height:.2f}"'
                f' fill="{colour}"/>'
            )
            floor += height
    out += _intensity(hourly, step, inner_h)
    out += _labels([row["hour"][5:16].replace("T", " ") for row in hourly], step)
    out += _legend([(label, colour) for _, label, colour in PARTS] + [("gCO2e/kWh", _INTENSITY)])
    return "\n".join([*out, "</svg>"])


def bars_plot(title: str, unit: str, bars: Sequence[tuple[str, float, float, float]]) -> str:
    """Horizontal bars with error bands: (label, value, low, high)."""
    row_h, left = 30, 150
    height = TOP + row_h * len(bars) + 14
    top = max((high for _, _, _, high in bars), default=0.0) or 1.0
    width = WIDTH - left - 110
    out = [_frame(title, height)]
    for at, (label, value, low, high) in enumerate(bars):
        y = TOP + at * row_h
        out.append(_text(left - 8, y + 17, label, "end"))
        out.append(f'<rect x="{left}" y="{y + 5}" width="{value / top * width:.2f}" height="16" fill="#0a7055"/>')
        x1, x2 = left + low / top * width, left + high / top * width
        out.append(f'<path d="M{x1:.2f} {y + 13}H{x2:.2f}M{x1:.2f} {y + 9}v8M{x2:.2f} {y + 9}v8" stroke="#1b2226"/>')
        out.append(_text(x2 + 6, y + 17, f"{value:.3g} {unit}", "start"))
    return "\n".join([*out, "</svg>"])


def _frame(title: str, height: int = HEIGHT) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" font-family="sans-serif"'
    return f'{head} font-size="12" fill="none">\n<title>{escape(title)}</title>\n{_text(LEFT, 16, title, "start")}'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#5c676d") -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _axis(top: float, x: float, anchor: str, unit: str, colour: str = "#5c676d") -> list[str]:
    inner_h = HEIGHT - TOP - BOTTOM
    out = []
    for tick in range(_TICKS + 1):
        y = TOP + inner_h * (1 - tick / _TICKS)
        out.append(_text(x, y + 4, f"{top * tick / _TICKS:.3g}{' ' + unit if tick == _TICKS else ''}", anchor, colour))
        if anchor == "end":
            out.append(f'<path d="M{LEFT} {y:.2f}H{WIDTH - RIGHT}" stroke="#d3dadd" stroke-width="0.5"/>')
    return out


def _intensity(hourly: Sequence[Mapping[str, Any]], step: float, inner_h: float) -> list[str]:
    known = [row["grams_per_kwh"] for row in hourly if row["grams_per_kwh"] is not None]
    if not known:
        return []
    top = _round_up(max(known))
    path, drawing = "", False
    for at, row in enumerate(hourly):
        grams = row["grams_per_kwh"]
        if grams is None:
            drawing = False
            continue
        x, y = LEFT + (at + 0.5) * step, TOP + inner_h * (1 - grams / top)
        path += f"{'L' if drawing else 'M'}{x:.2f} {y:.2f}" + ("" if drawing else "h0.01")
        drawing = True
    line = f'<path d="{path}" stroke="{_INTENSITY}" stroke-width="2" stroke-linecap="round"/>'
    return [line, *_axis(top, WIDTH - RIGHT + 8, "start", "g/kWh", _INTENSITY)]


def _labels(names: Sequence[str], step: float) -> list[str]:
    every = max(1, -(-len(names) // 8))
    y = HEIGHT - BOTTOM + 16
    return [_text(LEFT + (at + 0.5) * step, y, name, "middle") for at, name in enumerate(names) if at % every == 0]


def _legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    out, x = [], float(LEFT)
    for label, colour in entries:
        out.append(f'<rect x="{x:.2f}" y="{HEIGHT - 16}" width="10" height="10" fill="{colour}"/>')
        out.append(_text(x + 14, HEIGHT - 7, label, "start"))
        x += 26 + 7 * len(label)
    return out


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 10.0 ** (len(f"{value:.0f}") - 1) if value >= 1 else 1.0
    while power > value:
        power /= 10
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value)

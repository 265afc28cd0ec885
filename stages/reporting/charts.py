"""Charts as SVG, drawn with the page's own colours: classes `m0`, `m1`, ... are the methods."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

WIDTH = 760
COLORS = 8  # of methods; they begin anew after that
LINE = 14.0  # between the names at the ends of curves
Point = tuple[float, float, float, float]  # x, y, and the interval of y; not a number: none


def colour_class(number: int) -> str:
    return f"m{number % COLORS}"


def ranked(
    names: Sequence[str], cases: Sequence[str], dsc: Sequence[Sequence[float | None]], chief: int, measure: str = "DSC"
) -> Markup:
    """A dot per scan and method, the scans from the worst to the best by the method `chief`.

    Args:
        dsc: by method, then by scan.
    """
    order = [i for i, value in enumerate(dsc[chief]) if value is not None]
    order.sort(key=lambda i: dsc[chief][i])  # type: ignore[arg-type,return-value]
    if not order:
        return Markup("")
    height, left, right, top, bottom = 240, 44, 12, 14, 34
    low = _floor(min(v for row in dsc for v in row if v is not None))
    parts = [_axis(low, left, WIDTH - right, top, height - bottom, "DSC")]  # the figure's name says if it is estimated
    step = (WIDTH - right - left) / len(order)
    for number, of_run in enumerate(dsc):
        for place, case in enumerate(order):
            value = of_run[case]
            if value is None:
                continue
            x, y = left + (place + 0.5) * step, _y(value, low, top, height - bottom)
            size = 4 if number == chief else 2.8
            title = f"{cases[case]}, {names[number]}: {measure} {value:.3f}"
            dot = Markup(
                '<circle class="{} dot" data-case="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>'
            )
            parts.append(dot.format(colour_class(number), case, x, y, size, title))
    parts.append(_text(left, height - 10, "worst scan"))
    parts.append(_text(WIDTH - right, height - 10, "best scan", "end"))
    return _svg(height, parts, f"{measure} of every scan, from the worst to the best by {names[chief]}")


def boxes(names: Sequence[str], structures: Sequence[str], values: Sequence[Sequence[Sequence[float]]]) -> Markup:
    """A box per structure and method: quartiles and median, whiskers to the lowest and highest scan, a dot per scan.

    Args:
        values: by structure, by method, one a scan.
    """
    known = [v for of_structure in values for of_run in of_structure for v in of_run]
    if not known:
        return Markup("")
    row, gap, top, bottom = 15, 9, 8, 30
    longest = max(len(name) for name in structures)
    left, right = min(260, 24 + 7 * longest), 14
    height = top + bottom + len(structures) * (row * len(names) + gap)
    low = _floor(min(known))

    def x(value: float) -> float:
        return left + (value - low) / (1 - low) * (WIDTH - right - left)

    parts = []
    for tick in _ticks(low):
        parts.append(Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
            x(tick), top, height - bottom))  # fmt: skip
        parts.append(_text(x(tick), height - bottom + 16, f"{tick:g}", "middle"))
    y = float(top)
    for structure, of_structure in zip(structures, values, strict=True):
        parts.append(_text(left - 8, y + row * len(names) / 2 + 4, _short(structure, 34), "end", "name"))
        for number, of_run in enumerate(of_structure):
            middle = y + row / 2
            if of_run:
                quartiles = np.percentile(of_run, [0, 25, 50, 75, 100])
                a, b, c, d, e = (x(float(q)) for q in quartiles)
                label = (
                    f"{structure}, {names[number]}: median {quartiles[2]:.3f}, {quartiles[0]:.3f} to {quartiles[4]:.3f}"
                )
                parts.append(Markup(
                    '<g class="{}"><title>{}</title><line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{y}" y2="{y}"/>'
                    '<rect class="box" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="9" rx="2"/>'
                    '<line class="median" x1="{m:.1f}" x2="{m:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                    colour_class(number), label, a, e, b, middle - 4.5, max(d - b, 1), middle - 6, middle + 6,
                    y=f"{middle:.1f}", m=c))  # fmt: skip
                if len(of_run) <= 120:
                    parts += [Markup('<circle class="point" cx="{:.1f}" cy="{:.1f}" r="1.6"/>').format(x(v), middle)
                              for v in of_run]  # fmt: skip
                parts.append(Markup("</g>"))
            y += row
        y += gap
    parts.append(_text(WIDTH - right, height - 2, "DSC", "end"))
    return _svg(height, parts, "DSC of every structure by method, as boxes")


def against_time(
    names: Sequence[str], minutes: Sequence[float | None], dsc: Sequence[tuple[float, float, float]]
) -> Markup:
    """A dot per method: minutes to the last weights, and mean DSC with its interval."""
    shown = [(i, m) for i, m in enumerate(minutes) if m is not None and m > 0]
    if len(shown) < 2:
        return Markup("")
    height, left, right, top, bottom = 250, 44, 110, 14, 40
    lows = [value if math.isfinite(value) else dsc[i][0] for i, _ in shown for value in (dsc[i][1],)]
    low = _floor(min(lows))
    first, last = math.log10(min(m for _, m in shown) / 1.6), math.log10(max(m for _, m in shown) * 1.6)
    parts = [_axis(low, left, WIDTH - right, top, height - bottom, "DSC")]

    def x(value: float) -> float:
        return left + (math.log10(value) - first) / max(last - first, 1e-6) * (WIDTH - right - left)

    for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000):
        if first <= math.log10(tick) <= last:
            parts.append(_text(x(tick), height - bottom + 16, f"{tick:g}", "middle"))
    for i, m in shown:
        mean, lower, upper = dsc[i]
        y = _y(mean, low, top, height - bottom)
        if math.isfinite(lower) and math.isfinite(upper):
            parts.append(Markup('<line class="{} interval" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                colour_class(i), *(_y(end, low, top, height - bottom) for end in (lower, upper)), x=x(m)))  # fmt: skip
        parts.append(Markup('<circle class="{} dot" cx="{:.1f}" cy="{:.1f}" r="5"><title>{}</title></circle>').format(
            colour_class(i), x(m), y, f"{names[i]}: {m:.2g} min, DSC {mean:.3f}"))  # fmt: skip
        parts.append(_text(x(m) + 9, y + 4, _short(names[i], 16)))
    parts.append(_text((left + WIDTH - right) / 2, height - 6, "minutes to the last weights", "middle"))
    return _svg(height, parts, "Mean DSC of every method against its time, with 95 % intervals")


def lines(title: str, across: str, series: Sequence[tuple[str, Sequence[Point]]], *, up: str = "DSC") -> Markup:
    """Curves over numbers, such as rounds, with intervals where there are some."""
    points = [point for _, of_series in series for point in of_series]
    if not points:
        return Markup("")
    height, left, right, top, bottom = 250, 44, 150, 14, 40
    low = _floor(min(y for _, y, *ends in points for y in (y, *ends) if math.isfinite(y)))
    first, last = min(point[0] for point in points), max(point[0] for point in points)

    def x(value: float) -> float:
        return left + 8 + (value - first) / max(last - first, 1e-9) * (WIDTH - right - left - 16)

    def y(value: float) -> float:
        return _y(value, low, top, height - bottom)

    parts = [_axis(low, left, WIDTH - right, top, height - bottom, up)]
    for tick in sorted({point[0] for point in points}):
        parts.append(_text(x(tick), height - bottom + 16, f"{tick:g}", "middle"))
    for number, (_, of_series) in enumerate(series):
        path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value, *_ in of_series)
        parts.append(Markup('<polyline class="{} curve" points="{}"/>').format(colour_class(number), path))
        for at, _, lower, upper in of_series:
            if math.isfinite(lower) and math.isfinite(upper):
                place = x(at) + 3 * (number - (len(series) - 1) / 2)  # beside those of the other curves
                parts.append(
                    Markup('<line class="{} interval" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                        colour_class(number), y(lower), y(upper), x=place
                    )
                )
    ends = spread([y(of_series[-1][1]) for _, of_series in series], LINE)
    for (name, of_series), place in zip(series, ends, strict=True):
        parts.append(_text(x(of_series[-1][0]) + 12, place + 4, _short(name, 22)))
    parts.append(_text((left + WIDTH - right) / 2, height - 6, across, "middle"))
    return _svg(height, parts, title)


def spread(places: Sequence[float], least: float) -> list[float]:
    """Places moved downwards, as little as it takes, so that no two are nearer than `least` to one another."""
    moved, taken = list(places), -math.inf
    for index in sorted(range(len(places)), key=lambda i: places[i]):
        moved[index] = taken = max(places[index], taken + least)
    return moved


def _svg(height: float, parts: Sequence[Markup], title: str) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, title, Markup("").join(parts)
    )


def _axis(low: float, left: float, right: float, top: float, bottom: float, name: str) -> Markup:
    parts = [_text(left - 6, top - 3, name, "end")]
    for tick in _ticks(low):
        y = _y(tick, low, top, bottom)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(left, right, y=y))
        if tick < 1 or y > top + 6:
            parts.append(_text(left - 6, y + 4, f"{tick:g}", "end"))
    return Markup("").join(parts)


def _y(value: float, low: float, top: float, bottom: float) -> float:
    return bottom - (value - low) / (1 - low) * (bottom - top)


def _floor(value: float) -> float:
    """The lower end of an axis that ends at 1: a tenth, at most 0.9."""
    return max(0.0, min(0.9, math.floor(value * 10 - 0.2) / 10))


def _ticks(low: float) -> list[float]:
    step = 0.2 if 1 - low > 0.6 else 0.1 if 1 - low > 0.25 else 0.02
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 4) for k in range(first, round(1 / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"

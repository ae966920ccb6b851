"""The plot of ratios: a row each, a dot a turn, a bar at the median, a mark at the target.

Drawn by hand, as SVG: it needs no plotting library, and a change shows in a diff.
"""

import math
from collections.abc import Sequence
from html import escape

from benchmarks.harness import Figure

_LABELS, _WIDTH, _ROW, _TOP = 460, 420, 26, 34
_GOOD, _BAD, _PLAIN = "#1a7f37", "#cf222e", "#57606a"
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


def plot(figures: Sequence[Figure]) -> str:
    """Return an SVG of these ratios, on a logarithmic scale."""
    values = [v for f in figures for v in (*f.values, f.most or 1, f.least or 1)]
    low, high = math.log(min([0.5, *values])) - 0.1, math.log(max([2, *values])) + 0.1

    def x(value: float) -> float:
        return _LABELS + _WIDTH * (math.log(value) - low) / (high - low)

    height = _TOP + _ROW * len(figures) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABELS + _WIDTH + 70}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="{height}" fill="white"/>',
    ]
    for tick in _TICKS:
        if low < math.log(tick) < high:
            colour = "#8c959f" if tick == 1 else "#eaeef2"
            parts += [
                f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP - 8}" y2="{height - 8}" '
                f'stroke="{colour}"/>',
                f'<text x="{x(tick):.1f}" y="18" text-anchor="middle" fill="#57606a">'
                f"{tick:g}×</text>",
            ]
    for number, figure in enumerate(figures):
        y = _TOP + _ROW * (number + 0.5)
        colour = {"met": _GOOD, "MISSED": _BAD}.get(figure.verdict, _PLAIN)
        parts += [
            f'<text x="{_LABELS - 12}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(figure.what.replace('`', ''))}</text>",
            *(
                f'<circle cx="{x(v):.1f}" cy="{y:.1f}" r="3" fill="{colour}" opacity="0.35"/>'
                for v in figure.values
            ),
            f'<line x1="{x(figure.median):.1f}" x2="{x(figure.median):.1f}" y1="{y - 8:.1f}" '
            f'y2="{y + 8:.1f}" stroke="{colour}" stroke-width="3"/>',
            f'<text x="{_LABELS + _WIDTH + 8}" y="{y + 4:.1f}" fill="{colour}">'
            f"{figure.median:.2f}×</text>",
        ]
        for bound, arrow in ((figure.most, "◂"), (figure.least, "▸")):
            if bound is not None:
                parts.append(
                    f'<text x="{x(bound):.1f}" y="{y + 4:.1f}" text-anchor="middle" '
                    f'fill="#0969da">{arrow}</text>'
                )
    return "\n".join([*parts, "</svg>", ""])

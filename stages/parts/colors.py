"""Colours of classes, the same in pictures and in label tables."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

COLORS = ("#ff5a4f", "#35a7ff", "#5fe04c", "#ffd31a", "#c58bff", "#ff9d2e", "#2fe0cf", "#ff78c8")
_chosen: ContextVar[Sequence[str]] = ContextVar("chosen", default=())


@contextmanager
def chosen_colors(colors: Sequence[str]) -> Iterator[None]:
    """Within this, classes from 1 have these colours ("#rrggbb")."""
    before = _chosen.set(colors)
    try:
        yield
    finally:
        _chosen.reset(before)


def class_color(class_index: int) -> Any:
    """Colour of a class, from 1, as matplotlib takes it; neighbouring classes differ."""
    if class_index <= len(chosen := _chosen.get()):
        return chosen[class_index - 1]
    if class_index <= len(COLORS):
        return COLORS[class_index - 1]
    # Golden-ratio steps round the hues.
    return colorsys.hsv_to_rgb(class_index * 0.618034 % 1, 0.6 + 0.3 * (class_index % 2), 1.0)

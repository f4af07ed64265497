"""Latency tables and predictors that this project measured itself, each a folder with a card.

``lb.load_predictor(name)`` loads one; ``latbench.card.Card`` says what is in it.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Names of the bundled tables and predictors, sorted."""
    return sorted(card.parent.name for card in _HERE.glob("*/card.json"))


def path(name: str) -> Path:
    """The folder of a bundled table. Raises :class:`KeyError` for an unknown name."""
    if name not in names():
        raise KeyError(f"no bundled table named {name!r}; bundled: {', '.join(names()) or 'none'}")
    return _HERE / name

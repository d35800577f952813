"""Arguments as programs give them, before anything else looks at them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

AnyPath = str | os.PathLike[str]

T = TypeVar("T")


def path_of(path: AnyPath | None) -> Path | None:
    """A path, if one is given."""
    return None if path is None else Path(path)


def several(given: AnyPath | Iterable[T]) -> Iterable[T]:
    """What is given where there may be several: a text or a path is one, not its letters."""
    alone: Any = (given,)
    return alone if isinstance(given, str | os.PathLike) else given

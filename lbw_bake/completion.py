"""What TAB offers beyond commands and options: presets, families, blocks, elements.

A shell asks at every TAB, so this imports little; it shows whatever is printed, so what cannot be read is passed over.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .errors import LbwError

if TYPE_CHECKING:
    from .presets import Preset

Offer = tuple[str, str]  # what may be written, and what it means (empty if nothing is to be said)

# Names that a shell would not take apart; the others are rare, and their owner knows how to quote them.
_PLAIN = re.compile(r"[\w.+%@-]+")
# A word of a list, and what stands before it: rules are separated by spaces or commas, the ends of a range by a minus.
_LAST_BLOCK = re.compile(r"(?P<before>(?:.*[\s,])?(?:[A-Za-z]\w*-)?)(?P<word>\w*)")


def preset_names(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Presets that have weights."""
    return _named(incomplete, (preset for preset in _presets(ctx) if preset.entries))


def element_preset_names(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Presets that have element rules."""
    return _named(incomplete, (preset for preset in _presets(ctx) if preset.elements))


def all_preset_names(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Presets of either kind."""
    return _named(incomplete, _presets(ctx))


def family_names(incomplete: str) -> list[Offer]:
    """Model families."""
    from .families import FAMILIES

    return [(name, family.title) for name, family in FAMILIES.items() if name.startswith(incomplete)]


def block_rules(ctx: typer.Context, incomplete: str) -> list[str]:
    """The block that is being named in block rules (`BASE=1 IN0`), and what may follow it."""
    return _last_block(incomplete, _blocks(ctx), ("=", "-"))


def element_rules(ctx: typer.Context, incomplete: str) -> list[str]:
    """The block or the kind of layer that is being named in an element rule (`IN05-OUT05:at`)."""
    blocks, colon, words = incomplete.partition(":")
    if not colon:
        return _last_block(incomplete, _blocks(ctx), (":", "-"))
    from .elements import ELEMENTS

    before, space, word = words.rpartition(" ")
    return [f"{blocks}:{before}{space}{name}:" for name in ELEMENTS if name.startswith(word)]


def _presets(ctx: typer.Context) -> Iterator[Preset]:
    """All presets in force, of every file that can be read; the file named on the line included."""
    from .presets import preset_paths
    from .presets.formats import usable_presets

    named = ctx.params.get("presets")
    found: dict[str, Preset] = {}
    for path in preset_paths(Path(named) if named else None):
        with contextlib.suppress(LbwError):
            found |= {preset.name: preset for preset in usable_presets(path)}
    yield from found.values()


def _named(incomplete: str, presets: Iterable[Preset]) -> list[Offer]:
    return [
        (preset.name, preset.description.replace("[", r"\["))  # shells are given help as markup
        for preset in presets
        if preset.name.startswith(incomplete) and _PLAIN.fullmatch(preset.name)
    ]


def _blocks(ctx: typer.Context) -> list[str]:
    """The blocks of the family named on the line, else of all."""
    from .families import FAMILIES, OTHER

    chosen = FAMILIES.get(str(ctx.params.get("family")).lower())
    families = [chosen] if chosen else FAMILIES.values()
    return list(dict.fromkeys(["BASE", *(block for family in families for block in family.blocks), OTHER]))


def _last_block(text: str, blocks: Iterable[str], endings: Iterable[str]) -> list[str]:
    match = _LAST_BLOCK.fullmatch(text)
    if match is None:
        return []
    before, word = match["before"], match["word"]
    found = [before + block for block in blocks if block.startswith(word)]
    # One block alone would be taken for the whole rule, and closed with a quote.
    return found if len(found) > 1 else [block + ending for block in found for ending in endings]

"""Sliders for a terminal: one row for a block, with its weight as a number and on a line, and its norm beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from textual import events, on
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Static

from . import mixer
from .errors import LbwError
from .inspection import Group
from .mixer import FINE, HIGH, LOW, STEP, Mix, snapped
from .tables import Bar
from .values import number_text, parse_number

_VALUE, _NORM, _SHARE, _GAP = 7, 9, 7, 2
_LINES = (61, 31)  # characters a line takes: one for each step, or for every other
_SHORTEST_BAR, _LONGEST_BAR = 12, 24

_STEPS = {"left": -STEP, "h": -STEP, "right": STEP, "l": STEP}
_STEPS |= {"shift+left": -FINE, "H": -FINE, "shift+right": FINE, "L": FINE}
_WAYS = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -10, "pagedown": 10, "home": -1000, "end": 1000}


@dataclass(frozen=True, slots=True)
class Columns:
    """How many characters of a row its parts take."""

    label: int
    line: int
    bar: int

    @property
    def start(self) -> int:
        """Where the line begins."""
        return _GAP + self.label + _VALUE + _GAP


def columns_of(width: int, label: int) -> Columns:
    """How a row of this width is divided, where block names take so many characters."""
    free = width - Columns(label, 0, 0).start - _GAP - _NORM - _SHARE
    line = next((line for line in _LINES if free - line >= _SHORTEST_BAR), _LINES[-1])
    return Columns(label, line, max(min(free - line, _LONGEST_BAR), 0))


def position_of(weight: float, length: int) -> int:
    """Which of a line's characters a weight is at; beyond its ends outside of it."""
    return round((weight - LOW) / (HIGH - LOW) * (length - 1))


def line_of(weight: float, length: int) -> Content:
    """The line of a slider: marks at 0 and 1, thick from 0 to the weight, an arrow where the weight is beyond."""
    zero, at = position_of(0.0, length), position_of(weight, length)
    knob = min(max(at, 0), length - 1)
    first, last = sorted((zero, knob))
    line = ["┼" if i in (zero, position_of(1.0, length)) else "─" for i in range(length)]
    line[first : last + 1] = "━" * (last + 1 - first)
    line[knob] = "◀" if at < 0 else "▶" if at >= length else "●"
    colour = "$text-error" if weight < 0 else "$text-warning" if weight > 1 else "$text-primary"
    thin, thick = "".join(line), f"{colour} bold"
    return Content.assemble((thin[:first], "dim"), (thin[first : last + 1], thick), (thin[last + 1 :], "dim"))


class Slider(Widget):
    """One block: what it shows is set from outside."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    Slider { height: 1; }
    Slider.reached { background: $boost; }
    Slider.-current { background: $primary 30%; text-style: bold; }
    """

    weight = reactive(1.0)
    norms = reactive[Group | None](None)
    typed = reactive("")
    current = reactive(False, toggle_class="-current")

    class Grasped(Message):
        """The mouse is on the slider; at a weight if it is on the line, or was when it went down."""

        def __init__(self, block: str, weight: float | None) -> None:
            super().__init__()
            self.block, self.weight = block, weight

    def __init__(self, block: str, label: int) -> None:
        super().__init__(id=f"block-{block}")
        self.block = block
        self.strongest = 0.0
        self._label = label
        self._dragged = False

    def render(self) -> Content:
        """The row."""
        columns = self._columns
        return Content.assemble(
            "▸ " if self.current else "  ",
            self.block.ljust(columns.label),
            (self._value.rjust(_VALUE), "reverse" if self.typed else ""),
            " " * _GAP,
            line_of(self.weight, columns.line),
            " " * _GAP,
            *self._norm_cells(columns),
        )

    @property
    def _columns(self) -> Columns:
        return columns_of(self.size.width, self._label)

    @property
    def _value(self) -> str:
        text = f"{self.typed}_" if self.typed else number_text(self.weight)
        return text if self.typed or len(text) <= _VALUE else f"{self.weight:.2g}"

    def _norm_cells(self, columns: Columns) -> Iterator[str | tuple[str, str]]:
        if group := self.norms:
            yield Bar(group.norm, self.strongest).text(columns.bar).ljust(columns.bar), "$text-success"
            known = group.known
            yield f"{group.norm:{_NORM}.3g}{group.share:{_SHARE}.1%}" if known else f"{'?':>{_NORM}}{'?':>{_SHARE}}"

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Begin to drag, on the line."""
        self._dragged = 0 <= self._position(event) <= 1
        if self._dragged:
            self.capture_mouse()
        self._grasp(event)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Drag."""
        if self._dragged:
            self._grasp(event)

    def on_mouse_up(self) -> None:
        """End dragging."""
        self._dragged = False
        self.release_mouse()

    def _position(self, event: events.MouseEvent) -> float:
        """Where along the line the mouse is, from 0 to 1."""
        return (event.x - self._columns.start) / (self._columns.line - 1)

    def _grasp(self, event: events.MouseEvent) -> None:
        self.post_message(self.Grasped(self.block, snapped(self._position(event)) if self._dragged else None))


# What a key moves when it is pressed on a block: the blocks, and how they are called together.
_REACHES: tuple[Callable[[Mix, str], tuple[Sequence[str], str]], ...] = (
    lambda _, block: ((block,), block),
    lambda mix, block: (mixer.group_of(mix, block), f"all {mixer.group_name(mix, block)}"),
    lambda mix, _: (mix.family.blocks, "all blocks"),
)


class Sliders(VerticalScroll, can_focus=True):
    """A mix on sliders, and the block that keys speak of."""

    DEFAULT_CSS = "Sliders { scrollbar-size-vertical: 1; overflow-y: scroll; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "invert", "Invert"),
        Binding("g", "group", "Group"),
        Binding("r", "reset", "Reset"),
    ]

    class Changed(Message):
        """The mix is another, or what keys move."""

    def __init__(self, mix: Mix, label: int) -> None:
        super().__init__(*(Slider(block, label) for block in mix.present))
        self.mix = self._start = mix
        self._block = mix.present[0]
        self._reach = 0

    @property
    def reached(self) -> tuple[Sequence[str], str]:
        """The blocks that keys move, and how they are called together."""
        return _REACHES[self._reach](self.mix, self._block)

    def on_mount(self) -> None:
        """Show the mix."""
        self.become(self.mix)

    def become(self, mix: Mix) -> None:
        """Show another mix."""
        self.mix = mix
        reached, _ = self.reached
        for block in mix.present:
            slider = self.of(block)
            slider.weight = mix.weights[block]
            slider.current = block == self._block
            slider.set_class(len(reached) > 1 and block in reached, "reached")
        self.post_message(self.Changed())

    def of(self, block: str) -> Slider:
        """The slider of a block."""
        return self.query_one(f"#block-{block}", Slider)

    def _put(self, weight: float) -> None:
        self.become(mixer.put(self.mix, self.reached[0], weight))

    def _choose(self, block: str) -> None:
        self._settle()
        self._block = block
        self.become(self.mix)
        self.on_resize()

    def on_resize(self) -> None:
        """Keep the block that keys speak of in sight."""
        self.scroll_to_widget(self.of(self._block), animate=False)

    def step(self, step: float) -> None:
        """Add a step."""
        self.become(mixer.moved(self.mix, self.reached[0], step))

    def go(self, way: int) -> None:
        """Go to another block."""
        blocks = self.mix.present
        self._choose(blocks[min(max(blocks.index(self._block) + way, 0), len(blocks) - 1)])

    def invert(self) -> None:
        """Turn every weight around."""
        self.become(mixer.inverted(self.mix))

    def reset(self) -> None:
        """Start again."""
        self.become(self._start)

    def reach_on(self) -> None:
        """Let keys move more, or one block again."""
        self._reach = (self._reach + 1) % len(_REACHES)
        self.become(self.mix)

    @on(Slider.Grasped)
    def grasp(self, event: Slider.Grasped) -> None:
        """Go to the block under the mouse, and set it if the mouse is on its line."""
        self._choose(event.block)
        if event.weight is not None:
            self._put(event.weight)

    def on_key(self, event: events.Key) -> None:
        """Take in a number, digit by digit; it counts as soon as any other key is pressed."""
        # Bindings would be looked up later, when the next keys may have been here already.
        slider = self.of(self._block)
        if event.character and event.character in "0123456789.-":
            slider.typed += event.character
        elif slider.typed and event.key == "backspace":
            slider.typed = slider.typed[:-1]
        elif slider.typed and event.key == "escape":
            slider.typed = ""
        else:
            self._settle()
            if event.key not in _KEYS:
                return
            _KEYS[event.key](self)
        event.stop()
        event.prevent_default()

    def on_blur(self) -> None:
        """Something else takes the keys."""
        self._settle()

    def _settle(self) -> None:
        slider = self.of(self._block)
        typed, slider.typed = slider.typed, ""
        if not typed:
            return
        try:
            weight = parse_number(typed, f"the weight of {self._block}")
        except LbwError as error:
            self.notify(error.message, severity="error", markup=False)
        else:
            self._put(weight)


_KEYS: dict[str, Callable[[Sliders], None]] = {
    **{key: partial(Sliders.step, step=step) for key, step in _STEPS.items()},
    **{key: partial(Sliders.go, way=way) for key, way in _WAYS.items()},
    "i": Sliders.invert,
    "g": Sliders.reach_on,
    "r": Sliders.reset,
}


class Heading(Static):
    """What the columns of the rows below are."""

    def __init__(self, label: int) -> None:
        super().__init__(id="heading")
        self._label = label

    def render(self) -> Content:
        """The row, as wide as the sliders'."""
        columns = columns_of(self.size.width, self._label)
        scale = [" "] * columns.line
        for mark in range(int(LOW), int(HIGH) + 1):
            text = str(mark)
            start = max(position_of(mark, columns.line) + 1 - len(text), 0)
            scale[start : start + len(text)] = text
        gap = " " * _GAP
        row = f"{gap}{'block':{columns.label}}{'weight':>{_VALUE}}{gap}{''.join(scale)}{gap}{' ' * columns.bar}"
        return Content.styled(f"{row}{'norm':>{_NORM}}{'share':>{_SHARE}}", "bold")

"""The screen of `lbw mix`. What a key means is here; what that does to the weights is in `mixer`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.widgets import Checkbox, Footer, Input, Label, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from . import mixer
from .console import error_lines, escape
from .errors import LbwError
from .inspection import Inspection, inspection_of, measured
from .lora import Lora
from .mixer import Mix
from .preset_files import add_preset, own_path
from .presets import load_presets
from .presets.bars import preset_bars
from .recipes import Recipe
from .render import outcome_lines
from .render_presets import saved_lines
from .run import run
from .sliders import Heading, Sliders
from .words import counted

Lines = Sequence[tuple[str, str]]  # labels, and the text of each

_COLOURS = {"error": "$text-error", "warning": "$text-warning", "hint": "$text-accent", "done": "$text-success"}
_KEYS = "←→ 0.05  shift+←→ 0.01  or type a number  ↑↓ block  mouse"
_REPLACE = "replace what is there (--force)"


@dataclass(frozen=True, slots=True)
class Answer:
    """What was entered, and whether it may replace what is there."""

    text: str
    replacing: bool


def _shown(lines: Lines) -> Content:
    rows = [
        Content.assemble((f"{label}: ", f"bold {_COLOURS.get(label, '$text-success')}"), escape(text))
        for label, text in lines
    ]
    return Content("\n").join(rows)


class Said(ModalScreen[None]):
    """Lines to read."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,space,q", "dismiss", "Close")]

    lines: reactive[Lines] = reactive[Lines](())

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self.set_reactive(Said.lines, lines)

    def compose(self) -> ComposeResult:
        """The lines."""
        with VerticalScroll(classes="dialog"):
            yield Static(_shown(self.lines), id="lines")
        yield Footer(compact=True, show_command_palette=False)

    def watch_lines(self, lines: Lines) -> None:
        """Show others."""
        self.query_one("#lines", Static).update(_shown(lines))


class Tick(Checkbox):
    """A box that shows without colour too whether it is ticked."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "screen.submit", show=False)]

    def render(self) -> Content:
        """The box with a cross in it, or none."""
        self.BUTTON_INNER = "X" if self.value else " "
        return super().render()


class Ask(ModalScreen[Answer | None]):
    """A question that one line answers."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Cancel")]

    def __init__(self, question: str, answer: str = "") -> None:
        super().__init__()
        self._question, self._answer = question, answer

    def compose(self) -> ComposeResult:
        """The question, the line, and a box to tick."""
        with Vertical(classes="dialog"):
            yield Label(escape(self._question), markup=False)
            yield Input(self._answer, compact=True)
            yield Tick(_REPLACE, compact=True)
            yield Label("enter: do it   tab, space: tick the box   escape: cancel", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    @on(Input.Submitted)
    def action_submit(self) -> None:
        """Close with what was entered."""
        if text := self.query_one(Input).value.strip():
            self.dismiss(Answer(text, self.query_one(Tick).value))


class Choose(ModalScreen[int | None]):
    """Rows to choose from."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,p", "dismiss", "Cancel")]

    def __init__(self, title: str, rows: Sequence[str]) -> None:
        super().__init__()
        self._title, self._rows = title, rows

    def compose(self) -> ComposeResult:
        """A row for each."""
        with Vertical(classes="dialog"):
            yield Label(self._title, markup=False)
            yield OptionList(*(Option(Content(escape(row))) for row in self._rows), compact=True)
        yield Footer(compact=True, show_command_palette=False)

    @on(OptionList.OptionSelected)
    def choose(self, event: OptionList.OptionSelected) -> None:
        """Close with the number of the row."""
        self.dismiss(event.option_index)


class Mixer(App[Mix]):
    """The mixer of a file; it returns the mix it is left with, None if it was interrupted.

    `start` is where its sliders start, `recipe` how it is baked, `presets` the presets file that was named.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #title { height: 1; padding: 0 1 0 2; text-style: bold; }
    #heading { height: 1; padding: 0 1 0 0; color: $text-muted; }
    #said { height: auto; max-height: 40%; overflow-y: auto; border-top: solid $primary; padding: 0 1; }
    #said Horizontal { height: auto; }
    #said Static { width: 1fr; }
    #said Label { width: 9; text-style: bold; }
    #help { height: auto; padding: 0 1; color: $text-muted; }
    ModalScreen { align: center middle; }
    .dialog {
        width: 90%; max-width: 100; height: auto; max-height: 80%; border: round $primary; padding: 0 1;
        background: $surface;
    }
    .dialog Label { width: 100%; }
    OptionList { height: auto; max-height: 100%; text-wrap: nowrap; text-overflow: ellipsis; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        # In a narrow terminal the last ones are not seen.
        Binding("b", "bake", "Bake"),
        Binding("q", "quit", "Quit"),
        Binding("s", "save", "Save"),
        Binding("p", "presets", "Presets"),
        Binding("c", "copy", "Copy"),
        Binding("t", "copy_token", "Token"),
        Binding("ctrl+c", "interrupt", show=False),
    ]

    def __init__(self, lora: Lora, start: Mix, recipe: Recipe, presets: Path | None) -> None:
        super().__init__(ansi_color=True if os.environ.get("NO_COLOR") else None)
        self._lora, self._start, self._recipe, self._presets = lora, start, recipe, presets

    def compose(self) -> ComposeResult:
        """Everything on the screen."""
        label = max(5, *map(len, self._start.present))
        yield Static(id="title", markup=False)
        yield Heading(label)
        yield Sliders(self._start, label)
        with Vertical(id="said"):
            for name, text in self._said(self._start).items():
                with Horizontal():
                    yield Label(f"{name}:")
                    yield Static(text, id=name, markup=False)
        yield Static(f"moves {self._start.present[0]}: {_KEYS}", id="help", markup=False)  # as high as it will be
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Norms come when they are measured."""
        self._title("measuring norms ...")
        self.screen.set_focus(self._sliders)
        self.measure()

    @property
    def mix(self) -> Mix:
        """The mix as it is now."""
        return self._sliders.mix

    @on(Sliders.Changed)
    def show(self) -> None:
        """Say what the sliders say."""
        for name, text in self._said(self.mix).items():
            self._static(f"#{name}").update(text)
        _, reached = self._sliders.reached
        self._static("#help").update(f"moves {reached}: {_KEYS}")

    def _said(self, mix: Mix) -> dict[str, str]:
        token = self._token(mix) or "none says this: bake it, or copy the weights"
        return {"weights": mixer.text(mix), "prompt": escape(token)}

    def _token(self, mix: Mix) -> str | None:
        return mixer.token(mix, self._lora.file.path.stem)

    def _static(self, name: str) -> Static:
        return self.screen_stack[0].query_one(name, Static)

    @property
    def _sliders(self) -> Sliders:
        return self.screen_stack[0].query_one(Sliders)

    def _title(self, remark: str) -> None:
        name, title = self._lora.file.path.name, self.mix.family.title
        self._static("#title").update(escape("; ".join(filter(None, (f"{name}: {title}", remark)))))

    @work(thread=True)
    def measure(self) -> None:
        """Measure the file's modules, aside; given up between two of them when the screen closes."""
        worker = get_current_worker()
        found = []
        try:
            for facts in measured(self._lora):
                if worker.is_cancelled:
                    return
                found.append(facts)
        except LbwError as error:
            self.call_from_thread(self._title, error.message)
            return
        self.call_from_thread(self._show_norms, inspection_of(self._lora, found))

    def _show_norms(self, facts: Inspection) -> None:
        blocks = facts.blocks
        strongest = max(group.norm for group in blocks.values())
        for block, group in blocks.items():
            slider = self._sliders.of(block)
            slider.strongest, slider.norms = strongest, group
        self._title(f"{counted(facts.unmeasured, 'module')} not measured" if facts.unmeasured else "")

    def action_copy(self) -> None:
        """Copy the weights."""
        self._copy(mixer.text(self.mix))

    def action_copy_token(self) -> None:
        """Copy the prompt token."""
        self._copy(self._token(self.mix))

    def _copy(self, text: str | None) -> None:
        if text is None:
            self.notify("there is nothing to copy", severity="warning")
            return
        self.copy_to_clipboard(text)
        self.notify("copied, if the terminal allows it; it is printed at the end too", markup=False)

    @work
    async def action_presets(self) -> None:
        """Start from a preset."""
        try:
            shown = [*mixer.showable(self.mix, load_presets(self._presets).values())]
        except LbwError as error:
            self.push_screen(Said(error_lines(error)))
            return
        width = max((cell_len(preset.name) for preset, _ in shown), default=0)
        rows = [
            f"{set_cell_size(preset.name, width)}  {preset_bars(preset, self.mix.family)}  {preset.description}"
            for preset, _ in shown
        ]
        chosen = await self.push_screen_wait(Choose("Start from a preset", rows))
        if chosen is not None:
            self._sliders.become(shown[chosen][1])

    @work
    async def action_save(self) -> None:
        """Save the mix as a preset."""
        try:
            path = own_path(self._presets)
            answer = await self.push_screen_wait(Ask(f"Save as a preset of {path}, named:"))
            if answer:
                name, weights = answer.text, mixer.text(self.mix)
                saved = add_preset(name, weights, family=self.mix.family.name, presets=path, replace=answer.replacing)
                self.push_screen(Said([*saved_lines(name, saved)]))
        except LbwError as error:
            self.push_screen(Said(error_lines(error)))

    @work
    async def action_bake(self) -> None:
        """Bake the mix."""
        path = self._lora.file.path
        answer = await self.push_screen_wait(Ask("Bake to:", str(path.with_name(f"{path.stem}-mix{path.suffix}"))))
        if answer:
            said = Said([("baking", answer.text)])
            self.push_screen(said)
            self.write(answer, said)

    @work(thread=True)
    def write(self, answer: Answer, said: Said) -> None:
        """Bake, aside, and say what came of it."""
        output = Path(answer.text).expanduser()
        try:
            job = mixer.job_of(self.mix, self._lora.file.path, output, self._recipe, replacing=answer.replacing)
            lines = [line for outcome in run(job) for line in outcome_lines(outcome)]
        except LbwError as error:
            lines = [*error_lines(error)]
        if not get_current_worker().is_cancelled:
            self.call_from_thread(self._tell, said, lines)

    def _tell(self, said: Said, lines: Lines) -> None:
        if said.is_attached:
            said.lines = lines
        else:
            self.push_screen(Said(lines))

    async def action_quit(self) -> None:
        """Leave with the mix as it is."""
        self.exit(self.mix)

    def action_interrupt(self) -> None:
        """Leave without."""
        self.exit(None)

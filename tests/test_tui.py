"""The mixer's screen, driven by keys and mouse as people do."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import MODULE, SD1_BLOCKS, BakeFile, Run, kohya_lora, unet_lora, write

pytest.importorskip("textual", reason="needs textual")

from rich.cells import cell_len
from textual.pilot import Pilot
from textual.widgets import Static

from lbw_bake import mixer
from lbw_bake.lora import read_lora
from lbw_bake.mixer import Mix
from lbw_bake.presets import load_presets
from lbw_bake.recipes import Recipe
from lbw_bake.sliders import Slider, position_of
from lbw_bake.sources import Weights
from lbw_bake.tui import Mixer, Said
from lbw_bake.weights import resolve

Hands = Callable[[Mixer, "Pilot[Mix]"], Awaitable[None]]
PRESETS = "FACE: {MID: 1, OUT03-OUT05: 0.5, '*': 0}\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "style.safetensors", unet_lora(), {"ss_output_name": "style"})


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    path = tmp_path / "presets.yaml"
    path.write_text(PRESETS)
    return path


def mix_by(source: Path, hands: Hands, *, presets: Path | None = None, size: tuple[int, int] = (80, 24)) -> Mix | None:
    """Open the mixer on a file, let hands work, and return the mix it is left with."""
    lora = read_lora(source)
    app = Mixer(lora, mixer.mix_of(lora), Recipe(Weights()), presets)

    async def session() -> None:
        async with app.run_test(size=size) as pilot:
            await hands(app, pilot)
            await app.workers.wait_for_complete()

    asyncio.run(session())
    return app.return_value


def mix_with(source: Path, *keys: str, presets: Path | None = None) -> Mix | None:
    """The mix that keys make, `q` after them."""

    async def press(_: Mixer, pilot: Pilot[Mix]) -> None:
        for key in (*keys, "q"):
            await pilot.press(key)

    return mix_by(source, press, presets=presets)


def of(mix: Mix | None, *blocks: str) -> list[float]:
    assert mix
    return [mix.weights[block] for block in blocks]


def typed(text: str) -> Sequence[str]:
    return ["full_stop" if character == "." else "minus" if character == "-" else character for character in text]


def shown(app: Mixer, name: str) -> str:
    return str(app.screen.query_one(name, Static).render())


KEYS = {
    "nothing": ([], [1, 1, 1]),
    "steps": (["right", "right", "down", "left", "shift+left"], [1.1, 0.94, 1]),
    "letters": (["l", "j", "h", "H", "k", "L"], [1.06, 0.94, 1]),
    "a number": ([*typed("-0.25"), "enter"], [-0.25, 1, 1]),
    "a number without Enter": (["down", *typed("0.5"), "down", *typed("7"), "up"], [1, 0.5, 7]),
    "a number corrected": ([*typed("0.59"), "backspace", "enter"], [0.5, 1, 1]),
    "a number given up": ([*typed("0.5"), "escape", "down"], [1, 1, 1]),
    "a number that is none": ([*typed("0.5.-"), "enter"], [1, 1, 1]),
    "a number and a step": ([*typed("0.5"), "right"], [0.55, 1, 1]),
    "the ends": (["end", "home", "up", "left"], [0.95, 1, 1]),
    "invert": (["left", "i"], [0.05, 0, 0]),
    "invert twice": (["left", "i", "i"], [0.95, 1, 1]),
    "a group moved": (["down", "g", "left"], [1, 0.95, 0.95]),
    "a group set": (["down", "g", *typed("0.2"), "enter"], [1, 0.2, 0.2]),
    "all": (["g", "g", "left"], [0.95, 0.95, 0.95]),
    "one again": (["down", "g", "g", "g", "left"], [1, 0.95, 1]),
    "keys in any order": (["end", "home", "down", "g", "left", "i", "g", "g", "left"], [0, 0, 0.05]),
    "reset": (["left", "down", "left", "r"], [1, 1, 1]),
}


@pytest.mark.parametrize(("keys", "weights"), KEYS.values(), ids=KEYS)
def test_keys(keys: list[str], weights: list[float], source: Path) -> None:
    assert of(mix_with(source, *keys), "BASE", "IN01", "IN02") == weights


def test_a_preset_is_a_start(source: Path, presets: Path) -> None:
    names = [
        preset.name for preset, _ in mixer.showable(mixer.mix_of(read_lora(source)), load_presets(presets).values())
    ]
    downs = ["down"] * names.index("FACE")
    mix = mix_with(source, "p", *downs, "enter", presets=presets)
    assert of(mix, "BASE", "MID", "OUT03", "OUT05", "OUT06") == [0, 1, 0.5, 0.5, 0]
    assert mix_with(source, "left", "p", *downs, "escape", presets=presets) == mix_with(source, "left")


def test_weights_and_token_are_always_shown(source: Path) -> None:
    async def hands(app: Mixer, pilot: Pilot[Mix]) -> None:
        await pilot.press("left")
        weights = f"0.95{',1' * 16}"
        assert shown(app, "#weights") == weights
        assert shown(app, "#prompt") == f"<lora:style:1:lbw={weights}>"
        await pilot.press("c")
        assert app.clipboard == weights
        await pilot.press("t")
        assert app.clipboard == f"<lora:style:1:lbw={weights}>"

    mix_by(source, hands)


def test_norms_are_those_of_inspect(source: Path, run: Run) -> None:
    facts = run.json("inspect", "--json", source)["blocks"]

    async def hands(app: Mixer, pilot: Pilot[Mix]) -> None:
        await app.workers.wait_for_complete()
        await pilot.pause()
        found = {slider.block: slider.norms for slider in app.query(Slider)}
        assert {block: (group.norm, group.share) for block, group in found.items() if group} == {
            block: (group["norm"], group["share"]) for block, group in facts.items()
        }

    mix_by(source, hands)


def test_the_mouse_drags(source: Path) -> None:
    """To 0.5 on OUT03's line, on to 1.5 with the button down; beside the line it chooses the block alone."""

    async def hands(app: Mixer, pilot: Pilot[Mix]) -> None:
        slider = app.query_one("#block-OUT03", Slider)
        columns = slider._columns
        await pilot.mouse_down(slider, (columns.start + position_of(0.5, columns.line), 0))
        await pilot.pause()
        assert of(app.mix, "OUT03") == [0.5]
        await pilot.hover(slider, (columns.start + position_of(1.5, columns.line), 0))
        await pilot.mouse_up(slider, (columns.start + position_of(1.5, columns.line), 0))
        await pilot.hover(slider, (columns.start, 0))
        await pilot.click("#block-MID", offset=(3, 0))
        await pilot.press("left", "q")

    assert of(mix_by(source, hands), "MID", "OUT03", "OUT04") == [0.95, 1.5, 1]


def test_a_mix_is_saved_as_a_preset(source: Path, presets: Path) -> None:
    async def save(app: Mixer, pilot: Pilot[Mix], *keys: str) -> str:
        await pilot.press("s", *"FACE", *keys, "enter")
        await pilot.pause()
        lines = shown(app, "#lines")
        await pilot.press("escape")
        return lines

    async def hands(app: Mixer, pilot: Pilot[Mix]) -> None:
        await pilot.press("left")
        assert "FACE has weights for sd1 already" in await save(app, pilot)
        assert "written: FACE to" in await save(app, pilot, "tab", "space")
        await pilot.press("left")
        assert "FACE has sd1 already" in await save(app, pilot)
        assert "written: FACE to" in await save(app, pilot, "tab", "space")
        await pilot.press("q")

    mix = mix_by(source, hands, presets=presets)
    assert mix
    assert of(mix, "BASE") == [0.9]
    saved = resolve(load_presets(presets)["FACE"].source_for(mix.family), mix.family)
    assert {block: saved.blocks[block] for block in SD1_BLOCKS} == {block: mix.weights[block] for block in SD1_BLOCKS}
    assert "OUT03-OUT05: 0.5" in presets.read_text()


def test_what_it_bakes_is_what_bake_writes(source: Path, tmp_path: Path, bake_file: BakeFile) -> None:
    """Byte for byte, from the weights it shows."""
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / source.name

    async def hands(app: Mixer, pilot: Pilot[Mix]) -> None:
        await pilot.press("down", *typed("0.3"), "down", "g", "left", "b", "ctrl+a", "ctrl+k")
        await pilot.press(*str(target))
        await pilot.press("enter")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert shown(app, "#lines").startswith(f"baked: {target}"[:20])
        await pilot.press("escape", "q")

    mix = mix_by(source, hands)
    assert mix
    assert of(mix, "BASE", "IN01", "IN02") == [1, 0.25, 0.95]
    assert target.read_bytes() == bake_file(source, "--weights", mixer.text(mix)).read_bytes()


def test_what_cannot_be_baked_is_said(tmp_path: Path) -> None:
    tensors = unet_lora() | {f"{MODULE}.dora_scale": np.ones((1, 8), np.float32)}
    source = write(tmp_path / "dora.safetensors", tensors)

    async def hands(app: Mixer, pilot: Pilot[Mix]) -> None:
        await pilot.press("g", "g", "left", "b", "enter")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert isinstance(app.screen, Said)
        assert "cannot take a weight other than 0 or 1" in shown(app, "#lines")
        assert "hint: " in shown(app, "#lines")

    mix_by(source, hands)
    assert [*tmp_path.iterdir()] == [source]


def test_a_preset_file_that_breaks_meanwhile_is_said(source: Path, presets: Path) -> None:
    async def hands(app: Mixer, pilot: Pilot[Mix]) -> None:
        presets.write_text("A: [")
        await pilot.press("p")
        await pilot.pause()
        assert "error: " in shown(app, "#lines")

    mix_by(source, hands, presets=presets)


def drawn(app: Mixer) -> list[str]:
    """What the screen shows, line by line."""
    return [line.text for line in app.screen._compositor.render_strips()]


@pytest.mark.parametrize("width", [50, 60])
def test_a_narrow_screen_shows_every_word(width: int, source: Path, presets: Path) -> None:
    def words(app: Mixer) -> str:
        return " ".join(re.sub("[^ -~]", " ", " ".join(drawn(app))).split())

    async def hands(app: Mixer, pilot: Pilot[Mix]) -> None:
        await pilot.pause()
        keys = words(app)
        await pilot.press("s")
        await pilot.pause()
        said = words(app)
        await pilot.press("escape")
        assert "block mouse" in keys
        assert "named:" in said
        assert " cancel" in said

    mix_by(source, hands, presets=presets, size=(width, 30))


def test_presets_to_start_from_stand_in_columns(source: Path, presets: Path) -> None:
    presets.write_text(PRESETS + "\u9854\u9854: {'*': 1}\nA: {'*': 1}\n", encoding="utf-8")

    async def hands(app: Mixer, pilot: Pilot[Mix]) -> None:
        await pilot.press("p")
        await pilot.pause()
        rows = [line for line in drawn(app) if re.search("FACE|\u9854| A ", line)]
        await pilot.press("escape")
        assert len(rows) == 3
        assert len({cell_len(re.split("[\u2581-\u2588]", row)[0]) for row in rows}) == 1

    mix_by(source, hands, presets=presets)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 16)])
def test_many_blocks_scroll(size: tuple[int, int], tmp_path: Path) -> None:
    """All 57 of Flux's stack: the chosen one is in sight, weights and keys stay there."""
    blocks = [
        *(f"unet_double_blocks_{i}_img_mlp_0" for i in range(19)),
        *(f"unet_single_blocks_{i}_linear1" for i in range(38)),
    ]
    source = write(tmp_path / "flux.safetensors", kohya_lora(blocks, rank=1, width=3072))

    async def hands(app: Mixer, pilot: Pilot[Mix]) -> None:
        await pilot.press("end", *typed("0.35"), "enter")
        await pilot.pause()
        slider = app.query_one("#block-S37", Slider)
        assert slider.current
        rows = range(slider.parent.region.y, slider.parent.region.bottom)  # type: ignore[union-attr]
        assert slider.region.y in rows
        for name in ("#said", "#help", "Footer"):
            assert app.screen.query_one(name).region.bottom <= size[1]
        last = next(key for key in app.screen.query("FooterKey") if key.description == "Quit")  # type: ignore[attr-defined]
        assert last.region.right <= size[0]

    assert mix_by(source, hands, size=size) is None


class TestCommand:
    """`lbw mix` as a whole, on a terminal and without."""

    @staticmethod
    def on_a_terminal(
        *args: object, keys: bytes, size: tuple[int, int] = (80, 24), **environment: str
    ) -> tuple[int, str, bytes]:
        """Run it on a terminal of its own: exit code, stdout (which is none), and what the terminal got."""
        environ = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS", "LINES"}}
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *reversed(size), 0, 0))
        with subprocess.Popen(
            [sys.executable, "-m", "lbw_bake", "mix", *map(str, args)],
            env={**environ, "TERM": "xterm-256color", **environment},
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            seen = b""
            with contextlib.suppress(OSError):  # the terminal is gone
                while data := os.read(ours, 1 << 16):
                    ready = b"prompt:" in seen
                    seen += data
                    if not ready and b"prompt:" in seen:
                        os.write(ours, keys)
            os.close(ours)
            assert process.stdout
            return process.wait(timeout=60), process.stdout.read().decode(), seen

    def test_the_weights_are_printed_at_the_end(self, source: Path) -> None:
        code, out, seen = self.on_a_terminal(source, "--preset", "MIDD", keys=b"0.5\rq")
        weights = "0.5,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"
        assert (code, out) == (0, f"{weights}\n")
        assert f"prompt: <lora:style:1:lbw={weights}>" in seen.decode()
        assert re.search(rb"\x1b\[[\d;]*38;", seen)

    def test_it_fills_the_terminal_though_stdout_is_none(self, source: Path) -> None:
        code, out, seen = self.on_a_terminal(source, keys=b"q", size=(120, 40))
        assert (code, out) == (0, f"{','.join('1' * 17)}\n")
        rows = [int(row) for row in re.findall(rb"\x1b\[(\d+);1H", seen)]
        assert rows[:40] == [*range(1, 41)]

    def test_interrupted_it_prints_nothing(self, source: Path) -> None:
        code, out, _ = self.on_a_terminal(source, keys=b"\x03")
        assert (code, out) == (130, "")

    def test_without_colour_there_is_none(self, source: Path) -> None:
        code, _, seen = self.on_a_terminal(source, keys=b"q", NO_COLOR="1")
        assert code == 0
        assert not re.search(rb"\x1b\[[\d;]*[34][0-8][;m]", seen)

    def test_without_a_terminal_it_says_what_to_do_instead(self, source: Path, run: Run) -> None:
        code, out, error = run("mix", source)
        assert (code, out) == (1, "")
        assert "needs a terminal" in error
        assert "hint: give the weights to lbw bake" in error

    def test_nor_does_a_dumb_one_get_sliders(self, source: Path) -> None:
        code, out, seen = self.on_a_terminal(source, keys=b"q", TERM="dumb")
        assert (code, out) == (1, "")
        assert seen.startswith(b"error: lbw mix needs a terminal")
        assert b"\x1b" not in seen

    def test_without_textual_it_says_what_to_install(
        self, source: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "textual", None)
        code, out, error = run("mix", source)
        assert (code, out) == (1, "")
        assert 'hint: pip install "lbw-bake[tui]"' in error

    def test_two_starts_are_wrong_usage(self, source: Path, run: Run) -> None:
        assert run("mix", source, "--preset", "MIDD", "--weights", "*=1")[0] == 2

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (["--preset", "MIDE"], "did you mean MIDD?"),
            (["--weights", "1,2,3"], "3 weights do not fit sd1"),
            (["--weights", "1" + ",X" * 16], "write a number in its place"),
            (["--family", "sd9"], "unknown family"),
            (["--presets", "none.yaml"], "none.yaml"),
        ],
    )
    def test_a_start_that_is_none_is_an_error(self, args: list[str], said: str, source: Path) -> None:
        code, out, seen = self.on_a_terminal(source, *args, keys=b"")
        assert (code, out) == (1, "")
        assert said in seen.decode()
        assert b"Traceback" not in seen

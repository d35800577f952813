"""Coverage-guided fuzzing of everything that reads bytes of strangers.

    python fuzz/fuzz.py TARGET [--seconds N] [--seed N]

runs a target with atheris where it is installed, else with a plain mutation loop over the same inputs. A crash is
written to tests/data/fuzz/TARGET/, which a test replays for ever; the law is that a reader returns or raises LbwError.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
CRASHES = ROOT / "tests" / "data" / "fuzz"
_LONGEST = 1 << 14  # bytes of an input
_BYTES = b'\x00 "\\{}[]<>:,=*%@#-+.0129eNRUXA\n\r\t\x1b\xff\xef\xbb\xbf'


def _safetensors(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def fuzz_header(data: bytes) -> None:
    """A whole file, inspected and baked: header, keys, detection, metadata, shapes, numbers."""
    from lbw_bake.errors import LbwError
    from lbw_bake.families import FAMILIES
    from lbw_bake.inspection import inspect
    from lbw_bake.planning import agree, make_plan
    from lbw_bake.render_inspection import inspection_json
    from lbw_bake.sources import Weights
    from lbw_bake.tensordata import TensorData

    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(data)
        for family in (None, next(iter(FAMILIES))):
            try:
                facts = inspect(path, family=family, spectra=True)
                inspection_json(facts, spectra=True)
                weights = agree(facts.lora, Weights.of("*=0.5").for_family)
                with TensorData(facts.lora.file) as opened:
                    make_plan(facts.lora, weights, opened.survey).edition.header.encode({})
            except LbwError:
                continue


def fuzz_modules(data: bytes) -> None:
    """Valid files of known roles, whose shapes and dtypes need not fit: four bytes choose a tensor."""
    from lbw_bake.algorithms import ROLES

    names = ("lora_unet_middle_block_1_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1")
    spelled = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
    roles = [spelled.get(role, f"{role}.weight" if role in ("a1", "a2", "b1", "b2", "bm") else role) for role in ROLES]
    sizes = {"F16": 2, "F32": 4, "F64": 8, "BF16": 2, "F8_E4M3": 1, "I64": 8, "U8": 1, "BOOL": 1}
    dtypes = ("F16", "F32", "F16", *sizes)
    header: dict[str, object] = {}
    end = 0
    for which, dtype, dimensions, values in zip(*(data[i::4] for i in range(4)), strict=False):
        chosen = dtypes[dtype % len(dtypes)]
        shape = [(dimensions >> 2 * i & 3) + (values >> 7) for i in range(dimensions % 5)]
        nbytes = math.prod(shape) * sizes[chosen]
        name = f"{names[which // len(roles) % 2]}.{roles[which % len(roles)]}"
        if name not in header and end + nbytes < _LONGEST:
            header[name] = {"dtype": chosen, "shape": shape, "data_offsets": [end, end + nbytes]}
            end += nbytes
    content = (data * (end // max(len(data), 1) + 1))[:end]
    fuzz_header(_safetensors(json.dumps(header).encode(), content))


def fuzz_keys(data: bytes) -> None:
    """Tensor names, a line each: taken apart, grouped, placed, and told from other families'."""
    from lbw_bake.basemodel import canonical
    from lbw_bake.elements import element_of
    from lbw_bake.families import FAMILIES, detect_families
    from lbw_bake.modules import group_modules
    from lbw_bake.tensorfile import Tensor

    names = dict.fromkeys(data.decode("utf-8", "replace").split("\n"))
    modules = group_modules(Tensor(name, "F16", (4, 4), 0, 32) for name in names).modules
    detect_families(modules, {})
    for module in modules:
        element_of(module.path)
        canonical(module.path)
        for family in FAMILIES.values():
            family.place(module)


def fuzz_weights(data: bytes) -> None:
    """Weights as people paste them: tokens, vectors, rules, elements, sizes, axes, merge arguments."""
    from lbw_bake.axes import parse_axis
    from lbw_bake.errors import LbwError
    from lbw_bake.families import FAMILIES
    from lbw_bake.sources import split_part
    from lbw_bake.tokens import parse_token
    from lbw_bake.weights import Options, parse_elements, parse_source, resolve
    from lbw_bake.words import parse_size

    text = data.decode("utf-8", "replace").replace("\0", "")
    families = (FAMILIES["sd1"], FAMILIES["sdxl"], FAMILIES["flux"])
    options = Options(x=0.5, seed=1, a=4.0, b=1.0)
    readers: tuple[Callable[[], object], ...] = (
        lambda: parse_token(text),
        lambda: parse_elements(text),
        lambda: parse_size(text),
        lambda: split_part(text),
        *(lambda family=family: parse_axis(text, family) for family in families),
        *(lambda family=family: resolve(parse_source(text), family, options) for family in families),
    )
    for read in readers:
        try:
            read()
        except LbwError as error:
            str(error.hint)  # hints are made when they are read


def _fuzz_presets(kind: str | None) -> Callable[[bytes], None]:
    def fuzz(data: bytes) -> None:
        from lbw_bake import reports
        from lbw_bake.checks import check
        from lbw_bake.errors import LbwError
        from lbw_bake.presets.formats import read_document
        from lbw_bake.presets.writers import WRITERS

        checked = check(data, Path("presets"), kind)
        lines = max(data.count(b"\n") + data.count(b"\r"), data.decode("utf-8", "replace").count("\x85")) + 1
        for finding in checked.findings:
            assert finding.column >= 1
            assert 1 <= finding.line <= max(lines, len(data.decode("utf-8", "replace").splitlines())) + 1
        for write in reports.FORMATS.values():
            assert all("\x1b" not in line for line in write([checked]))
        if not checked.errors:
            presets = read_document(data, Path("presets"), kind).presets
            for writer in WRITERS.values():
                try:
                    writer(presets, None)
                except LbwError:
                    continue

    fuzz.__doc__ = f"Preset files, read as {kind or 'whatever they look like'}, checked, reported and written again."
    return fuzz


TARGETS: dict[str, Callable[[bytes], None]] = {
    "header": fuzz_header,
    "modules": fuzz_modules,
    "keys": fuzz_keys,
    "weights": fuzz_weights,
    **{kind: _fuzz_presets(kind) for kind in ("yaml", "lbwpresets", "elempresets", "inspire")},
    "presets": _fuzz_presets(None),
}


def seeds(target: str) -> Iterator[bytes]:
    """Inputs to start from: the test data, and what has crashed before."""
    data = ROOT / "tests" / "data"
    if target == "header":
        name = "lora_unet_middle_block_1_proj_in"
        roles = (("lora_down.weight", [2, 4]), ("lora_up.weight", [4, 2]), ("alpha", []), ("dora_scale", [4, 1]))
        header: dict[str, object] = {"__metadata__": {"ss_base_model_version": "sd_v1", "lbw_bake": "{}"}}
        end = 0
        for role, shape in roles:
            size = 2 * (shape[0] * shape[1] if shape else 1)
            header[f"{name}.{role}"] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
            end += size
        yield _safetensors(json.dumps(header).encode(), bytes(range(end)))
    elif target == "modules":
        rng = random.Random(0)  # noqa: S311
        yield from (rng.randbytes(4 * rng.randint(2, 12)) for _ in range(200))
    elif target == "keys":
        for path in sorted((data / "keys").glob("*.tsv")):
            names = [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()]
            yield "\n".join(names[:: len(names) // 20 + 1]).encode()
    elif target == "weights":
        yield from (
            *(
                b"<lora:x:0.7:lbw=MIDD:te=0.5>",
                b"1,0,R,U,X+0.2,0.5",
                b"BASE=1 IN04-IN08=0.5 NOT OUT=0 *=0",
                b"%in1-4=0.5",
            ),
            *(b"IN05-OUT05:attn:0.5", b"blocks=BASE,17ALL,25%-75%", b"500 MB", b"a.safetensors:0.7:MIDD"),
        )
    else:
        for path in sorted((data / "presets").rglob("*")):
            if path.is_file() and path.suffix != ".json" and path.stat().st_size < _LONGEST:
                yield path.read_bytes()
    yield from (path.read_bytes() for path in sorted((CRASHES / target).glob("*")))


def keep(target: str, data: bytes) -> Path:
    """Write an input that crashed where the tests find it."""
    path = CRASHES / target / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def mutated(rng: random.Random, pool: list[bytes]) -> bytes:
    """One of the inputs, changed in a few places."""
    data = bytearray(rng.choice(pool))
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        change = rng.randrange(5)
        if change == 0:
            data[at : at + rng.randint(1, 8)] = b""
        elif change == 1:
            data[at:at] = bytes(rng.choices(_BYTES, k=rng.randint(1, 4)))
        elif change == 2:
            start = rng.randint(0, len(data))
            data[at:at] = data[start : start + rng.randint(1, 64)] * rng.choice((1, 1, 50))
        elif change == 3:
            other = rng.choice(pool)
            start = rng.randint(0, len(other))
            data[at:at] = other[start : start + rng.randint(1, 64)]
        elif at < len(data):
            data[at] = rng.randrange(256)
    return bytes(data[:_LONGEST])


def mutate(target: str, seconds: float, seed: int) -> int:
    """Run a target on mutated inputs for so long, without coverage; returns the executions."""
    rng = random.Random(seed)  # noqa: S311
    pool = list(seeds(target))
    executions = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        data = mutated(rng, pool)
        executions += 1
        try:
            TARGETS[target](data)
        except Exception:  # noqa: BLE001 - every crash is what is looked for
            traceback.print_exc()
            print(f"kept as {keep(target, data)}", file=sys.stderr)
    print(f"{target}: {executions} executions")
    return executions


def guide(target: str, seconds: int, seed: int) -> None:
    """Run a target under atheris, which ends the process: 0, or not 0 after a crash."""
    import atheris

    with atheris.instrument_imports(include=["lbw_bake"]):
        import lbw_bake.checks
        import lbw_bake.inspection
        import lbw_bake.merging
        import lbw_bake.presets.writers
        import lbw_bake.presets.yaml_file
        import lbw_bake.render_inspection
        import lbw_bake.reports
        import lbw_bake.sweeps
        import lbw_bake.tokens  # noqa: F401 - imported to be instrumented

    def one(data: bytes) -> None:
        try:
            TARGETS[target](data)
        except Exception:
            keep(target, data)
            raise

    with TemporaryDirectory() as corpus:
        for i, data in enumerate(seeds(target)):
            (Path(corpus) / str(i)).write_bytes(data)
        options = (
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-artifact_prefix={corpus}/",
            f"-max_len={_LONGEST}",
            "-timeout=60",
            "-verbosity=1",
        )
        atheris.Setup([sys.argv[0], *options, corpus], one)
        atheris.Fuzz()


def main() -> None:
    """Read the command line and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="the mutation loop even where atheris is installed")
    given = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        given.plain = True
    if given.plain:
        mutate(given.target, given.seconds, given.seed)
    else:
        guide(given.target, given.seconds, given.seed)


if __name__ == "__main__":
    main()

"""What strangers can write: headers, tensors, names, weights, tokens, elements and preset files, as strategies."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from conftest import Entry
from hypothesis import strategies as st

from lbw_bake.algorithms import ALGORITHMS, ROLES
from lbw_bake.families import FAMILIES
from lbw_bake.presets.formats import READERS

DTYPE_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "I64": 64, "I32": 32, "U8": 8, "BOOL": 8}

# What drives a terminal, a log, a CI runner or a reader of lines, and rich's markup, which looks like it.
DRIVING = (
    *("\x1b[31m", "\x1b]0;owned\x07", "\r", "\n", "\t", "\b", "\x7f", "\x85", "\x9b31m", "\u2028", "\u2029"),
    *("\u202e", "\u2066", "\u2069", "\u200f", "\u061c"),
    *("[red]", "[link=https://example.org]", "[/]", ":skull:", "%0A", "##[error]", "::error::", "\u0300", "�"),
)

names = st.lists(st.one_of(st.sampled_from(DRIVING), st.text(max_size=8)), min_size=1, max_size=6).map("".join)

# A spelling of each role, as a name's end.
_ENDINGS = {role: f".{role}" for role in ROLES} | {
    "down": ".lora_down.weight",
    "up": ".lora_up.weight",
    "mid": ".lora_mid.weight",
    "magnitude": ".lora_magnitude_vector",
    "embedding_a": ".lora_embedding_A",
    "embedding_b": ".lora_embedding_B",
    **{role: f".{role}.weight" for role in ("a1", "a2", "b1", "b2", "bm", "q_layer", "p_layer")},
}
_MODULES = (
    "lora_unet_middle_block_1_proj_in",
    "lora_unet_down_blocks_0_attentions_0_proj_in",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "unet.mid_block.attentions.0.proj_in",
)
_WEIGHTS = (
    "model.diffusion_model.middle_block.1.proj_in.weight",
    "model.diffusion_model.input_blocks.1.1.proj_in.weight",
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
)
_sizes = st.sampled_from((0, 1, 1, 2, 2, 2, 3, 4, 4))
_shapes = st.lists(_sizes, max_size=4).map(tuple)
_usual = st.sampled_from(((2, 2), (4, 4), (2, 4), (4, 2, 1, 1)))


@st.composite
def _contents(draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, ...]]) -> tuple[str, tuple[int, ...], bytes]:
    dtype, shape = draw(st.sampled_from(("F16", "F16", "F32", *DTYPE_BITS))), draw(shapes)
    size = prod(shape) * DTYPE_BITS[dtype] // 8
    return dtype, shape, draw(st.one_of(st.just(b"\0" * size), st.binary(min_size=size, max_size=size)))


@st.composite
def modules(draw: st.DrawFn) -> list[Entry]:
    """The tensors of one or two modules, complete by their roles, of shapes that may or may not fit together."""
    entries: list[Entry] = []
    for name in draw(st.lists(st.sampled_from(_MODULES), min_size=1, max_size=2, unique=True)):
        algorithm = draw(st.sampled_from(ALGORITHMS))
        required = [draw(st.sampled_from(either.split("|"))) for either in algorithm.requires]
        extra = draw(
            st.lists(st.sampled_from(("alpha", "dora_scale", "magnitude", "bias", "mid", "diff_b", "rescale")))
        )
        usual = draw(_usual)
        for role in dict.fromkeys((*required, *extra)):
            shapes = st.sampled_from(((), (1,), (0,))) if role == "alpha" else st.just(usual) | _shapes
            entries.append((name + _ENDINGS[role], *draw(_contents(shapes))))
    return entries


@st.composite
def bases(draw: st.DrawFn) -> list[Entry]:
    """A checkpoint's weights for these modules, of shapes that may or may not be theirs."""
    return [(name, *draw(_contents(_usual | _shapes))) for name in _WEIGHTS]


@st.composite
def headers(draw: st.DrawFn) -> object:
    """JSON that begins like a header and goes on as it likes."""
    odd = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), names),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=6,
    )
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from((*DTYPE_BITS, "F128", "f16", "")) | odd,
            "shape": st.lists(st.sampled_from((0, 1, 2, -1, 1 << 40, 1.5, True)), max_size=3) | odd,
            "data_offsets": st.lists(st.sampled_from((0, 2, 4, -1, 1 << 63, 1 << 65, 0.0, False)), max_size=3) | odd,
        },
        optional={"more": odd},
    )
    content = draw(st.dictionaries(names, entry | odd, max_size=4))
    if draw(st.booleans()):
        content["__metadata__"] = draw(st.dictionaries(names, names | odd, max_size=3) | odd)
    return content


_blocks = st.sampled_from(sorted({block for family in FAMILIES.values() for block in family.blocks}))
_numbers = st.one_of(
    st.sampled_from(
        ("1", "0", "-0.5", ".5", "1e3", "R", "U", "X", "X+0.2", "a", "A", "nan", "inf", "1e999", "", "٣", "1_0")
    ),
    st.floats().map(str),
    st.from_regex(r"\A[0-9]{1,40}\Z"),
)
_selectors = st.one_of(
    _blocks,
    st.sampled_from(("*", "BASE", "OUT", "NOT", "NOT IN04", "25%-75%", "IN04-IN08", "OTHER", "M00-", "-", "XYZ")),
)
vectors = st.lists(_numbers, max_size=30).map(",".join)
rules = st.lists(st.builds("{}={}".format, _selectors, _numbers), max_size=6).map(" ".join)
elements = st.builds("{}:{}:{}".format, _selectors, names, _numbers)
_letters = st.text("BASEINOUTMIDRXU0123456789=-+.*,% ~NOTe", max_size=40)
weights = st.one_of(vectors, rules, elements, rules.map("%{}".format), names, _letters)
_fields = st.one_of(_numbers, st.builds("{}={}".format, st.sampled_from(("lbw", "te", "x", "start")), weights))
tokens = st.one_of(
    st.builds("<lora:{}:{}>".format, names, st.lists(_fields).map(":".join)),
    st.text("<>:=,.@-0123lorabwMIDtex ").map("<lora:{}>".format),
)
kinds = st.sampled_from(sorted(READERS))
_lines = st.one_of(
    st.builds("{}:{}".format, names, weights),
    st.builds("{}: {}".format, names, weights),
    st.builds("  {}: {}".format, st.sampled_from(("sd1", "description", "elements", "weights")), weights),
    st.builds("{}: {{{}: {}}}".format, names, _selectors, _numbers),
    st.sampled_from(
        ("", "# x", "@a:17,12,1", "a: &x 1", "b: *x", "<<: {}", "? - 1", "---", "!!python/object:os.system x", "[" * 30)
    ),
    names,
)
preset_files = st.one_of(st.lists(_lines, max_size=8).map("\n".join).map(str.encode), st.binary(max_size=200))

Case = Callable[..., object]

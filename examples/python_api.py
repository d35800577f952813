"""Bake, measure and merge from Python: run it as a script, or cell by cell in an editor that knows `# %%`.

python examples/python_api.py doraemon.safetensors out
"""

# %%
from __future__ import annotations

import sys
from pathlib import Path

from lbw_bake import LbwError, Options, Weights, bake, diff, inspect, merge

source, folder = map(Path, sys.argv[1:3])
folder.mkdir(parents=True, exist_ok=True)

# %% Where does this LoRA live? The share of each block in the squared Frobenius norm of all updates.
facts = inspect(source)
for name, block in facts.blocks.items():
    print(f"{name:6}{block.share:6.1%} of {facts.family.title}")

# %% Weights by preset, by vector, by block name, from a prompt.
for label, weights in {
    "midd": "MIDD",
    "vector": [1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
    "face": {"BASE": 1, "OUT00-OUT03": 0.8, "*": 0.2},
    "token": "<lora:doraemon:0.7:lbw=OUTALL:te=0.5>",
}.items():
    outcome = bake(source, folder / f"{label}.safetensors", weights, replace=True)
    print(f"{outcome.output}: {dict(outcome.modules)}")

# %% More to choose: the strength of the prompt syntax, element rules, a presets file of your own.
gentle = Weights.parse(preset="MIDD", elements=["IN04-OUT05:attn2:0.5"], options=Options(strength=0.7))
bake(source, folder / "gentle.safetensors", gentle, dtype="f32", replace=True)

# %% What did each block really get? `matches_record` holds the file to what it says of itself.
measured = diff(source, folder / "midd.safetensors")
print({name: share.weight for name, (share, _) in measured.blocks.items()}, measured.matches_record)

# %% Two as one: the exact sum, each with its weights.
merge([(source, "MIDD"), (folder / "face.safetensors", [0.5] * 17)], folder / "both.safetensors", replace=True)

# %% What is wrong is raised with a hint, and nothing is written.
try:
    bake(source, folder / "typo.safetensors", "MIDDD")
except LbwError as error:
    print(f"{error} ({error.hint})")

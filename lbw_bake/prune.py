"""Smaller files: modules of weight 0 left out, where no loader then reads the rest otherwise.

Zeros are always safe; a missing module is not. diffusers gives all attention layers the most common alpha, A1111 takes
the four projections of an OpenCLIP attention or none, loaders tell the model by the keys of certain layers, and PEFT
makes modules anew that its metadata name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from .configuration import ADAPTER_METADATA, configuration
from .edits import Drop
from .factors import REMOVED, ZEROED
from .keys import DENOISER, LONGEST_NAME
from .plan import Decision, Edition, Plan
from .tensordata import TensorData
from .updates import alpha_of
from .words import counted

# Layers of one attention, which go together: what they have in common.
_TOGETHER = re.compile(r"(.+_self_attn)_(?:to_)?(?:q|k|v|out)(?:_proj)?")

# Layers by which loaders tell the base model.
_TELLTALE = re.compile(r".*(?:attn2_to_[kv]|self_attn_.+|time_emb_proj|emb_layers_1|img_in.*)")


def prune(plan: Plan, data: TensorData) -> Plan:
    """The plan with zeroed modules removed where that is safe, and warnings about where it is not."""
    zeroed = {decision.module.name for decision in plan.decisions if decision.action == ZEROED}
    reason = _whole_file_reason(plan, data) if zeroed else ""
    if reason:
        return _pruned(plan, [f"{counted(len(zeroed), 'module')} at weight 0 kept as zeros: {reason}"])
    kept = dict(_kept_by_themselves(plan, zeroed))
    kept |= dict.fromkeys(_torn(plan, zeroed - kept.keys()), "the rest of their attention is not at weight 0")
    kept |= dict.fromkeys(_last_telltale(plan, zeroed - kept.keys()), "loaders tell the base model by them")
    reasons: dict[str, list[str]] = {}
    for name, why in kept.items():
        reasons.setdefault(why, []).append(name)
    warnings = [
        f"{counted(len(names), 'module')} at weight 0 kept as zeros: {why} ({names[0]})"
        for why, names in reasons.items()
    ]
    removed = zeroed - kept.keys()
    decisions = tuple(
        _removed(decision) if decision.module.name in removed else decision for decision in plan.decisions
    )
    return _pruned(replace(plan, edition=Edition(plan.edition.tensors, decisions)), warnings)


def _removed(decision: Decision) -> Decision:
    return replace(decision, action=REMOVED, edits={tensor.name: Drop() for tensor in decision.module.all_tensors})


def _pruned(plan: Plan, warnings: Iterable[str]) -> Plan:
    return replace(plan, warnings=(*plan.warnings, *warnings), pruned=True)


def _whole_file_reason(plan: Plan, data: TensorData) -> str:
    """Why no module of the file may be removed, empty if some may."""
    if ADAPTER_METADATA in plan.lora.file.metadata or configuration(plan.lora):
        return "the adapter's configuration names the modules, and PEFT would make missing ones anew"
    modules = [decision.module for decision in plan.decisions if decision.module.rank]
    # Without alphas diffusers before 0.40 takes the first module's rank for that of all.
    alphas = {alpha_of(module, data.read) if "alpha" in module.tensors else module.rank for module in modules}
    if len(alphas) > 1:
        return "their alphas (or ranks, without any) differ, and diffusers gives all one of those that are left"
    return ""


def _kept_by_themselves(plan: Plan, zeroed: set[str]) -> Iterator[tuple[str, str]]:
    """Zeroed modules that have to stay whatever becomes of the others, and why."""
    family = plan.weights.family
    # A layer of which some key is left, and no module, makes loaders refuse the whole file.
    beside = {layer for tensor in plan.lora.unknown(family) for layer in _layers_of(tensor.name)}
    for decision in plan.decisions:
        module = decision.module
        if module.name not in zeroed:
            continue
        if "reshape_weight" in module.tensors:
            yield module.name, "they change the size of their layer"
        elif module.name in beside:
            yield module.name, "unknown tensors of their layer stay"
        elif module.component == DENOISER and family.denoiser != "unet":
            yield module.name, f"loaders of {family.title} count its blocks"


def _layers_of(name: str) -> Iterator[str]:
    """The layers a tensor may be of: whatever precedes a dot of its name."""
    return (name[: dot.start()] for dot in re.finditer(r"\.", name[: LONGEST_NAME + 1]))


def _torn(plan: Plan, removed: set[str]) -> list[str]:
    """Modules to be removed whose attention has others that are not."""
    groups: dict[tuple[str, str], list[str]] = {}
    for decision in plan.decisions:
        if match := _TOGETHER.fullmatch(decision.module.path):
            groups.setdefault((decision.module.component, match[1]), []).append(decision.module.name)
    torn = [group for group in groups.values() if not removed.issuperset(group)]
    return [name for group in torn for name in group if name in removed]


def _last_telltale(plan: Plan, removed: set[str]) -> list[str]:
    """A module to be removed by which loaders tell the model, if none would be left; with its attention."""
    telling = [decision.module for decision in plan.decisions if _TELLTALE.fullmatch(decision.module.path)]
    telling = telling or [decision.module for decision in plan.decisions]
    if not telling or any(module.name not in removed for module in telling):
        return []
    first = min(telling, key=lambda module: module.component != DENOISER)
    attention = _TOGETHER.fullmatch(first.path)
    together = [
        module.name
        for module in telling
        if attention and module.component == first.component and module.path.startswith(f"{attention[1]}_")
    ]
    return together or [first.name]

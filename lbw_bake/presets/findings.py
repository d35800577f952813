"""What can be wrong with a preset file: the table of rules, and a finding, which is one defect and where it stands.

A code never changes its meaning. docs/preset-rules.md has a section for each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of defect: a stable code, how bad it is, what it is, and what to do about it."""

    code: str
    severity: str
    title: str
    remedy: str


def _table(*rows: tuple[str, str, str, str]) -> dict[str, Rule]:
    return {row[0]: Rule(*row) for row in rows}


RULES: dict[str, Rule] = _table(
    # Files and lines
    ("LBW101", ERROR, "the file is not UTF-8 text", "save it as UTF-8"),
    ("LBW102", WARNING, "byte order mark", "save it as UTF-8 without a byte order mark"),
    ("LBW103", ERROR, "full-width punctuation", "write the ASCII characters : and ,"),
    ("LBW104", WARNING, "tab", "write spaces"),
    ("LBW105", ERROR, "no colon", "write NAME:1,0,0,... or start the line with # to make it a comment"),
    ("LBW106", ERROR, "second colon", "one line holds one preset: NAME:1,0,0,..."),
    ("LBW107", ERROR, "# inside a preset line", "put the comment on a line of its own"),
    ("LBW108", WARNING, "comment where the format has none", "remove the line"),
    ("LBW109", ERROR, "malformed analyser macro", "write @NAME:TOTAL or @NAME:TOTAL,EXTRAS,BLOCK"),
    ("LBW110", WARNING, "no presets in the file", "remove the file, or write a preset: NAME: 1,0,0,..."),
    ("LBW111", ERROR, "too many findings", "correct the first ones, then check it again"),
    ("LBW112", ERROR, "path that cannot be read", "check its path and permissions"),
    # Names
    ("LBW201", ERROR, "name defined twice", "remove or rename one of them"),
    ("LBW202", WARNING, "name defined for another length too", "rename one: tools that know one length keep the last"),
    ("LBW203", WARNING, "reserved name", "rename it: the extension puts plot values into XYZ and ZYX"),
    ("LBW204", ERROR, "name that breaks a prompt", "use letters, digits, spaces and _ - . ( ) +"),
    ("LBW205", WARNING, "space at the edge of a name", "remove it: some tools look for the name with the space"),
    ("LBW206", WARNING, "other values than the built-in preset", "rename it, or keep it to replace the built-in one"),
    # Values
    ("LBW301", ERROR, "wrong number of values", "give one value per block of a known layout"),
    ("LBW302", ERROR, "empty value", "write 0 to leave a block out, and no comma after the last value"),
    ("LBW303", ERROR, "not a number", "write a decimal number like 0.5"),
    ("LBW304", ERROR, "lower-case variable", "write R, U and X as capitals"),
    ("LBW305", ERROR, "not a finite number", "write a decimal number like 0.5"),
    ("LBW306", WARNING, "unusually large value", "check the decimal point; weights are usually between -1 and 2"),
    ("LBW307", WARNING, "random value", "bake it with --seed NUMBER, or write a number"),
    ("LBW308", WARNING, "variable", "bake it with the option it needs, or write a number"),
    ("LBW309", WARNING, "spelling that one tool does not read", "write it the way all tools read it"),
    ("LBW310", ERROR, "several values for one block", "give each block one value"),
    ("LBW311", WARNING, "length that fits two families", "check that it means what is wanted, or use presets.yaml"),
    # Block selectors and element rules
    ("LBW401", ERROR, "element rule without exactly two colons", "write BLOCKS:WORDS:WEIGHT, as IN05-OUT05:attn:0.5"),
    (
        "LBW402",
        ERROR,
        "two entries without an empty line between them",
        "put an empty line, without spaces, between them",
    ),
    ("LBW403", ERROR, "unknown block", "write blocks like BASE IN04 M00 OUT05, D07 or S12"),
    ("LBW404", WARNING, "reversed range", "write the lower end first"),
    ("LBW405", ERROR, "range with more than two ends", "write FIRST-LAST"),
    ("LBW406", ERROR, "entry without element rules", "write NAME:BLOCKS:WORDS:WEIGHT"),
    ("LBW407", ERROR, "NOT of no word", "write the words it is not for: IN05:NOT attn:0.5"),
    ("LBW408", ERROR, "position that is no block, or several", "name the blocks: IN04=0.5"),
    # presets.yaml
    ("LBW501", ERROR, "not valid YAML", "correct the syntax"),
    ("LBW502", ERROR, "alias or tag", "write the values out, without *, & and !"),
    ("LBW503", ERROR, "not a mapping of names", "write NAME: 1,0,0,..."),
    ("LBW504", ERROR, "key given twice", "remove one: YAML readers keep the last in silence"),
    ("LBW505", ERROR, "unknown key", "write a family's name, weights, elements or description"),
    ("LBW506", ERROR, "wrong kind of value", "write a vector, a list of vectors or a mapping of blocks"),
    ("LBW507", ERROR, "too large or too deeply nested", "split the file"),
    ("LBW508", WARNING, "preset without weights or element rules", "give it values or remove it"),
    ("LBW509", ERROR, "two vectors of one length", "remove one: only the first would ever count"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect: its rule's code, where it stands (from 1), in which preset, and what is wrong in words."""

    code: str
    line: int
    column: int
    name: str
    message: str
    hint: str = ""

    @property
    def rule(self) -> Rule:
        """The kind of defect this is."""
        return RULES[self.code]

    @property
    def is_error(self) -> bool:
        """Whether the file cannot be used like this."""
        return self.rule.severity == ERROR

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.hint or self.rule.remedy


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings as they stand in the file."""
    return tuple(sorted(findings, key=lambda finding: (finding.line, finding.column, finding.code)))

"""Findings as text, JSON, GitHub workflow commands and SARIF 2.1.0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from . import __version__
from .checks import STDIN, Checked
from .console import escape, json_text, paint
from .presets.findings import RULES, Finding, Rule
from .words import counted

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def text(results: Sequence[Checked]) -> Iterator[str]:
    """`file:line:column: error LBW101: message`, and below it what to do."""
    for path, finding in _all(results):
        severity = paint(finding.rule.severity, finding.rule.severity, stdout=True)
        where = f"{escape(_shown(path))}:{finding.line}:{finding.column}"
        yield f"{where}: {severity} {finding.code}: {escape(finding.message)}"
        yield f"    {escape(finding.remedy)}"


def summary(results: Sequence[Checked]) -> str:
    """What was found in how much, in a line."""
    errors = sum(result.errors for result in results)
    warnings = sum(len(result.findings) for result in results) - errors
    found = f"{counted(errors, 'error')}, {counted(warnings, 'warning')}" if errors or warnings else "nothing to report"
    presets = counted(sum(result.presets for result in results), "preset")
    return f"{found} in {presets} of {counted(len(results), 'file')}"


def as_json(results: Sequence[Checked]) -> Iterator[str]:
    """One list of objects."""
    findings = [
        {
            "file": str(path),
            "line": finding.line,
            "column": finding.column,
            "severity": finding.rule.severity,
            "code": finding.code,
            "name": finding.name,
            "message": finding.message,
        }
        for path, finding in _all(results)
    ]
    yield json_text(findings, indent=1)


def github(results: Sequence[Checked]) -> Iterator[str]:
    """Workflow commands, which GitHub Actions shows beside the lines."""
    for path, finding in _all(results):
        properties = {
            "file": path.as_posix(),
            "line": finding.line,
            "col": finding.column,
            "title": f"{finding.code} {finding.rule.title}",
        }
        listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
        yield f"::{finding.rule.severity} {listed}::{_data(f'{finding.message}; {finding.remedy}')}"


def sarif(results: Sequence[Checked]) -> Iterator[str]:
    """A SARIF log, for code scanning."""
    driver = {"name": "lbw", "version": __version__, "rules": [_sarif_rule(rule) for rule in RULES.values()]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_sarif_result(path, finding) for path, finding in _all(results)],
    }
    yield json_text({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1)


FORMATS = {"text": text, "json": as_json, "github": github, "sarif": sarif}


def _all(results: Sequence[Checked]) -> Iterator[tuple[Path, Finding]]:
    for result in results:
        for finding in result.findings:
            yield result.path, finding


def _shown(path: Path) -> str:
    return "<stdin>" if path == STDIN else str(path)


def _data(value: object) -> str:
    return escape(value).replace("%", "%25")


def _property(value: object) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")


def _sarif_rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "shortDescription": {"text": rule.title},
        "help": {"text": rule.remedy},
        "defaultConfiguration": {"level": rule.severity},
    }


def _sarif_result(path: Path, finding: Finding) -> dict[str, Any]:
    uri = path.resolve().as_uri() if path.is_absolute() else quote(path.as_posix())
    region = {"startLine": finding.line, "startColumn": finding.column}
    return {
        "ruleId": finding.code,
        "ruleIndex": list(RULES).index(finding.code),
        "level": finding.rule.severity,
        "message": {"text": f"{finding.message}; {finding.remedy}"},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri}, "region": region}}],
    }

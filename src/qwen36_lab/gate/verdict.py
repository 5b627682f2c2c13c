"""What answers come to: shares, labels, and whether a deployment is within the limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .ask import Answer
from .checks import failures, label_of
from .suite import Suite


def judge(suite: Suite, candidate: Mapping[str, Answer], reference: Mapping[str, Answer] | None) -> dict[str, Any]:
    """The result of a gate.

    Args:
        candidate: answers by row, of the deployment that is looked at.
        reference: those of the one that it is compared with; None without one.
    Returns:
        `accepted`, `failures` in words, the `envelope`, `measured` shares, and what was found of each `row`.
    """
    rows = [_row(suite, index, candidate, reference) for index in range(len(suite.rows))]
    ran = [row for row in rows if row["state"] in ("passed", "failed")]
    hard = [row["id"] for row in rows if row["hard"] and row["state"] != "passed"]
    compared = [row["agrees"] for row in ran if row.get("agrees") is not None]
    longest = max((row["answer"]["prompt_tokens"] for row in ran), default=0)
    measured: dict[str, Any] = {
        "rows": len(rows),
        "ran": len(ran),
        "skipped": sum(row["state"] == "skipped" for row in rows),
        "errors": sum(row["state"] == "error" for row in rows),
        "hard_rows": sum(row["hard"] for row in rows),
        "hard_failures": len(hard),
        "pass_rate": _share(sum(row["state"] == "passed" for row in ran), len(ran)),
        "agreement": _share(sum(compared), len(compared)),
        "compared": len(compared),
        "reference_errors": sum(one.error is not None for one in (reference or {}).values()),
        "labels": _by_label(suite, ran),
        "longest_prompt": longest,
        "longest_completion": max((row["answer"]["completion_tokens"] for row in ran), default=0),
        "coverage": longest / suite.prompt_tokens,
    }
    found = _failures(suite, measured, hard)
    return {
        "suite": suite.name,
        "suite_sha256": suite.digest,
        "accepted": not found,
        "failures": found,
        "envelope": {"prompt_tokens": suite.prompt_tokens, "completion_tokens": suite.completion_tokens},
        "limits": asdict(suite.limits),
        "measured": measured,
        "rows": rows,
    }


def _row(
    suite: Suite, index: int, candidate: Mapping[str, Answer], reference: Mapping[str, Answer] | None
) -> dict[str, Any]:
    row = suite.rows[index]
    answer = candidate[row.id]
    found: dict[str, Any] = {"id": row.id, "hard": row.hard, "answer": answer.as_dict()}
    if answer.error is not None or answer.skipped is not None:
        state = "error" if answer.error is not None else "skipped"
        return {**found, "state": state, "failures": [answer.error or answer.skipped]}
    problems = failures(row.checks, answer.text)
    label = label_of(answer.text, suite.labels, suite.label_field) if suite.labels else None
    if row.checks.label is not None:
        found["label"] = {"given": label, "right": row.checks.label}
        if row.hard and label != row.checks.label:
            problems.append(f"is labelled {label}, not {row.checks.label}")
    other = None if reference is None else reference.get(row.id)
    if other is not None and other.error is None and other.skipped is None:
        if suite.labels:
            found["agrees"] = label is not None and label == label_of(other.text, suite.labels, suite.label_field)
        else:
            found["agrees"] = answer.text.strip() == other.text.strip()
        found["reference"] = other.as_dict()
    return {**found, "state": "failed" if problems else "passed", "failures": problems}


def _by_label(suite: Suite, ran: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Precision and recall of each label over the rows that have a right one."""
    pairs = [(row["label"]["given"], row["label"]["right"]) for row in ran if "label" in row]
    table = {}
    for label in suite.labels:
        both = sum(given == right == label for given, right in pairs)
        given, right = (sum(pair[side] == label for pair in pairs) for side in (0, 1))
        table[label] = {"rows": right, "precision": _share(both, given), "recall": _share(both, right)}
    return table


def _failures(suite: Suite, measured: Mapping[str, Any], hard: list[str]) -> list[str]:
    limits, found = suite.limits, []
    if len(hard) > limits.hard_failures:
        found.append(f"hard rows failed: {', '.join(hard)}")
    if measured["errors"]:
        found.append(f"{measured['errors']} rows had no answer")
    if measured["skipped"] > limits.skipped:
        found.append(f"{measured['skipped']} rows were skipped, of {limits.skipped} that may be")
    for name in ("pass_rate", "agreement"):
        least, share = getattr(limits, name), measured[name]
        if least is not None and (share is None or share < least):
            found.append(f"{name} is {_shown(share)}, of {least:g} at least")
    for name in ("precision", "recall"):
        least = getattr(limits, name)
        for label, shares in measured["labels"].items():
            # A label that no row has, or that no answer gave, has no such share.
            if least is not None and shares["rows"] and (shares[name] or 0.0) < least:
                found.append(f"{name} of {label} is {_shown(shares[name])}, of {least:g} at least")
    if measured["coverage"] < limits.coverage:
        longest, asked = measured["longest_prompt"], limits.coverage * suite.prompt_tokens
        found.append(f"the longest prompt that ran has {longest} tokens, of {asked:g} that the envelope asks for")
    return found


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _shown(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.3f}"

"""What answers come to, each limit at its boundary and one row beyond."""

from __future__ import annotations

from typing import Any

import pytest

from qwen36_lab.gate.ask import Answer
from qwen36_lab.gate.checks import failures, label_of
from qwen36_lab.gate.suite import Checks, Suite
from qwen36_lab.gate.verdict import judge

LABELS = ("refund", "invoice", "refund request")
SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("checks", "answer", "holds"),
    [
        (Checks(exact="4"), " 4\n", True),
        (Checks(exact="4"), "44", False),
        (Checks(contains=("a", "b")), "b and a", True),
        (Checks(contains=("a", "b")), "a", False),
        (Checks(json_schema=SCHEMA), '{"a": 1}', True),
        (Checks(json_schema=SCHEMA), '```json\n{"a": 1}\n```', True),
        (Checks(json_schema=SCHEMA), '{"a": "1"}', False),
        (Checks(json_schema=SCHEMA), "{a: 1}", False),
        (Checks(json_schema=SCHEMA), 'Here: {"a": 1}', False),
        (Checks(exact="x", contains=("y",)), "x", False),
        (Checks(), "", True),
    ],
)
def test_a_check_holds_or_says_what_does_not(checks: Checks, answer: str, holds: bool) -> None:
    assert (failures(checks, answer) == []) is holds


@pytest.mark.parametrize(
    ("answer", "field", "label"),
    [
        ("refund", None, "refund"),
        (" REFUND. ", None, "refund"),
        ("It is an invoice", None, "invoice"),
        ("invoices", None, None),
        ("refund or invoice", None, None),
        ("refund request", None, "refund request"),
        ("", None, None),
        ('{"kind": "Invoice"}', "kind", "invoice"),
        ('{"kind": "an invoice"}', "kind", None),
        ('{"other": "invoice"}', "kind", None),
        ("invoice", "kind", None),
        ("[]", "kind", None),
    ],
)
def test_the_label_of_an_answer(answer: str, field: str | None, label: str | None) -> None:
    assert label_of(answer, LABELS, field) == label


def suite(rows: list[dict[str, Any]], **more: Any) -> Suite:
    return Suite.parse("s", {"envelope": {"prompt_tokens": 100, "completion_tokens": 20}, "rows": rows, **more})


def answers(*texts: str | Answer) -> dict[str, Answer]:
    made = [one if isinstance(one, Answer) else Answer(one, 80, 5) for one in texts]
    return {f"r{index}": one for index, one in enumerate(made)}


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{index}", "prompt": "p", **more} for index in range(count)]


YES = {"expect": {"exact": "yes"}}


@pytest.mark.parametrize(("least", "accepted"), [(0.75, True), (0.76, False)])
def test_the_share_of_rows_that_pass(least: float, accepted: bool) -> None:
    made = suite(rows(4, **YES), limits={"pass_rate": least})
    result = judge(made, answers("yes", "yes", "no", "yes"), None)
    assert result["accepted"] is accepted
    assert result["measured"]["pass_rate"] == 0.75
    assert [row["state"] for row in result["rows"]] == ["passed", "passed", "failed", "passed"]
    assert accepted or "pass_rate is 0.750" in result["failures"][0]


@pytest.mark.parametrize(
    "answer", ["no", Answer(error="HTTP 500"), Answer("yes", 101, 5, "its prompt has 101 tokens")], ids=str
)
@pytest.mark.parametrize(("allowed", "accepted"), [(0, False), (1, True)])
def test_a_hard_row_that_fails_has_no_answer_or_is_skipped(answer: str | Answer, allowed: int, accepted: bool) -> None:
    asked = [*rows(1, **YES, hard=True), {"id": "r1", "prompt": "p"}]
    made = suite(asked, limits={"hard_failures": allowed, "skipped": 1})
    result = judge(made, answers(answer, ""), None)
    # A row without an answer is never let pass: it says nothing of the model.
    assert result["accepted"] is (accepted and not (isinstance(answer, Answer) and answer.error is not None))
    assert result["measured"]["hard_failures"] == 1


def test_a_hard_row_must_have_its_label_and_another_is_counted() -> None:
    asked = [{"id": f"r{i}", "prompt": "p", "hard": i == 0, "expect": {"label": "refund"}} for i in range(2)]
    made = suite(asked, labels=list(LABELS))
    assert not judge(made, answers("invoice", "refund"), None)["accepted"]
    assert judge(made, answers("refund", "invoice"), None)["accepted"]


@pytest.mark.parametrize(("allowed", "accepted"), [(2, True), (1, False)])
def test_skipped_rows_are_counted_and_count_for_nothing_else(allowed: int, accepted: bool) -> None:
    skipped = Answer("no", 200, 5, "too long")
    made = suite(rows(4, **YES), limits={"skipped": allowed, "pass_rate": 1.0})
    result = judge(made, answers(skipped, "yes", skipped, "yes"), None)
    assert result["accepted"] is accepted
    assert (result["measured"]["ran"], result["measured"]["skipped"]) == (2, 2)
    assert result["measured"]["longest_prompt"] == 80


def test_precision_and_recall_by_label() -> None:
    right = ["refund", "refund", "refund", "invoice"]
    asked = [{"id": f"r{i}", "prompt": "p", "expect": {"label": label}} for i, label in enumerate(right)]
    given = answers("refund", "refund", "invoice", "invoice")
    made = suite(asked, labels=list(LABELS), limits={"precision": 0.5, "recall": 0.66})
    result = judge(made, given, None)
    table = result["measured"]["labels"]
    assert table["refund"] == {"rows": 3, "precision": 1.0, "recall": 2 / 3}
    assert table["invoice"] == {"rows": 1, "precision": 0.5, "recall": 1.0}
    assert table["refund request"] == {"rows": 0, "precision": None, "recall": None}
    assert result["accepted"]
    tighter = suite(asked, labels=list(LABELS), limits={"precision": 0.51, "recall": 0.67})
    assert len(judge(tighter, given, None)["failures"]) == 2
    never = judge(suite(asked, labels=list(LABELS), limits={"precision": 0.1}), answers(*["refund"] * 4), None)
    assert never["failures"] == ["precision of invoice is unknown, of 0.1 at least"]


@pytest.mark.parametrize(("least", "accepted"), [(0.5, True), (0.51, False)])
@pytest.mark.parametrize("labels", [[], list(LABELS)])
def test_agreement_is_of_labels_or_else_of_texts(labels: list[str], least: float, accepted: bool) -> None:
    made = suite(rows(3), labels=labels, limits={"agreement": least})
    same = "It is a refund" if labels else "refund"  # other words, the same label
    reference = answers(same, "invoice", Answer(error="HTTP 500"))
    result = judge(made, answers("refund", "refund", "refund"), reference)
    assert result["measured"]["agreement"] == 0.5
    assert (result["measured"]["compared"], result["measured"]["reference_errors"]) == (2, 1)
    assert result["accepted"] is accepted


def test_a_reference_without_answers_agrees_with_nothing() -> None:
    made = suite(rows(1), limits={"agreement": 0.1})
    assert not judge(made, answers("x"), answers(Answer(error="gone")))["accepted"]


@pytest.mark.parametrize(("longest", "accepted"), [(80, True), (79, False)])
def test_an_envelope_is_not_accepted_that_no_row_came_near(longest: int, accepted: bool) -> None:
    result = judge(suite(rows(1)), answers(Answer("", longest, 1)), None)
    assert result["accepted"] is accepted
    assert judge(suite(rows(1), limits={"coverage": 0}), answers(Answer("", 1, 1)), None)["accepted"]

"""The thinking budget: what has to come next follows from the tokens alone."""

from types import SimpleNamespace

import pytest
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from vllm_integration.thinking_budget import ThinkingBudget

START, END = 90, 91
VOCABULARY = 100


def made(forced=(END,)):
    config = SimpleNamespace(
        reasoning_start_token_ids=[START],
        reasoning_end_token_ids=list(forced),
        natural_reasoning_end_token_ids=[END],
    )
    return ThinkingBudget(SimpleNamespace(reasoning_config=config), torch.device("cpu"), False)


def params(budget):
    return SimpleNamespace(thinking_token_budget=budget)


@pytest.mark.parametrize(
    ("prompt", "output", "budget", "due"),
    [
        ([1, START], [], 0, END),
        ([1, START], [5], 2, None),
        ([1, START], [5, 6], 2, END),
        ([1, START], [5, 6, END], 2, None),
        ([1, START], [5, END, 7], 3, None),  # Ended by itself.
        ([1, START], [5, 6, 7], None, None),
        ([START, END], [5, 6], 2, None),
        ([1, 2], [5, 6], 2, None),
        ([END, START, 3], [5], 1, END),
        ([], [], 0, None),
    ],
)
def test_what_is_due(prompt, output, budget, due):
    assert made().due(params(budget), prompt, output) == due


def test_a_phrase_before_the_end_is_written_whole():
    budget, output = made((7, 8, END)), [5]
    for expected in (7, 8, END):
        assert budget.due(params(1), [START], output) == expected
        output.append(expected)
    assert budget.due(params(1), [START], output) is None


def test_without_reasoning_nothing_is_due():
    budget = ThinkingBudget(SimpleNamespace(reasoning_config=None), torch.device("cpu"), False)
    assert budget.due(params(0), [START], []) is None


def chosen(budget, rows):
    logits = torch.zeros(rows, VOCABULARY)
    logits[:, 3] = 1.0
    return budget.apply(logits).argmax(-1).tolist()


def test_rows_are_followed():
    budget = made()
    update = [(0, params(0), [START], []), (1, params(None), [START], []), (2, params(1), [START], [5])]
    budget.update_state(BatchUpdate(batch_size=3, removed=[], added=update, moved=[]))
    assert chosen(budget, 3) == [END, 3, END]
    budget.update_state(BatchUpdate(3, [], [], [(0, 1, MoveDirectionality.SWAP)]))
    assert chosen(budget, 3) == [3, END, END]
    budget.update_state(BatchUpdate(2, [1], [], [(2, 1, MoveDirectionality.UNIDIRECTIONAL)]))
    budget.update_state(None)
    assert chosen(budget, 2) == [3, END]


def test_a_grammar_that_forbids_the_end_goes_first():
    budget = made()
    budget.update_state(BatchUpdate(1, [], [(0, params(0), [START], [])], []))
    logits = torch.zeros(1, VOCABULARY)
    logits[0, END] = -torch.inf
    logits[0, 3] = 1.0
    assert budget.apply(logits).argmax(-1).tolist() == [3]

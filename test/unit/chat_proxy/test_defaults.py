"""Mode and sampling defaults: filled in exactly where the client left them out."""

from __future__ import annotations

import pytest

from vllm_integration.chat_proxy.defaults import NON_THINKING, THINKING, fill_mode, fill_sampling


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("kwargs", [None, {}, {"other": 1}, "absent"])
def test_the_default_mode_is_chosen_where_the_client_chose_none(default, kwargs):
    body = {} if kwargs == "absent" else {"chat_template_kwargs": kwargs}
    assert fill_mode(body, default) is default
    assert body["chat_template_kwargs"]["enable_thinking"] is default
    if kwargs == {"other": 1}:
        assert body["chat_template_kwargs"]["other"] == 1


@pytest.mark.parametrize(
    ("body", "thinks"),
    [
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"chat_template_kwargs": {"enable_thinking": "yes"}}, None),
        ({"chat_template_kwargs": [1]}, None),
    ],
)
@pytest.mark.parametrize("default", [True, False])
def test_the_clients_choice_is_left_as_it_is(body, thinks, default):
    given = dict(body)
    assert fill_mode(body, default) is thinks
    assert body == given


@pytest.mark.parametrize(("thinks", "published"), [(True, THINKING), (False, NON_THINKING)])
def test_sampling_is_filled_in_by_mode(thinks, published):
    body: dict = {"top_p": 0.5, "min_p": None}
    fill_sampling(body, thinks)
    assert body == {**published, "top_p": 0.5}


def test_the_published_modes_differ_as_the_model_card_says():
    assert (THINKING["temperature"], THINKING["top_p"], THINKING["presence_penalty"]) == (1.0, 0.95, 0.0)
    assert (NON_THINKING["temperature"], NON_THINKING["top_p"], NON_THINKING["presence_penalty"]) == (0.7, 0.8, 1.5)


@pytest.mark.parametrize("temperature", [0, 0.0])
def test_a_greedy_request_stays_greedy(temperature):
    body = {"temperature": temperature}
    fill_sampling(body, thinks=False)
    assert body == {"temperature": temperature}

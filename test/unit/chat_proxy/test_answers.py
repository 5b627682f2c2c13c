"""Answers of chat completions: thoughts under both names, all else as it was."""

from __future__ import annotations

import json

from vllm_integration.chat_proxy.answers import ChatAnswer


def chunk(**delta):
    body = json.dumps({"id": "c", "choices": [{"index": 0, "delta": delta}]}, separators=(",", ":"))
    return f"data: {body}\n\n".encode()


THOUGHT = chunk(reasoning="Hm, é")
QUOTED = chunk(content='{"reasoning": 1}')
STREAM = (
    chunk(role="assistant", content="") + THOUGHT + chunk(content="Yes") + b": ping\n\n" + QUOTED + b"data: [DONE]\n\n"
)


def deltas(stream: bytes):
    events = [event.removeprefix(b"data: ") for event in stream.split(b"\n\n") if event.startswith(b"data: {")]
    return [json.loads(event)["choices"][0]["delta"] for event in events]


def test_a_stream_cut_anywhere_names_thoughts_twice():
    whole = ChatAnswer().feed(STREAM)
    assert deltas(whole)[1] == {"reasoning": "Hm, é", "reasoning_content": "Hm, é"}
    for cut in range(len(STREAM)):
        answer = ChatAnswer()
        assert answer.feed(STREAM[:cut]) + answer.feed(STREAM[cut:]) + answer.finish() == whole


def test_events_without_thoughts_are_untouched():
    rest = STREAM.replace(THOUGHT, b"")
    assert ChatAnswer().feed(rest) == rest


def test_an_event_is_passed_on_when_it_is_complete():
    answer = ChatAnswer()
    assert answer.feed(QUOTED[:-1]) == b""
    assert answer.feed(b"\n" + b"data: ") == QUOTED
    assert answer.finish() == b"data: "


def test_other_line_ends_and_what_is_no_json_go_through():
    for odd in (
        b'data: {"reasoning": \r\n\r\n',
        b'data: {"choices": 5, "reasoning": 1}\n\n',
        b'event: x\ndata: "reasoning"\n\n',
    ):
        assert ChatAnswer().feed(odd) == odd


def test_a_whole_answer():
    for reasoning in ("Hm", None):
        body = json.dumps({"choices": [{"message": {"content": "x", "reasoning": reasoning}}] * 2}).encode()
        for choice in json.loads(ChatAnswer().whole(body))["choices"]:
            assert choice["message"] == {"content": "x", "reasoning": reasoning, "reasoning_content": reasoning}
    for body in (
        b"",
        b"not JSON",
        b'{"error": {"message": "no \\"reasoning\\""}}',
        b'{"choices": [{"message": "reasoning"}]}',
    ):
        assert ChatAnswer().whole(body) == body


async def test_chat_answers_have_both_names_and_completions_stay_as_they_are(make, engine):
    async def answer(body, receive, send):
        await engine.start(send)
        await engine.piece(send, STREAM[:-20])
        await engine.piece(send, STREAM[-20:], more=False)

    engine.answer = answer
    stack = await make()
    assert (await stack.chat(stream=True)).content == ChatAnswer().feed(STREAM)
    assert (await stack.client.post("/v1/completions", json={"prompt": "x"})).content == STREAM

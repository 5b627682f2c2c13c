"""What the scheduler has to know of reasoning: where grammars begin to hold and stop strings begin to count."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tokenizers.decoders import DecodeStream
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from .parsers.reasoning import QwenReasoningParser
from .parsers.reasoning_splitter import THINK_END, THINK_START, is_open
from .parsers.stops import ANSWER_STOP, StopCutter

_COMPLETION = re.compile(r"(\d+_)?cmpl-")
"""How the ids begin that vLLM's server gives to requests of /v1/completions, and to each of several choices."""


class StopStringDetector:
    """Looks for stop strings in one request's answer, token by token.

    Args:
        stops: the strings.
        tokenizer: a `tokenizers.Tokenizer`.
        end_id: the token that ends the reasoning; None if none is open.
    """

    def __init__(self, stops: list[str], tokenizer: Any, end_id: int | None) -> None:
        self._cutter = StopCutter(stops)
        self._tokenizer, self._end_id = tokenizer, end_id
        self._stream = DecodeStream(skip_special_tokens=True)
        self._between = end_id is not None
        """Whether the answer's first character is still to come, after line ends that belong to nobody."""

    def sees(self, token_id: int) -> str | None:
        """The stop string that ends with this token, if one does."""
        if self._end_id is not None:
            if token_id == self._end_id:
                self._end_id = None
            return None
        text = self._stream.step(self._tokenizer, token_id) or ""
        if self._between:
            text = text.lstrip("\n")
            self._between = not text
        self._cutter.feed(text)
        return self._cutter.hit


class Answers:
    """Where the answers of the requests begin.

    Args:
        structured_outputs: vLLM's manager of grammars, which has the tokenizer and the reasoning parser's class.
        drafts: whether a step may give a request several tokens.
    """

    def __init__(self, structured_outputs: StructuredOutputManager, drafts: bool = False) -> None:
        self._drafts = drafts
        self._ours = structured_outputs.reasoner_cls is QwenReasoningParser
        self._tokenizer = getattr(structured_outputs, "tokenizer", None)  # None with --skip-tokenizer-init
        self._detectors: dict[str, StopStringDetector] = {}
        self._texts: dict[str, IncrementalDetokenizer] = {}
        """Of requests whose stop strings vLLM's server looks for, the same text as there."""
        self._ended: list[str] = []
        """Of those, the ones whose last tokens may not have been handed over yet."""

    def admit(self, request: Request) -> None:
        """Look at a new request.

        The server says that reasoning has ended where the client only does not want to see it, and says nothing of a
        completion, whose whole text is to obey its grammar.
        """
        structured = request.structured_output_request
        if structured is not None and self._ours:
            structured.reasoning_ended = _COMPLETION.match(request.request_id) is not None or not self._thinks(request)
        if self._drafts and request.sampling_params is not None and request.sampling_params.stop:
            self._texts[request.request_id] = IncrementalDetokenizer.from_new_request(self._tokenizer, request)
        stops = _stops(request)
        if stops and self._tokenizer is not None:
            end_id = self._tokenizer.convert_tokens_to_ids(THINK_END) if self._thinks(request) else None
            self._detectors[request.request_id] = StopStringDetector(stops, self._tokenizer._tokenizer, end_id)

    def stop_of(self, request: Request, token_ids: list[int]) -> tuple[int, str] | None:
        """How many of a request's new tokens it takes to complete a stop string, and which; None if none is."""
        detector = self._detectors.get(request.request_id)
        if detector is not None:
            for count, token_id in enumerate(token_ids, 1):
                stop = detector.sees(token_id)
                if stop is not None:
                    return count, stop
        return None

    def cut_after_stops(self, outputs: Mapping[int, EngineCoreOutputs]) -> None:
        """Hand no token to vLLM's server that comes after one which completes a stop string, of several in one step.

        The server looks for stop strings once a step, in the text, and would count the tokens after one as the
        request's. It ends the request, which goes on here until it is told to abort it.
        """
        for client in outputs.values():
            for output in client.outputs:
                text = self._texts.get(output.request_id)
                if text is not None:
                    _cut_after_stop(output, text)
        for request_id in self._ended:
            self._texts.pop(request_id, None)
        self._ended.clear()

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self._detectors.pop(request.request_id, None)
        if request.request_id in self._texts:
            self._ended.append(request.request_id)

    def _thinks(self, request: Request) -> bool:
        assert self._tokenizer is not None
        start_id, end_id = (self._tokenizer.convert_tokens_to_ids(tag) for tag in (THINK_START, THINK_END))
        return is_open(request.prompt_token_ids or (), start_id, end_id)


def _cut_after_stop(output: EngineCoreOutput, text: IncrementalDetokenizer) -> None:
    """Cut what one request is given after the token that completes a stop string; `text` takes it in."""
    given = output.new_token_ids
    for count, token_id in enumerate(given, 1):
        last = count == len(given)
        if text.update([token_id], last and output.finish_reason is FinishReason.STOP) is not None and not last:
            output.new_token_ids = given[:count]
            if output.new_logprobs is not None:
                output.new_logprobs = output.new_logprobs.slice_request(0, count)
            output.finish_reason = output.stop_reason = None  # what ended it came after the stop string
            return


def _stops(request: Request) -> list[str]:
    params = request.sampling_params
    return (params.extra_args or {}).get(ANSWER_STOP, []) if params is not None else []

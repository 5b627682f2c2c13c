"""Stop strings that are looked for in the answer alone.

vLLM looks for a stop string in everything that is generated, in its server, where nothing is known of reasoning. Where
a chat request's reasoning is open, its stop strings therefore go another way: the reasoning parser writes them among
the request's extra arguments, the tool parser takes them from vLLM, the scheduler ends the request (`answers.py`), and
the parsers cut the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ANSWER_STOP = "answer_stop"
"""Key of `vllm_xargs` under which the stop strings travel to the scheduler."""
INCLUDED = "answer_stop_included"
"""Key of `vllm_xargs` that says that the client wants to see the stop string."""
STOP_IN_REASONING = "stop_in_reasoning"
"""Key of `vllm_xargs` by which a request asks for vLLM's meaning: a stop string counts in the reasoning too."""


class StopCutter:
    """Passes text on up to the first stop string, whatever the pieces are.

    Of several in one piece it is the one that is complete first, and among those the first of the list, as in vLLM.
    """

    def __init__(self, stops: Sequence[str], included: bool = False) -> None:
        self.stops, self.included = tuple(stops), included
        self.hit: str | None = None
        self._held = ""

    def feed(self, text: str) -> str:
        """What of one more piece, and of what was held back, is certainly before a stop string."""
        if self.hit is not None:
            return ""
        text, self._held = self._held + text, ""
        found = [(at + len(stop), i) for i, stop in enumerate(self.stops) if (at := text.find(stop)) >= 0]
        if found:
            end, i = min(found)
            self.hit = self.stops[i]
            return text[: end if self.included else end - len(self.hit)]
        kept = max((_begun(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, stop: str) -> int:
    """How many characters of `stop` the text ends with; fewer than all."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def move_stops_to_scheduler(request: Any) -> None:
    """Write a request's stop strings where the scheduler reads them, if they can be looked for in the answer alone.

    With `min_tokens`, `stop_token_ids` or special tokens shown, the text that the parsers see does not tell where a
    stop was found, so vLLM's meaning stays.
    """
    extra = request.vllm_xargs or {}
    stops = [request.stop] if isinstance(request.stop, str) else list(request.stop or ())
    if (
        not stops
        or not all(stops)
        or extra.get(STOP_IN_REASONING)
        or getattr(request, "min_tokens", 0)
        or getattr(request, "stop_token_ids", None)
        or getattr(request, "use_beam_search", False)
        or not getattr(request, "skip_special_tokens", True)
    ):
        return
    request.vllm_xargs = {**extra, ANSWER_STOP: stops, INCLUDED: int(request.include_stop_str_in_output)}


def clear_server_stops(request: Any) -> None:
    """Take the stop strings that were set apart away from vLLM.

    Its server drops the last token of what ended for a stop unless it is told to include it, and here that token may
    end the answer.
    """
    if ANSWER_STOP in (request.vllm_xargs or {}):
        request.stop, request.include_stop_str_in_output = [], True


def cutter_of(request: Any) -> StopCutter | None:
    """The cutter of a request whose stop strings were taken over."""
    extra = getattr(request, "vllm_xargs", None) or {}
    if ANSWER_STOP not in extra or request.stop:
        return None
    return StopCutter(extra[ANSWER_STOP], bool(extra.get(INCLUDED)))

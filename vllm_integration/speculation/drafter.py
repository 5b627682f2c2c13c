"""Which drafts each request gets in its next step: from whom, and how many.

A draft costs the time to make and to verify it, and is worth a step that need not be run, as often as it is right. So
that speculation is never slower than none, each request gets as many as raise the tokens a second of the whole batch,
by what steps have cost and what its drafts have earned. No token depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING

from qwen36_neuron.runtime import DraftRequest, Runtime

from .acceptance import Acceptance
from .config import DraftLimits
from .costs import OUTLIER, RELAX, StepCosts
from .lookup import Match, TokenHistory, look_up

if TYPE_CHECKING:
    from ..requests import RequestState

REQUEST_MEMORY, ENGINE_MEMORY = 0.9, 0.99
PROBE_FIRST, PROBE_LAST = 4, 128
"""Steps without drafts after which a request whose drafts do not pay is tried with one, at first and at last."""
PLAIN_EVERY = 50
"""Steps with drafts after which one goes without, so that what those cost stays known."""
PROBE_PART = 0.01
"""Of the time that steps take, what all tries together may take."""
PUT_OFF = 0.25
"""Of what it costs to get the draft layer up to date, what its drafts must have been worth before that is done."""
LOOK_FIRST, LOOK_LAST = 4, 16
"""Steps after which requests without drafts are looked at again, at first and at last; in between they cost next to
nothing."""
MARGIN = 0.05
"""By how much drafts must raise the tokens a second. Of what costs and acceptance say, the best of several numbers of
drafts looks a little better than it is; what is gained by so little is as often lost."""
ROUNDS = 3
"""Of the search for the best rate; it converges at the second, hardly ever at the third."""


class Source(Enum):
    """Who makes drafts."""

    MTP = "mtp"
    """The checkpoint's own draft layer; classes are places in the row."""
    LOOKUP = "lookup"
    """The request's own tokens; classes are lengths of the match, in powers of two."""


@dataclass(slots=True)
class DraftHistory:
    """What a request's drafts have earned.

    Attributes:
        rates: by source.
        tokens: its tokens, for lookup.
        proposed: drafts made for the step that runs, some of which the scheduler may have cut off.
        source: who made them; None if there are none.
        length: of the match that they came from.
        unused: steps since it had drafts.
        seen: of its tokens that have run, those that the draft layer was shown.
        missed: seconds that drafts of that layer would have saved since it was shown any.
        patience: steps after which it is tried again.
    """

    rates: dict[Source, Acceptance]
    tokens: TokenHistory = field(default_factory=TokenHistory)
    proposed: tuple[int, ...] = ()
    source: Source | None = None
    length: int = 0
    unused: int = 0
    seen: int = 0
    missed: float = 0.0
    patience: int = PROBE_FIRST


@dataclass(frozen=True, slots=True)
class _Option:
    """Drafts that a request may have, and what they are worth.

    Attributes:
        expected: tokens that 1, 2, ... drafts are expected to save.
        cost: seconds that one takes to make and verify.
    """

    source: Source
    expected: tuple[float, ...]
    cost: float
    match: Match | None = None

    def best(self, rate: float) -> tuple[float, int]:
        """The number of drafts that is worth most, and what it is worth: tokens beyond `rate` a second for its time."""
        worth, count = 0.0, 0
        for index, expected in enumerate(self.expected, start=1):
            gain = expected - rate * self.cost * index
            if gain > worth:
                worth, count = gain, index
        return worth, count


@dataclass(frozen=True, slots=True)
class _Choice:
    option: _Option | None
    count: int


class Drafter:
    """Makes the drafts of all requests that run."""

    def __init__(
        self, runtime: Runtime, limits: DraftLimits, costs: StepCosts, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.runtime, self.limits, self.costs, self._clock = runtime, limits, costs, clock
        self._rates = {source: Acceptance(ENGINE_MEMORY) for source in Source}
        self._ended: float | None = None
        self._expected, self._drafting, self._off = 0.0, 0.0, 1.0
        """Seconds that the next step and its drafts should take, that the drafts did, and by what factor such sums were
        too low of late: what is known of the parts is only an estimate of the whole."""
        self._proposed = 0
        """Drafts made for the next step, all requests together."""
        self._steps, self._drafted = 0, 0
        """Steps in all, and in a row those that had drafts."""
        self._token = 0.0
        """Seconds that a token takes, all requests together."""
        self._allowance = 0.0
        """Seconds that tries may take: what steps have added to it, and what tries saved that were right."""

    def stepped(self, states: Sequence[RequestState], seconds: float) -> None:
        """A step has run and given its tokens: learn from its drafts and from what it took.

        Args:
            seconds: of the device and of the sampler.
        """
        now = self._clock()
        if self._expected and sum(len(state.drafts) for state in states) == self._proposed:
            off = min(max((seconds + self._drafting) / self._expected, 1 / OUTLIER), OUTLIER)
            self._off += 0.1 * (off - self._off)
        self._expected = 0.0
        for state in states:
            self._learn(state)
        if all(state.end - state.start == 1 for state in states):
            rows, drafts = len(states), sum(len(state.drafts) for state in states)
            self.costs.ran(rows, drafts, seconds)
            if not drafts:
                self._off += RELAX * min(0.0, 1.0 - self._off)
            if self._ended is not None:
                self.costs.between.observe(rows, now - self._ended - seconds)
        self._ended = now

    def _learn(self, state: RequestState) -> None:
        """What the step gave tells of its drafts, and of the first one that was cut off too.

        A grammar has those cut off that it does not allow. They were wrong like any other: were they left out, a source
        that knows nothing of the grammar would go on making them.
        """
        history = self._history(state)
        if history.source is None or not state.given:
            return
        rates = history.rates[history.source]
        for place, (draft, token) in enumerate(zip(history.proposed, state.output[-state.given :], strict=False)):
            kind = place if history.source is Source.MTP else history.length.bit_length()
            rates.observe(kind, draft == token)
        history.proposed, history.source = (), None
        accepted = state.given - 1
        if accepted and history.unused:
            self._allowance += accepted * self._token
            history.unused, history.patience = history.patience, PROBE_FIRST  # one was right: try the next one too

    def draft(self, states: Sequence[RequestState]) -> list[list[int]]:
        """Drafts for the next step of requests that have just been given tokens, in their order."""
        started = self._clock()
        choices = self._choose(states)
        wanted = [
            (index, choice.count)
            for index, choice in enumerate(choices)
            if choice.option is not None and choice.option.source is Source.MTP
        ]
        made = self._make(states, wanted)
        drafts: list[list[int]] = []
        for index, (state, choice) in enumerate(zip(states, choices, strict=True)):
            history = self._history(state)
            match = choice.option.match if choice.option is not None else None
            found = list(match.drafts[: choice.count]) if match is not None else made.get(index, [])
            history.source = choice.option.source if choice.option is not None and found else None
            history.proposed, history.length = tuple(found), match.length if match is not None else 0
            drafts.append(found)
        self._proposed = sum(map(len, drafts))
        self._drafting = self._clock() - started
        if self._ended is not None:
            self._ended += self._drafting
        return drafts

    # ---- how many ----------------------------------------------------------------------------------------------------

    def _choose(self, states: Sequence[RequestState]) -> list[_Choice]:
        self._steps += 1
        if self._nobody_is_due(states):
            return self._wait(states)
        options = [self._options(state, len(states)) if self._is_due(state) else [] for state in states]
        if not self.limits.adaptive:
            return [_Choice(one[-1], len(one[-1].expected)) if one else _Choice(None, 0) for one in options]
        rows = len(states)
        plain = self.costs.between.of(rows) + self.costs.plain.of(rows)
        choices, saved, spent = [_Choice(None, 0)] * rows, 0.0, 0.0
        rate = rows / plain if plain else 0.0
        for _ in range(ROUNDS):
            choices = [_best(one, rate) for one in options]
            saved = sum(choice.option.expected[choice.count - 1] for choice in choices if choice.option is not None)
            spent = sum(choice.option.cost * choice.count for choice in choices if choice.option is not None)
            rate = (rows + saved) / (plain + spent) if plain else 0.0
        step = self.costs.plain.of(rows) + self.costs.verify.of(rows) + spent / max(self._off, 1.0)
        whole = self.costs.between.of(rows) + step * max(self._off, 1.0)
        if plain and (rows + saved) * plain < (1 + MARGIN) * rows * whole:
            choices, rate = [_Choice(None, 0)] * rows, rows / plain
        elif saved:
            self._expected = step
        self._token = 1.0 / rate if rate else 0.0
        self._drafted = self._drafted + 1 if any(choice.option for choice in choices) else 0
        if self._drafted > PLAIN_EVERY:
            self._drafted, self._expected = 0, 0.0
            return [_Choice(None, 0)] * rows
        idle = [index for index, choice in enumerate(choices) if choice.option is None]
        choices = [
            self._put_off(state, choice) if choice.option is not None else choice
            for state, choice in zip(states, choices, strict=True)
        ]
        return self._probe(states, options, choices, idle, plain)

    def _nobody_is_due(self, states: Sequence[RequestState]) -> bool:
        return not any(self._is_due(state) for state in states)

    def _wait(self, states: Sequence[RequestState]) -> list[_Choice]:
        """A step without drafts, of requests that have had none."""
        rows = len(states)
        self._earn(self.costs.between.of(rows) + self.costs.plain.of(rows))
        for state in states:
            self._history(state).unused += 1
        self._drafted = 0
        return [_Choice(None, 0)] * rows

    def _earn(self, plain: float) -> None:
        """A step has taken so many seconds: a part of them may be used to try drafts."""
        self._allowance = min(self._allowance + PROBE_PART * plain, PROBE_LAST * plain)

    def _is_due(self, state: RequestState) -> bool:
        unused = self._history(state).unused
        every = LOOK_LAST if unused > 2 * LOOK_LAST else LOOK_FIRST
        return not self.limits.adaptive or not unused or self._steps % every == 0

    def _options(self, state: RequestState, rows: int) -> list[_Option]:
        """What a request may have; what is found in its own tokens comes last."""
        history = self._history(state)
        room = self._room(state)
        verify = self.costs.position.of(rows) * max(self._off, 1.0)
        options = []
        if (most := min(self.limits.mtp, room)) > 0:
            rates = [history.rates[Source.MTP].rate(place) for place in range(most)]
            options.append(
                _Option(Source.MTP, _expected(rates), verify + self.costs.draft.of(rows) / rows * max(self._off, 1.0))
            )
        if (most := min(self.limits.lookup, room)) > 0:
            match = look_up(history.tokens.follow(state.prompt, state.output), self.limits.least_match, most)
            if match is not None:
                rate = history.rates[Source.LOOKUP].rate(match.length.bit_length())
                options.append(_Option(Source.LOOKUP, _expected([rate] * most), verify, match))
        return options

    def _room(self, state: RequestState) -> int:
        """Drafts that can be of any use: the step gives one token more than they are."""
        params = state.params
        longest = self.runtime.capacity.max_model_len - state.num_tokens - 1
        if params.max_tokens is not None:
            longest = min(longest, params.max_tokens - len(state.output) - 1)
        return 0 if state.output and state.output[-1] in params.all_stop_token_ids else longest

    def _probe(
        self,
        states: Sequence[RequestState],
        options: Sequence[list[_Option]],
        choices: list[_Choice],
        idle: Sequence[int],
        plain: float,
    ) -> list[_Choice]:
        """Try requests whose drafts do not pay with one now and then: their text may have changed.

        A step in which any row has drafts costs more, so those that are to be tried are tried in the same one, most
        of them at least.

        Args:
            options: of each request; none for those that are not looked at in this step.
            idle: those whose drafts do not pay.
            plain: seconds of a step.
        """
        self._earn(plain)
        for index in idle:
            self._history(states[index]).unused += 1
        due = [index for index in idle if options[index] and self._history(states[index]).unused > PROBE_FIRST]
        if not any(self._history(states[index]).unused > self._history(states[index]).patience for index in due):
            return choices
        price = self.costs.verify.of(len(states)) if len(idle) == len(states) else 0.0
        prices = {index: options[index][-1].cost + self._catch_up(states[index], options[index][-1]) for index in due}
        tried = []
        for index in sorted(due, key=lambda index: prices[index]):
            if price + prices[index] <= self._allowance:
                price += prices[index]
                tried.append(index)
        if 2 * len(tried) < len(due):
            return choices
        self._allowance -= price
        found = list(choices)
        for index in tried:
            found[index] = _Choice(options[index][-1], 1)
            history = self._history(states[index])
            history.unused, history.patience = 1, min(2 * history.patience, PROBE_LAST)
        return found

    def _catch_up(self, state: RequestState, option: _Option) -> float:
        """Seconds until the draft layer has seen what it has to, for drafts of its own."""
        unseen = self._unseen(state) if option.source is Source.MTP else 0
        return unseen * self.costs.catch_up.of(unseen) if unseen else 0.0

    def _put_off(self, state: RequestState, choice: _Choice) -> _Choice:
        """No drafts of the draft layer until they would have saved part of what it costs to show it the tokens so far.

        How long an answer will be is not known: a very short one never pays for them.
        """
        option, history = choice.option, self._history(state)
        assert option is not None
        price = self._catch_up(state, option)
        if price:
            history.missed += option.expected[choice.count - 1] * self._token - option.cost * choice.count
            if history.missed < PUT_OFF * price:
                return _Choice(None, 0)
        history.unused, history.patience, history.missed = 0, PROBE_FIRST, 0.0
        return choice

    def _unseen(self, state: RequestState) -> int:
        """Tokens that have run since the draft layer was shown any: none where it drafted for the last step."""
        return max(0, state.num_tokens - state.given - max(state.began, self._history(state).seen))

    # ---- making them -------------------------------------------------------------------------------------------------

    def _make(self, states: Sequence[RequestState], wanted: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
        """Drafts of the model's draft layer, by index of the request."""
        if not wanted:
            return {}
        requests = [
            DraftRequest(state.request_id, state.lane, tuple(state.output[-state.given :]), tuple(state.blocks), count)
            for state, count in ((states[index], count) for index, count in wanted)
        ]
        started = self._clock()
        made = self.runtime.draft(requests)
        unseen = 0
        for index, _ in wanted:
            unseen += self._unseen(states[index])
            self._history(states[index]).seen = states[index].num_tokens
        if unseen:
            self._expected = 0.0  # which leaves that out
        most = max(count for _, count in wanted)
        self.costs.drafted(len(requests), most, unseen, self._clock() - started)
        return {index: list(drafts) for (index, _), drafts in zip(wanted, made, strict=True)}

    def _history(self, state: RequestState) -> DraftHistory:
        if state.drafting is None:
            state.drafting = DraftHistory(
                {source: Acceptance(REQUEST_MEMORY, prior) for source, prior in self._rates.items()}
            )
        return state.drafting


def _expected(rates: Sequence[float]) -> tuple[float, ...]:
    """Tokens that 1, 2, ... drafts save, each right so often where those before it are."""
    return tuple(accumulate(accumulate(rates, mul)))


def _best(options: Sequence[_Option], rate: float) -> _Choice:
    worth, chosen = 0.0, _Choice(None, 0)
    for option in options:
        gain, count = option.best(rate)
        if gain > worth:
            worth, chosen = gain, _Choice(option, count)
    return chosen

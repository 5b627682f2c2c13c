"""Which inputs go where: the table of zeros and ones that `causal_conv1d_verify` takes, and how much it takes at once.

Its rows are inputs: the windows of every sequence in turn, three each, then its pending drafts, then its new tokens. An
input has a number in its sequence: windows from 0, behind them the drafts that were right, behind those the new tokens;
drafts that were wrong have none. A column asks for one number of one sequence.
"""

import torch

TAPS = 4
PAST = TAPS - 1
MOST = 128
"""Inputs at most, one a partition; windows that a launch leaves, as many rows."""


def sequences_at_once(tokens: int, drafts: int, checks: int) -> int:
    """Sequences that one launch takes beside so many checkpoints; 0 if it takes none."""
    return max(0, min(MOST // (PAST + drafts + tokens), MOST // PAST - checks))


def relations(accepted: torch.Tensor, tokens: int, drafts: int, row: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The table for B sequences of M new tokens and N pending drafts each, and for C checkpoints.

    Args:
        accepted: int [B], pending drafts of each that were right.
        row: int [C], the sequence of each checkpoint.
        after: int [C], tokens after which it is taken, accepted ones counted, at most accepted + 1.
    Returns:
        bool [B (3 + N + M), columns], in this order:
            taps: 4 B M, of every new token the inputs that its taps meet
            left: 3 B, the window after each sequence's first new token
            kept: 3 C, the window of each checkpoint
    """
    batch = len(accepted)

    def numbers(count: int) -> torch.Tensor:
        return torch.arange(count, dtype=torch.int32, device=accepted.device)

    every, begun = numbers(batch).view(-1, 1), accepted.view(-1, 1)
    pending, past = numbers(drafts), numbers(PAST).view(1, -1)
    met = (numbers(tokens).view(-1, 1) + numbers(TAPS)).view(1, -1)

    def joined(*parts: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Sequence and number of each, of pairs [n, 1] and [n, any]."""
        spread = [(of.expand(-1, number.shape[1]), number.expand(len(of), -1)) for of, number in parts]
        return torch.cat([of.reshape(-1) for of, _ in spread]), torch.cat([number.reshape(-1) for _, number in spread])

    rows = joined(
        (every, past),
        (every, torch.where(pending < begun, pending + PAST, -1)),
        (every, begun + PAST + numbers(tokens)),
    )
    columns = joined((every, begun + met), (every, begun + 1 + past), (row.view(-1, 1), after.view(-1, 1) + past))
    return (rows[0].view(-1, 1) == columns[0]) & (rows[1].view(-1, 1) == columns[1])

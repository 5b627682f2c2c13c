"""Trains the demo checkpoint: phases of growing length, one optimiser for matrices and one for the rest."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from qwen36_neuron.config import ModelConfig
from qwen36_neuron.errors import ConfigError

from .evaluation import Probe
from .mixture import Rows, Shares
from .muon import StackedMuon
from .trainable import TrainableModel, matrices, stacks

LOG_EVERY = 20
DRAFT_NAMES = "mtp."
SHORTEST = 512
"""Probes are padded to a power of two of at least this."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training at one length.

    Attributes:
        length: tokens in a row.
        rows: rows in a step.
        steps: optimiser steps.
        drafts: tokens ahead that the multi-token-prediction layer learns; 0 leaves it alone.
        recall, structured, chat, prose: shares of the rows.
    """

    length: int
    rows: int
    steps: int
    drafts: int
    recall: float
    structured: float
    chat: float
    prose: float = 0.05

    @property
    def shares(self) -> Shares:
        return Shares(self.recall, self.structured, self.chat, self.prose)


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """The whole run, read from YAML.

    Attributes:
        model: fields of the checkpoint spec.
        matrix_lr, other_lr: peak learning rates of Muon and of AdamW.
        weight_decay: of the matrices.
        warm_up: steps to the peak.
        decay_share: share of all steps at the end over which the rate falls to zero.
        balance: of a mixture of experts, the weight of the loss that keeps its routers even; 0 for a dense model.
    """

    seed: int
    model: dict[str, Any]
    matrix_lr: float
    other_lr: float
    weight_decay: float
    warm_up: int
    decay_share: float
    phases: tuple[Phase, ...]
    balance: float = 0.0

    def __post_init__(self) -> None:
        if bool(self.balance) != bool(self.model.get("num_experts")):
            problem = "is for a mixture of experts, which needs it, and for no other model"
            raise ConfigError("balance", self.balance, problem, "Give both balance and model.num_experts, or neither")

    @classmethod
    def read(cls, file: Path) -> TrainingConfig:
        """Raises ConfigError where a field is missing or unknown."""
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        known = {field.name for field in fields(cls)}
        if not isinstance(raw, dict) or set(raw) | {"balance"} != known:
            raise ConfigError("config", str(file), f"must have exactly {', '.join(sorted(known))}", "Correct the file")
        return cls(**{**raw, "phases": tuple(Phase(**phase) for phase in raw["phases"])})

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def rate(self, step: int) -> float:
        """The learning rate at a step over its peak: warm-up, constant, linear to zero."""
        left = (self.steps - step) / max(1, round(self.decay_share * self.steps))
        return min(1.0, (step + 1) / self.warm_up, left)


def weighted_loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean cross entropy, and the share of targets of weight 1 that are the most likely token."""
    logits = F.linear(hidden, head).float()
    loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum().clamp_min(1.0)
    answers = (weights == 1.0).float()
    right = ((logits.argmax(-1) == targets).float() * answers).sum() / answers.sum().clamp_min(1.0)
    return loss, right.detach()


class Trainer:
    """One run on one device."""

    def __init__(self, config: TrainingConfig, model: ModelConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        cuda = device.type == "cuda"
        self.model = TrainableModel(model, config.seed, device, torch.bfloat16 if cuda else torch.float32)
        self.loss: Callable[..., tuple[Tensor, Tensor]] = weighted_loss
        if cuda:
            torch.backends.cuda.matmul.allow_tf32 = True
            self.model.compile()
            self.loss = torch.compile(weighted_loss, dynamic=False)
        parameters = self.model.parameters
        matrix, stacked = dict(matrices(self.model)), dict(stacks(self.model))
        others = [p for name, p in parameters.items() if name not in matrix | stacked]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(
                list(matrix.values()),
                lr=config.matrix_lr,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(others, lr=config.other_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=cuda),
        )
        self._peaks = [config.matrix_lr, config.other_lr]
        if stacked:
            gate_up = [p for name, p in stacked.items() if name.endswith("gate_up_proj")]
            down = [p for name, p in stacked.items() if not name.endswith("gate_up_proj")]
            self.optimizers += (StackedMuon(gate_up, down, config.matrix_lr, config.weight_decay),)
            self._peaks.append(config.matrix_lr)

    def step(self, number: int, tokens: Tensor, weights: Tensor, drafts: int) -> list[Tensor]:
        """One optimiser step on tokens [rows, length + 1].

        Returns:
            Losses and hit rates, of the model, then of each draft; of a mixture, at last its routers' balance.
        """
        rate = self.config.rate(number)
        for optimizer, peak in zip(self.optimizers, self._peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        tokens = tokens.to(self.device, torch.int64, non_blocking=True)
        weights = weights.to(self.device, non_blocking=True)
        network = self.model.assemble()
        hidden, head = network.hidden(tokens[:, :-1]), network.head
        loss, right = self._loss(hidden, head, tokens[:, 1:], weights[:, 1:])
        report, total = [loss.detach(), right], loss
        draft, head = hidden.detach(), head.detach()
        for ahead in range(1, drafts + 1):
            draft = network.draft_hidden(draft, _later(tokens, ahead))
            loss, right = self._loss(draft, head, _later(tokens, ahead + 1), _later(weights, ahead + 1))
            report += [loss.detach(), right]
            total = total + loss
        if self.config.balance:
            balance = self.model.balance.loss()
            report.append(balance.detach())
            total = total + self.config.balance * balance
        total.backward()
        # the draft layer's gradients have a norm of their own, so that they do not shrink the model's
        for mine in (True, False):
            group_ = [p for name, p in self.model.parameters.items() if name.startswith(DRAFT_NAMES) == mine]
            torch.nn.utils.clip_grad_norm_([p for p in group_ if p.grad is not None], 1.0, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return report

    def _loss(self, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return self.loss(hidden.flatten(0, 1), head, targets.reshape(-1), weights.reshape(-1))

    def run(
        self,
        tokenizer: PreTrainedTokenizerBase,
        log: Path,
        first_phase: int,
        workers: int,
        after: Callable[[int], None],
    ) -> None:
        """Run the phases from `first_phase`, calling `after(phase)` behind each; `log` gets a JSON line at a time."""
        number = sum(phase.steps for phase in self.config.phases[:first_phase])
        for index, phase in enumerate(self.config.phases[first_phase:], start=first_phase):
            rows = Rows(tokenizer, phase.shares, phase.rows, phase.length, phase.steps, f"{self.config.seed}/{index}")
            loader = DataLoader(
                rows,
                batch_size=None,
                num_workers=workers,
                pin_memory=self.device.type == "cuda",
                prefetch_factor=8 if workers else None,
            )
            began, since = time.perf_counter(), 0
            for tokens, weights in loader:
                report = self.step(number, tokens, weights, phase.drafts)
                number, since = number + 1, since + 1
                if number % LOG_EVERY == 0:
                    values = [round(value, 4) for value in torch.stack(report).tolist()]
                    balance = {"balance": values.pop()} if self.config.balance else {}
                    now = time.perf_counter()
                    rate = since * phase.rows * phase.length / (now - began)
                    began, since = now, 0
                    line = {
                        "step": number,
                        "phase": index,
                        "length": phase.length,
                        "loss": values[0],
                        "right": values[1],
                    }
                    line |= {"draft_loss": values[2::2], "draft_right": values[3::2], "tokens_per_second": round(rate)}
                    line |= balance
                    with log.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
            after(index)


def _later(values: Tensor, ahead: int) -> Tensor:
    """values[:, ahead:] to the length of the inputs, zero beyond the end."""
    return F.pad(values[:, ahead:], (0, ahead - 1))


def exact(
    model: TrainableModel, tokenizer: PreTrainedTokenizerBase, probes: Iterable[Probe], tokens_at_once: int
) -> Iterator[tuple[Probe, bool]]:
    """Whether greedy decoding gives exactly the expected reply: the most likely token at each of its places is right.

    Args:
        tokens_at_once: tokens of every forward pass, padding included.
    """
    with torch.no_grad():
        network = model.assemble()
    by_length: dict[int, list[tuple[Probe, list[int], list[int]]]] = defaultdict(list)
    for probe in probes:
        prompt, reply = probe.prompt(tokenizer), probe.reply(tokenizer)
        length = max(SHORTEST, 1 << (len(prompt) + len(reply) - 1).bit_length())
        by_length[length].append((probe, prompt, reply))
    for length, group in by_length.items():
        rows = tokens_at_once // length
        for first in range(0, len(group), rows):
            some = group[first : first + rows]
            tokens = torch.zeros(rows, length, dtype=torch.int64)
            for row, (_, prompt, reply) in enumerate(some):
                tokens[row, : len(prompt) + len(reply)] = torch.tensor(prompt + reply)
            with torch.no_grad():
                said = network.logits(network.hidden(tokens.to(model.device))).argmax(-1).cpu()
            for row, (probe, prompt, reply) in enumerate(some):
                yield probe, said[row, len(prompt) - 1 : len(prompt) + len(reply) - 1].tolist() == reply

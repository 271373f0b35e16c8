"""What a dialogue experiment is made of; `build.py` puts it together, everything else receives it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_marl.algorithm import Critic
from rlhf_marl.config import Config
from rlhf_marl.dialogue.controller import Controller
from rlhf_marl.dialogue.features import CriticFeatures
from rlhf_marl.dialogue.questions import Questions
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.generation import Memory
from rlhf_marl.rewards import Card, RewardModel
from rlhf_marl.runs.journal import Journal


@dataclass(frozen=True, slots=True)
class Topology:
    """adjacency (N, N) bool; matrix A (N, N); power A^t_gossip; gap: 1 - |λ_2(A)|."""

    adjacency: Tensor
    matrix: Tensor
    power: Tensor
    gap: float


@dataclass(frozen=True, slots=True)
class DialogueSystem:
    config: Config
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_tokens: list[int]
    adapters: StackedAdapters
    optimizer: torch.optim.Optimizer | None  # None: the normalised step of line 17 has no state
    topology: Topology
    critic: Critic
    features: CriticFeatures
    cards: Sequence[Card]
    reward_models: Sequence[RewardModel]
    controller: Controller
    questions: Questions
    journal: Journal
    memory: Memory  # of questions that the base model has read

"""Reward models: cards that describe them, one file per kind, and checks on their scores.

base.py                 card, protocol, checked scores   registry.py        registered kinds; reading cards
sequence_classifier.py  transformers classifiers         trained.py         trained here on first use
prototype.py            similarity to examples           python_callable.py any function
server.py               a scoring server                 judge.py           a grading chat model
ensemble.py             several cards as one             shipped_functions.py  scorers behind shipped cards
preferences.py          preference pairs                 training.py        training from pairs
junk.py                 junk derived from answers        gate.py            fluent answers before junk, or no training
tools.py                implements `rlhf-marl reward`   listing.py         the cards in folders
"""

from rlhf_marl.rewards.base import CardBase as Card
from rlhf_marl.rewards.base import DataRow, RewardModel, score_all
from rlhf_marl.rewards.ensemble import EnsembleCard
from rlhf_marl.rewards.judge import JudgeCard
from rlhf_marl.rewards.registry import KINDS, build_reward_model, check_card, load_card
from rlhf_marl.rewards.server import ServerCard
from rlhf_marl.rewards.trained import TrainedCard

__all__ = [
    "KINDS",
    "Card",
    "DataRow",
    "EnsembleCard",
    "JudgeCard",
    "RewardModel",
    "ServerCard",
    "TrainedCard",
    "build_reward_model",
    "check_card",
    "load_card",
    "score_all",
]

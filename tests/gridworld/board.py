"""A batch of boards: the environment of tests that simulate, beside PettingZoo's and the compiled one."""

from typing import final

import numpy as np

from rlhf_marl.gridworld.spread import EPISODE, NEXT_CELL, local_rewards, team_reward


@final
class Spread:
    """A batch of boards, one per row of `landmarks`.

    Attributes:
        positions: (n_boards, n_agents) cells.
        ages: steps since the positions were last drawn, (n_boards,).
    """

    def __init__(
        self, landmarks: np.ndarray, n_agents: int, split: str = "shared", discount: float | None = None
    ) -> None:
        """
        Args:
            landmarks: (n_boards, n_landmarks) cells.
            discount: γ of the restart kernel (section 3.1): an episode ends with probability 1 - γ after every step.
                None: it ends after EPISODE steps.
        """
        self.landmarks, self.n_agents, self.split, self.discount = landmarks, n_agents, split, discount
        self.positions = np.zeros((len(landmarks), n_agents), dtype=int)
        self.ages = np.zeros(len(landmarks), dtype=int)

    def reset(self, positions: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """Place the agents on cells (n_boards, n_agents), on all boards or those in `where`; returns all positions."""
        chosen = np.ones(len(self.ages), dtype=bool) if where is None else where
        self.positions = np.where(chosen[:, None], positions, self.positions)
        self.ages = np.where(chosen, 0, self.ages)
        return self.positions

    def step(
        self, actions: np.ndarray, chance: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Move all agents. actions: (n_boards, n_agents). chance: (n_boards,) uniform numbers, needed with a discount.

        Returns:
            positions reached, local rewards and team reward of the state reached, and which episodes are over:
            those boards need a `reset`.
        """
        self.positions = NEXT_CELL[self.positions, actions]
        self.ages = self.ages + 1
        rewards = local_rewards(self.split, self.positions, self.landmarks)
        over = self.ages >= EPISODE if self.discount is None else np.asarray(chance) >= self.discount
        return self.positions, rewards, team_reward(self.positions, self.landmarks), over

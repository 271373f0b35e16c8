"""Simple Spread as a PettingZoo environment, on the same tables as training."""

from typing import Any, final

import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from pettingzoo import ParallelEnv

from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld.spread import (
    COORDINATES,
    EPISODE,
    HEIGHT,
    N_ACTIONS,
    N_CELLS,
    NEXT_CELL,
    WIDTH,
    cells_of,
    local_rewards,
    random_landmarks,
    team_reward,
)


@final
class SpreadEnv(ParallelEnv):
    """Each agent observes its own coordinates, the other agents', then the landmarks', all scaled to 0 .. 1.

    An episode is truncated after `episode` steps, or, with a discount γ, after every step with probability 1 - γ (the
    restart kernel of section 3.1). `infos` carry the team reward.
    """

    metadata = {"name": "rlhf_marl_spread_v0", "render_modes": ["ansi"], "is_parallelizable": True}  # noqa: RUF012

    def __init__(
        self,
        n_agents: int = 2,
        landmarks: list[tuple[int, int]] | None = None,
        split: str = "shared",
        episode: int = EPISODE,
        discount: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        """
        Args:
            landmarks: (x, y) of each. By default drawn at the first reset and at every seeded one.
            split: how the team reward is divided; see spread.SPLITS.
            episode: length in steps; ignored with a discount.
            discount: γ of the restart kernel.

        Raises:
            UsageError: impossible sizes. ValueError: an unknown split.
        """
        if n_agents < 1:
            raise UsageError(f"agents: {n_agents} given; at least one is needed")
        if episode < 1:
            raise UsageError(f"episode: {episode} given; at least one step is needed")
        if discount is not None and not 0 <= discount < 1:
            raise UsageError(f"discount: {discount} given; at least 0 and below 1 is needed")
        self._given = None if landmarks is None else cells_of(landmarks)
        if self._given is None and n_agents > N_CELLS:
            raise UsageError(f"landmarks: {n_agents} do not fit on the board's {N_CELLS} cells; choose 1 to {N_CELLS}")
        local_rewards(split, np.zeros(n_agents, dtype=int), np.zeros(1, dtype=int))  # raises for an unknown split
        self.possible_agents = [f"agent_{i}" for i in range(n_agents)]
        self.agents: list[str] = []
        self.render_mode = render_mode
        self._split, self._episode, self._discount, self._age = split, episode, discount, 0
        self._generator = np.random.default_rng()
        self._landmarks = self._given
        self._positions = np.zeros(n_agents, dtype=int)
        n_landmarks = n_agents if self._given is None else len(self._given)
        self._observation_space = Box(0.0, 1.0, (2 * (n_agents + n_landmarks),), np.float32)
        self._action_space = Discrete(N_ACTIONS)

    def observation_space(self, agent: str) -> Space:
        return self._observation_space

    def action_space(self, agent: str) -> Space:
        return self._action_space

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Redraw positions, and with a seed also the landmarks unless given.

        Args:
            options: {"positions": cells}, one cell 5 x + y per agent.

        Raises:
            UsageError: invalid positions.
        """
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        if self._given is None and (seed is not None or self._landmarks is None):
            self._landmarks = random_landmarks(len(self.possible_agents), self._generator)
        drawn = self._generator.integers(N_CELLS, size=len(self.possible_agents))
        self._positions = _cells((options or {}).get("positions", drawn), len(drawn))
        self._age = 0
        self.agents = list(self.possible_agents)
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        moves = np.array([self._action(agent, actions) for agent in self.agents])
        self._positions = NEXT_CELL[self._positions, moves]
        self._age += 1
        assert self._landmarks is not None
        rewards = local_rewards(self._split, self._positions, self._landmarks)
        team = float(team_reward(self._positions, self._landmarks))
        over = self._age >= self._episode
        if self._discount is not None:
            over = bool(self._generator.random() >= self._discount)
        result = (
            self._observations(),
            {agent: float(r) for agent, r in zip(self.agents, rewards, strict=True)},
            dict.fromkeys(self.agents, False),
            dict.fromkeys(self.agents, over),
            {agent: {"team_reward": team} for agent in self.agents},
        )
        if over:
            self.agents = []
        return result

    def _action(self, agent: str, actions: dict[str, int]) -> int:
        if agent not in actions or not self._action_space.contains(actions[agent]):
            given = repr(actions[agent]) if agent in actions else "nothing"
            raise UsageError(f"actions: {given} given for {agent}; a whole number from 0 to {N_ACTIONS - 1} is needed")
        return int(actions[agent])

    def state(self) -> np.ndarray:
        """The global state: all coordinates, in agent order."""
        return self._scaled(self._positions)

    def render(self) -> str:
        """The board as text, top row first. Digits are agents (the lowest of several on a cell), * are landmarks."""
        assert self._landmarks is not None
        cells = ["."] * N_CELLS
        for cell in self._landmarks:
            cells[cell] = "*"
        for i in reversed(range(len(self._positions))):
            cells[self._positions[i]] = str(i % 10)
        return "\n".join("".join(cells[HEIGHT * x + y] for x in range(WIDTH)) for y in reversed(range(HEIGHT)))

    def _observations(self) -> dict[str, np.ndarray]:
        return {agent: self._scaled(np.roll(self._positions, -i)) for i, agent in enumerate(self.agents)}

    def _scaled(self, positions: np.ndarray) -> np.ndarray:
        cells = np.concatenate([positions, self._landmarks])
        return (COORDINATES[cells] / (WIDTH - 1, HEIGHT - 1)).astype(np.float32).ravel()


def _cells(positions: Any, n_agents: int) -> np.ndarray:
    try:
        cells = np.asarray(positions)
    except ValueError:  # ragged
        cells = np.empty(0)
    if cells.shape != (n_agents,) or cells.dtype.kind not in "iu" or cells.min() < 0 or cells.max() >= N_CELLS:
        raise UsageError(f"positions: {positions!r} given; {n_agents} cells from 0 to {N_CELLS - 1} are needed")
    return cells.astype(int)

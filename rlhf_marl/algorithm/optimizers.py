"""Adam with one state per agent."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

_STATE = ("step", "exp_avg", "exp_avg_sq")


@final
class AgentAdam:
    """torch's Adam on each agent's row. An agent that skips a step keeps its weights, moments and step count."""

    def __init__(self, parameters: Tensor, step_size: float) -> None:
        """parameters: (..., n_agents, n_params), updated in place."""
        self._rows = [torch.nn.Parameter(row) for row in parameters.detach().flatten(0, -2).unbind()]
        self._optimizers = [torch.optim.Adam([row], lr=step_size) for row in self._rows]
        for row, optimizer in zip(self._rows, self._optimizers, strict=True):
            moments = {name: torch.zeros_like(row.detach()) for name in _STATE[1:]}
            optimizer.state[row] = {"step": torch.tensor(0.0), **moments}

    def step(self, gradient: Tensor, usable: Tensor) -> None:
        """One step for the usable agents. gradient: (..., n_agents, n_params); usable: (..., n_agents) bool."""
        rows = zip(self._rows, self._optimizers, gradient.flatten(0, -2), usable.flatten().tolist(), strict=True)
        for row, optimizer, of_row, is_usable in rows:
            if is_usable:
                row.grad = of_row
                optimizer.step()
                row.grad = None

    @property
    def second_moment(self) -> Tensor:
        """Adam's v, the running mean of the squared gradient: (n_rows, n_params)."""
        return torch.stack([self._state(row)["exp_avg_sq"] for row in range(len(self._rows))])

    @second_moment.setter
    def second_moment(self, values: Tensor) -> None:
        for row, value in enumerate(values):
            self._state(row)["exp_avg_sq"].copy_(value)

    def forget_momentum(self) -> None:
        """Clear the first moments. The second ones, the gradient's scale, stay."""
        for row in range(len(self._rows)):
            self._state(row)["exp_avg"].zero_()

    def _state(self, row: int) -> dict[str, Tensor]:
        return self._optimizers[row].state[self._rows[row]]

    def state_dict(self, row: int) -> dict[str, Tensor]:
        """Step count and moments of one row."""
        return dict(self._state(row))

    def load_state_dict(self, row: int, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises KeyError if a part is missing."""
        parameter = self._rows[row]
        self._optimizers[row].state[parameter] = {
            # torch keeps the step count on the CPU
            name: state[name].clone() if name == "step" else state[name].to(parameter).clone()
            for name in _STATE
        }

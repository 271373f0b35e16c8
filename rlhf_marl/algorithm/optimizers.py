"""Adam with separate state per agent, and the scale of its steps."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from rlhf_marl.algorithm.mixing import Mixer

BETA_1, BETA_2 = 0.9, 0.999  # torch.optim.Adam's
_STATE = ("step", "exp_avg", "exp_avg_sq")


@final
class AgentAdam:
    """torch's Adam on each agent's row. An agent that skips a step keeps its weights, moments and step count."""

    def __init__(self, parameters: Tensor, step_size: float) -> None:
        """parameters: (..., n_agents, n_params), updated in place."""
        self._step_size = step_size
        self._rows = [torch.nn.Parameter(row) for row in parameters.detach().flatten(0, -2).unbind()]
        self._optimizers = [torch.optim.Adam([row], lr=step_size) for row in self._rows]
        for row, optimizer in zip(self._rows, self._optimizers, strict=True):
            moments = {name: torch.zeros_like(row.detach()) for name in _STATE[1:]}
            optimizer.state[row] = {"step": torch.tensor(0.0), **moments}
        self._cleared = [0.0] * len(self._rows)  # a row's step count when its first moment was last cleared

    def step(self, gradient: Tensor, usable: Tensor, scale: Tensor | None = None) -> None:
        """One step for the usable agents. gradient: (..., n_agents, n_params); usable: (..., n_agents) bool.

        scale: (..., n_agents) multiplies the step size; 1 if None.
        """
        scales = [1.0] * len(self._rows) if scale is None else scale.flatten().tolist()
        usables = usable.flatten().tolist()
        rows = zip(self._rows, self._optimizers, gradient.flatten(0, -2), usables, scales, self._cleared, strict=True)
        for row, optimizer, of_row, is_usable, of_step, cleared in rows:
            if is_usable:
                row.grad = of_row
                # torch divides the first moment by 1 - β1^t; one that was cleared after step c is a mean of t - c.
                t = optimizer.state[row]["step"].item() + 1
                bias = (1 - BETA_1**t) / (1 - BETA_1 ** (t - cleared))
                optimizer.param_groups[0]["lr"] = self._step_size * of_step * bias
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
        """Clear the first moments. The second moments, which hold the gradient's scale, stay.

        A restored state is taken for one that was never cleared: clear it before the next step.
        """
        for row in range(len(self._rows)):
            self._state(row)["exp_avg"].zero_()
            self._cleared[row] = self._state(row)["step"].item()

    def _state(self, row: int) -> dict[str, Tensor]:
        return self._optimizers[row].state[self._rows[row]]

    def state_dict(self, row: int) -> dict[str, Tensor]:
        """Step count and moments of one row."""
        return dict(self._state(row))

    def load_state_dict(self, row: int, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises KeyError if a part is missing."""
        parameter = self._rows[row]
        self._cleared[row] = 0.0
        self._optimizers[row].state[parameter] = {
            # torch keeps the step count on the CPU
            name: state[name].clone() if name == "step" else state[name].to(parameter).clone()
            for name in _STATE
        }


@final
class SignalScale:
    """Scale of an agent's step: the running root mean square of its actor signal over the team's, at most 1.

    The length of Adam's step does not depend on the gradient's size, so noise in a nearly zero signal would cause full
    steps. With this scale, an agent with a small signal takes small steps, and an agent without any signal does not
    move. Scaling the rewards of all agents by the same factor changes nothing.

    Attributes:
        second_moment: running mean of the squared signals, as Adam's of the gradient, (n_agents,).
        updates: number of updates averaged, (n_agents,).
    """

    def __init__(self, n_agents: int, mixer: Mixer, dtype: torch.dtype = torch.float32) -> None:
        """mixer: averages the mean squares over the team."""
        self._mixer = mixer
        self.second_moment, self.updates = torch.zeros(n_agents, dtype=dtype), torch.zeros(n_agents)

    def update(self, signal: Tensor, usable: Tensor) -> Tensor:
        """Add the usable agents' signals, (n_agents, n_samples); returns the scales, (n_agents,)."""
        usable = usable.cpu()
        self.updates += usable
        averaged = BETA_2 * self.second_moment + (1 - BETA_2) * signal.square().mean(-1).cpu()
        self.second_moment = torch.where(usable, averaged, self.second_moment)
        mean_square = self.second_moment / (1 - BETA_2 ** self.updates.clamp_min(1))
        of_team = self._mixer.mix(mean_square.unsqueeze(-1)).squeeze(-1)
        return torch.where(of_team > 0, (mean_square / of_team).sqrt(), 0.0).clamp_max(1.0)

    def state_dict(self, agent: int) -> dict[str, Tensor]:
        return {"second_moment": self.second_moment[agent], "updates": self.updates[agent]}

    def load_state_dict(self, agent: int, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.second_moment[agent], self.updates[agent] = state["second_moment"], state["updates"]

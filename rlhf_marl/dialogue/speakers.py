"""How agents differ besides their adapters: names, roles, and settings of generation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, final

from rlhf_marl.config import Config
from rlhf_marl.policy.chat import Message
from rlhf_marl.policy.instructions import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@final
@dataclass(frozen=True, slots=True)
class Speaker:
    """One agent as others see it, and what it alone reads with.

    Attributes:
        role: the system message that it alone reads.
        tokenizer: of its own model; None: that of the states.
    """

    name: str
    role: str | None = None
    tokenizer: "PreTrainedTokenizerBase | None" = None

    def reads(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with the role first, joined with the dialogue's own system message if there is one."""
        if self.role is None:
            return messages
        if messages[0]["role"] != "system":
            return [Message(role="system", content=self.role), *messages]
        return [Message(role="system", content=f"{self.role}\n\n{messages[0]['content']}"), *messages[1:]]


@final
@dataclass(frozen=True, slots=True)
class Decoding:
    """How these agents, which are neighbours, sample together in one batch."""

    agents: slice
    max_new_tokens: int
    temperature: float


def agents_in_words(numbers: Sequence[int]) -> str:
    """agent 1; agents 1, 2."""
    return f"agent{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def speakers_of(config: Config, where: str) -> list[Speaker]:
    """The config's agents. A role is a template over `name`, the agent's own, and `names`, of all.

    Raises:
        UsageError: a role that cannot be rendered.
    """
    roles = [
        agent.system and render(agent.system, f"{where}: agents.{i}.system", name=name, names=config.names)
        for i, (agent, name) in enumerate(zip(config.agents, config.names, strict=True))
    ]
    return [Speaker(name, role and role.strip()) for name, role in zip(config.names, roles, strict=True)]


def decodings(config: Config, numbers: Sequence[int] | None = None) -> list[Decoding]:
    """Agents by settings of generation: one batch for each row of neighbours with the same.

    numbers: of the agents in this process, whose places among them are the groups' `agents`; by default all.
    """
    numbers = range(len(config.agents)) if numbers is None else numbers
    groups, begin = [], 0
    for generation, agents in groupby(map(config.generation_of, numbers)):
        end = begin + len(list(agents))
        groups.append(Decoding(slice(begin, end), generation.max_new_tokens, generation.temperature))
        begin = end
    return groups if len(groups) > 1 else [replace(groups[0], agents=slice(None))]

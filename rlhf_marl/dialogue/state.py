"""The global state s_k: the dialogue so far."""

from dataclasses import dataclass, field

from rlhf_marl.policy.chat import Message
from rlhf_marl.sanitise import neutralise


@dataclass(slots=True)
class Dialogue:
    """One dialogue in progress.

    Attributes:
        index: number of the dialogue within the run, from 0.
        question: index of its first question in the prompt source.
        messages: alternating user prompts and aggregated answers; the last one is the prompt to answer.
    """

    index: int
    question: int
    messages: list[Message] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        return self.messages[-1]["content"]

    def advance(self, aggregate: str, next_prompt: str) -> None:
        """The state transition: the team's answer and the controller's next prompt join the dialogue."""
        self.messages += [
            Message(role="assistant", content=neutralise(aggregate)),
            Message(role="user", content=neutralise(next_prompt)),
        ]

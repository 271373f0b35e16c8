"""Preference pairs for tests."""

from rlhf_marl.rewards.preferences import Pair


def pair(prompt, chosen, rejected):
    """One message each; a list of texts is a dialogue that the user begins (the prompt) or the assistant."""
    texts = ([text] if isinstance(text, str) else text for text in (prompt, chosen, rejected))
    roles = (("user", "assistant"), ("assistant", "user"), ("assistant", "user"))
    return Pair(
        *(
            [{"role": role[i % 2], "content": text} for i, text in enumerate(side)]
            for side, role in zip(texts, roles, strict=True)
        )
    )

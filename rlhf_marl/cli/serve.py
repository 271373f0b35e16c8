"""`rlhf-marl serve`: a run behind an OpenAI-compatible endpoint, until Ctrl-C."""

import contextlib
import os
from pathlib import Path

from rlhf_marl.cli.loading import load, say
from rlhf_marl.errors import UsageError
from rlhf_marl.runs.handed_out import Choice
from rlhf_marl.services.http import key_from
from rlhf_marl.serving.answers import Answerer
from rlhf_marl.serving.app import Limits, bound_socket, build_server, is_loopback
from rlhf_marl.serving.replies import Choice as Reply
from rlhf_marl.serving.worker import Worker


def serve(path: Path, host: str, port: int, key_variable: str, adapters: Choice | None, limits: Limits) -> None:
    """Serve a run until Ctrl-C.

    Args:
        key_variable: environment variable with the key that clients must send; optional on a loopback address.

    Raises:
        UsageError: not a run with agents, a missing key, or an address that cannot be used.
    """
    with bound_socket(host, port) as listening:  # before minutes of loading
        key = _key(key_variable, host, local=is_loopback(listening))
        loaded = load(path, "serve", adapters, scorers=False)
        answerer = Answerer(loaded)
        if limits.max_tokens >= answerer.context_length:
            raise UsageError(
                f"--max-tokens: {limits.max_tokens} given; the model's context has {answerer.context_length} tokens"
            )
        worker: Worker[Reply] = Worker(limits.queue)
        loaded.agents.chat_model.model.register_forward_pre_hook(worker.check)
        server = build_server(answerer, worker, limits, key)
        name, number = listening.getsockname()[:2]
        address = f"http://{f'[{name}]' if ':' in name else name}:{number}/v1"
        condition = "no key needed" if key is None else f"with the key in {key_variable}"
        say(f"serving {', '.join(answerer.names)} at {address} ({condition}); Ctrl-C ends")
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once the server has ended
            server.run(sockets=[listening])
        say("ended")


def _key(variable: str, host: str, *, local: bool) -> str | None:
    """The key from the environment. Raises UsageError if there is none and others can reach the address."""
    if local and not os.environ.get(variable):
        return None
    try:
        return key_from(variable, "serve")
    except UsageError as error:
        reason = "" if local else f"; --host {host} can be reached from other machines, so a key is needed"
        raise UsageError(f"{error}{reason}") from None

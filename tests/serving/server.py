"""A server of the tiny run in a thread, for tests."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlhf_marl.evaluation.loaded_run import LoadedRun
from rlhf_marl.serving.answers import Answerer
from rlhf_marl.serving.app import Limits, bound_socket, build_server
from rlhf_marl.serving.worker import Worker


class Served:
    """host, port: of the server. worker: which does its work."""

    def __init__(self, port: int, worker: Worker) -> None:
        self.port, self.worker, self.url = port, worker, f"http://127.0.0.1:{port}/v1"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers in lower case, content): bytes are sent as they are, anything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.request(method, path, content, sent | (headers or {}))
            reply = connection.getresponse()
            read = reply.read()
            found = {name.lower(): value for name, value in reply.getheaders()}
            return reply.status, found, json.loads(read) if "json" in found.get("content-type", "") else read
        finally:
            connection.close()


@contextmanager
def serving(loaded: LoadedRun, limits: Limits | None = None, key: str | None = None) -> Iterator[Served]:
    """Context in which a server runs, on a free port."""
    limits = limits or Limits(max_tokens=64)
    worker: Worker = Worker(limits.queue)
    hook = loaded.agents.chat_model.model.register_forward_pre_hook(worker.check)
    listening = bound_socket("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = build_server(Answerer(loaded), worker, limits, key)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Served(port, worker)
    finally:
        server.should_exit = True
        thread.join()
        hook.remove()

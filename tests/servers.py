"""A scriptable local server that fails on schedule, for tests of HTTP clients."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rlhf_marl.services import http as services


@dataclass
class Request:
    path: str
    headers: Message
    body: Any  # what a JSON body holds, else None


@dataclass
class Reply:
    status: int = 200
    body: Any = ""  # text as it is; anything else as JSON
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # to wait before answering
    torn: bool = False  # half of the body, then the connection ends
    dropped: bool = False  # the connection ends without an answer
    dripping: float = 0.0  # seconds between the body's bytes
    never_begun: bool = False  # a header that goes on and on


DROPPED, TORN, HUNG = Reply(dropped=True), Reply(body="x" * 100, torn=True), Reply(seconds=60)
BUSY = Reply(429, headers={"Retry-After": "0"})


class Server(ThreadingHTTPServer):
    """Answers with the replies of `script`, then with what `answer` makes of each request."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Callable[[Request], Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.script: list[Reply] = []
        self.requests: list[Request] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.closing = threading.Event()
        self.one_at_a_time = threading.Lock()

    def reply(self, request: Request) -> Reply:
        with self.one_at_a_time:
            self.requests.append(request)
            if self.script:
                return self.script.pop(0)
        answer = self.answer(request)
        return answer if isinstance(answer, Reply) else Reply(body=answer)


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.server.reply(Request(self.path, self.headers, json.loads(content) if content else None))
        self.server.closing.wait(reply.seconds)
        if reply.dropped:
            return
        if reply.never_begun:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            while not self.server.closing.wait(0.05):
                self.wfile.write(b"x")
            return
        body = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
        self.send_response(reply.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | reply.headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for part in [body[i : i + 1] for i in range(len(body))] if reply.dripping else [body]:
            self.wfile.write(part[: len(part) // 2] if reply.torn else part)
            self.wfile.flush()
            if self.server.closing.wait(reply.dripping):
                return

    do_GET = do_HEAD = do_POST

    def log_message(self, *arguments: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # who asked has given up
            self.close_connection = True


@contextmanager
def serving(answer: Callable[[Request], Any]) -> Iterator[Server]:
    """Context in which a server runs and retries in this process hardly wait."""
    server = Server(answer)
    patience, services._BACKOFF = services._BACKOFF, 0.001
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        services._BACKOFF = patience
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def scores_of_lengths(request: Request) -> Any:
    """A reward server's answer: each response's length."""
    return {"scores": [len(text) for text in request.body["responses"]]}


def chat(text: Callable[[str], str]) -> Callable[[Request], Any]:
    """An OpenAI-compatible endpoint whose completion is `text` of the last message."""

    def answer(request: Request) -> Any:
        message = {"role": "assistant", "content": text(request.body["messages"][-1]["content"])}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}

    return answer

"""The HTTP server: /v1/models and /v1/chat/completions, for a browser and hostile clients as for others."""

import asyncio
import hmac
import ipaddress
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import uvicorn
from jinja2 import TemplateError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rlhf_marl.errors import RlhfMarlError, UsageError
from rlhf_marl.sanitise import first_line, printable, shortened
from rlhf_marl.serving import replies
from rlhf_marl.serving.answers import Answerer, Sampling
from rlhf_marl.serving.replies import Choice
from rlhf_marl.serving.requests import ChatRequest, Refusal, read_request
from rlhf_marl.serving.worker import Busy, Worker

_LARGEST_BODY = 2**20  # bytes
_BODY_SECONDS = 30.0  # for a client to send its body
_CHARACTERS_PER_TOKEN = 16  # longer messages are refused without counting their tokens, which can take seconds
_CONNECTIONS = 128
_GRACE = 2  # seconds for open connections when the server ends
# Web pages cannot reach a keyless server under a name of their own that they point to this machine.
_LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]", "::1"]
# A browser neither guesses another type than the one sent nor runs, embeds or keeps anything.
_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
]
_log = logging.getLogger("rlhf_marl")


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask for.

    Attributes:
        max_tokens: of an answer.
        queue: requests that wait or are being answered.
        seconds: for one request, with waiting.
    """

    max_tokens: int = 1024
    queue: int = 16
    seconds: float = 300.0


def build_server(answerer: Answerer, worker: "Worker[Choice]", limits: Limits, key: str | None) -> uvicorn.Server:
    """A server that answers with the worker, which it closes in the end; run it with a socket from `bound_socket`.

    key: required from clients if given; otherwise only clients that call the server by a loopback name are answered.
    """
    endpoints = _Endpoints(answerer, worker, limits, key)
    config = uvicorn.Config(
        endpoints.app(),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=_HEADERS,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE,
    )
    return uvicorn.Server(config)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises UsageError if there is no such address, or it is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host: {shortened(host)}: {first_line(error)}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UsageError(f"--port: {host}:{port} cannot be used: {error.strerror}") from None
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Whether only programs on this machine reach the socket."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


@final
class _Endpoints:
    def __init__(self, answerer: Answerer, worker: "Worker[Choice]", limits: Limits, key: str | None) -> None:
        self._answerer, self._worker, self._limits, self._key = answerer, worker, limits, key
        self._began = int(time.time())

    def app(self) -> Starlette:
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK_NAMES, www_redirect=False)
        return Starlette(
            routes=[
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{name}", self._model, methods=["GET"]),
                Route("/v1/chat/completions", self._completions, methods=["POST"]),
            ],
            middleware=[hosts] if self._key is None else [],
            exception_handlers={Refusal: _refused, HTTPException: _not_found, ClientDisconnect: _gone},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self._worker.close)

    async def _models(self, request: Request) -> Response:
        self._admit(request)
        return JSONResponse(replies.model_list(self._answerer.names, self._began))

    async def _model(self, request: Request) -> Response:
        self._admit(request)
        name = request.path_params["name"]
        if name not in self._answerer.names:
            message = f"The model {shortened(name)} does not exist; choose {', '.join(self._answerer.names)}"
            raise Refusal(404, message, param="model", code="model_not_found")
        return JSONResponse(replies.model(name, self._began))

    async def _completions(self, request: Request) -> Response:
        self._admit(request)
        # Other types can be sent by any web page without asking this server first.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "Content-Type: must be application/json")
        asked = read_request(await _body(request), self._answerer.names, self._limits.max_tokens)
        try:
            job = self._worker.submit([partial(self._choice, asked, sampling) for sampling in asked.choices])
        except Busy:
            message = f"{self._limits.queue} requests are waiting already; try again later"
            raise Refusal(429, message, code="server_busy", headers={"Retry-After": "1"}) from None
        choices = await self._result(request, job)
        if asked.stream:
            return StreamingResponse(_each(replies.events(asked, choices)), media_type="text/event-stream")
        return JSONResponse(replies.completion(asked, choices))

    def _admit(self, request: Request) -> None:
        """Raise Refusal without the right key."""
        if self._key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self._key.encode())  # in constant time
        if scheme.lower() != "bearer" or not same:
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, "The API key is missing or wrong.", code="invalid_api_key", headers=headers)

    def _choice(self, asked: ChatRequest, sampling: Sampling) -> Choice:
        """One answer; called by the worker."""
        limit, context = self._answerer.limit(asked.model, sampling), self._answerer.context_length
        characters = sum(len(message["content"]) for message in asked.messages)
        if characters > _CHARACTERS_PER_TOKEN * context:
            message = f"messages: {characters} characters exceed the context of {context} tokens"
            raise Refusal(400, message, param="messages", code="context_length_exceeded")
        try:
            length = self._answerer.prompt_tokens(asked.model, asked.messages)
        except TemplateError as error:
            message = f"messages: the model's chat template refuses them: {first_line(error)}"
            raise Refusal(400, message, param="messages") from None
        if length + limit > context:
            message = f"messages: {length} tokens and an answer of up to {limit} exceed the context of {context} tokens"
            raise Refusal(400, message, param="messages", code="context_length_exceeded")
        answer = self._answerer.answer(asked.model, asked.messages, sampling)
        return replies.choice_of(asked, answer, self._answerer)

    async def _result(self, request: Request, job: "Future[list[Choice]]") -> list[Choice]:
        """The job's result. Drops the job if it fails, takes too long, or nobody waits for it any more."""
        answering, leaving = asyncio.wrap_future(job), asyncio.ensure_future(_disconnected(request))
        both: set[asyncio.Future[Any]] = {answering, leaving}
        try:
            await asyncio.wait(both, timeout=self._limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if answering.cancelled():
                raise Refusal(503, "The server is ending.", code="shutting_down")
            if answering.done():
                return answering.result()
            if leaving.done():
                raise ClientDisconnect
            message = f"no complete answer within {self._limits.seconds:g} s; ask for fewer tokens or choices"
            raise Refusal(504, message, code="timeout", headers={"X-Should-Retry": "false"})
        except (Refusal, ClientDisconnect):
            raise
        except RlhfMarlError as error:
            raise self._failed(str(error)) from None
        except Exception as error:
            raise self._failed(f"{type(error).__name__}: {first_line(error)}") from error
        except SystemExit:  # of a user's controller; it would end the server
            raise self._failed("SystemExit") from None
        finally:
            answering.cancel()
            leaving.cancel()

    def _failed(self, reason: str) -> Refusal:
        """Log the reason, which is for the owner of the server alone."""
        _log.error("a request failed: %s", reason)
        return Refusal(500, "The answer failed; the server's terminal says why.", code="failed")


async def _body(request: Request) -> bytes:
    """The request's body. Raises Refusal if it is too large or comes too slowly."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > _LARGEST_BODY:
                    raise Refusal(
                        413, f"The body has more than {_LARGEST_BODY:,} bytes.", headers={"Connection": "close"}
                    )
    except TimeoutError:
        message = f"The body did not arrive within {_BODY_SECONDS:g} s."
        raise Refusal(408, message, headers={"Connection": "close"}) from None
    return bytes(body)


async def _disconnected(request: Request) -> None:
    """Wait until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _each(parts: Iterable[str]) -> AsyncIterator[str]:
    for part in parts:
        yield part


def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return JSONResponse(replies.error(refusal), refusal.status, refusal.headers)


def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = printable(f"{error.detail}: {request.method} {request.url.path[:200]}")
    return _refused(request, Refusal(error.status_code, message, headers=dict(error.headers or {})))


def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it

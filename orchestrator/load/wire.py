"""One streamed request: sent through the transport, its answer read, a `RequestRecord` made of it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping
from typing import Protocol, Self

import httpx
import msgspec

from orchestrator.clock import now_ns
from orchestrator.load.answer import MAX_DETAIL_CHARACTERS, Answer
from orchestrator.load.transport import RequestLimits, StampingTransport, TransportFailure
from orchestrator.records import Failure, FailureKind, Phase, Prompt, Request, RequestRecord
from stacks.base import Wire

__all__ = ["RequestLimits", "Send", "Sender"]

_encode = msgspec.json.Encoder().encode


class Send(Protocol):
    """Sends one request and returns what became of it. A failed request is data: it never raises for one."""

    async def __call__(
        self,
        request: Request,
        *,
        seq: int,
        phase: Phase,
        due_ns: int,
        user: int | None = None,
        body: bytes | None = None,
    ) -> RequestRecord: ...


class Sender:
    """Sends requests of one dialect to one server. Use as an async context manager."""

    def __init__(
        self,
        *,
        base_url: str,
        wire: Wire,
        model: str,
        prompt: Callable[[Request], Prompt],
        headers: Mapping[str, str] | None = None,
        limits: RequestLimits | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = httpx.URL(base_url.rstrip("/") + wire.path)
        self._wire = wire
        self._model = model
        self._prompt = prompt
        told = {"content-type": "application/json", "accept": "text/event-stream", **(headers or {})}
        self._headers = httpx.Request("GET", self._url, headers=told).headers.raw
        """Those of every request, ready: httpx takes five times as long to make them anew."""
        self._limits = limits or RequestLimits()
        self._transport = transport or StampingTransport()
        self._prefix = secrets.token_hex(4)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.aclose()

    def prepare(self, request: Request) -> bytes:
        """The body of a request, made before its time has come."""
        return _encode(self._wire.body(self._prompt(request), request.output_tokens, self._model))

    async def send(
        self,
        request: Request,
        *,
        seq: int,
        phase: Phase,
        due_ns: int,
        user: int | None = None,
        body: bytes | None = None,
    ) -> RequestRecord:
        """Send and wait for the end. A cancelled request gives its record too (kind ``cancelled``).

        `body`: what `prepare` gave; made now if it is not given.
        """
        request_id = f"{self._prefix}-{seq}"
        content = body or self.prepare(request)
        own = [(b"x-request-id", request_id.encode()), (b"content-length", b"%d" % len(content))]
        message = httpx.Request(
            "POST",
            self._url,
            headers=[*self._headers, *own],
            stream=httpx.ByteStream(content),
            extensions={"limits": self._limits},
        )
        answer = Answer(self._wire)
        sent_ns = now_ns()
        failure = await self._exchange(message, answer)
        end_ns = now_ns()
        answer.close(whole=failure is None)
        if failure is None:
            failure = answer.failure(request.output_tokens, forces_length=self._wire.forces_length)
        return RequestRecord(
            seq=seq,
            request_id=request_id,
            phase=phase,
            due_ns=due_ns,
            sent_ns=sent_ns,
            end_ns=max([end_ns, *answer.token_ns[-1:]]),
            asked_in=request.prompt_tokens,
            asked_out=request.output_tokens,
            clamped=request.clamped,
            session=request.session,
            turn=request.turn,
            failure=failure,
            user=user,
            **answer.facts(),
        )

    async def _exchange(self, message: httpx.Request, answer: Answer) -> Failure | None:
        """Send, and read all of the answer; why that did not come to its end."""
        response: httpx.Response | None = None
        failure: Failure | None = None
        try:
            response = await self._transport.handle_async_request(message)
            await answer.read(response)
        except asyncio.CancelledError:
            failure = Failure(kind="cancelled", detail="the level ended before the answer did")
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
        except httpx.HTTPError as error:
            failure = failure_of(error)
        if response is not None and failure is not None:
            with contextlib.suppress(httpx.HTTPError):
                await response.aclose()
        return failure


def failure_of(error: httpx.HTTPError) -> Failure:
    """The failure class of an exception of any transport."""
    detail = (str(error) or type(error).__name__)[:MAX_DETAIL_CHARACTERS]
    if isinstance(error, TransportFailure):
        return Failure(kind=error.kind, detail=detail)
    classes: tuple[tuple[type[httpx.HTTPError], FailureKind], ...] = (
        (httpx.TimeoutException, "timeout"),
        (httpx.ConnectError, "connect"),
        (httpx.ProxyError, "connect"),
        (httpx.ReadError, "reset"),
        (httpx.WriteError, "reset"),
        (httpx.RemoteProtocolError, "truncated"),
    )
    return Failure(kind=next((kind for cls, kind in classes if isinstance(error, cls)), "protocol"), detail=detail)

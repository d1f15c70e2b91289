"""One streamed request: sent through the transport, its answer read when it is over, a `RequestRecord` made of it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import httpx
import msgspec

from orchestrator.clock import now_ns
from orchestrator.load.http1 import Arrivals
from orchestrator.load.sse import EventTooLongError, SseEvent, SseParser
from orchestrator.load.transport import RequestLimits, StampingTransport, TransportFailure, arrivals_of
from orchestrator.records import Failure, FailureKind, Phase, Prompt, Request, RequestRecord
from stacks.base import Delta, Wire

__all__ = ["RequestLimits", "Send", "Sender"]

_DETAIL_CHARACTERS = 300
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


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


class _Tokens(NamedTuple):
    """What the events of an answer say."""

    arrivals_ns: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    first_answer_ns: int | None = None
    finish: str | None = None
    in_tokens: int | None = None
    out_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    from_usage: bool = False
    error: str | None = None
    garbage: str | None = None


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
        self._headers = {"content-type": "application/json", "accept": "text/event-stream", **(headers or {})}
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
        message = httpx.Request(
            "POST",
            self._url,
            headers={**self._headers, "x-request-id": request_id},
            content=body or self.prepare(request),
            extensions={"limits": self._limits},
        )
        sent_ns = now_ns()
        response: httpx.Response | None = None
        failure: Failure | None = None
        try:
            response = await self._transport.handle_async_request(message)
            await response.aread()
        except asyncio.CancelledError:
            failure = Failure(kind="cancelled", detail="the level ended before the answer did")
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
        except httpx.HTTPError as error:
            failure = failure_of(error)
        end_ns = now_ns()
        if response is not None and failure is not None:
            with contextlib.suppress(httpx.HTTPError):
                await response.aclose()
        return self._record(
            request, response, failure, seq=seq, request_id=request_id, phase=phase, due_ns=due_ns,
            sent_ns=sent_ns, end_ns=end_ns, user=user,
        )  # fmt: skip

    def _record(
        self, request: Request, response: httpx.Response | None, failure: Failure | None, *, end_ns: int, **known: Any
    ) -> RequestRecord:
        arrivals = arrivals_of(response) if response is not None else None
        if arrivals is None:
            arrivals = _without_stamps(response, end_ns, failed=failure is not None)
        tokens = _Tokens()
        if response is not None and response.status_code == 200:
            tokens = read_tokens(self._wire, arrivals, whole=failure is None)
        if failure is None and response is not None:
            failure = judge_answer(
                response.status_code, bytes(arrivals.body), tokens, request.output_tokens, self._wire.forces_length
            )
        answered = tokens.arrivals_ns
        return RequestRecord(
            end_ns=max(end_ns, answered[-1]) if answered else end_ns,
            asked_in=request.prompt_tokens,
            asked_out=request.output_tokens,
            clamped=request.clamped,
            first_byte_ns=response.extensions.get("first_byte_ns") if response is not None else None,
            first_ns=answered[0] if answered else None,
            first_answer_ns=tokens.first_answer_ns,
            last_ns=answered[-1] if answered else None,
            in_tokens=tokens.in_tokens,
            out_tokens=tokens.out_tokens,
            cached_tokens=tokens.cached_tokens,
            reasoning_tokens=tokens.reasoning_tokens,
            tokens_from="usage" if tokens.from_usage else "none" if tokens.out_tokens is None else "token_ids",
            finish=tokens.finish,
            failure=failure,
            stamp="kernel" if arrivals.kernel and arrivals.stamps else "user",
            token_ns=answered,
            token_counts=tokens.counts,
            **known,
        )


def failure_of(error: httpx.HTTPError) -> Failure:
    """The failure class of an exception of any transport."""
    detail = (str(error) or type(error).__name__)[:_DETAIL_CHARACTERS]
    if isinstance(error, TransportFailure):
        return Failure(kind=error.kind, detail=detail)
    classes: tuple[tuple[type[httpx.HTTPError], FailureKind], ...] = (
        (httpx.TimeoutException, "timeout"),
        (httpx.ConnectError, "connect"),
        (httpx.ReadError, "reset"),
        (httpx.WriteError, "reset"),
        (httpx.RemoteProtocolError, "truncated"),
    )
    return Failure(kind=next((kind for cls, kind in classes if isinstance(error, cls)), "protocol"), detail=detail)


def _without_stamps(response: httpx.Response | None, end_ns: int, *, failed: bool) -> Arrivals:
    """The body of another transport: all of it arrived when it was read."""
    arrivals = Arrivals()
    arrivals.kernel = False
    if response is not None and not failed:
        arrivals.body += response.content
        arrivals.ends.append(len(arrivals.body))
        arrivals.stamps.append(end_ns)
    return arrivals


def judge_answer(status: int, body: bytes, tokens: _Tokens, asked: int, forces_length: bool) -> Failure | None:
    """Success needs status 200, no error event, tokens, a finish, and the demanded count where it is forced."""
    if status != 200:
        return Failure(kind="status", detail=_excerpt(body), status=status)
    if tokens.error is not None:
        return Failure(kind="error_in_stream", detail=tokens.error[:_DETAIL_CHARACTERS], status=200)
    if tokens.garbage is not None:
        return Failure(kind="protocol", detail=tokens.garbage, status=200)
    if not tokens.arrivals_ns:
        return Failure(kind="truncated", detail="the stream ended without a token", status=200)
    if tokens.finish is None:
        return Failure(kind="truncated", detail="the stream ended without a finish reason", status=200)
    if forces_length and tokens.out_tokens is not None and tokens.out_tokens != asked:
        return Failure(
            kind="short_output", detail=f"{tokens.out_tokens} tokens came, {asked} were demanded", status=200
        )
    return None


def _excerpt(body: bytes) -> str:
    return " ".join(body[: 4 * _DETAIL_CHARACTERS].decode("utf-8", "replace").split())[:_DETAIL_CHARACTERS]


# --- the events of an answer ------------------------------------------------------------------------------------


def read_tokens(wire: Wire, arrivals: Arrivals, *, whole: bool) -> _Tokens:
    """The token events of a body with their arrivals. `whole`: the body ended as it should."""
    parser = SseParser()
    try:
        events = [*parser.feed(bytes(arrivals.body)), *parser.close(whole=whole)]
    except EventTooLongError as error:
        return _Tokens(garbage=str(error))
    return _gather(wire, arrivals, events)


def _gather(wire: Wire, arrivals: Arrivals, events: Sequence[SseEvent]) -> _Tokens:
    times: list[int] = []
    counts: list[int | None] = []
    totals: dict[str, Any] = {}
    for event in events:
        if event.data == b"[DONE]":
            continue
        try:
            delta = wire.delta(_decode(event.data))
        except msgspec.DecodeError:
            totals.setdefault("garbage", f"an event is not JSON: {_excerpt(event.data)[:80]}")
            continue
        if delta.text or delta.reasoning:
            at = arrivals.stamps[bisect_left(arrivals.ends, event.end)]
            times.append(at)
            counts.append(delta.tokens)
            if delta.text:
                totals.setdefault("first_answer_ns", at)
        _total(totals, delta)
    if totals.get("first_answer_ns") == (times[0] if times else None):
        totals.pop("first_answer_ns", None)
    spread = spread_counts(counts, totals.get("out_tokens"))
    if "out_tokens" not in totals and counts and None not in counts:
        totals["out_tokens"] = sum(count or 0 for count in counts)
    return _Tokens(tuple(times), () if set(spread) <= {1} else spread, **totals)


def _total(totals: dict[str, Any], delta: Delta) -> None:
    """Keep the last of each total, and the first error."""
    for name in ("finish", "in_tokens", "cached_tokens", "reasoning_tokens"):
        if (value := getattr(delta, name)) is not None:
            totals[name] = value
    if delta.out_tokens is not None:
        totals["out_tokens"], totals["from_usage"] = delta.out_tokens, True
    if delta.error is not None:
        totals.setdefault("error", delta.error)


def spread_counts(counts: Sequence[int | None], total: int | None) -> tuple[int, ...]:
    """Tokens of each event. As the events say if all do; else `total` spread evenly over them; else one each."""
    if counts and None not in counts:
        return tuple(count or 0 for count in counts)
    events = len(counts)
    if total is None or events == 0:
        return (1,) * events
    return tuple((i + 1) * total // events - i * total // events for i in range(events))

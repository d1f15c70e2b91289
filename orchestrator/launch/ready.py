"""Ready = health answers 200, the model is listed, and one completion of two tokens came back.

A connect proves nothing: Docker's proxy accepts before the server listens.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
import msgspec

from orchestrator.clock import now_ns, seconds
from orchestrator.errors import StackError
from orchestrator.launch.death import START_TIMEOUT, stack_error, tail
from orchestrator.launch.log import Secrets
from orchestrator.launch.running import Order
from orchestrator.records import Prompt, ServerFailure, ServerRecord
from stacks.base import Deployment, Stack

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
PROBE_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 1024 * 1024
MAX_ERRORS = 5
"""Completions that a healthy server may answer with a 5xx before it is taken at its word."""
OUTPUT_TOKENS = 2
TEMPORARY = frozenset({408, 425, 429})
EXCERPT = 200


class Ready(NamedTuple):
    """What the proof of readiness learnt."""

    took_s: float
    version: str | None
    model_listed: str | None


class NotYetError(Exception):
    """Not ready; the message says what is lacking, for the time-out's sentence."""


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def excerpt(self) -> str:
        text = " ".join(self.body[: 4 * EXCERPT].decode("utf-8", "replace").split())
        return text[:EXCERPT]

    def json(self) -> Any:
        """The body as JSON; None if it is not."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


# --- what an answer means: pure -----------------------------------------------------------------------------------


def listed_models(document: Any) -> list[str]:
    """Names in an OpenAI model list, in Ollama's, or in TGI's ``/info``; [] for anything else."""
    if not isinstance(document, dict):
        return []
    entries = document.get("data") or document.get("models") or [document]
    if not isinstance(entries, list):
        return []
    keys = ("id", "name", "model_id")
    names = [entry.get(key) for entry in entries if isinstance(entry, dict) for key in keys]
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def reported_version(document: Any) -> str | None:
    """The engine's version in a ``/version`` or ``/info`` document."""
    if not isinstance(document, dict):
        return None
    found = next((document[key] for key in ("version", "build_info", "server_version") if key in document), None)
    return found[:EXCERPT] if isinstance(found, str) and found else None


def stream_events(body: bytes) -> list[Any]:
    """The JSON events of a server-sent stream; what is no JSON is left out."""
    events = []
    for line in body.decode("utf-8", "replace").splitlines():
        if line.startswith("data:"):
            try:
                events.append(json.loads(line[5:]))
            except (ValueError, RecursionError):
                continue  # [DONE], or garbage
    return events


def completed(
    record: ServerRecord, ready: Ready, stack: Stack, deployment: Deployment, lines: Sequence[str]
) -> ServerRecord:
    """The record of a server that has become ready, with what its log says. A release that the stack does not know is
    the fact ``version_note``, and another way of computing than was asked for the fact ``path_note``."""
    facts = stack.log_facts(lines)
    told = ready.version or facts.get("version")
    version = None if told is None else str(told)
    if note := stack.version_note(version):
        facts["version_note"] = note
    if note := stack.path_note(deployment, facts):
        facts["path_note"] = note
    return msgspec.structs.replace(
        record,
        version=version,
        model_listed=ready.model_listed,
        ready_s=ready.took_s,
        facts=facts,
    )


# --- the proof ----------------------------------------------------------------------------------------------------


@dataclass
class _Probe:
    """One server on its way up. Each step raises NotYetError until it holds, and StackError when it never will."""

    order: Order
    client: httpx.AsyncClient
    belongs: Callable[[], None] | None
    lines: Callable[[], Sequence[str]]
    secrets: Secrets
    lacking: str = ""
    """Why it is not ready, at the last look."""
    model_listed: str | None = None
    errors: int = 0
    _said: str = ""

    async def holds(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Try a step; tell whoever follows what is lacking, or what the server says meanwhile."""
        try:
            await step()
        except NotYetError as error:
            self.lacking = str(error)
            saying = next(reversed(self.lines()), self.lacking)
            if saying != self._said:
                self._said = saying
                self.order.on_progress(saying[:EXCERPT])
            return False
        return True

    async def listener(self) -> None:
        if self.belongs is not None:
            await asyncio.to_thread(self.belongs)

    async def health(self) -> None:
        path = self.order.stack.readiness.health_path
        if path is not None:
            answer = await self._get(path)
            if answer.status != 200:
                raise NotYetError(f"{path} answers {answer.status}: {answer.excerpt}")

    async def model(self) -> None:
        path = self.order.stack.readiness.models_path
        if path is None:
            return
        answer = await self._get(path)
        self._refuse_credentials(answer)
        names = listed_models(answer.json()) if answer.status == 200 else []
        if not names:
            raise NotYetError(f"{path} answers {answer.status} and lists no model: {answer.excerpt}")
        wanted = self.order.stack.served_name(self.order.deployment)
        if wanted not in names:
            shown = ", ".join(name[:EXCERPT] for name in names[:5])
            raise StackError(
                f"The server lists {shown}, and not the model {wanted}.",
                "Set served_name to the name that it lists.",
                failure_class="wrong-model",
            )
        self.model_listed = wanted

    async def completion(self) -> None:
        order = self.order
        wire = order.stack.wire(order.deployment)
        body = wire.body(Prompt(text="Hello"), OUTPUT_TOKENS, order.stack.served_name(order.deployment))
        # The first completion may compile kernels for minutes: the limit of the start is its limit too.
        answer = await self._send("POST", wire.path, body, timeout_s=None)
        if answer.status != 200:
            self._refused(wire.path, answer)
        deltas = [wire.delta(event) for event in stream_events(answer.body)]
        if error := next((delta.error for delta in deltas if delta.error), None):
            self._count_error(f"{wire.path} answers 200 and an error inside: {error[:EXCERPT]}")
        if not any(delta.text or delta.reasoning or delta.tokens or delta.out_tokens for delta in deltas):
            self._count_error(f"{wire.path} answers 200 and no token: {answer.excerpt}")

    async def version(self) -> str | None:
        path = self.order.stack.readiness.version_path
        if path is None:
            return None
        try:
            answer = await self._get(path)
        except NotYetError:  # it completes requests; a version that it does not tell is not reported
            return None
        return reported_version(answer.json()) if answer.status == 200 else None

    def _refused(self, path: str, answer: Answer) -> None:
        self._refuse_credentials(answer)
        said = f"{path} answers {answer.status}: {answer.excerpt}"
        if 400 <= answer.status < 500 and answer.status not in TEMPORARY:
            raise StackError(
                f"The server is up and refuses a completion; {said}",
                "Check api, served_name and the stack's version in the deployment.",
                failure_class="request-refused",
            )
        if answer.status == 503 or answer.status in TEMPORARY:
            raise NotYetError(said)
        self._count_error(said)

    def _refuse_credentials(self, answer: Answer) -> None:
        if answer.status in (401, 403):
            raise StackError(
                f"The server wants other credentials: it answers {answer.status}, {answer.excerpt}",
                "Name the environment variable that holds its key in the deployment's secrets.",
                failure_class="unauthorized",
            )

    def _count_error(self, said: str) -> None:
        self.errors += 1
        if self.errors >= MAX_ERRORS:
            raise StackError(
                f"The server is healthy, and {MAX_ERRORS} of {MAX_ERRORS} completions failed; {said}",
                "Read its log.",
                failure_class="completion-failed",
            )
        raise NotYetError(said)

    async def _get(self, path: str) -> Answer:
        return await self._send("GET", path, None, timeout_s=PROBE_TIMEOUT_S)

    async def _send(self, method: str, path: str, body: Any, timeout_s: float | None) -> Answer:
        """One exchange, bounded in memory; NotYet when there is no whole answer."""
        received = bytearray()
        timeout = httpx.Timeout(timeout_s, connect=PROBE_TIMEOUT_S)
        try:
            async with asyncio.timeout(timeout_s):
                async with self.client.stream(method, path, json=body, timeout=timeout) as response:
                    async for chunk in response.aiter_raw():
                        received += chunk
                        if len(received) > MAX_BODY_BYTES:
                            break
                    return Answer(response.status_code, self.secrets.hidden(bytes(received)))
        except TimeoutError as error:
            raise NotYetError(f"{path} does not answer within {timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise NotYetError(f"{path} cannot be reached: {str(error) or type(error).__name__}") from error


async def prove_ready(
    order: Order,
    *,
    base_url: str,
    timeout_s: float,
    started_ns: int,
    died: asyncio.Future[ServerFailure],
    lines: Callable[[], Sequence[str]],
    belongs: Callable[[], None] | None = None,
    secrets: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Ready:
    """Wait until the server at `base_url` is ready, at most until `timeout_s` after `started_ns`.

    `died` ends the wait at once; `lines` gives the log for the evidence; `belongs` raises NotYetError until what
    listens there is what we started (blocking, called in a thread); the values of `secrets` are kept out of what it is
    heard to say. Raises StackError, or what `belongs` raises.
    """
    limit_s = max(0.0, timeout_s - seconds(now_ns() - started_ns))
    headers = {"accept-encoding": "identity", **(headers or {})}
    fresh = httpx.Limits(max_keepalive_connections=0)  # a connection that the server has just closed is no answer
    async with httpx.AsyncClient(base_url=base_url, trust_env=False, headers=headers, limits=fresh) as client:
        probe = _Probe(order, client, belongs, lines, Secrets(secrets or {}))
        climb = asyncio.ensure_future(_climb(probe, started_ns))
        try:
            either: set[asyncio.Future[Any]] = {climb, died}
            done, _ = await asyncio.wait(either, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if died in done:
                raise stack_error(died.result())
            if climb in done:
                return climb.result()
            raise _too_late(order, timeout_s, probe.lacking)
        except StackError as error:
            error.evidence = error.evidence or tail(lines())
            raise
        finally:
            climb.cancel()
            await asyncio.wait({climb})


async def _climb(probe: _Probe, started_ns: int) -> Ready:
    """Step after step; each is tried until it holds, ever less often."""
    for step in (probe.listener, probe.health, probe.model, probe.completion):
        pause_s = FIRST_PAUSE_S
        while not await probe.holds(step):
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 1.5)
    took_s = seconds(now_ns() - started_ns)
    return Ready(took_s, await probe.version(), probe.model_listed)


def _too_late(order: Order, timeout_s: float, lacking: str) -> StackError:
    return StackError(
        f"{order.stack.title} was not ready within {timeout_s:g} s: {lacking or 'it has not answered yet'}.",
        "Read its log; if it only needs more time, raise start_timeout_s in the deployment.",
        failure_class=START_TIMEOUT,
    )

"""The engine's own metrics: one scraper, a short time-out, a bounded body."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

from orchestrator.clock import NS_PER_S, now_ns
from orchestrator.errors import HostError

TIMEOUT_S = 2.0
"""For one whole scrape; an engine that is slower than this is skipped, not waited for."""
MAX_BYTES = 4 * 1024 * 1024


@contextmanager
def engine_reader(
    base_url: str, path: str, metric_values: Callable[[str], dict[str, float]]
) -> Iterator[Callable[[], dict[str, float]]]:
    """Readings of the metrics page at `base_url` + `path`, in the names of `Stack.metric_values`."""
    url = base_url.rstrip("/") + "/" + path.lstrip("/")
    # No proxy between us and the engine; no compression, so that the bound on the body is the bound on memory.
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False, headers={"accept-encoding": "identity"}) as client:
        yield lambda: metric_values(scrape(client, url))


def scrape(client: httpx.Client, url: str) -> str:
    """The page's text. Raises `HostError` when it is no page of metrics: not 200, too slow, too large, no answer."""
    try:
        with client.stream("GET", url) as response:
            if response.status_code != httpx.codes.OK:
                raise HostError(
                    f"The metrics page {url} answered {response.status_code}.",
                    "Start the engine with its metrics switched on.",
                )
            return _bounded_body(response, url).decode("utf-8", "replace")
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise HostError(f"The metrics page {url} could not be read ({reason}).") from error


def _bounded_body(response: httpx.Response, url: str) -> bytes:
    """The body. httpx bounds each read; the whole answer is bounded here, in time and in size."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise HostError(f"The metrics page {url} came compressed although plain text was asked for.")
    until_ns = now_ns() + int(TIMEOUT_S * NS_PER_S)
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > MAX_BYTES:
            raise HostError(f"The metrics page {url} is larger than {MAX_BYTES // 1024**2} MiB.")
        if now_ns() > until_ns:
            raise HostError(f"The metrics page {url} took longer than {TIMEOUT_S:g} s.")
    return bytes(body)

"""What engines say (recorded from 20.10, 26.1 and 28.5) becomes one sentence with its remedy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.launch.refusals import TABLES, host_error

CASES = [
    (
        "connect",
        "Error while fetching server API version: "
        "('Connection aborted.', FileNotFoundError(2, 'No such file or directory'))",
        "No Docker Engine answers at unix:///x",
    ),
    (
        "connect",
        "('Connection aborted.', ConnectionRefusedError(111, 'Connection refused'))",
        "No Docker Engine answers",
    ),
    ("connect", "('Connection aborted.', PermissionError(13, 'Permission denied'))", "may not be opened by this user"),
    ("connect", "client version 9.99 is too new. Maximum supported API version is 1.41", "too old for the client"),
    ("connect", "Read timed out.", "does not answer: Read timed out."),
    ("pull", "dial tcp: lookup registry-1.docker.io: no such host", "registry cannot be reached"),
    ("pull", "unexpected EOF", "broke off while it sent"),
    ("pull", "read tcp 10.0.0.2:1->10.0.0.1:443: read: connection reset by peer", "broke off while it sent"),
    ("pull", "failed to copy: httpReadSeeker: failed open: unexpected EOF", "broke off while it sent"),
    ("pull", 'Get "https://r/v2/": read tcp 10.0.0.2:1->10.0.0.1:443: read: connection reset by peer', "be reached"),
    ("pull", 'failed to resolve reference "x/y:1": failed to do request', "registry cannot be reached"),
    ("pull", "manifest for x/y:1 not found: manifest unknown: manifest unknown", "registry does not have it"),
    ("pull", 'Head "https://r/v2/x": no basic auth credentials', "wants a login"),
    ("pull", "unauthorized: authentication required", "wants a login"),
    ("pull", "write /var/lib/docker/tmp/x: no space left on device", "disk is full"),
    ("pull", "toomanyrequests: You have reached your pull rate limit", "no more images"),
    ("pull", "invalid reference format: repository name must be lowercase", "is no image name"),
    ("pull", "something new", "cannot be pulled: something new."),
    ("start", 'could not select device driver "" with capabilities: [[gpu]]', "container toolkit is missing"),
    ("start", "unknown or invalid runtime name: nvidia", "container toolkit is missing"),
    ("start", "unresolvable CDI devices nvidia.com/gpu=9", "does not know the GPU"),
    (
        "start",
        "error running hook #0: nvidia-container-cli: requirement error: "
        "unsatisfied condition: cuda>=12.9, please update",
        "it needs cuda>=12.9",
    ),
    ("start", "nvidia-container-cli: initialization error: nvml error: driver not loaded", "driver not loaded"),
    ("start", "Bind for 127.0.0.1:8000 failed: port is already allocated", "port for the container is taken"),
    ("start", "listen tcp4 127.0.0.1:8000: bind: address already in use", "port for the container is taken"),
    ("start", "bind source path does not exist: /models", "folder /models does not exist"),
    ("start", "Minimum memory limit allowed is 6MB", "least, 6MB"),
    ("start", 'exec: "vllm": executable file not found in $PATH: unknown', "does not hold the program"),
    ("start", "network nowhere not found", "does not exist"),
    ("start", "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available", "that many CPUs"),
    ("start", "No such image: x:1", "has gone"),
    ("start", "something new", "does not start a container of x:1: something new."),
]


@pytest.mark.parametrize(("act", "said", "sentence"), CASES)
def test_a_refusal_is_one_sentence_with_its_remedy(act: str, said: str, sentence: str) -> None:
    error = host_error(act, said, image="x:1", address="unix:///x")
    assert sentence in error.message
    assert error.remedy.endswith((".", "x:1", "config."))
    assert "{" not in str(error)


@given(st.sampled_from(sorted(TABLES)), st.text(max_size=2000))
def test_whatever_an_engine_says_has_a_sentence(act: str, said: str) -> None:
    error = host_error(act, said, image="x:1", address="a")
    assert 0 < len(error.message) < 700
    assert error.remedy

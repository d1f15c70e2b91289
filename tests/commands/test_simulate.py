"""`loadproof simulate`: what it cannot serve is refused in a sentence whose remedy is its own."""

from __future__ import annotations

import socket

import pytest

from orchestrator.cli import main

FITS = ("--model", "meta-llama/Llama-3.1-8B-Instruct", "--card", "L40S-48GB", "--max-model-len", "8192")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str]:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *arguments])
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", FITS[1], "--card", "y"), "Nothing is known of the card 'y'. Nearest: "),
        (("--model", "nope", "--card", "L4"), "Nothing is known of the model 'nope'. Nearest: "),
        ((*FITS, "--port", "99999"), "--port"),
        ((*FITS, "--fault", "neighbor=1"), "there are oom-at-start"),
        ((*FITS, "--max-concurrent-requests", "-1"), "--max-concurrent-requests"),
    ],
)
def test_the_remedy_is_one_of_this_command(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    code, told = refusal(capsys, *arguments)
    assert code == 2, told
    assert words in told
    assert "--card-memory" not in told
    assert "config.json" not in told


def test_a_port_that_is_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, told = refusal(capsys, *FITS, "--port", str(port))
    assert code == 3
    assert f"127.0.0.1:{port} cannot be listened on" in told
    assert "--port 0" in told

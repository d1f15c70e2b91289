"""A port is free when it is chosen, and its listener is known by its socket."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import HostError
from orchestrator.launch import listener
from orchestrator.launch.listener import PORTS, free_port, listeners, parse_listeners, sockets_of

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line(address: str, port: int, state: str, inode: int) -> str:
    return f"   0: {address}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1\n"


def test_only_listeners_that_loopback_reaches_count() -> None:
    table = HEAD + "".join(
        [
            line("0100007F", 8000, "0A", 1),
            line("00000000", 8000, "0A", 2),
            line("0" * 32, 8000, "0A", 3),
            line("0100007F", 8000, "01", 4),  # a connection
            line("0100007F", 8001, "0A", 5),  # another port
            line("0200A8C0", 8000, "0A", 6),  # another address
        ]
    )
    assert parse_listeners(table, 8000) == {"1", "2", "3"}


@given(st.text(max_size=200))
def test_a_table_of_garbage_holds_nothing(text: str) -> None:
    assert parse_listeners(HEAD + text, 8000) == set()


def test_our_own_listener_is_ours() -> None:
    port = free_port()
    assert port in PORTS
    assert listeners(port) == set()
    with socket.create_server(("127.0.0.1", port)) as server:
        assert listeners(port) == {str(os.fstat(server.fileno()).st_ino)}
        assert listeners(port) <= sockets_of([os.getpid()])
        assert not listeners(port) & sockets_of([os.getppid()])
    assert sockets_of([2**30]) == set()


def test_no_free_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        monkeypatch.setattr(listener, "PORTS", range(port, port + 1))
        with pytest.raises(HostError, match="No free port"):
            free_port()

"""A Docker Engine of a test's own, to be stopped and started again without harm to anybody else's containers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
from docker.errors import DockerException
from fakes.dying import wait_until

HOOK = "#!/bin/sh\nexec cat >/dev/null\n"
"""Plays NVIDIA's runtime hook: that it is there makes an engine take requests for GPUs."""


def lacking() -> str | None:
    """Why this machine cannot run a second engine, or None."""
    if os.geteuid() != 0:
        return "a second Docker Engine needs root"
    missing = [name for name in ("dockerd", "ip", "runc") if shutil.which(name) is None]
    return f"a second Docker Engine needs {', '.join(missing)}" if missing else None


class PrivateEngine:
    """One dockerd with its own data, socket and bridge, and no firewall rules."""

    def __init__(self, folder: Path, data: Path, bridge: str) -> None:
        self.folder = folder
        """Short, for its sockets."""
        self.address = f"unix://{folder}/docker.sock"
        self._data = data
        self._bridge = bridge
        self._popen: subprocess.Popen[bytes] | None = None
        (folder / "bin").mkdir(parents=True)

    def give_hook(self) -> None:
        """From the next start on it takes requests for GPUs."""
        hook = self.folder / "bin" / "nvidia-container-runtime-hook"
        hook.write_text(HOOK)
        hook.chmod(0o755)

    def start(self) -> None:
        folder = self.folder
        command = ["dockerd", "--data-root", str(self._data), "--exec-root", f"{folder}/exec"]
        command += ["--pidfile", f"{folder}/dockerd.pid", "-H", self.address, "--bridge", self._bridge]
        # Patience of a minute with a registry that breaks off is dockerd's own to test.
        command += ["--iptables=false", "--ip6tables=false", "--shutdown-timeout=5", "--max-download-attempts=1"]
        environment = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        with (folder / "dockerd.log").open("ab") as log:
            self._popen = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        wait_until(self._answers, f"the engine answers; its log is {folder}/dockerd.log")

    def stop(self) -> None:
        """As a service manager stops it: its containers end with it."""
        if self._popen is not None:
            self._popen.send_signal(signal.SIGTERM)
            self._popen.wait(60)
            self._popen = None

    def _answers(self) -> bool:
        assert self._popen is not None
        assert self._popen.poll() is None, (self.folder / "dockerd.log").read_text()[-2000:]
        try:
            client = docker.DockerClient(base_url=self.address) if (self.folder / "docker.sock").exists() else None
            found = client is not None and client.ping()
        except DockerException:
            return False
        if client is not None:
            client.close()
        return found


@contextmanager
def private_engine(scratch: Path) -> Iterator[PrivateEngine]:
    """An engine that is started by the test; gone with all that it held at the end."""
    name = uuid.uuid4().hex[:8]
    bridge, subnet = f"lp{name}", int(name[:2], 16)
    engine = PrivateEngine(Path("/run") / f"loadproof-test-{name}", scratch / "engine", bridge)
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    subprocess.run(["ip", "addr", "add", f"172.30.{subnet}.1/24", "dev", bridge], check=True)
    subprocess.run(["ip", "link", "set", bridge, "up"], check=True)
    try:
        yield engine
    finally:
        engine.stop()
        subprocess.run(["ip", "link", "del", bridge], check=True)
        shutil.rmtree(engine.folder)
        shutil.rmtree(scratch / "engine", ignore_errors=True)

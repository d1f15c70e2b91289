"""The report as PDF, printed by an installed Chromium: the page's own print style, nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from orchestrator.errors import HostError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
TIMEOUT_S = 120.0


def find_chromium() -> str:
    """Path of a Chromium or a browser built on it. Raises HostError if there is none on PATH."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    raise HostError(
        "A PDF is printed by Chromium, and none is on PATH.",
        "Install the package chromium (or Chrome), or print the HTML report from any browser.",
    )


def write_pdf(page: Path, out: Path) -> None:
    """Print an HTML file. Raises HostError if there is no Chromium, or it does not print."""
    chromium = find_chromium()
    with tempfile.TemporaryDirectory(prefix="loadproof-", ignore_cleanup_errors=True) as profile:
        command = [
            chromium,
            "--headless",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--no-pdf-header-footer",
            "--generate-pdf-document-outline",
            f"--user-data-dir={profile}",
            # Chromium's sandbox refuses to run as root; the page has no script and no network to be kept from.
            *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
            f"--print-to-pdf={out.resolve()}",
            page.resolve().as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise HostError(
                f"{chromium} did not print within {TIMEOUT_S:.0f} s.", "Print the HTML report from any browser."
            ) from error
    if done.returncode != 0 or not out.is_file():
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise HostError(f"{chromium} did not print {out}: {last[0][:200]}.", "Print the HTML report from any browser.")

"""What a stranger installs: the wheel holds the four packages with their data and nothing else; the sdist builds it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import __version__

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "stacks", "workloads", "reports")


def build(source: Path, target: str, out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(build(REPOSITORY, "wheel", tmp_path_factory.mktemp("wheel"))) as opened:
        yield opened


def sources() -> set[str]:
    """Every file of the four packages, as it lies here."""
    found = (path for package in PACKAGES for path in (REPOSITORY / package).rglob("*"))
    kept = (path for path in found if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(REPOSITORY).as_posix() for path in kept}


def test_the_wheel_is_the_four_packages_whole(wheel: zipfile.ZipFile) -> None:
    meta = f"loadproof-{__version__}.dist-info/"
    names = {name for name in wheel.namelist() if not name.startswith(meta)}
    assert len(names) > 150
    assert names == sources()
    assert {"orchestrator/demo.toml", "reports/templates/report.html", "reports/result.schema.json"} <= names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"stacks/memory/data/model-facts.json", "workloads/data/azure-conv-2023.json"} <= names


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    meta = f"loadproof-{__version__}.dist-info/"
    assert wheel.read(f"{meta}entry_points.txt").decode().split() == [
        "[console_scripts]",
        "loadproof",
        "=",
        "orchestrator.cli:main",
    ]
    text = wheel.read(f"{meta}METADATA").decode()
    assert f"\nVersion: {__version__}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    assert f"{meta}licenses/LICENSE" in wheel.namelist()


def test_the_sdist_builds_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    with tarfile.open(build(REPOSITORY, "sdist", tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"loadproof-{__version__}"
    top = {path.name for path in unpacked.iterdir()}
    assert {"tests", "benchmarks", "examples", "README.md", "METHOD.md", "LICENSE", "docker-compose.yml"} <= top
    with zipfile.ZipFile(build(unpacked, "wheel", tmp_path / "again")) as again:
        assert sorted(again.namelist()) == sorted(wheel.namelist())

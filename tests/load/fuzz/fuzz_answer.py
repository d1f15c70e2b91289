"""Coverage-guided fuzzing of what reads an answer: HTTP/1.1 parser, SSE parser, dialects (atheris, in its own venv).

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris httpx msgspec numpy prometheus-client psutil
    PYTHONPATH=. nice -n 15 /tmp/fuzz/bin/python tests/load/fuzz/fuzz_answer.py -max_total_time=600 -max_len=4096 FOLDER

FOLDER grows with what covers more; `--seeds FOLDER` begins it with the recorded streams of the tests.
What libFuzzer finds it writes as ``crash-*``: put it into ``corpus/`` and `test_corpus.py` holds it.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

try:
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ImportError:  # seeds are written without it
    atheris = None

with atheris.instrument_imports(include=["orchestrator.load", "stacks"]) if atheris else contextlib.nullcontext():
    import one_answer


def write_seeds(folder: Path) -> None:
    """The recorded streams, each whole in one chunk and behind a head that the fuzzer may change."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from fakes import samples

    folder.mkdir(parents=True, exist_ok=True)
    for name, stream in samples.streams().items():
        body = stream.body[:3000]
        for number in range(len(one_answer.WIRES)):
            head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
            raw = bytes([number, 7, 0]) + head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            (folder / f"{Path(name).name}-{number}").write_bytes(raw)


def main() -> None:
    if sys.argv[1:2] == ["--seeds"]:
        write_seeds(Path(sys.argv[2]))
        return
    library: Any = atheris
    library.Setup(sys.argv, one_answer.read)
    library.Fuzz()


if __name__ == "__main__":
    main()

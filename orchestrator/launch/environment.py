"""What a server gets of our environment: a short list of names, and its secrets.

A server that inherited everything would run under settings that no record shows, and another machine's run would not be
the same one. So a process gets what is below, what its deployment sets, and the secrets that it names; a container gets
the last two alone. VLLM_*, LLAMA_ARG_*, OMP_NUM_THREADS and the like belong into the deployment's `env`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from orchestrator.errors import HostError

INHERITED = frozenset(
    {
        # the session
        "HOME",
        "LANG",
        "LOGNAME",
        "PATH",
        "SHELL",
        "TMPDIR",
        "TZ",
        "USER",
        "XDG_CACHE_HOME",
        "XDG_RUNTIME_DIR",
        # where libraries and the card are
        "CUDA_HOME",
        "CUDA_PATH",
        "CUDA_VISIBLE_DEVICES",
        "LD_LIBRARY_PATH",
        "NVIDIA_VISIBLE_DEVICES",
        "VIRTUAL_ENV",
        # where models lie and how they are fetched
        "HF_ENDPOINT",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TORCH_HOME",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
    }
)
# A program that sets its own title (vLLM, SGLang) writes over its environment, by which it is found again; not so with
# this.
FINDABLE = {"SPT_NOENV": "1"}


def inherited(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The part of our environment that every process we start gets."""
    ours = os.environ if environment is None else environment
    return {name: value for name, value in ours.items() if name in INHERITED or name.startswith("LC_")}


def secret_values(names: tuple[str, ...]) -> dict[str, str]:
    """Values of the named variables of our environment. Raises HostError for those that are not set."""
    lacking = [name for name in names if not os.environ.get(name)]
    if lacking:
        raise HostError(
            f"The deployment's secrets name {', '.join(lacking)}, which the environment does not hold.",
            f"Set it before the run: export {lacking[0]}=...",
        )
    return {name: os.environ[name] for name in names}

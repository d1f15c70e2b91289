"""llama.cpp's own HTTP server out of the wheel `xllamacpp`: no compiler, no container, any x86-64 or Arm CPU.

    python -m stacks.llamacpp_portable -m MODEL.gguf --host 127.0.0.1 --port 8080 -c 8192 -np 4

It takes the flags of llama-server that `stacks.llamacpp` writes, with the same meaning, and refuses all others. The
log goes to stderr. Threads that wait do so asleep (OMP_WAIT_POLICY=passive unless it is set): the spinning default
makes a token ten times slower as soon as anything else, such as the load generator, wants one of few cores.

SIGTERM and Ctrl-C end it cleanly, with status 0; a model that cannot be loaded or a port that is taken, with status 1
and llama.cpp's own words.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from stacks.llamacpp import KV_TYPES

ALL_LAYERS = 9999
NICENESS = {-1: 5, 0: 0, 1: -5, 2: -10, 3: -20}
"""Of the process, by llama.cpp's number of a priority (its `set_process_priority`)."""
_FAILED = signal.SIGUSR1
_SIGNALS = {signal.SIGTERM, signal.SIGINT, _FAILED}


def parser() -> argparse.ArgumentParser:
    """The flags, as llama-server spells them."""
    flags = argparse.ArgumentParser(prog="llamacpp_portable", description=__doc__, allow_abbrev=False)
    flags.add_argument("-m", "--model", required=True, metavar="FILE", help="GGUF file")
    flags.add_argument("-a", "--alias", default=None, help="name in /v1/models (default: the path)")
    flags.add_argument("--host", default="127.0.0.1")
    flags.add_argument("--port", type=int, default=8080)
    flags.add_argument("-c", "--ctx-size", type=int, default=0, help="tokens of all slots together; 0 = the model's")
    flags.add_argument("-np", "--parallel", type=int, default=4, help="slots")
    flags.add_argument("-kvu", "--kv-unified", action="store_true", help="the slots share one KV cache")
    flags.add_argument("-ngl", "--gpu-layers", "--n-gpu-layers", default="0", type=_layers)
    flags.add_argument("-fit", "--fit", choices=("on", "off"), default="off")
    flags.add_argument("-b", "--batch-size", type=int, default=2048)
    flags.add_argument("-ub", "--ubatch-size", type=int, default=512)
    flags.add_argument("-fa", "--flash-attn", choices=("on", "off", "auto"), default="auto")
    flags.add_argument("-ctk", "--cache-type-k", choices=KV_TYPES, default="f16")
    flags.add_argument("-ctv", "--cache-type-v", choices=KV_TYPES, default="f16")
    flags.add_argument("-cram", "--cache-ram", type=int, default=8192, help="MiB of host memory for idle prompts")
    flags.add_argument("-t", "--threads", type=int, default=-1)
    flags.add_argument("-tb", "--threads-batch", type=int, default=-1)
    flags.add_argument("--threads-http", type=int, default=-1)
    flags.add_argument("--prio", type=int, choices=sorted(NICENESS), default=0, help="-1 = below everything else")
    flags.add_argument("--metrics", action="store_true", help="serve /metrics")
    flags.add_argument("--slots", action=argparse.BooleanOptionalAction, default=True, help="serve /slots")
    flags.add_argument("--no-webui", "--no-ui", action="store_true")
    flags.add_argument("-lv", "--verbosity", type=int, default=3, help="4 tells the memory")
    return flags


def _layers(text: str) -> int:
    """``all``, ``auto`` or a number."""
    return {"all": ALL_LAYERS, "auto": -1}.get(text) or int(text)


def parameters(flags: argparse.Namespace, engine: Any) -> Any:
    """The flags as llama.cpp's `common_params`; `engine` is the module xllamacpp."""
    params = engine.CommonParams()
    params.model.path = flags.model
    params.model_alias = {flags.alias or flags.model}
    params.hostnames, params.port = [flags.host], flags.port
    params.n_ctx, params.n_parallel, params.kv_unified = flags.ctx_size, flags.parallel, flags.kv_unified
    params.cont_batching = True
    params.n_batch, params.n_ubatch = flags.batch_size, flags.ubatch_size
    params.n_gpu_layers = flags.gpu_layers
    params.fit_params = flags.fit == "on"
    attention = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}[flags.flash_attn]
    params.flash_attn_type = getattr(engine.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{attention}")
    params.cache_type_k = getattr(engine.ggml_type, f"GGML_TYPE_{flags.cache_type_k.upper()}")
    params.cache_type_v = getattr(engine.ggml_type, f"GGML_TYPE_{flags.cache_type_v.upper()}")
    params.cache_ram_mib = flags.cache_ram
    # As llama-server does: batches use the threads of generation unless they have their own number.
    params.cpuparams.n_threads = flags.threads
    params.cpuparams_batch.n_threads = flags.threads_batch if flags.threads_batch > 0 else flags.threads
    params.n_threads_http = flags.threads_http
    params.endpoint_metrics, params.endpoint_slots = flags.metrics, flags.slots
    params.ui = not flags.no_webui
    params.verbosity = flags.verbosity
    return params


class _Engine:
    """The server, loaded in a thread of its own, so that a signal is heard while it loads."""

    def __init__(self, engine: Any, params: Any) -> None:
        self.server: Any = None
        self.reason = ""
        self._load = (engine, params)
        self._main = threading.get_ident()
        threading.Thread(target=self._run, name="load", daemon=True).start()

    def _run(self) -> None:
        engine, params = self._load
        try:
            self.server = engine.Server(params)
        except Exception as error:  # whatever it is, the main thread must hear that there will be no server
            self.reason = f"{type(error).__name__}: {error}"
            signal.pthread_kill(self._main, _FAILED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; the exit status."""
    flags = parser().parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when the library is loaded
    try:
        import xllamacpp
    except ImportError:
        sys.stderr.write("The package xllamacpp is not installed: pip install 'loadproof[demo]'.\n")
        return 1
    if flags.prio:
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS[flags.prio])
    # Blocked before any thread starts, so that sigwait alone sees them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    engine = _Engine(xllamacpp, parameters(flags, xllamacpp))
    received = signal.sigwait(_SIGNALS)
    if received == _FAILED:
        sys.stderr.write(f"llama.cpp did not start: {engine.reason}\n")
        return 1
    if engine.server is None:  # still loading, which nothing interrupts
        os._exit(128 + received)
    engine.server = None  # its destructor ends the loop and the threads
    return 0


if __name__ == "__main__":
    sys.exit(main())

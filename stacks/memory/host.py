"""What an engine holds in host memory beside weights and KV, where there is no card.

llama.cpp:

    compute = ubatch*4*(3*F + 5*H + 8) + ubatch*cells*2            graph's peak, and one stream's mask in 16 bit
    runtime = program + layers*l + vocab*(v + slots*(12 + 4))      vocabulary; a slot's candidates and row of logits

H = hidden size, F = intermediate size; bytes. The constants are keyed in ``engine-constants.json``, with what they
were measured on. A mapped file of weights counts as soon as it has been read, which the engine does before it is
ready; a compute buffer counts as far as batches have filled it.

vLLM, whose pool is written over at the start and so resident as a whole:

    runtime = server, engine core, resource tracker, worker      each with Python, torch and libraries of its own
    copies  = h*vocab*H*2                  output head, packed for the CPU beside the embedding that it is tied to
    batch   = f*forward(btok)              what the allocator keeps of the largest batch (`overheads.forward_bytes`)
"""

from __future__ import annotations

from stacks.memory.cards import GIB
from stacks.memory.kv import LlamaCppKv
from stacks.memory.models import Model
from stacks.memory.overheads import forward_bytes
from stacks.memory.versions import Version, constant, newest_known

_MASK_BYTES = 2
_FLOAT_BYTES = 4


def _constant(name: str) -> float:
    return constant("llamacpp", name, newest_known("llamacpp"), "older").value


VLLM_SINCE = Version(0, 32)
"""From here on what vLLM holds in host memory was measured: one process each for server, engine core and worker."""


def vllm_runtime_bytes(version: Version) -> float:
    """All processes of a server of one worker before it holds anything of a model."""
    return sum(constant("vllm", f"cpu_{part}_gib", version, "x86").value for part in ("processes", "worker")) * GIB


def vllm_copies_bytes(model: Model, version: Version) -> float:
    return constant("vllm", "cpu_head_copies", version, "x86").value * model.vocab * model.hidden * 2


def vllm_batch_bytes(model: Model, batched_tokens: int, version: Version) -> float:
    return constant("vllm", "cpu_forward_share", version, "x86").value * forward_bytes(model, batched_tokens, 1)


def compute_bytes(model: Model, cache: LlamaCppKv, micro_batch: int) -> float:
    """The compute buffer of a graph of `micro_batch` tokens, with flash attention."""
    wide = model.intermediate or 0
    if model.moe is not None:
        wide = model.moe.expert_intermediate * model.moe.experts_per_token
    values = _constant("graph_values_per_intermediate") * wide
    values += _constant("graph_values_per_hidden") * model.hidden + _constant("graph_values")
    return micro_batch * (values * _FLOAT_BYTES + cache.cells * _MASK_BYTES)


def runtime_bytes(model: Model, slots: int, *, in_python: bool) -> float:
    """The program with its libraries and threads, its vocabulary, and what sampling keeps for each slot."""
    program = _constant("program_gib_python" if in_python else "program_gib") * GIB
    slot = _constant("sampling_bytes_per_token") + _FLOAT_BYTES
    per_token = _constant("vocabulary_bytes_per_token") + slots * slot
    return program + model.layers * _constant("runtime_bytes_per_layer") + model.vocab * per_token

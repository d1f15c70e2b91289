"""What llama.cpp holds in host memory beside weights and KV, where there is no card.

    compute  = ubatch*4*(3*F + 5*H + 8) + ubatch*cells*2        graph's peak, and the mask of one stream in 16 bit
    outputs  = slots*vocab*4                                    one row of logits a slot
    sampling = slots*vocab*12                                   candidates: id, logit, probability
    runtime  = program + vocabulary*bytes a token + sampling

H = hidden size, F = intermediate size; bytes. The constants are keyed in ``engine-constants.json``.
"""

from __future__ import annotations

from stacks.memory.cards import GIB
from stacks.memory.kv import LlamaCppKv
from stacks.memory.models import Model
from stacks.memory.versions import Version, constant, newest_known

_CANDIDATE_BYTES = 12
"""llama_token_data: id, logit and probability of 4 bytes each."""
_MASK_BYTES = 2
_FLOAT_BYTES = 4


def _constant(name: str, version: Version) -> float:
    return constant("llamacpp", name, version, "older").value


def compute_bytes(model: Model, cache: LlamaCppKv, micro_batch: int) -> float:
    """The compute buffer of a graph of `micro_batch` tokens with flash attention."""
    version = newest_known("llamacpp")
    wide = model.intermediate or 0
    if model.moe is not None:
        wide = model.moe.expert_intermediate * model.moe.experts_per_token
    values = (
        _constant("graph_values_per_intermediate", version) * wide
        + _constant("graph_values_per_hidden", version) * model.hidden
        + _constant("graph_values", version)
    )
    return micro_batch * (values * _FLOAT_BYTES + cache.cells * _MASK_BYTES)


def output_bytes(model: Model, slots: int) -> float:
    return float(slots * model.vocab * _FLOAT_BYTES)


def runtime_bytes(model: Model, slots: int, *, in_python: bool) -> float:
    """The program, its libraries and threads, its vocabulary, and what sampling keeps for each slot."""
    version = newest_known("llamacpp")
    program = _constant("program_gib_python" if in_python else "program_gib", version) * GIB
    vocabulary = _constant("vocabulary_bytes_per_token", version) * model.vocab
    return program + vocabulary + slots * model.vocab * _CANDIDATE_BYTES

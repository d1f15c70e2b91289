"""What an engine of the vLLM family needs beside weights and KV: activation peak, non-torch memory, graphs, context.

    A       = max(sampler, forward) + encoder                  V0 engines with an encoder: max(forward, encoder)
    sampler = k*min(seqs, btok)*vocab + c*btok*hidden          0 on pipeline ranks without the head
    forward = btok*2*(3*I*e/tp + r + 4*hidden)                 I = intermediate (of one expert), e = experts per token
              + 65536*heads/tp*(qk_nope_head_dim + v_head_dim)*2 for MLA;  r = e*hidden for MoE

Bytes on one rank. Constants by version and hardware class come from `versions.constant`.
"""

from __future__ import annotations

from stacks.memory.cards import GIB, HardwareClass
from stacks.memory.models import Model
from stacks.memory.versions import Version, constant
from stacks.memory.weights import Sharding

_MLA_WORKSPACE_TOKENS = 65536
_PEER_BUFFERS_SINCE = Version(0, 18)
"""From here on the logs tell two ranks from four."""


def sampler_bytes(
    model: Model, seqs: int, batched_tokens: int, shards: Sharding, version: Version, hardware: HardwareClass
) -> float:
    """Profiling the sampler: logits, probabilities and their copies for min(seqs, btok) rows."""
    if not shards.stage.last:
        return 0.0
    per_logit = constant("vllm", "sampler_bytes_per_logit", version, hardware).value
    per_value = constant("vllm", "forward_bytes_per_token_value", version, hardware).value
    return per_logit * min(seqs, batched_tokens) * model.vocab + per_value * batched_tokens * model.hidden


def forward_bytes(model: Model, batched_tokens: int, tensor: int) -> float:
    """One forward pass of `batched_tokens`: the widest layer's activations, 16-bit."""
    wide, experts, routed = model.intermediate or 0, 1, 0
    if model.moe is not None:
        wide, experts = model.moe.expert_intermediate, model.moe.experts_per_token
        routed = experts * model.hidden
    peak = batched_tokens * 2.0 * (3 * wide * experts / tensor + routed + 4 * model.hidden)
    if model.mla is not None:
        head = model.mla.qk_nope_head_dim + model.mla.v_head_dim
        peak += _MLA_WORKSPACE_TOKENS * model.heads / tensor * head * 2.0
    return peak


def activation_bytes(
    model: Model,
    seqs: int,
    batched_tokens: int,
    shards: Sharding,
    version: Version,
    hardware: HardwareClass,
    *,
    v0: bool = False,
    pooling: bool = False,
) -> float:
    """The transient peak that the engine reserves inside its budget.

    V0 engines cut the sampled rows to the number of images (or sounds) that fit a batch, so the encoder rules. Pooling
    models sample nothing.
    """
    forward = forward_bytes(model, batched_tokens, shards.tensor)
    if model.encoder is not None and v0:
        return max(forward, constant("vllm", f"encoder_gib_{model.encoder}_v0", version, hardware).value * GIB)
    sampler = 0.0 if pooling else sampler_bytes(model, seqs, batched_tokens, shards, version, hardware)
    peak = max(sampler, forward)
    if model.encoder is None:
        return peak
    return peak + constant("vllm", f"encoder_gib_{model.encoder}", version, hardware).value * GIB


def non_torch_bytes(tensor: int, version: Version, hardware: HardwareClass) -> float:
    name = "non_torch_gib_single" if tensor == 1 else "non_torch_gib_group"
    if tensor == 2 and version >= _PEER_BUFFERS_SINCE:
        name = "non_torch_gib_pair"
    return constant("vllm", name, version, hardware).value * GIB


def context_bytes(model: Model, tensor: int, pipeline: int, version: Version, hardware: HardwareClass) -> float:
    """CUDA context and NCCL before the first snapshot: outside the engine's budget."""
    name = "context_gib_single"
    if tensor > 1:
        name = "context_gib_group_moe" if model.moe else "context_gib_group"
    elif pipeline > 1:
        name = "context_gib_pipeline"
    return constant("vllm", name, version, hardware).value * GIB


def graph_bytes(layers: float, version: Version, hardware: HardwareClass) -> float:
    """CUDA graphs as captured. `layers` on this rank."""
    base = constant("vllm", "graphs_gib_base", version, hardware).value
    return (base + constant("vllm", "graphs_gib_per_layer", version, hardware).value * layers) * GIB


def graph_estimate_bytes(layers: float, version: Version, hardware: HardwareClass) -> float:
    """What the engine charges for graphs before it captures them (from 0.21)."""
    base = constant("vllm", "graph_estimate_gib_base", version, hardware).value
    return (base + constant("vllm", "graph_estimate_gib_per_layer", version, hardware).value * layers) * GIB

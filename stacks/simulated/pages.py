"""What the simulated server says in its stack's own words: events of a stream, `/metrics` and the small pages."""

from __future__ import annotations

import json
from typing import Any, Literal

from stacks.memory.versions import newest_known
from stacks.simulated.engine import Engine

Dialect = Literal["completions", "chat", "generate", "completion"]

PATHS: dict[str, Dialect] = {
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
    "/generate_stream": "generate",
    "/completion": "completion",
}


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def token_event(dialect: Dialect) -> bytes:
    """One output token."""
    if dialect == "generate":
        return event({"index": 0, "token": {"id": 1, "text": " a", "special": False}, "generated_text": None})
    if dialect == "completion":
        return event({"content": " a", "tokens": [1], "stop": False})
    piece = {"delta": {"content": " a"}} if dialect == "chat" else {"text": " a"}
    return event({"choices": [{"index": 0, "finish_reason": None, **piece}]})


def last_events(dialect: Dialect, prompt_tokens: int, output_tokens: int) -> bytes:
    """After the last token: why it ended, the totals, the end of the stream."""
    if dialect == "generate":
        details = {"finish_reason": "length", "generated_tokens": output_tokens, "input_length": prompt_tokens}
        return event({"index": 1, "token": None, "generated_text": " a" * output_tokens, "details": details})
    if dialect == "completion":
        totals = {"tokens_evaluated": prompt_tokens, "tokens_predicted": output_tokens}
        return event({"content": "", "tokens": [], "stop": True, "stop_type": "limit", **totals})
    piece: dict[str, Any] = {"delta": {}} if dialect == "chat" else {"text": ""}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens}
    end = event({"choices": [{"index": 0, "finish_reason": "length", **piece}]})
    return end + event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"


def error_event(stack: str) -> bytes:
    """A request that failed in the middle of its stream."""
    message = "Context size has been exceeded." if stack == "llamacpp" else "the engine failed (simulated)"
    return event({"error": {"message": message, "type": "server_error", "code": 500}})


_NAMES = {
    "vllm": {
        "running": "vllm:num_requests_running",
        "waiting": "vllm:num_requests_waiting",
        "kv_use": "vllm:kv_cache_usage_perc",
        "preemptions": "vllm:num_preemptions_total",
        "prompt_tokens": "vllm:prompt_tokens_total",
        "output_tokens": "vllm:generation_tokens_total",
    },
    "sglang": {
        "running": "sglang:num_running_reqs",
        "waiting": "sglang:num_queue_reqs",
        "kv_use": "sglang:token_usage",
        "preemptions": "sglang:num_retracted_requests_total",
        "prompt_tokens": "sglang:prompt_tokens_total",
        "output_tokens": "sglang:generation_tokens_total",
        "kv_tokens": "sglang:max_total_num_tokens",
    },
    "tgi": {
        "running": "tgi_batch_current_size",
        "waiting": "tgi_queue_size",
        "kv_tokens": "tgi_batch_max_total_tokens",
        "kv_used": "tgi_batch_current_max_tokens",
        "prompt_tokens": "tgi_request_input_length_sum",
        "output_tokens": "tgi_request_generated_tokens_sum",
    },
    "llamacpp": {
        "running": "llamacpp:requests_processing",
        "waiting": "llamacpp:requests_deferred",
        "prompt_tokens": "llamacpp:prompt_tokens_total",
        "output_tokens": "llamacpp:tokens_predicted_total",
    },
}
"""Which of the engine's figures a stack's page shows, and under which name."""


def metrics_page(stack: str, engine: Engine, held_bytes: float = 0.0) -> bytes:
    """`held_bytes`: what the card holds."""
    pool = engine.limits.blocks * engine.limits.block_tokens
    counters = engine.counters
    figures = {
        "running": engine.running,
        "waiting": engine.waiting,
        "kv_use": engine.seen.kv_use,
        "kv_tokens": pool,
        "kv_used": round(engine.seen.kv_use * pool),
        "preemptions": counters.preemptions,
        "prompt_tokens": counters.prompt_tokens,
        "output_tokens": counters.output_tokens,
    }
    lines = [f"{name} {figures[figure]}" for figure, name in _NAMES[stack].items()]
    lines.append(f"loadproof_simulated_memory_bytes {round(held_bytes)}")
    if stack == "vllm":
        labels = f'block_size="{engine.limits.block_tokens}",num_gpu_blocks="{engine.limits.blocks}"'
        lines.append(f"vllm:cache_config_info{{{labels}}} 1.0")
    return ("\n".join(lines) + "\n").encode()


def small_page(stack: str, path: str, model: str) -> bytes | None:
    """Health, model list and version; None for a path that there is not."""
    version = f"{newest_known(stack)}+simulated"
    pages: dict[str, Any] = {
        "/health": {"status": "ok"},
        "/v1/models": {"object": "list", "data": [{"id": model, "object": "model"}]},
        "/version": {"version": version},
        "/info": {"model_id": model, "version": version},
        "/server_info": {"version": version},
        "/props": {"build_info": "b0-simulated"},
    }
    return json.dumps(pages[path]).encode() if path in pages else None

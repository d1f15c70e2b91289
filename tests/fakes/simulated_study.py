"""vLLM against TGI on a simulated card, as a real run of the campaign in virtual time: a second or two."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orchestrator.campaign import Campaign
from orchestrator.commands.display import Quiet
from orchestrator.journal import Journal
from orchestrator.plan import Plan, parse_plan
from reports.result import write_result

STUDY = """
title = "vLLM against TGI on a simulated card"
seed = 3
[model]
id = "meta-llama/Llama-3.1-8B-Instruct"
context_tokens = 4096
[slo]
ttft_ms = 1500
tpot_ms = 60
[defaults]
launch = "simulated"
card = "RTX-4090-24GB"
[[deployment]]
name = "vllm"
stack = "vllm"
[[deployment]]
name = "tgi"
stack = "tgi"
[[deployment]]
name = "vllm-4bit"
stack = "vllm"
model = "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4"
quantization = "awq"
[[deployment]]
name = "vllm-128k"
stack = "vllm"
context_tokens = 131072
[[workload]]
name = "chat"
prompt_tokens = "lognormal:350:300"
output_tokens = "lognormal:60:40"
context_tokens = 4096
[ramp]
start = 8
max = 128
requests = 100
requests_per_user = 2
min_seconds = 0
confirm = 1
"""
CELLS = ("vllm--chat", "tgi--chat", "vllm-4bit--chat", "vllm-128k--chat")
REFUSED = CELLS[3]


def study_plan(text: str = STUDY) -> Plan:
    return parse_plan(text.encode(), "study.toml", base=Path.cwd(), environ={})


def simulate(root: Path, text: str = STUDY) -> Path:
    """A finished run directory."""
    plan = study_plan(text)
    with Journal.create(root, plan.text) as journal:
        assert asyncio.run(Campaign(plan, journal, Quiet()).run()) == []
    write_result(root)
    return root

"""A run directory whose every field wants to break out of the page that shows it."""

from __future__ import annotations

from pathlib import Path

from fakes.run_directory import FakeCell, asked_cell, build_run

from orchestrator.judge.search import SearchRules
from orchestrator.records import ServerFailure

HOSTILE = "<script>window.owned=1</script>\"'><img src=x onerror=owned()>&amp;\x00\x1b[31m\u202e{{7*7}}"


def hostile(tmp_path: Path, longest: str = "") -> Path:
    """Every field that comes from a plan, a log, a host or a server holds what wants to break out."""
    text = HOSTILE + longest
    names = {"deployment": text, "workload": text, "model": f"models/{text}", "quantization": text}
    fields = {"stack": text, "workload_title": text, "workload_source": text, "notes": [text], **names}
    server = {"argv": [text, text], "env": {text: text}, "secret_env": [text], "version": text, "image": text}
    server |= {"image_digest": text, "model_listed": text, "base_url": text, "deployment": text, "stack": text}
    failure = ServerFailure(failure_class=text, message=text, remedy=text, evidence=(text,) * 30)
    facts: dict[str, float | str] = {text: text, "weights_bytes": 1e8, "kv_bytes": 1e8}
    asked = asked_cell("a", "w", **fields)
    other = asked_cell("b", "w", **{**fields, "quantization": "fp8", "deployment": "other" + text})
    rules = SearchRules(start=2, maximum=8, confirm=0)
    cells = [
        FakeCell(
            asked,
            rules=rules,
            facts=facts,
            server=server,
            log=f"{text}\n" * 30,
            dies_at=8,
            failing=lambda c: c == 4,
            failure_detail=text,
            samples_named=text,
        ),
        FakeCell(other, rules=rules, facts=facts, server=server, levels=1, note=text),
        FakeCell(asked_cell("c", "w", **fields), refuses=failure, server=server, log=f"{text}\n" * 30),
    ]
    return build_run(
        tmp_path / "run",
        cells,
        title=text,
        plan=text.encode("utf-8", "surrogatepass"),
        host={"cpu_model": text, text: text},
        overrides=(text,),
    )

"""What every stack would start, word for word, in golden files: per launch kind, with every setting, per quantization.

`pytest --update` rewrites them; read the difference as if it were code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stacks.base import Deployment, LaunchKind, LaunchSpec
from stacks.catalog import BUILT_IN
from stacks.command import options
from stacks.sheet import DataSheet

GOLDEN = Path(__file__).parents[1] / "golden" / "stacks"
MIB = 2**20
MODELS = {"llamacpp": "/models/m.gguf"}
EVERY_SETTING = {
    "context_tokens": 4096,
    "max_concurrency": 64,
    "max_batched_tokens": 1024,
    "memory_fraction": 0.7,
    "kv_cache_tokens": 65_536,
    "revision": "v2",
    "dtype": "bfloat16",
    "served_name": "mine",
    "tensor_parallel": 2,
    "gpus": ("0", "1"),
    "secrets": ("HF_TOKEN",),
    "env": {"NO_COLOR": "0", "MINE": "1"},
    "mounts": ("/cache:/hub", "/models:/models:ro"),
    "memory_limit_bytes": 64 * 1024 * MIB,
    "cpus": 8.0,
    "shm_bytes": 512 * MIB,
    "start_timeout_s": 60.0,
}
STARTED = [name for name, kind in BUILT_IN.items() if "process" in kind.launches]


def sheet(name: str) -> DataSheet:
    found = BUILT_IN[name]()
    assert isinstance(found, DataSheet)
    return found


def deployment(name: str, launch: LaunchKind, **settings: object) -> Deployment:
    model = MODELS.get(name, "org/model-8b")
    return Deployment(name="d", stack=name, model=model, launch=launch, **settings)  # type: ignore[arg-type]


def accepted(stack: DataSheet, **settings: object) -> dict[str, object]:
    """Those settings that the stack does not refuse, one by one and then together."""
    kept: dict[str, object] = {}
    for key, value in settings.items():
        if not stack.problems(deployment(stack.name, "docker", **{**kept, key: value})):
            kept[key] = value
    return kept


def lines_of(spec: LaunchSpec) -> Iterator[str]:
    for name in ("image", "entrypoint", "port", "gpus", "secret_env", "cpus"):
        value = getattr(spec, name)
        if value:
            yield f"{name:<12} {' '.join(value) if isinstance(value, tuple) else value}"
    for name in ("shm_bytes", "memory_limit_bytes"):
        if value := getattr(spec, name):
            yield f"{name.removesuffix('_bytes'):<12} {value / MIB:g} MiB"
    if spec.ipc_host:
        yield "ipc          host"
    yield f"{'patience':<12} {spec.start_timeout_s:g} s to start, {spec.stop_timeout_s:g} s to stop"
    yield from (f"{'mount':<12} {m.host} on {m.container}{' read-only' * m.read_only}" for m in spec.mounts)
    yield from (f"{'env':<12} {key}={value}" for key, value in sorted(spec.env.items()))
    yield from (f"{'argv':<12} {words}" for words in rows(spec))


def rows(spec: LaunchSpec) -> list[str]:
    """A flag and its value on one line."""
    return [" ".join(words) for words in options(spec.argv)]


def pages(stack: DataSheet) -> Iterator[str]:
    host = {"docker": "0.0.0.0", "process": "127.0.0.1"}
    port = stack.container_port(deployment(stack.name, "docker"))
    every = accepted(stack, **EVERY_SETTING)
    refused = [key for key in EVERY_SETTING if key not in every]
    in_process = {key: value for key, value in every.items() if key not in ("mounts", "memory_limit_bytes", "cpus")}
    for launch, title, settings in (
        ("docker", "a container, nothing set", {}),
        ("docker", "a container, everything set", every),
        ("process", "a process, nothing set", {}),
        ("process", "a process, everything set", in_process),
    ):
        spec = stack.launch(deployment(stack.name, launch, **settings), host[launch], port)  # type: ignore[arg-type]
        yield f"# {title}"
        if settings is every and refused:
            yield f"{'refused':<12} {' '.join(refused)}"
        yield from lines_of(spec)
        yield ""
    yield from tables(stack)


def tables(stack: DataSheet) -> Iterator[str]:
    """What each quantization and each KV type adds to the command line of the newest release, or takes from it."""
    base = set(rows(stack.launch(deployment(stack.name, "docker"), "h", 1)))
    values_of = {"quantization": stack.quantizations.at(None), "kv_dtype": stack.kv_dtypes.at(None)}
    for key, values in values_of.items():
        yield f"# {key}"
        silent = []
        for value in values:
            asked = deployment(stack.name, "docker", **{key: value})
            assert {problem.key for problem in stack.problems(asked)} <= {"kv_dtype"}, "it is in its own table"
            changes = [words for words in rows(stack.launch(asked, "h", 1)) if words not in base]
            if not changes:
                silent.append(value)
                continue
            on_load = key == "quantization" and stack.quantizes_on_load(value, None)
            yield f"{value:<28} {' '.join(changes)}{'  (on load)' if on_load else ''}"
        if silent:
            yield f"nothing for  {' '.join(silent)}"
        yield ""


@pytest.mark.parametrize("name", STARTED)
def test_what_is_started(name: str, update: bool) -> None:
    found = "\n".join(pages(sheet(name))).rstrip() + "\n"
    golden = GOLDEN / f"{name}.txt"
    if update:
        golden.write_text(found, encoding="utf-8")
    assert found == golden.read_text(encoding="utf-8"), "run pytest with --update and look at the difference"


@pytest.mark.parametrize("name", STARTED)
def test_no_setting_that_is_accepted_is_dropped(name: str) -> None:
    """Each changes what is started, or the report says that it does not: a limit that reaches nobody is a lie."""
    stack = sheet(name)

    def said(**settings: object) -> object:
        asked = deployment(name, "docker", **settings)
        return stack.launch(asked, "h", 1), stack.notes(asked)

    for key, value in accepted(stack, **EVERY_SETTING).items():
        assert said(**{key: value}) != said(), key


@pytest.mark.parametrize("name", STARTED)
def test_the_plan_s_own_words_replace_ours(name: str) -> None:
    """No option is given twice, whichever the plan gives in `args`, as one word or as two."""
    stack = sheet(name)
    spec = stack.launch(deployment(name, "docker", context_tokens=2048), "0.0.0.0", 1)
    for word in [word for word in spec.argv if word.startswith("-") and not word.lstrip("-").isdigit()]:
        for args in ((word, "mine"), (f"{word}=mine",)):
            changed = stack.launch(deployment(name, "docker", context_tokens=2048, args=args), "0.0.0.0", 1)
            assert [w for w in changed.argv if w.partition("=")[0] == word] == [args[0]]
            assert changed.argv[-len(args) :] == args


def test_an_external_endpoint_is_not_started() -> None:
    with pytest.raises(ValueError, match="nothing to start"):
        sheet("external").launch(deployment("external", "external"), "h", 1)

"""Every stack that can be named in a plan: a plain table, and what other distributions add by entry point."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from stacks.base import Stack
from stacks.external import External
from stacks.llamacpp import LlamaCpp
from stacks.lmdeploy import LmDeploy
from stacks.settings import nearest
from stacks.sglang import Sglang
from stacks.tgi import Tgi
from stacks.transformers import Transformers
from stacks.trtllm import TrtLlm
from stacks.vllm import Vllm

ENTRY_POINTS = "loadproof.stacks"

BUILT_IN: Mapping[str, type[Stack]] = {
    kind.name: kind for kind in (LlamaCpp, Vllm, Tgi, Sglang, Transformers, TrtLlm, LmDeploy, External)
}


@functools.cache
def _added() -> Mapping[str, EntryPoint]:
    """Stacks of other distributions by name; not imported before they are asked for. Ours cannot be replaced."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS) if entry.name not in BUILT_IN}


def names() -> tuple[str, ...]:
    """Names of all stacks, ours first."""
    return (*BUILT_IN, *sorted(_added()))


@functools.cache
def stack(name: str) -> Stack:
    """The stack of that name. Raises ValueError for an unknown one, naming those that there are and the nearest."""
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if name in _added():
        return _loaded(_added()[name])
    near = nearest(name, names())
    hint = f' Nearest: "{near}".' if near else ""
    raise ValueError(f'there is no stack "{name}"; there are {", ".join(names())}.{hint}')


def _loaded(entry: EntryPoint) -> Stack:
    try:
        kind = entry.load()
    except Exception as error:  # a stranger's code: whatever it raises is told, and nothing else suffers
        raise ValueError(f'the stack "{entry.name}" ({entry.value}) cannot be loaded: {error!r}') from error
    if isinstance(kind, type) and issubclass(kind, Stack):
        return kind()
    raise ValueError(f'the stack "{entry.name}" ({entry.value}) is no subclass of stacks.base.Stack')

"""The one door to NVML: which cards are here, who uses them, and what a card says of itself at one moment.

A machine without a driver, without a card, or with a value that its driver does not give is normal: the value is
absent, never 0. Sizes are bytes, shares run from 0 to 1. Every call blocks for up to some milliseconds; none belongs in
an event loop. NVML itself counts who has it open, so sessions may be nested and opened in several threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pynvml

from orchestrator.errors import HostError
from orchestrator.records import Record

THROTTLES: Mapping[str, int] = {
    "applications_clocks": pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
    "sw_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "hw_slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "sync_boost": pynvml.nvmlClocksEventReasonSyncBoost,
    "sw_thermal": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hw_thermal": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "hw_power_brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    "display_clocks": pynvml.nvmlClocksEventReasonDisplayClockSetting,
}
"""Why clocks may be held down, by bit of NVML's mask. An idle card (bit 0) is not throttled and has no name here."""

_NOT_REPORTED = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_NO_DATA,
        pynvml.NVML_ERROR_DEPRECATED,
        pynvml.NVML_ERROR_NOT_READY,
        pynvml.NVML_ERROR_UNKNOWN,
    }
)
"""Errors that mean: this card, driver or user does not get this value. Others (a lost card) are the caller's."""

_ROOT_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the kernel's first pid namespace (PROC_PID_INIT_INO in include/linux/proc_ns.h)."""


class NoCardError(HostError):
    """NVML cannot be used. `absent`: there is simply no driver here, as opposed to one that is broken."""

    def __init__(self, message: str, remedy: str = "", *, absent: bool = False) -> None:
        super().__init__(message, remedy)
        self.absent = absent


class GpuInfo(Record, frozen=True, kw_only=True):
    """One card, or one MIG instance of a card: what does not change while a run lasts."""

    index: int
    """NVML's number (PCI order) of the card; an instance has the number of its card."""
    uuid: str
    """``GPU-...``, or ``MIG-...`` for an instance."""
    name: str
    memory_total_bytes: int | None = None
    driver: str | None = None
    cuda: str | None = None
    """Newest CUDA version that the driver runs, e.g. ``12.8``."""
    compute_capability: str | None = None
    power_limit_w: float | None = None
    mig: bool = False
    """A card: it is split into instances. An instance: true."""
    parent_uuid: str | None = None
    """An instance's card; None for a card."""


class GpuProcess(NamedTuple):
    pid: int
    memory_bytes: int | None
    """None: NVML does not tell (no permission, WSL, MIG)."""


class _Card(NamedTuple):
    """What the calls take: the device, and the board under it (the same unless the device is a MIG instance)."""

    handle: Any
    board: Any


@contextmanager
def nvml() -> Iterator[None]:
    """NVML, open. Raises `NoCardError` where it cannot be opened."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _no_card(error) from error
    try:
        yield
    finally:
        _ask(pynvml.nvmlShutdown)


def list_gpus() -> tuple[GpuInfo, ...]:
    """All cards, each followed by its MIG instances; empty where there is no card or no driver."""
    try:
        with nvml():
            count = _ask(pynvml.nvmlDeviceGetCount) or 0
            return tuple(info for index in range(count) for info in _board(index))
    except NoCardError:
        return ()


def gpu_uuids(asked: Sequence[str], gpus: Sequence[GpuInfo]) -> tuple[str, ...]:
    """UUIDs of the devices that `asked` names: ``all``, numbers, UUIDs or the unambiguous start of one.

    ``all`` and the number of a split card mean its instances. Raises `HostError` for a device that is not here.
    """
    if asked and not gpus:
        raise HostError(
            "No NVIDIA GPU can be seen on this machine.",
            "`loadproof doctor` says what its driver lacks, if it has one.",
        )
    if "all" in asked:
        return tuple(gpu.uuid for gpu in gpus if gpu.parent_uuid is not None or not gpu.mig)
    found: dict[str, None] = {}
    for name in asked:
        found.update(dict.fromkeys(_matching(name, gpus)))
    return tuple(found)


def read_gpu(uuid: str, ours: Collection[int] = ()) -> dict[str, float]:
    """One reading, as `gpu_reader` gives it; for a look before and after a run."""
    with gpu_reader(uuid, lambda: ours) as read:
        return read()


def gpu_processes(uuid: str) -> tuple[GpuProcess, ...] | None:
    """Who has memory on a device, by pid; None if NVML does not tell."""
    with nvml():
        used = _processes(_find(uuid))
    return None if used is None else tuple(GpuProcess(pid, used[pid]) for pid in sorted(used))


@contextmanager
def gpu_reader(uuid: str, ours: Callable[[], Collection[int]]) -> Iterator[Callable[[], dict[str, float]]]:
    """Readings of one device. `ours` gives the server's pids as the host numbers them.

    Values (each only where NVML has it): memory_{total,free,used,reserved,ours,others}_bytes with used = total - free,
    utilization and memory_utilization (0 to 1), power_w, power_limit_w, energy_j (counter), temperature_c,
    sm_clock_mhz, memory_clock_mhz, ecc_uncorrected (counter), throttle (NVML's bit mask) and throttle_<name> (0 or 1).
    A reading raises `HostError` when the card is gone.
    """
    with nvml():
        card = _find(uuid)
        whole_view = _in_root_pid_namespace()

        def read() -> dict[str, float]:
            try:
                return _read(card, ours(), whole_view)
            except pynvml.NVMLError as error:
                raise HostError(
                    f"The card {uuid} does not answer ({error}).",
                    "Look for NVRM Xid lines in the kernel's log (dmesg); a lost card needs a reset or a reboot.",
                ) from error

        yield read


# --- decisions ---------------------------------------------------------------------------------------------------


def attribute_memory(
    used: Mapping[int, int | None] | None, ours: Collection[int], *, whole_view: bool
) -> dict[str, float]:
    """Split what processes use into ours and others', in bytes, as far as it is known.

    `whole_view`: we number processes as the host does. If not (a container of our own), processes may be hidden from
    us: then a sum of our own counts only if one of ours is seen, and others cannot be known.
    """
    if used is None or not ours:
        return {}
    split: dict[str, float] = {}
    own = [size for pid, size in used.items() if pid in ours]
    others = [size for pid, size in used.items() if pid not in ours]
    if (whole_view or own) and None not in own:
        split["memory_ours_bytes"] = float(sum(size for size in own if size is not None))
    if whole_view and None not in others:
        split["memory_others_bytes"] = float(sum(size for size in others if size is not None))
    return split


def throttle_values(mask: int) -> dict[str, float]:
    """NVML's mask of clock event reasons, whole and by name."""
    return {"throttle": float(mask)} | {f"throttle_{name}": float(bool(mask & bit)) for name, bit in THROTTLES.items()}


def _matching(name: str, gpus: Sequence[GpuInfo]) -> tuple[str, ...]:
    if name.isdecimal():
        named = [gpu for gpu in gpus if gpu.index == int(name)]
        instances = [gpu for gpu in named if gpu.parent_uuid is not None]
        chosen = instances or named
    else:
        exact = [gpu for gpu in gpus if gpu.uuid == name]
        chosen = exact or [gpu for gpu in gpus if len(name) > len("GPU-") and gpu.uuid.startswith(name)]
        chosen = chosen if len(chosen) == 1 else []
    if not chosen:
        here = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus)
        raise HostError(f"The GPU {name!r} is not on this machine; here: {here}.", "Name one of these in `gpus`.")
    return tuple(gpu.uuid for gpu in chosen)


# --- NVML --------------------------------------------------------------------------------------------------------


def _ask(call: Callable[..., Any], *arguments: Any) -> Any | None:
    """What a call returns, or None if this card, driver or user does not get it."""
    try:
        return call(*arguments)
    except pynvml.NVMLLibraryMismatchError:  # the driver is older than this call's structure; not an NVMLError
        return None
    except pynvml.NVMLError as error:
        if error.value in _NOT_REPORTED:
            return None
        raise


def _no_card(error: Any) -> NoCardError:
    match error.value:
        case pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return NoCardError(
                "There is no NVIDIA driver on this machine (libnvidia-ml.so.1 was not found).",
                "Install one if the machine has an NVIDIA GPU; in a container, give it the GPUs.",
                absent=True,
            )
        case pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return NoCardError(
                "The NVIDIA driver was updated while its old kernel module still runs.", "Reboot, or reload the module."
            )
        case pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
            return NoCardError(
                "The NVIDIA driver is installed but its kernel module is not loaded.",
                "Run `nvidia-smi` as root and look at dmesg; a new kernel needs the module built again.",
            )
        case _:
            return NoCardError(f"NVML cannot be opened ({error}).", "See whether `nvidia-smi` works.")


def _board(index: int) -> Iterator[GpuInfo]:
    handle = _ask(pynvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:  # a card that we may not use is not ours to list
        return
    mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    split = mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    board = _info(index, handle, split, None)
    yield board
    for slot in range((_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0) if split else 0):
        instance = _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
        if instance is not None:
            yield _info(index, instance, True, board.uuid)


def _info(index: int, handle: Any, mig: bool, parent: str | None) -> GpuInfo:
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    capability = _ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    limit_mw = _ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    cuda = _ask(pynvml.nvmlSystemGetCudaDriverVersion)
    return GpuInfo(
        index=index,
        uuid=_ask(pynvml.nvmlDeviceGetUUID, handle) or f"unknown-{index}",
        name=_ask(pynvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
        memory_total_bytes=None if memory is None else int(memory.total),
        driver=_ask(pynvml.nvmlSystemGetDriverVersion),
        cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        mig=mig,
        parent_uuid=parent,
    )


def _find(uuid: str) -> _Card:
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError as error:
        raise HostError(
            f"The GPU {uuid} is not on this machine ({error}).", "`loadproof doctor` lists the GPUs that are here."
        ) from error
    board = _ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) if uuid.startswith("MIG-") else None
    return _Card(handle, handle if board is None else board)


def _read(card: _Card, ours: Collection[int], whole_view: bool) -> dict[str, float]:
    return {
        **_memory(card),
        **attribute_memory(_processes(card), ours, whole_view=whole_view),
        **_activity(card),
        **_clocks(card),
    }


def _memory(card: _Card) -> dict[str, float]:
    """Total and free as NVML's first version gives them. What is not free is used, the driver's reserve included."""
    info = _ask(pynvml.nvmlDeviceGetMemoryInfo, card.handle)
    if info is None:
        return {}
    values = {
        "memory_total_bytes": float(info.total),
        "memory_free_bytes": float(info.free),
        "memory_used_bytes": float(info.total - info.free),
    }
    second = _ask(pynvml.nvmlDeviceGetMemoryInfo, card.handle, pynvml.nvmlMemory_v2)
    if second is not None:
        values["memory_reserved_bytes"] = float(second.reserved)
    return values


def _processes(card: _Card) -> dict[int, int | None] | None:
    """Bytes by pid. A process may be listed as a computing and as a drawing one: it counts once."""
    computing = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, card.handle)
    if computing is None:
        return None
    drawing = _ask(pynvml.nvmlDeviceGetGraphicsRunningProcesses, card.handle) or []
    return {process.pid: process.usedGpuMemory for process in (*drawing, *computing)}


def _activity(card: _Card) -> dict[str, float]:
    values: dict[str, float] = {}
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, card.handle)
    if rates is not None:
        values["utilization"] = rates.gpu / 100
        values["memory_utilization"] = rates.memory / 100
    for name, call in (
        ("power_w", pynvml.nvmlDeviceGetPowerUsage),
        ("power_limit_w", pynvml.nvmlDeviceGetEnforcedPowerLimit),
        ("energy_j", pynvml.nvmlDeviceGetTotalEnergyConsumption),
    ):
        milli = _ask(call, card.handle)
        if milli is not None:
            values[name] = milli / 1000
    return values


def _clocks(card: _Card) -> dict[str, float]:
    """Read from the board: MIG instances share its clocks, its heat and its errors."""
    board = card.board
    read = {
        "temperature_c": _ask(pynvml.nvmlDeviceGetTemperature, board, pynvml.NVML_TEMPERATURE_GPU),
        "sm_clock_mhz": _ask(pynvml.nvmlDeviceGetClockInfo, board, pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": _ask(pynvml.nvmlDeviceGetClockInfo, board, pynvml.NVML_CLOCK_MEM),
        "ecc_uncorrected": _ask(
            pynvml.nvmlDeviceGetTotalEccErrors,
            board,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        ),
    }
    values = {name: float(value) for name, value in read.items() if value is not None}
    mask = _ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, board)
    if mask is None:  # drivers before R535 know it under its old name only
        mask = _ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, board)
    return values if mask is None else values | throttle_values(mask)


def _in_root_pid_namespace() -> bool:
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _ROOT_PID_NAMESPACE  # noqa: PTH116 (the link itself names it too)
    except OSError:
        return False

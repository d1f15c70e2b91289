"""NVML without a card: the calls that loadproof makes, with pynvml's own constants, error classes and shapes.

    driver = Driver(cards=[Card(...)])
    monkeypatch.setattr("orchestrator.watch.gpu.pynvml", driver)

A value that is None is one that the card does not support, and its call raises what NVML raises then. Everything that
is not a call comes from the real module, and `tests/watch/test_gpu.py` holds each call's parameters to the real ones.
"""

# ruff: noqa: N802 (the calls have NVML's names)
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 1024**3


@dataclass
class Process:
    """One row of the process list. `used` None: the driver does not tell (WSL, MIG, no permission)."""

    pid: int
    usedGpuMemory: int | None  # noqa: N815 (NVML's name)


@dataclass
class Card:
    uuid: str = "GPU-11111111-2222-3333-4444-555555555555"
    name: str = "NVIDIA H100 80GB HBM3"
    total: int | None = 80 * GIB
    free: int = 79 * GIB
    reserved: int | None = GIB // 2
    computing: list[Process] | None = field(default_factory=list)
    drawing: list[Process] | None = field(default_factory=list)
    gpu_percent: int | None = 50
    memory_percent: int = 25
    power_mw: int | None = 350_500
    limit_mw: int | None = 700_000
    energy_mj: int | None = 123_456
    celsius: int | None = 61
    clocks_mhz: dict[int, int] = field(
        default_factory=lambda: {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}
    )
    reasons: int | None = 0
    ecc: int | None = 0
    capability: tuple[int, int] | None = (9, 0)
    instances: list[Card] | None = None
    """MIG instances; a list, even an empty one, means that the card is split."""
    parent: Card | None = None
    lost: bool = False


class Driver:
    """Stands where the module `pynvml` stands."""

    def __init__(
        self,
        cards: Sequence[Card] = (),
        *,
        init_error: int | None = None,
        version: str = "570.86.15",
        cuda: int = 12080,
        lacks: Sequence[str] = (),
    ) -> None:
        self.cards = list(cards)
        self.init_error = init_error
        self.version = version
        self.cuda = cuda
        self.lacks = frozenset(lacks)
        """Calls that this driver's library does not have."""
        self.opened = 0
        self.closed = 0
        for card in self.cards:
            for instance in card.instances or ():
                instance.parent = card

    def __getattr__(self, name: str) -> Any:
        """Constants and error classes."""
        return getattr(pynvml, name)

    # --- the library ---

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self._must_be_open()
        self.closed += 1

    def nvmlSystemGetDriverVersion(self) -> str:
        self._must_be_open()
        return self.version

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        self._must_be_open()
        return self.cuda

    # --- devices ---

    def nvmlDeviceGetCount(self) -> int:
        self._must_be_open()
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        self._must_be_open()
        if index >= len(self.cards):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:
        self._must_be_open()
        for card in self.cards:
            for device in [card, *(card.instances or [])]:
                if device.uuid == uuid:
                    return device
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetMigMode(self, device: Card) -> list[int]:
        self._alive(device)
        split = int(device.instances is not None)
        return [split, split]

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Card) -> int:
        self._alive(device)
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Card, index: int) -> Card:
        self._alive(device)
        if index >= len(device.instances or ()):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        assert device.instances is not None
        return device.instances[index]

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, migDevice: Card) -> Card:  # noqa: N803
        self._alive(migDevice)
        if migDevice.parent is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return migDevice.parent

    def nvmlDeviceGetUUID(self, handle: Card) -> str:
        return self._alive(handle).uuid

    def nvmlDeviceGetName(self, handle: Card) -> str:
        return self._alive(handle).name

    def nvmlDeviceGetCudaComputeCapability(self, handle: Card) -> Any:
        return self._value(handle, "capability")

    # --- readings ---

    def nvmlDeviceGetMemoryInfo(self, handle: Card, version: int | None = None) -> Any:
        total = self._value(handle, "total")
        if version is None:
            return SimpleNamespace(total=total, free=handle.free, used=total - handle.free)
        reserved = self._value(handle, "reserved")
        return SimpleNamespace(total=total, free=handle.free, used=total - handle.free - reserved, reserved=reserved)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Card) -> Any:
        self._must_have("nvmlDeviceGetComputeRunningProcesses", versioned=True)
        return self._value(handle, "computing")

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Card) -> Any:
        self._must_have("nvmlDeviceGetGraphicsRunningProcesses", versioned=True)
        return self._value(handle, "drawing")

    def nvmlDeviceGetUtilizationRates(self, handle: Card) -> Any:
        return SimpleNamespace(gpu=self._value(handle, "gpu_percent"), memory=handle.memory_percent)

    def nvmlDeviceGetPowerUsage(self, handle: Card) -> Any:
        return self._value(handle, "power_mw")

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Card) -> Any:
        return self._value(handle, "limit_mw")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Card) -> Any:
        return self._value(handle, "energy_mj")

    def nvmlDeviceGetTemperature(self, handle: Card, sensor: int) -> Any:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return self._value(handle, "celsius")

    def nvmlDeviceGetClockInfo(self, handle: Card, type: int) -> int:  # noqa: A002
        self._alive(handle)
        if type not in handle.clocks_mhz:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return handle.clocks_mhz[type]

    def nvmlDeviceGetTotalEccErrors(self, handle: Card, errorType: int, counterType: int) -> Any:  # noqa: N803
        assert (errorType, counterType) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        return self._value(handle, "ecc")

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Card) -> Any:
        self._must_have("nvmlDeviceGetCurrentClocksEventReasons")
        return self._value(handle, "reasons")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Card) -> Any:
        self._must_have("nvmlDeviceGetCurrentClocksThrottleReasons")
        return self._value(handle, "reasons")

    # --- how it fails ---

    def _must_be_open(self) -> None:
        if self.opened <= self.closed:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)

    def _must_have(self, call: str, *, versioned: bool = False) -> None:
        if call in self.lacks and versioned:
            raise pynvml.NVMLLibraryMismatchError("Unversioned function called")
        if call in self.lacks:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    def _alive(self, device: Card) -> Card:
        self._must_be_open()
        if device.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return device

    def _value(self, device: Card, name: str) -> Any:
        value = getattr(self._alive(device), name)
        if value is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value

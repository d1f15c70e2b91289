"""`loadproof doctor`: what this machine can do for a run, line by line, each with its remedy.

OK is fit for measuring; WARN is absent or doubtful, and some runs do without; FAIL is broken, or absent but needed.
Each check is a pure decision over what was read; `examine` reads.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import msgspec
import psutil

from orchestrator import __version__
from orchestrator.errors import HostError, LoadproofError
from orchestrator.host import clock_source, file_limits, free_bytes, host_facts, kernel_stamps_work, usable_cpus
from orchestrator.launch.docker import Engine, engine_address
from orchestrator.launch.orphans import find_orphans
from orchestrator.records import Record
from orchestrator.watch.gpu import GpuInfo, GpuProcess, NoCardError, gpu_processes, list_gpus, nvml, read_gpu

GIB = 1024**3
Status = Literal["OK", "WARN", "FAIL"]
Part = Literal["docker", "gpu"]

IMAGES_BYTES = 40 * GIB
"""One image of a serving stack takes 5 to 20 GB, twice that while it is unpacked."""
RUN_BYTES = 2 * GIB
SHM_BYTES = GIB
"""Tensor parallelism moves tensors through /dev/shm; Docker's own 64 MB are known to be too little."""
FILES = 8192
IDLE_BYTES = GIB
"""A card that holds more than this before a start is used by somebody."""
SLOW_CLOCKS = frozenset({"hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit"})
CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi", "/run/cdi")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
CONTAINER_TOOLKIT = (
    "Install the NVIDIA container toolkit, run `nvidia-ctk runtime configure --runtime=docker`, restart the engine."
)


class Check(Record, frozen=True, kw_only=True):
    name: str
    status: Status
    found: str
    remedy: str = ""


@click.command()
@click.option("--need", multiple=True, type=click.Choice(["docker", "gpu"]), help="FAIL where this is absent.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.pass_context
def doctor(ctx: click.Context, need: tuple[Part, ...], as_json: bool) -> None:
    """What this machine can do: engine, cards, disk, clocks, limits, leftovers; each with a remedy.

    Exits 0 if no line says FAIL, else 3.
    """
    checks = list(examine(frozenset(need)))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"loadproof": __version__, "checks": checks})))
    else:
        for check in checks:
            click.echo(line(check))
    if any(check.status == "FAIL" for check in checks):
        ctx.exit(HostError.exit_code)


def line(check: Check) -> str:
    """A check for a terminal: status, name, what was found; below it the remedy of what is not OK."""
    colour = {"OK": "green", "WARN": "yellow", "FAIL": "red"}[check.status]
    text = f"{click.style(f'{check.status:<4}', fg=colour)}  {check.name:<16}  {check.found}"
    return text if check.status == "OK" or not check.remedy else f"{text}\n{'':24}{check.remedy}"


def examine(need: frozenset[Part] = frozenset()) -> Iterator[Check]:
    """Read the machine and decide, in the order in which a run would meet the problems."""
    engine = _attempt(_engine_facts)
    gpus = list_gpus()
    yield engine_check(engine, needed="docker" in need)
    yield driver_check(_driver_problem(), gpus, needed="gpu" in need)
    for gpu in gpus:
        yield _tried(_gpu_name(gpu), partial(_gpu, gpu))
    if gpus and not isinstance(engine, LoadproofError):
        yield runtime_check(engine, _cdi_files(CDI_FOLDERS), hook=shutil.which("nvidia-container-runtime-hook"))
    yield from disk_checks(_images_folder(engine))
    yield shm_check(_shm_bytes())
    yield token_check(os.environ, Path.home())
    yield cpu_check(usable_cpus(), str(host_facts()["cpu_model"] or "CPU"))
    yield clock_check(clock_source())
    yield stamps_check(kernel_stamps_work())
    yield files_check(*file_limits())
    yield _tried("leftovers", lambda: leftovers_check([str(orphan) for orphan in find_orphans(None)]))


# --- decisions ---------------------------------------------------------------------------------------------------


def engine_check(engine: Mapping[str, Any] | LoadproofError, *, needed: bool) -> Check:
    if isinstance(engine, LoadproofError):
        return Check(
            name="container engine",
            status="FAIL" if needed else "WARN",
            found=engine.message,
            remedy=f'{engine.remedy} Without one, launch = "process" and "external" work.'.strip(),
        )
    found = f"answers at {engine['address']}, version {engine.get('version') or 'unknown'}"
    return Check(name="container engine", status="OK", found=found)


def driver_check(problem: NoCardError | None, gpus: Sequence[GpuInfo], *, needed: bool) -> Check:
    if problem is not None:
        broken = needed or not problem.absent
        return Check(
            name="NVIDIA driver",
            status="FAIL" if broken else "WARN",
            found=problem.message,
            remedy=problem.remedy,
        )
    if not gpus:
        return Check(
            name="NVIDIA driver",
            status="FAIL",
            found="The driver works but shows no GPU.",
            remedy="Look at `nvidia-smi -L` and dmesg; in a container, give it the GPUs.",
        )
    driver, cuda = gpus[0].driver or "of unknown version", gpus[0].cuda
    found = f"{driver}, runs images built for CUDA up to {cuda or 'an unknown version'}"
    if cuda is None or int(cuda.partition(".")[0]) >= 13:
        return Check(name="NVIDIA driver", status="OK", found=found)
    return Check(
        name="NVIDIA driver",
        status="WARN",
        found=found,
        remedy="Images built for CUDA 13 (newest vLLM) need driver R580; pin an older image or update the driver.",
    )


def gpu_check(gpu: GpuInfo, reading: Mapping[str, float], users: Sequence[tuple[GpuProcess, str]] | None) -> Check:
    """Whether a card is free: what its memory holds, and who holds it as far as that is to be seen."""
    name = _gpu_name(gpu)
    used, total = reading.get("memory_used_bytes"), reading.get("memory_total_bytes")
    found = f"{gpu.name} ({gpu.uuid})"
    if gpu.mig and gpu.parent_uuid is None:
        return Check(name=name, status="OK", found=f"{found}, split into MIG instances")
    if used is not None and total is not None:
        found += f", {used / GIB:.1f} of {total / GIB:.1f} GiB used"
    if reading.get("ecc_uncorrected"):
        return Check(
            name=name,
            status="FAIL",
            found=f"{found}, {reading['ecc_uncorrected']:.0f} uncorrected memory errors since the driver was loaded",
            remedy="Reset the card; if the errors come back, replace it.",
        )
    if users:
        who = ", ".join(f"{title} (pid {process.pid}{_size(process.memory_bytes)})" for process, title in users)
        return Check(name=name, status="WARN", found=f"{found}, by {who}", remedy="Stop them before measuring.")
    if used is not None and used > IDLE_BYTES:
        return Check(
            name=name,
            status="WARN",
            found=f"{found}, by nobody that is to be seen from here",
            remedy="Look for another container, or memory that a dead process left; compare with an idle card.",
        )
    return Check(name=name, status="OK", found=f"{found}, free")


def runtime_check(engine: Mapping[str, Any], cdi_files: Sequence[str], hook: str | None) -> Check:
    """Whether the engine can hand cards to containers. Asked only where there are cards."""
    ways = [f"runtime {name}" for name in engine["runtimes"] if name == "nvidia"]
    ways += [f"CDI ({file})" for file in cdi_files]
    if hook:
        ways.append("the toolkit's hook")
    if ways:
        return Check(name="GPUs in containers", status="OK", found=", ".join(ways))
    return Check(
        name="GPUs in containers",
        status="FAIL",
        found="The engine knows no NVIDIA runtime and there is no CDI specification.",
        remedy=CONTAINER_TOOLKIT,
    )


def disk_checks(images: Path | None) -> Iterator[Check]:
    if images is not None:
        yield disk_check("disk for images", images, free_bytes(images), IMAGES_BYTES, "Remove images that nobody uses.")
    yield disk_check("disk for runs", Path.cwd(), free_bytes(Path.cwd()), RUN_BYTES, "Put runs elsewhere with --out.")


def disk_check(name: str, path: Path, free: int, enough: int, remedy: str) -> Check:
    """FAIL below a tenth of what is enough: it will not do for anything."""
    status: Status = "OK" if free >= enough else "WARN" if free >= enough / 10 else "FAIL"
    return Check(name=name, status=status, found=f"{free / GIB:.1f} GiB free at {path}", remedy=remedy)


def shm_check(size: int | None) -> Check:
    if size is None:
        return Check(name="shared memory", status="WARN", found="There is no /dev/shm.", remedy="Mount a tmpfs there.")
    remedy = "A server over several GPUs needs more: remount /dev/shm larger; for containers set shm in the plan."
    status: Status = "OK" if size >= SHM_BYTES else "WARN"
    return Check(name="shared memory", status=status, found=f"/dev/shm holds {size / GIB:.1f} GiB", remedy=remedy)


def token_check(environment: Mapping[str, str], home: Path) -> Check:
    """Whether there is a token for the model hub, and where. Its value is neither shown nor looked at."""
    for name in TOKENS:
        if environment.get(name):
            return Check(name="hub token", status="OK", found=f"present in {name} (not shown)")
    file = Path(environment.get("HF_HOME") or home / ".cache/huggingface") / "token"
    if file.is_file():
        return Check(
            name="hub token",
            status="WARN",
            found=f"present in {file} (not shown), not in the environment",
            remedy="Containers get it only by name: export HF_TOKEN, and list it in the deployment's `secrets`.",
        )
    return Check(
        name="hub token",
        status="WARN",
        found="none",
        remedy="Gated models need one: export HF_TOKEN and list it in the deployment's `secrets`.",
    )


def cpu_check(usable: float, model: str) -> Check:
    status: Status = "OK" if usable >= 4 else "WARN"
    return Check(
        name="processors",
        status=status,
        found=f"{usable:g} usable, {model}",
        remedy="A server on this machine shares them with the load: levels where loadproof was the limit are INVALID.",
    )


def clock_check(source: str | None) -> Check:
    if source is None or source not in SLOW_CLOCKS:
        return Check(name="clock", status="OK", found=source or "unknown source")
    return Check(
        name="clock",
        status="WARN",
        found=f"{source}: reading it costs microseconds, and it is slow under load",
        remedy="Find out why the kernel left the TSC (dmesg | grep -i tsc); set clocksource=tsc if the machine allows.",
    )


def stamps_check(works: bool) -> Check:
    if works:
        return Check(name="arrival stamps", status="OK", found="by the kernel (SO_TIMESTAMPNS)")
    return Check(
        name="arrival stamps",
        status="WARN",
        found="by loadproof itself: this system's kernel does not stamp what arrives",
        remedy="Measure from Linux outside a sandbox (gVisor) for stamps that do not wait for our own event loop.",
    )


def files_check(soft: int | None, hard: int | None) -> Check:
    if soft is None or soft >= FILES or hard is None or hard >= FILES:
        return Check(name="open files", status="OK", found=f"{soft or 'no limit'}, may be raised to {hard or 'any'}")
    return Check(
        name="open files",
        status="WARN",
        found=f"at most {hard}: too few for {hard} streams and more",
        remedy=f"Raise the hard limit to {FILES} or more (limits.conf, or LimitNOFILE of the service).",
    )


def leftovers_check(orphans: Sequence[str]) -> Check:
    if not orphans:
        return Check(name="leftovers", status="OK", found="none of dead runs")
    more = f" and {len(orphans) - 3} more" if len(orphans) > 3 else ""
    return Check(
        name="leftovers",
        status="WARN",
        found=f"of dead runs: {'; '.join(orphans[:3])}{more}",
        remedy="`loadproof clean` stops and removes them.",
    )


# --- reading -----------------------------------------------------------------------------------------------------


def _engine_facts() -> Mapping[str, Any]:
    """What the engine says of itself, with its ``address``."""
    with Engine.connect() as engine:
        return {"address": engine_address(), **engine.facts()}


def _attempt(ask: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any] | LoadproofError:
    try:
        return ask()
    except LoadproofError as error:
        return error


def _tried(name: str, check: Callable[[], Check]) -> Check:
    """A check, or the error that kept it from being made."""
    try:
        return check()
    except LoadproofError as error:
        return Check(name=name, status="FAIL", found=error.message, remedy=error.remedy)


def _driver_problem() -> NoCardError | None:
    try:
        with nvml():
            return None
    except NoCardError as error:
        return error


def _gpu_name(gpu: GpuInfo) -> str:
    return f"GPU {gpu.index}" if gpu.parent_uuid is None else f"GPU {gpu.index} MIG"


def _gpu(gpu: GpuInfo) -> Check:
    return gpu_check(gpu, read_gpu(gpu.uuid), _users(gpu))


def _users(gpu: GpuInfo) -> list[tuple[GpuProcess, str]] | None:
    processes = gpu_processes(gpu.uuid)
    return None if processes is None else [(process, _title(process.pid)) for process in processes]


def _title(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "a process of another namespace"


def _size(size: int | None) -> str:
    return "" if size is None else f", {size / GIB:.1f} GiB"


def _cdi_files(folders: Iterable[str]) -> list[str]:
    files = (file for folder in folders for file in Path(folder).glob("*") if file.suffix in (".yaml", ".json"))
    return sorted({str(file.resolve()) for file in files if "nvidia" in file.name})


def _images_folder(engine: Mapping[str, Any] | LoadproofError) -> Path | None:
    """Where the engine keeps images, if that is a folder of this machine."""
    root = None if isinstance(engine, LoadproofError) else engine.get("root_dir")
    return Path(root) if root and Path(root).exists() else None


def _shm_bytes() -> int | None:
    try:
        return shutil.disk_usage("/dev/shm").total
    except OSError:
        return None

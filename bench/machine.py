"""The machine that was measured; without it the figures mean nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packager.files import format_bytes

_LIBRARIES = ("ftpack", "numba", "torch", "transformers", "peft", "llama_cpp_python")


@dataclass(frozen=True)
class Machine:
    """CPU, usable cores, memory, operating system, versions, and the load before the bench."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    load_average: float
    versions: dict[str, str]

    def __str__(self) -> str:
        """Everything in one line."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.cpu}, {self.cores} cores, {format_bytes(self.memory_bytes)} of memory; "
            f"{self.system}; Python {self.python}, {versions}; load {self.load_average} before"
        )


def describe_machine() -> Machine:
    """Returns the description of this machine."""
    import psutil

    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=platform.platform(),
        python=platform.python_version(),
        load_average=round(os.getloadavg()[0], 2),
        versions=dict(_versions()),
    )


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> list[tuple[str, str]]:
    versions = []
    for name in _LIBRARIES:
        try:
            versions.append((name.replace("_", "-"), version(name)))
        except PackageNotFoundError:
            continue
    return versions

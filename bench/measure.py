"""The cost of a command: wall time, CPU time, peak memory of its process tree, bytes moved."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

POLL_S = 0.05


@dataclass(frozen=True)
class Cost:
    """The cost of a command and of all processes that it started.

    Attributes:
        wall_s: from start to end.
        cpu_s: user and system time.
        peak_rss_bytes: the largest resident memory of a single process (`VmHWM`). Not `ru_maxrss`,
            which starts at the parent's memory at the moment of the fork.
        peak_tree_bytes: the largest sum of resident memory over the process tree at one moment,
            polled every 50 ms; never less than `peak_rss_bytes`. It includes the pages of mapped
            files, which the system can reclaim at any time.
        peak_own_bytes: the same sum without mapped files: what must fit into memory.
        written_bytes: bytes passed to `write` calls (`wchar`).
        read_bytes: bytes returned by `read` calls (`rchar`), including the program's own files;
            reads through a mapping are not counted.
        disk_read_bytes: bytes read from storage, by calls and through mappings, because they were
            not in the page cache.
    """

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    peak_tree_bytes: int
    peak_own_bytes: int
    written_bytes: int
    read_bytes: int
    disk_read_bytes: int

    def __add__(self, later: Cost) -> Cost:
        """Returns the cost of both, run one after the other."""
        return Cost(
            self.wall_s + later.wall_s,
            self.cpu_s + later.cpu_s,
            max(self.peak_rss_bytes, later.peak_rss_bytes),
            max(self.peak_tree_bytes, later.peak_tree_bytes),
            max(self.peak_own_bytes, later.peak_own_bytes),
            self.written_bytes + later.written_bytes,
            self.read_bytes + later.read_bytes,
            self.disk_read_bytes + later.disk_read_bytes,
        )


def measure(command: Sequence[str | Path], log: Path) -> Cost:
    """Runs a command to its end with its output in `log`, and returns its cost.

    Raises:
        RuntimeError: if it fails; the message contains the end of its output.
    """
    os.sync()  # so that this command does not pay for an earlier one's pending writes
    with log.open("ab") as output:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        peak = _watch_memory(process.pid)
        wall_s = time.monotonic() - started
    # The process is a zombie now, so its counters and those of its finished children can be read.
    counters = _io_counters(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text("utf-8", "replace")[-2000:]
        raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{tail}")
    return Cost(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=peak.rss_peak,
        peak_tree_bytes=peak.rss,
        peak_own_bytes=peak.own,
        written_bytes=counters["wchar"],
        read_bytes=counters["rchar"],
        disk_read_bytes=counters["read_bytes"],
    )


def forget_cached(folder: Path) -> None:
    """Drops the files in `folder` from the page cache, so that the next read is from storage."""
    os.sync()  # pages that are not written yet cannot be dropped
    for path in folder.rglob("*") if folder.is_dir() else [folder]:
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill_cache(folder: Path) -> None:
    """Reads the files in `folder` completely, so that the page cache holds as many as fit."""
    os.sync()  # so that the disk is not busy with an earlier command's writes
    for path in folder.rglob("*") if folder.is_dir() else [folder]:
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(16 << 20):
                    pass


def _watch_memory(pid: int) -> _Resident:
    """Waits for the end of `pid` without reaping it; returns its tree's peak of each figure."""
    import psutil

    root = psutil.Process(pid)
    peak = _Resident()
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        try:
            tree = [pid, *(child.pid for child in root.children(recursive=True))]
        except psutil.Error:  # it has just ended
            break
        sizes = [_resident_bytes(member) for member in tree]
        largest = max(peak.rss_peak, *(size.rss_peak for size in sizes))
        peak = _Resident(
            max(peak.rss, sum(size.rss for size in sizes), largest),
            max(peak.own, sum(size.own for size in sizes)),
            largest,
        )
        time.sleep(POLL_S)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return peak


class _Resident(NamedTuple):
    """A process's memory in bytes: now, now without mapped files, and its peak."""

    rss: int = 0
    own: int = 0
    rss_peak: int = 0


def _resident_bytes(pid: int) -> _Resident:
    """Reads a process's memory from proc_pid_status(5); zeros if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:  # it ended after its parent was listed
        return _Resident()
    fields = {key: value for key, _, value in (line.partition(":") for line in lines)}
    if "VmRSS" not in fields:  # a zombie
        return _Resident()
    rss, mapped, peak = (
        int(fields[key].split()[0]) * 1024 for key in ("VmRSS", "RssFile", "VmHWM")
    )
    return _Resident(rss, rss - mapped, peak)


def _io_counters(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/io").read_text("ascii").splitlines()
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}

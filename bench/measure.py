"""What a command costs: wall time, CPU time, peak memory of its process tree, bytes moved."""

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
    """What a command, with all that it started, cost.

    Attributes:
        wall_s: from start to end.
        cpu_s: user and system time.
        peak_rss_bytes: the largest resident memory that one of its processes ever had (`VmHWM`).
            Not `ru_maxrss`: that begins with what the parent had when it forked.
        peak_tree_bytes: the largest sum of resident memory over the process tree at one moment,
            polled every 50 ms; never less than `peak_rss_bytes`. Pages of mapped files count,
            which the system can take back at any time.
        peak_own_bytes: the same sum without mapped files: what has to fit into memory.
        written_bytes: handed to `write` calls (`wchar`).
        read_bytes: taken from `read` calls (`rchar`), the program's own files among them; reading
            through a mapping is not in it.
        disk_read_bytes: fetched from storage by calls and through mappings, because the page cache
            did not have it.
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
        """The cost of both, one after the other."""
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
    """Runs a command to its end, its output going to `log`.

    Raises:
        RuntimeError: if it fails; the message has the end of its output.
    """
    os.sync()  # what an earlier command left to be written is not this one's
    with log.open("ab") as output:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        peak = _watch_memory(process.pid)
        wall_s = time.monotonic() - started
    # The process is a zombie now: its counters, with those of its ended children, can be read.
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
    """Drops the files in `folder` from the page cache: who reads them next reads from storage."""
    os.sync()  # pages that still have to be written cannot be dropped
    for path in folder.rglob("*") if folder.is_dir() else [folder]:
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill_cache(folder: Path) -> None:
    """Reads the files in `folder` to their ends: the page cache has them, if there is room.

    What others wrote goes to the disk first, which would be busy with it otherwise.
    """
    os.sync()
    for path in folder.rglob("*") if folder.is_dir() else [folder]:
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(16 << 20):
                    pass


def _watch_memory(pid: int) -> _Resident:
    """Waits for the end of `pid` without reaping it; the largest of each figure of its tree."""
    import psutil

    root = psutil.Process(pid)
    peak = _Resident()
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        try:
            tree = [pid, *(child.pid for child in root.children(recursive=True))]
        except psutil.Error:  # it ended just now
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
    """A process's memory in bytes: now, the part that is no mapped file, and at its peak."""

    rss: int = 0
    own: int = 0
    rss_peak: int = 0


def _resident_bytes(pid: int) -> _Resident:
    """What proc_pid_status(5) says of a process; zeros where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:  # ended since its parent was looked at
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

"""How much memory is free: of the machine, and of the containers this process runs in."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def free_memory() -> int:
    """Bytes this process can take without swapping or being killed for it.

    The least of what the system has available (half of all memory where it does not say) and what the limits of this
    process's control groups (containers) leave.
    """
    free = [_available(), *_group_rooms()]
    return max(0, min(free))


def _available() -> int:
    try:
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _group_rooms() -> list[int]:
    """What each memory limit of this process's control groups leaves; files in the page cache count as free."""
    try:
        groups = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    except (OSError, ValueError):
        return []
    rooms = []
    for number, controllers, path in (group for group in groups if len(group) == 3):
        if number == "0":
            base, limit, usage = CGROUP, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, usage = CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group != base and base not in group.parents:
                break
            try:
                most, used = (group / limit).read_text(), int((group / usage).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue  # the root group has no limit; inside a container the path may not be visible
            if most.strip().isdigit():
                rooms.append(int(most) - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))
    return rooms

"""What only Linux has is taken away, as no other system was at hand: the same bytes come out."""

import os
import subprocess
import sys

from conftest import HANG_S, ROOT, convert_quietly, sums

PROGRAM = """
import mmap, os, sys
from pathlib import Path

OS = "sched_ posix_fa POSIX_FADV_ memfd_ MFD_ pidfd_ eventfd O_DIRECT O_TMPFILE O_NOATIME copy_file_range splice"
MMAP = "MADV_HUGE MADV_NOHUGE MADV_DO MADV_REMOVE MAP_POPULATE MAP_HUGETLB MAP_NORESERVE"
for owner, names in ((os, OS), (mmap, MMAP)):  # in workers too: they are spawned, and run this file up to its end
    for name in [name for name in dir(owner) if name.startswith(tuple(names.split()))]:
        delattr(owner, name)
from mlpdata.system import engines, memory

engines.sys = type(sys)("sys")
engines.sys.platform, engines.sys.modules = "darwin", sys.modules
engines.ctypes = None
memory.MEMINFO = memory.CGROUP = memory.OWN_GROUPS = Path("/there/is/no/such/file")

if __name__ == "__main__":
    from mlpdata.convert import Options, convert

    out = Path(sys.argv[1])
    convert(Options(dataset="shapes", res=16, out=out, workers=2, limit=300, quiet=True))
    assert engines.process_context().get_start_method() == "spawn" and not hasattr(os, "O_DIRECT")
    import mlpdata

    for tier in ("resident", "stream"):
        batches = list(mlpdata.load(out, "train", 100, tier=tier))
        assert sum(len(batch.labels) for batch in batches) == 300
"""


def test_conversion_and_loading_without_what_only_linux_has(tmp_path):
    convert_quietly(dataset="shapes", res=16, out=tmp_path / "here", workers=2, limit=300)
    script = tmp_path / "elsewhere.py"
    script.write_text(PROGRAM)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script, tmp_path / "elsewhere"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=HANG_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sums(tmp_path / "elsewhere") == sums(tmp_path / "here")

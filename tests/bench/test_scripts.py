"""The benchmarks start: each one prints its --help."""

import subprocess
import sys
from pathlib import Path

SCRIPTS = sorted(p for p in Path(__file__).parent.glob("*.py") if "\ndef main(" in p.read_text())


def test_every_script_prints_its_help():
    started = {
        path.name: subprocess.Popen([sys.executable, path, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for path in SCRIPTS
    }
    for name, process in started.items():
        output, _ = process.communicate()
        assert process.returncode == 0 and b"usage:" in output, f"{name}: {output.decode()[-500:]}"

"""The command line, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def ftpack(*arguments: object, host: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "packager", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"OLLAMA_HOST": host, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )

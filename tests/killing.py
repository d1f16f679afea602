"""A process that is killed in the middle of writing."""

import signal
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import os, signal, sys
from pathlib import Path
from preim3d.files import staging_folder, whole_file
out = Path(sys.argv[1])
with staging_folder(out) as staging, whole_file(out / "grid.png") as file:
    Path(staging, "crop.png").write_text("half")
    file.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def left_by_a_killed_process(folder: Path) -> list[Path]:
    """A staging folder and a half-written file."""
    before = set(folder.iterdir())
    run = subprocess.run([sys.executable, "-c", SCRIPT, folder], cwd=ROOT)
    assert run.returncode == -signal.SIGKILL
    left = sorted(set(folder.iterdir()) - before)
    assert len(left) == 2
    return left

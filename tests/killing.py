"""Processes that are killed in the middle of writing."""

import json
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


RUNS = """
import json, os, random, signal, sys, threading
import torch
from preim3d import batch, judge, mesh, pipeline, recipe
from preim3d.__main__ import main
torch.set_num_threads(1)  # so that a process may be forked
batch.PER_TAR = 2

def die_at(moment, out):
    left = moment
    def hear(event, arguments):
        nonlocal left
        if event in ("open", "os.rename", "os.mkdir", "os.remove") and str(arguments[0]).startswith(out):
            left -= 1
            if left == 0:  # at once, or while this or what follows is under way
                delay = random.choice((0, 0, .001, .01, .1))
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start() if delay else os.kill(
                    os.getpid(), signal.SIGKILL)
    sys.addaudithook(hear)

random.seed(0)
for moment, out, words in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        if moment:
            die_at(moment, out)
        sys.stderr.flush()
        status = main(words)
        sys.stdout.flush()
        os._exit(status)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def killed_runs(runs: list[tuple[int, Path, list]]) -> list[int]:
    """Runs the command line once for each (moment, folder, words), killed when it opens, makes, moves or deletes a
    file below that folder for the moment-th time, or soon afterwards; 0 lets it live. Gives the exit statuses."""
    given = json.dumps([(moment, str(out), [str(word) for word in words]) for moment, out, words in runs])
    run = subprocess.run([sys.executable, "-c", RUNS], cwd=ROOT, input=given, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [int(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("ended")]

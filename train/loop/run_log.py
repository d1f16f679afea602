"""What a run leaves to look at: TensorBoard's event files and sheets of pictures, below the run's folder."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Writes OUT/events and OUT/sheets. A disk that takes no more is reported once and does not end the run."""

    def __init__(
        self,
        out: Path,
        step: int,  # steps done before
        quiet: bool = False,  # Write nothing: of several processes one logs.
    ):
        self.folder = Path(out)
        # Steps after the checkpoint, that a killed run had logged, are taken again.
        self.writer = None if quiet else SummaryWriter(str(self.folder / "events"), purge_step=step + 1)
        self.kept: list[tuple[str, Tensor, int, float]] = []  # name, value, step, time

    def scalars(self, step: int, terms: dict[str, float | Tensor]) -> None:
        """Keeps them until the next `flush`: to read a tensor on a GPU is to wait for it."""
        now = time.time()
        self.kept += [(name, torch.as_tensor(value).detach(), step, now) for name, value in terms.items()]

    def flush(self) -> None:
        """Put all that was logged onto the disk. Call it before each checkpoint: no step of one is then missing."""
        kept, self.kept = self.kept, []
        by_device = {}
        for scalar in kept:
            by_device.setdefault(scalar[1].device, []).append(scalar)

        def write():
            for scalars in by_device.values():
                values = torch.stack([value.double() for _, value, _, _ in scalars]).tolist()  # read in one go
                for (name, _, step, when), value in zip(scalars, values):
                    self.writer.add_scalar(name, value, step, walltime=when)
            self.writer.flush()

        self._write(write)

    def sheet(
        self,
        step: int,
        rows: list[Tensor],  # [N, 3, H, W] each, in [-1, 1]
    ) -> None:
        """OUT/sheets/STEP.png: one column per photo."""
        pixels = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
        pixels = ((pixels.permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
        path = self.folder / "sheets" / f"{step:07d}.png"

        def write():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            self.writer.add_image("sheet", pixels, step, dataformats="HWC")

        self._write(write)

    def close(self) -> None:
        self.flush()
        self._write(lambda: self.writer.close())

    def _write(self, write) -> None:
        if self.writer is None:
            return
        try:
            write()
        except OSError as error:
            self.writer = None
            print(f"No more logs and sheets are written to {self.folder}: {error.strerror}.", file=sys.stderr)

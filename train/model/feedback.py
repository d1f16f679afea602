"""Encoder, generator and photos -> `preim3d.feedback`: the step of w that brings what a picture lacks.

    python -m train.feedback --weights weights/faces --photos dataset/photos --out runs/feedback

Draws pairs: w of a photo, and the same moved by a share of the difference of two other photos' w; both are rendered
from that photo's camera, and how dlib's embedding and the coarse colours changed is kept. The step is a ridge
regression of the moves on these changes. Forward passes only: about a second a pair on one core.

Makes OUT/pairs.npz (resumable: a killed run loses at most the last minute), OUT/feedback (the component) and
OUT/report.json (held-out photos, before and after each step)."""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from preim3d.align import inside_photo
from preim3d.camera import camera_from_angles
from preim3d.directions import fingerprint
from preim3d.encoder import PortraitEncoder
from preim3d.feedback import Feedback, bring_nearer, coarse, gap_between
from preim3d.files import whole_file
from preim3d.generator import TriPlaneGenerator
from preim3d.identity import FaceIdentity
from preim3d.pipeline import load_component
from train.loop import checkpoint
from train.loop.arrays import open_arrays
from train.loop.options import run_stage, stage_parser
from train.photos.real_photos import CROP_PX, RealPhotos


BASES = 500  # photos whose w is moved, and whose differences it is moved by
WHOLE_BASES = 0.2  # share of those that show hair and shoulders too
MOVES_A_BASE = 3  # for one picture of the base itself
LEAST_SHARE, MOST_SHARE = 0.3, 0.9  # of the difference of two photos' w
SAVE_SECONDS = 60
PERSON = 0.85  # of the mask


class Pairs:
    """Moves of w [N, num_ws*w_dim] and how pictures changed: embeddings [N, E], colours [N, 3*cells**2]."""

    def __init__(self, path: Path, pair: str):
        self.path, self.pair = path, pair
        self.moves, self.embeddings, self.colours = [], [], []
        if path.is_file():
            arrays = open_arrays(path, ("moves", "embeddings", "colours", "fingerprint"), "python -m train.feedback")
            if str(arrays["fingerprint"]) != pair:
                raise ValueError(f"{path} is of another encoder or generator; delete it or give another --out.")
            self.add(*(torch.from_numpy(arrays[name]).float() for name in ("moves", "embeddings", "colours")))

    def __len__(self) -> int:
        return sum(map(len, self.moves))

    def add(self, moves: Tensor, embeddings: Tensor, colours: Tensor) -> None:
        for kept, new in zip((self.moves, self.embeddings, self.colours), (moves, embeddings, colours)):
            kept.append(new.flatten(1))

    def save(self) -> None:
        arrays = {name: torch.cat(getattr(self, name)).numpy() for name in ("moves", "embeddings", "colours")}
        arrays |= {name: arrays[name].astype(np.float16) for name in ("moves", "colours")}
        with whole_file(self.path) as part:
            np.savez(part, **arrays, fingerprint=self.pair)


class Learning:
    """The networks and photos of a run."""

    def __init__(self, args: argparse.Namespace):
        weights, device = Path(args.weights), torch.device(args.device)
        self.args, self.device = args, device

        def component(network_class: type, folder: Path):
            return load_component(network_class, folder, torch.float32).to(device)

        self.generator = component(TriPlaneGenerator, weights / "generator")
        self.encoder = component(PortraitEncoder, weights / "encoder")
        self.identity = component(FaceIdentity, Path(args.identity or weights / "identity"))
        self.pair = fingerprint(self.encoder, self.generator)
        self.photos = RealPhotos(args.photos)

    @torch.no_grad()
    def invert(self, rows: np.ndarray) -> Tensor:
        """w [N, num_ws, w_dim] of photos, as the encoder alone gives it."""
        size = self.encoder.config.input_size
        parts = np.array_split(rows, -(-len(rows) // 8))
        return torch.cat([self.encoder(resized(self.photos.crops(part), size).to(self.device)) for part in parts])

    def cameras(self, rows: np.ndarray) -> Tensor:
        """[N, 25] where photos were taken from."""
        yaw, pitch = torch.from_numpy(self.photos.pose[rows]).unbind(1)
        config = self.generator.config
        camera = camera_from_angles(yaw, pitch, radius=config.camera_radius, pivot=config.pivot, focal=config.focal)
        return camera.to(self.device)

    @torch.no_grad()
    def seen(self, w: Tensor, cameras: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and coarse colours of pictures."""
        view = self.generator.render(self.generator.planes(w), cameras, w, ray_resolution=self.args.rays)
        return self.identity(view.image), coarse(view.raw, self.args.cells)

    def draw(self, pairs: Pairs) -> None:
        """Until there are as many pairs as asked for. Which one comes next depends on how many there are alone."""
        if len(pairs) >= self.args.pairs:
            return
        rows = bases(self.photos, self.args.seed)
        ws = self.invert(rows)
        saved_at = time.monotonic()
        while len(pairs) < self.args.pairs:
            rng = np.random.default_rng((self.args.seed, len(pairs)))
            base = rng.integers(len(rows))
            one, other = rng.integers(len(rows), size=(2, MOVES_A_BASE))
            share = torch.from_numpy(rng.uniform(LEAST_SHARE, MOST_SHARE, MOVES_A_BASE)).to(ws)[:, None, None]
            moves = share * (ws[one] - ws[other])
            camera = self.cameras(rows[[base]]).expand(MOVES_A_BASE + 1, -1)
            embeddings, colours = self.seen(torch.cat([ws[[base]], ws[[base]] + moves]), camera)
            changed = (x[1:] - x[:1] for x in (embeddings, colours))
            pairs.add(moves.cpu(), *(x.cpu() for x in changed))
            if time.monotonic() - saved_at > SAVE_SECONDS or len(pairs) >= self.args.pairs:
                pairs.save()
                saved_at = time.monotonic()
                print(f"{len(pairs)} of {self.args.pairs} pairs", file=sys.stderr)

    @torch.no_grad()
    def report(self, feedback: Feedback, count: int) -> dict:
        """Of held-out photos: dlib's distance, and PSNR over the person, after no step, one, two..."""
        rows = np.nonzero(self.photos.held)[0][:count]
        w, cameras = self.invert(rows), self.cameras(rows)
        pixels = torch.from_numpy(self.photos.pixels(rows)).permute(0, 3, 1, 2).float() / 255
        crops = (pixels[:, :3] * 2 - 1).to(self.device)
        corners = torch.from_numpy(self.photos.corners[rows])
        person = (inside_photo(corners, CROP_PX) * (pixels[:, 3:] > PERSON)).to(self.device)
        once = Feedback.from_config(dict(feedback.config) | {"steps": 1}).to(self.device)
        once.load_state_dict(feedback.state_dict())
        figures = {"n": len(rows), "identity_own": [], "person_psnr_db": []}
        for step in range(feedback.config.steps + 1):
            distances, psnr = [], []
            for place in range(len(rows)):
                one = slice(place, place + 1)
                if step:
                    networks = self.generator, self.identity, once
                    w[one] = bring_nearer(w[one], crops[one], person[one], cameras[one], *networks)
                view = self.generator.render(self.generator.planes(w[one]), cameras[one], w[one])
                image = resized(view.image.clamp(-1, 1), CROP_PX)
                distances.append((self.identity(image) - self.identity(crops[one])).norm().item())
                error = ((image - crops[one]) / 2).square() * person[one]
                psnr.append(-10 * np.log10((error.sum() / (3 * person[one].sum())).item()))
            figures["identity_own"].append(round(float(np.mean(distances)), 4))
            figures["person_psnr_db"].append(round(float(np.mean(psnr)), 2))
        return figures


def bases(photos: RealPhotos, seed: int) -> np.ndarray:
    """Rows of the photos whose w is moved; never a held-out one."""
    rng = np.random.default_rng(seed)
    whole, train = (np.nonzero(~photos.held & kind)[0] for kind in (photos.full, True))
    of_whole = min(len(whole), round(WHOLE_BASES * BASES))
    return np.concatenate([
        rng.choice(whole, of_whole, replace=False),
        rng.choice(train, min(len(train), BASES - of_whole), replace=False),
    ])  # fmt: skip


def resized(images: Tensor, size: int) -> Tensor:
    return images if images.shape[-1] == size else F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def regress(
    moves: Tensor,  # [N, M]
    changes: Tensor,  # [N, G]
    ridge: float,  # in units of the changes' mean squared length
    rank: int,
) -> tuple[Tensor, Tensor]:
    """The two matrices [rank,G] and [M, rank] whose product is the ridge regression of moves on changes, kept to the
    directions that say most of the moves."""
    moves, changes = moves.double(), changes.double()
    alike = changes @ changes.T
    alike.diagonal().add_(ridge * alike.diagonal().mean())
    product = changes.T @ torch.linalg.solve(alike, moves)  # [G, M]
    basis = torch.linalg.svd(changes @ product, full_matrices=False)[2][:rank]  # [rank,M]
    return (product @ basis.T).T.float(), basis.T.float()


def learn(pairs: Pairs, generator: TriPlaneGenerator, args: argparse.Namespace) -> Feedback:
    moves, embeddings, colours = (torch.cat(parts) for parts in (pairs.moves, pairs.embeddings, pairs.colours))
    changes = gap_between(embeddings, colours, args.colour_weight)
    read, write = regress(moves, changes, args.ridge, min(args.rank, len(moves)))
    feedback = Feedback(
        num_ws=generator.num_ws,
        w_dim=generator.config.w_dim,
        rank=len(read),
        embedding_size=embeddings.shape[1],
        cells=args.cells,
        colour_weight=args.colour_weight,
        steps=args.steps,
        rays=args.rays,
        fingerprint=pairs.pair,
    )
    feedback.read.weight.data, feedback.write.weight.data = read.contiguous(), write.contiguous()
    return feedback.eval().requires_grad_(False)


def train(args: argparse.Namespace) -> None:
    run = Learning(args)
    args.out.mkdir(parents=True, exist_ok=True)
    pairs = Pairs(args.out / "pairs.npz", run.pair)
    run.draw(pairs)
    feedback = learn(pairs, run.generator, args).to(run.device)
    checkpoint.save_component(feedback, args.out / "feedback")
    figures = {"pairs": len(pairs)} | run.report(feedback, args.held)
    with whole_file(args.out / "report.json") as part:
        part.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"Held-out photos, after 0 to {args.steps} steps: {figures}")


def main(words: list[str] | None = None) -> int:
    parser = stage_parser(__doc__, "train.feedback")
    parser.add_argument("--weights", required=True, help="folder with generator/, encoder/ and identity/")
    parser.add_argument("--photos", required=True, help="folder of packed photos, from `python -m train.photos`")
    parser.add_argument("--identity", help="dlib's network; default: that of the weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=2000, help="a second each on one core")
    parser.add_argument("--ridge", type=float, default=3.0, help="more: smaller steps, which fit photos better")
    parser.add_argument("--rank", type=int, default=64, help="directions of w that steps are made of")
    parser.add_argument("--colour-weight", type=float, default=0.1, help="of colours beside the embedding")
    parser.add_argument("--steps", type=int, default=1, help="how often a step is taken; .3 s each on two cores")
    parser.add_argument("--cells", type=int, default=16, help="side of the coarse pictures that are compared")
    parser.add_argument("--rays", type=int, default=64, help="along a side of the picture that is looked at")
    parser.add_argument("--held", type=int, default=40, help="held-out photos of the report")
    return run_stage("train.feedback", train, parser.parse_args(words))

"""Pairs of pictures whose w differ by a known move -> the step of w that undoes a change, in closed form: where
`train.feedback` starts from."""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from preim3d.camera import camera_from_angles
from preim3d.efficientnet import EfficientNetLite0
from preim3d.encoder import PortraitEncoder
from preim3d.feedback import Feedback, coarse, gap_between
from preim3d.files import whole_file
from preim3d.generator import TriPlaneGenerator
from preim3d.identity import FaceIdentity
from preim3d.pipeline import load_component
from train.loop.arrays import open_arrays
from train.photos.real_photos import RealPhotos


BASES = 500  # photos whose w is moved, and whose differences it is moved by
WHOLE_BASES = 0.2  # share of those that show hair and shoulders too
MOVES_A_BASE = 3  # for one picture of the base itself
LEAST_SHARE, MOST_SHARE = 0.3, 0.9  # of the difference of two photos' w
SAVE_SECONDS = 60


class Networks:
    """Those that stay as they are."""

    def __init__(self, args: argparse.Namespace):
        weights, device = Path(args.weights), torch.device(args.device)

        def component(network_class: type, folder: Path):
            return load_component(network_class, folder, torch.float32).to(device)

        self.generator = component(TriPlaneGenerator, weights / "generator")
        self.encoder = component(PortraitEncoder, weights / "encoder")
        self.identity = component(FaceIdentity, Path(args.identity or weights / "identity"))
        self.lite0 = EfficientNetLite0.load(args.lite0).to(device)

    @torch.no_grad()
    def invert(self, photos: RealPhotos, rows: np.ndarray) -> Tensor:
        """w [N, num_ws, w_dim] of photos, as the encoder alone gives it."""
        size, device = self.encoder.config.input_size, self.generator.device
        parts = np.array_split(rows, -(-len(rows) // 8))
        return torch.cat([self.encoder(resized(photos.crops(part), size).to(device)) for part in parts])

    def cameras(self, pose: Tensor) -> Tensor:
        """[N, 25] of yaw and nominal pitch [N, 2]."""
        config = self.generator.config
        return camera_from_angles(
            *pose.unbind(1), radius=config.camera_radius, pivot=config.pivot, focal=config.focal
        ).to(self.generator.device)  # fmt: skip


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
        # Rounded as they are saved: a resumed run must not differ.
        moves, colours = moves.half().float(), colours.half().float()
        for kept, new in zip((self.moves, self.embeddings, self.colours), (moves, embeddings, colours)):
            kept.append(new.flatten(1))

    def save(self) -> None:
        arrays = {name: torch.cat(getattr(self, name)).numpy() for name in ("moves", "embeddings", "colours")}
        arrays |= {name: arrays[name].astype(np.float16) for name in ("moves", "colours")}
        with whole_file(self.path) as part:
            np.savez(part, **arrays, fingerprint=self.pair)


def resized(images: Tensor, size: int) -> Tensor:
    return images if images.shape[-1] == size else F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def bases(photos: RealPhotos, seed: int) -> np.ndarray:
    """Rows of the photos whose w is moved; never a held-out one."""
    rng = np.random.default_rng(seed)
    whole, train = (np.nonzero(~photos.held & kind)[0] for kind in (photos.full, True))
    of_whole = min(len(whole), round(WHOLE_BASES * BASES))
    return np.concatenate([
        rng.choice(whole, of_whole, replace=False),
        rng.choice(train, min(len(train), BASES - of_whole), replace=False),
    ])  # fmt: skip


def draw(pairs: Pairs, networks: Networks, photos: RealPhotos, args: argparse.Namespace) -> None:
    """Until there are as many pairs as asked for. Which one comes next depends on how many there are alone."""
    if len(pairs) >= args.pairs:
        return
    rows = bases(photos, args.seed)
    ws = networks.invert(photos, rows)
    saved_at = time.monotonic()
    while len(pairs) < args.pairs:
        rng = np.random.default_rng((args.seed, len(pairs)))
        base = rng.integers(len(rows))
        one, other = rng.integers(len(rows), size=(2, MOVES_A_BASE))
        share = torch.from_numpy(rng.uniform(LEAST_SHARE, MOST_SHARE, MOVES_A_BASE)).to(ws)[:, None, None]
        moves = share * (ws[one] - ws[other])
        camera = networks.cameras(torch.from_numpy(photos.pose[rows[[base]]])).expand(MOVES_A_BASE + 1, -1)
        embeddings, colours = seen(networks, torch.cat([ws[[base]], ws[[base]] + moves]), camera, args)
        changed = (x[1:] - x[:1] for x in (embeddings, colours))
        pairs.add(moves.cpu(), *(x.cpu() for x in changed))
        if time.monotonic() - saved_at > SAVE_SECONDS or len(pairs) >= args.pairs:
            pairs.save()
            saved_at = time.monotonic()
            print(f"{len(pairs)} of {args.pairs} pairs", file=sys.stderr)


@torch.no_grad()
def seen(networks: Networks, w: Tensor, cameras: Tensor, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Embeddings and coarse colours of pictures."""
    generator = networks.generator
    view = generator.render(generator.planes(w), cameras, w, ray_resolution=args.rays)
    return networks.identity(view.image), coarse(view.raw, args.cells)


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
    """The feedback that the pairs teach."""
    moves, embeddings, colours = (torch.cat(parts) for parts in (pairs.moves, pairs.embeddings, pairs.colours))
    changes = gap_between(embeddings, colours, args.colour_weight)
    read, write = regress(moves, changes, args.ridge, min(args.rank, len(moves)))
    # Numbers that are read are made of one size, so that descent moves all of them alike.
    size = read.square().mean(1).sqrt()
    feedback = Feedback(
        num_ws=generator.num_ws,
        w_dim=generator.config.w_dim,
        rank=len(read),
        embedding_size=embeddings.shape[1],
        cells=args.cells,
        colour_weight=args.colour_weight,
        steps=args.times,
        rays=args.rays,
        fingerprint=pairs.pair,
    ).requires_grad_(False)
    for parameter in feedback.parameters():
        parameter.zero_()
    feedback.read.weight[:, : changes.shape[1]] = read / size[:, None]
    feedback.write.weight.copy_(write * size)
    return feedback.eval()

"""Pictures of heads -> the identity network of L_ID: an IR-SE body under the ArcFace loss, each head a person.

    python -m train.identity --data dataset/heads --held-out dataset/heldout --out dataset/identity --minutes 60

Learns from photo-like renders and plain ones of the same head under other cameras and lights. Where the user has the
published IR-SE-50 (`model_ir_se50.pth`), `train.encoder --identity` takes that file in its place and nothing need be
trained. Makes OUT/checkpoint.pt (to resume), OUT/identity/ (the network) and OUT/report.json (how well two pictures of
a held-out head are told from those of two heads).

The one that judges likeness in weights/faces/evaluation.json: `--minutes 16 --threads 1 --size 64 --units 1 1 1 1
--depths 16 32 64 192 --batch 64 --rate 2e-3`, seed 0, 1766 steps on the first 3825 heads of seed 3, which
were broader than today's: AUC .9986 on 300 held-out ones, .9953 on 200 of today's."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.irse import IdentityNetwork
from train import augment, checkpoint
from train.batches import draw_photos, draw_plain
from train.heads.dataset import BACKGROUND, HeadsDataset
from train.options import check_budget, run_stage, training_parser
from train.precision import autocast, settle
from train.progress import Progress, cosine_rate, must_be_numbers


SCALE, MARGIN = 32.0, 0.5  # s and m of ArcFace; its s of 64 is for a hundred times as many people


def load_identity(path: Path | str) -> IdentityNetwork:
    """An identity network from a folder of this stage, or from the published `model_ir_se50.pth`.

    Raises ValueError for a file that is neither."""
    path = Path(path)
    if path.is_dir():
        return IdentityNetwork.from_pretrained(path).eval()
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = IdentityNetwork()
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is no IR-SE-50: give model_ir_se50.pth or a folder of train.identity.") from error
    return network.eval()


def encoder_from_identity(generator: TriPlaneGenerator, network: IdentityNetwork, size: int) -> PortraitEncoder:
    """An encoder for crops of side `size` whose body is the identity network's (pSp, and the paper's framework)."""
    config = network.config
    encoder = PortraitEncoder(
        input_size=size,
        units=config.units,
        depths=config.depths,
        feature_dim=config.feature_dim,
        num_ws=generator.num_ws,
        w_dim=generator.config.w_dim,
    )
    encoder.input_layer.load_state_dict(network.input_layer.state_dict())
    encoder.body.load_state_dict(network.body.state_dict())
    return encoder


def arcface_logits(
    cosines: Tensor,  # [B,K] between embeddings and the K people's centres
    people: Tensor,  # [B] who each is
    scale: float = SCALE,
    margin: float = MARGIN,
) -> Tensor:
    """ArcFace (Deng et al. 2019, Eq. 3): s cos(theta + m) for the right person, s cos(theta) for the others."""
    # Short of +-1, where the arc cosine has no finite gradient.
    angles = cosines.float().clamp(-1 + 1e-6, 1 - 1e-6).acos()
    right = F.one_hot(people, cosines.shape[1]).bool()
    return scale * torch.where(right, (angles + margin).clamp(max=torch.pi).cos(), cosines.float())


class Centres(nn.Module):
    """The people's directions among the embeddings: unit vectors [B,E] -> cosines [B,K]."""

    def __init__(self, people: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(people, size) * 0.01)

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings @ F.normalize(self.weight, dim=1).T


def draw_pictures(
    dataset: HeadsDataset, heads: np.ndarray, rng: np.random.Generator, draws: torch.Generator, size: int, device
) -> Tensor:
    """One picture of each head [B,3,size,size]: photo-like for the first two thirds, plain for the rest."""
    photos = -(-2 * len(heads) // 3)
    rgba, theta, _ = draw_photos(dataset, heads[:photos], rng, device)
    images, _ = augment.photo_like(rgba, draws, theta=theta, size=size)
    rgba, _, _ = draw_plain(dataset, heads[photos:], rng, device)
    plain = F.interpolate(augment.generator_like(rgba, BACKGROUND, draws), (size, size), mode="area")
    return torch.cat([images, plain])


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    device, out = torch.device(args.device), Path(args.out)
    dataset = HeadsDataset(args.data)
    network = IdentityNetwork(args.size, args.units, args.depths, args.embedding, dropout=0.2).to(device)
    centres = Centres(len(dataset), args.embedding).to(device)
    parameters = [*network.parameters(), *centres.parameters()]
    optimizer = torch.optim.AdamW(parameters, args.rate, weight_decay=5e-4)
    parts = {"network": network, "centres": centres, "optimizer": optimizer}
    state = {"step": 0, "seconds": 0.0, "notes": {}}
    path = out / "checkpoint.pt"
    if path.exists():
        state = checkpoint.load(path, parts, device=device)
        print(f"Resumed {path} at step {state['step']}.")
    sample = torch.zeros(args.batch, 3, args.size, args.size, device=device)
    precision = state["notes"].get("precision") or settle(args.precision, network.eval(), sample)

    def save() -> None:
        notes = {"precision": precision}
        checkpoint.save(path, parts, step=progress.step, seconds=progress.seconds, notes=notes)

    progress = Progress(args.minutes, args.steps, step=state["step"], seconds=state["seconds"])
    saved_at = progress.seconds
    network.train()
    while not progress.done:
        rng = np.random.default_rng((args.seed, progress.step))
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(progress.share, args.rate)
        heads = rng.choice(dataset.ready, args.batch)
        images = draw_pictures(dataset, heads, rng, draws, args.size, device)
        with autocast(device, precision):
            cosines = centres(network(images))
        # The margin comes in over the first fifth: at once, it stops a network that knows nobody yet.
        margin = MARGIN * min(1.0, 5 * progress.share)
        people = torch.from_numpy(heads).to(device)
        loss = F.cross_entropy(arcface_logits(cosines, people, margin=margin), people)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        terms = {"arcface": loss.item(), "gradient": nn.utils.clip_grad_norm_(parameters, 5.0).item()}
        must_be_numbers(progress.step + 1, terms)
        optimizer.step()
        progress.advance(args.batch, **terms)
        if progress.seconds - saved_at > args.save_seconds:
            checkpoint.attempt(save, path, progress.step)
            saved_at = progress.seconds
    save()
    checkpoint.save_component(network.eval(), out / "identity")
    if args.held_out:
        report = verify(network, HeadsDataset(args.held_out), args.seed)
        report["trained"] = {"steps": progress.step, "minutes": round(progress.seconds / 60, 1)}
        (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        print(f"Two pictures of a held-out head or of two: AUC {report['auc']}.")


@torch.no_grad()
def verify(network: IdentityNetwork, dataset: HeadsDataset, seed: int) -> dict:
    """Same head or another? Each held-out head's photo against its plain view, and against the next head's."""
    from sklearn.metrics import roc_auc_score

    rng, draws, heads = np.random.default_rng(seed), torch.Generator().manual_seed(seed), dataset.ready
    photos, plain = [], []
    for part in np.array_split(heads, -(-len(heads) // 32)):
        rgba, theta, _ = draw_photos(dataset, part, rng)
        images, _ = augment.photo_like(rgba, draws, theta=theta, size=network.config.input_size)
        photos.append(network(images.to(network.device)).cpu())
        images = augment.plain(draw_plain(dataset, part, rng)[0], BACKGROUND)
        plain.append(network(images.to(network.device)).cpu())
    photos, plain = torch.cat(photos), torch.cat(plain)
    same, other = (photos * plain).sum(1), (photos * plain.roll(1, 0)).sum(1)
    truth = np.repeat([1, 0], len(heads))
    return {
        "n": len(heads),
        "seed": seed,
        "auc": round(float(roc_auc_score(truth, torch.cat([same, other]))), 4),
        "mean_cosine": {"same": round(same.mean().item(), 4), "other": round(other.mean().item(), 4)},
    }


def main(words: list[str] | None = None) -> int:
    parser = training_parser(__doc__, "train.identity")
    parser.add_argument("--data", required=True, help="folder made by `python -m train.heads render`")
    parser.add_argument("--held-out", help="another such folder, for the report")
    parser.add_argument("--out", required=True)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--size", type=int, default=112, help="side of the pictures read, a multiple of 16")
    parser.add_argument("--units", type=int, nargs=4, default=(2, 2, 2, 2), help="IR-SE-50: 3 4 14 3")
    parser.add_argument("--depths", type=int, nargs=4, default=(32, 64, 128, 256), help="IR-SE-50: 64 128 256 512")
    parser.add_argument("--embedding", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    return run_stage("train.identity", train, check_budget(parser, parser.parse_args(words)))


if __name__ == "__main__":
    sys.exit(main())

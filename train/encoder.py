r"""Photos -> w: trains the encoder of one generator by alternating rounds (paper, sections 3.2, 3.3 and A.1).

    python -m train.encoder --data dataset/heads --generator weights/heads/generator \
        --reader dataset/attributes/reader --out dataset/encoder --minutes 30

The body starts from `train.attributes`, the last layer from a ridge regression of w. Then, step by step:

    out-domain round   photo-like render -> E -> w ──┬─ L_w against mapping(features), known for synthetic heads
                                                     └─ every few steps: G(w) at the input camera and another one,
                                                        against the plain renders of the same head from there
    in-domain round    G(w, random camera) -> E ─────── L_w against that w (Eq. 4)

Needs a dataset of `train.heads render`, a generator folder and a reader; makes OUT/checkpoint.pt and OUT/encoder/.

Of the weights in weights/heads/encoder: `--minutes 13 --fit-batches 80 --threads 2 --precision bfloat16`, seed 0, 1021
steps on 5323 heads; the reader they start from: 2945 steps of `train.attributes`, 99 minutes of one contended core."""

import argparse
import math
from collections import deque
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from preim3d.camera import camera_from_angles
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from train import augment, checkpoint, losses
from train.attributes import METRIC_HEADS, HeadReader, frontal_pictures
from train.batches import draw_photos, draw_plain, to_camera, to_float
from train.heads.dataset import BACKGROUND, FRONT_VIEWS, HeadsDataset
from train.picture_metric import expression_weights, picture_metric
from train.precision import autocast, settle
from train.progress import Progress, cosine_rate


PLACE = [3, 7, 11]  # Entries of a camera label that hold its position.
POOL_SIZE = 2048  # Generated images kept for in-domain rounds: rendering costs far more than reading.


def new_encoder(generator: TriPlaneGenerator, reader: HeadReader) -> PortraitEncoder:
    """An encoder for this generator with the reader's body and embedding."""
    size = reader.config
    encoder = PortraitEncoder(
        input_size=size.input_size,
        units=size.units,
        depths=size.depths,
        stem_stride=size.stem_stride,
        pool=size.pool,
        feature_dim=size.embedding_size,
        num_ws=generator.num_ws,
        w_dim=generator.config.w_dim,
    )
    encoder.input_layer.load_state_dict(reader.input_layer.state_dict())
    encoder.body.load_state_dict(reader.body.state_dict())
    encoder.output_layer_2.load_state_dict(reader.output_layer.state_dict())
    return encoder


@torch.no_grad()
def fit_last_layer(encoder: PortraitEncoder, batches, ridge: float = 0.03) -> float:
    """Set the last layer by ridge regression of w on the embedding; `batches` yields images [B,3,S,S], w
    [B,num_ws,w_dim].

    Returns R2 of w on the same images. A start, not an end: it spares the first thousands of steps."""
    encoder.eval()
    embeddings, targets = [], []
    for images, w in batches:
        embeddings.append(encoder.output_layer_2(encoder.body(encoder.input_layer(images))).double())
        targets.append(w[:, 0].double())
    x, y = torch.cat(embeddings), torch.cat(targets)
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    covariance = x.T @ x / len(x)
    damping = ridge * covariance.diagonal().mean() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    slopes = torch.linalg.solve(covariance + damping, x.T @ y / len(x))  # [E,w_dim]
    encoder.latent_average.copy_(mean_y.float().expand_as(encoder.latent_average))
    rows, linear = encoder.config.num_ws, encoder.linear
    # All rows of w alike; the layer multiplies its weight by a gain when it is used.
    linear.weight.copy_(slopes.T.repeat(rows, 1) / linear.weight_gain)
    linear.bias.copy_((-mean_x @ slopes).repeat(rows))
    return 1 - ((x @ slopes - y).square().sum() / y.square().sum()).item()


@torch.no_grad()
def latent_metric(generator: TriPlaneGenerator, dataset: HeadsDataset, heads: np.ndarray) -> Tensor:
    """[w_dim,w_dim]: how much each direction of w shows in frontal renders of `heads`; L_w of the mean w is 1."""
    heads, pictures = frontal_pictures(dataset, heads)
    w = generator.mapping(torch.as_tensor(dataset.features[heads], device=generator.device))[:, 0]
    metric = picture_metric(w, pictures.to(w.device))
    return metric * len(metric) / (metric @ w.T.cov()).trace()


def random_cameras(
    count: int, rng: np.random.Generator, generator: TriPlaneGenerator, yaw_deg=30.0, pitch_deg=20.0
) -> Tensor:
    """Cameras [count,25], uniform in yaw and nominal pitch (A.1: within 30 and 20 degrees)."""
    config = generator.config
    yaw, pitch = (
        torch.tensor(rng.uniform(-math.radians(d), math.radians(d), count)).float() for d in (yaw_deg, pitch_deg)
    )
    cameras = camera_from_angles(yaw, pitch, radius=config.camera_radius, pivot=config.pivot, focal=config.focal)
    return cameras.to(generator.device)


class EncoderTraining:
    """The networks, the data and the two kinds of rounds of one run."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        self.rng = np.random.default_rng(args.seed)
        self.draws = torch.Generator().manual_seed(args.seed)
        self.dataset = HeadsDataset(args.data)
        self.learned = self.dataset.ready
        self.features = torch.as_tensor(np.asarray(self.dataset.features), dtype=torch.float32, device=self.device)
        self.generator = TriPlaneGenerator.from_pretrained(args.generator).to(self.device).eval().requires_grad_(False)
        self.reader = HeadReader.from_pretrained(args.reader).to(self.device).eval().requires_grad_(False)
        self.encoder = new_encoder(self.generator, self.reader).to(self.device)
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), args.rate, weight_decay=0.01)
        self.pool: deque[tuple[Tensor, Tensor]] = deque(maxlen=POOL_SIZE)  # uint8 image [3,S,S], w [num_ws,w_dim]
        size = self.generator.config.image_resolution
        weights = expression_weights(size, device=self.device)
        self.weights = weights / weights.mean()

    def photos(self, heads: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        """A picture of each head: images [B,3,S,S], its true w [B,num_ws,w_dim], the plain view nearest to it [B].

        Some already stand in the generator's light: they teach detail that photos hide."""
        size = self.encoder.config.input_size
        plain = int(len(heads) * self.args.plain_share)
        rgba, _, plain_views = draw_plain(self.dataset, heads[:plain], self.rng, self.device)
        images, _ = augment.photo_like(rgba, self.draws, size=size)
        rgba, theta, camera = draw_photos(self.dataset, heads[plain:], self.rng, self.device)
        images = torch.cat([images, augment.photo_like(rgba, self.draws, theta=theta, size=size)[0]])
        places = to_camera(self.dataset.cameras[heads[plain:], :FRONT_VIEWS], self.device)[..., PLACE]  # [B,V,3]
        nearest = (places - camera[:, None, PLACE]).square().sum(2).argmin(1).cpu().numpy()
        with torch.no_grad():
            return images, self.generator.mapping(self.features[heads]), np.concatenate([plain_views, nearest])

    def truth(self, heads: np.ndarray, views: np.ndarray) -> tuple[Tensor, Tensor]:
        """Plain pictures [B,3,S,S] of heads from known cameras [B,25]."""
        images = augment.plain(to_float(self.dataset.images[heads, views], self.device), BACKGROUND)
        return images, to_camera(self.dataset.cameras[heads, views], self.device)

    def picture_terms(self, w: Tensor, heads: np.ndarray, views: np.ndarray) -> dict[str, Tensor]:
        """Eq. 7's terms at the view nearest to the input and, as in Eq. 6, at another one; w [B,num_ws,w_dim]."""
        planes = self.generator.planes(w)
        terms = {"l2": 0.0, "edge": 0.0, "lpips": 0.0, "id": 0.0}
        other = (views + self.rng.integers(1, FRONT_VIEWS, len(views))) % FRONT_VIEWS
        for chosen in (views, other):
            truth, camera = self.truth(heads, chosen)
            images = self.generator.render(planes, camera, w).image
            terms["l2"] += losses.pixel_loss(images, truth, self.weights) / 2
            terms["edge"] += losses.edge_loss(images, truth, self.weights) / 2
            terms["lpips"] += losses.perceptual_loss(self.reader, images, truth) / 2
            terms["id"] += losses.identity_loss(self.reader, images, truth) / 2
        return terms

    @torch.no_grad()
    def render_pool(self, count: int) -> None:
        """Add `count` in-domain images: heads between two known ones, from random cameras."""
        first, second = (self.generator.mapping(self.features[self.rng.choice(self.learned, count)]) for _ in range(2))
        # Halfway heads lie in no dataset: the in-domain round widens what the encoder sees (section 3.2, i).
        ws = first.lerp(second, torch.as_tensor(self.rng.beta(0.4, 0.4, (count, 1, 1)), dtype=torch.float32).to(first))
        camera = random_cameras(count, self.rng, self.generator)
        images = self.generator.render(self.generator.planes(ws), camera, ws).image
        stored = images.add(1).mul(127.5).round().clamp(0, 255).byte().cpu()
        self.pool.extend(zip(stored, ws.cpu()))

    def generated(self, count: int) -> tuple[Tensor, Tensor]:
        """Images [count,3,S,S] from the pool, exposed like photos, and their w [count,num_ws,w_dim]."""
        chosen = [self.pool[i] for i in self.rng.integers(0, len(self.pool), count)]
        images = torch.stack([image for image, _ in chosen]).to(self.device).float() / 255
        images = augment.soften(augment.expose(images, self.draws), self.draws, 0.3, smallest=0.4)
        return images.clamp(0, 1) * 2 - 1, torch.stack([w for _, w in chosen]).to(self.device)

    def step(self, metric: Tensor, precision: str, with_pictures: bool) -> dict[str, float]:
        """One optimiser step: an out-domain batch, and an in-domain one as soon as the pool has images."""
        args = self.args
        heads = self.rng.choice(self.learned, args.batch)
        images, truth, views = self.photos(heads)
        with autocast(self.device, precision):
            w = self.encoder(images)
            terms = {"w": losses.latent_loss(w, truth, metric)}
            if with_pictures:
                few = slice(0, args.picture_batch)
                terms |= self.picture_terms(w[few].float(), heads[few], views[few])
        loss = args.w_weight * terms["w"]
        if with_pictures:
            loss = (
                loss
                + 1.0 * terms["l2"]
                + 0.3 * terms["edge"]
                + args.lpips_weight * terms["lpips"]
                + args.id_weight * terms["id"]
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.pool:
            images, truth = self.generated(max(1, args.batch // 4))
            with autocast(self.device, precision):
                terms["w_in"] = losses.latent_loss(self.encoder(images), truth, metric)
            (0.25 * args.w_weight * terms["w_in"]).backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), 2.0)
        self.optimizer.step()
        return {name: term.item() for name, term in terms.items()}


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    out = Path(args.out)
    run = EncoderTraining(args)
    parts = {"encoder": run.encoder, "optimizer": run.optimizer}
    state = {"step": 0, "seconds": 0.0}
    resumed = (out / "checkpoint.pt").exists()
    if resumed:
        state = checkpoint.load(out / "checkpoint.pt", parts, rng=run.rng, device=run.device)
        run.draws.set_state(state["notes"]["draws"])
        print(f"Resumed {out / 'checkpoint.pt'} at step {state['step']}.")
    metric = latent_metric(run.generator, run.dataset, run.learned[:METRIC_HEADS])
    if not resumed:
        fitted = fit_last_layer(
            run.encoder, (run.photos(run.rng.choice(run.learned, 32))[:2] for _ in range(args.fit_batches))
        )
        print(f"The last layer explains {fitted:.2f} of the variance of w.")
    size = run.encoder.config.input_size
    sample = torch.zeros(args.batch, 3, size, size, device=run.device)
    precision = settle(args.precision, run.encoder, sample)

    def save() -> None:
        checkpoint.save(
            out / "checkpoint.pt",
            parts,
            step=progress.step,
            seconds=progress.seconds,
            rng=run.rng,
            notes={"draws": run.draws.get_state()},
        )
        run.encoder.save_pretrained(out / "encoder")

    progress = Progress(args.minutes, args.steps, step=state["step"], seconds=state["seconds"])
    saved_at = progress.seconds
    run.encoder.train()
    while not progress.done:
        for group in run.optimizer.param_groups:
            group["lr"] = cosine_rate(progress.share, args.rate, warm=0.05)
        with_pictures = progress.share >= args.pictures_from and progress.step % args.picture_every == 0
        if progress.share >= args.pool_from and progress.step % args.picture_every == 0:
            run.render_pool(max(1, args.picture_batch // 2))
        progress.advance(args.batch, **run.step(metric, precision, with_pictures))
        if progress.seconds - saved_at > args.save_seconds:
            save()
            saved_at = progress.seconds
    run.encoder.eval()
    save()


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder made by `python -m train.heads render`")
    parser.add_argument("--generator", required=True, help="generator folder (config.json and weights)")
    parser.add_argument("--reader", required=True, help="folder made by `python -m train.attributes` (OUT/reader)")
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, help="time budget; a resumed run counts what it spent before")
    parser.add_argument("--steps", type=int, help="or a budget of steps")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--picture-batch", type=int, default=4, help="images of a batch that are rendered for the image losses"
    )
    parser.add_argument(
        "--picture-every", type=int, default=3, help="steps between image losses: rendering costs most of the time"
    )
    parser.add_argument(
        "--pictures-from", type=float, default=0.3, help="share of the run after which image losses begin"
    )
    parser.add_argument(
        "--pool-from", type=float, default=0.1, help="share of the run after which in-domain rounds begin"
    )
    parser.add_argument(
        "--plain-share", type=float, default=0.2, help="of the inputs rendered in the generator's light"
    )
    parser.add_argument(
        "--w-weight", type=float, default=0.3, help="lambda_w; large, for here w is known for photos too"
    )
    parser.add_argument("--lpips-weight", type=float, default=0.2)
    parser.add_argument("--id-weight", type=float, default=0.1)
    parser.add_argument("--fit-batches", type=int, default=100, help="batches of 32 for the last layer's regression")
    parser.add_argument("--rate", type=float, default=3e-4, help="peak learning rate")
    parser.add_argument("--save-seconds", type=float, default=120)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if args.minutes is None and args.steps is None:
        parser.error("give a budget: --minutes or --steps")
    train(args)


if __name__ == "__main__":
    main()

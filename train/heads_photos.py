"""Synthetic heads as the encoder's photos: w is known for them too, and so is how they look in the generator's light
and from other sides. Also what follows from that: a metric of w and a first last layer by regression."""

import numpy as np
import torch
from torch import Tensor

from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from train import augment
from train.attributes import HeadReader
from train.batches import draw_photos, draw_plain, to_camera, to_float
from train.heads.dataset import BACKGROUND, FRONT_VIEWS, HeadsDataset
from train.picture_metric import METRIC_HEADS, frontal_pictures, picture_metric
from train.rounds import Batch


PLACE = [3, 7, 11]  # Entries of a camera label that hold its position.


class HeadsPhotos:
    """Batches of photo-like renders of the heads in a dataset, and w between known heads for generated images."""

    def __init__(self, dataset: HeadsDataset, generator: TriPlaneGenerator, size: int, plain_share: float):
        self.dataset, self.generator, self.size, self.plain_share = dataset, generator, size, plain_share
        self.device = generator.device
        self.features = torch.as_tensor(np.asarray(dataset.features), dtype=torch.float32, device=self.device)

    @property
    def rays(self) -> int:
        """Rays along a view's side that give pictures of the renders' size: more are thrown away when they are
        compared, and cost most of a step on a CPU."""
        config, size = self.generator.config, self.dataset.images.shape[2]
        return min(config.ray_resolution, -(-config.ray_resolution * size // config.image_resolution))

    def draw(self, count: int, rng: np.random.Generator, draws: torch.Generator, pictures: int = 0) -> Batch:
        """Photo-like renders and their w; for the first `pictures` the plain views nearest to the input's camera and
        from another one, as in Eq. 6.

        The last inputs already stand in the generator's light: they teach detail that photos hide."""
        heads = rng.choice(self.dataset.ready, count)
        lit = count - int(count * self.plain_share)  # by any light
        rgba, theta, camera = draw_photos(self.dataset, heads[:lit], rng, self.device)
        images, plain_views = augment.photo_like(rgba, draws, theta=theta, size=self.size)[0], np.zeros(0, np.int64)
        if lit < count:
            rgba, _, plain_views = draw_plain(self.dataset, heads[lit:], rng, self.device)
            images = torch.cat([images, augment.photo_like(rgba, draws, size=self.size)[0]])
        places = to_camera(self.dataset.cameras[heads[:lit], :FRONT_VIEWS], self.device)[..., PLACE]  # [B,V,3]
        nearest = (places - camera[:, None, PLACE]).square().sum(2).argmin(1).cpu().numpy()
        views = np.concatenate([nearest, plain_views])[:pictures]
        other = (views + rng.integers(1, FRONT_VIEWS, len(views))) % FRONT_VIEWS
        targets = [self._plain(heads[:pictures], chosen) for chosen in (views, other)] if pictures else []
        with torch.no_grad():
            return Batch(images, self.generator.mapping(self.features[heads]), targets)

    def _plain(self, heads: np.ndarray, views: np.ndarray) -> tuple[Tensor, Tensor]:
        """Plain pictures [P,3,S,S] of heads from known cameras [P,25]."""
        images = augment.plain(to_float(self.dataset.images[heads, views], self.device), BACKGROUND)
        return images, to_camera(self.dataset.cameras[heads, views], self.device)

    @torch.no_grad()
    def latents(self, count: int, rng: np.random.Generator) -> Tensor:
        """w [count,num_ws,w_dim] of heads between two known ones: halfway heads lie in no dataset, and the in-domain
        round widens what the encoder sees (section 3.2, i)."""
        heads = rng.choice(self.dataset.ready, (2, count))
        first, second = (self.generator.mapping(self.features[chosen]) for chosen in heads)
        return first.lerp(second, torch.as_tensor(rng.beta(0.4, 0.4, (count, 1, 1)), dtype=torch.float32).to(first))


def photographed(images: Tensor, draws: torch.Generator) -> Tensor:
    """Generated images [B,3,S,S] in [-1, 1] as photos are exposed and softened."""
    images = augment.soften(augment.expose((images + 1) / 2, draws), draws, 0.3, smallest=0.4)
    return images.clamp(0, 1) * 2 - 1


def encoder_from_reader(generator: TriPlaneGenerator, reader: HeadReader) -> PortraitEncoder:
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
def latent_metric(photos: HeadsPhotos) -> Tensor:
    """[w_dim,w_dim]: how much each direction of w shows in frontal renders; L_w of the mean w is 1."""
    heads, pictures = frontal_pictures(photos.dataset, photos.dataset.ready[:METRIC_HEADS])
    w = photos.generator.mapping(photos.features[heads])[:, 0]
    metric = picture_metric(w, pictures.to(w.device))
    return metric * len(metric) / (metric @ w.T.cov()).trace()

"""Photos -> the inversion manifold: the latent that the encoder gives each photo, and what the classifier says of it.

    python -m train.manifold --weights weights/heads --reader READER --data dataset/heads --out latents.npz
    python -m train.manifold --weights weights/heads --reader READER --crops FOLDER --out latents.npz

Section 3.4 of the paper: directions are learned here and not among sampled latents. Makes latents.npz with w
[N,num_ws,w_dim], logits [N,A] of the attributes read from the photos, attribute_names [A], and, for synthetic heads,
labels [N,A] in [0, 1] (the truth) and heads [N]."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from preim3d.encoder import PortraitEncoder
from train import augment
from train.attributes import HeadReader
from train.batches import draw_photos
from train.heads.dataset import HeadsDataset


def head_photos(
    dataset: HeadsDataset, heads: np.ndarray, seed: int, size: int, batch: int = 32
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Batches of one photo-like picture per head: images [B,3,size,size], heads [B]."""
    rng, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    for chosen in np.array_split(heads, -(-len(heads) // batch)):
        rgba, theta, _ = draw_photos(dataset, chosen, rng)
        yield augment.photo_like(rgba, draws, theta=theta, size=size, occluder_share=0.0)[0], chosen


def crop_images(folder: Path, size: int, batch: int = 32) -> Iterator[tuple[Tensor, list[str]]]:
    """Batches of the crops (png, jpg) in a folder, by name: images [B,3,size,size], names."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no .png or .jpg crops; make them with `python -m preim3d edit`.")
    for start in range(0, len(paths), batch):
        part = paths[start : start + batch]
        pixels = [
            np.asarray(Image.open(p).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)) for p in part
        ]
        yield torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1, [p.name for p in part]


@torch.no_grad()
def invert(
    encoder: PortraitEncoder,
    reader: HeadReader,
    batches: Iterator[tuple[Tensor, object]],
    count: int,  # Images in all, for the progress bar.
) -> tuple[np.ndarray, np.ndarray, list]:
    """w [N,num_ws,w_dim], the attributes' logits [N,A], and the names or indices that came with the images."""
    latents, logits, names = [], [], []
    with tqdm(total=count, unit="image", desc="inverting") as bar:
        for images, which in batches:
            images = images.to(encoder.device)
            latents.append(encoder(images).float().cpu().numpy())
            logits.append(reader(images).logits.float().cpu().numpy())
            names.extend(which)
            bar.update(len(images))
    return np.concatenate(latents), np.concatenate(logits), names


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="pipeline folder; its encoder/ is used")
    parser.add_argument("--reader", required=True, help="folder made by `python -m train.attributes` (OUT/reader)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="folder made by `python -m train.heads render`")
    source.add_argument("--crops", help="folder of face crops, as `python -m preim3d edit` writes them")
    parser.add_argument("--out", required=True, help="the .npz to write")
    parser.add_argument("--heads", type=int, default=6000, help="synthetic heads to invert, from the first on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    encoder = PortraitEncoder.from_pretrained(Path(args.weights) / "encoder").float().to(args.device).eval()
    reader = HeadReader.from_pretrained(args.reader).float().to(args.device).eval()

    if args.data:
        dataset = HeadsDataset(args.data)
        heads = dataset.ready[: args.heads]
        w, logits, heads = invert(
            encoder, reader, head_photos(dataset, heads, args.seed, encoder.config.input_size), len(heads)
        )
        known = {"heads": np.array(heads), "labels": np.asarray(dataset.attributes[heads])}
    else:
        count = len(list(Path(args.crops).iterdir()))
        w, logits, names = invert(encoder, reader, crop_images(Path(args.crops), encoder.config.input_size), count)
        known = {"names": np.array(names)}
    partial = Path(args.out).with_suffix(".part.npz")
    np.savez(partial, w=w, logits=logits, attribute_names=np.array(reader.config.attribute_names), **known)
    os.replace(partial, args.out)


if __name__ == "__main__":
    main()

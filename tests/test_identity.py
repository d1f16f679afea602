"""dlib's face network: the square it reads, its distances on real people where their photos are at hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from preim3d.identity import CHIP_PX, FaceIdentity, cut_chips


REAL = Path(__file__).parents[2] / "shared" / "real"


def test_chip_is_the_square_of_the_crop():
    # A ramp over the crop, read back at the square's ends.
    side = 256
    ramp = (torch.arange(side) + 0.5) / side * 2 - 1
    crop = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)])[None]
    chip = cut_chips(crop)[0] / 127.5 - 1
    assert chip.shape == (3, CHIP_PX, CHIP_PX)
    pixel = 0.727 / CHIP_PX
    assert np.isclose(chip[0, 75, 0], -0.727 + pixel, atol=2e-3) and np.isclose(
        chip[0, 75, -1], 0.727 - pixel, atol=2e-3
    )
    assert np.isclose(chip[1, 0, 75], -0.727 + pixel + 0.05, atol=2e-3)


def test_small_crops_and_gradients():
    network = FaceIdentity(stem_width=4, stages=((4, False), (8, True)), embedding_size=6)
    crop = torch.rand(2, 3, 64, 64, requires_grad=True)
    embedding = network(crop)
    assert embedding.shape == (2, 6)
    embedding.square().sum().backward()
    assert crop.grad.abs().sum() > 0


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photos (../shared/real) are not here")
def test_same_people_are_nearer_than_strangers():
    from safetensors.torch import load_file

    from train.photos.real_photos import RealPhotos
    from train.publishing.identity_weights import from_dlib

    photos = RealPhotos(REAL / "photos")
    network = from_dlib(load_file(REAL / "judges" / "dlib_face.safetensors"))
    row_of = {name: row for row, name in enumerate(photos.names)}
    people = [name[-6:-3] for name in photos.names if name.startswith("stim_smiling_front")]
    people = [person for person in people if f"stim_neutral_front/{person}_03" in row_of][:20]
    neutral = photos.crops(np.array([row_of[f"stim_neutral_front/{person}_03"] for person in people]))
    smiling = photos.crops(np.array([row_of[f"stim_smiling_front/{person}_08"] for person in people]))
    with torch.no_grad():
        distances = torch.cdist(network(neutral), network(smiling))
    strangers = distances[~torch.eye(len(people), dtype=torch.bool)]
    assert distances.diagonal().mean() < 0.35 and strangers.mean() > 0.7

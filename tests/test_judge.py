"""Distances in words; the real network's where the real photos are at hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_identity
from PIL import Image

from preim3d.identity import FaceIdentity
from preim3d.judge import KEPT, LIKENESS, NEAREST_STRANGER, UNLIKE, IdentityJudge, as_crop, in_steps


REAL = Path(__file__).parents[2] / "shared" / "real"


@pytest.fixture
def judge(tmp_path) -> IdentityJudge:
    tiny_identity().half().save_pretrained(tmp_path)
    return IdentityJudge(tmp_path)


def noise(side: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def test_words_come_in_order_and_their_limits_belong_to_the_nearer():
    assert in_steps(0.0, LIKENESS, UNLIKE) == in_steps(0.35, LIKENESS, UNLIKE) == "unmistakably the same person"
    assert in_steps(0.4, LIKENESS, UNLIKE) == "clearly alike"
    assert in_steps(NEAREST_STRANGER, LIKENESS, UNLIKE) == "alike"
    assert in_steps(0.56, LIKENESS, UNLIKE) == "a resemblance at most"
    assert [limit for limit, _ in LIKENESS] == sorted(limit for limit, _ in KEPT)


def test_half_precision_on_the_disk_is_float32_in_memory(judge):
    assert {parameter.dtype for parameter in judge.network.parameters()} == {torch.float32}


def test_a_picture_is_no_distance_from_itself_whatever_its_size(judge):
    assert judge.distance(noise(512), noise(512)) == 0
    assert judge.distance(noise(512), noise(256)) < 0.2 * judge.distance(noise(256), noise(256, seed=1))
    assert as_crop(noise(512)).shape == (1, 3, 256, 256) and as_crop(noise(32)).shape == (1, 3, 32, 32)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photos (../shared/real) are not here")
def test_two_photos_of_one_person_are_unmistakable_and_strangers_are_not(tmp_path):
    from safetensors.torch import load_file

    from train.photos.real_photos import RealPhotos
    from train.publishing.identity_weights import from_dlib

    from_dlib(load_file(REAL / "judges" / "dlib_face.safetensors")).half().save_pretrained(tmp_path)
    judge = IdentityJudge(tmp_path)
    assert isinstance(judge.network, FaceIdentity)
    photos = RealPhotos(REAL / "photos")
    row_of = {name: row for row, name in enumerate(photos.names)}
    people = [name[-6:-3] for name in photos.names if name.startswith("stim_smiling_front")]
    people = [person for person in people if f"stim_neutral_front/{person}_03" in row_of][:6]
    pairs = [(row_of[f"stim_neutral_front/{p}_03"], row_of[f"stim_smiling_front/{p}_08"]) for p in people]
    crops = [[Image.fromarray(pixels[..., :3]) for pixels in photos.pixels(np.array(pair))] for pair in pairs]
    own = [judge.likeness(*pair) for pair in crops]
    others = [judge.likeness(a[0], b[1]) for a, b in zip(crops, crops[1:])]
    assert sum(likeness.words == "unmistakably the same person" for likeness in own) >= 5
    assert all(likeness.words == UNLIKE for likeness in others)

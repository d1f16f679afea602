"""Cats (paper, section F): a published generator of theirs, an encoder, the inversion manifold, its principal
components, and a photo edited by these; weights of cats do not look for people's faces."""

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from command_line import run
from PIL import Image
from published import write_network_pickle
from safetensors.torch import save_file

from preim3d.__main__ import main
from preim3d.align import TAKEN_WHOLE, whole_crop
from preim3d.camera import camera_from_angles
from preim3d.efficientnet import EfficientNetLite0
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.page.answers import Answers
from preim3d.page.gpu import Gpu
from preim3d.page.verdict import Verdict
from preim3d.page.visitor import Visitor
from preim3d.pipeline import Preim3DPipeline
from preim3d.weights import BUNDLED
from train.editing import directions, manifold
from train.inversion import encoder
from train.inversion.features import FeatureNetwork


pytestmark = pytest.mark.skipif(not (BUNDLED / "landmarks").is_dir(), reason="weights/faces/landmarks is not there")

PIVOT = (0.0, 0.0, -0.06)  # that the cameras of EG3D's cats look at
PHOTOS, SIDE = 4, 40


def cat_generator() -> TriPlaneGenerator:
    torch.manual_seed(0)
    generator = TriPlaneGenerator(
        z_dim=16, w_dim=24, plane_resolution=32, channel_base=512, channel_max=32, decoder_hidden=16,
        image_resolution=32, ray_resolution=16, superresolution_input=16, coarse_samples=6, fine_samples=6,
        pivot=PIVOT, superresolution_blocks=({"in": 32, "out": 8, "up": False}, {"in": 8, "out": 8, "up": True}),
    )  # fmt: skip
    with torch.no_grad():
        generator.decoder.net[2].weight[0] *= 300  # so that somewhere is something, and somewhere nothing
    return generator.eval()


@pytest.fixture(scope="module")
def cat(tmp_path_factory) -> Path:
    """A free photo of a cat, wider than high, in which no person's face is."""
    path = tmp_path_factory.mktemp("cat") / "chelsea.png"
    Image.fromarray(skimage.data.chelsea()).save(path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Of cats, as train/README.md makes them: converted, then an encoder and directions learned."""
    folder = tmp_path_factory.mktemp("cats")
    out, photos = folder / "weights", folder / "photos"
    pickle = write_network_pickle(folder / "afhqcats.pkl", cat_generator())
    assert main(["convert", "--eg3d", str(pickle), "--out", str(out)]) == 0

    photos.mkdir()
    rng, labels = np.random.default_rng(0), []
    whole = Image.fromarray(skimage.data.chelsea())
    for number in range(PHOTOS):
        left, top = rng.integers(0, 60, 2)
        whole.crop((left, top, left + 240, top + 240)).resize((SIDE, SIDE)).save(photos / f"{number}.png")
        labels.append([f"{number}.png", camera_from_angles(rng.uniform(-0.4, 0.4), 0.1, pivot=PIVOT).tolist()])
    (photos / "dataset.json").write_text(json.dumps({"labels": labels}))
    save_file(EfficientNetLite0().state_dict(), folder / "lite0.safetensors")
    torch.save(FeatureNetwork().half().state_dict(), folder / "resnet50.pth")
    PortraitEncoder(32, (1, 1, 1, 1), (16, 16, 16, 16), 2, 2, 8, 8, 24).save_pretrained(folder / "start")
    common = "--threads", 1, "--device", "cpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.inversion.features._SIDE", 32)  # pixels that the ResNet-50 sees, for speed
        status = run(
            encoder.main, "--data", photos, "--generator", out / "generator", "--similarity", folder / "resnet50.pth",
            "--lite0", folder / "lite0.safetensors", "--start", folder / "start", "--mirror", "--batch", 2,
            "--steps", 2, "--out", folder / "run", "--workers", 0, "--precision", "float32", "--sheets", 0, *common,
        )  # fmt: skip
    assert status == 0
    (folder / "run" / "encoder").rename(out / "encoder")
    latents = folder / "cats.npz"
    assert run(manifold.main, "--weights", out, "--data", photos, "--out", latents, *common) == 0
    assert "logits" not in np.load(latents)  # there is no classifier of cats
    words = "--method", "pca", "--components", 2, "--latents", latents, "--weights", out, "--out", out / "directions"
    assert run(directions.main, *words, *common) == 0
    return out


def test_a_photo_of_a_cat_is_edited(weights, cat, tmp_path, capsys):
    assert not (weights / "landmarks").exists() and "landmarks" not in (weights / "README.md").read_text()
    words = ["edit", str(cat), "--weights", str(weights), "--quality", "fast", "--out", str(tmp_path)]
    assert main([*words, "--set", "pca_1=2"]) == 0
    assert TAKEN_WHOLE in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert [result[name] for name in ("camera", "faces_found", "likeness")] == 3 * [None]
    crop, photo = Image.open(tmp_path / "crop.png"), Image.open(cat)
    assert crop.size == (512, 512) and crop.tobytes() == whole_crop(photo).tobytes()
    before, after = (np.asarray(Image.open(tmp_path / name)) for name in ("grid.png", "edited_grid.png"))
    assert np.abs(before.astype(int) - after).max() > 0
    # What needs to see a person's face says so.
    assert main([*words, "--inversion", "hybrid"]) == 1
    assert "no landmark network" in capsys.readouterr().err
    assert main([*words, "--face", "2"]) == 1
    assert "These weights find no faces, so there is no `face` 2" in capsys.readouterr().err


def test_the_middle_square_is_the_crop():
    pixels = np.zeros((300, 500, 3), np.uint8)
    pixels[:, 100:400, 0] = 255
    crop = np.asarray(whole_crop(Image.fromarray(pixels)))
    assert crop.shape == (512, 512, 3) and (crop == [255, 0, 0]).all()


def test_the_page_takes_a_cat_and_judges_it_by_no_network_of_people(weights, cat, tmp_path, monkeypatch):
    monkeypatch.setattr("gradio.utils.get_upload_folder", lambda: str(tmp_path))
    pipeline = Preim3DPipeline.from_pretrained(weights)
    known = {"inversion": pipeline.directions}
    verdict = Verdict.of_weights(BUNDLED.parent / "reader", weights, pipeline.directions)
    answers = Answers(Gpu(pipeline), pipeline.aligner, known, verdict, [], "", None)
    (tmp_path / "cat.png").write_bytes(cat.read_bytes())
    told = answers.show_photo(Visitor(), str(tmp_path / "cat.png"), None)
    boxes = [next(told) for _ in range(3)]
    assert boxes[1]["status"] == TAKEN_WHOLE and not boxes[1]["picker"].visible
    visitor = boxes[2]["session"]
    assert boxes[2]["viewer"]["reconstruction"]["count"] == 1 and boxes[2]["verdict"] == ""
    assert visitor.crop.size == (512, 512) and visitor.w.shape == (8, 24)
    assert len(list(answers.improve(visitor, visitor.key))) == 1  # a warning, and no more

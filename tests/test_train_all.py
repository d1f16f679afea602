"""All stages of `python -m train`, one after the other, on a few heads of 32 pixels and for a few steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from packing import pack_faces
from PIL import Image
from safetensors.torch import save_file

from preim3d.directions import ATTRIBUTES, Directions
from preim3d.efficientnet import EfficientNetLite0
from preim3d.identity import FaceIdentity
from preim3d.pipeline import Preim3DPipeline
from train.editing import directions, manifold
from train.editing.boundaries import PrincipalAxes, fit_boundary
from train.heads import __main__ as heads
from train.judging import attributes, evaluate
from train.model import faces, sharpen
from train.photos import landmarks, packing, prepare
from train.publishing import bundle, showcase


ROOT = Path(__file__).resolve().parent.parent
MATERIAL = ROOT.parent / "shared" / "heads"
GENERATOR = {
    "w_dim": 16, "mapping_layers": 2, "c_dim": 0, "plane_resolution": 32, "plane_channels": 8,
    "channel_base": 256, "channel_max": 16,
    "mean_planes": True, "decoder_hidden": 16, "image_resolution": 32, "ray_resolution": 16,
    "superresolution_input": 16, "superresolution_blocks": [{"in": 8, "out": 8, "up": True}],
    "superresolution_clamp": None, "box_warp": 0.8, "ray_start": 2.28, "ray_end": 3.08, "coarse_samples": 6,
    "fine_samples": 6, "plane_axes": "fixed", "background": 0.82,
}  # fmt: skip
ENCODER = {
    "input_size": 32, "units": (1, 1, 1, 1), "depths": (16, 16, 16, 16), "stem_stride": 2, "pool": 2,
    "feature_dim": 16,
}  # fmt: skip
LANDMARKS = ROOT / "weights" / "faces" / "landmarks"  # two seconds of training find no face in a photo


def known_names(weights: Path) -> list[str]:
    """Whatever attributes chance gave to directions of so few steps."""
    return json.loads((weights / "directions" / "config.json").read_text())["names"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder in which every stage has run."""
    if not MATERIAL.is_dir():
        pytest.skip("the CC0 head data (../shared/heads) is not here")
    at = tmp_path_factory.mktemp("all")
    source, data, held_out, weights = at / "source.npz", at / "heads", at / "heldout", at / "weights"

    def stage(module, *words):
        assert run(module.main, *words) == 0, (module.__name__, words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faces, "GENERATOR", GENERATOR)
        patch.setattr(faces, "ENCODER", ENCODER)
        material = ("--mpfb", MATERIAL / "mpfb", "--assets", MATERIAL / "makehuman-assets")
        stage(heads, "build", *material, "--out", source)
        for folder, count, seed in ((data, 16, 1), (held_out, 12, 2)):
            stage(
                heads, "render", "--source", source, "--out", folder, "--heads", count, "--seed", seed, "--size", 32,
                "--processes", 1,
            )  # fmt: skip
        (at / "photos").mkdir()
        stage(heads, "portrait", "--source", source, "--out", at / "photos" / "portrait.png", "--size", 256)

        quick = ("--data", data, "--steps", 5, "--batch", 8, "--threads", 1)
        single = ("--precision", "float32")
        small = ("--size", 32, "--depths", 16, 16, 16, 16, "--units", 1, 1, 1, 1, "--embedding", 16)
        reader = at / "attributes" / "reader"
        for one_in in (1, 10**9):  # the portrait held out, and not
            stage(
                packing, at / "photos", "--out", at / "packed" / str(one_in), "--processes", 1,
                "--held-one-in", one_in,
            )  # fmt: skip
            (at / "packed" / str(one_in) / "00000.npz").rename(at / "packed" / f"{one_in}.npz")
        stage(
            landmarks, "--photos", at / "packed", "--data", data, "--out", at / "landmarks", "--steps", 2, "--batch", 4
        )
        # As many blocks as dlib's, of which some are compared.
        FaceIdentity(4, ((4, False),) * 11 + ((8, True),), 8).save_pretrained(at / "dlib")
        save_file(EfficientNetLite0().state_dict(), at / "lite0.safetensors")
        judges = ("--identity", at / "dlib", "--lite0", at / "lite0.safetensors", *single, "--threads", 1)
        stage(
            faces, "--photos", at / "packed", "--heads", data, *judges, "--out", at / "faces", "--steps", 5,
            "--batch", 2, "--head-batch", 2, "--rays", 24, "--points", 24, "--patches", 1,
        )  # fmt: skip
        stage(
            sharpen, "--weights", at / "faces", "--photos", at / "packed", *judges, "--out", at / "sharpen",
            "--count", 1, "--steps", 2, "--batch", 1,
        )  # fmt: skip
        parts = ("--generator", at / "sharpen" / "generator", "--encoder", at / "faces" / "encoder")
        stage(bundle, *parts, "--landmarks", LANDMARKS, "--out", weights)
        pack_faces(at / "people", 16)
        stage(
            attributes, *quick, *single, *small, "--photos", at / "people", "--weights", weights,
            "--reconstructions", 4, "--held-out", held_out, "--out", at / "attributes",
        )  # fmt: skip
        known = ("--weights", weights, "--reader", reader, "--threads", 1)
        lax = ("--heads", 2, "--costs", 1, "--least-accuracy", 0, "--least-auc", 0, "--least-altering", -99)
        stage(manifold, *known, "--data", data, "--out", at / "latents.npz")
        stage(directions, *known, "--latents", at / "latents.npz", "--out", at / "directions", *lax)
        stage(bundle, "--directions", at / "directions", "--out", weights)
        stage(manifold, *known, "--data", data, "--samples", 16, "--out", at / "origin.npz")
        stage(directions, *known, "--latents", at / "origin.npz", "--out", at / "origin", *lax)
        patch.setattr("preim3d.inversion.STEPS", {"hybrid": 2})
        stage(
            evaluate, *known, "--data", at / "people", "--lite0", at / "lite0.safetensors",
            "--identity", at / "dlib", "--mesh", at / "landmarks" / "networks" / "mesh", "--origin", at / "origin",
            "--fid-photos", 6, "--origin-photos", 4, "--edited", 2,
            "--sheets", at / "sheets", "--out", weights / "evaluation.json",
        )  # fmt: skip
        stage(bundle, "--out", weights)
        stage(
            showcase, "--weights", weights, "--out", at / "sheet.png", at / "photos" / "portrait.png",
            "--edits", f"{known_names(weights)[0]}=2",
        )  # fmt: skip
        stage(prepare, at / "photos", "--out", at / "posed", "--processes", 1)
    return at


def test_the_bundle_edits_a_picture(made):
    pipeline = Preim3DPipeline.from_pretrained(made / "weights")
    crop = Image.open(next((made / "posed").rglob("*.png")))
    name = pipeline.directions.names[0]
    head = pipeline(crop, {name: 2.0})
    assert len(head.views) == 9 and head.views[0].size == (32, 32)
    assert not np.array_equal(head.w, head.w_edit)


def test_what_was_learned_knows_where_it_comes_from(made):
    latents, origin = np.load(made / "latents.npz"), np.load(made / "origin.npz")
    assert latents["w"].shape == origin["w"].shape and latents["labels"].shape == (16, len(latents["attribute_names"]))
    spaces = [json.loads((made / name / "config.json").read_text()) for name in ("directions", "origin")]
    assert [config["space"] for config in spaces] == ["inversion", "origin"]
    assert spaces[0]["fingerprint"] == spaces[1]["fingerprint"]
    for config in spaces:
        assert len(config["names"]) == len(config["sigmas"]) == len(config["cosines"]) > 0
        assert set(config["names"]).isdisjoint(config["left_out"])


def test_the_card_shows_the_evaluation(made):
    figures = json.loads((made / "weights" / "evaluation.json").read_text())
    for name in ("identity_own", "identity_20_30", "person_psnr_db", "lpips_like", "apd_rad", "fid_la", "time_s"):
        assert np.isfinite(figures[name]), name
    assert figures["n"] == 4 and set(figures["spaces"]) <= {"age", "smile", "gender", "eyeglasses"} & set(
        figures["aa"]
    )
    card = (made / "weights" / "README.md").read_text()
    assert f"| {figures['identity_own']:.3f} |" in card and "4 photos of real people" in card
    assert (made / "sheets" / "edits.png").is_file() and (made / "sheet.png").is_file()


def test_other_weights_refuse_the_latents(made, tmp_path, capsys):
    words = ("--weights", made / "weights", "--reader", made / "attributes" / "reader", "--out", tmp_path / "out")
    for name, kind in (("latents.npz", "encoder"), ("origin.npz", "generator")):
        np.savez(tmp_path / name, **(dict(np.load(made / name)) | {"network": np.array("0" * 16)}))
        assert run(directions.main, *words, "--latents", tmp_path / name) == 1
        assert f"was made with another {kind}" in capsys.readouterr().err


def test_plain_directions_are_the_planes_own_normals(made, tmp_path):
    words = ("--weights", made / "weights", "--reader", made / "attributes" / "reader", "--threads", 1, "--plain")
    lax = ("--heads", 2, "--costs", 1, "--least-accuracy", 0, "--least-auc", 0, "--least-altering", -99)
    assert run(directions.main, *words, *lax, "--latents", made / "latents.npz", "--out", tmp_path / "plain") == 0
    latents, found = np.load(made / "latents.npz"), Directions.from_pretrained(tmp_path / "plain")
    names, axes = [str(name) for name in latents["attribute_names"]], PrincipalAxes(latents["w"].astype(np.float32))
    for name, vector in zip(found.names, found.vectors):
        attribute = ATTRIBUTES[name]
        column = names.index(attribute.celeba)
        score = latents["labels"][:, column] - 0.5 + 1e-3 * np.tanh(latents["logits"][:, column].astype(np.float32))
        normal = torch.from_numpy(attribute.sign * fit_boundary(axes, score, seed=0).normal).float()
        assert torch.cosine_similarity(vector.float().flatten(), normal.flatten(), dim=0) > 0.999, name


def test_unnamed_directions_need_no_classifier(made, tmp_path):
    words = ("--weights", made / "weights", "--latents", made / "latents.npz", "--components", 3)
    for method in ("pca", "sefa"):
        assert run(directions.main, *words, "--method", method, "--out", tmp_path / method) == 0
        config = json.loads((tmp_path / method / "config.json").read_text())
        assert config["names"] == [f"{method}_{i}" for i in (1, 2, 3)] and config["accuracies"] == [None] * 3
    assert torch.tensor(config["cosines"]).allclose(torch.eye(3), atol=2e-3)

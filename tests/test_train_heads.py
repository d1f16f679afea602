"""Synthetic portraits: the sampler's promises, the renderer's geometry, resumable data sets. Needs ../shared/heads."""

from pathlib import Path

import numpy as np
import pytest

from preim3d.camera import camera_from_angles
from train.heads import renderer
from train.heads.dataset import HeadsDataset, over_background, render_dataset
from train.heads.renderer import RenderedHead, project
from train.heads.sampler import FACTORS, Z_DIM, Light, person_attributes, person_features, sample_person


MATERIAL = Path(__file__).parents[2] / "shared" / "heads"
needs_material = pytest.mark.skipif(not MATERIAL.is_dir(), reason="the CC0 head data (../shared/heads) is not here")

SOFT_LIGHT = Light(
    np.array([0.12, 0.42, 0.9]), key=np.full(3, 0.62), ambient=np.full(3, 0.56), exposure=1.0, casts_shadow=False
)


@pytest.fixture(scope="module")
def source_path(tmp_path_factory):
    from train.heads.source import build_source

    path = tmp_path_factory.mktemp("heads") / "source.npz"
    build_source(MATERIAL / "mpfb", MATERIAL / "makehuman-assets", path)
    return path


@pytest.fixture(scope="module")
def builder(source_path):
    from train.heads.geometry import HeadBuilder
    from train.heads.source import HeadSource

    return HeadBuilder(HeadSource(source_path))


def z_of(seed: int, **factors) -> np.ndarray:
    """A z with some factors set by name (first entry of each)."""
    z = np.random.default_rng(seed).standard_normal(Z_DIM)
    start = 0
    for name, count in FACTORS.items():
        if name in factors:
            z[start] = factors[name]
        start += count
    return z


class TestSampler:
    def test_same_z_same_head(self):
        z = z_of(1)
        assert np.array_equal(person_features(sample_person(z)), person_features(sample_person(z.copy())))

    def test_near_z_near_features(self):
        # Smooth but for the kinds of hair and the things worn: a small step moves no feature far, for most heads.
        rng, jumps = np.random.default_rng(0), 0
        for _ in range(50):
            z = rng.standard_normal(Z_DIM)
            step = 1e-4 * rng.standard_normal(Z_DIM)
            jumps += np.abs(person_features(sample_person(z + step)) - person_features(sample_person(z))).max() > 0.02
        assert jumps <= 2

    def test_labels_follow_their_factors(self):
        def label(name, **factors):
            return np.mean([person_attributes(sample_person(z_of(seed, **factors)))[name] for seed in range(20)])

        assert label("Smiling", smile=2) > 0.9 > 0.1 > label("Smiling", smile=-2)
        assert label("Young", age=-1.5) > 0.9 > 0.1 > label("Young", age=1.8)
        assert label("Eyeglasses", glasses=1.5) == 1 and label("Eyeglasses", glasses=0) == 0
        assert label("Wearing_Hat", hat=2) == 1
        assert label("Mustache", sex=2, age=1) > label("Mustache", sex=-2, age=1)

    def test_every_label_occurs(self):
        rng = np.random.default_rng(3)
        labels = np.array(
            [list(person_attributes(sample_person(rng.standard_normal(Z_DIM))).values()) for _ in range(1500)]
        )
        names = list(person_attributes(sample_person(np.zeros(Z_DIM))))
        share = (labels > 0.5).mean(0)
        rare = [name for name, s in zip(names, share) if not 0.01 < s < 0.99]
        assert labels.min() >= 0 and labels.max() <= 1 and not rare, rare
        assert len(names) >= 40


@needs_material
class TestRenderer:
    def test_every_target_of_the_sampler_exists(self, builder):
        from train.heads.geometry import morph_weights

        for seed in range(20):
            for target in morph_weights(sample_person(z_of(seed))):
                assert target in builder.source, target

    def test_projection_is_the_generator_s_camera(self):
        # A point on the ray through a pixel's centre falls on that centre.
        from preim3d.camera import camera_rays

        camera = camera_from_angles(0.4, -0.2)
        origins, directions = camera_rays(camera[None], 8)
        points = (origins + 2.5 * directions)[0].numpy()
        pixels = project(points, camera.numpy(), 8)[:, :2]
        column, row = np.meshgrid(np.arange(8) + 0.5, np.arange(8) + 0.5)
        assert np.allclose(pixels, np.stack([column.ravel(), row.ravel()], 1), atol=1e-3)

    def test_points_lie_where_the_crop_has_them(self, builder):
        template = np.array([[187.7, 192.3], [324.0, 192.4], [256.7, 266.1], [200.7, 339.7], [310.5, 339.7]])
        camera = camera_from_angles(0.0, 0.0).numpy()
        points = [
            RenderedHead(sample_person(z_of(s, smile=-0.4, open=-1)), builder).points_px(camera, 512)
            for s in range(12)
        ]
        assert np.abs(np.mean(points, 0) - template).max() < 12  # of 512 px

    def test_depth_and_picture_agree_between_views(self, builder):
        head = RenderedHead(sample_person(z_of(5, hat=-1, glasses=-1)), builder)
        size, first, second = 128, camera_from_angles(0.0, 0.0), camera_from_angles(0.15, 0.1)
        rgba, depth = head.view(first.numpy(), size, head.person.light)
        _, other_depth = head.view(second.numpy(), size, head.person.light)
        assert 0.3 < (rgba[..., 3] > 0).mean() < 0.95
        assert np.array_equal(depth > 0, rgba[..., 3] > 0)
        from train.model.field_batches import Pinhole

        surface = Pinhole(first.numpy()).unproject(depth)[40:90, 40:90].reshape(-1, 3)
        seen = project(surface, second.numpy(), size)
        column, row = seen[:, 0].astype(int), seen[:, 1].astype(int)
        gap = 1 / seen[:, 2] - other_depth[row, column]
        assert np.median(np.abs(gap)) < 0.004  # the same surface, but for what one view hides from the other

    def test_the_inside_of_the_mouth_stays_behind_the_lips(self, builder, monkeypatch):
        monkeypatch.setattr(renderer, "MOUTH", (0, 1, 0))
        people, camera = np.random.default_rng(2).standard_normal((200, Z_DIM)), camera_from_angles(0, 0).numpy()
        for number in (19, 188, 196):  # broad smiles on narrow faces: their cheeks were pierced
            head = RenderedHead(sample_person(people[number].astype(np.float32)), builder)
            (left, top), (right, bottom) = head.points_px(camera, 256)[3:]
            rows = slice(int(min(top, bottom)) - 30, int(max(top, bottom)) + 30)
            red, green = head.view(camera, 256, SOFT_LIGHT)[0][rows, :, :2].astype(float).transpose(2, 0, 1)
            columns = np.nonzero(green > 1.2 * red)[1]
            assert len(columns) and left <= columns.min() and columns.max() <= right, number

    def test_own_light_changes_colour_not_shape(self, builder):
        person = sample_person(z_of(7))
        rendered, camera = RenderedHead(person, builder), camera_from_angles(0.2, 0.0).numpy()
        soft, own = rendered.view(camera, 64, SOFT_LIGHT), rendered.view(camera, 64, person.light)
        assert np.array_equal(soft[1], own[1]) and not np.array_equal(soft[0], own[0])


@needs_material
class TestDataset:
    def test_rendering_resumes(self, source_path, tmp_path):
        out = tmp_path / "set"
        assert render_dataset(source_path, out, heads=2, seed=4, size=32, processes=1) == 2
        data = HeadsDataset(out)
        before = data.images[0].copy()
        done = np.load(out / "done.npy", mmap_mode="r+")
        done[0] = 0  # as if killed while head 0 was being rendered
        done.flush()
        assert render_dataset(source_path, out, heads=2, seed=4, size=32, processes=1) == 1
        data = HeadsDataset(out)
        assert np.array_equal(data.images[0], before) and list(data.ready) == [0, 1]
        assert np.isfinite(data.features).all() and data.photo_points.shape == (2, 2, 5, 2)
        with pytest.raises(ValueError, match="holds 2 heads of seed 4"):
            render_dataset(source_path, out, heads=3, seed=4, size=32, processes=1)

    def test_transparent_is_grey(self):
        rgba = np.zeros((1, 1, 4), np.uint8)
        assert np.allclose(over_background(rgba), 0.82 * 2 - 1)


def test_missing_material_is_named(tmp_path, capsys):
    import sys

    from train.heads.__main__ import main

    argv, sys.argv = (
        sys.argv,
        ["heads", "build", "--mpfb", str(tmp_path), "--assets", str(tmp_path), "--out", str(tmp_path / "x.npz")],
    )
    try:
        assert main() == 1
    finally:
        sys.argv = argv
    assert "base.obj is missing" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()


def test_light_is_part_of_the_features():
    person = sample_person(z_of(3))
    features = person_features(person)
    assert np.allclose(features[-10:-7], person.light.direction) and features[-1] == person.light.exposure

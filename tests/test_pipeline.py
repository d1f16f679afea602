"""The whole chain on tiny networks: a crop in; latents, nine views and a mesh out."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from preim3d.camera import camera_from_angles
from preim3d.film import pictures
from preim3d.photo import PhotoError
from preim3d.pipeline import Preim3DPipeline, grid_sheet, view_precision


@pytest.fixture(scope="module")
def crop() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((512, 512))


def test_the_output_has_the_shapes_it_promises(pipeline, crop):
    output = pipeline(crop=crop, strengths={"smile": 2, "age": -1}, mesh=True)
    rows, width = pipeline.generator.num_ws, 24
    assert output.crop is crop and output.camera_deg is None and output.faces_found is None
    assert output.w.shape == output.w_edit.shape == (rows, width) and output.w.dtype == np.float32
    assert len(output.views) == len(output.edited_views) == 9
    assert {view.size for view in output.views} == {(32, 32)} and output.views[0].mode == "RGB"
    assert output.mesh.vertices.shape[1] == 3 and output.mesh.faces.max() < len(output.mesh.vertices)
    assert 0 <= output.mesh.colors.min() and output.mesh.colors.max() <= 1


def test_the_tuple_holds_the_same_fields(pipeline, crop):
    output, fields = pipeline(crop=crop), pipeline(crop=crop, return_dict=False)
    assert np.array_equal(output.w, fields[1]) and output.views == fields[3]


def test_strength_zero_changes_nothing_bit_for_bit(pipeline, crop):
    output = pipeline(crop=crop, strengths={"smile": 0, "hat": 0.0})
    assert output.w.tobytes() == output.w_edit.tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(output.views, output.edited_views))
    w = pipeline.encode(crop)
    assert torch.equal(pipeline.head(w, strengths={"smile": 0}).w, w)


def test_an_edit_moves_w_along_its_directions_and_back(pipeline, crop):
    w = pipeline.encode(crop)
    moved = pipeline.head(w, strengths={"smile": 2}).w
    assert torch.allclose(moved - w, 2 * pipeline.directions.vectors[0], atol=1e-5)
    assert torch.allclose(pipeline.head(moved, strengths={"smile": -2}).w, w, atol=1e-5)
    output = pipeline(crop=crop, strengths={"smile": 3})
    assert any(a.tobytes() != b.tobytes() for a, b in zip(output.views, output.edited_views))


def test_the_same_photo_gives_the_same_result(pipeline, crop):
    first, second = (pipeline(crop=crop, strengths={"age": 1}) for _ in range(2))
    assert first.w.tobytes() == second.w.tobytes() and first.edited_views == second.edited_views


def test_planes_are_computed_once_per_latent(pipeline, crop, monkeypatch):
    calls, planes = [], pipeline.generator.planes
    monkeypatch.setattr(pipeline.generator, "planes", lambda w: calls.append(1) or planes(w))
    pipeline(crop=crop, strengths={"smile": 1}, mesh=True)
    assert len(calls) == 2
    pipeline(crop=crop, strengths={"smile": 0}, mesh=True)
    assert len(calls) == 3


def test_a_view_is_what_the_generator_renders(pipeline, crop):
    head = pipeline.head(pipeline.encode(crop))
    camera = camera_from_angles(0.3, -0.1)[None]
    rendered = pipeline.generator.render(pipeline.generator.planes(head.w), camera, head.w).image
    assert pipeline.views(head, camera) == pictures(rendered)


def test_a_latent_as_array_gives_the_same_head(pipeline, crop):
    w = pipeline.encode(crop)
    assert torch.equal(pipeline.head(w[0].numpy()).planes, pipeline.head(w).planes)
    hats = (pipeline.head(latent, strengths={"hat": 1}) for latent in (w[0].numpy(), w))
    assert torch.equal(*(head.planes for head in hats))


def test_the_mesh_of_the_ball_is_a_ball(pipeline, crop):
    mesh = pipeline.mesh(pipeline.head(pipeline.encode(crop)), resolution=64)
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert 0.15 < radius.min() and radius.max() < 0.4
    outward = (mesh.normals * mesh.vertices).sum(1) / radius
    assert (outward > 0.5).mean() > 0.99


def test_a_textured_mesh_is_smaller_and_has_its_picture(pipeline, crop):
    mesh = pipeline(crop=crop, mesh=True, texture=True).mesh
    assert mesh.texture.shape == (1024, 1024, 3) and len(mesh.faces) <= 10_000
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert 0.15 < radius.min() and radius.max() < 0.4


def test_a_missing_package_is_told_before_the_work(pipeline, monkeypatch):
    monkeypatch.setitem(sys.modules, "xatlas", None)
    with pytest.raises(ValueError, match="run `pip install xatlas`, or leave the texture out"):
        pipeline("nowhere.jpg", mesh=True, texture=True)


def test_quality_is_the_number_of_samples(pipeline, crop):
    head, camera = pipeline.head(pipeline.encode(crop)), camera_from_angles(0.3, 0.1)[None]
    exact = np.asarray(pictures(pipeline.generator.render(head.planes, camera, head.w, 64, 64, 64).image)[0], float)
    errors = [
        np.abs(np.asarray(pipeline.views(head, camera, quality)[0], float) - exact).mean()
        for quality in ("best", "normal", "fast")
    ]
    assert errors == sorted(errors) and errors[0] < errors[2], errors


def test_the_sheet_has_nine_cells(pipeline, crop):
    sheet = grid_sheet(pipeline(crop=crop).views)
    assert sheet.width == sheet.height and sheet.width >= 3 * 32


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({}, "either a `photo` or a `crop`"),
        ({"photo": "a.jpg", "crop": Image.new("RGB", (8, 8))}, "either a `photo` or a `crop`"),
        ({"crop": "a.jpg"}, "`crop` must be a PIL image"),
        ({"photo": "a.jpg", "face": 0}, "`face` counts from 1, the largest face, so it cannot be 0"),
        ({"photo": "a.jpg", "face": 1.5}, "so it cannot be 1.5"),
        ({"photo": "a.jpg", "face": "left"}, "so it cannot be 'left'"),
        ({"crop": Image.new("RGB", (8, 8)), "texture": True}, "give `mesh=True`, too"),
        ({"crop": Image.new("RGB", (8, 8)), "quality": "good"}, "`quality` must be one of fast, normal, best"),
        ({"crop": Image.new("RGB", (8, 8)), "strengths": {"smiel": 1}}, "did you mean `smile`"),
        ({"crop": Image.new("RGB", (8, 8)), "strengths": {"smile": float("nan")}}, "strength of `smile`"),
    ],
)
def test_mistakes_are_told_before_the_work(pipeline, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        pipeline(**arguments)


def test_saving_and_loading_gives_the_same_pictures(pipeline, crop, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = Preim3DPipeline.from_pretrained(tmp_path)
    before, after = pipeline(crop=crop, strengths={"hat": 2}), again(crop=crop, strengths={"hat": 2})
    assert before.w.tobytes() == after.w.tobytes() and before.edited_views == after.edited_views


def test_half_precision_on_disk_becomes_float32_in_memory(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    for name in ("encoder", "generator", "directions"):
        again = type(getattr(pipeline, name)).from_pretrained(tmp_path / name)
        again.half().save_pretrained(tmp_path / name)
    loaded = Preim3DPipeline.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.generator.parameters()} == {torch.float32} == {loaded.directions.vectors.dtype}


def test_a_photo_becomes_a_head(pipeline, portrait):
    output = pipeline(portrait, {"smile": 1})
    assert output.crop.size == (512, 512) and len(output.edited_views) == 9
    assert output.faces_found == 1 and all(abs(angle) < 25 for angle in output.camera_deg)
    with pytest.raises(PhotoError, match="no face 7"):
        pipeline(portrait, face=7)


def test_without_a_landmark_network_a_photo_is_its_own_crop(pipeline, crop):
    bare = Preim3DPipeline(pipeline.encoder, pipeline.generator, pipeline.directions)
    of_crop, of_photo = bare(crop=crop), bare(crop)
    assert np.array_equal(of_crop.w, of_photo.w) and of_photo.faces_found is of_photo.camera_deg is None
    with pytest.raises(ValueError, match="find no faces, so there is no `face` 2"):
        bare(crop, face=2)


def test_only_large_pictures_are_rendered_in_bfloat16(pipeline, monkeypatch):
    assert not torch.is_autocast_enabled("cpu")
    with view_precision(pipeline.generator):
        assert not torch.is_autocast_enabled("cpu")
    monkeypatch.setattr("preim3d.device.LARGE_PICTURE", 32)
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able})
        with view_precision(pipeline.generator):
            assert torch.is_autocast_enabled("cpu") == able


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_makes_the_same_head(tiny_weights, pipeline, crop):
    there = Preim3DPipeline.from_pretrained(tiny_weights).to("cuda")
    ours, theirs = (one(crop=crop, strengths={"smile": 2}, mesh=True) for one in (pipeline, there))
    np.testing.assert_allclose(theirs.w_edit, ours.w_edit, atol=1e-3)
    for one, other in zip(ours.edited_views, theirs.edited_views):
        assert np.abs(np.asarray(one, float) - np.asarray(other, float)).mean() < 1
    assert abs(len(theirs.mesh.vertices) - len(ours.mesh.vertices)) < 0.02 * len(ours.mesh.vertices)


def test_planes_are_made_exactly_whatever_the_program_allows(pipeline, crop, monkeypatch):
    allowed = []
    planes = pipeline.generator.planes
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(
        pipeline.generator, "planes", lambda ws: allowed.append(torch.backends.cudnn.allow_tf32) or planes(ws)
    )
    pipeline.head(pipeline.encode(crop))
    assert allowed == [False] and torch.backends.cudnn.allow_tf32


def test_a_pipeline_is_placed_whole(pipeline):
    # Its networks are asked by other names than `forward`, at which diffusers would move them.
    with pytest.raises(ValueError, match="cannot be enabled"):
        pipeline.enable_model_cpu_offload(device="meta")

"""Published files in, a pipeline folder out: the same tensors, the right configuration, and nothing executed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import nearly_full_disk
from published import (
    PLANE_AXES,
    original_modules,
    write_encoder,
    write_module,
    write_network_pickle,
    write_with_cuda_tags,
)

from preim3d.__main__ import main
from preim3d.convert import DIRECTION, ENCODER, GENERATOR, ConvertError, convert, latent_average, plane_axes, recognise
from preim3d.directions import Directions
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.irse import IdentityNetwork
from preim3d.pickles import ALLOWED, Global, Record
from preim3d.pipeline import Preim3DPipeline
from preim3d.weights import BUNDLED, WeightsError, check_weights


pytestmark = pytest.mark.skipif(not (BUNDLED / "landmarks").is_dir(), reason="weights/faces/landmarks is not there")

SIZES = {
    "z_dim": 16, "plane_resolution": 32, "channel_base": 512, "channel_max": 32, "decoder_hidden": 16,
    "image_resolution": 32, "ray_resolution": 16, "superresolution_input": 16, "coarse_samples": 8, "fine_samples": 6,
    "superresolution_blocks": ({"in": 32, "out": 8, "up": False}, {"in": 8, "out": 8, "up": True}),
}  # fmt: skip
BODY = {"units": (1, 2, 1, 1), "depths": (16, 32, 48, 64)}


@pytest.fixture(scope="module")
def generator() -> TriPlaneGenerator:
    torch.manual_seed(1)
    return TriPlaneGenerator(**SIZES).eval()


@pytest.fixture(scope="module")
def encoder(generator) -> PortraitEncoder:
    return PortraitEncoder(num_ws=generator.num_ws, pool=4, feature_dim=24, **BODY).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory, generator, encoder):
    """Every format, by name."""
    folder = tmp_path_factory.mktemp("published")
    found = {
        "network pickle": write_network_pickle(folder / "ffhq.pkl", generator),
        "network pickle, protocol 3": write_network_pickle(folder / "ffhq3.pkl", generator, protocol=3),
        "module": write_module(folder / "G_ema.pkl", generator),
        "legacy module": write_module(folder / "legacy.pkl", generator, legacy=True),
        "encoder": write_encoder(folder / "encoder.pt", encoder, generator),
    }
    found["module with cuda tags"] = write_with_cuda_tags(folder / "cuda.pkl", found["module"])
    found["encoder with cuda tags"] = write_with_cuda_tags(folder / "encoder_cuda.pt", found["encoder"])
    identity = IdentityNetwork(**BODY)
    torch.save(identity.state_dict(), folder / "model_ir_se50.pth")
    found["identity"] = folder / "model_ir_se50.pth"
    directions = folder / "directions"
    directions.mkdir()
    for i, name in enumerate(("Smiling", "Young", "Wearing_Necktie")):
        direction = torch.from_numpy(np.random.RandomState(i).randn(1, generator.num_ws * 512)).float()
        torch.save(direction / direction.norm(), directions / f"{name}.pt")
    found["directions"] = directions
    return found


FORMATS = ("network pickle", "network pickle, protocol 3", "module", "legacy module", "module with cuda tags")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_generator(form, files, generator, tmp_path):
    assert recognise(files[form]).kind == GENERATOR
    convert([files[form]], tmp_path / "w")
    back, report = TriPlaneGenerator.from_pretrained(tmp_path / "w" / "generator", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, value in generator.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    for name in SIZES.keys() | {"plane_axes", "pivot", "superresolution_clamp", "box_warp", "c_scale", "c_dim"}:
        assert _plain(back.config[name]) == _plain(generator.config[name]), name
    assert not any(tensor.is_meta for tensor in back.state_dict().values())


def _plain(value):
    return json.loads(json.dumps(value))


def test_axes_and_cats(tmp_path):
    for axes in PLANE_AXES:
        cats = TriPlaneGenerator(plane_axes=axes, pivot=(0.0, 0.0, -0.06), **SIZES)
        path = write_network_pickle(tmp_path / f"{axes}.pkl", cats)
        convert([path], tmp_path / axes)
        back = TriPlaneGenerator.from_pretrained(tmp_path / axes / "generator")
        assert back.config.plane_axes == axes and back.config.pivot[2] == -0.06


@pytest.mark.parametrize("form", ["encoder", "encoder with cuda tags"])
def test_the_encoder_comes_with_the_generators_latent_average(form, files, encoder, generator, tmp_path):
    assert recognise(files[form]).kind == ENCODER
    convert([files[form], files["module"]], tmp_path / "w")
    back = PortraitEncoder.from_pretrained(tmp_path / "w" / "encoder")
    for name, value in encoder.state_dict().items():
        if name != "latent_average":
            assert torch.equal(back.state_dict()[name], value), name
    expected = latent_average(generator, **back.config.latent_recipe)
    assert torch.allclose(back.latent_average, expected.expand_as(back.latent_average), atol=1e-6)
    assert back.latent_average.abs().max() > 0


def test_parts_that_come_one_by_one_make_the_same_folder(files, tmp_path):
    everything = [files["module"], files["encoder"], *sorted(files["directions"].iterdir())]
    convert(everything, tmp_path / "at once")
    for part in reversed(everything[:2]):
        said = convert([part], tmp_path / "in turn")
    assert "still needs: directions" in said[-1]
    assert "is complete" in convert(everything[2:], tmp_path / "in turn")[-1]
    for path in sorted((tmp_path / "at once").rglob("*.*")):
        other = tmp_path / "in turn" / path.relative_to(tmp_path / "at once")
        if path.name not in ("sources.json", "README.md"):  # these list the files in the order of their coming
            assert path.read_bytes() == other.read_bytes(), path


def test_a_converted_folder_knows_its_files_also_those_of_earlier_parts(files, tmp_path):
    convert([files["module"]], tmp_path / "w")
    convert([files["encoder"], *sorted(files["directions"].iterdir())], tmp_path / "w")
    check_weights(tmp_path / "w")
    path = next((tmp_path / "w" / "generator").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-100] ^= 64
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="generator/.* is damaged"):
        check_weights(tmp_path / "w")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(files, tmp_path):
    with (
        nearly_full_disk(),
        pytest.raises(OSError, match=r"w cannot be written \(.*File too large.*\): make room on its disk, or choose"),
    ):
        convert([files["module"]], tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


def test_the_whole_folder_is_a_pipeline(files, encoder, tmp_path, capsys):
    out = tmp_path / "w"
    words = ["--eg3d", files["network pickle"], "--encoder", files["encoder"], "--identity", files["identity"]]
    assert main(["convert", *map(str, words), "--directions", str(files["directions"]), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "ffhq.pkl: a generator" in printed and "model_ir_se50.pth: an identity network" in printed
    check_weights(out)
    pipeline = Preim3DPipeline.from_pretrained(out)
    assert pipeline.directions.names == ["smile", "age", "wearing_necktie"]
    assert list(pipeline.directions.config.labels) == ["Smiling", "Age (less Young)", "Wearing Necktie"]
    young = torch.load(files["directions"] / "Young.pt").view(pipeline.directions.vectors.shape[1:])
    assert torch.equal(pipeline.directions.offset({"age": 2.0}), -2 * young)
    w = np.zeros((pipeline.generator.num_ws, 512), np.float32)
    assert len(pipeline.views(pipeline.head(w, strengths={"smile": 1.0}))) == 9
    card = (out / "README.md").read_text()
    assert "NVIDIA Source Code License" in card and json.loads((out / "sources.json").read_text())[0]["sha256"] in card
    assert main(["info", "--weights", str(out)]) == 0 and "wearing_necktie" in capsys.readouterr().out
    assert not list(tmp_path.glob(".preim3d-*"))


def test_reading_never_imports_the_original_classes(files):
    with original_modules():
        pass  # gone again: a loader that imports would fail here
    recognise(files["network pickle"])


def test_a_file_of_another_kind_is_named(tmp_path):
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(ConvertError, match="other.pt holds none of the four"):
        recognise(tmp_path / "other.pt")
    with pytest.raises(ConvertError, match="There is no file"):
        recognise(tmp_path / "absent.pt")
    np.save(tmp_path / "Smiling.npy", np.ones((1, 7168), np.float32))
    assert recognise(tmp_path / "Smiling.npy").kind == DIRECTION


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_array_is_named(tmp_path, content):
    path = tmp_path / "direction.npy"
    path.write_bytes(content)
    with pytest.raises(ConvertError, match="direction.npy is damaged"):
        recognise(path)


def test_a_missing_or_misshapen_tensor_is_named_and_nothing_is_written(files, tmp_path):
    checkpoint = torch.load(files["encoder"])
    state = checkpoint["state_dict"]
    weight = state.pop("encoder.body.0.res_layer.0.weight")
    torch.save(checkpoint, tmp_path / "lacks.pt")
    with pytest.raises(ConvertError, match="lacks the tensor `body.0.res_layer.0.weight`"):
        convert([tmp_path / "lacks.pt"], tmp_path / "w")
    state["encoder.body.0.res_layer.0.weight"] = weight[:-1]
    torch.save(checkpoint, tmp_path / "short.pt")
    with pytest.raises(ConvertError, match=r"is float32 of shape \[15\]; float32 of shape \[16\] is needed"):
        convert([tmp_path / "short.pt"], tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_parts_that_do_not_belong_together_are_refused(files, generator, tmp_path):
    wrong = PortraitEncoder(num_ws=generator.num_ws + 2, pool=4, feature_dim=24, **BODY)
    path = write_encoder(tmp_path / "wrong.pt", wrong, generator)
    with pytest.raises(ConvertError, match="do not belong together"):
        convert([path, files["module"]], tmp_path / "w")
    with pytest.raises(ConvertError, match="Two files are a generator"):
        convert([files["module"], files["legacy module"]], tmp_path / "w")
    shutil.copy(files["directions"] / "Young.pt", tmp_path / "Young.pt")
    with pytest.raises(ConvertError, match="4096 numbers; a direction of this generator has 14 x 512"):
        convert([tmp_path / "Young.pt"], tmp_path / "w")
    assert Directions.from_pretrained(BUNDLED / "directions").names  # the bundled ones are untouched


def test_the_command_says_what_to_give(tmp_path, capsys):
    assert main(["convert", "--out", str(tmp_path / "w")]) == 1
    assert "at least one of --eg3d" in capsys.readouterr().err


GOLDENS = Path(__file__).resolve().parent.parent.parent / "shared" / "goldens"
with_goldens = pytest.mark.skipif(not GOLDENS.is_dir(), reason="the reference's goldens are not in ../shared")


@with_goldens
def test_every_name_in_the_published_formats_is_known():
    formats = json.loads((GOLDENS / "official_pickle_globals.json").read_text())
    assert len(formats) >= 9
    for name, form in formats.items():
        for part in (form, form["nested"] or {"globals": ()}):
            for called in part["globals"]:
                assert Global(*called.split(" ")) in ALLOWED, (name, called)


@with_goldens
@pytest.mark.parametrize("name", ["eg3d_tiny", "eg3d_full", "eg3d_tiny_fixedaxes"])
def test_the_reference_s_plane_axes_are_recognised(name):
    with np.load(GOLDENS / f"{name}.npz") as file:
        found = plane_axes(Record("ImportanceRenderer", {"plane_axes": file["plane_axes"]}))
    assert found == ("fixed" if "fixed" in name else "eg3d")

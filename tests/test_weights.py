"""Where weights come from, and that each way of being missing or damaged is one sentence."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from preim3d import weights
from preim3d.generator import TriPlaneGenerator
from preim3d.pipeline import Preim3DPipeline, load_component
from preim3d.weights import TENSORS, WeightsError, check_weights, find_weights, identity_folder


@pytest.fixture
def folder(tiny_weights, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_weights, tmp_path / "weights"))


def test_order_is_explicit_then_environment_then_bundled(folder, tmp_path, monkeypatch):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    monkeypatch.setattr(weights, "BUNDLED", folder)
    monkeypatch.delenv("PREIM3D_WEIGHTS", raising=False)
    assert find_weights().folder == folder and "bundled" in find_weights().source
    monkeypatch.setenv("PREIM3D_WEIGHTS", str(other))
    assert find_weights().folder == other and "PREIM3D_WEIGHTS" in find_weights().source
    assert find_weights(folder).folder == folder and "as asked for" in find_weights(folder).source


def test_a_named_folder_that_is_absent_is_never_replaced_by_another(folder, monkeypatch):
    monkeypatch.setattr(weights, "BUNDLED", folder)
    monkeypatch.setenv("PREIM3D_WEIGHTS", str(folder / "absent"))
    with pytest.raises(WeightsError, match="no folder of weights at .*absent .from PREIM3D_WEIGHTS."):
        find_weights()
    with pytest.raises(WeightsError, match="model_index.json"):
        find_weights(folder / "encoder")


def test_whole_weights_pass(folder):
    check_weights(folder)


@pytest.mark.parametrize("name", ["model_index.json", "encoder/config.json", f"generator/{TENSORS}"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=Path(name).name):
        check_weights(folder)


@pytest.mark.parametrize("text", ["{", "[]", "", "\xff\xfe", '{"other": 1}'])
def test_bad_json_is_named(folder, text):
    (folder / "directions" / "config.json").write_text(text, "latin-1")
    with pytest.raises(WeightsError, match="directions/config.json is damaged"):
        check_weights(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_tensor_file_is_named(folder, keep):
    path = folder / "encoder" / TENSORS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="encoder/.* is damaged"):
        check_weights(folder)


def test_a_damaged_identity_network_is_named(folder):
    path = folder / "identity" / TENSORS
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="identity/.* is damaged"):
        check_weights(folder)


def test_the_judge_of_likeness_is_that_of_the_weights_else_the_bundled_one(folder, tmp_path, monkeypatch):
    bundled = tmp_path / "bundled"
    shutil.copytree(folder / "identity", bundled / "identity")
    monkeypatch.setattr(weights, "BUNDLED", bundled)
    assert identity_folder(folder) == folder / "identity"
    # Converted weights have another network of that name.
    (folder / "identity" / "config.json").write_text('{"_class_name": "IdentityNetwork"}')
    assert identity_folder(folder) == bundled / "identity"
    shutil.rmtree(folder / "identity")
    assert identity_folder(folder) == bundled / "identity"
    shutil.rmtree(bundled)
    assert identity_folder(folder) is None


def test_weights_in_several_files_load_and_each_is_checked(folder):
    pipeline = Preim3DPipeline.from_pretrained(folder)
    (folder / "generator" / TENSORS).unlink()
    pipeline.generator.save_pretrained(folder / "generator", max_shard_size="40KB")
    shards = sorted((folder / "generator").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    Preim3DPipeline.from_pretrained(folder)
    shards[-1].unlink()
    with pytest.raises(WeightsError, match=f"{shards[-1].name} cannot be read"):
        check_weights(folder)


def test_another_kind_of_pipeline_is_named(folder):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(WeightsError, match="holds a StableDiffusionPipeline, not a Preim3DPipeline"):
        check_weights(folder)


def test_a_missing_and_an_unknown_tensor_are_named(folder):
    """diffusers would leave a missing one on the meta device, and drop an unknown one, without a word."""
    path = folder / "generator" / TENSORS
    tensors = load_file(path)
    first = sorted(tensors)[0]
    save_file({**tensors, "stranger": tensors[first].clone()}, path)
    with pytest.raises(WeightsError, match="have an unknown tensor `stranger`"):
        Preim3DPipeline.from_pretrained(folder)
    del tensors[first]
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=f"lack the tensor `{first}`"):
        Preim3DPipeline.from_pretrained(folder)


def test_a_tensor_of_another_shape_is_one_sentence(folder):
    path = folder / "directions" / TENSORS
    save_file({"vectors": load_file(path)["vectors"][:3].clone()}, path)
    with pytest.raises(WeightsError, match="directions do not fit this version") as error:
        Preim3DPipeline.from_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["encoder", "generator", "directions", "identity", "landmarks/mesh"])
def test_a_changed_byte_is_told_of_the_right_file(folder, name):
    """In the middle of the numbers, where no header tells of it, and the directions alone would not fit."""
    path = folder / name / TENSORS
    if not path.is_file():
        pytest.skip("weights/faces/landmarks is not there")
    files = sorted(folder.rglob("*.safetensors"))
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder)}" for file in files]
    (folder / "README.md").write_text("# A card\n\n```\n" + "\n".join(lines) + "\n```\n")
    Preim3DPipeline.from_pretrained(folder)
    content = bytearray(path.read_bytes())
    content[-100] ^= 64
    path.write_bytes(content)
    for load in (check_weights, Preim3DPipeline.from_pretrained):
        with pytest.raises(WeightsError, match=f"{name}/.* is damaged"):
            load(folder)


def test_the_bundled_files_are_those_of_their_card():
    if not (weights.BUNDLED / "README.md").is_file():
        pytest.skip("weights/faces is not there")
    listed = weights.CHECKSUM.findall((weights.BUNDLED / "README.md").read_text("utf-8"))
    files = {str(path.relative_to(weights.BUNDLED)) for path in weights.BUNDLED.rglob("*.safetensors")}
    assert {name for _, name in listed} == files
    check_weights(weights.BUNDLED)


def test_networks_are_in_float32_and_no_other_type_is_offered(folder):
    with pytest.raises(ValueError, match="does not take `dtype`: .* in float32"):
        Preim3DPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    pipeline = Preim3DPipeline.from_pretrained(folder)
    again = Preim3DPipeline.from_pretrained(folder, encoder=pipeline.encoder)
    assert again.encoder is pipeline.encoder and again.generator.dtype == torch.float32


def test_directions_of_another_pair_are_refused(folder):
    path = folder / "encoder" / TENSORS
    tensors = load_file(path)
    tensors["latent_average"] = tensors["latent_average"] + 1
    save_file(tensors, path)
    with pytest.raises(
        WeightsError, match="learned with another encoder or generator, or one of the three is damaged"
    ):
        Preim3DPipeline.from_pretrained(folder)


def test_a_pickle_is_never_taken_in_place_of_safetensors(folder):
    generator = folder / "generator"
    tensors = load_file(generator / TENSORS)
    (generator / TENSORS).unlink()
    torch.save(tensors, generator / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError):
        load_component(TriPlaneGenerator, generator, torch.float32)


# ----------------------------------------------------------------------------
# The Hub: a small server of our own stands in for it.

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A Hub with one repository, someone/heads; gives the list of what it was asked for."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    import huggingface_hub.constants as constants

    (folder / "unwanted.pkl").write_bytes(b"no")
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            path = self.path.partition("?")[0]
            api = path.removeprefix("/api/models/")
            files = [p for p in folder.rglob("*") if p.is_file()]
            if api in (f"someone/heads/revision/{name}" for name in ("main", COMMIT)):
                names = [{"rfilename": str(p.relative_to(folder))} for p in files]
                self.answer(200, json.dumps({"id": "someone/heads", "sha": COMMIT, "siblings": names}).encode())
            elif api == f"someone/heads/tree/{COMMIT}":
                tree = [
                    {"type": "file", "path": str(p.relative_to(folder)), "size": p.stat().st_size, "oid": "0" * 40}
                    for p in files
                ]
                self.answer(200, json.dumps(tree).encode())
            elif path.startswith(f"/someone/heads/resolve/{COMMIT}/"):
                content = (folder / path.partition(COMMIT + "/")[2]).read_bytes()
                self.answer(200, content)
            elif api.startswith("someone/heads/revision/"):
                self.answer(404, b"", "RevisionNotFound")
            else:
                self.answer(401, b"", "RepoNotFound")

        do_HEAD = do_GET

        def answer(self, status, content, error=None):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hash(content) & 2**40 - 1:040x}"')
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield asked
    server.shutdown()


def test_a_repository_of_the_hub_is_downloaded_once_then_works_offline(hub, folder, monkeypatch):
    import huggingface_hub.constants as constants

    found = find_weights("someone/heads")
    assert f"someone/heads of the Hub at {COMMIT[:12]}" in found.source
    assert (found.folder / "generator" / TENSORS).read_bytes() == (folder / "generator" / TENSORS).read_bytes()
    assert not (found.folder / "unwanted.pkl").exists()  # a pickle is not even fetched
    Preim3DPipeline.from_pretrained("someone/heads")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub)
    monkeypatch.setenv("PREIM3D_WEIGHTS", f"someone/heads@{COMMIT}")
    assert find_weights().folder == found.folder and len(hub) == before
    with pytest.raises(WeightsError, match="not in the cache and the Hub cannot be reached"):
        find_weights("someone/other")


def test_what_the_hub_does_not_have_is_one_sentence(hub):
    with pytest.raises(WeightsError, match="neither a folder nobody/nothing .* nor such a repository"):
        find_weights("nobody/nothing")
    with pytest.raises(WeightsError, match="no revision `v9`"):
        find_weights("someone/heads@v9")


def test_a_folder_comes_before_the_hub(hub, folder, monkeypatch):
    (folder.parent / "someone").mkdir()
    shutil.copytree(folder, folder.parent / "someone" / "heads")
    monkeypatch.chdir(folder.parent)
    assert "of the Hub" not in find_weights("someone/heads").source and not hub

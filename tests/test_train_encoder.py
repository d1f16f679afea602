"""train.encoder from the command line, on a few tiny photos: its variants, and what happens to a run that is killed,
that meets a number that is none, a full disk or a broken photo, or that is shared by two processes."""

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import socket
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ball_generator
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn

from preim3d.camera import camera_from_angles
from preim3d.efficientnet import EfficientNetLite0
from preim3d.encoder import PortraitEncoder
from preim3d.identity import FaceIdentity
from train.inversion import encoder
from train.inversion.features import FeatureNetwork
from train.loop import workers


# A clean process that has imported everything; children forked from it start at once and share no threads with us.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
PHOTOS, SIDE = 6, 40


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A generator, judging networks, and photos in EG3D's layout: `photos`, and `photos.zip`."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    ball_generator().save_pretrained(folder / "generator")
    FaceIdentity(4, ((4, False), (8, True)), 8).save_pretrained(folder / "identity")
    generator = ball_generator()
    start = PortraitEncoder(32, (1, 1, 1, 1), (16, 16, 16, 16), 2, 2, 8, generator.num_ws, 24)
    start.latent_average.copy_(generator.latent_average().expand_as(start.latent_average))
    start.save_pretrained(folder / "start")
    save_file(EfficientNetLite0().state_dict(), folder / "lite0.safetensors")
    rng, labels = np.random.default_rng(0), []
    (folder / "photos" / "00000").mkdir(parents=True)
    for i in range(PHOTOS):
        name = f"00000/{i}.png"
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / "photos" / name)
        labels.append([name, camera_from_angles(rng.uniform(-0.4, 0.4), rng.uniform(-0.2, 0.2)).tolist()])
    (folder / "photos" / "dataset.json").write_text(json.dumps({"labels": labels}))
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for path in sorted((folder / "photos").rglob("*.*")):
            archive.write(path, path.relative_to(folder / "photos"))
    return folder


def words(inputs: Path, out: Path, *more, data="photos", steps=4) -> list[str]:
    """Short, but past the start of every schedule: step 1 stands for step 100,000."""
    return [str(word) for word in (
        "--data", inputs / data, "--generator", inputs / "generator", "--out", out, "--identity", inputs / "identity",
        "--lite0", inputs / "lite0.safetensors", "--start", inputs / "start",
        "--batch", 2, "--steps", steps, "--schedule-scale", 1e-5, "--workers", 0, "--threads", 1, "--device", "cpu",
        "--precision", "float32", "--save-steps", 2, *more,
    )]  # fmt: skip


def logged(out: Path) -> dict[tuple[str, int], set[float]]:
    """Every value that was ever logged, by term and step."""
    values = {}
    for path in sorted((out / "events").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.HasField("tensor") and value.tensor.float_val:
                    values.setdefault((value.tag, event.step), set()).add(value.tensor.float_val[0])
    return values


def weights(out: Path) -> bytes:
    return (out / "encoder" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_the_papers_rounds_alternate(inputs, tmp_path):
    assert encoder.main(words(inputs, tmp_path, "--mirror", data="photos.zip", steps=4)) == 0
    terms = {}
    for name, step in logged(tmp_path):
        terms.setdefault(step, set()).add(name)
    # Step 1 is out-domain: no L_w, for nobody knows the photos' w. The views around come in with the third step.
    assert terms[1] - {"gradient"} == {"l2", "lpips", "id"}
    assert terms[2] - {"gradient"} == {"l2_in", "lpips_in", "id_in", "w_in", "sur_in"}
    assert terms[3] - {"gradient"} == {"l2", "lpips", "id", "sur"}
    assert terms[4] - {"gradient", "sheet"} == terms[2] - {"gradient"}
    network = PortraitEncoder.from_pretrained(tmp_path / "encoder")
    average = ball_generator().latent_average()
    assert network.latent_average.shape[1] == len(average) and network.latent_average.abs().max() > 0
    sheet = Image.open(tmp_path / "sheets" / "0000004.png")
    assert sheet.size == (32 * 5, 32 * 4)  # five photos; input, its camera, two sides


def test_ablations_leave_out_what_they_name(inputs, tmp_path):
    options = "--without", "alternating", "surround"
    assert encoder.main(words(inputs, tmp_path, *options, data="photos.zip", steps=4)) == 0
    assert {name for name, _ in logged(tmp_path)} == {"l2", "lpips", "id", "gradient"}


def test_the_released_codes_variants(inputs, tmp_path):
    assert encoder.main(words(inputs, tmp_path, "--variant", "released", "--ema", 0.9, "--accumulate", 2)) == 0
    values = logged(tmp_path)
    assert ("adversary_in", 1) in values and ("adversary", 2) in values and ("discriminator", 4) in values
    parts = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["parts"]
    assert any("slow" in state for state in parts["optimizer"]["state"].values())
    saved = PortraitEncoder.from_pretrained(tmp_path / "encoder").state_dict()
    assert torch.equal(saved["linear.weight"], parts["average"]["linear.weight"])  # what is kept is the average
    assert not torch.equal(saved["linear.weight"], parts["encoder"]["linear.weight"])


def test_an_encoder_goes_on_from_another_ones_weights(inputs, tmp_path, capsys):
    assert encoder.main(words(inputs, tmp_path / "first", "--rate", 1e-3)) == 0
    first = PortraitEncoder.from_pretrained(tmp_path / "first" / "encoder").state_dict()
    start = ("--start", tmp_path / "first" / "encoder")
    assert encoder.main(words(inputs, tmp_path / "second", *start, "--rate", 1e-12, steps=1)) == 0
    second = PortraitEncoder.from_pretrained(tmp_path / "second" / "encoder").state_dict()
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first if name.endswith("weight"))
    PortraitEncoder(32, (1, 1, 1, 1), (16, 16, 16, 16), 2, 2, 8, 3, 5).save_pretrained(tmp_path / "other")
    assert encoder.main(words(inputs, tmp_path / "fourth", "--start", tmp_path / "other")) == 1
    assert "gives w of 3 x 5, but" in capsys.readouterr().err


def test_a_domain_without_faces_needs_no_network_of_ours(inputs, tmp_path):
    from test_train_networks import ALEXNET, torchvision_file

    torchvision_file(tmp_path / "alexnet.pth", ALEXNET)
    torch.save(FeatureNetwork().state_dict(), tmp_path / "resnet50.pth")
    more = ("--lpips", tmp_path / "alexnet.pth", "--similarity", tmp_path / "resnet50.pth", "--size", 64)
    arguments = words(inputs, tmp_path / "out", *more, steps=1)
    ours = ("--identity", str(inputs / "identity"), "--lite0", str(inputs / "lite0.safetensors"))
    ours += ("--start", str(inputs / "start"))
    arguments = [word for word in arguments if word not in ours]
    assert encoder.main(arguments) == 0
    assert {name for name, _ in logged(tmp_path / "out")} == {"l2", "lpips", "id", "gradient"}
    config = PortraitEncoder.from_config(PortraitEncoder.load_config(tmp_path / "out" / "encoder")).config
    assert config.input_size == 64 and tuple(config.units) == (3, 4, 14, 3)


def test_mistakes_are_one_sentence(inputs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert encoder.main(words(inputs, tmp_path, "--data", tmp_path / "empty")) == 1
    assert "has no dataset.json" in capsys.readouterr().err
    assert encoder.main(words(inputs, tmp_path, steps=2)) == 0
    assert encoder.main(words(inputs, tmp_path, "--latent-discriminator")) == 1
    assert "was made with other options" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        encoder.main(["--data", str(inputs / "photos"), "--generator", "g", "--out", "o", "--steps", "1"])
    assert "L_LPIPS needs --lpips" in capsys.readouterr().err


def test_a_photo_that_cannot_be_read_is_left_out(inputs, tmp_path, capsys):
    shutil.copytree(inputs / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "00000" / "3.png").write_bytes(b"no picture")
    more = ("--data", tmp_path / "photos")
    assert encoder.main(words(inputs, tmp_path / "out", *more, steps=8)) == 0
    assert "00000/3.png cannot be read" in capsys.readouterr().err


def test_a_number_that_is_none_ends_the_run_by_name(inputs, tmp_path, capsys):
    assert encoder.main(words(inputs, tmp_path, steps=2)) == 0
    # Weights that overflow: the next step must not be saved over the sound ones.
    assert encoder.main(words(inputs, tmp_path, "--rate", 1e30, steps=30)) == 1
    assert re.search("train.encoder: Step [345]: the loss term `[a-z0-9_ ]+` is (nan|inf)", capsys.readouterr().err)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == 2


def child(arguments: list[str], largest_file: int | None = None, rank: int | None = None, port: int = 0) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if rank is not None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(port)}  # fmt: skip
    os._exit(encoder.main(arguments))


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_as_if_it_had_not_been(inputs, tmp_path):
    def start(out):
        more = ("--ema", 0.9, "--latent-discriminator", "--optimizer", "ranger")
        process = CONTEXT.Process(target=child, args=(words(inputs, out, *more, steps=36),))
        process.start()
        return process

    process = start(tmp_path / "whole")
    process.join()
    assert process.exitcode == 0

    # It dies at any moment: soon after a checkpoint, within the next one, or while it starts.
    draws, path = random.Random(0), tmp_path / "killed" / "checkpoint.pt"
    for kills in range(10):
        process, saved, wanted = start(tmp_path / "killed"), 0, draws.randint(0, 1)
        before = path.stat().st_mtime_ns if path.exists() else 0
        while saved < wanted and process.is_alive():
            time.sleep(0.002)
            if path.exists() and path.stat().st_mtime_ns != before:
                before, saved = path.stat().st_mtime_ns, saved + 1
        process.join(draws.uniform(0, 0.05 if saved else 1.0))
        assert process.exitcode is None, f"The run ended (code {process.exitcode}) after {kills} kills."
        process.kill()
        process.join()
    process = start(tmp_path / "killed")
    process.join()
    assert process.exitcode == 0
    whole, killed = logged(tmp_path / "whole"), logged(tmp_path / "killed")
    assert all(len(values) == 1 for values in whole.values()) and ("l2", 35) in whole
    assert killed == whole  # every value of every piece, also of steps that were taken twice
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_full_disk_is_reported_and_what_was_saved_stays(inputs, tmp_path, capfd):
    out = tmp_path / "out"
    assert encoder.main(words(inputs, out, steps=2)) == 0
    before = weights(out), (out / "checkpoint.pt").read_bytes()
    process = CONTEXT.Process(target=child, args=(words(inputs, out, steps=6), 20_000))
    process.start()
    process.join()
    assert process.exitcode == 1  # the last save failed, too
    assert (weights(out), (out / "checkpoint.pt").read_bytes()) == before
    assert encoder.main(words(inputs, out, steps=6)) == 0  # room again
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 6


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tiny_encoder() -> nn.Module:
    torch.manual_seed(0)
    return PortraitEncoder(32, (1, 1, 1, 1), (16, 16, 16, 16), pool=2, feature_dim=8, num_ws=2, w_dim=4).double()


def gradients(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    network.train()(images).square().mean().backward()
    return {name: p.grad for name, p in network.named_parameters()}


def half_of_the_batch(rank: int, port: int, images: torch.Tensor, path: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    torch.set_num_threads(1)
    workers.join("cpu")
    network = tiny_encoder()
    if rank:
        network.linear.bias.data += 1  # which `same_start` undoes
    workers.same_start(network)
    workers.share_statistics(network)
    gradients(network, images.chunk(2)[rank])
    workers.average_gradients(network)
    if rank:
        found = {name: p.grad for name, p in network.named_parameters()}
        torch.save({"gradients": found, "state": network.state_dict()}, path)


def test_two_processes_give_the_gradients_of_one_with_twice_the_batch(tmp_path):
    images, port = torch.rand(6, 3, 32, 32, dtype=torch.float64) * 2 - 1, free_port()
    arguments = [(rank, port, images, tmp_path / "found.pt") for rank in (0, 1)]
    processes = [CONTEXT.Process(target=half_of_the_batch, args=given) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    network = tiny_encoder()
    expected, found = gradients(network, images), torch.load(tmp_path / "found.pt", weights_only=True)
    # Batch statistics are computed in float32, whence 1e-5.
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found["gradients"][name] - gradient).abs().max() < 1e-5 * largest, name
    for name, value in network.state_dict().items():  # running statistics
        torch.testing.assert_close(found["state"][name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_train_one_encoder(inputs, tmp_path):
    for steps in (2, 4):  # the second time from the checkpoint
        port = free_port()
        arguments = words(inputs, tmp_path, steps=steps)
        processes = [CONTEXT.Process(target=child, args=(arguments, None, rank, port)) for rank in (0, 1)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4
    assert len(list((tmp_path / "events").iterdir())) == 2  # one process writes

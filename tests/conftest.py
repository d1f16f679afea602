"""A whole pipeline of tiny networks, and a photo, for the tests of what is built of several rooms."""

import contextlib
import os
import resource
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # app.py and train/ are not installed
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two files are tested at a time, see pyproject.toml
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would ask the Hub fails at once

pytest.register_assert_rewrite("browsing", "running")  # so that a failure in them shows what was compared

import torch  # noqa: E402
from browsing import chromium, visiting  # noqa: E402
from running import running_page  # noqa: E402

from preim3d.directions import Directions, fingerprint  # noqa: E402
from preim3d.encoder import PortraitEncoder  # noqa: E402
from preim3d.generator import TriPlaneGenerator  # noqa: E402
from preim3d.identity import FaceIdentity  # noqa: E402
from preim3d.pipeline import Preim3DPipeline  # noqa: E402


LANDMARKS = ROOT / "weights" / "faces" / "landmarks"


def ball_generator() -> TriPlaneGenerator:
    """A tiny generator whose heads are coloured balls of radius .25, tinted by w."""
    generator = TriPlaneGenerator(
        z_dim=16,
        c_dim=0,
        w_dim=24,
        plane_resolution=32,
        plane_channels=8,
        channel_base=256,
        channel_max=16,
        mean_planes=True,
        decoder_hidden=16,
        image_resolution=32,
        ray_resolution=16,
        superresolution_input=16,
        superresolution_blocks=({"in": 8, "out": 8, "up": True},),
        coarse_samples=12,
        fine_samples=12,
        background=0.85,
    )
    with torch.no_grad():
        axis = (torch.arange(32) + 0.5) / 32 - 0.5
        square = axis[:, None] ** 2 + axis**2
        # Over the three planes x^2 + y^2, x^2 + z^2 and z^2 + x^2, or y^2: their mean is .5 on about that ball.
        generator.average_planes.zero_()
        generator.average_planes.view(3, 8, 32, 32)[:, 0] = 1 - 0.5 * square / 0.25**2 * 1.5
        # w tints the other features and leaves the shape alone.
        for resolution in (4, 8, 16, 32):
            rgb = generator.backbone.synthesis.get_submodule(f"b{resolution}.torgb")
            rgb.weight.view(3, 8, -1)[:, 0] = 0
        hidden, output = generator.decoder.net[0], generator.decoder.net[2]
        hidden.weight[0] = 0
        hidden.weight[0, 0] = 8**0.5 * 10  # equalised layers multiply by 1 / sqrt(inputs)
        hidden.bias[0] = -5
        output.weight[0] = 0
        output.weight[0, 0] = 16**0.5 * 20
        output.bias[0] = -10
    return generator.eval()


def tiny_pipeline() -> Preim3DPipeline:
    torch.manual_seed(0)
    generator = ball_generator()
    encoder = PortraitEncoder(
        input_size=32,
        units=(1, 1, 1, 1),
        depths=(16, 16, 16, 16),
        pool=2,
        feature_dim=24,
        num_ws=generator.num_ws,
        w_dim=24,
    ).eval()
    names = ("smile", "age", "eyeglasses", "gender", "full_beard", "mouth_open", "grey_hair", "hat", "bald", "goatee")
    directions = Directions(
        names=names,
        labels=tuple(name.replace("_", " ").capitalize() for name in names),
        groups=("Expression", "Age and shape") + 8 * ("Hair",),
        accuracies=10 * (0.9,),
        safe_range=10 * ((-3.0, 3.0),),
        num_ws=generator.num_ws,
        w_dim=24,
        fingerprint=fingerprint(encoder, generator),
    )
    directions.vectors.normal_()
    return Preim3DPipeline(encoder, generator, directions)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """The tiny pipeline as a folder with a tiny identity network, and the bundled landmark network where there is
    one."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    pipeline = tiny_pipeline()
    if LANDMARKS.is_dir():
        pipeline.landmarks_folder = LANDMARKS
    pipeline.save_pretrained(folder)
    tiny_identity().save_pretrained(folder / "identity")
    return folder


def tiny_identity() -> FaceIdentity:
    torch.manual_seed(1)
    return FaceIdentity(stem_width=4, stages=((4, False), (8, True)), embedding_size=6).eval()


@pytest.fixture(scope="session")
def pipeline(tiny_weights) -> Preim3DPipeline:
    return Preim3DPipeline.from_pretrained(tiny_weights)


@pytest.fixture(scope="session")
def portrait(tmp_path_factory) -> Path:
    """A real photo with one face, as a file; skips where no landmark network is bundled to find it."""
    if not LANDMARKS.is_dir():
        pytest.skip("weights/faces/landmarks is not there, so no face can be found in a photo")
    import skimage.data
    from PIL import Image

    path = tmp_path_factory.mktemp("photos") / "astronaut.jpg"
    Image.fromarray(skimage.data.astronaut()).save(path, quality=95)
    return path


@contextlib.contextmanager
def nearly_full_disk():
    """Within it, no file can grow beyond 10 KB. Only within: pytest's own log of the run may be a file and long."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def address(tiny_weights, tmp_path_factory):
    """The page, running with the tiny pipeline."""
    with running_page(tmp_path_factory.mktemp("page"), "--weights", tiny_weights) as server:
        yield server.address
    assert "Traceback" not in server.log.read_text(), server.log.read_text()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    """A new visitor's page at the `address` of the test's module."""
    with visiting(browser, address) as page:
        yield page

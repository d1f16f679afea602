"""Files as the original code writes them, made of our own classes: only names and structure are the published ones.

EG3D's modules pickle themselves by a persistence mechanism (a call of `_reconstruct_persistent_obj` with the class's
source and the attributes of the instance), the others by reference; see ../shared/goldens/README.md, sections 7, 10.
"""

import contextlib
import pickle
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from preim3d.generator import TriPlaneGenerator


PLANE_AXES = {
    "eg3d": [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]],
    "fixed": [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]], [[0, 0, 1], [0, 1, 0], [1, 0, 0]]],
}


def _reconstruct_persistent_obj(meta):
    raise AssertionError("a converter must not call this")


def _by_name(module: str, name: str, base=object):
    return type(name, (base,), {"__module__": module})


class EasyDict(dict):
    def __getattr__(self, name):
        return self[name]


RECONSTRUCT = types.FunctionType(_reconstruct_persistent_obj.__code__, globals(), "_reconstruct_persistent_obj")
RECONSTRUCT.__module__, RECONSTRUCT.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
EasyDict.__module__ = "dnnlib.util"
RENDERING = "training.volumetric_rendering"
ImportanceRenderer = _by_name(f"{RENDERING}.renderer", "ImportanceRenderer", nn.Module)
MipRayMarcher2 = _by_name(f"{RENDERING}.ray_marcher", "MipRayMarcher2", nn.Module)
RaySampler = _by_name(f"{RENDERING}.ray_sampler", "RaySampler", nn.Module)
OSGDecoder = _by_name("training.triplane", "OSGDecoder", nn.Module)
BY_REFERENCE = (RECONSTRUCT, EasyDict, ImportanceRenderer, MipRayMarcher2, RaySampler, OSGDecoder)


class Persistent(nn.Module):
    """A module that pickles itself as EG3D's do, under any class name."""

    def __init__(self, class_name: str, **attributes):
        super().__init__()
        vars(self).update(attributes)
        object.__setattr__(self, "_class_name", class_name)

    def __reduce__(self):
        state = {key: value for key, value in vars(self).items() if key != "_class_name"}
        source = "import os\nos.system('echo this text must stay text')\n"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": self._class_name, "state": state}
        return RECONSTRUCT, (meta,)


@contextlib.contextmanager
def original_modules():
    """While files are written, pickle must find our classes under the published names."""
    made = {}
    for thing in BY_REFERENCE:
        parts = thing.__module__.split(".")
        for i in range(1, len(parts) + 1):
            name = ".".join(parts[:i])
            if name not in sys.modules:
                made[name] = sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[thing.__module__], thing.__name__, thing)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def original(network: TriPlaneGenerator) -> nn.Module:
    """The generator as the original's modules: the same tensors under the same names, the attributes around them."""
    config = network.config
    options = {
        "image_resolution": config.image_resolution, "clamp_mode": "softplus", "disparity_space_sampling": False,
        "c_gen_conditioning_zero": False, "c_scale": config.c_scale, "superresolution_noise_mode": "none",
        "depth_resolution": config.coarse_samples, "depth_resolution_importance": config.fine_samples,
        "ray_start": config.ray_start, "ray_end": config.ray_end, "box_warp": config.box_warp,
        "avg_camera_radius": config.camera_radius, "avg_camera_pivot": list(config.pivot),
    }  # fmt: skip
    root = Persistent(
        "TriPlaneGenerator", z_dim=config.z_dim, c_dim=config.c_dim, w_dim=config.w_dim,
        img_resolution=config.image_resolution, neural_rendering_resolution=config.ray_resolution,
        rendering_kwargs=options, _last_planes=None, _init_args=(), _init_kwargs=EasyDict(z_dim=config.z_dim),
    )  # fmt: skip
    root.backbone = Persistent("Generator", num_ws=network.num_ws)
    root.backbone.synthesis = Persistent(
        "SynthesisNetwork", img_resolution=config.plane_resolution, img_channels=3 * config.plane_channels
    )
    root.backbone.mapping = Persistent("MappingNetwork", num_layers=config.mapping_layers, w_avg_beta=0.998)
    root.superresolution = Persistent("SuperresolutionHybrid2X", input_resolution=config.superresolution_input)
    root.decoder = OSGDecoder()
    root.decoder.net = nn.Sequential()
    root.renderer = ImportanceRenderer()
    root.renderer.ray_marcher = MipRayMarcher2()
    root.renderer.plane_axes = torch.tensor(PLANE_AXES[config.plane_axes], dtype=torch.float32)
    root.ray_sampler = RaySampler()
    root.register_buffer("dataset_label_std", torch.zeros(25))
    ups = [block["up"] for block in config.superresolution_blocks]

    def module_at(path: list[str]) -> nn.Module:
        module = root
        for depth, name in enumerate(path):
            if name not in module._modules:
                module.add_module(name, make(path[: depth + 1]))
            module = module._modules[name]
        return module

    def make(path: list[str]) -> nn.Module:
        name = path[-1]
        if name.startswith("block"):
            return Persistent("SynthesisBlock" if ups[int(name[5:])] else "SynthesisBlockNoUp")
        if name.startswith("conv"):
            clamp = config.superresolution_clamp if path[0] == "superresolution" else None
            layer = Persistent("SynthesisLayer", conv_clamp=clamp, act_gain=np.float64(2) ** 0.5, padding=1)
            layer.register_buffer("resample_filter", torch.ones(4, 4))
            return layer
        if name == "torgb":
            return Persistent("ToRGBLayer", conv_clamp=None, weight_gain=np.float64(0.125))
        if path[-2:] == ["net", "1"]:
            return nn.Softplus()
        return Persistent("SynthesisBlock" if name[0] == "b" else "FullyConnectedLayer", weight_gain=np.float64(1.0))

    parameters = dict(network.named_parameters())
    for name, value in network.state_dict().items():
        if name == "decoder.net.2.weight":
            module_at(["decoder", "net", "1"])  # in its place between the two
        *path, last = name.split(".")
        if name in parameters:
            module_at(path).register_parameter(last, nn.Parameter(value.clone()))
        else:
            module_at(path).register_buffer(last, value.clone())
    return root.eval()


def write_network_pickle(path: Path, network: TriPlaneGenerator, protocol: int = 4) -> Path:
    """{G, D, G_ema, ...} by plain pickle, each tensor a nested torch.save stream."""
    with original_modules(), open(path, "wb") as file:
        snapshot = {
            "training_set_kwargs": EasyDict(path="a.zip"), "G": original(network), "G_ema": original(network),
            "D": Persistent("DualDiscriminator"), "augment_pipe": None,
        }  # fmt: skip
        pickle.dump(snapshot, file, protocol)
    return path


def write_module(path: Path, network: TriPlaneGenerator, legacy: bool = False) -> Path:
    """torch.save(G_ema), whole; `legacy` as before PyTorch 1.6."""
    with original_modules(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that our classes have no source to keep
        torch.save(original(network), path, _use_new_zipfile_serialization=not legacy)
    return path


def write_with_cuda_tags(path: Path, source: Path) -> Path:
    """The same file as if its tensors had been on a GPU."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(name, content)
    return path


def write_encoder(path: Path, encoder: nn.Module, generator: TriPlaneGenerator) -> Path:
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items() if k != "latent_average"}
    state |= {f"decoder.{k}": v for k, v in generator.state_dict().items()}
    options = {"exp_dir": "out", "learning_rate": 1e-4, "stylegan_size": 512, "start": None, "views": [0.1, -0.1]}
    torch.save(
        {"state_dict": OrderedDict(state), "latent_avg": torch.ones(14, 512), "opts": options, "global_step": 9}, path
    )
    return path

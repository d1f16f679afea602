"""The network of L_ID, and the encoder's first body where it is the published IR-SE-50 (pSp, and the paper)."""

from pathlib import Path

import torch

from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.identity import FaceIdentity
from preim3d.irse import IdentityNetwork
from preim3d.weights import read_json


def load_identity(path: Path | str) -> IdentityNetwork | FaceIdentity:
    """dlib's network or an IR-SE-50 from its folder, or the published IR-SE-50 from `model_ir_se50.pth`.

    Raises ValueError for a file that is neither."""
    path = Path(path)
    if path.is_dir():
        kind = read_json(path / "config.json").get("_class_name")
        network_class = IdentityNetwork if kind == "IdentityNetwork" else FaceIdentity
        return network_class.from_pretrained(path, dtype=torch.float32).eval()
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = IdentityNetwork()
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{path} is no IR-SE-50: give model_ir_se50.pth or weights/faces/identity.") from error
    return network.eval()


def encoder_from_identity(generator: TriPlaneGenerator, network: IdentityNetwork, size: int) -> PortraitEncoder:
    """An encoder for crops of side `size` whose body is the identity network's (pSp, and the paper's framework)."""
    config = network.config
    encoder = PortraitEncoder(
        input_size=size,
        units=config.units,
        depths=config.depths,
        feature_dim=config.feature_dim,
        num_ws=generator.num_ws,
        w_dim=generator.config.w_dim,
    )
    encoder.input_layer.load_state_dict(network.input_layer.state_dict())
    encoder.body.load_state_dict(network.body.state_dict())
    return encoder

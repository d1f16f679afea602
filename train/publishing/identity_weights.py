"""dlib's face network as a torch state dict -> ours: dlib_face_recognition_resnet_model_v1 (Davis King, CC0 1.0).

The state dict has its tensors under the names stem, blocks.N.a, blocks.N.b and fc."""

from torch import Tensor

from preim3d.identity import FaceIdentity


OURS = {"a": "first", "b": "second", "fc": "embedding"}


def from_dlib(state: dict[str, Tensor]) -> FaceIdentity:
    """Raises ValueError where it is another network's state."""
    network = FaceIdentity()
    named = {".".join(OURS.get(part, part) for part in name.split(".")): tensor for name, tensor in state.items()}
    try:
        network.load_state_dict(named)
    except RuntimeError as error:
        raise ValueError(f"These are not the tensors of dlib's face network: {str(error)[:200]}") from error
    return network.eval()

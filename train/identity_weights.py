"""dlib's face recognition network as a torch state dict -> weights/faces/identity.

    python -m train.identity_weights dlib_face.safetensors --out weights/faces/identity

The file holds the tensors of dlib_face_recognition_resnet_model_v1 (CC0 1.0) under the names stem, blocks.N.a,
blocks.N.b and fc."""

import argparse
import sys

from safetensors.torch import load_file
from torch import Tensor

from preim3d.identity import FaceIdentity


FILE_LIMIT = "8MB"  # a Space takes files of up to 10 MB without LFS
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


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m train.identity_weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="dlib_face.safetensors")
    parser.add_argument("--out", required=True, help="folder to write")
    args = parser.parse_args(words)
    try:
        from_dlib(load_file(args.file)).half().save_pretrained(args.out, max_shard_size=FILE_LIMIT)
    except (OSError, ValueError) as mistake:
        print(f"train.identity_weights: {mistake}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What reads attributes from pictures: the network of `train.attributes`, or a ResNet-50 that was trained on the 40 of
CelebA, which the paper judges by (A.2). The user brings the latter's file."""

from pathlib import Path

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from preim3d.pickles import read_file
from preim3d.pipeline import load_component
from preim3d.reader import HeadReader, Reading
from train.inversion.features import FeatureNetwork


# Liu et al. 2015, in the order of list_attr_celeba.txt.
CELEBA = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip
READER_HELP = (
    "what edits are judged by: a folder made by `python -m train.attributes` (OUT/reader), or the file of a ResNet-50"
    " with CelebA's 40 attributes in its order"
)
FIRST = "layer1.0.conv1.weight"  # a tensor that every ResNet-50 has


class AttributeClassifier(ModelMixin, ConfigMixin):
    """ResNet-50 with one logit for each attribute; it sees 224 px, normalised as ImageNet's photos are."""

    @register_to_config
    def __init__(self, attribute_names: tuple[str, ...] = CELEBA):
        super().__init__()
        self.body = FeatureNetwork()
        self.fc = nn.Linear(2048, len(attribute_names))

    def forward(self, images: Tensor) -> Reading:
        """images [B, 3, H, W] in [-1, 1] -> `Reading` without features and angles, which it does not know."""
        pooled = self.body.pooled(images)
        nothing = pooled.new_zeros(len(pooled), 0)
        return Reading(pooled, self.fc(pooled), nothing, nothing)


def load_reader(path: Path | str, device: torch.device | str) -> HeadReader | AttributeClassifier:
    """Of a folder or a file, as `READER_HELP` says.

    Raises:
        WeightsError: a tensor of the folder is missing or does not fit.
        OSError: there is no such file.
        ValueError: the file is damaged, asks for code to be executed, or is no such network.
    """
    path = Path(path)
    network = load_classifier(path) if path.is_file() else load_component(HeadReader, path, torch.float32)
    return network.to(device)


def load_classifier(path: Path) -> AttributeClassifier:
    """From a state dict by torchvision's and timm's names, alone or in a checkpoint of Lightning's; under whatever
    prefix, and with whatever name for the last layer. Nothing in the file is executed."""
    found = read_file(path)
    state = found.get("state_dict", found) if isinstance(found, dict) else {}
    state = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, np.ndarray)}
    with torch.device("meta"):
        body = FeatureNetwork().state_dict()
    shapes = {name: tuple(x.shape) for name, x in body.items() if not name.endswith("num_batches_tracked")}
    for prefix in (key.removesuffix(FIRST) for key in state if key.endswith(FIRST)):
        if all(state.get(prefix + name, np.zeros(0)).shape == shape for name, shape in shapes.items()):
            break
    else:
        raise ValueError(f"{path} holds no ResNet-50: give a state dict with torchvision's names for its tensors.")
    heads = [key for key, x in state.items() if key.startswith(prefix) and x.shape == (len(CELEBA), 2048)]
    biases = [state.get(key.removesuffix("weight") + "bias", np.zeros(0)) for key in heads]
    if len(heads) != 1 or biases[0].shape != (len(CELEBA),):
        told = sorted(f"{list(x.shape)}" for key, x in state.items() if x.ndim == 2)
        raise ValueError(
            f"{path} has no one layer from 2048 numbers to CelebA's {len(CELEBA)} attributes; its linear layers are"
            f" {', '.join(told) or 'none'}: give a classifier of these attributes."
        )
    arrays = {f"body.{name}": state[prefix + name] for name in shapes}
    arrays |= {"fc.weight": state[heads[0]], "fc.bias": biases[0]}
    network = AttributeClassifier()
    # What a file may lack, the counts of batches, nothing reads.
    network.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}, strict=False)
    return network.eval().requires_grad_(False)

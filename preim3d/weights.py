"""Where the weights come from, and whether the files there are whole. No torch: a mistake is answered at once."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open


COMPONENTS = {"encoder": "PortraitEncoder", "generator": "TriPlaneGenerator", "directions": "Directions"}
TENSORS = "diffusion_pytorch_model.safetensors"
BUNDLED = Path(__file__).resolve().parent.parent / "weights" / "heads"
REMEDY = "restore the folder from the repository, or name another one"


class WeightsError(ValueError):
    """The weights are missing or damaged; the message is one sentence for the user."""


class Weights(NamedTuple):
    """A folder in pipeline layout, and a line for the user that says which it is and why it was taken."""

    folder: Path
    source: str


def find_weights(explicit: str | os.PathLike | None = None) -> Weights:
    """The first of: the folder given, the folder in PREIM3D_WEIGHTS, the bundled default.

    A folder that is named but absent is an error; the next one is never taken in its place.

    Raises:
        WeightsError: the folder does not exist or is not in pipeline layout.
    """
    if explicit is not None:
        folder, reason = Path(explicit), "as asked for"
    elif os.environ.get("PREIM3D_WEIGHTS"):
        folder, reason = Path(os.environ["PREIM3D_WEIGHTS"]), "from PREIM3D_WEIGHTS"
    else:
        folder, reason = BUNDLED, "bundled"
    if not folder.is_dir():
        raise WeightsError(f"There is no folder of weights at {folder} ({reason}); {REMEDY} with --weights.")
    if not (folder / "model_index.json").is_file():
        raise WeightsError(f"{folder} ({reason}) has no model_index.json, so it holds no weights; {REMEDY}.")
    return Weights(folder, f"Weights: {folder} ({reason}).")


def check_weights(folder: Path) -> None:
    """Reads every JSON and the header of every tensor file: a truncated or a missing one is named before any work.

    Raises:
        WeightsError: the first file that is missing or damaged.
    """
    pipeline = read_json(folder / "model_index.json", "_class_name")["_class_name"]
    if pipeline != "Preim3DPipeline":
        raise WeightsError(f"{folder} holds a {pipeline}, not a Preim3DPipeline; name another folder with --weights.")
    for part, network in COMPONENTS.items():
        found = read_json(folder / part / "config.json", "_class_name")["_class_name"]
        if found != network:
            raise WeightsError(f"{folder / part} holds a {found}, not a {network}; {REMEDY}.")
        check_tensors(folder / part)
    # The landmark network stands beside the components: diffusers cannot hold a detector.
    landmarks = folder / "landmarks"
    if landmarks.is_dir():  # else the weights are for ready-made crops only
        read_json(landmarks / "config.json")
        check_tensors(landmarks)


def read_json(path: Path, *keys: str) -> dict:
    """The object in a JSON file of the weights, which must have these keys.

    Raises:
        WeightsError: the file is missing, unreadable, no JSON object, or lacks a key.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise WeightsError(f"The weights file {path} cannot be read ({error.strerror}); {REMEDY}.") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise WeightsError(f"The weights file {path} is damaged (not valid JSON); {REMEDY}.")
    for key in keys:
        if key not in content:
            raise WeightsError(f"The weights file {path} is damaged (no `{key}` in it); {REMEDY}.")
    return content


def check_tensors(folder: Path) -> None:
    """The header of each safetensors file of a network must fit the file's length; large networks have several files.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    index = folder / f"{TENSORS}.index.json"
    names = sorted(set(read_json(index, "weight_map")["weight_map"].values())) if index.is_file() else [TENSORS]
    for path in [folder / name for name in names]:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except OSError:
            raise WeightsError(f"The weights file {path} cannot be read; {REMEDY}.") from None
        except SafetensorError:
            raise WeightsError(f"The weights file {path} is damaged (not whole); {REMEDY}.") from None

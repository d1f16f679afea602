"""Where the weights come from, a folder or the Hub, and whether they are whole. No torch: mistakes are told soon."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open


COMPONENTS = {"encoder": "PortraitEncoder", "generator": "TriPlaneGenerator", "directions": "Directions"}
OPTIONAL = {
    "origin_directions": "Directions",
    "feedback": "Feedback",
    "detail": "DetailNetwork",
    # With one of the two above only: the identity network of converted weights is another one, and no part of the
    # pipeline.
    "identity": "FaceIdentity",
}
TENSORS = "diffusion_pytorch_model.safetensors"
PERCEPTUAL = Path("perceptual", "efficientnet_lite0.safetensors")  # see `preim3d.efficientnet`
BUNDLED = Path(__file__).resolve().parent.parent / "weights" / "faces"
# A repository of the Hub, and perhaps a branch, tag or commit of it; folders come first.
HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
HUB_FILES = ("*.json", "*.safetensors", "README.md")  # nothing else is read
# A line of the card, README.md, as sha256sum writes it.
CHECKSUM = re.compile(r"^([0-9a-f]{64})  (\S+\.safetensors)$", re.MULTILINE)
REMEDY = "restore the folder from the repository, or name another one"


class WeightsError(ValueError):
    """The weights are missing or damaged; the message is one sentence for the user."""


class Weights(NamedTuple):
    """A folder in pipeline layout, and a line for the user that says which it is and why it was taken."""

    folder: Path
    source: str


def find_weights(explicit: str | os.PathLike | None = None) -> Weights:
    """The first of: the weights given, those in PREIM3D_WEIGHTS, the bundled default.

    Weights are a folder, or else a repository of the Hugging Face Hub, `user/name` or `user/name@revision`, which is
    downloaded once and then taken from the cache (with HF_HUB_OFFLINE=1 from there only). What is named but absent is
    an error; the next one is never taken in its place.

    Raises:
        WeightsError: there is no such folder or repository, or it is not in pipeline layout.
    """
    if explicit is not None:
        name, reason = os.fspath(explicit), "as asked for"
    elif os.environ.get("PREIM3D_WEIGHTS"):
        name, reason = os.environ["PREIM3D_WEIGHTS"], "from PREIM3D_WEIGHTS"
    else:
        name, reason = os.fspath(BUNDLED), "bundled"
    if not name.strip():
        raise WeightsError(f"The name of the weights is empty ({reason}); {REMEDY} with --weights.")
    folder, source = Path(name), f"Weights: {name} ({reason})."
    if not folder.is_dir():
        hub = HUB_ID.fullmatch(name)
        if hub is None:
            raise WeightsError(f"There is no folder of weights at {folder} ({reason}); {REMEDY} with --weights.")
        folder = download(hub["repository"], hub["revision"], reason)
        source = f"Weights: {hub['repository']} of the Hub at {folder.name[:12]} ({reason})."
    if not (folder / "model_index.json").is_file():
        raise WeightsError(f"{name} ({reason}) has no model_index.json, so it holds no weights; {REMEDY}.")
    return Weights(folder, source)


def download(repository: str, revision: str | None, reason: str) -> Path:
    """A repository's weights in the Hub's cache, downloaded as far as they lack; the folder's name is the commit.

    Raises:
        WeightsError: there is no such repository or revision, or the Hub cannot be reached and the cache lacks it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    asked = f"{repository} ({reason})"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(HUB_FILES)))
    except GatedRepoError:
        problem = f"The Hub's {asked} is gated; accept its terms on the Hub, then run `hf auth login`."
    except RepositoryNotFoundError:
        problem = f"There is neither a folder {asked} nor such a repository on the Hub; {REMEDY} with --weights."
    except RevisionNotFoundError:
        problem = f"The Hub's {asked} has no revision `{revision}`; leave it out for the newest."
    except LocalEntryNotFoundError:
        problem = (
            f"There is no folder {asked}, and a repository of that name is not in the cache and the Hub cannot be"
            " reached; connect to the network, or name a folder with --weights."
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        problem = f"The Hub did not give {asked}: {' '.join(str(error).split())[:200]}"
    raise WeightsError(problem)


def check_weights(folder: Path) -> None:
    """Reads every JSON and the header of every tensor file, and compares the latter with the card: what is missing,
    truncated or altered is named before any work.

    Raises:
        WeightsError: the first file that is missing or damaged.
    """
    pipeline = read_json(folder / "model_index.json", "_class_name")["_class_name"]
    if pipeline != "Preim3DPipeline":
        raise WeightsError(f"{folder} holds a {pipeline}, not a Preim3DPipeline; name another folder with --weights.")
    for part, network in (COMPONENTS | {name: OPTIONAL[name] for name in present(folder)}).items():
        found = read_json(folder / part / "config.json", "_class_name")["_class_name"]
        if found != network:
            raise WeightsError(f"{folder / part} holds a {found}, not a {network}; {REMEDY}.")
        check_tensors(folder / part)
    # These stand beside the components: diffusers cannot hold a detector, and what judges is no step of the pipeline.
    # Weights without landmarks, as those of cats, take ready-made crops only.
    for part, places in {"landmarks": ("landmarks", "landmarks/mesh"), "identity": ("identity",)}.items():
        if (folder / part).is_dir():
            for place in places:
                read_json(folder / place / "config.json", "_class_name")
                check_tensors(folder / place)
    check_card(folder)


def present(folder: Path) -> list[str]:
    """Which of the optional components the weights have."""
    found = [name for name in ("origin_directions", "feedback", "detail") if (folder / name).is_dir()]
    return found + ["identity"] * any(name in found for name in ("feedback", "detail"))


def knows_people(folder: Path) -> bool:
    """Whether the weights have a network that knows people's faces. Heads of others, such as cats, cannot be judged by
    any such network."""
    return any((folder / name).is_dir() for name in ("landmarks", "identity"))


def identity_folder(folder: Path) -> Path | None:
    """Where dlib's face network lies that judges heads of these weights: in them, else in the bundled ones; None where
    neither has it. Converted weights may have another network of that name, which knows other distances."""
    for place in (folder / "identity", BUNDLED / "identity"):
        if place.is_dir() and read_json(place / "config.json", "_class_name")["_class_name"] == "FaceIdentity":
            return place
    return None


def perceptual_file(folder: Path) -> Path | None:
    """Where the perceptual network lies that compares heads of these weights with photos: in them, else in the bundled
    ones; None where neither has it."""
    places = (place / PERCEPTUAL for place in (folder, BUNDLED))
    return next((place for place in places if place.is_file()), None)


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


def check_card(folder: Path) -> None:
    """Tensor files must be those whose checksums stand in the folder's card, where it has any: a changed byte would
    give another head, or have the directions refused in its place. Takes a tenth of a second for 70 MB.

    Raises:
        WeightsError: the first file that is another one.
    """
    card = folder / "README.md"
    listed = CHECKSUM.findall(card.read_text("utf-8", "replace")) if card.is_file() else []
    for digest, name in listed:
        path = folder / name
        if path.is_file() and checksum(path) != digest:
            raise WeightsError(f"The weights file {path} is damaged (not the one that {card} lists); {REMEDY}.")


def checksum(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

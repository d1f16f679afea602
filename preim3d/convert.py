"""Published files -> a folder in pipeline layout: safetensors and JSON, a model card with sources and checksums.

    python -m preim3d convert --eg3d ffhq512-128.pkl --encoder preim3d_ffhq.pt --directions DIR \\
        --identity model_ir_se50.pth --out weights/ffhq512

Each file is recognised by what is in it, not by its name, and read by `pickles`, which executes nothing. A part alone
is converted too; when generator and encoder have come together, the latent average that the encoder's output is an
offset from is computed anew, as PREIM3D's code does.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from preim3d.camera import PIVOT, RADIUS, camera_from_angles
from preim3d.directions import ATTRIBUTES, Attribute, Directions, fingerprint
from preim3d.encoder import PortraitEncoder
from preim3d.files import cannot_be_written, staging_folder
from preim3d.generator import TriPlaneGenerator
from preim3d.irse import IdentityNetwork
from preim3d.pickles import Record, read_file
from preim3d.pipeline import load_component
from preim3d.renderer import PLANE_AXES
from preim3d.strengths import STRENGTH_LIMIT
from preim3d.weights import BUNDLED, checksum


GENERATOR, ENCODER, IDENTITY, DIRECTION = "a generator", "an encoder", "an identity network", "a direction"
# Recomputed by every network that needs them, or of use in training only.
UNUSED_BUFFERS = ("resample_filter", "dataset_label_std")
DEEPEST, MOST_TENSORS = 16, 10_000  # far beyond any generator; a file may contain a module in itself
# The mean w that PREIM3D's encoder was trained as an offset from, see `latent_average`; its code takes 3.14 for pi.
LATENT_RECIPE = {"samples": 10000, "seed": 123, "frontal_angle": 3.14 / 2}
LICENCES = {
    GENERATOR: "EG3D's weights: NVIDIA Source Code License, no commercial use; trained on FFHQ (CC BY-NC-SA 4.0)"
    " or AFHQ (CC BY-NC 4.0)",
    ENCODER: "PREIM3D's encoder: see the licence of the place that you downloaded it from; trained on FFHQ",
    IDENTITY: "InsightFace_Pytorch's IR-SE-50 (MIT code; trained on MS1M, for research)",
    DIRECTION: "PREIM3D's directions: see the licence of the place that you downloaded them from",
}


class ConvertError(ValueError):
    """A file is not what it should be; one sentence for the user."""


@dataclass
class Found:
    """What a file turned out to be."""

    path: Path
    kind: str
    content: Any  # a Record (generator), a state dict of arrays, or one array (direction)


def recognise(path: Path) -> Found:
    """Reads a file and says what it is, by its content.

    Raises:
        ConvertError: there is no such file, it is a damaged array, or none of the four kinds.
        PickleError: it is damaged or holds more than weights.
    """
    if not path.is_file():
        raise ConvertError(f"There is no file {path}.")
    if path.suffix == ".npy":
        try:
            content = np.load(path, allow_pickle=False)
        except (ValueError, EOFError):  # numpy's own words advise to trust the file
            raise ConvertError(f"{path} is damaged or is no array of numpy's; give it as it was saved.") from None
    else:
        content = read_file(path)
    if isinstance(content, dict) and isinstance(content.get("G_ema"), Record):
        content = content["G_ema"]
    if isinstance(content, Record) and content.class_name == "TriPlaneGenerator":
        return Found(path, GENERATOR, content)
    if isinstance(content, np.ndarray) and content.size and content.dtype.kind == "f":
        return Found(path, DIRECTION, content)
    if isinstance(content, dict):
        state = content.get("state_dict", content)
        if isinstance(state, dict) and all(isinstance(key, str) for key in state):
            part = {key.removeprefix("encoder."): x for key, x in state.items() if key.startswith("encoder.")}
            if "linear.weight" in part:
                return Found(path, ENCODER, part)
            if "input_layer.0.weight" in state and "output_layer.3.weight" in state:
                return Found(path, IDENTITY, state)
    raise ConvertError(
        f"{path} holds none of the four: an EG3D generator, a PREIM3D encoder, an IR-SE-50 network, a direction."
    )


# ----------------------------------------------------------------------------
# The networks.


def generator_of(found: Found) -> TriPlaneGenerator:
    """The generator of a network pickle or a whole-module file, with its configuration."""
    record = found.content
    return _filled(TriPlaneGenerator, generator_config(record), dict(_tensors(record)), found.path)


def generator_config(record: Record) -> dict[str, Any]:
    """The configuration of a TriPlaneGenerator record: its attributes, and what its tensors' shapes say.

    Raises:
        ConvertError: an attribute that decides how the network works is missing or unknown to us.
    """
    tensors = {name: x.shape for name, x in _tensors(record)}
    options = _attribute(record, "rendering_kwargs")
    synthesis = _child(_child(record, "backbone"), "synthesis")
    resolution = _attribute(synthesis, "img_resolution")
    superresolution = _child(record, "superresolution")
    if options.get("clamp_mode", "softplus") != "softplus" or options.get("disparity_space_sampling"):
        raise ConvertError("This generator samples its rays in a way that this version does not know.")
    try:
        blocks, clamp = _superresolution_blocks(superresolution, tensors)
        top, bottom = (tensors[f"backbone.synthesis.b{r}.conv1.weight"][0] for r in (resolution, 4))
        return {
            "z_dim": _attribute(record, "z_dim"),
            "c_dim": _attribute(record, "c_dim"),
            "w_dim": _attribute(record, "w_dim"),
            "mapping_layers": sum(".mapping.fc" in name and name.endswith("weight") for name in tensors),
            "plane_resolution": resolution,
            "plane_channels": _attribute(synthesis, "img_channels") // 3,
            "channel_base": top * resolution,
            "channel_max": bottom,
            "decoder_hidden": tensors["decoder.net.0.weight"][0],
            "image_resolution": _attribute(record, "img_resolution"),
            # An attribute, not an argument: what the network was last rendered with in training.
            "ray_resolution": _attribute(record, "neural_rendering_resolution"),
            "superresolution_input": _attribute(superresolution, "input_resolution"),
            "superresolution_blocks": blocks,
            "superresolution_clamp": clamp,
            "box_warp": float(options["box_warp"]),
            "ray_start": float(options["ray_start"]),
            "ray_end": float(options["ray_end"]),
            "coarse_samples": options["depth_resolution"],
            "fine_samples": options["depth_resolution_importance"],
            "plane_axes": plane_axes(_child(record, "renderer")),
            "background": 1.0 if options.get("white_back") else 0.0,
            "pivot": tuple(map(float, options.get("avg_camera_pivot", PIVOT))),
            "camera_radius": float(options.get("avg_camera_radius", RADIUS)),
            # A missing scale means 0: the first released networks do not see the camera.
            "c_scale": 0.0 if options.get("c_gen_conditioning_zero") else float(options.get("c_scale", 0)),
        }
    except KeyError as missing:
        raise ConvertError(f"The generator's file has no {missing}, so its configuration is not known.") from None


def _superresolution_blocks(record: Record, tensors: Mapping[str, tuple]) -> tuple[list[dict], float | None]:
    blocks, clamps = [], set()
    for name, block in sorted(_children(record).items()):
        if not name.startswith("block"):
            continue
        first = _child(block, "conv0")
        out, into = tensors[f"superresolution.{name}.conv0.weight"][:2]
        blocks.append({"in": int(into), "out": int(out), "up": block.class_name != "SynthesisBlockNoUp"})
        clamps.add(_attribute(first, "conv_clamp"))
    if len(clamps) != 1:
        raise ConvertError("The super-resolution of this generator has no blocks, or blocks of different clamps.")
    clamp = clamps.pop()
    return blocks, None if clamp is None else float(clamp)


def plane_axes(renderer: Record) -> str:
    """Which way the third plane lies; in the file it is the tensor of the planes' axes."""
    axes = np.asarray(_attribute(renderer, "plane_axes"), float)  # [3 planes, 3 axes, 3]: rows of a rotation
    if axes.shape != (3, 3, 3):
        raise ConvertError("The generator's planes have axes that this version does not know.")
    # A point's place in a plane is the product with the inverse of its axes; the first two numbers are read.
    places = tuple(tuple(int(i) for i in np.abs(np.linalg.inv(plane)).argmax(0)[:2]) for plane in axes)
    for name, known in PLANE_AXES.items():
        if places == known:
            return name
    raise ConvertError(f"The generator reads its planes at {places}, which this version does not know.")


def _tensors(record: Record, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """The state dict of a module record, by the names that PyTorch gives."""
    if depth > DEEPEST:
        raise ConvertError("The generator's modules contain each other without end.")
    not_saved = record.state.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, value in record.state.get(kind, {}).items():
            if isinstance(value, np.ndarray) and name not in UNUSED_BUFFERS and name not in not_saved:
                yield prefix + name, value
    for name, child in _children(record).items():
        yield from _tensors(child, f"{prefix}{name}.", depth + 1)


def _children(record: Record) -> dict[str, Record]:
    children = record.state.get("_modules", {})
    return {name: child for name, child in children.items() if isinstance(child, Record)}


def _child(record: Record, name: str) -> Record:
    if name not in _children(record):
        raise ConvertError(f"The {record.class_name} in this file has no `{name}`; it is not one of EG3D's networks.")
    return _children(record)[name]


def _attribute(record: Record, name: str) -> Any:
    if name not in record.state:
        raise ConvertError(f"The {record.class_name} in this file has no `{name}`; it is not one of EG3D's networks.")
    return record.state[name]


def encoder_of(found: Found) -> PortraitEncoder:
    """The encoder of a checkpoint; its latent average is still zero."""
    state = found.content
    feature_dim = state["linear.weight"].shape[1]
    w_dim = 512
    pool = round((state["output_layer_2.3.weight"].shape[1] / state["output_layer_2.0.weight"].shape[0]) ** 0.5)
    config = _body_config(state) | {
        "input_size": 256,
        "pool": pool,
        "feature_dim": feature_dim,
        "num_ws": state["linear.weight"].shape[0] // w_dim,
        "w_dim": w_dim,
        "latent_recipe": LATENT_RECIPE,
    }
    state = state | {"latent_average": np.zeros((config["num_ws"], w_dim), np.float32)}
    return _filled(PortraitEncoder, config, state, found.path)


def identity_of(found: Found) -> IdentityNetwork:
    """The identity network of a flat state dict."""
    return _filled(IdentityNetwork, _body_config(found.content), found.content, found.path)


def _body_config(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Units and depths of an IR-SE body: a unit whose channels change, or the first of all, begins a stage."""
    units, depths = [], []
    i = 0
    while (name := f"body.{i}.res_layer.3.weight") in state:
        depth = state[name].shape[0]
        if not depths or depth != depths[-1]:
            units.append(0)
            depths.append(depth)
        units[-1] += 1
        i += 1
    return {"units": tuple(units), "depths": tuple(depths)}


def _filled(network_class: type, config: dict[str, Any], arrays: Mapping[str, np.ndarray], path: Path):
    """A network with every one of its tensors from the file.

    Raises:
        ConvertError: a tensor is missing, is one too many, or has another shape or kind of number.
    """
    network = network_class(**config)
    wanted = network.state_dict()
    if odd := sorted(wanted.keys() ^ arrays.keys()):
        lacks = "lacks the" if odd[0] in wanted else "has an unknown"
        raise ConvertError(f"{path} {lacks} tensor `{odd[0]}`; it is no {network_class.__name__} of this shape.")
    for name, tensor in wanted.items():
        array = arrays[name]
        if array.shape != tuple(tensor.shape) or (array.dtype.kind == "f") != tensor.is_floating_point():
            raise ConvertError(
                f"{path}: the tensor `{name}` is {array.dtype} of shape {list(array.shape)};"
                f" {str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)} is needed."
            )
    network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    return network.eval().requires_grad_(False)


def directions_of(founds: list[Found], num_ws: int, w_dim: int) -> Directions:
    """The directions of one file each, under the names of the files.

    A unit of strength is a unit of the published alpha, of which the reference demo offers -10..10.

    Raises:
        ConvertError: a direction of another length, or two of one name.
    """
    by_celeba = {attribute.celeba.lower(): (name, attribute) for name, attribute in ATTRIBUTES.items()}
    rows: dict[str, tuple[Attribute, np.ndarray]] = {}
    for found in founds:
        stem = found.path.stem
        name, attribute = by_celeba.get(stem.lower(), (stem.lower(), Attribute(stem, "More", stem)))
        if found.content.size != num_ws * w_dim:
            raise ConvertError(
                f"{found.path} has {found.content.size} numbers; a direction of this generator has {num_ws} x {w_dim}."
            )
        if name in rows:
            raise ConvertError(f"There are two directions `{name}`; the second is {found.path}.")
        rows[name] = attribute, attribute.sign * found.content.reshape(num_ws, w_dim)
    known = list(ATTRIBUTES)
    names = sorted(rows, key=lambda name: (known.index(name) if name in known else len(known), name))
    directions = Directions(
        names=tuple(names),
        labels=tuple(_label(rows[name][0]) for name in names),
        groups=tuple(rows[name][0].group for name in names),
        accuracies=(None,) * len(names),
        safe_range=((-STRENGTH_LIMIT, STRENGTH_LIMIT),) * len(names),
        num_ws=num_ws,
        w_dim=w_dim,
        space="inversion",
    )
    if names:
        directions.vectors.copy_(torch.from_numpy(np.stack([rows[name][1] for name in names])))
    return directions


def _label(attribute: Attribute) -> str:
    label = attribute.celeba.replace("_", " ")
    return label if attribute.sign > 0 else f"Age (less {label})"


# ----------------------------------------------------------------------------
# The folder.


def convert(files: list[Path], out: Path) -> list[str]:
    """Recognises `files`, converts them into the folder `out` beside what is there already; says what was done.

    Everything is read and checked before anything is written, and each part appears whole.

    Raises:
        ConvertError, PickleError: one sentence about the first file that is not as it should be.
        OSError: a file cannot be read or written.
    """
    founds = [recognise(path) for path in files]
    said = [f"{found.path}: {found.kind}" for found in founds]
    by_kind: dict[str, list[Found]] = {}
    for found in founds:
        by_kind.setdefault(found.kind, []).append(found)
    for kind in (GENERATOR, ENCODER, IDENTITY):
        if len(by_kind.get(kind, ())) > 1:
            second = by_kind[kind][1].path
            raise ConvertError(f"Two files are {kind}; the second is {second}. Give one at a time.")

    parts: dict[str, torch.nn.Module] = {}
    if GENERATOR in by_kind:
        parts["generator"] = generator_of(by_kind[GENERATOR][0])
    if ENCODER in by_kind:
        parts["encoder"] = encoder_of(by_kind[ENCODER][0])
    if IDENTITY in by_kind:
        parts["identity"] = identity_of(by_kind[IDENTITY][0])
    generator = parts.get("generator") or _present(TriPlaneGenerator, out / "generator")
    encoder = parts.get("encoder") or _present(PortraitEncoder, out / "encoder")
    directions = _present(Directions, out / "directions")
    if DIRECTION in by_kind:
        shape = (generator.num_ws, generator.config.w_dim) if generator else (14, 512)
        directions = parts["directions"] = directions_of(by_kind[DIRECTION], *shape)
    # EG3D's cameras look at the middle of a person's head, or of a cat's: of cats we have no landmark network.
    of_people = generator is None or tuple(generator.config.pivot) == PIVOT
    if not of_people:
        said.append(
            "The generator is not one of people's faces: photos are taken as crops, without looking for a face."
        )
    if generator and encoder and ("generator" in parts or "encoder" in parts):
        if (encoder.config.num_ws, encoder.config.w_dim) != (generator.num_ws, generator.config.w_dim):
            raise ConvertError(
                f"The encoder gives {encoder.config.num_ws} x {encoder.config.w_dim} numbers, the generator takes"
                f" {generator.num_ws} x {generator.config.w_dim}; they do not belong together."
            )
        parts["encoder"] = encoder
        encoder.latent_average.copy_(latent_average(generator, **encoder.config.latent_recipe))
        said.append("The latent average of the encoder was computed from the generator.")
    if generator and encoder and directions:
        parts["directions"] = directions
        directions.register_to_config(fingerprint=fingerprint(encoder, generator))

    _write(parts, out, _sources(founds, out), of_people)
    missing = [name for name in ("generator", "encoder", "directions") if not (out / name).is_dir()]
    if missing:
        said.append(f"{out} still needs: {', '.join(missing)}.")
    else:
        said.append(f"{out} is complete: python app.py --weights {out}")
    return said


def latent_average(generator: TriPlaneGenerator, samples: int, seed: int, frontal_angle: float) -> torch.Tensor:
    """The mean w [w_dim] that the published encoder's output is an offset from; see `LATENT_RECIPE`."""
    config, off = generator.config, frontal_angle - np.pi / 2
    camera = camera_from_angles(off, off, radius=config.camera_radius, pivot=config.pivot, focal=config.focal)
    return generator.latent_average(samples, seed, camera[None])


def _present(network_class: type, folder: Path):
    """The part that an earlier conversion left, or None."""
    return load_component(network_class, folder, torch.float32) if folder.is_dir() else None


def _sources(founds: list[Found], out: Path) -> list[dict]:
    """What each converted file was, together with those of earlier conversions into the same folder."""
    kinds = {found.kind for found in founds}
    earlier = json.loads((out / "sources.json").read_text("utf-8")) if (out / "sources.json").is_file() else []
    new = [
        {"file": f.path.name, "kind": f.kind, "bytes": f.path.stat().st_size, "sha256": checksum(f.path)}
        for f in founds
    ]
    return [row for row in earlier if row["kind"] not in kinds] + new


def _write(parts: Mapping[str, torch.nn.Module], out: Path, sources: list[dict], of_people: bool) -> None:
    """Makes everything in a folder beside `out`, then moves it there part by part. `of_people`: with the networks that
    find people's faces.

    Raises:
        OSError: one sentence, where the disk takes no more.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(out.parent) as made:
            _make(Path(made), parts, out, sources, of_people)
            out.mkdir(exist_ok=True)
            if not of_people and (out / "landmarks").is_dir():  # of an encoder that came before its generator
                shutil.rmtree(out / "landmarks")
            for path in Path(made).iterdir():
                target = out / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                path.replace(target)
    except (OSError, SafetensorError) as error:
        raise cannot_be_written(out, error) from error


def _make(made: Path, parts: Mapping[str, torch.nn.Module], out: Path, sources: list[dict], of_people: bool) -> None:
    """Writes to `made` what is to be new in `out`."""
    for name, network in parts.items():
        network.save_pretrained(made / name)
        config = made / name / "config.json"
        # diffusers notes the folder that a part was loaded from, which is nobody's business.
        kept = {key: value for key, value in json.loads(config.read_text("utf-8")).items() if key != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
    if of_people:
        shutil.copytree(BUNDLED / "landmarks", made / "landmarks")  # ours; finds the face in a photo
    shutil.copy(BUNDLED / "model_index.json", made)
    (made / "sources.json").write_text(json.dumps(sources, indent=2) + "\n", "utf-8")
    going = {path.name for path in made.iterdir()} | {"landmarks"}
    earlier = {path.relative_to(out): path for path in out.rglob("*.safetensors")}
    files = {name: path for name, path in earlier.items() if name.parts[0] not in going}
    files |= {path.relative_to(made): path for path in made.rglob("*.safetensors")}
    checksums = [f"{checksum(path)}  {name.as_posix()}" for name, path in sorted(files.items())]
    (made / "README.md").write_text(model_card(sources, checksums, of_people), "utf-8")


def model_card(sources: list[dict], checksums: list[str], of_people: bool) -> str:
    """What the folder was made of, under which licences that is, and the checksums of its tensor files."""
    rows = [f"| {row['file']} | {row['kind']} | {row['bytes']} | `{row['sha256']}` |" for row in sources]
    licences = [f"- {LICENCES[kind]}" for kind in dict.fromkeys(row["kind"] for row in sources)]
    return "\n".join([
        "---", "license: other", "library_name: preim3d", "tags: [portrait, 3d, eg3d, preim3d]", "---",
        "# Converted weights for preim3d", "",
        "Made by `python -m preim3d convert` from files that you brought; their licences hold here too:", "",
        *licences,
        *["- `landmarks`: ours, trained on photos and synthetic heads (CC BY 4.0; credits in weights/README.md)"]
        * of_people, "",
        "| file | what it is | bytes | sha256 |", "|---|---|---|---|", *rows, "",
        "A unit of a slider is a unit of alpha of the published directions; `age` is the negative of Young.", "",
        "## Checksums (sha256)", "", "```", *checksums, "```", "",
    ])  # fmt: skip

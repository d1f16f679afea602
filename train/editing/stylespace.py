"""Labelled latents -> the few style channels that control each attribute (StyleSpace, Wu et al. 2021, section 5).

Channels are ranked by how clearly the photos with an attribute differ from all photos in them; the first ones are
tried on heads, one by one, as the paper's authors did by eye. Where one channel does not do it, as in a generator as
small as ours, the fewest that do are moved together, each by its own spread."""

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor
from tqdm import tqdm

from preim3d.directions import ATTRIBUTES, MAIN_ATTRIBUTES
from preim3d.generator import TriPlaneGenerator
from preim3d.style_channels import StyleChannels
from train.editing.boundaries import FEWEST
from train.editing.calibration import EditTrial, calibrate, dependency
from train.editing.candidates import scores


POSITIVES = 100  # photos that have the attribute most clearly; the paper took 10 to 30 by hand
TRIED, TRIED_SPREADS, TRIED_HEADS = 8, 4.0, 2  # channels that are tried alone, how far, on how many heads
COUNTS = (1, 4, 16, 64, 256)  # channels that are moved together
LADDER = (0.75, 1.5, 3.0)  # how far, in each channel's spread


def relevance(
    positive: Tensor,  # [P, S] styles of those that have an attribute
    population: Tensor,  # [N, S] of all
) -> Tensor:
    """[S]: the mean over the standard deviation of the positives' normalised differences from the population. Large
    where they differ from it and agree among themselves; negative where they have less of the channel."""
    # A channel that never varies must not divide by nothing.
    differences = (positive - population.mean(0)) / population.std(0).clamp(min=1e-6)
    return differences.mean(0) / differences.std(0).clamp(min=1e-6)


def control(trial: EditTrial, relevance: Tensor, spreads: Tensor, column: int, sign: int) -> tuple[Tensor, Tensor]:
    """The offset [S] of the fewest styles that moves the mean logit by one standard deviation, and the response to it
    [A]; where none goes so far, the most effective one."""
    steps = relevance.sign() * spreads
    order = relevance.abs().argsort(descending=True)

    def moving(channels: Tensor) -> Tensor:
        return torch.zeros_like(steps).index_copy(0, channels, steps[channels])

    def gain(response: Tensor) -> float:
        return sign * response[column].item()

    alone = [
        gain(trial.effect(TRIED_SPREADS * moving(channel[None]), TRIED_HEADS).response) for channel in order[:TRIED]
    ]
    order = torch.cat([order[:TRIED][torch.tensor(alone) > 0], order[TRIED:]])
    best, best_response = torch.zeros_like(steps), torch.zeros_like(trial.sigma)
    for count in COUNTS:
        offset, response = calibrate(trial, moving(order[:count]), 1.0, column, sign, LADDER)
        if gain(response) > gain(best_response):
            best, best_response = offset, response
        # Interpolated: what reaches 1 is 1 up to rounding.
        if gain(best_response) > 0.999 or count >= len(order):
            break
    return best, best_response


@torch.no_grad()
def learn(
    latents: NpzFile,
    trial: EditTrial,
    generator: TriPlaneGenerator,
    keys: list[str] | None,  # attributes; None = the main ones
    about: dict[str, str],  # space and fingerprint
) -> tuple[StyleChannels, dict, dict[str, str]]:
    """The edits, a report of each, and key -> reason of those left out.

    Raises ValueError where nothing is left."""
    names = [str(name) for name in latents["attribute_names"]]
    logits = latents["logits"].astype(np.float32)
    labels = latents["labels"] if "labels" in latents else np.full_like(logits, np.nan)
    w = torch.from_numpy(latents["w"].astype(np.float32)).to(generator.device)
    styles = torch.cat([generator.styles(part) for part in w.split(256)]).cpu()
    found, report, left_out = {}, {}, {}
    for key in tqdm(known(keys, names, MAIN_ATTRIBUTES), desc="channels", mininterval=5):
        sign, column = ATTRIBUTES[key].sign, names.index(ATTRIBUTES[key].celeba)
        score = torch.from_numpy(sign * scores(labels[:, column], logits[:, column])).nan_to_num(-np.inf)
        has = int((score > 0).sum())
        if has < FEWEST:
            left_out[key] = f"Only {has} latents have it; {FEWEST} are needed."
            continue
        positive = styles[score.argsort(descending=True)[: min(has, POSITIVES)]]
        relevant = relevance(positive, styles)
        offset, response = control(trial, relevant, styles.std(0), column, sign)
        if not offset.any():
            left_out[key] = "No channels that tell it apart move it."
            continue
        found[key] = offset
        report[key] = {
            "attribute": ATTRIBUTES[key].celeba,
            "channels": int(offset.count_nonzero()),
            "relevance": round(relevant.abs().max().item(), 3),
            "aa": round(sign * response[column].item(), 3),
            "ad_per_aa": round(dependency(response, column), 3),
        }
    if not found:
        raise ValueError(f"No attribute has channels. {' '.join(left_out.values())}")
    sizes = generator.backbone.synthesis.style_sizes
    edits = StyleChannels(tuple(found), tuple(sizes), tuple(sizes.values()), **about)
    edits.vectors.copy_(torch.stack(list(found.values())))
    for key in found:
        first = sorted(edits.channels(key), key=lambda channel: -abs(channel.step))[:TRIED]
        report[key]["largest"] = [[layer, channel, round(step, 4)] for layer, channel, step in first]
    return edits, report, left_out


def known(keys: list[str] | None, names: list[str], count: int) -> list[str]:
    """The attributes asked for, or the first `count` that the classifier knows.

    Raises ValueError for one that it does not know."""
    readable = [key for key, attribute in ATTRIBUTES.items() if attribute.celeba in names]
    for key in keys or ():
        if key not in readable:
            raise ValueError(f"`{key}` is no attribute that the classifier reads; it reads {', '.join(readable)}.")
    return keys or readable[:count]

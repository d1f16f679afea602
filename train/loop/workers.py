"""Several processes, one per GPU or machine (`accelerate launch`): the same start, averaged gradients, shared batch
statistics. With a single process every function here gives back what it was given."""

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn


def join(device: str) -> PartialState:
    """This process's place among the others: `process_index`, `num_processes`, `device`."""
    return PartialState(cpu=torch.device(device).type == "cpu")


@torch.no_grad()
def same_start(network: nn.Module) -> None:
    """Give every process the weights and buffers of the first."""
    if PartialState().num_processes > 1:
        for tensor in network.state_dict().values():
            broadcast(tensor)


@torch.no_grad()
def average_gradients(network: nn.Module) -> None:
    """Replace every gradient by its mean over the processes, which is the gradient of the batches taken together."""
    state = PartialState()
    if state.num_processes == 1:
        return
    # All processes take the same rounds, so that a parameter without a gradient here has none anywhere.
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= state.num_processes
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view_as(gradient))


class _Sum(torch.autograd.Function):
    """The sum over all processes, of values and of gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def agree(value: float) -> float:
    """The first process's value: clocks differ, and all must stop at the same step."""
    state = PartialState()
    if state.num_processes == 1:
        return value
    return broadcast(torch.tensor(value, dtype=torch.float64, device=state.device)).item()


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes' batches, which must be of one size.

    torch.nn.SyncBatchNorm does the same on GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        exact = x if x.dtype == torch.float64 else x.float()
        moments = torch.stack([exact.mean((0, 2, 3)), exact.square().mean((0, 2, 3))])
        mean, square = _Sum.apply(moments) / dist.get_world_size()
        variance = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            count = x.numel() / x.shape[1] * dist.get_world_size()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def share_statistics(network: nn.Module) -> None:
    """Make every batch normalisation of `network` a `SharedBatchNorm`, where there are several processes."""
    if PartialState().num_processes > 1:
        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SharedBatchNorm

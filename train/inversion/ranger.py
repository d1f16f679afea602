"""Ranger, the released code's optimiser: RAdam (Liu et al. 2020) with lookahead (Zhang et al. 2019) and gradient
centralisation (Yong et al. 2020)."""

import torch


class Ranger(torch.optim.RAdam):
    """RAdam on centred gradients; every `k` steps the slow weights move a share `alpha` of the way to the fast ones,
    and the fast ones start from there."""

    def __init__(self, params, lr=1e-4, betas=(0.95, 0.999), eps=1e-5, weight_decay=0.0, k=6, alpha=0.5):
        super().__init__(params, lr, betas, eps, weight_decay)
        self.k, self.alpha = k, alpha

    @torch.no_grad()
    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        slow = [self.state[p]["slow"] if self.state[p] else p.detach().clone() for p in parameters]
        for p in parameters:
            if p.ndim > 1:
                p.grad.sub_(p.grad.mean(tuple(range(1, p.ndim)), keepdim=True))
        loss = super().step(closure)
        for p, kept in zip(parameters, slow):
            if int(self.state[p]["step"]) % self.k == 0:
                kept.lerp_(p, self.alpha)
                p.copy_(kept)
            self.state[p]["slow"] = kept
        return loss

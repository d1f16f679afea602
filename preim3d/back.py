"""w -> the part of a head that photos do not show: the crown, and all that lies behind the ears.

One photo says nothing about it, and planes that front and back share paint the face on both (the mirroring that
SphereHead, Li et al. 2024, describes). So the back is no network's: it is a mean over synthetic heads plus their
principal components, how much of each being read off w linearly (`python -m train.back`). A mean of signed distances
is round and closed, and an edit of w reaches the back too. It is stitched to the front along `back_share`.
"""

import torch
from torch import Tensor, nn

from .renderer import weighted_rows


BOX = 1.06  # side of the cube that the back's grid covers: crowns and long hair leave the front's
CELLS = 32  # of the grid along a side; its values stand in the middles of the cells
LIMIT = 2.5  # in spreads of a component: beyond, heads are rarer than the reader is sure

# The back begins at z = EDGE and has taken over BLEND further back; above RISE_FROM, where the picture soon ends, it
# comes forward with the square of the height.
EDGE, BLEND = -0.04, 0.08
RISE_FROM, RISE = 0.14, 10.0

# How far, across and up, a colour of the front's at the seam is carried to the back; how near the surface it is read.
CARRY = 0.06
SEAM_DEPTH = 0.035

BUST = 0.36, -0.355  # radius and bottom of the upright cylinder that synthetic heads end at, and so do meshes
STEEPNESS = 2500.0  # raw density per unit of distance
LEAST_DENSITY, MOST_DENSITY = -20.0, 150.0  # raw; the least also stands where no head has ever been


class Back(nn.Module):
    """w -> signed distances and colours on a grid; and the hull of all heads. All tensors are x, y, z."""

    def __init__(
        self,
        num_ws: int,
        w_dim: int,
        channels: int,  # of the field's colours
        shape_components: int = 16,
        color_components: int = 10,
    ):
        super().__init__()
        self.counts = [shape_components, color_components]
        grid = 3 * (CELLS,)
        self.reader = nn.Linear(num_ws * w_dim, sum(self.counts))
        # The mean and, in their spreads, the components: of distances, inside positive, and of RGB in [0, 1].
        self.register_buffer("distance", torch.zeros(1 + shape_components, *grid))
        self.register_buffer("color", torch.zeros(1 + color_components, 3, *grid))
        self.register_buffer("lift", torch.zeros(4, channels - 3))  # RGB, 1 -> the other colours of the field
        self.register_buffer("hull", torch.ones(grid))  # 1 where a head can be

    def components(self, ws: Tensor) -> Tensor:
        """ws [B, num_ws, w_dim] -> how much of each component [B, K], in its spreads: those of shape, then colour."""
        return self.reader(ws.flatten(1)).clamp(-LIMIT, LIMIT)

    def forward(self, ws: Tensor) -> Tensor:
        """ws [B, num_ws, w_dim] -> grid [B, CELLS, CELLS, CELLS, 4]: signed distance, RGB."""
        shape, color = self.components(ws).split(self.counts, dim=1)
        distance = self.distance[0] + torch.einsum("bk,kxyz->bxyz", shape, self.distance[1:])
        rgb = self.color[0] + torch.einsum("bk,kcxyz->bcxyz", color, self.color[1:])
        return torch.cat([distance[:, None], rgb], 1).permute(0, 2, 3, 4, 1).contiguous()

    def seam(self) -> Tensor:
        """The cells' middles [P, 3] where front and back meet."""
        axis = ((torch.arange(CELLS, device=self.hull.device) + 0.5) / CELLS - 0.5) * BOX
        points = torch.cartesian_prod(axis, axis, axis)
        share = back_share(points)
        return points[(share > 0) & (share < 1) & (self.hull.flatten() > 0)]

    def match_colors(
        self,
        grid: Tensor,  # [B, CELLS, CELLS, CELLS, 4]
        seam: Tensor,  # [P, 3]
        density: Tensor,  # [B, P, 1] raw, of the front at the seam
        rgb: Tensor,  # [B, P, 3] in [0, 1], likewise
        level: float,  # raw density at the surface
    ) -> Tensor:
        """The grid in the front's colours: hair and skin of the photo, which the components know only roughly."""
        cell = ((seam / BOX + 0.5) * CELLS).long().unbind(-1)
        ours = grid[:, cell[0], cell[1], cell[2]]  # [B, P, 4]
        # Colours mean something where both fields have their surface.
        weight = (1 - ours[..., :1].abs() / SEAM_DEPTH).clamp(min=0) * (density / level).clamp(0, 1)
        axis = ((torch.arange(CELLS, device=grid.device) + 0.5) / CELLS - 0.5) * BOX
        x, y = (torch.exp(-((axis[:, None] - seam[:, i]) / CARRY).square() / 2) for i in (0, 1))  # [CELLS, P]
        carried = torch.einsum("xp,yp,bpc->bxyc", x, y, torch.cat([weight * (rgb - ours[..., 1:]), weight], -1))
        # Far from the seam, the mean difference.
        mean = carried.sum((1, 2), keepdim=True)
        mean = mean[..., :3] / (mean[..., 3:] + 1e-3)
        offset = (carried[..., :3] + 0.05 * mean) / (carried[..., 3:] + 0.05)
        return torch.cat([grid[..., :1], grid[..., 1:] + offset[:, :, :, None]], -1)

    def read(
        self,
        grid: Tensor,  # [B, CELLS, CELLS, CELLS, 4]
        points: Tensor,  # [N, 3]
        head: Tensor,  # [N] which of the B each belongs to
        level: float,  # raw density at the surface
    ) -> tuple[Tensor, Tensor]:
        """Raw density [N, 1] and colours [N, C] in [0, 1] of the field, between the cells' middles trilinear."""
        position = (points / BOX + 0.5) * CELLS - 0.5
        low = position.floor().clamp(0, CELLS - 2)
        high_weight = (position - low).clamp(0, 1).unbind(-1)
        low = low.int().unbind(-1)
        rows, weights = [], []
        for x in (0, 1):
            for y in (0, 1):
                for z in (0, 1):
                    row = ((head.int() * CELLS + low[0] + x) * CELLS + low[1] + y) * CELLS + low[2] + z
                    rows.append(row)
                    ends = ((w if end else 1 - w) for w, end in zip(high_weight, (x, y, z)))
                    weights.append(torch.stack(list(ends)).prod(0))
        values = weighted_rows(grid.flatten(0, 3), torch.stack(rows, -1), torch.stack(weights, -1))
        density = (level + STEEPNESS * values[:, :1]).clamp(LEAST_DENSITY, MOST_DENSITY)
        rgb = values[:, 1:]
        return density, torch.cat([rgb, rgb @ self.lift[:3] + self.lift[3]], 1).clamp(0, 1)

    def in_hull(self, points: Tensor) -> Tensor:
        """Can a head be at the points [..., 3]? [...] bool"""
        cell = ((points / BOX + 0.5) * CELLS).floor()
        inside = ((cell >= 0) & (cell < CELLS)).all(-1)
        x, y, z = cell.clamp(0, CELLS - 1).long().unbind(-1)
        return inside & (self.hull.view(-1)[(x * CELLS + y) * CELLS + z] > 0)


def back_share(points: Tensor) -> Tensor:
    """How much of the field at points [..., 3] is the back's: [...] from 0 to 1, smooth."""
    y, z = points[..., 1], points[..., 2]
    begin = EDGE + RISE * (y - RISE_FROM).clamp(min=0).square()
    share = ((begin - z) / BLEND).clamp(0, 1)
    return share.square() * (3 - 2 * share)

"""w -> the part of a head that photos do not show: the crown, and all that lies behind the ears.

One photo says nothing about it, and planes that front and back share paint the face on both (the mirroring that
SphereHead, Li et al. 2024, describes). So the back is no network's: it is a mean over synthetic heads plus their
principal components, how much of each being read off w linearly (`python -m train.back`). A mean of signed distances
is round and closed, and an edit of w reaches the back too. It is stitched to the front along `back_share`.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .renderer import weighted_rows


BOX = 1.06  # side of the cube that the back's grid covers: crowns and long hair leave the front's
CELLS = 32  # of the grid along a side; its values stand in the middles of the cells
LIMIT = 2.5  # in spreads of a component: beyond, heads are rarer than the reader is sure

# The back begins at z = EDGE and has taken over BLEND further back; above RISE_FROM, where the picture soon ends, it
# comes forward with the square of the height.
EDGE, BLEND = -0.04, 0.08
RISE_FROM, RISE = 0.14, 10.0

# How far across and up a colour at the seam is carried from front to back, and how near the surface it is read.
CARRY = 0.05
SEAM_DEPTH = 0.035
HAIR_ABOVE = 0.12
TRUST = 0.1  # in what w says of the shape, against what the front's outline does

BUST = 0.36, -0.355  # radius and bottom of the upright cylinder that synthetic heads end at, and so do meshes
THIN_DENSITY = 2.0  # raw: where no cell near has more than this, nothing is read; views then keep 60 dB
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
        # 1 where a head can be, which is not in the outermost cells.
        self.register_buffer("hull", F.pad(torch.ones(3 * (CELLS - 2,)), 6 * (1,)))

    def components(self, ws: Tensor) -> Tensor:
        """ws [B, num_ws, w_dim] -> how much of each component [B, K], in its spreads: those of shape, then colour."""
        return self.reader(ws.flatten(1)).clamp(-LIMIT, LIMIT)

    def forward(
        self,
        ws: Tensor,  # [B, num_ws, w_dim]
        seam: Tensor,  # [P, 3]
        density: Tensor,  # [B, P, 1] raw, of the front at the seam
        rgb: Tensor,  # [B, P, 3] in [0, 1], likewise
        level: float,  # raw density at the surface
    ) -> Tensor:
        """Grid [B, CELLS, CELLS, CELLS, 4]: signed distance, RGB, such as fit the front at the seam."""
        shape, color = self.components(ws).split(self.counts, dim=1)
        grid = self.grid(self.match_shape(shape, seam, density, level), color)
        return self.match_colors(grid, seam, density, rgb, level)

    def match_shape(self, shape: Tensor, seam: Tensor, density: Tensor, level: float) -> Tensor:
        """Components of shape [B, K] that agree with the front's outline at the seam, and otherwise stay near those
        given: hair is then as long and as full as in the photo."""
        mean, components = self.distance[:, *cells_of(seam)].split([1, len(self.distance) - 1])  # [1, P], [K, P]
        wanted = ((density[..., 0] - level) / STEEPNESS).clamp(-SEAM_DEPTH, SEAM_DEPTH)
        pull = torch.linalg.inv(components @ components.T + TRUST * torch.eye(len(components)).to(components))
        # The front's density is no distance: where both say inside, or both outside, they agree. Hence a few steps.
        for _ in range(4):
            found = (mean + shape @ components).clamp(-SEAM_DEPTH, SEAM_DEPTH)
            wrong = torch.where(wanted * found < 0, wanted - found, 0.0)
            shape = (shape + wrong @ components.T @ pull).clamp(-LIMIT, LIMIT)
        return shape

    def grid(self, shape: Tensor, color: Tensor) -> Tensor:
        """Components [B, K] each -> grid [B, CELLS, CELLS, CELLS, 4]: signed distance, RGB."""
        distance = self.distance[0] + torch.einsum("bk,kxyz->bxyz", shape, self.distance[1:])
        rgb = self.color[0] + torch.einsum("bk,kcxyz->bcxyz", color, self.color[1:])
        return torch.cat([distance[:, None], rgb], 1).permute(0, 2, 3, 4, 1).contiguous()

    def middles(self) -> Tensor:
        """The cells' middles [P, 3], z fastest."""
        axis = ((torch.arange(CELLS, device=self.hull.device) + 0.5) / CELLS - 0.5) * BOX
        return torch.cartesian_prod(axis, axis, axis)

    def seam(self) -> Tensor:
        """The cells' middles [P, 3] where front and back meet."""
        points = self.middles()
        share = back_share(points)
        return points[(share > 0) & (share < 1) & (self.hull.flatten() > 0)]

    def guide(self, rough: Tensor, points: Tensor) -> Tensor:
        """Raw density [CELLS, CELLS, CELLS] at the cells' middles of one head -> at points [N, 3], trilinear: [N]."""
        # `grid_sample` takes the last axis of the grid for the first coordinate.
        places = points.flip(-1) * (2 / BOX)
        grid, places = rough[None, None], places[None, None, None]
        return F.grid_sample(grid, places, padding_mode="border", align_corners=False).flatten()

    def near_matter(self, density: Tensor) -> Tensor:
        """Raw density [B, P] at the cells' middles -> [B, CELLS, CELLS, CELLS] bool: whether there is matter in the
        cell or in one beside it."""
        matter = (density > THIN_DENSITY).float().view(-1, 1, *self.hull.shape)
        return (F.max_pool3d(matter, 3, stride=1, padding=1)[:, 0] > 0) & (self.hull > 0)

    def match_colors(
        self,
        grid: Tensor,  # [B, CELLS, CELLS, CELLS, 4]
        seam: Tensor,  # [P, 3]
        density: Tensor,  # [B, P, 1] raw, of the front at the seam
        rgb: Tensor,  # [B, P, 3] in [0, 1], likewise
        level: float,  # raw density at the surface
    ) -> Tensor:
        """The grid in the front's colours: hair and skin of the photo, which the components know only roughly."""
        ours = grid[:, *cells_of(seam)]  # [B, P, 4]
        # Colours mean something where both fields have their surface.
        weight = (1 - ours[..., :1].abs() / SEAM_DEPTH).clamp(min=0) * (density / level).clamp(0, 1)
        axis = ((torch.arange(CELLS, device=grid.device) + 0.5) / CELLS - 0.5) * BOX
        x, y = (torch.exp(-((axis[:, None] - seam[:, i]) / CARRY).square() / 2) for i in (0, 1))  # [CELLS, P]
        differences = torch.cat([weight * (rgb - ours[..., 1:]), weight], -1)  # [B, P, 4]
        carried = torch.einsum("xp,yp,bpc->bxyc", x, y, differences)
        # Far from the seam it is hair, whose difference is that at the top.
        hair = differences[:, seam[:, 1] > HAIR_ABOVE].sum(1)[:, None, None]
        hair = hair[..., :3] / (hair[..., 3:] + 1e-3)
        offset = (carried[..., :3] + hair) / (carried[..., 3:] + 1)
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
        ends = [(1 - weight, weight) for weight in high_weight]
        rows, weights = [], []
        for x, y in product((0, 1), (0, 1)):
            start = ((head.int() * CELLS + low[0] + x) * CELLS + low[1] + y) * CELLS + low[2]
            weight = ends[0][x] * ends[1][y]
            rows += [start, start + 1]
            weights += [weight * ends[2][0], weight * ends[2][1]]
        values = weighted_rows(grid.flatten(0, 3), torch.stack(rows, -1), torch.stack(weights, -1))
        density = (level + STEEPNESS * values[:, :1]).clamp(LEAST_DENSITY, MOST_DENSITY)
        return density, self.lifted(values[:, 1:])

    def lifted(self, rgb: Tensor) -> Tensor:
        """RGB [N, 3] -> all colours of the field [N, C] in [0, 1], RGB first."""
        return torch.cat([rgb, rgb @ self.lift[:3] + self.lift[3]], 1).clamp(0, 1)

    def in_cells(self, cells: Tensor, points: Tensor, head: Tensor) -> Tensor:
        """Cells [B, CELLS, CELLS, CELLS] bool, points [N, 3], the head [N] of each -> the point's cell [N]; false
        outside the grid."""
        # The outermost cells are empty, and stand for all beyond.
        x, y, z = ((points + BOX / 2) * (CELLS / BOX)).clamp(0, CELLS - 1).int().unbind(-1)
        return cells.flatten()[((head * CELLS + x) * CELLS + y) * CELLS + z]


def cells_of(points: Tensor) -> tuple[Tensor, ...]:
    """Points [P, 3] in the box -> the x, y and z [P] of their cells."""
    return ((points / BOX + 0.5) * CELLS).long().unbind(-1)


def back_share(points: Tensor) -> Tensor:
    """How much of the field at points [..., 3] is the back's: [...] from 0 to 1, smooth."""
    y, z = points[..., 1], points[..., 2]
    begin = EDGE + RISE * (y - RISE_FROM).clamp(min=0).square()
    share = ((begin - z) / BLEND).clamp(0, 1)
    return share.square() * (3 - 2 * share)

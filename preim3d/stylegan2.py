"""StyleGAN2 in plain torch: z -> w by the mapping network, w -> a picture of any number of channels by synthesis.

Sources: StyleGAN (Karras et al. 2019) for the mapping network and the learning-rate multiplier, StyleGAN2 (Karras
et al. 2020) for weight demodulation (equations 1 to 3) and the skip architecture (figure 7b). Parameters have the
names of the published checkpoints. One w scales the weights, as published: large pictures are passed over least often.
For a batch of different w, or where w itself is learned, the activations are scaled instead (style in, demodulation
out): the same numbers, one shared convolution, and no gradient need be found for weights that stay as they are, which
takes a CPU three times as long as all the rest.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


# ----------------------------------------------------------------------------
# Layers.


def second_moment_norm(x: Tensor) -> Tensor:
    """Rows of mean square 1. The epsilon keeps an all-zero row finite."""
    return x * (x.square().mean(dim=-1, keepdim=True) + 1e-8).rsqrt()


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2 times sqrt(2), which keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class FullyConnected(nn.Module):
    """Linear layer of equalised learning rate: weights are stored as N(0, 1) / lr and scaled when used."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,  # Learning rate of this layer relative to the others.
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init)))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(
        self,
        x: Tensor,  # [..., in_features]
        outputs: slice = slice(None),  # Which of the out_features are wanted.
    ) -> Tensor:
        weight, bias = self.weight[outputs] * self.weight_gain, self.bias[outputs]
        if self.bias_gain != 1:
            bias = bias * self.bias_gain
        if x.dtype == torch.float64:
            weight, bias = weight.double(), bias.double()
        return F.linear(x, weight, bias)


def smoothing_filter() -> Tensor:
    """[1, 3, 3, 1] (x) [1, 3, 3, 1] / 16 [4, 4]. Its gain of 4 makes up for the zeros.

    Whoever smooths keeps it as a buffer that is not saved: made anew each time it would be copied from the host, and a
    GPU waits for that."""
    row = torch.tensor([0.25, 0.75, 0.75, 0.25])
    return torch.outer(row, row)


def upsample(x: Tensor, smoothing: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W]: zero-stuffing and the smoothing filter [4, 4]: bilinear but at the border."""
    if x.device.type == "cuda":
        return bilinear_upsample(x)
    channels = x.shape[1]
    with torch.autocast(x.device.type, enabled=False):
        weight = smoothing.to(x.dtype).expand(channels, 1, 4, 4)
        return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=channels)


def bilinear_upsample(x: Tensor) -> Tensor:
    """`upsample` without a depthwise convolution, which is slow on a GPU: bilinear between zeros all around."""
    return F.interpolate(F.pad(x, 4 * (1,)), scale_factor=2, mode="bilinear", align_corners=False)[..., 2:-2, 2:-2]


def blur(x: Tensor, smoothing: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B, C, 2H+1, 2W+1] -> [B, C, 2H, 2W]: zero padding by 1, the smoothing filter [4, 4], and `bias` [C] on top."""
    channels = x.shape[1]
    return F.conv2d(x, smoothing.to(x.dtype).expand(channels, 1, 4, 4), bias, padding=1, groups=channels)


def smooth_upsampling_conv(x: Tensor, weight: Tensor, smoothing: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B, I, H, W] -> [B, O, 2H, 2W]: a transposed convolution by weight [O, I, 3, 3] and `blur` in one, by 6 x 6
    numbers. Four times the multiplications, which a GPU does in less time than it takes to write and read the picture
    once more; and backwards it has no depthwise convolution, whose gradients are slow there."""
    with torch.autocast(x.device.type, enabled=False):
        # The filter is the same forwards and backwards.
        kernel = F.conv2d(weight.flatten(0, 1)[:, None], smoothing[None, None].to(weight.dtype), padding=3)
    kernel = kernel.view(*weight.shape[:2], *kernel.shape[2:])
    return F.conv_transpose2d(x, kernel.transpose(0, 1), bias, stride=2, padding=2)


def scales_weights(style: Tensor) -> bool:
    """Whether weights are scaled by the style [B, I], not activations."""
    return len(style) == 1 and not style.requires_grad


def scaled_conv(
    x: Tensor,  # [B, I, H, W]
    weight: Tensor,  # [O, I, k, k]
    style: Tensor,  # [B, I], which scales the input channels
    smoothing: Tensor | None = None,  # [4, 4]: double H and W, and smooth. None = keep the size.
    bias: Tensor | None = None,  # [O]
) -> Tensor:
    """Convolution of scaled channels, [B, O, H, W] or [B, O, 2H, 2W]."""
    if scales_weights(style):
        weight = weight * style[:, :, None, None]
    else:
        x = x * style.to(x.dtype)[:, :, None, None]
    if smoothing is not None and x.device.type == "cuda":
        return smooth_upsampling_conv(x, weight, smoothing, bias)
    if smoothing is not None:
        return blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), smoothing, bias)
    return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)


def demodulation(weight: Tensor, style: Tensor) -> Tensor:
    """1 / norm of the styled weights of each output channel [B, O] (StyleGAN2, equation 3), always in float32."""
    with torch.autocast(style.device.type, enabled=False):
        energy = weight.float().square().sum(dim=(2, 3))  # [O, I]
        return (style.float().square() @ energy.t() + 1e-8).rsqrt()


def limit(x: Tensor, most: float | None) -> Tensor:
    """Values within [-most, most]; None = as they are. In place where no gradient will ask for what was."""
    if most is None:
        return x
    return x.clamp(-most, most) if torch.is_grad_enabled() else x.clamp_(-most, most)


class SynthesisLayer(nn.Module):
    """Style, 3x3 convolution, noise, bias, leaky ReLU. `resolution` is that of the output."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        up: bool = False,
        use_noise: bool = True,  # Whether there are a fixed noise picture and its learned strength.
        clamp: float | None = None,  # Clamp of the output, for half precision. None = none.
    ):
        super().__init__()
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("smoothing", smoothing_filter() if up else None, persistent=False)
        self.use_noise, self.clamp = use_noise, clamp

    def forward(self, x: Tensor, w: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        """`shift` [B or 1, in_channels] is added to the style."""
        style = self.affine(w) + shift
        # The gain of the activation, sqrt(2), is moved in front of it, which a leaky ReLU does not mind.
        scale = demodulation(self.weight, style)[:, :, None, None] * math.sqrt(2)  # [B, O, 1, 1]
        bias = self.bias * math.sqrt(2)
        if scales_weights(style):
            x = scaled_conv(x, self.weight * scale.transpose(0, 1), style, self.smoothing, bias)
        else:
            x = scaled_conv(x, self.weight, style, self.smoothing)
            x = torch.addcmul(bias[:, None, None].to(x.dtype), x, scale.to(x.dtype))
        if self.use_noise:
            # In place: on a CPU a further picture of this size takes long to be written and read.
            x += (self.noise_const * (self.noise_strength * math.sqrt(2))).to(x.dtype)
        x = F.leaky_relu(x, 0.2, inplace=True)
        return limit(x, self.clamp)


class ToRGB(nn.Module):
    """Style and 1x1 convolution, without demodulation or activation, to the channels of the picture."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, clamp: float | None = None):
        super().__init__()
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.style_gain = 1 / math.sqrt(in_channels)  # Stands in for demodulation.
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        """`shift` [B or 1, in_channels] is added to the style."""
        x = scaled_conv(x, self.weight, (self.affine(w) + shift) * self.style_gain, bias=self.bias)
        return limit(x, self.clamp)


class SynthesisBlock(nn.Module):
    """One resolution: two layers, and the picture so far plus this block's (figure 7b). The first has one layer."""

    def __init__(
        self,
        in_channels: int,  # 0 = the first block, which starts from a learned constant.
        out_channels: int,
        image_channels: int,
        w_dim: int,
        resolution: int,
        up: bool = True,
        use_noise: bool = True,
        clamp: float | None = None,
    ):
        super().__init__()
        self.register_buffer("smoothing", smoothing_filter() if up and in_channels else None, persistent=False)
        if in_channels:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up, use_noise, clamp)
        else:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, False, use_noise, clamp)
        self.torgb = ToRGB(out_channels, image_channels, w_dim, clamp)

    def forward(
        self,
        x: Tensor | None,  # [B, I, h, w], None in the first block
        image: Tensor | None,  # [B, C, h, w], None in the first block
        ws: list[Tensor],  # One [B, w_dim] for each of conv0 (not in the first block), conv1, torgb.
        shifts: Sequence[Tensor | float] = (0.0, 0.0, 0.0),  # Likewise: what is added to their styles.
    ) -> tuple[Tensor, Tensor]:
        if x is None:
            x = self.const.expand(len(ws[0]), -1, -1, -1)
            x = x.contiguous(memory_format=torch.channels_last)
        else:
            x = self.conv0(x, ws[-3], shifts[-3])
        x = self.conv1(x, ws[-2], shifts[-2])
        rgb = self.torgb(x, ws[-1], shifts[-1]).float()  # The picture adds up in float32, whatever the layers run in.
        if image is not None:
            rgb += image if self.smoothing is None else upsample(image, self.smoothing)
        return x, rgb


# ----------------------------------------------------------------------------
# Networks.


class MappingNetwork(nn.Module):
    """z [B, z_dim] and, if c_dim > 0, a condition [B, c_dim] -> w [B, w_dim]."""

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, layers: int):
        super().__init__()
        if c_dim:
            self.embed = FullyConnected(c_dim, w_dim)
        self.c_dim, self.layers = c_dim, layers
        for i in range(layers):
            in_features = (z_dim + (w_dim if c_dim else 0)) if i == 0 else w_dim
            self.add_module(f"fc{i}", FullyConnected(in_features, w_dim, lr_multiplier=0.01))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        # In double precision, which costs nothing here: w then hardly depends on the machine. Apple's GPUs have none.
        dtype = torch.float32 if z.device.type == "mps" else torch.float64
        x = second_moment_norm(z.to(dtype))
        if self.c_dim:
            x = torch.cat([x, second_moment_norm(self.embed(condition.to(dtype)))], dim=1)
        for i in range(self.layers):
            x = leaky_relu(self.get_submodule(f"fc{i}")(x))
        return x.float()


class SynthesisNetwork(nn.Module):
    """ws [B, num_ws, w_dim] -> picture [B, image_channels, resolution, resolution]."""

    def __init__(
        self,
        w_dim: int,
        resolution: int,  # A power of two, 8 or more.
        image_channels: int,
        channel_base: int = 32768,  # Channels at resolution r: channel_base / r ...
        channel_max: int = 512,  # ... but no more than this.
    ):
        super().__init__()
        assert resolution >= 8 and resolution & (resolution - 1) == 0, resolution
        self.resolutions = [2**i for i in range(2, resolution.bit_length())]  # 4, 8, ... resolution
        in_channels = 0
        for r in self.resolutions:
            out_channels = min(channel_base // r, channel_max)
            self.add_module(f"b{r}", SynthesisBlock(in_channels, out_channels, image_channels, w_dim, r))
            in_channels = out_channels
        self.num_ws = 2 * len(self.resolutions)  # One for each convolution and one for the last torgb.

    def forward(
        self,
        ws: Tensor,
        styles_offset: Tensor | None = None,  # [B, S], or [1, S] for all: what is added to `styles`. None = nothing.
    ) -> Tensor:
        assert ws.shape[1] == self.num_ws, ws.shape
        shifts = iter(()) if styles_offset is None else iter(self._by_layer(styles_offset, len(ws)))
        x = image = None
        for i, r in enumerate(self.resolutions):
            # Block i reads rows 2i-1, 2i and 2i+1: its torgb shares a row with the next block's first convolution.
            rows = self._rows(ws, i)
            x, image = self.get_submodule(f"b{r}")(x, image, rows, [next(shifts, 0.0) for _ in rows])
        return image

    @property
    def style_sizes(self) -> dict[str, int]:
        """Layer, such as `b8.conv0`, -> its style's channels, in the order in which layers are passed. Their sum is S:
        the dimensions of S space (Wu et al. 2021)."""
        return {
            name: len(layer.affine.bias)
            for name, layer in self.named_modules()
            if isinstance(layer, SynthesisLayer | ToRGB)
        }

    def styles(self, ws: Tensor) -> Tensor:
        """ws [B, num_ws, w_dim] -> the styles of all layers side by side [B, S]."""
        rows = [row for i in range(len(self.resolutions)) for row in self._rows(ws, i)]
        return torch.cat([self.get_submodule(name).affine(row) for name, row in zip(self.style_sizes, rows)], dim=1)

    @staticmethod
    def _rows(ws: Tensor, block: int) -> tuple[Tensor, ...]:
        """The rows [B, w_dim] that a block's layers read."""
        return ws[:, max(2 * block - 1, 0) : 2 * block + 2].unbind(dim=1)

    def _by_layer(self, styles_offset: Tensor, batch: int) -> tuple[Tensor, ...]:
        sizes = list(self.style_sizes.values())
        assert styles_offset.shape in ((batch, sum(sizes)), (1, sum(sizes))), styles_offset.shape
        return styles_offset.split(sizes, dim=1)

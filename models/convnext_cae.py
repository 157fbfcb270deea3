"""The two networks: the autoencoder (`cae_convnext_*`) and the restorer (`restorer_convnext_*`).

Both are timm's ConvNeXt (Liu et al., "A ConvNet for the 2020s", 2022) followed by its mirror image. In the autoencoder all
information passes through the latent vector. In the restorer every decoder stage also gets the encoder's feature map of the same
resolution, the latent scales and shifts the coarse stages, and stages of a U-Net at full and half resolution, before the encoder
and after the decoder, take the place of ConvNeXt's patches. img_size 224, size tiny, autoencoder:

    picture (N, 1, 224, 224) → stages at 56, 28, 14, 7 → mean over the map → latent (N, 768)
    → depthwise transposed convolution to 7×7 → stages at 7, 14, 28, 56, 112, 224 → logits (N, 1, 224, 224)

With four channels the restorer also takes a guide, and state and time of a flow (`util.flow`): it gives the mean of all characters
that could have been, given the state.
"""

import math

import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models import register_model
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from models.convolutions import TransposedConv2d, speed_up
from models.norms import BatchNorm2d

SIZES = ("atto", "femto", "pico", "nano", "tiny")


def upsample(in_chs: int, out_chs: int) -> nn.Sequential:
    """The inverse of ConvNeXt's downsampling: (N, in_chs, H, W) → (N, out_chs, 2H, 2W)."""
    return nn.Sequential(LayerNorm2d(in_chs), TransposedConv2d(in_chs, out_chs, kernel_size=2, stride=2))


def conv_stage(dim: int) -> nn.Sequential:
    """(N, dim, H, W) → the same, at strides 1 and 2 of the autoencoder, where a ConvNeXt block is too expensive.

    Without a norm it is faster, and as good or better in a short training.
    """
    return nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.SiLU())


def plain_stage(in_chs: int, out_chs: int) -> nn.Sequential:
    """A stage of a U-Net (Ronneberger et al., 2015): (N, in_chs, H, W) → (N, out_chs, H, W), at strides 1 and 2 of the restorer."""
    convs = (nn.Conv2d(chs, out_chs, 3, padding=1, bias=False) for chs in (in_chs, out_chs))
    return nn.Sequential(*(layer for conv in convs for layer in (conv, BatchNorm2d(out_chs), nn.ReLU())))


class Merge(nn.Conv2d):
    """1×1 convolution of two maps (N, dim, H, W) as if of their channels together, which need not be copied for it."""

    def __init__(self, dim: int):
        super().__init__(2 * dim, dim, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        first, second = self.weight.chunk(2, dim=1)
        return F.conv2d(skip, second, self.bias) + F.conv2d(x, first)


class ConvNeXtCAE(nn.Module):
    """Convolutional autoencoder, or with `skips` the restorer.

    Args:
        backbone: name of the timm ConvNeXt that is the encoder; the decoder mirrors its widths and depths.
        img_size: usual height and width of the picture in pixels, a multiple of 32; the restorer takes others, see `decode`.
        in_chans: 1, the degraded picture; 2, and a guide (zeros: none); 4, and the flow's state and time.
        latent_dim: size of the latent vector.
        skips: pass the encoder's feature maps to the decoder stages of the same resolution.
        ls_init_value: initial layer scale; with ConvNeXt's own 1e-6 the blocks stay inactive in a short training.
        pretrained: initialise the encoder with timm's ImageNet weights (downloaded by timm).

    Raises ValueError for an `img_size` or `in_chans` that is not supported.
    """

    def __init__(
        self,
        backbone: str = "convnext_tiny",
        img_size: int = 224,
        in_chans: int = 1,
        latent_dim: int = 768,
        skips: bool = False,
        ls_init_value: float = 1e-2,
        pretrained: bool = False,
    ):
        super().__init__()
        if img_size < 32 or img_size % 32:
            raise ValueError(f"img_size must be a multiple of 32, not {img_size}")
        if in_chans not in (1, 2, 4):
            raise ValueError(f"in_chans must be 1 (picture), 2 (and guide) or 4 (and state and time), not {in_chans}")
        self.img_size, self.in_chans, self.latent_dim, self.skips = img_size, in_chans, latent_dim, skips

        self.encoder = timm.create_model(
            backbone, pretrained=pretrained, in_chans=in_chans, num_classes=0, ls_init_value=ls_init_value
        )
        widths = [info["num_chs"] for info in self.encoder.feature_info]
        depths = [len(stage.blocks) for stage in self.encoder.stages]
        conv_mlp = self.encoder.stages[0].blocks[0].use_conv_mlp
        self.to_latent = nn.Linear(widths[-1], latent_dim)
        # an untrained ConvNeXt maps all pictures to nearly the same vector, and the decoder would learn only the mean picture
        self.latent_norm = BatchNorm2d(latent_dim, affine=False)

        self.from_latent = nn.Linear(latent_dim, widths[-1])
        self.unpool = nn.ConvTranspose2d(widths[-1], widths[-1], img_size // 32, groups=widths[-1])
        fine = [widths[0] // 4, widths[0] // 2]  # widths at strides 1 and 2
        if skips:
            fine = [8 * math.ceil(widths[0] / 16), 16 * math.ceil(widths[0] / 16)]
        self.ups = nn.ModuleList(upsample(i, o) for i, o in zip(widths[::-1], [*widths[-2::-1], fine[1]], strict=True))
        # No norm before the last step: on blank ground all channels are nearly equal, and a norm would amplify their differences.
        self.ups.append(TransposedConv2d(fine[1], fine[0], kernel_size=2, stride=2))
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(w, ls_init_value=ls_init_value, conv_mlp=conv_mlp) for _ in range(d)))
            for w, d in zip(widths[::-1], depths[::-1], strict=True)
        )
        if skips:
            half = nn.Sequential(nn.MaxPool2d(2), plain_stage(fine[0], fine[1]))
            self.fine_encoder = nn.ModuleList([plain_stage(in_chans, fine[0]), half])
            self.encoder.stem = nn.Sequential(nn.Conv2d(fine[1], widths[0], 2, stride=2), LayerNorm2d(widths[0]))
            self.stages.extend(plain_stage(2 * w, w) for w in fine[::-1])
        else:
            self.stages.extend(nn.Sequential(conv_stage(w), conv_stage(w)) for w in fine[::-1])
            self.stages[4:].apply(_init_without_norm)
        self.to_logits = nn.Conv2d(fine[0], 1, 1)
        self.modulation = [2 * w for w in widths[::-1]]  # scale and shift of the channels at strides 32 to 4
        if skips:
            self.merges = nn.ModuleList(Merge(w) for w in widths[::-1])
            self.to_modulation = nn.Linear(latent_dim, sum(self.modulation))

        for module in (self.to_latent, self.from_latent, self.stages[:4]):
            module.apply(_init_like_convnext)
        self.ups[4].apply(_init_without_norm)
        if not pretrained:  # on black ground all channels would be equal, and the gradient of the stem's norm over 10⁴
            nn.init.normal_(self.encoder.stem[0].bias, std=0.2)
        if skips:  # the restorer starts without its latent: learns faster
            for layer in (self.from_latent, self.to_modulation):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.to_logits.bias, -1.7)  # sigmoid(-1.7) = 0.15, the mean fraction of ink
        speed_up(self)

    def features(self, x: Tensor) -> list[Tensor]:
        """(N, in_chans, S, S) → the encoder's feature maps at strides 32, 16, 8, 4 and, in the restorer, 2 and 1.

        S is `img_size` or, in the restorer, any multiple of 32.
        """
        size = x.shape[-1]
        if x.shape[1:] != (self.in_chans, size, size) or size % 32 or not (self.skips or size == self.img_size):
            raise ValueError(f"expected pictures (N, {self.in_chans}, {self.img_size}, {self.img_size}), got {tuple(x.shape)}")
        x = x.contiguous(memory_format=torch.channels_last)  # a fifth faster on a CPU, the norms above all
        maps = []
        if self.skips:
            for stage in self.fine_encoder:
                x = stage(x)
                maps.insert(0, x)
        x = self.encoder.stem(x)
        for stage in self.encoder.stages:
            x = stage(x)
            maps.insert(0, x)
        return maps

    def encode(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) in [0, 1] → latent (N, latent_dim), float32."""
        return self._latent(self.features(x)[0])

    def _latent(self, coarsest: Tensor) -> Tensor:
        latent = self.to_latent(self.encoder.head(coarsest)).to(self.latent_norm.running_mean.dtype)
        return self.latent_norm(latent[:, :, None, None]).flatten(1)

    def decode(self, latent: Tensor, skips: list[Tensor] | None = None) -> Tensor:
        """Latent (N, latent_dim), and in the restorer `features(x)` → logits (N, 1, H, W).

        For pictures of another size than `img_size` the step from the latent to the coarsest map is resized bilinearly.
        """
        weight = self.unpool.weight
        if skips and skips[0].shape[-2:] != weight.shape[-2:]:
            weight = F.interpolate(weight, tuple(skips[0].shape[-2:]), mode="bilinear")
        x = self.from_latent(latent)[:, :, None, None]
        x = F.conv_transpose2d(x, weight, self.unpool.bias, groups=self.unpool.groups)
        x = x.contiguous(memory_format=torch.channels_last)
        modulation = self.to_modulation(latent)[:, :, None, None].split(self.modulation, 1) if self.skips else ()
        for i, stage in enumerate(self.stages):
            if i:
                x = self.ups[i - 1](x)
            if self.skips:
                # without a merge the stage itself merges
                x = self.merges[i](x, skips[i]) if i < len(self.merges) else torch.cat([x, skips[i]], dim=1)
            if i < len(modulation):
                scale, shift = modulation[i].chunk(2, dim=1)
                x = x * (1 + scale) + shift
            x = stage(x)
        return self.to_logits(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) in [0, 1], strokes bright → logits (N, 1, H, W); their sigmoid is the restored picture."""
        maps = self.features(x)
        return self.decode(self._latent(maps[0]), maps if self.skips else None)


def _init_like_convnext(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _init_without_norm(module: nn.Module) -> None:
    """He et al. (2015): keeps the variance where no norm follows."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.ConvTranspose2d):  # kernel and stride are equal: each output sums over the channels only
        nn.init.normal_(module.weight, std=module.in_channels**-0.5)
        nn.init.zeros_(module.bias)


def _register(family: str, size: str, skips: bool) -> None:
    def entry_point(pretrained: bool = False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
        # timm passes three more arguments, about weights of the complete network, which timm does not have
        return ConvNeXtCAE(f"convnext_{size}", skips=skips, pretrained=pretrained, **kwargs)

    entry_point.__name__ = entry_point.__qualname__ = f"{family}_convnext_{size}"
    register_model(entry_point)


for _size in SIZES:
    _register("cae", _size, skips=False)
    _register("restorer", _size, skips=True)

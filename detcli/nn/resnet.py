"""ResNet and ResNeXt backbones (He et al. 2016, arXiv 1512.03385; Xie et al. 2017, arXiv 1611.05431).

State-dict names are torchvision's: conv1, bn1, layer1.0.conv1, layer1.0.downsample.0; gn1 with group norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detcli.errors import UsageError
from detcli.nn.blocks import Norm, make_conv, make_norm, norm_name
from detcli.nn.deform import DeformConv2d, deformable
from detcli.nn.fold import conv_norm
from detcli.plugin import Attention
from detcli.registry import build, split

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet(
    *,
    depth: Literal[18, 34, 50, 101, 152] = 50,
    style: Literal["pytorch", "caffe"] = "pytorch",
    groups: int = 1,
    width_per_group: int = 64,
    norm: Literal["bn", "syncbn", "gn", "gn_ws"] = "bn",
    norm_eval: bool = True,
    norm_trained: bool = True,
    norm_eps: float = 1e-5,
    frozen_stages: int = 1,
    out_stages: tuple[int, ...] = (1, 2, 3, 4),
    strides: tuple[int, ...] = (1, 2, 2, 2),
    dilations: tuple[int, ...] = (1, 1, 1, 1),
    dcn: Literal["none", "v1", "v2"] = "none",
    dcn_stages: tuple[int, ...] = (2, 3, 4),
    dcn_groups: int = 1,
    attention: Attention | None = None,
    attention_stages: tuple[int, ...] = (2, 3, 4),
    attention_after: Literal[1, 2, 3] = 3,
) -> ResNet:
    """Return a ResNet with random weights whose features are the outputs of `out_stages` (1 to 4).

    `style` is where a bottleneck strides: in its 3x3 (pytorch) or its first 1x1 (caffe). With `norm_eval`,
    batch norms keep their statistics in training; without `norm_trained`, norms keep their weights and
    biases; `norm_eps` is what they add to a variance. `frozen_stages` stages and the stem before them are not
    trained at all; 0 trains everything. With `dcn`, the second convolution of the blocks of `dcn_stages` is
    deformable (v2: modulated, too), with `dcn_groups` sets of sampling points. In the blocks of `attention_stages`,
    the maps of convolution `attention_after`, or of the last one, go through an `attention`.
    """

    def block(place: Place) -> ResidualBlock:
        if depth < 50:
            convs = basic_convs(place, norm)
        else:
            width = place.channels * width_per_group // 64 * groups
            convs = bottleneck_convs(place, width, groups, style, norm)
        if dcn != "none" and place.stage in dcn_stages:
            convs[2] = deformable(convs[2], modulated=dcn == "v2", groups=dcn_groups)
        result = ResidualBlock(convs, place.stride, norm)
        if attention is not None and place.stage in attention_stages:
            result.add_attention(attention, attention_after)
        return result

    return ResNet(
        residual_stages(depth, block, num_stages=max(out_stages), strides=strides, dilations=dilations),
        norm,
        out_stages=out_stages,
        strides=strides,
        frozen_stages=frozen_stages,
        norm_eval=norm_eval,
        norm_trained=norm_trained,
        norm_eps=norm_eps,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a residual block stands: its stage (1 to 4), whether it is the first there, and what goes into it."""

    stage: int
    first: bool
    in_channels: int
    stride: int
    dilation: int

    @property
    def channels(self) -> int:
        """The width of the stage: 64, then twice as much in each."""
        return 64 << (self.stage - 1)


def residual_stages(
    depth: int,
    block: Callable[[Place], ResidualBlock],
    *,
    num_stages: int,
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> list[list[ResidualBlock]]:
    """Return the first `num_stages` stages of a ResNet of `depth`, of what `block` returns for each place in them.

    The first block of a stage has its stride, all blocks its dilation.
    """
    stages: list[list[ResidualBlock]] = []
    in_channels = 64
    for stage, count in enumerate(BLOCKS[depth][:num_stages], 1):
        blocks: list[ResidualBlock] = []
        for number in range(count):
            stride = strides[stage - 1] if number == 0 else 1
            blocks.append(block(Place(stage, number == 0, in_channels, stride, dilations[stage - 1])))
            in_channels = blocks[-1].out_channels
        stages.append(blocks)
    return stages


def basic_convs(place: Place, norm: Norm) -> dict[int, nn.Conv2d]:
    """Return the convolutions of a basic block by number (ResNet, figure 5 left)."""
    channels = place.channels
    return {
        1: make_conv(place.in_channels, channels, 3, stride=place.stride, dilation=place.dilation, norm=norm),
        2: make_conv(channels, channels, 3, norm=norm),
    }


def bottleneck_convs(
    place: Place, width: int, groups: int, style: Literal["pytorch", "caffe"], norm: Norm
) -> dict[int, nn.Conv2d]:
    """Return the convolutions of a bottleneck by number, `width` wide inside (figure 5 right)."""
    first, second = (place.stride, 1) if style == "caffe" else (1, place.stride)
    return {
        1: make_conv(place.in_channels, width, 1, stride=first, norm=norm),
        2: make_conv(width, width, 3, stride=second, dilation=place.dilation, groups=groups, norm=norm),
        3: make_conv(width, place.channels * 4, 1, norm=norm),
    }


class ResidualBlock(nn.Module):
    """Convolutions conv1, conv2, ... with a norm each, and a shortcut, projected where the shapes differ.

    A block that does more between its convolutions has a `residual` of its own. With `avg_down`, the shortcut strides
    by averaging (He et al. 2019, arXiv 1812.01187, figure 2c). `attention` is what `add_attention` has added.
    """

    def __init__(self, convs: Mapping[int, nn.Conv2d], stride: int, norm: Norm, *, avg_down: bool = False) -> None:
        super().__init__()
        self.conv_norms = [(f"conv{number}", f"{norm_name(norm)}{number}") for number in convs]
        for conv, (conv_key, norm_key) in zip(convs.values(), self.conv_norms, strict=True):
            self.add_module(conv_key, conv)
            self.add_module(norm_key, make_norm(norm, conv.out_channels))
        first, *_, last = convs.values()
        in_channels, self.out_channels = first.in_channels, last.out_channels
        self.downsample = None
        if stride != 1 or in_channels != self.out_channels:
            average = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)] if avg_down else []
            projection = make_conv(in_channels, self.out_channels, 1, stride=1 if avg_down else stride, norm=norm)
            self.downsample = nn.Sequential(*average, projection, make_norm(norm, self.out_channels))
        self.relu = nn.ReLU(inplace=True)
        self.attention_name = ""
        self.attention_after = 0

    def add_attention(self, attention: Attention, after: int) -> None:
        """Have the maps of the convolution of number `after`, or of the last, go through a part of `attentions`.

        They do once they are normalised and, before another convolution, rectified. The child has the part's name.
        """
        self.attention_name = split(attention)[0]
        self.attention_after = min(after, len(self.conv_norms))
        conv = getattr(self, self.conv_norms[self.attention_after - 1][0])
        self.add_module(self.attention_name, build("attentions", attention, in_channels=conv.out_channels))

    @property
    def attention(self) -> nn.Module | None:
        """What the block has besides its convolutions, norms and shortcut; None: nothing."""
        return self.get_submodule(self.attention_name) if self.attention_name else None

    @property
    def last_norm(self) -> Any:
        """The norm that ends the residual branch."""
        return getattr(self, self.conv_norms[-1][1])

    def forward(self, x: Tensor) -> Tensor:
        """Return [N,C',H/stride,W/stride] of x [N,C,H,W]."""
        shortcut = x
        if self.downsample is not None:
            *average, projection, norm = self.downsample
            shortcut = conv_norm(projection, norm, average[0](x) if average else x)
        branch = self.residual(x)
        # In place saves memory, but what made the branch may need its values for the gradient.
        result: Tensor = self.relu(branch + shortcut if branch.requires_grad else branch.add_(shortcut))
        return result

    def residual(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut of x [N,C,H,W]."""
        for number, (conv, norm) in enumerate(self.conv_norms, 1):
            x = conv_norm(getattr(self, conv), getattr(self, norm), x)
            if number < len(self.conv_norms):
                x = self.relu(x)
            if number == self.attention_after:
                x = getattr(self, self.attention_name)(x)
        return x


def deep_stem(norm: Norm) -> nn.Sequential:
    """Return a stem of three 3x3 convolutions in place of one of 7x7 (He et al. 2019, arXiv 1812.01187, figure 2b)."""
    layers: list[nn.Module] = []
    for in_channels, out_channels, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
        conv = make_conv(in_channels, out_channels, 3, stride=stride, norm=norm)
        layers += [conv, make_norm(norm, out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class ResNet(nn.Module):
    """A stem of stride 4, then stages of residual blocks called layer1, layer2, ...

    It is given the `strides` of all stages, and has the `out_channels` and, against the image, the `strides` of its
    outputs. The stem is conv1 and its norm, or a `stem` of stride 2 before the pooling.
    """

    def __init__(
        self,
        stages: list[list[ResidualBlock]],
        norm: Norm,
        *,
        out_stages: tuple[int, ...],
        strides: tuple[int, ...],
        frozen_stages: int,
        norm_eval: bool,
        norm_trained: bool,
        norm_eps: float,
        stem: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        self.norm_eval = norm_eval
        self.frozen_stages = frozen_stages
        self.stage_names = [f"layer{stage}" for stage in range(1, len(stages) + 1)]
        self.out_names = [f"layer{stage}" for stage in out_stages]
        self.conv_norms = () if stem else (("conv1", f"{norm_name(norm)}1"),)
        self.stem = stem
        if stem is None:
            self.conv1 = make_conv(3, 64, 7, stride=2, norm=norm)
            self.add_module(f"{norm_name(norm)}1", make_norm(norm, 64))
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for name, stage in zip(self.stage_names, stages, strict=True):
            self.add_module(name, nn.Sequential(*stage))
        against_image = tuple(accumulate(strides[: len(stages)], mul, initial=4))[1:]
        self.strides = tuple(against_image[stage - 1] for stage in out_stages)
        self.out_channels = tuple(stages[stage - 1][-1].out_channels for stage in out_stages)

        # An attention starts as its builder left it.
        blocks = [module for module in self.modules() if isinstance(module, ResidualBlock)]
        of_attention = {part for block in blocks if block.attention for part in block.attention.modules()}
        for module in self.modules():
            if module in of_attention:
                continue
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, ResidualBlock):
                # Each block starts as its shortcut (Goyal et al. 2017, section 5.1).
                nn.init.zeros_(module.last_norm.weight)
            elif isinstance(module, _BatchNorm | nn.GroupNorm):
                module.requires_grad_(norm_trained)
                module.eps = norm_eps
        for module in self.modules():
            if isinstance(module, DeformConv2d):
                module.zero_offsets()
        for module in self._frozen():
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps [N,C,H/stride,W/stride] of the out stages of images [N,3,H,W]."""
        x = images if self.stem is None else self.stem(images)
        for conv, norm in self.conv_norms:
            x = self.relu(conv_norm(getattr(self, conv), getattr(self, norm), x))
        x = self.maxpool(x)
        features = []
        for name in self.stage_names:
            x = getattr(self, name)(x)
            if name in self.out_names:
                features.append(x)
        return tuple(features)

    def train(self, mode: bool = True) -> ResNet:
        """Set the mode of everything that is trained; the rest stays in eval mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        if self.norm_eval:
            _keep_statistics(self)
        return self

    def take_last_stage(self) -> ResStage:
        """Remove the last stage, whose map is then no output any more, and return it, to work on RoIs.

        Raises `UsageError` when it is no output, or the only one.
        """
        name = self.stage_names[-1]
        if self.out_names[-1] != name or len(self.out_names) < 2:
            raise UsageError(
                "a shared head is the last of the backbone's stages, and works on the map of the one before: "
                "`--set model.backbone.out_stages=[3,4]`."
            )
        self.stage_names, self.out_names = self.stage_names[:-1], self.out_names[:-1]
        self.strides = self.strides[:-1]
        channels, self.out_channels = self.out_channels[-1], self.out_channels[:-1]
        stage = self.get_submodule(name)
        delattr(self, name)
        return ResStage(name, stage, channels, self.norm_eval)

    def _frozen(self) -> Iterator[nn.Module]:
        """Yield the stem's layers and the first stages, as many as are frozen."""
        if self.frozen_stages:
            yield from ([getattr(self, name) for pair in self.conv_norms for name in pair] or [self.stem])
            yield from (getattr(self, name) for name in self.stage_names[: self.frozen_stages])


class ResStage(nn.Module):
    """The stage `name` of a ResNet by itself: the features of RoIs in, `out_channels` of them out."""

    def __init__(self, name: str, stage: nn.Module, out_channels: int, norm_eval: bool) -> None:
        super().__init__()
        self.name = name
        self.out_channels = out_channels
        self.norm_eval = norm_eval
        self.add_module(name, stage)

    def forward(self, rois: Tensor) -> Tensor:
        """Return [R,out_channels,S/stride,S/stride] of rois [R,C,S,S]."""
        result: Tensor = self.get_submodule(self.name)(rois)
        return result

    def train(self, mode: bool = True) -> ResStage:
        """Set the mode; batch norms keep their statistics where the backbone's do."""
        super().train(mode)
        if self.norm_eval:
            _keep_statistics(self)
        return self


def _keep_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()

"""The run config: everything that decides what a run does, in one typed value, and how it is resolved.

Later layers win: core defaults < the recipe's schedule < recipe < ``--with`` < ``--config`` < ``--sched`` < flags
and ``--set``. Dicts merge, lists replace.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A group of settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class InputConfig(Section):
    """How pixels become the network's input: (pixel - mean) / std in the given channel order, then padding."""

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channels: Literal["rgb", "bgr"] = "rgb"
    pad_divisor: int = Field(32, ge=1)


class DataConfig(Section):
    """What is trained and evaluated on, and how the pictures are changed on the way.

    `train` and `val` are folders, COCO-style JSON files or names of datasets; `source` stands for both. Resize scales are
    (longest side, shortest side) in pixels with the aspect ratio kept: `value` draws one of the list, `range` draws
    between the first and the last.
    """

    source: str = ""
    train: str = ""
    val: str = ""
    images: str = ""
    args: dict[str, Any] = Field(default_factory=dict)
    proposals: str = ""
    val_proposals: str = ""
    resize: list[tuple[int, int]] = Field(default_factory=lambda: [(1333, 800)])
    resize_mode: Literal["value", "range"] = "value"
    test_resize: tuple[int, int] = (1333, 800)
    flip: float = Field(0.5, ge=0, le=1)
    crop: tuple[int, int] | None = None
    photometric: bool = False
    transforms: list[dict[str, Any]] = Field(default_factory=list)
    keep_empty: bool = False
    group_aspect: bool = True
    skip_bad_images: bool = False
    workers: int = Field(2, ge=0)


class OptimConfig(Section):
    """The optimiser. `lr` belongs to the reference batch `batch`; it is scaled linearly to the batch of the run."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.02, gt=0)
    batch: int = Field(16, ge=1)
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-4, ge=0)
    norm_decay: float | None = None
    bias_decay: float | None = None
    bias_lr: float = 1.0
    backbone_lr: float = 1.0
    clip_norm: float | None = None


class ScheduleConfig(Section):
    """How long a run is and how the learning rate changes; `length` and `drops` count in `unit`s."""

    unit: Literal["epoch", "iter"] = "epoch"
    length: int = Field(12, ge=1)
    policy: Literal["step", "cosine", "constant"] = "step"
    drops: list[int] = Field(default_factory=lambda: [8, 11])
    gamma: float = 0.1
    min_lr_ratio: float = 0.0
    warmup: Literal["linear", "constant", "none"] = "linear"
    warmup_iters: int = Field(500, ge=0)
    warmup_ratio: float = 0.001


class TrainConfig(Section):
    """The run itself. `batch` is the number of images of one optimiser step, over all accumulation steps."""

    batch: int = Field(4, ge=1)
    accumulate: int = Field(1, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    channels_last: bool = True
    ema: float | None = None
    seed: int = 0
    device: str = "auto"
    eval_every: int = Field(1, ge=0)
    early_stop: int | None = None
    tensorboard: bool = False


class EvalConfig(Section):
    """How results are measured and shown."""

    evaluator: Literal["faster", "pycocotools"] = "faster"
    batch: int = Field(1, ge=1)
    show: int = Field(8, ge=0)


class RunConfig(Section):
    """The whole config of a run.

    `model` is ``{"name": ..., **arguments of the model's builder}``. `weights` are the starting weights: ``imagenet`` (the
    backbone's), ``none``, or a checkpoint.
    """

    recipe: str
    sched_name: str = "1x"
    model: dict[str, Any]
    weights: str = "imagenet"
    input: InputConfig = Field(default_factory=InputConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    sched: ScheduleConfig = Field(default_factory=ScheduleConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)

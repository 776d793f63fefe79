"""Every setting of a run: typed, validated, and saved with the run.

A run is a YAML preset plus dotted overrides (``training.workers=8``). Values are checked before anything
starts; an unknown key is refused with the nearest valid name. Settings that belong to one system alone
(``model.*``) are declared beside that system in ``rayzero.alignment`` and validated by the same rules.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from yaml import YAMLError

Intensity = Literal["voi", "minmax", "radzero", "carzero", "alta"]


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type, or out of range; the message names it and the remedy."""


class Settings(BaseModel):
    """Base of every group of settings: immutable, and closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
Input = Literal["radiograph", "study", "volume"]
Companion = Literal["lateral", "prior_frontal", "prior_lateral"]


Range = tuple[PositiveFloat, PositiveFloat]


class AugmentationConfig(Settings):
    """Random changes to the images of training steps, see rayzero.studies.augmentation; none by default."""

    crop: float = Field(
        1.0, ge=0.1, le=1.0, description="Side of a random square of each radiograph that goes in, over its own side"
    )
    flip: float = Field(
        0.0, ge=0.0, le=1.0, description="Share mirrored left to right, of the studies whose text names no side"
    )
    rotation: float = Field(0.0, ge=0.0, le=180.0, description="Largest turn either way, in degrees")
    shear: float = Field(0.0, ge=0.0, le=45.0, description="Largest shear along x either way, in degrees")
    translation: float = Field(0.0, ge=0.0, lt=1.0, description="Largest shift either way along x and y, over the side")
    scale: Range = Field((1.0, 1.0), description="Least and largest magnification")
    brightness: Range = Field((1.0, 1.0), description="Least and largest factor of grey levels")
    contrast: Range = Field((1.0, 1.0), description="Least and largest factor of their distance from the mean")

    @model_validator(mode="after")
    def _ranges_rise(self) -> AugmentationConfig:
        for name in ("scale", "brightness", "contrast"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"data.augmentation.{name}=[{low}, {high}] falls; give the lower end first")
        return self

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from none at all."""
        return self.model_dump(mode="json", exclude_defaults=True)


class DataConfig(Settings):
    """Which studies a run reads, and how their images and reports become tensors."""

    lake: str = Field("", description="Folder or URL of a Parquet lake written by jobs.ingest")
    cache: str = Field("", description="Folder or URL for cached features; empty is <storage>/cache")
    input: Input = Field(
        "radiograph",
        description="What one example is: a radiograph, a frontal one with its companions, or a CT volume",
    )
    companions: tuple[Companion, ...] = Field(
        ("lateral", "prior_frontal", "prior_lateral"), description="What data.input=study reads beside the frontal"
    )
    texts: Literal["sentences", "sentence", "caption", "report"] = Field(
        "sentences",
        description="The texts of a step: all distinct sentences; or, of each study, one sentence drawn at random, "
        "caption_sentences of them joined, or the report with its sentences shuffled",
    )
    caption_sentences: int = Field(5, ge=1)
    statuses: tuple[Literal["present", "uncertain", "absent"], ...] = Field(
        ("present", "uncertain", "absent"),
        min_length=1,
        description="Which sentences of a study are its texts; one that has none of these is said to be normal",
    )
    views: tuple[Literal["frontal", "lateral", "other", "unknown"], ...] = Field(("frontal",), min_length=1)
    intensity: Intensity = Field("voi", description="How stored values become [0, 1], see rayzero.studies.preprocess")
    geometry: Literal["stretch", "pad"] = "stretch"
    crop: float = Field(
        1.0,
        ge=0.1,
        le=1.0,
        description="Side of the centred square of each radiograph that goes in, over its own side; in training steps "
        "data.augmentation.crop takes another in its place",
    )
    volume_spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        (3.0, 1.5, 1.5), description="Voxels (z, y, x) that volumes are resampled to"
    )
    volume_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
        (128, 256, 256), description="Samples (z, y, x) that a resampled volume is cropped or padded to"
    )
    hu_range: tuple[float, float] = Field((-1000.0, 1000.0), description="Hounsfield units that become -1 and 1")
    shuffle_window: int = Field(256, ge=1, description="Images held per worker to shuffle among")
    augmentation: AugmentationConfig = AugmentationConfig()

    @model_validator(mode="after")
    def _volumes_only_flip(self) -> DataConfig:
        others = [f"data.augmentation.{name}" for name in self.augmentation.changed if name != "flip"]
        if self.crop < 1.0:
            others.insert(0, "data.crop")
        if self.input == "volume" and others:
            raise ValueError(
                f"{', '.join(others)}: for radiographs alone; volumes take data.volume_shape, data.augmentation.flip, "
                "and BrgSA model.crop"
            )
        return self

    @model_validator(mode="after")
    def _range_rises(self) -> DataConfig:
        if not self.hu_range[0] < self.hu_range[1]:
            raise ValueError(f"data.hu_range={list(self.hu_range)} does not rise; give the lower end first")
        return self


class VisionConfig(Settings):
    """The image encoder: a name shipped with RayZero, a Hugging Face id, or a local folder."""

    encoder: str = "efficientnet-lite0"
    resolution: int = Field(256, ge=32, le=2048)
    normalised: bool = Field(
        False, description="A 3-D ViT standardises volumes as BrgSA did; weights that were trained so need it"
    )
    frozen: bool = True
    cache_features: bool = Field(False, description="Run a frozen encoder once per image and train from its features")

    @model_validator(mode="after")
    def _cache_needs_frozen(self) -> VisionConfig:
        if self.cache_features and not self.frozen:
            raise ValueError("vision.cache_features needs vision.frozen=true: features of a trained encoder change")
        return self


class TextConfig(Settings):
    """The sentence encoder: a name shipped with RayZero, a Hugging Face id, or a local folder."""

    encoder: str = "all-minilm-l6-v2"
    max_tokens: int = Field(64, ge=4, le=512)
    trainable_layers: int | None = Field(
        None, ge=0, description="Last transformer layers that train; null trains everything, 0 freezes the encoder"
    )
    lr_scale: float = Field(1.0, ge=0.0, le=10.0, description="Learning rate of the text encoder over training.lr")


class TrainingConfig(Settings):
    """The optimisation, and the Ray Train + DeepSpeed job that carries it."""

    workers: int = Field(1, ge=1)
    min_workers: int = Field(
        0,
        ge=0,
        description="Start, and go on after losing machines, with as few workers as this, up to training.workers; 0 "
        "wants them all. What a step computes stays the same; needs training.checkpoint_every",
    )
    cpus_per_worker: float = Field(1.0, gt=0.0)
    gpus_per_worker: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="0 trains, and encodes cached features, on CPUs, also where there are GPUs; less than 1 leaves the "
        "rest of a GPU to others (one worker)",
    )
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_size: int = Field(32, ge=1, description="Images per step over all workers")
    batch_growth: tuple[tuple[int, int], ...] = Field(
        (), description="Batch sizes from later epochs on, as [[epoch, batch size], ...]; needs training.epochs"
    )
    chunks: int = Field(
        1, ge=1, description="Pieces that a worker cuts its batch into, with the same gradients in less memory"
    )
    activation_checkpointing: bool = Field(
        False, description="Keep each trained layer's input alone and compute the rest again for the gradients"
    )
    compile: bool = Field(
        False, description="torch.compile of each transformer layer, at the start; needs a C++ compiler on CPUs"
    )
    offload: Literal["none", "optimizer"] = Field(
        "none", description="optimizer keeps the optimizer's state in the host's memory, and steps there"
    )
    steps: int = Field(100, ge=1, description="Length of the run unless training.epochs gives it")
    epochs: int = Field(0, ge=0, description="Passes over the training examples; 0 leaves the length to training.steps")
    optimizer: Literal["adamw", "adam"] = Field("adamw", description="adam adds weight decay to the gradient")
    lr: float = Field(1e-4, gt=0.0)
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0.0)
    weight_decay: float = Field(0.05, ge=0.0)
    layer_decay: float = Field(
        1.0, gt=0.0, le=1.0, description="Learning rate of each layer of an encoder over that of the layer above it"
    )
    ema: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Decay of a moving average of the weights, validated and exported in their place; 0 is off",
    )
    warmup_steps: int = Field(0, ge=0)
    warmup_epochs: int = Field(0, ge=0, description="Warm-up in epochs, in place of training.warmup_steps")
    schedule: Literal["cosine", "constant", "plateau"] = Field(
        "cosine", description="plateau multiplies by plateau_factor after plateau_patience validations without progress"
    )
    schedule_epochs: int = Field(0, ge=0, description="Epochs at which the cosine reaches 0; 0 is at the run's end")
    plateau_factor: float = Field(0.5, gt=0.0, lt=1.0)
    plateau_patience: int = Field(5, ge=0)
    monitor: Literal[
        "macro_auroc",
        "pointing_accuracy",
        "report_recall_at_1",
        "report_recall_at_5",
        "report_recall_at_10",
        "loss",
    ] = Field(
        "macro_auroc", description="Validation figure that plateau, early stopping and the best checkpoint follow"
    )
    retrieval_studies: int = Field(
        200, ge=0, description="Validation studies among which images look for their reports; 0 leaves retrieval out"
    )
    early_stopping: int = Field(0, ge=0, description="Validations without progress that end the run; 0 never does")
    gradient_clip: float = Field(1.0, ge=0.0, description="Global gradient norm; 0 turns clipping off")
    validate_every: int = Field(
        0, ge=0, description="Steps between validation passes; 0 is each epoch's end, or the run's where it has none"
    )
    checkpoint_every: int = Field(0, ge=0, description="Steps between checkpoints; 0 saves with each validation")
    keep_checkpoints: int = Field(
        2, ge=1, description="Checkpoints kept beside the newest: the best by training.monitor on the validation split"
    )
    max_failures: int = Field(2, ge=0, description="Worker failures survived before the run is given up")
    log_every: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _batches_divide(self) -> TrainingConfig:
        for size in (self.batch_size, *(size for _, size in self.batch_growth)):
            if size < 1 or size % self.workers:
                near = size - size % self.workers or self.workers
                raise ValueError(
                    f"training.batch_size={size} is not a multiple of training.workers={self.workers}; try {near}"
                )
        return self

    @model_validator(mode="after")
    def _workers_share_no_gpu(self) -> TrainingConfig:
        if 0.0 < self.gpus_per_worker < 1.0 and self.workers > 1:
            raise ValueError(
                f"training.gpus_per_worker={self.gpus_per_worker:g} with training.workers={self.workers}: NCCL gives "
                "each process a GPU of its own; use 1, or one worker"
            )
        return self

    @model_validator(mode="after")
    def _fewer_workers_are_fewer(self) -> TrainingConfig:
        if self.min_workers > self.workers:
            raise ValueError(
                f"training.min_workers={self.min_workers} is more than training.workers={self.workers}; lower it"
            )
        if self.min_workers and not self.checkpoint_every:
            # Ray Train starts all workers anew when their number changes, from the newest checkpoint.
            raise ValueError(
                f"training.min_workers={self.min_workers} needs training.checkpoint_every: when machines come or go, "
                "the steps since the newest checkpoint are taken again"
            )
        return self

    @model_validator(mode="after")
    def _stages_can(self) -> TrainingConfig:
        if self.compile and self.zero_stage == 3:
            raise ValueError("training.compile needs training.zero_stage of 2 or less: 3 gathers weights inside layers")
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("training.offload=optimizer needs training.zero_stage of 1 or more")
        if self.offload == "optimizer" and self.chunks > 1:
            # DeepSpeed takes to the host what the last backward call of a step reached, and drops the rest.
            raise ValueError(
                f"training.offload=optimizer with training.chunks={self.chunks}: use one, or "
                "training.activation_checkpointing=true"
            )
        if self.ema and self.zero_stage == 3:
            raise ValueError("training.ema averages whole weights: set training.zero_stage to 2 or less")
        return self

    @model_validator(mode="after")
    def _chunks_have_images(self) -> TrainingConfig:
        share = min(self.batch_size, *(size for _, size in self.batch_growth), self.batch_size) // self.workers
        if self.chunks > share:
            raise ValueError(f"training.chunks={self.chunks} of the {share} images that a worker gets; lower it")
        return self

    @model_validator(mode="after")
    def _epochs_are_known(self) -> TrainingConfig:
        for name in ("batch_growth", "warmup_epochs", "schedule_epochs"):
            if getattr(self, name) and not self.epochs:
                raise ValueError(f"training.{name} counts epochs: set training.epochs, too")
        if list(self.batch_growth) != sorted(self.batch_growth):
            raise ValueError(f"training.batch_growth={self.batch_growth} is not in the order of its epochs")
        return self

    @property
    def largest_batch(self) -> int:
        """Images of the largest step over all workers."""
        return max(self.batch_size, *(size for _, size in self.batch_growth), 1)

    def stage_of(self, workers: int) -> int:
        """The ZeRO stage of so many ``workers``: one has nobody to share with and takes 0, unless it offloads."""
        return 0 if workers == 1 and self.offload == "none" else self.zero_stage


class EvaluationConfig(Settings):
    """How held-out studies are scored."""

    batch_size: int = Field(32, ge=1)
    bootstrap: int = Field(1000, ge=0, description="Bootstrap replicates behind each interval")
    prompt: str = Field("There is {}", description="The sentence that asks for a finding")
    ensemble: tuple[str, ...] = Field(
        (), description="Further ways to ask; a finding's logit is the mean over all, its map is the prompt's"
    )
    overlays: int = Field(12, ge=0, description="Example maps drawn in report.html")

    @model_validator(mode="after")
    def _prompts_have_a_slot(self) -> EvaluationConfig:
        for name, prompt in [("prompt", self.prompt), *(("ensemble", one) for one in self.ensemble)]:
            if prompt.count("{}") != 1:
                raise ValueError(f"evaluation.{name}={prompt!r} must hold one {{}} where the finding goes")
        return self

    def phrasings(self, prompt: str) -> list[str]:
        """``prompt`` and, where it asks for a finding as ``self.prompt`` does, the ensemble's ways to ask for it."""
        before, after = self.prompt.split("{}")
        if not (prompt.startswith(before) and prompt.endswith(after)):
            return [prompt]
        finding = prompt[len(before) : len(prompt) - len(after)]
        return [prompt, *(template.replace("{}", finding) for template in self.ensemble)]


class Config(Settings):
    """All settings of one run. ``name`` identifies it: the same name in the same storage continues it."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    storage: str = Field("runs", description="Folder or URL that holds run folders")
    system: str = "radzero"
    seed: int = Field(42, ge=0)
    data: DataConfig = DataConfig()
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    model: dict[str, Any] = Field(default_factory=dict, description="Settings of the system, see rayzero.alignment")
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _augmentation_is_not_cached(self) -> Config:
        changed = self.data.augmentation.changed
        if changed and self.vision.cache_features:
            names = ", ".join(f"data.augmentation.{name}" for name in changed)
            raise ValueError(
                f"{names}: needs vision.cache_features=false, as cached features are of images that do not change"
            )
        return self


SettingsT = TypeVar("SettingsT", bound=Settings)


def validate(kind: type[SettingsT], values: Mapping[str, Any], *, where: str = "") -> SettingsT:
    """``values`` as ``kind``. Raises ConfigError that lists every wrong field with its value and the remedy."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(kind, problem, where) for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def load_config(preset: Path | str | None, overrides: Sequence[str] = ()) -> Config:
    """The preset file (or the defaults) with ``overrides`` such as ``vision.resolution=256`` laid over it.

    Raises ConfigError for a missing or malformed file, an unknown key, or a value out of range.
    """
    try:
        base = OmegaConf.load(preset) if preset is not None else OmegaConf.create()
        if not isinstance(base, DictConfig):
            raise ConfigError(f"{preset}: a preset is a mapping of settings, found a list")
        merged = OmegaConf.merge(base, OmegaConf.from_dotlist([_checked(o) for o in overrides]))
    except FileNotFoundError:
        raise ConfigError(f"no preset file {preset}; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{preset} cannot be read as YAML: {error}") from None
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{preset or 'overrides'}: not valid settings: {error}") from None
    values = OmegaConf.to_container(merged, resolve=False)
    assert isinstance(values, dict)
    return validate(Config, {str(key): value for key, value in values.items()})


def parse_config(text: str) -> Config:
    """The settings that ``dump_yaml`` wrote. Raises ConfigError when they are not settings of this version."""
    try:
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"the saved settings are not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError("the saved settings are not a mapping: was config.yaml changed?")
    return validate(Config, {str(key): value for key, value in values.items()})


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of ``config`` with dotted keys replaced, validated as a whole."""
    tree = OmegaConf.create(config.model_dump(mode="json"))
    for key, value in values.items():
        OmegaConf.update(tree, key, value, merge=False)
    plain = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(plain, dict)
    return validate(Config, {str(key): value for key, value in plain.items()})


def dump_yaml(settings: Settings) -> str:
    """``settings`` as YAML that ``load_config`` reads back to an equal value."""
    return str(OmegaConf.to_yaml(OmegaConf.create(settings.model_dump(mode="json"))))


def nearest(name: str, names: Sequence[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest of ``names``, or a list of them when none is close."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"valid names: {', '.join(sorted(names))}"


def _checked(text: str) -> str:
    if "=" not in text or text.startswith(("-", "=")):
        raise ConfigError(f"override {text!r} is not of the form key=value, such as training.workers=2")
    return text


def _explain(kind: type[Settings], problem: Any, where: str) -> str:
    path = [str(part) for part in problem["loc"]]
    name = ".".join(([where] if where else []) + path)
    if problem["type"] == "extra_forbidden":
        owner = _owner(kind, path[:-1])
        siblings = list(owner.model_fields) if owner else []
        return f"unknown setting {name!r}: {nearest(path[-1], siblings)}"
    message: str = problem["msg"].removeprefix("Value error, ")
    if not path:
        return message
    return f"{name}={problem['input']!r}: {message}" if problem["type"] != "value_error" else message


def _owner(kind: type[Settings], path: Sequence[str]) -> type[Settings] | None:
    for part in path:
        field = kind.model_fields.get(part)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, Settings)):
            return None
        kind = annotation
    return kind

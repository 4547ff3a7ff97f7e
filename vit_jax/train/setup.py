"""From a config to everything a run needs before its first step, without any weights.

Planning, benchmarking and training all start here, so none of them needs a prepared
dataset or a checkpoint to know the shapes, the schedule and the compiled program.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vit_jax import config as config_lib
from vit_jax import sharding
from vit_jax.checkpoints.description import Description
from vit_jax.config import Config, checks
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.datasets import DatasetInfo, describe, locate
from vit_jax.data.transforms.chains import Chain, parse_chain
from vit_jax.evaluators.classification import make_eval_step, padded_batch_size
from vit_jax.models import (
    Architecture,
    PatchModel,
    ViTOrMixer,
    architecture_from_variant,
)
from vit_jax.models import build as build_model
from vit_jax.models.attention.formulations import candidates, why_not_cudnn
from vit_jax.optim.chain import make_optimizer
from vit_jax.train.step import TrainState, make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """One run, ready to be lowered, compiled and fed."""

    config: Config  # resolved
    info: DatasetInfo
    mesh: Mesh
    architecture: ViTOrMixer
    preprocessing: Preprocessing
    model: PatchModel
    optimizer: optax.GradientTransformation

    def init_params(self) -> Any:
        """Random parameters of the config's seed; a pure function to jit or trace."""
        return _init_params(self.model, self.config.seed)

    def new_state(self, params: Any) -> TrainState:
        """The state before the first step."""
        # Two arrays: the step donates its state, and one cannot be given away twice.
        step, bad_images = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        # A copy, for the same reason.
        ema = jax.tree.map(jnp.copy, params) if self.config.ema_decay else None
        return TrainState(step, params, self.optimizer.init(params), bad_images, ema)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the training state."""
        return self._abstract_state

    @functools.cached_property
    def _abstract_state(self) -> TrainState:
        state = jax.eval_shape(self.new_state, _param_shapes(self.model))
        state = _placed(state, sharding.shardings(state, self.mesh))
        if not self.config.offload_optimizer:
            return state
        where = sharding.on_host(state.opt_state, self.mesh)
        return state._replace(opt_state=_placed(state.opt_state, where))

    def abstract_batch(self, rows: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a global batch; by default of training."""
        rows = rows or self.config.batch_size
        image = (*self.architecture.image_size, self.architecture.channels)
        label: Any = ((self.info.num_classes,), jnp.float32)
        columns = {
            "image": (image, jnp.uint8),
            "label": label if self.info.multi_label else ((), jnp.int32),
            "mask": ((), jnp.float32),
            "bad": ((), jnp.int32),
        }
        spread = sharding.batch_sharding(self.mesh)
        return {
            name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=spread)
            for name, (shape, dtype) in columns.items()
        }

    def train_step(self) -> jax.stages.Wrapped:
        """The jitted step; it takes `abstract_state()` and a batch."""
        step = make_train_step(
            self.config, self.model, self.preprocessing, self.optimizer, self.mesh
        )
        where = jax.tree.map(lambda x: x.sharding, self.abstract_state())
        metrics = sharding.replicated(self.mesh)
        return jax.jit(step, donate_argnums=0, out_shardings=(where, metrics))

    def lower(self) -> jax.stages.Lowered:
        """The training step for this run's shapes, not yet compiled."""
        return self.train_step().lower(self.abstract_state(), self.abstract_batch())

    @property
    def eval_rows(self) -> int:
        """Images of an evaluation's batch: no more than there are, but for padding."""
        examples = self.info.num_examples[self.info.eval_split]
        return padded_batch_size(min(self.config.eval_batch_size, examples), self.mesh)

    def lower_eval(self) -> jax.stages.Lowered:
        """The evaluation's step for this run's shapes, not yet compiled."""
        batch = self.abstract_batch(self.eval_rows)
        return self.eval_step().lower(self.abstract_state().params, batch)

    def eval_step(self) -> jax.stages.Wrapped:
        """The jitted step of an evaluation; it takes parameters and a batch."""
        return make_eval_step(
            self.model.clone(placement=sharding.MeshPlacement(self.mesh)),
            self.preprocessing,
            self.mesh,
            loss=self.config.loss,
            per_class=self.config.per_class,
        )

    @property
    def train_transform(self) -> Chain:
        """The random transform of one training image."""
        return parse_chain(self.config.augment.train, self.architecture.image_size)


def set_up(
    config: Config,
    *,
    mesh: Mesh | None = None,
    devices: Sequence[Any] = (),
    pretrained: Description | None = None,
    problems: Sequence[str] = (),
) -> Setup:
    """Resolves and checks a config and derives everything else from it.

    Args:
      config: a recipe with the command line's overrides applied.
      mesh: the devices; by default `config.mesh` of `devices`.
      devices: by default those of this process.
      pretrained: what the pretrained checkpoint says of itself. An empty
        `model.variant` takes the architecture from it.
      problems: what is already known to be wrong, to be listed with the rest.

    Raises:
      UserError: lists everything that cannot work, before anything is compiled.
    """
    found = list(problems)
    info = architecture = preprocessing = optimizer = model = None
    with _noting(found):
        info = describe(
            config.dataset, config.train_split, config.eval_split, config.data_dir
        )
    config = config_lib.resolve(
        config, info.num_examples[info.train_split] if info else 1
    )
    # What has a wrong value is listed now; the rest is checked without it.
    wrong = checks.wrong_values(config)
    if not any(key.startswith("mesh.") for key in wrong):
        with _noting(found):
            mesh = mesh or sharding.make_mesh(**config.mesh, devices=devices)
    first = len(found)
    sound = config_lib.with_defaults(config, wrong)
    if "image_size" not in wrong:
        size = config_lib.image_size(config)
        with _noting(found, "augment.train: "):
            parse_chain(config.augment.train, size)
        with _noting(found, "augment.eval: "):
            preprocessing = _preprocessing(sound, size, pretrained)
        if sound.model.variant or pretrained:
            with _noting(found):
                architecture = _architecture(
                    sound, info.num_classes if info else 1, pretrained
                )
    other_meshes = ""
    if architecture and mesh:
        batch = sound.batch_size, sound.accum_steps
        other_meshes = sharding.fitting_meshes(mesh, architecture, *batch)
        if wrong_mesh := sharding.misfits(mesh, architecture):
            found.append(
                f"{'; '.join(wrong_mesh)}: of {mesh.size} devices "
                + (f"use {other_meshes}" if other_meshes else "no mesh fits")
            )
        attention = ""
        with _noting(found):
            attention = _attention(sound, architecture, mesh)
        model = _model(sound, architecture, mesh, attention or "xla")
        with _noting(found):
            optimizer = make_optimizer(sound, _param_shapes(model))
    # First what the values alone show.
    found[first:first] = config_lib.problems(
        config,
        num_devices=sharding.batch_parts(mesh) if mesh else 1,
        other_meshes=other_meshes,
    )
    checks.check(found)
    # Otherwise a problem was found.
    assert info and mesh and architecture and preprocessing and model and optimizer

    # Absolute, so that the checkpoint finds its data from any current directory.
    config.dataset, config.data_dir = locate(config.dataset, config.data_dir)
    return Setup(config, info, mesh, architecture, preprocessing, model, optimizer)


def _placed(shapes: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda x, there: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there),
        shapes,
        where,
    )


@contextlib.contextmanager
def _noting(found: list[str], prefix: str = "") -> Iterator[None]:
    """An error inside becomes one more line of `found`."""
    try:
        yield
    except ValueError as error:
        found.append(f"{prefix}{error}")


def _architecture(
    config: Config, num_classes: int, pretrained: Description | None
) -> ViTOrMixer:
    """From the variant's row and the config's keys, or from the pretrained file."""
    model = config.model
    common = {
        "image_size": config_lib.image_size(config),
        "num_classes": num_classes,
    }
    if model.variant:
        architecture = architecture_from_variant(model.variant, **common)
    else:
        assert pretrained is not None  # `problems` has asked for one
        architecture = dataclasses.replace(pretrained.architecture, **common)
        heads = getattr(architecture, "num_heads", 0)
        if model.num_heads and model.num_heads != heads:
            raise ValueError(
                f"model.num_heads={model.num_heads}, but the pretrained file says "
                f"{heads}; leave this key alone"
            )
    names = {field.name for field in dataclasses.fields(architecture)}
    _refuse_keys_of_other_kinds(config, architecture, names)
    if model.variant:
        given = {k: model[k] for k in config_lib.ARCHITECTURE_KEYS if k in names}
        given = {k: v for k, v in given.items() if v or k not in config_lib.SIZE_KEYS}
        if "layer_scale" in given:
            given["layer_scale"] = model.layer_scale > 0
        architecture = architecture_from_variant(model.variant, **common, **given)
    elif not config.reset_head:
        if model.pre_logits:
            raise ValueError(
                f"model.pre_logits={model.pre_logits} makes a new layer before the "
                "head, and reset_head=False keeps the pretrained head; set one of them "
                "to its default"
            )
        return architecture
    if "pre_logits" not in names:
        return architecture
    width = architecture.width if model.pre_logits == -1 else model.pre_logits
    return dataclasses.replace(architecture, pre_logits=width)


def _refuse_keys_of_other_kinds(
    config: Config, architecture: ViTOrMixer, names: set[str]
) -> None:
    """Raises if the config sets what this kind of model has not."""
    names = names | set(type(build_model(architecture)).__dataclass_fields__)
    model, default = config.model, config_lib.default_config().model
    others = {key for key in model if key != "variant" and key not in names}
    wrong = [
        f"model.{key}={model[key]!r} (leave it at {default[key]!r})"
        for key in sorted(others)
        if model[key] != default[key]
    ]
    if model.remat == "attention" and "attention" not in names:
        wrong.append("model.remat='attention' (use 'dots' or 'full')")
    if wrong:
        kind = type(build_model(architecture)).__name__
        raise ValueError(f"{kind} has no such choice: {', '.join(wrong)}")


def _preprocessing(
    config: Config, size: tuple[int, int], pretrained: Description | None
) -> Preprocessing:
    """The value range the weights were trained with; by default [−1, 1]."""
    values = pretrained.preprocessing if pretrained else Preprocessing(size)
    channels = config.model.channels
    if not config.model.variant and pretrained:
        channels = pretrained.architecture.channels
    return dataclasses.replace(
        values.for_images(size, channels), eval_transform=config.augment.eval
    )


def _model(
    config: Config, architecture: ViTOrMixer, mesh: Mesh, attention: str
) -> PatchModel:
    return build_model(
        architecture,
        dtype=_compute_dtype(config.compute_dtype, mesh),
        attention=attention,
        scan=config.model.scan,
        remat=config.model.remat,
        dropout_rate=config.model.dropout_rate,
        stochastic_depth=config.model.stochastic_depth,
        head_bias=config.model.head_bias,
        layer_scale_init=config.model.layer_scale or 1.0,
    )


def _init_params(model: PatchModel, seed: int) -> Any:
    height, width = model.architecture.image_size
    images = jnp.zeros((1, height, width, model.architecture.channels))
    return model.init(jax.random.key(seed), images)["params"]


def _param_shapes(model: PatchModel) -> Any:
    """Shapes and dtypes of the parameters, traced once for each model."""
    hashable: Any = model  # as Flax makes all modules
    return _traced_param_shapes(hashable)


@functools.lru_cache(maxsize=8)
def _traced_param_shapes(model: PatchModel) -> Any:
    return jax.eval_shape(lambda: _init_params(model, seed=0))


def attention_candidates(
    architecture: ViTOrMixer, dtype: Any, mesh: Mesh
) -> tuple[str, ...]:
    """What `model.attention=auto` chooses from, the most promising first.

    Without attention, as in an MLP-Mixer, nothing.
    """
    if not isinstance(architecture, Architecture):
        return ()
    device = mesh.devices.flat[0]
    return candidates(
        device.platform,
        device.device_kind,
        tokens=architecture.num_tokens,
        heads=max(architecture.num_heads // mesh.shape.get("tensor", 1), 1),
        channels=architecture.width // architecture.num_heads,
        dtype=dtype,
    )


def _attention(config: Config, architecture: ViTOrMixer, mesh: Mesh) -> str:
    """The formulation that the config names; of `auto` the most promising.

    Raises:
      ValueError: it cannot run on these devices.
    """
    name, dtype = config.model.attention, _compute_dtype(config.compute_dtype, mesh)
    found = attention_candidates(architecture, dtype, mesh)
    if name == "auto":
        return found[0] if found else name
    if name == "cudnn" and isinstance(architecture, Architecture):
        channels = architecture.width // architecture.num_heads
        if reason := why_not_cudnn(mesh.devices.flat[0].platform, channels, dtype):
            raise ValueError(f"model.attention='cudnn': {reason}; use auto")
    return name


def _compute_dtype(name: str, mesh: Mesh) -> Any:
    """`auto` follows the devices the program is for, not those of this process."""
    if name == "auto":
        name = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    return jnp.dtype(name)

"""The setup of a run: everything that follows from its config, without any weights.

Planning, benchmarking and training all start here, so none of them needs a prepared
dataset or a checkpoint to know the shapes, the schedule and the compiled program.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence
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
from vit_jax.data.sources.datasets import Dataset, open_dataset
from vit_jax.data.sources.protocol import DatasetInfo
from vit_jax.data.transforms.chains import Chain, parse_chain
from vit_jax.evaluators.choosing import directions, read_rows
from vit_jax.evaluators.classification import make_eval_step
from vit_jax.evaluators.examples import abstract_batch
from vit_jax.models import (
    Architecture,
    PatchModel,
    ViTOrMixer,
    abstract_params,
    architecture_from_variant,
)
from vit_jax.models import build as build_model
from vit_jax.models.attention.formulations import candidates, why_not_cudnn
from vit_jax.objectives.choosing import make_objective, objective_class
from vit_jax.objectives.protocol import Given, Images, Objective, shapes_of
from vit_jax.optim.chain import OPTIMIZERS, make_optimizer
from vit_jax.optim.groups import Groups, make_groups
from vit_jax.train.choices import CHOICES
from vit_jax.train.state import TrainState, new_state
from vit_jax.train.step import make_train_step
from vit_jax.words import did_you_mean


@dataclasses.dataclass(frozen=True)
class Setup:
    """One run, ready to be lowered, compiled and fed.

    Everything that follows from the fields is made on first use, so
    `dataclasses.replace` with other fields makes another run.
    """

    config: Config  # resolved
    dataset: Dataset
    info: DatasetInfo  # with the two splits of this run
    mesh: Mesh
    architecture: ViTOrMixer
    preprocessing: Preprocessing
    model: PatchModel

    @functools.cached_property
    def objective(self) -> Objective:
        """The objective that the run minimises."""
        return make_objective(
            Given(
                self.config,
                self.info,
                self.mesh,
                self.architecture,
                self.preprocessing,
                self.model,
                parse_chain(self.config.augment.train, self.architecture.image_size),
            )
        )

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser, which turns gradients into directions."""
        return make_optimizer(self.config, self.param_shapes, self.groups)

    @functools.cached_property
    def groups(self) -> Groups:
        """The parameter groups: how each parameter is trained."""
        return make_groups(self.config, self.param_shapes, OPTIMIZERS)

    @functools.cached_property
    def param_shapes(self) -> Any:
        """Shapes and dtypes of all parameters.

        Raises:
          UserError: no rule says how to shard one of their matrices, or one in the
            objective's state, over the mesh.
        """
        params = shapes_of(self.objective)
        kept = jax.eval_shape(self.objective.init_state, params)
        sharding.check_known((params, kept), self.objective.sharding_rules)
        return params

    def init_params(self) -> Any:
        """Draws parameters from the config's seed; a pure function to jit or trace."""
        return self.objective.init(jax.random.key(self.config.seed))

    def new_state(self, params: Any) -> TrainState:
        """Makes the state before the first step."""
        return new_state(
            params,
            self.optimizer,
            trained=self.groups.trained,
            averaged=bool(self.config.ema_decay),
            objective_state=self.objective.init_state,
        )

    def shardings(self, tree: Any) -> Any:
        """Returns the shardings of parameters, or of state kept for each of them."""
        return sharding.shardings(tree, self.mesh, self.objective.sharding_rules)

    def abstract_state(self) -> TrainState:
        """Returns the shapes, dtypes and shardings of the training state."""
        return self._abstract_state

    @functools.cached_property
    def _abstract_state(self) -> TrainState:
        state = jax.eval_shape(self.new_state, self.param_shapes)
        state = _placed(state, self.shardings(state))
        if not self.config.offload_optimizer:
            return state
        where = sharding.on_host(state.opt_state, self.mesh)
        return state._replace(opt_state=_placed(state.opt_state, where))

    def extra(self) -> Any:
        """Places the objective's constants on the devices; see `Objective.extra`."""
        values, abstract = self.objective.extra(), self._abstract_extra
        return jax.device_put(values, jax.tree.map(lambda x: x.sharding, abstract))

    @functools.cached_property
    def _abstract_extra(self) -> Any:
        values = self.objective.extra()
        sharding.check_known(values, self.objective.sharding_rules)
        return _placed(values, self.shardings(values))

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes, dtypes and shardings of a global training batch."""
        columns = {
            name: (x.shape, x.dtype) for name, x in self.objective.inputs.items()
        }
        columns |= {"mask": ((), jnp.float32), "bad": ((), jnp.int32)}
        return sharding.abstract_batch(columns, self.config.batch_size, self.mesh)

    def abstract_arguments(self) -> tuple[Any, ...]:
        """Returns the step's abstract arguments: state, batch and any `extra`."""
        arguments = self.abstract_state(), self.abstract_batch()
        extra = self._abstract_extra
        return (*arguments, extra) if jax.tree.leaves(extra) else arguments

    def train_step(self, choice: Hashable = None) -> jax.stages.Wrapped:
        """Makes the jitted step, which takes a state, a batch and any `extra`."""
        step = make_train_step(
            *(self.config, self.objective, self.optimizer, self.groups, self.mesh),
            choice,
        )
        where = jax.tree.map(lambda x: x.sharding, self.abstract_state())
        metrics = sharding.replicated(self.mesh)
        return jax.jit(step, donate_argnums=0, out_shardings=(where, metrics))

    def lower(self, choice: Hashable = None) -> jax.stages.Lowered:
        """Lowers the training step for this run's shapes; it is not yet compiled."""
        return self.train_step(choice).lower(*self.abstract_arguments())

    @property
    def eval_rows(self) -> int:
        """Images per evaluation batch: no more than there are, except for padding."""
        examples = self.info.num_examples[self.info.eval_split]
        return sharding.padded_batch_size(
            min(self.config.eval_batch_size, examples), self.mesh
        )

    def lower_eval(self) -> jax.stages.Lowered:
        """Lowers the evaluation step for this run's shapes; it is not yet compiled."""
        batch = abstract_batch(
            self.preprocessing,
            self.eval_rows,
            self.mesh,
            num_classes=self.info.num_classes * self.info.multi_label,
        )
        params = self.model_params(self.abstract_state().params)
        return self.eval_step().lower(params, batch)

    def eval_step(self) -> jax.stages.Wrapped:
        """Makes the jitted evaluation step, which takes parameters and a batch."""
        return make_eval_step(
            self.model,
            self.preprocessing,
            self.mesh,
            loss=self.config.loss,
            per_class=self.config.per_class,
        )

    def model_params(self, params: Any) -> Any:
        """Returns the model's own parameters, without others of the objective."""
        names = abstract_params(self.architecture)
        return {name: value for name, value in params.items() if name in names}

    def evaluated(self, state: TrainState) -> dict[str, Any]:
        """Returns the model parameters to evaluate, by the split to report them as."""

        def models(params: Any) -> Any:
            return self.objective.models(self.model_params(params), state.objective)

        found = {
            f"eval_{name}" if name else "eval": params
            for name, params in models(state.params).items()
        }
        if state.ema is not None:
            found["eval_ema"] = models(state.ema)[""]
        return found

    @functools.cached_property
    def better(self) -> dict[str, float]:
        """The metrics that `keep_best` may name → 1, or −1 if smaller is better."""
        labelled = self.architecture.num_classes > 0
        return directions(
            read_rows(self.config.evaluators.to_dict()), labelled=labelled
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a training batch that the step reads."""
        return (*self.objective.inputs, "mask", "bad")

    @property
    def train_transforms(self) -> dict[str, Chain]:
        """The random transform of each column of images."""
        return {
            name: column.transform
            for name, column in self.objective.inputs.items()
            if isinstance(column, Images)
        }


def set_up(
    config: Config,
    *,
    mesh: Mesh | None = None,
    devices: Sequence[Any] = (),
    pretrained: Description | None = None,
    problems: Sequence[str] = (),
    dataset: Dataset | None = None,
) -> Setup:
    """Resolves and checks a config and derives everything else from it.

    Args:
      config: a recipe with the command line's overrides applied.
      mesh: the devices; by default `config.mesh` of `devices`.
      devices: by default those of this process.
      pretrained: description of the pretrained checkpoint. An empty `model.variant`
        takes the architecture from it.
      problems: problems that are already known, to be listed with the rest.
      dataset: the config's dataset, if it is already open.

    Raises:
      UserError: lists everything that cannot work, before anything is compiled.
    """
    found = list(problems)
    info = architecture = preprocessing = setup = None
    with _noting(found):
        dataset = dataset or open_dataset(config.dataset, config.data_dir)
        info = dataset.info.with_splits(config.train_split, config.eval_split)
    config = config_lib.resolve(
        config, info.num_examples[info.train_split] if info else 1
    )
    if dataset:
        # Absolute, so that the checkpoint finds its data from any current directory.
        config.dataset, config.data_dir = dataset.location, dataset.data_dir
    # Keys with invalid values are listed now; the rest is checked without them.
    wrong = checks.wrong_values(config, CHOICES)
    if not any(key.startswith("mesh.") for key in wrong):
        with _noting(found):
            mesh = mesh or sharding.make_mesh(**config.mesh, devices=devices)
    first = len(found)
    sound = config_lib.with_defaults(config, wrong)
    if "image_size" not in wrong:
        size = config_lib.image_size(config)
        chain = None
        with _noting(found, "augment.train: "):
            chain = parse_chain(config.augment.train, size)
        if chain is None:
            sound.augment.train = "resize"
        with _noting(found, "augment.eval: "):
            preprocessing = _preprocessing(sound, size, pretrained)
        if sound.model.variant or pretrained:
            classes = 1
            with _noting(found):
                kind = objective_class(sound.objective)
                classes = kind.num_classes(sound, info) if info else 1
            with _noting(found):
                architecture = _architecture(sound, classes, pretrained)
    other_meshes = ""
    if architecture and mesh:
        batch = sound.batch_size, sound.accum_steps
        other_meshes = sharding.fitting_meshes(mesh, architecture, *batch)
        if wrong_mesh := sharding.misfits(mesh, architecture):
            found.append(
                f"{'; '.join(wrong_mesh)}: with {mesh.size} devices, "
                + (f"use {other_meshes}" if other_meshes else "no mesh fits")
            )
        attention = ""
        with _noting(found):
            attention = _attention(sound, architecture, mesh)
        model = _model(sound, architecture, mesh, attention or "xla")
        with _noting(found):
            setup = Setup(
                sound,
                dataset or open_dataset("digits"),
                info or DatasetInfo("", 1, {}, None, "", ""),
                mesh,
                architecture,
                preprocessing or Preprocessing(architecture.image_size),
                model,
            )
            _ = setup.optimizer
        with _noting(found):
            _check_best(sound, setup.better)
    # Problems of the values alone come first.
    found[first:first] = config_lib.problems(
        config,
        CHOICES,
        num_devices=sharding.batch_parts(mesh) if mesh else 1,
        other_meshes=other_meshes,
    )
    checks.check(found)
    assert setup  # otherwise a problem was found
    return setup


def _placed(shapes: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda x, there: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there),
        shapes,
        where,
    )


@contextlib.contextmanager
def _noting(found: list[str], prefix: str = "") -> Iterator[None]:
    """Adds an error inside to `found`, as one more line."""
    try:
        yield
    except ValueError as error:
        found.append(f"{prefix}{error}")


def _architecture(
    config: Config, num_classes: int, pretrained: Description | None
) -> ViTOrMixer:
    """Makes the architecture from variant and config, or from the pretrained file."""
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
                f"model.num_heads={model.num_heads}, but the pretrained file has "
                f"{heads}; do not set this key"
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
                "head, but reset_head=False keeps the pretrained head; set one of them "
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
    """Rejects config keys that this kind of model does not support."""
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
        raise ValueError(f"{kind} does not support {', '.join(wrong)}")


def _check_best(config: Config, better: Mapping[str, float]) -> None:
    if config.keep_best and config.keep_best not in better:
        raise ValueError(
            f"keep_best={config.keep_best!r}: choose from "
            f"{', '.join(better) or 'no metric: nothing is evaluated'}"
            + did_you_mean(config.keep_best, better)
        )


def _preprocessing(
    config: Config, size: tuple[int, int], pretrained: Description | None
) -> Preprocessing:
    """Makes the preprocessing, in the weights' value range or else [−1, 1]."""
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


def attention_candidates(
    architecture: ViTOrMixer, dtype: Any, mesh: Mesh
) -> tuple[str, ...]:
    """Lists the candidates for `model.attention=auto`, the most promising first.

    There are none for a model without attention, such as an MLP-Mixer.
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
    """Returns the formulation that the config names; for `auto`, the most promising.

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
    """Resolves `auto` by the devices of the mesh, not those of this process."""
    if name == "auto":
        name = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    return jnp.dtype(name)

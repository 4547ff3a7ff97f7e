"""The setup of a run: everything that follows from its config, without any weights.

Planning, benchmarking and training all start here, so none of them needs a prepared
dataset or a checkpoint to know the shapes, the schedule and the compiled program.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vit_jax import config as config_lib
from vit_jax import sharding
from vit_jax.checkpoints.description import MODEL, Description
from vit_jax.checkpoints.parts import average_key
from vit_jax.config import Config, checks
from vit_jax.config.flexible import readable_flexible
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.datasets import Dataset, open_dataset
from vit_jax.data.sources.options import FIRST_RULES, DataOptions
from vit_jax.data.sources.protocol import DatasetInfo
from vit_jax.data.transforms.chains import Chain, parse_chain, with_first_boxes
from vit_jax.errors import UserError, problems_of
from vit_jax.evaluators.choosing import (
    EvaluatorRow,
    check_metric,
    directions,
    judged_by,
    read_rows,
)
from vit_jax.evaluators.classification import what_to_count
from vit_jax.evaluators.examples import abstract_batch
from vit_jax.evaluators.patch_sizes import check_sizes, rows_of_sizes
from vit_jax.evaluators.steps import make_eval_step
from vit_jax.models import (
    PatchModel,
    ViTOrMixer,
    abstract_params,
)
from vit_jax.models.flexible import at_patch_size
from vit_jax.models.outputs import plain_loss, readable
from vit_jax.objectives.choosing import make_objective, objective_class
from vit_jax.objectives.protocol import Given, Images, Objective, shapes_of
from vit_jax.optim.adapters import beside_adapters, resting_adapters
from vit_jax.optim.chain import make_optimizer
from vit_jax.optim.groups import Groups, make_groups
from vit_jax.optim.options import unread_keys
from vit_jax.optim.rules import OPTIMIZERS
from vit_jax.optim.schedule_free import averages_of, has_averages
from vit_jax.train.choices import CHOICES
from vit_jax.train.early_stopping import check_patience
from vit_jax.train.model_from_config import (
    check_normalization,
    make_architecture,
    make_model,
    make_preprocessing,
    resolve_attention,
)
from vit_jax.train.state import TrainState, new_state
from vit_jax.train.step import make_train_step


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
                self._train_chain(),
                lambda: self.dataset.split(self.info.train_split).class_counts(),
            )
        )

    def _train_chain(self) -> Chain:
        text = self.config.augment.train
        if self.dataset.options.rules == FIRST_RULES:
            text = with_first_boxes(text)
        return parse_chain(text, self.architecture.image_size)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser, which turns gradients into directions."""
        return make_optimizer(self.config, self.param_shapes, self.groups, self.mesh)

    @functools.cached_property
    def groups(self) -> Groups:
        """The parameter groups: how each parameter is trained."""
        norm = getattr(self.architecture, "norm", "before_pool")
        return make_groups(
            *(self.config, self.param_shapes, OPTIMIZERS, self.objective.groups),
            rests=beside_adapters(
                self.architecture, abstract_params(self.architecture)
            ),
            norm_after_pool=norm == "after_pool",
        )

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

    @functools.cached_property
    def objective_facts(self) -> dict[str, Any]:
        """The objective's facts, read once; see `Objective.facts`."""
        return self.objective.facts()

    def init_params(self) -> Any:
        """Draws parameters from the config's seed; a pure function to jit or trace."""
        return self.objective.init(jax.random.key(self.config.seed))

    def new_state(self, params: Any) -> TrainState:
        """Makes the state before the first step."""
        return new_state(
            params,
            self.optimizer,
            trained=self.groups.trained,
            decays=self.ema_decays,
            objective_state=self.objective.init_state,
        )

    @property
    def ema_decays(self) -> tuple[float, ...]:
        """The decays of all averages, first that of `TrainState.ema`."""
        config = self.config
        return (config.ema_decay, *config.ema_decays) if config.ema_decay else ()

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
        where = sharding.on_host(
            state.opt_state, self.mesh, self.objective.sharding_rules
        )
        return state._replace(opt_state=_placed(state.opt_state, where))

    def extra(self) -> Any:
        """Places the objective's constants on the devices; see `Objective.extra`."""
        where = jax.tree.map(lambda x: x.sharding, self._abstract_extra)
        return jax.device_put(self._extra, where)

    @functools.cached_property
    def _abstract_extra(self) -> Any:
        sharding.check_known(self._extra, self.objective.sharding_rules)
        return _placed(self._extra, self.shardings(self._extra))

    @functools.cached_property
    def _extra(self) -> Any:
        # Once: it may be a large model that is read from a file.
        return self.objective.extra()

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
        """Makes the jitted step, which takes a state, a batch and any `extra`.

        Args:
          choice: one of the objective's choices; by default the first.
        """
        if choice is None:
            choice = self.objective.choices[0]
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
    def heaviest(self) -> ViTOrMixer:
        """The architecture at the patch size of the largest training step."""
        if (sizes := self.objective.patch_sizes) is None:
            return self.architecture
        return at_patch_size(self.architecture, sizes.choices[0])

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
        counted = what_to_count(
            *(self.architecture.num_classes, self.outputs),
            self.info.num_examples[self.info.eval_split],
            multi_label=self.info.multi_label,
            per_class=self.config.per_class,
            wanted=self.wanted,
        )
        step = make_eval_step(
            *(self.model, self.preprocessing, self.mesh),
            loss=plain_loss(self.config.loss),
            counted=counted,
        )
        return step.lower(self.model_params(self.abstract_state().params), batch)

    @property
    def wanted(self) -> frozenset[str]:
        """The metrics that decide something, named as in metrics.jsonl."""
        config = self.config
        found = {config.keep_best}
        if config.patience:
            found.add(config.patience_metric or config.keep_best)
        return frozenset(found - {""})

    def model_params(self, params: Any) -> Any:
        """Returns the model's own parameters, without others of the objective."""
        names = abstract_params(self.architecture)
        return {name: value for name, value in params.items() if name in names}

    def optimizer_averages(self, state: TrainState) -> Any:
        """Returns the parameters to use in place of those that are trained.

        That is what an optimiser's own averaging makes of them. None if it has none.
        """
        if not self._optimizer_averages:
            return None
        return self._optimizer_averages(state.opt_state, state.params)

    @functools.cached_property
    def _optimizer_averages(self) -> jax.stages.Wrapped | None:
        state = self.abstract_state()
        if not has_averages(state.opt_state):
            return None

        def fetched(tree: Any) -> Any:
            if not self.config.offload_optimizer:
                return tree
            return jax.device_put(tree, self.shardings(tree))

        return jax.jit(
            lambda opt_state, params: averages_of(
                opt_state, params, self.config.b1, fetched
            ),
            out_shardings=self.shardings(state.params),
        )

    def evaluated(self, state: TrainState) -> dict[str, Any]:
        """Returns the model parameters to evaluate, by the split to report them as.

        "eval" is the model as it will be loaded, but for the moving average of
        `ema_decay`, which is "eval_ema".
        """

        def models(params: Any) -> Any:
            return self.objective.models(self.model_params(params), state.objective)

        averages = self.optimizer_averages(state)
        used = state.params if averages is None else averages
        found = {
            f"eval_{name}" if name else "eval": params
            for name, params in models(used).items()
        }
        if state.ema is not None:
            found["eval_ema"] = models(state.ema)[""]
        for decay in self.ema_decays[1:]:
            average = state.averages[average_key(decay)]
            found[f"eval_ema_{decay}"] = models(average)[""]
        return found

    @property
    def outputs(self) -> str:
        """The meaning of the model's outputs, a key of `MEANINGS`."""
        found = self.objective.outputs(self.config)
        return readable(found, self.architecture.num_classes)

    @functools.cached_property
    def better(self) -> dict[str, float]:
        """The metrics that `keep_best` may name → 1, or −1 if smaller is better."""
        return directions(
            self.evaluators,
            self.architecture.num_classes,
            self.outputs,
            multi_label=self.info.multi_label,
        )

    @functools.cached_property
    def evaluators(self) -> list[EvaluatorRow]:
        """The rows of `config.evaluators`, checked, that suit the data."""
        config, names = self.config, self.config.evaluators
        rows = rows_of_sizes(config, self.architecture, self.outputs, names)
        rows = [*read_rows(names.to_dict()), *rows]
        check_sizes(rows, self.architecture)
        return judged_by(rows, self.info.num_classes)

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

    @property
    def aligned(self) -> tuple[str, ...]:
        """The columns of images that repeat the draws of the first."""
        return tuple(
            name
            for name, column in self.objective.inputs.items()
            if isinstance(column, Images) and column.aligned
        )


def set_up(
    config: Config,
    *,
    mesh: Mesh | None = None,
    devices: Sequence[Any] = (),
    pretrained: Description | None = None,
    problems: Sequence[str] = (),
    dataset: Dataset | None = None,
    begun: bool = False,
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
      begun: whether this run has begun earlier, perhaps with a version that did not
        refuse keys that its optimiser does not read.

    Raises:
      UserError: lists everything that cannot work, before anything is compiled.
    """
    found = list(problems)
    info = architecture = preprocessing = setup = None
    with _noting(found):
        dataset = dataset or open_dataset(
            config.dataset, config.data_dir, DataOptions.from_config(config.data)
        )
        info = dataset.info.with_splits(config.train_split, config.eval_split)
    config = config_lib.resolve(
        config, info.num_examples[info.train_split] if info else 1
    )
    if dataset:
        # Absolute, so that the checkpoint finds its data from any current directory.
        config.dataset, config.data_dir = dataset.location, dataset.data_dir
        config.data.rules = dataset.options.rules  # so that a later start keeps them
    # Keys with invalid values are listed now; the rest is checked without them.
    wrong = checks.wrong_values(config, CHOICES)
    if not any(key.startswith("mesh.") for key in wrong):
        with _noting(found):
            mesh = mesh or sharding.make_mesh(**config.mesh, devices=devices)
    first = len(found)
    sound = readable_flexible(config_lib.with_defaults(config, wrong))
    if "loss" in wrong:
        sound.loss_options = type(sound)()  # options of a loss that does not exist
    if "optimizer" in wrong:
        sound.optimizer_options = type(sound)()
    if "image_size" not in wrong:
        size = config_lib.image_size(config)
        chain = None
        with _noting(found, "augment.train: "):
            chain = parse_chain(config.augment.train, size)
        if chain is None:
            sound.augment.train = "resize"
        with _noting(found, "augment.eval: "):
            preprocessing = make_preprocessing(sound, size, pretrained)
        with _noting(found):
            check_normalization(sound, pretrained)
        if sound.model.variant or pretrained:
            classes = 1
            with _noting(found):
                kind = objective_class(sound.objective)
                classes = kind.num_classes(sound, info) if info else 1
            with _noting(found):
                architecture = make_architecture(sound, classes, pretrained)
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
            attention = resolve_attention(sound, architecture, mesh)
        model = make_model(sound, architecture, mesh, attention or "xla")
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
            if sound.save_frozen == "no" and not setup.groups.freezes:
                found.append("save_frozen=no has no effect: every parameter is trained")
            found += resting_adapters(architecture, setup.groups, pretrained)
            if sound.model.scan and (apart := setup.groups.untrained_blocks):
                model = model.clone(scan_apart=apart)
                setup = dataclasses.replace(setup, model=model)
            _check_averages(setup)
        if setup and not begun and "optimizer" not in wrong:
            with _noting(found):
                own = [row.get("rule", "") for row in setup.objective.groups.values()]
                found += unread_keys(sound, OPTIMIZERS, own)
        if sound.sampling == "balanced" and info and not info.num_classes:
            found.append("sampling=balanced: the images have no labels; use uniform")
        with _noting(found):
            check_metric("keep_best", sound.keep_best, setup.better)
        with _noting(found):
            check_patience(sound, setup.better, setup.evaluators)
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


def _check_averages(setup: Setup) -> None:
    """Rejects an objective that makes the model to use from what is trained.

    Raises:
      UserError: the optimiser averages the parameters, and the objective's state holds
        a model that is made from those that are not averaged.
    """
    used = {setup.config.optimizer, *setup.groups.values("rule")} - {""}
    averaging = sorted(rule for rule in used if OPTIMIZERS[rule].averages)
    if not averaging:
        return
    kept = setup.abstract_state().objective
    if isinstance(kept, dict) and MODEL in kept:
        raise UserError(
            f"optimizer={averaging[0]} averages the parameters, but the "
            f"objective {setup.config.objective} makes the model that is saved from "
            "those that are not averaged; use another optimizer"
        )


@contextlib.contextmanager
def _noting(found: list[str], prefix: str = "") -> Iterator[None]:
    """Adds an error inside to `found`, each of its problems unless it is there."""
    try:
        yield
    except ValueError as error:
        lines = [f"{prefix}{problem}" for problem in problems_of(error)]
        found += [line for line in lines if line not in found]

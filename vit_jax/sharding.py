"""The device mesh, and the sharding of parameters, batches and activations over it.

Nothing else in the package knows how many devices there are. A mesh has three axes:

  data    shards the batch; every part holds the same parameters.
  fsdp    shards the batch too, and also the parameters, the gradients and the
          optimiser's state (ZeRO-3, arXiv:1910.02054): a block's parameters are
          gathered when it runs, and again when its gradients are computed.
  tensor  shards the attention heads and the hidden units of MLPs (arXiv:1909.08053):
          two layers, the first split by its outputs, the second by its inputs, need one
          sum over the devices.

A mesh may lack axes, which then have size 1. If only `data` is larger than 1,
parameters are replicated and nothing is gathered.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from vit_jax.errors import UserError
from vit_jax.models import PatchModel, Placement, ProjectionHead, ViTOrMixer
from vit_jax.trees import path_name

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
_HOST = "pinned_host"  # JAX's name for the memory of the hosts

# End of an array's path → mesh axes that each of its dimensions is sharded over. The
# first row that matches applies. A matrix that no row matches is rejected. The
# optimiser's moments have the endings of their parameters; moments with other shapes,
# such as Adafactor's, are replicated.
PARAMETERS = (
    (r"(query|key|value|fc1)/kernel", ("fsdp", "tensor")),
    (r"(query|key|value|fc1)/bias", (("tensor", "fsdp"),)),
    (r"(out|fc2)/kernel", ("tensor", "fsdp")),
    # LoRA's two narrow matrices, whose rank is never divided.
    (r"(query|key|value|fc1)/lora_a", ("fsdp", None)),
    (r"(query|key|value|fc1)/lora_b", (None, ("tensor", "fsdp"))),
    (r"(out|fc2)/lora_a", (("tensor", "fsdp"), None)),
    (r"(out|fc2)/lora_b", (None, "fsdp")),
    # A projection head: layers in turn, and the lengths and directions of its outputs.
    (r"fc[3579]/kernel", ("fsdp", "tensor")),
    (r"fc[468]/kernel", ("tensor", "fsdp")),
    (r"last_layer/kernel", (None, ("tensor", "fsdp"))),
    (r"last_layer/scale", (("tensor", "fsdp"),)),
    (r"(head|head_distillation|pre_logits)/kernel", ("fsdp", "tensor")),
    (r"(head|head_distillation|pre_logits)/bias", ("tensor",)),
    (r"(patch_embed|conv\w+)/kernel", (None, None, None, "fsdp")),
    (r"pos_embed", (None, None, None, "fsdp")),
    (r"prompts", (None, None, "fsdp")),
    # A few tokens each.
    (r"cls|distillation|registers|pos_embed_prefix|probe", (None, None, None)),
    # Other biases, norms, scales: a small part of a model but, with many devices, a
    # large part of what each device would hold.
    (r"\w+", ("fsdp",)),
)

# Rows like those of `PARAMETERS`.
Rules = Sequence[tuple[str, tuple[Any, ...]]]

# Name of an activation's axis → mesh axes that it is sharded over.
ACTIVATIONS = {"batch": BATCH, "heads": "tensor", "hidden": "tensor"}

# (mesh axis, dimension of the model that it must divide). Any other dimension that an
# axis does not divide is not sharded.
_DIVIDED = (
    ("fsdp", "width"),
    ("tensor", "num_heads"),
    ("tensor", "mlp_dim"),
    ("tensor", "tokens_mlp_dim"),
)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[Any] = (),
) -> Mesh:
    """Makes a mesh of the devices of all processes.

    A single process may also use only its first devices.

    Args:
      data: size of the axis. One of the three sizes may be −1 = all devices that the
        others leave.
      fsdp: size of the axis.
      tensor: size of the axis.
      devices: other devices, to compile for.

    Raises:
      UserError: there are too few devices, they cannot be divided this way, or a
        process would have none of them.
    """
    processes = 1 if devices else jax.process_count()
    devices, sizes = devices or jax.devices(), [data, fsdp, tensor]
    count = len(devices)
    given = [size for size in sizes if size != -1]
    left = count // max(math.prod(given), 1)
    shape = [left if size == -1 else size for size in sizes]
    unknown = len(sizes) - len(given)
    all_used = unknown or processes > 1
    if (
        min(shape) < 1
        or unknown > 1
        or math.prod(shape) > count
        or (all_used and math.prod(shape) != count)
    ):
        asked = " × ".join(
            f"mesh.{axis}={size}"
            for axis, size in zip(AXES, sizes, strict=True)
            if size != 1
        )
        raise UserError(
            f"{asked}, but there are {count} {devices[0].platform} devices"
            + f" in {processes} processes" * (processes > 1)
            + f"; pass sizes of at least 1 with a product of "
            f"{'at most ' * (processes == 1)}{count}, or -1 for one of them, which "
            "takes all devices that the others leave. To use all devices, pass "
            f"{_most_like(shape, _shapes(count))}."
        )
    # On a TPU slice, neighbours stay together. `jax.make_mesh` does the same, but
    # rejects shapes for which a side of the slice has to be divided between two axes.
    arranged = mesh_utils.create_device_mesh(
        shape, devices[: math.prod(shape)], allow_split_physical_axes=True
    )
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: the leading axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(_batch_axes(mesh)))


def microbatch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays [accum, b, ...]: each microbatch like a batch."""
    return NamedSharding(mesh, PartitionSpec(None, _batch_axes(mesh)))


def batch_parts(mesh: Mesh) -> int:
    """Returns the number of shards of a batch on the mesh."""
    return math.prod(mesh.shape[axis] for axis in _batch_axes(mesh))


def padded_batch_size(batch_size: int, mesh: Mesh) -> int:
    """Rounds a batch size up to the next one that can be sharded over the mesh."""
    parts = batch_parts(mesh)
    return -(-batch_size // parts) * parts


def abstract_batch(
    columns: Mapping[str, tuple[tuple[int, ...], Any]], rows: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes, dtypes and shardings of a global batch.

    Args:
      columns: name → shape of one example, and dtype.
      rows: number of examples.
      mesh: the devices.
    """
    spread = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=spread)
        for name, (shape, dtype) in columns.items()
    }


def local_rows(mesh: Mesh, batch_size: int) -> range | np.ndarray:
    """Returns the rows of a batch on this process's devices, in ascending order.

    If the axis `tensor` spans several processes, these have the same rows.

    Args:
      mesh: the devices.
      batch_size: global batch size, a multiple of `batch_parts(mesh)`.
    """
    if not mesh.is_multi_process:
        return range(batch_size)
    size = batch_size // batch_parts(mesh)
    return np.concatenate(
        [np.arange(part * size, (part + 1) * size) for part in _local_parts(mesh)]
    )


def place(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Moves this process's rows of a batch to its devices, as one global batch.

    The copy is asynchronous, so the next batch is copied while a step runs.

    Args:
      batch: arrays with the `local_rows`.
      mesh: the devices.
    """
    sharding = batch_sharding(mesh)
    if not mesh.is_multi_process:
        return {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in batch.items()
        }
    here = _local_parts(mesh)

    def placed(rows: np.ndarray) -> jax.Array:
        size = len(rows) // len(here)

        def part(index: Any) -> np.ndarray:
            first = here.index((index[0].start or 0) // size) * size
            return rows[first : first + size]

        shape = (size * batch_parts(mesh), *rows.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: placed(rows) for name, rows in batch.items()}


def shardings(tree: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """Returns the shardings of parameters, or of a tree with state kept for each.

    Args:
      tree: arrays or their shapes: parameters, an optimiser's state, or a whole
        training state.
      mesh: the devices.
      rules: rows that take precedence over `PARAMETERS`.

    Returns:
      The tree with `NamedSharding` leaves.
    """
    return jax.tree.map_with_path(
        lambda path, x: NamedSharding(
            mesh, _parameter_spec(path, x.shape, mesh.shape, rules)
        ),
        tree,
    )


def check_known(tree: Any, rules: Rules = ()) -> None:
    """Rejects matrices that no row matches: they would be whole on every device.

    Args:
      tree: parameters, or a tree with their shapes; not an optimiser's state, whose
        arrays may have other shapes.
      rules: rows that take precedence over `PARAMETERS`.

    Raises:
      UserError: names all such parameters.
    """
    unknown = [
        f"{path_name(path)} {list(x.shape)}"
        for path, x in jax.tree.leaves_with_path(tree)
        if len(x.shape) > 1 and _row(path_name(path), len(x.shape), rules) is None
    ]
    if unknown:
        raise UserError(
            f"no rule says how to shard {', '.join(unknown)} over the mesh; add a row "
            "to PARAMETERS in vit_jax/sharding.py or, for your own objective, to its "
            "`sharding_rules`"
        )


def on_host(tree: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """Returns `shardings` in the memory of the devices' hosts.

    Scalars stay on the devices.
    """
    return jax.tree.map(
        lambda x, where: where.with_memory_kind(_HOST) if x.ndim else where,
        tree,
        shardings(tree, mesh, rules),
    )


def bytes_per_device(tree: Any) -> int:
    """Sums the bytes that arrays, or shapes with shardings, take on one device.

    Arrays in the memory of the hosts do not count.
    """
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if x.sharding.memory_kind != _HOST
    )


@dataclasses.dataclass(frozen=True)
class MeshPlacement(Placement):
    """The placement of a model's arrays on a mesh; steps give it to their models."""

    mesh: Mesh

    @property
    def gathers(self) -> bool:
        """Whether parameters are sharded over fsdp."""
        return self.mesh.shape.get("fsdp", 1) > 1

    @property
    def device_kind(self) -> str:
        """JAX's name for the kind of devices in the mesh."""
        return self.mesh.devices.flat[0].device_kind

    def constrain(self, x: Array, *axes: str | None) -> Array:
        """Shards activations over the mesh according to the names of their axes."""
        spread = tuple(ACTIVATIONS[axis] if axis else None for axis in axes)
        return _constrain(x, self.mesh, _fitting(spread, x.shape, self.mesh.shape))

    def apart(self, attention: Callable[..., Array]) -> Callable[..., Array]:
        """Makes each device run a function on its own examples and heads."""
        if self.mesh.size == 1:
            return attention

        def divided(*arrays: Array) -> Array:
            spread = (ACTIVATIONS["batch"], None, ACTIVATIONS["heads"], None)
            spec = _fitting(spread, arrays[0].shape, self.mesh.shape)
            # A kernel does not declare whether its results vary over the mesh.
            parts = {"mesh": self.mesh, "in_specs": spec, "out_specs": spec}
            return jax.shard_map(attention, check_vma=False, **parts)(*arrays)

        return divided

    def gather(self, params: Any, dtype: Any = None) -> Any:
        """Gathers parameters over fsdp.

        Their gradients are sharded again, each as soon as it is summed over the batch.

        Args:
          params: a block's or any other subtree.
          dtype: dtype in which matrices are sent; by default their own. Norms and
            biases are always sent in their own.
        """
        if not self.gathers:
            return params

        def gathered(path: Any, leaf: Array) -> Array:
            stored = _parameter_spec(path, leaf.shape, self.mesh.shape)
            whole = _parameter_spec(path, leaf.shape, {**self.mesh.shape, "fsdp": 1})
            if stored == whole:
                return leaf
            # A norm is applied in float32, and is as small as a bias.
            travels = dtype if dtype and leaf.ndim > 1 else leaf.dtype
            return _gather(leaf, self.mesh, stored, whole, travels)

        return jax.tree.map_with_path(gathered, params)

    def gather_outside_blocks(self, params: Any) -> Any:
        """Gathers a model's parameters except the blocks, which do so when they run."""
        if not self.gathers:
            return params
        return {
            name: value
            if name.startswith("blocks_")
            else self.gather({name: value})[name]
            for name, value in params.items()
        }


class PlacedModel:
    """A model as a function of parameters that are sharded over a mesh.

    Computing with sharded parameters takes two things: the model must get the mesh, and
    the parameters outside its blocks must be gathered. Doing only one of them is a
    mistake without symptoms, so this class does both.
    """

    def __init__(self, model: PatchModel | ProjectionHead, mesh: Mesh):
        self._placement = MeshPlacement(mesh)
        self._model = model.clone(placement=self._placement)

    def __call__(
        self, params: Any, images: Array, *, key: Array | None = None, **how: Any
    ) -> Any:
        """Computes the model's outputs.

        Args:
          params: the model's parameters. Other subtrees are ignored.
          images: normalised images [b, h, w, c], or a head's features.
          key: random key for dropout, in training.
          how: arguments of the model's call; or `method=`, with that method's.
        """
        params = self._placement.gather_outside_blocks(params)
        rngs = {} if key is None else {"rngs": {"dropout": key}}
        return self._model.apply({"params": params}, images, **rngs, **how)


def misfits(mesh: Mesh, architecture: ViTOrMixer) -> list[str]:
    """Lists the model's dimensions that the mesh must divide but does not."""
    return [
        f"mesh.{axis}={parts} must divide the model's {name}={size}"
        for axis, name in _DIVIDED
        for parts in [mesh.shape.get(axis, 1)]
        for size in [getattr(architecture, name, 0)]
        if size % parts
    ]


def fitting_meshes(
    mesh: Mesh, architecture: ViTOrMixer, batch_size: int, accum_steps: int
) -> str:
    """Names meshes of this size that divide the model and the batch, nearest first."""
    fitting = [
        shape
        for shape in _shapes(mesh.size)
        if batch_size % (shape[0] * shape[1] * accum_steps) == 0
        and not any(
            getattr(architecture, name, 0) % shape[AXES.index(axis)]
            for axis, name in _DIVIDED
        )
    ]
    return _most_like([mesh.shape.get(axis, 1) for axis in AXES], fitting)


def _local_parts(mesh: Mesh) -> list[int]:
    """Returns the batch shards on this process's devices, in ascending order."""
    lies = batch_sharding(mesh).addressable_devices_indices_map((batch_parts(mesh),))
    return sorted({where[0].start or 0 for where in lies.values() if where})


def _batch_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis in BATCH if axis in mesh.shape)


def _row(name: str, ndim: int, rules: Rules = ()) -> tuple[Any, ...] | None:
    """Returns the axes of the first row that matches the name and dimensions."""
    for pattern, axes in (*rules, *PARAMETERS):
        if len(axes) == ndim and re.fullmatch(f"(.*/)?({pattern})", name):
            return axes
    return None


def _parameter_spec(
    path: Any, shape: tuple[int, ...], sizes: Mapping[Any, int], rules: Rules = ()
) -> PartitionSpec:
    """Returns the spec of a parameter, or of state kept for it, for a mesh's sizes."""
    axes = _row(path_name(path), len(shape), rules)
    return _fitting(axes, shape, sizes) if axes and any(axes) else PartitionSpec()


def _fitting(
    axes: tuple[Any, ...], shape: tuple[int, ...], sizes: Mapping[Any, int]
) -> PartitionSpec:
    """Drops axes that the mesh lacks, then leading axes until the rest divide."""

    def fitting(wanted: Any, size: int) -> Any:
        names = (wanted,) if isinstance(wanted, str) else wanted or ()
        names = tuple(name for name in names if sizes.get(name, 1) > 1)
        while size % math.prod(sizes[name] for name in names):
            names = names[1:]
        return names or None

    return PartitionSpec(*map(fitting, axes, shape))


def _constrain(x: Array, mesh: Mesh, spec: PartitionSpec) -> Array:
    if mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def _gather(
    leaf: Array, mesh: Mesh, stored: PartitionSpec, whole: PartitionSpec, dtype: Any
) -> Array:
    def forward(leaf: Array) -> Array:
        # Constrained twice, so that a loop does not gather, before it starts, the array
        # that it slices.
        leaf = _constrain(leaf, mesh, stored).astype(dtype)
        return _constrain(leaf, mesh, whole)

    own = leaf.dtype
    gather = jax.custom_vjp(forward)
    gather.defvjp(
        lambda leaf: (forward(leaf), None),
        lambda _, gradient: (_constrain(gradient, mesh, stored).astype(own),),
    )
    return gather(leaf)


def _shapes(count: int) -> Iterator[tuple[int, int, int]]:
    """Yields all (data, fsdp, tensor) for this number of devices."""
    for tensor in range(1, count + 1):
        for fsdp in range(1, count // tensor + 1):
            if count % (fsdp * tensor) == 0:
                yield count // (fsdp * tensor), fsdp, tensor


def _most_like(
    asked: Sequence[int], shapes: Iterable[tuple[int, int, int]], most: int = 4
) -> str:
    """Writes the shapes that are closest to the one asked for."""

    def distance(shape: tuple[int, int, int]) -> float:
        pairs = zip(shape, asked, strict=True)
        return sum(abs(math.log(a / max(b, 1))) for a, b in pairs)

    nearest = sorted(shapes, key=distance)
    texts = [
        " × ".join(
            f"mesh.{axis}={size}"
            for axis, size in zip(AXES, shape, strict=True)
            if size > 1 or axis == "data"
        )
        for shape in nearest[:most]
    ]
    return " or ".join(texts) + (" or others" if len(nearest) > most else "")

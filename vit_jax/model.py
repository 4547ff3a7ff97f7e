"""A trained model: its logits, predictions, features and attention."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture, PatchModel, VisionTransformer, ViTOrMixer
from vit_jax.models.adapters import adapters_of, lora_of, merged_lora
from vit_jax.models.outputs import (
    EXCLUSIVE,
    INDEPENDENT,
    NUMBERS,
    check,
    is_probability,
    of_loss,
    readable,
    show,
)
from vit_jax.prediction.inputs import inputs
from vit_jax.prediction.passes import Passes, Prediction
from vit_jax.prediction.stream import Prepared, prepared
from vit_jax.reconstruction import (
    DecoderOfModel,
    Reconstruction,
    noise_and_kept,
    reconstruct,
)
from vit_jax.words import times

# What the outputs mean → what they are called in `repr`.
_NOUNS = {
    EXCLUSIVE: "classes",
    INDEPENDENT: "independent classes",
    NUMBERS: "plain numbers",
}
_BATCH = 32  # images per forward pass, unless the caller says otherwise


class Features(NamedTuple):
    """The features that `Model.features` returns, layers in the order requested."""

    patches: Float[Array, "b layers gh gw d"]  # patch tokens on their grid
    prefix: Float[Array, "b layers p d"]  # class token, then registers
    pooled: Float[Array, "b r"]  # result of pooling at the end of the model


class Model:
    """A trained classifier, on the first device.

    Attributes:
      module: the Linen module; `module.apply({"params": params}, images)`.
      params: nested dict of float32 arrays.
      architecture: the function that they compute.
      preprocessing: turns images into model input.
      class_names: names in the order of the logits; () if unknown.
      config: the resolved config that the model was trained with.
      step: number of updates that it was trained for.
      outputs: what the outputs mean: "exclusive" (an image has one of the classes),
        "independent" (a yes or no for each class) or "numbers" (plain numbers).
      examples: split → number of examples of the data that it was trained with.
      fingerprints: split → what identifies these examples; {} if unknown.
      decoder: description and parameters of the decoder of a masked autoencoder; None
        for any other model.
      base: "source" and "checksum" of the weights that adapters were trained beside; {}
        for any other model.
    """

    def __init__(
        self,
        module: PatchModel,
        params: Any,
        preprocessing: Preprocessing,
        class_names: Sequence[str],
        config: dict[str, Any],
        step: int,
        outputs: str = "",
        examples: Mapping[str, int] | None = None,
        fingerprints: Mapping[str, dict[str, str]] | None = None,
        decoder: DecoderOfModel | None = None,
        base: Mapping[str, str] | None = None,
    ):
        """Makes a model from its parts; `load` does that for you."""
        self.module = module
        self.params = jax.device_put(params, jax.devices()[0])
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        self.config = config
        self.step = step
        self.base = dict(base or {})
        self.examples = dict(examples or {})
        self.fingerprints = dict(fingerprints or {})
        self.decoder = decoder and decoder._replace(
            params=jax.device_put(decoder.params, jax.devices()[0])
        )
        classes = module.architecture.num_classes
        self.outputs = outputs or readable(of_loss(config["loss"]), classes)

    @property
    def architecture(self) -> ViTOrMixer:
        return self.module.architecture

    @property
    def outputs(self) -> str:
        return self._outputs

    @outputs.setter
    def outputs(self, outputs: str):
        check_outputs(outputs, self.architecture.num_classes)
        self._outputs = outputs

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Computes float32 logits of images in the model's value range.

        `prepare` makes such images from files, `preprocessing.normalize` from uint8
        arrays that already have the model's size.

        Raises:
          UserError: the images have another shape or type.
        """
        return _logits(self.module, self.params, self._checked(images))

    def prepare(self, images: Any) -> Float[Array, "b h w c"]:
        """Converts images of any size and kind to input for the model.

        Args:
          images: an image or several, as in `predict`.

        Raises:
          UserError: names every image that cannot be read.
        """
        found = list(self._prepared(images, _BATCH))
        _raise([image.error for image in found if image.error is not None])
        a = self.architecture
        pixels = np.zeros((len(found), *a.image_size, a.channels), np.uint8)
        for row, image in zip(pixels, found, strict=True):
            assert image.pixels is not None  # otherwise it has an error
            row[:] = image.pixels
        return self.preprocessing.normalize(jnp.asarray(pixels))

    def predict(
        self, images: Any, top_k: int = 5, *, errors: str = "raise"
    ) -> list[Any]:
        """Predicts the most probable classes of each image, best first; or numbers.

        Args:
          images: paths, folders (all the images in them), https addresses, bytes of
            image files, binary file objects, PIL images, uint8 arrays [h, w] or
            [h, w, c] of any size (NumPy's, JAX's or another library's), batches of
            them [b, h, w, c]; or a list or iterator of any of these.
          top_k: number of classes; at most all of them.
          errors: "raise", or "return" to get the UserError of an image that cannot be
            read in place of its result.

        Returns:
          For each image [(class name, probability), …]; a class without a name is given
          by its index. If `outputs` is "independent", the probabilities are those of a
          yes for each class and do not sum to one. If it is "numbers", all outputs are
          returned as they are, in their own order.

        Raises:
          UserError: an argument is invalid; or names every image that cannot be read.
        """
        if errors not in ("raise", "return"):
            raise UserError(f"errors={errors!r}: choose raise or return")
        keep = errors == "return"
        found, problems = [], []
        for image in self._stream(images, top_k, _BATCH, keep):
            if image.error is not None:
                problems.append(image.error)
            found.append(image.error or image.top)
        if not keep:
            _raise(problems)
        return found

    def stream(
        self, images: Any, top_k: int = 5, *, batch_size: int = _BATCH
    ) -> Iterator[Prediction]:
        """Predicts any number of images in bounded memory, one by one and in order.

        Threads read and prepare the next images while the device computes.

        Args:
          images: as in `predict`; an iterator is consumed as the results are.
          top_k: number of classes; at most all of them.
          batch_size: images per forward pass.

        Returns:
          An iterator over the predictions. An image that cannot be read has an `error`
          instead of a result.

        Raises:
          UserError: an argument is invalid.
        """
        return self._stream(images, top_k, batch_size, True)

    def features(
        self, images: Float[Array, "b h w c"], layers: Sequence[int] = (-1,)
    ) -> Features:
        """Computes the tokens after some of the blocks, before the final norm.

        Args:
          images: images as in `__call__`.
          layers: indices of blocks; 0 is the first, −1 the last.

        Raises:
          UserError: the model has no such block, or the images have another shape or
            type.
        """
        chosen = self._layers(layers)
        return _features(self.module, self.params, self._checked(images), chosen)

    def attention(
        self, images: Float[Array, "b h w c"], layers: Sequence[int] | None = None
    ) -> Float[Array, "b layers heads n n"]:
        """Computes float32 attention weights of blocks, by head; rows sum to one.

        Row i has the weights by which token i reads the others. Tokens: class token,
        registers, then the patches row by row, as in `architecture`. Prompts are not
        among them: a row sums to one with the weights for these, which are the
        intermediate "prompt_attention" of `module`.

        Args:
          images: images as in `__call__`.
          layers: indices of blocks, as in `features`; by default all. The weights of
            other blocks are not kept.

        Raises:
          UserError: the images have another shape or type, or the model has no
            attention or no such block.
        """
        if not isinstance(self.architecture, Architecture):
            raise UserError("this model is an MLP-Mixer, which has no attention")
        if layers is None:
            layers = range(self.architecture.depth)
        chosen = self._layers(layers)
        return _attention(self.module, self.params, self._checked(images), chosen)

    def reconstruct(
        self,
        images: Float[Array, "b h w c"],
        mask: Any = None,
        *,
        noise: Any = None,
        mask_ratio: float | None = None,
        seed: int = 0,
    ) -> Reconstruction:
        """Hides patches of images and predicts their pixels from the others.

        Args:
          images: images as in `__call__`.
          mask: what is hidden, bool: the patches row by row [b, n], on their grid
            [b, gh, gw], or pixels [b, h, w], where one pixel hides its patch. Images
            may have different numbers of hidden patches.
          noise: instead of a mask, floats [b, n]; the patches of the smallest ones are
            visible, as in `noise=` of Hugging Face's model.
          mask_ratio: share of the patches to hide, by default 0.75; without a noise,
            they are drawn.
          seed: of that draw.

        Raises:
          UserError: the model has no decoder or nothing records what it predicts; an
            argument is invalid; or an image would have no visible or no hidden patch.
        """
        if self.decoder is None:
            raise UserError(
                "this model has no decoder, so it cannot reconstruct images: load a "
                "masked autoencoder with its decoder, such as a work directory of the "
                "objective masked_autoencoding or mae_visualize_vit_base"
            )
        module = self.module
        assert isinstance(module, VisionTransformer)
        checked = self._checked(images)
        asked = noise_and_kept(
            module.architecture, len(checked), mask, noise, mask_ratio, seed
        )
        return reconstruct(module, self.params, self.decoder, checked, *asked)

    def merged(self) -> "Model":
        """Returns a model of the same function whose kernels contain its LoRA adapters.

        Every format can hold it. A model without such adapters is returned as it is.
        """
        if lora_of(self.architecture) is None:
            return self
        params, architecture = merged_lora(self.params, self.architecture)
        return Model(
            self.module.clone(architecture=architecture),
            params,
            *(self.preprocessing, self.class_names, self.config, self.step),
            *(self.outputs, self.examples, self.fingerprints, self.decoder),
            base=self.base if adapters_of(architecture) else None,
        )

    def __repr__(self) -> str:
        a = self.architecture
        names = self.class_names
        shown = ", ".join(names if len(names) <= 3 else (*names[:2], "…", names[-1]))
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(self.params))
        return (
            f"Model({a.depth} blocks of width {a.width}, {a.mixing}, patches "
            f"{times(a.patch_size)}, images {times((*a.image_size, a.channels))}, "
            f"{a.num_classes} {_NOUNS[self.outputs]}"
            f"{f' ({shown})' if shown else ''}, {count:,} parameters, step {self.step})"
        )

    def _layers(self, layers: Any) -> tuple[int, ...]:
        """Returns indices of blocks, counted from the first.

        Raises:
          UserError: these are not indices of blocks.
        """
        depth = self.architecture.depth
        if isinstance(layers, str) or not isinstance(layers, Sequence | np.ndarray):
            raise UserError(f"layers={layers!r}: expected a list of block indices")
        fits = (_whole(layer) and -depth <= layer < depth for layer in layers)
        if wrong := [layer for layer, fit in zip(layers, fits, strict=True) if not fit]:
            raise UserError(
                f"layers {wrong}: the model has {depth} blocks; expected indices from "
                f"0 to {depth - 1} or from {-depth} to -1"
            )
        return tuple(int(layer) % depth for layer in layers)

    def _checked(self, images: Any) -> Float[Array, "b h w c"]:
        a = self.architecture
        expected = (*a.image_size, a.channels)
        shape, dtype = np.shape(images), getattr(images, "dtype", None)
        if len(shape) != 4 or shape[1:] != expected:
            raise UserError(
                f"images have shape {shape}; expected (batch, *{expected}). "
                "model.prepare(images) makes them from files and arrays of any size"
            )
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(
                f"images have type {dtype}; expected floats in the model's value "
                "range. model.prepare(images) makes them from files and uint8 arrays"
            )
        return jnp.asarray(images, jnp.float32)

    def _prepared(self, images: Any, ahead: int) -> Iterator[Prepared]:
        listed = inputs(images, self.architecture.channels)
        return prepared(listed, self.preprocessing.prepare, ahead)

    def _stream(
        self, images: Any, top_k: int, batch_size: int, after_error: bool
    ) -> Iterator[Prediction]:
        """Predicts images; without `after_error` only reads those after a bad one."""
        for name, value in (("top_k", top_k), ("batch_size", batch_size)):
            if not _whole(value) or value < 1:
                raise UserError(
                    f"{name}={value!r}: expected a whole number of at least 1"
                )
        if not self.architecture.num_classes:
            raise UserError(
                "this model has no head, so it predicts no classes: load it without "
                "num_classes=0 if its file has one, fine-tune it "
                "(--config.pretrained=…), or use `Model.features`"
            )
        passes = Passes(
            partial(self._ranked, top_k=int(top_k)),
            self._name,
            batch_size=int(batch_size),
            after_error=after_error,
        )
        return passes(self._prepared(images, 2 * int(batch_size)))

    def _ranked(
        self, pixels: UInt8[np.ndarray, "b h w c"], top_k: int
    ) -> tuple[Int[Array, "b top_k"], Float[Array, "b top_k"]]:
        """Computes the classes to show and their values; does not wait for them."""
        logits = _logits(self.module, self.params, pixels, self.preprocessing)
        values, num_classes = show(self.outputs, logits), self.architecture.num_classes
        if is_probability(self.outputs):
            # By the logits, because probabilities near 0 or 1 may be equal.
            _, classes = jax.lax.top_k(logits, min(top_k, num_classes))
        else:
            classes = jnp.broadcast_to(jnp.arange(num_classes), logits.shape)
        return classes, jnp.take_along_axis(values, classes, axis=-1)

    def _name(self, index: int) -> str:
        return self.class_names[index] if self.class_names else str(index)


@partial(jax.jit, static_argnums=(0, 3))
def _logits(module, params, images, preprocessing: Preprocessing | None = None):
    """Computes logits; with a preprocessing, of uint8 images, as in evaluation."""
    if preprocessing is not None:
        images = preprocessing.normalize(images)
    return module.apply({"params": params}, images)


@partial(jax.jit, static_argnums=(0, 3))
def _features(module, params, images, layers: tuple[int, ...]) -> Features:
    a = module.architecture
    found, rows = _at(module, params, images, layers, "tokens", "pooled")
    tokens = found["tokens"][:, rows]
    prefix, patches = jnp.split(tokens, [a.num_prefix_tokens], axis=2)
    b, count, _, d = patches.shape
    return Features(patches.reshape(b, count, *a.grid, d), prefix, found["pooled"])


@partial(jax.jit, static_argnums=(0, 3))
def _attention(module, params, images, layers: tuple[int, ...]):
    found, rows = _at(module, params, images, layers, "attention")
    return found["attention"][:, rows]


def _at(module, params, images, layers: tuple[int, ...], *names: str):
    """Returns intermediates of some blocks, and where each of these is among them."""
    chosen = sorted(set(layers)) or [0]
    _, found = module.apply(
        *({"params": params}, images), intermediates=names, layers=tuple(chosen)
    )
    return found, jnp.array([chosen.index(layer) for layer in layers], jnp.int32)


def check_outputs(outputs: str, num_classes: int = 0):
    """Raises UserError if outputs cannot mean that."""
    try:
        check(outputs, num_classes)
    except ValueError as error:
        raise UserError(str(error)) from error


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _raise(problems: Sequence[UserError]):
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = "\n".join(f"  {line}" for line in problems)
        raise UserError(f"{len(problems)} images cannot be read:\n{lines}")

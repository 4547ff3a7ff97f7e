"""Descriptions of published weights, and facts about their families not in files."""

import dataclasses
import math
import pathlib
from typing import Any, NamedTuple

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import (
    Architecture,
    MixerArchitecture,
    ViTOrMixer,
    parse_variant,
)
from vit_jax.models.decoder import DecoderFacts
from vit_jax.models.outputs import EXCLUSIVE, INDEPENDENT
from vit_jax.weights.formats.layout import Reading

# Classes of a head → their number; "" = no head.
CLASSES = {
    "": 0,
    "i1k": 1000,
    "i21k": 21843,
    "cifar100": 100,
    "kitti": 4,
    "oxford_iiit_pet": 37,
    "resisc45": 45,
}
PROTOCOLS = {
    "google": "ImageNet validation as reported by google-research/vision_transformer: "
    "resized to a square without keeping the aspect ratio",
    "timm": "ImageNet validation as reported by timm: bicubic, centre crop of 0.9 of "
    "the shorter side, or all of it at 384 pixels",
    "deit": "ImageNet validation as reported by facebookresearch/deit: bicubic, centre "
    "crop of 0.875 of the shorter side for DeiT, or all of it for DeiT-III",
    "mae": "ImageNet validation as reported by facebookresearch/mae: bicubic, shorter "
    "side 256, centre crop 224",
    "big_vision": "ImageNet validation as reported in arXiv:2205.01580: shorter side "
    "256, centre crop 224",
}
# Fields of an architecture that names and shapes determine in every format.
_TOLD = (
    "width",
    "depth",
    "mlp_dim",
    "tokens_mlp_dim",
    "trunk",
    "patch_size",
    "grid",
    "channels",
    "registers",
    "distillation_token",
    "layer_scale",
    "num_classes",
)
_HALVES = (0.5, 0.5, 0.5)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
# Rounds like torchvision.
_BICUBIC = (
    "resize_small(interpolation='bicubic_antialias', rounding='down')"
    "|central_crop(rounding='nearest')"
)


class Family(NamedTuple):
    """Settings in a family's own code that its files do not record.

    Attributes:
      title: the name in messages and lists.
      gelu, layernorm_epsilon, trunk_numerics: fields of `Architecture`.
      posemb_resize: the method that resizes positions.
      eval_transform, mean, std: fields of `Preprocessing`; a row may have another
        transform.
      in_files: True if companion files record all of this and take precedence.
      licence: the licence if it does not allow every use, which is said on loading, and
        what it forbids: "CC-BY-NC 4.0 (no commercial use)"; "" = a free one.
    """

    title: str
    gelu: str = "exact"
    layernorm_epsilon: float = 1e-6
    trunk_numerics: str = "timm"
    posemb_resize: str = "bicubic"
    eval_transform: str = _BICUBIC
    mean: tuple[float, ...] = _HALVES
    std: tuple[float, ...] = _HALVES
    in_files: bool = False
    licence: str = ""


_NOT_COMMERCIAL = "CC-BY-NC 4.0 (no commercial use)"


def _of_google(title: str, eval_transform: str = "resize") -> Family:
    return Family(title, "tanh", 1e-6, "google", "google", eval_transform)


FAMILIES = {
    "google": _of_google("ViT, the original files (arXiv:2010.11929)"),
    "augreg": _of_google("How to train your ViT (arXiv:2106.10270)"),
    "sam": _of_google("ViT trained with SAM (arXiv:2106.01548)"),
    "gsam": _of_google("ViT trained with GSAM (arXiv:2203.08065)"),
    "mixer": _of_google("MLP-Mixer (arXiv:2105.01601)"),
    "big_vision": _of_google(
        "Better plain ViT baselines (arXiv:2205.01580)",
        "resize_small(256)|central_crop",
    ),
    # The converted first layer takes [−1, 1] instead of normalised colours.
    "deit3_big_vision": _of_google("DeiT-III as converted by big_vision", _BICUBIC),
    "timm": Family("ViT as converted by timm"),
    "deit": Family(
        "DeiT and DeiT-III (arXiv:2012.12877, arXiv:2204.07118)", mean=_MEAN, std=_STD
    ),
    "mae": Family(
        "MAE (arXiv:2111.06377)", mean=_MEAN, std=_STD, licence=_NOT_COMMERCIAL
    ),
    "huggingface_mae": Family(
        "MAE as converted by Hugging Face",
        layernorm_epsilon=1e-12,
        posemb_resize="bicubic_torch",
        in_files=True,
        mean=_MEAN,
        std=_STD,
        licence=_NOT_COMMERCIAL,
    ),
    "dinov2": Family("DINOv2 (arXiv:2304.07193)", mean=_MEAN, std=_STD),
    "huggingface": Family(
        "ViT as converted by Hugging Face",
        layernorm_epsilon=1e-12,
        posemb_resize="bicubic_torch",
        eval_transform="resize(interpolation='bilinear_antialias')",
        in_files=True,
    ),
    "huggingface_deit": Family(
        "DeiT as converted by Hugging Face",
        layernorm_epsilon=1e-12,
        posemb_resize="bicubic_torch",
        eval_transform="resize(256, 'bicubic_antialias')|central_crop",
        in_files=True,
        mean=_MEAN,
        std=_STD,
    ),
    "huggingface_dinov2": Family(
        "DINOv2 as converted by Hugging Face",
        posemb_resize="bicubic_torch",  # with registers "bicubic"
        eval_transform="resize_small(592, 'bicubic_antialias', 'down')|central_crop",
        in_files=True,
        mean=_MEAN,
        std=_STD,
    ),
    "huggingface_siglip": Family(
        "SigLIP and SigLIP 2, image encoder (arXiv:2303.15343, arXiv:2502.14786)",
        gelu="tanh",
        posemb_resize="bicubic_torch",
        eval_transform="resize(interpolation='bicubic_antialias')",
        in_files=True,
    ),
    "ijepa": Family(
        "I-JEPA (arXiv:2301.08243) as converted by timm",
        in_files=True,
        mean=_MEAN,
        std=_STD,
        licence=_NOT_COMMERCIAL,
    ),
    "huggingface_ijepa": Family(
        "I-JEPA as converted by Hugging Face",
        layernorm_epsilon=1e-12,
        posemb_resize="bicubic_torch",
        eval_transform="resize(interpolation='bilinear_antialias')",
        in_files=True,
        mean=_MEAN,
        std=_STD,
        licence=_NOT_COMMERCIAL,
    ),
}


# Families whose own pretraining used the sigmoid loss, on ImageNet-1k too.
_SIGMOID = ("augreg", "gsam", "mixer")


class Mirror(NamedTuple):
    """One address of a file.

    Attributes:
      url: an https address.
      sha256: the published checksum of the file, or the beginning of it.
      headless: the file has no head, even if the one at the first mirror has one.
      md5: the same as `sha256` of another algorithm, if only that is published.
    """

    url: str
    sha256: str | None = None
    headless: bool = False
    md5: str | None = None


class Accuracy(NamedTuple):
    """A reported top-1 accuracy in percent, and its protocol, a key of `PROTOCOLS`."""

    top1: float
    protocol: str


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights that can be downloaded.

    Attributes:
      name: unique in the table.
      mirrors: addresses, the best first; their formats may differ.
      family: a key of `FAMILIES`; "" = known only from the files.
      variant: for `vit_jax.models.parse_variant`; "" = known only from the files.
      architecture: of the file at the first mirror; None = known only from the file.
      pretraining: name of the data.
      classes: a key of `CLASSES`, or the name of a dataset.
      accuracy: on ImageNet-1k; None = not reported.
      eval_transform: "" = that of the family.
      recommended: whether the publishers recommend it among those of its variant.
      note: a caveat to log.
      decoder: that of a masked autoencoder in the file; None = there is none.
    """

    name: str
    mirrors: tuple[Mirror, ...]
    family: str = ""
    variant: str = ""
    architecture: ViTOrMixer | None = None
    pretraining: str = ""
    classes: str = ""
    accuracy: Accuracy | None = None
    eval_transform: str = ""
    recommended: bool = False
    note: str = ""
    decoder: DecoderFacts | None = None

    @property
    def params(self) -> int | None:
        """The number of parameters in the file at the first mirror."""
        if self.architecture is None:
            return None
        total = count_params(self.architecture)
        if self.decoder is None:
            return total
        assert isinstance(self.architecture, Architecture)
        return total + _count_decoder(self.architecture, self.decoder)

    @property
    def resolution(self) -> int | None:
        """Height and width in pixels."""
        return self.architecture and self.architecture.image_size[0]

    @property
    def licence(self) -> str:
        """The licence if it does not allow every use, else ""; see `Family`."""
        return FAMILIES[self.family].licence if self.family else ""

    @property
    def outputs(self) -> str:
        """The meaning of the outputs, which the loss gave them.

        It was a sigmoid's over ImageNet-21k, and in `_SIGMOID` for heads that come from
        the pretraining, rather than from fine-tuning.
        """
        pretraining = self.classes == self.pretraining and "--" not in self.name
        sigmoid = self.family in _SIGMOID and pretraining
        return INDEPENDENT if sigmoid or self.classes == "i21k" else EXCLUSIVE

    def complete(self, reading: Reading, path: pathlib.Path) -> Reading:
        """Adds the settings of the family to those that were read from a file.

        The family is the row's, even if the file came from another family's mirror.

        Args:
          reading: description of the file in the cache.
          path: the file's path in the cache.

        Raises:
          UserError: the file holds another model; lists every difference.
        """
        self.check(reading.architecture, path, reading.decoder)
        family = FAMILIES.get(self.family)
        if family is None or family.in_files:
            return reading
        names = {field.name for field in dataclasses.fields(reading.architecture)}
        numerics = ("gelu", "layernorm_epsilon", "trunk_numerics")
        architecture = dataclasses.replace(
            reading.architecture,
            **{name: getattr(family, name) for name in numerics if name in names},
        )
        preprocessing = Preprocessing(
            architecture.image_size,
            architecture.channels,
            self.eval_transform or family.eval_transform,
            family.mean,
            family.std,
        )
        # The row knows what a reader had to assume, unless these fields differ.
        alike = all(
            getattr(architecture, name, None) == getattr(self.architecture, name, None)
            for name in ("pooling", "num_heads")
        )
        decoder = reading.decoder
        if decoder is not None and self.decoder is not None:
            facts = ("num_heads", "normalize_pixels")
            known = {name: getattr(self.decoder, name) for name in facts}
            decoder = dataclasses.replace(decoder, **known)
        return reading._replace(
            assumed=() if alike else reading.assumed,
            architecture=architecture,
            preprocessing=preprocessing,
            posemb_resize=family.posemb_resize,
            outputs=self.outputs,
            outputs_known=True,
            decoder=decoder,
        )

    def check(
        self,
        found: ViTOrMixer,
        path: pathlib.Path,
        decoder: DecoderFacts | None = None,
    ) -> None:
        """Raises UserError if a file's architecture does not match these weights.

        Args:
          found: the architecture in the file.
          path: the file's path, for messages.
          decoder: the decoder in the file.
        """
        expected = self._sizes()
        if getattr(found, "posemb", "") == "sincos2d":
            expected.pop("grid", None)  # not in a file with fixed positions
        if not found.num_classes and any(mirror.headless for mirror in self.mirrors):
            expected.pop("num_classes", None)
        # A field that the other kind of model lacks counts as 0 where 0 is expected.
        there = {
            name: getattr(found, name, value if value == 0 else None)
            for name, value in expected.items()
        }
        if self.decoder is not None:
            for name in ("width", "depth", "mlp_dim"):
                expected[f"decoder_{name}"] = getattr(self.decoder, name)
                there[f"decoder_{name}"] = getattr(decoder, name, None)
        lines = "".join(
            f"\n  {name}: {there[name]} in the file, {value} expected"
            for name, value in expected.items()
            if there[name] != value
        )
        if lines:
            raise UserError(
                f"{path} holds another model than {self.name}:{lines}\nRemove the file "
                "to download it again, or pass its path to load the model in it."
            )

    def _sizes(self) -> dict[str, Any]:
        """Collects the fields that names and shapes determine in any file of these."""
        if self.architecture is not None:
            names = [name for name in _TOLD if hasattr(self.architecture, name)]
            return {name: getattr(self.architecture, name) for name in names}
        if not self.variant:
            return {}
        sizes = parse_variant(self.variant) | {"num_classes": CLASSES[self.classes]}
        return {name: sizes[name] for name in _TOLD if name in sizes}


def count_params(architecture: ViTOrMixer) -> int:
    """Computes the number of parameters without building the model."""
    a = architecture
    d, hidden = a.width, a.mlp_dim
    tokens = math.prod(a.grid)

    def mlp(width: int, hidden: int) -> int:
        return 2 * width * hidden + hidden + width

    attention = 4 * (d * d + d)
    total = math.prod(a.embed_kernel) * a.embed_channels * d + d  # the patches' kernel
    total += 2 * d  # the last norm
    if isinstance(a, MixerArchitecture):
        total += a.depth * (4 * d + mlp(tokens, a.tokens_mlp_dim) + mlp(d, hidden))
        return total + (a.num_classes and (d + 1) * a.num_classes)
    in_block = attention - 3 * d * (not a.qkv_bias)
    total += a.depth * (4 * d + in_block + mlp(d, hidden) + 2 * d * a.layer_scale)
    total += a.num_prefix_tokens * d
    total += (tokens + a.num_position_prefix) * d * (a.posemb == "learned")
    total += (d + attention + 2 * d + mlp(d, hidden)) * (a.pooling == "map")
    pooled = a.pooled_width
    total += a.pre_logits * (pooled + 1)
    heads = getattr(a, "num_pooled", 1)
    total += a.num_classes and ((a.pre_logits or pooled) + 1) * a.num_classes * heads
    return total + (0 if a.trunk is None else _count_trunk(a.trunk))


def _count_decoder(encoder: Architecture, decoder: DecoderFacts) -> int:
    """Counts everything but positions, which are fixed."""
    d, hidden = decoder.width, decoder.mlp_dim
    values = math.prod(encoder.patch_size) * encoder.channels
    block = 4 * (d * d + d) + 4 * d + 2 * d * hidden + hidden + d
    ends = (encoder.width + 1) * d + d + 2 * d + (d + 1) * values
    return ends + decoder.depth * block


def _count_trunk(units: tuple[int, ...]) -> int:
    """Counts a kernel and a norm for the root, each convolution and each projection."""
    total, channels = 49 * 3 * 64 + 2 * 64, 64
    for stage, count in enumerate(units):
        inner = 64 << stage
        for _ in range(count):
            outer = 4 * inner
            total += inner * (channels + 9 * inner + outer) + 2 * (2 * inner + outer)
            if channels != outer:
                total += channels * outer + 2 * outer
            channels = outer
    return total

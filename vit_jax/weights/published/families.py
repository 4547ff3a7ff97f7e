"""What published weights are, and what their families do that no file says."""

import dataclasses
import math
import pathlib
from typing import Any, NamedTuple

from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import MixerArchitecture, ViTOrMixer, parse_variant
from vit_jax.weights.formats.layout import Reading

# Outputs of a head, by what it tells apart; "": no head.
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
    "google": "ImageNet validation as reported by google-research/vision_transformer, "
    "resized to a square without keeping the aspect",
    "timm": "ImageNet validation as reported by timm: bicubic, centre crop of 0.9 of "
    "the shorter side, at 384 pixels all of it",
    "deit": "ImageNet validation as reported by facebookresearch/deit: bicubic, centre "
    "crop, of 0.875 of the shorter side for DeiT and all of it for DeiT-III",
    "big_vision": "ImageNet validation as reported in arXiv:2205.01580: shorter side "
    "256, centre crop 224",
}
# What names and shapes tell of an architecture in every format.
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
# As torchvision does.
_BICUBIC = (
    "resize_small(interpolation='bicubic_antialias', rounding='down')"
    "|central_crop(rounding='nearest')"
)


class Family(NamedTuple):
    """What a family's own code does and its files do not say.

    Attributes:
      title: in words.
      gelu, layernorm_epsilon, trunk_numerics: of `Architecture`.
      posemb_resize: how it changes the image size.
      eval_transform, mean, std: of `Preprocessing`; a row may have another transform.
      in_files: the files' companions say all of it and are to be believed.
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
    # Their first layer takes [−1, 1] instead of normalised colours.
    "deit3_big_vision": _of_google("DeiT-III as converted by big_vision", _BICUBIC),
    "timm": Family("ViT as converted by timm"),
    "deit": Family(
        "DeiT and DeiT-III (arXiv:2012.12877, arXiv:2204.07118)", mean=_MEAN, std=_STD
    ),
    "mae": Family("MAE, pretraining alone (arXiv:2111.06377)", mean=_MEAN, std=_STD),
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
}


class Mirror(NamedTuple):
    """One address.

    Attributes:
      url: https.
      sha256: the checksum of the file, or how that begins, if published.
      headless: the file has no head, even if that at the first mirror has one.
    """

    url: str
    sha256: str | None = None
    headless: bool = False


class Accuracy(NamedTuple):
    """Reported top-1 in percent, and the row of `PROTOCOLS` it was measured under."""

    top1: float
    protocol: str


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights that can be downloaded.

    Attributes:
      name: unique in the table.
      mirrors: where they are, best first. They need not be in the same format.
      family: a key of `FAMILIES`; "" = only the files say.
      variant: as `vit_jax.models.parse_variant` reads it; "" = only the files say.
      architecture: what is in the file at the first mirror; None = only the file says.
      pretraining: name of the data.
      classes: a key of `CLASSES`, or a data set's name.
      accuracy: on ImageNet-1k, None = not reported.
      eval_transform: "" = the family's.
      recommended: among its variant's, by those who published them.
      note: what one should know.
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

    @property
    def params(self) -> int | None:
        """The number of parameters, in the file at the first mirror."""
        return self.architecture and count_params(self.architecture)

    @property
    def resolution(self) -> int | None:
        """Height and width in pixels."""
        return self.architecture and self.architecture.image_size[0]

    @property
    def loss(self) -> str:
        """What made the head: ImageNet-21k's images have several labels."""
        several = self.classes == "i21k" or self.family == "gsam"
        return "sigmoid" if several else "softmax"

    def complete(self, reading: Reading, path: pathlib.Path) -> Reading:
        """What was read off a file, with what only its family knows.

        The family is the row's, also if the file came from another family's mirror.

        Args:
          reading: of the file that was downloaded, or put into the cache.
          path: where it lies there.

        Raises:
          UserError: the file is of another model; lists every difference.
        """
        self.check(reading.architecture, path)
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
        # What a reader has to assume, the row knows; unless it is another model's.
        alike = all(
            getattr(architecture, name, None) == getattr(self.architecture, name, None)
            for name in ("pooling", "num_heads")
        )
        return reading._replace(
            assumed=() if alike else reading.assumed,
            architecture=architecture,
            preprocessing=preprocessing,
            posemb_resize=family.posemb_resize,
            loss=self.loss,
        )

    def check(self, found: ViTOrMixer, path: pathlib.Path) -> None:
        """Raises UserError unless what a file holds has these weights' shapes."""
        expected = self._sizes()
        if getattr(found, "posemb", "") == "sincos2d":
            expected.pop("grid", None)  # such a file does not tell it
        if not found.num_classes and any(mirror.headless for mirror in self.mirrors):
            expected.pop("num_classes", None)
        # What the other kind of model has not, it has none of.
        there = {
            name: getattr(found, name, value if value == 0 else None)
            for name, value in expected.items()
        }
        lines = "".join(
            f"\n  {name}: {there[name]} in the file, {value} expected"
            for name, value in expected.items()
            if there[name] != value
        )
        if lines:
            raise UserError(
                f"{path} holds another model than {self.name}:{lines}\nRemove the file "
                "to download it again, in case that another one was put there; or pass "
                "its path, to load it as what it is."
            )

    def _sizes(self) -> dict[str, Any]:
        """Fields that the names and shapes in any file of these weights tell."""
        if self.architecture is not None:
            names = [name for name in _TOLD if hasattr(self.architecture, name)]
            return {name: getattr(self.architecture, name) for name in names}
        if not self.variant:
            return {}
        sizes = parse_variant(self.variant) | {"num_classes": CLASSES[self.classes]}
        return {name: sizes[name] for name in _TOLD if name in sizes}


def count_params(architecture: ViTOrMixer) -> int:
    """The number of parameters, by arithmetic alone."""
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
    total += a.pre_logits * (d + 1)
    heads = getattr(a, "num_pooled", 1)
    total += a.num_classes and ((a.pre_logits or d) + 1) * a.num_classes * heads
    return total + (0 if a.trunk is None else _count_trunk(a.trunk))


def _count_trunk(units: tuple[int, ...]) -> int:
    """A kernel and a norm for the root, for every convolution, every projection."""
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

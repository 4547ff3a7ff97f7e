"""Architectures: the function that a model's parameters compute, as plain data."""

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from vit_jax.models.blocks import (
    MLPS,
    NORMS,
    AttentionArchitecture,
    BlockArchitecture,
    MlpArchitecture,
    NormArchitecture,
)
from vit_jax.models.layers import GELU
from vit_jax.models.lora import TARGETS, LoraArchitecture, lora_conflicts
from vit_jax.models.positions import DENOMINATORS
from vit_jax.models.resnet import NUMERICS
from vit_jax.models.variants import parse_variant

# Field → names to choose from; the table that implements them, if there is one.
CHOICES: dict[str, Collection[str]] = {
    "pooling": ("cls", "gap", "map", "cls_gap"),
    "posemb": ("learned", "sincos2d"),
    "sincos_denominator": DENOMINATORS,
    "gelu": GELU,
    "norm": ("before_pool", "after_pool"),
    "trunk_numerics": NUMERICS,
    "mlp_type": MLPS,
    "norm_type": NORMS,
}
# Fields that older releases refuse to read. They are not written at their defaults, so
# that those releases still read the architectures that they can compute.
_ADDED = (
    *("mlp_type", "norm_type"),
    *("lora_rank", "lora_alpha", "lora_targets", "lora_rank_stabilized"),
    *("prompts", "prompts_deep"),
)

# Values of `pooling` that read the class token.
_OF_CLASS_TOKEN = ("cls", "cls_gap")

Kind = TypeVar("Kind", bound="PatchArchitecture")


class PatchArchitecture:
    """The fields and checks shared by architectures that read a grid of patches."""

    patch_size: tuple[int, int]
    image_size: tuple[int, int]
    channels: int

    def __post_init__(self):
        if problems := _wrong_values(self) or self._wrong_combinations():
            raise ValueError("impossible architecture: " + "; ".join(problems))

    @classmethod
    def from_variant(
        cls: type[Kind],
        name: str,
        *,
        image_size: tuple[int, int],
        num_classes: int,
        **fields: Any,
    ) -> Kind:
        """Makes the architecture of a variant such as "B/16".

        If `fields` leaves them out, `class_token` is true if the pooling needs it, and
        `class_token_position` if there is a class token and positions are learned.

        Raises:
          ValueError: the name is unknown (the message has the nearest names), this kind
            of architecture lacks a field, or a value is impossible.
        """
        given = {"image_size": image_size, "num_classes": num_classes, **fields}
        fields = parse_variant(name) | given
        names = [field.name for field in _fields(cls)]
        if unknown := [field for field in fields if field not in names]:
            raise ValueError(
                f"{name} cannot be made with {', '.join(unknown)}: the fields of "
                f"{cls.__name__} are {', '.join(names)}"
            )
        return cls(**cls._implied(fields))

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        (height, width), (patch_height, patch_width) = self.image_size, self.patch_size
        return height // patch_height, width // patch_width

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches."""
        return 0

    @property
    def num_tokens(self) -> int:
        """Tokens that a block sees."""
        return self.num_prefix_tokens + self.grid[0] * self.grid[1]

    @property
    def embed_kernel(self) -> tuple[int, int]:
        """(height, width) of the kernel that makes tokens, in its input's pixels."""
        return self.patch_size

    @property
    def embed_channels(self) -> int:
        """Input channels of the kernel that makes tokens."""
        return self.channels

    def to_dict(self) -> dict[str, Any]:
        """Converts the fields to JSON values, which `from_dict` reads back."""
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in _fields(self)
            for value in [getattr(self, field.name)]
            if field.name not in _ADDED or value != field.default
        }

    @classmethod
    def from_dict(cls: type[Kind], fields: dict[str, Any]) -> Kind:
        """Reads the result of `to_dict`, of this or an earlier version.

        Missing fields get their defaults.

        Raises:
          ValueError: a field is unknown, a field without default is missing, or a value
            is impossible.
        """
        names = {field.name for field in _fields(cls)}
        needed = {
            field.name for field in _fields(cls) if field.default is dataclasses.MISSING
        }
        if problems := [
            f"{what} {', '.join(sorted(found))}"
            for what, found in (
                ("missing", needed - fields.keys()),
                ("unknown", fields.keys() - names),
            )
            if found
        ]:
            raise ValueError(f"not an architecture: {'; '.join(problems)}")
        return cls(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        )

    @classmethod
    def _implied(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Adds the fields that follow from the others."""
        return fields

    def _wrong_combinations(self) -> list[str]:
        """Lists fields that are impossible together."""
        problems = []
        for side, size, patch in zip(
            ("height", "width"), self.image_size, self.patch_size, strict=True
        ):
            if size % patch:
                below = size // patch * patch
                nearest = f"{below} and {below + patch}" if below else str(patch)
                problems.append(
                    f"image {side} {size} is not a multiple of the patch {side} "
                    f"{patch} (nearest: {nearest})"
                )
        return problems


@dataclasses.dataclass(frozen=True)
class Architecture(PatchArchitecture):
    """A Vision Transformer's function, whether or not its parameters' shapes show it.

    Published families differ in every field from `pooling` on; the defaults are those
    of google-research/vision_transformer. Sizes are (height, width) in pixels.

    Raises:
      ValueError: one message that lists every field with an impossible value.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: tuple[int, int]
    image_size: tuple[int, int]
    num_classes: int  # 0: no head, the model returns the head's input
    channels: int = 3
    # Input of the head: class token, mean of patches, attention, or the first two side
    # by side (DINOv2's linear classifiers, arXiv:2304.07193).
    pooling: str = "cls"
    class_token: bool = True
    class_token_position: bool = True  # the class token has a position of its own
    registers: int = 0  # extra tokens (arXiv:2309.16588)
    posemb: str = "learned"
    sincos_denominator: str = "big_vision"
    pre_logits: int = 0  # width of a tanh layer before the head; 0: none
    gelu: str = "tanh"
    layernorm_epsilon: float = 1e-6
    layer_scale: bool = False  # a learned factor per channel on both branches
    norm: str = "before_pool"
    distillation_token: bool = False  # a second class token (arXiv:2012.12877)
    register_positions: bool = False  # registers have positions of their own
    # A ResNet makes the features that patches are cut from: residual units per stage;
    # () = its root alone, None = no trunk. `patch_size` stays in pixels of the image.
    trunk: tuple[int, ...] | None = None
    trunk_numerics: str = "google"
    # True: the second token has its own head, and the logits are the mean of both
    # heads. False: only other tokens read it.
    distillation_head: bool = True
    qkv_bias: bool = True  # on the blocks' queries, keys and values
    mlp_type: str = "plain"  # a row of `blocks.MLPS`
    norm_type: str = "layernorm"  # a row of `blocks.NORMS`
    # Adapters beside the blocks' dense layers (arXiv:2106.09685); rank 0 = none.
    lora_rank: int = 0
    lora_alpha: float = 0.0  # divided by the rank; see `LoraArchitecture`
    lora_targets: tuple[str, ...] = ()  # some of `lora.TARGETS`, in their order
    lora_rank_stabilized: bool = False
    # Learned tokens after the others (arXiv:2203.12119): the same ones pass through all
    # blocks, or (deep) each block has its own, which take part in its attention only.
    prompts: int = 0
    prompts_deep: bool = False

    @classmethod
    def _implied(cls, fields: dict[str, Any]) -> dict[str, Any]:
        class_token = fields.get("pooling", "cls") in _OF_CLASS_TOKEN
        fields = {"class_token": class_token} | fields
        position = fields["class_token"] and fields.get("posemb") != "sincos2d"
        return {"class_token_position": position} | fields

    @property
    def block(self) -> BlockArchitecture:
        """The architecture of the blocks and the MAP head, as one record."""
        return BlockArchitecture(
            NormArchitecture(self.layernorm_epsilon, self.norm_type),
            AttentionArchitecture(self.num_heads, self.qkv_bias),
            MlpArchitecture(self.mlp_dim, self.gelu, self.mlp_type),
            self.layer_scale,
            self._lora,
        )

    @property
    def _lora(self) -> LoraArchitecture | None:
        if not self.lora_rank:
            return None
        return LoraArchitecture(
            self.lora_rank,
            self.lora_alpha,
            self.lora_targets,
            self.lora_rank_stabilized,
        )

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class token, distillation token, registers."""
        return int(self.class_token) + int(self.distillation_token) + self.registers

    @property
    def num_tokens(self) -> int:
        """Tokens that a block sees, prompts included."""
        return super().num_tokens + self.prompts

    @property
    def mixing(self) -> str:
        """How tokens reach each other, in words."""
        return f"{self.num_heads} heads"

    @property
    def num_pooled(self) -> int:
        """Number of pooled vectors, one for each head."""
        return 1 + int(self.distillation_token and self.distillation_head)

    @property
    def pooled_width(self) -> int:
        """Channels of a pooled vector, before any tanh layer."""
        return self.width * (1 + int(self.pooling == "cls_gap"))

    @property
    def num_position_prefix(self) -> int:
        """Rows of `pos_embed_prefix`: tokens before the patches that have positions."""
        position = int(self.class_token_position)
        return (
            position * (1 + int(self.distillation_token))
            + int(self.register_positions) * self.registers
        )

    @property
    def trunk_stride(self) -> int:
        """Image pixels per feature of the trunk, along each side; 1 without a trunk."""
        if self.trunk is None:
            return 1
        return 4 * 2 ** max(len(self.trunk) - 1, 0)

    @property
    def embed_kernel(self) -> tuple[int, int]:
        """(height, width) of the kernel that makes tokens, in its input's pixels."""
        height, width = self.patch_size
        return height // self.trunk_stride, width // self.trunk_stride

    @property
    def embed_channels(self) -> int:
        """Input channels of the kernel that makes tokens."""
        if self.trunk is None:
            return self.channels
        return 128 * 2 ** len(self.trunk) if self.trunk else 64

    def _wrong_combinations(self) -> list[str]:
        problems = []
        if self.width % self.num_heads:
            problems.append(
                f"width {self.width} is not a multiple of num_heads {self.num_heads}"
            )
        if self.posemb == "sincos2d" and (self.width % 4 or self.width < 8):
            problems.append(
                f"posemb sincos2d needs a width of 8, 12, …, got {self.width}"
            )
        if self.pooling in _OF_CLASS_TOKEN and not self.class_token:
            problems.append(
                f"pooling {self.pooling} needs class_token; without it use gap or map"
            )
        if self.pooling == "cls_gap" and self.norm == "after_pool":
            problems.append("pooling cls_gap needs norm before_pool")
        if self.class_token_position and not self.class_token:
            problems.append("class_token_position needs class_token")
        if self.distillation_token and self.pooling != "cls":
            problems.append("distillation_token needs pooling cls")
        if not self.distillation_token and not self.distillation_head:
            problems.append("distillation_head False needs distillation_token")
        if self.num_pooled > 1 and self.pre_logits:
            problems.append("distillation_head and pre_logits exclude each other")
        if self.prompts_deep and not self.prompts:
            problems.append("prompts_deep needs prompts")
        if self.register_positions and not self.registers:
            problems.append("register_positions needs registers")
        if any(patch % self.trunk_stride for patch in self.patch_size):
            problems.append(
                f"patch_size {self.patch_size} is not a multiple of {self.trunk_stride}"
                f", the stride of the trunk {self.trunk}"
            )
        return problems + lora_conflicts(self) + super()._wrong_combinations()


@dataclasses.dataclass(frozen=True)
class MixerArchitecture(PatchArchitecture):
    """An MLP-Mixer (arXiv:2105.01601); its shapes depend on the grid of patches.

    Raises:
      ValueError: one message that lists every field with an impossible value.
    """

    width: int
    depth: int
    tokens_mlp_dim: int  # hidden width of the MLP across the tokens
    mlp_dim: int  # hidden width of the MLP across the channels
    patch_size: tuple[int, int]
    image_size: tuple[int, int]
    num_classes: int  # 0: no head, the model returns the head's input
    channels: int = 3
    gelu: str = "tanh"
    layernorm_epsilon: float = 1e-6

    @property
    def mixing(self) -> str:
        """How tokens reach each other, in words."""
        return f"{self.tokens_mlp_dim} channels across tokens"


ViTOrMixer = Architecture | MixerArchitecture


def architecture_from_dict(fields: dict[str, Any]) -> ViTOrMixer:
    """Reads either kind's `to_dict` result; raises ValueError like `from_dict`."""
    return _kind(fields).from_dict(fields)


def architecture_from_variant(
    name: str, *, image_size: tuple[int, int], num_classes: int, **fields: Any
) -> ViTOrMixer:
    """Makes the architecture of any variant: "B/16", "R50+B/16", "Mixer-B/16".

    Arguments and errors are those of `Architecture.from_variant`.
    """
    return _kind(parse_variant(name)).from_variant(
        name, image_size=image_size, num_classes=num_classes, **fields
    )


def _kind(fields: dict[str, Any]) -> type[Architecture] | type[MixerArchitecture]:
    return MixerArchitecture if "tokens_mlp_dim" in fields else Architecture


def _fields(architecture: Any) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(architecture)


def _whole(least: int) -> tuple[Callable[[Any], bool], str]:
    return (
        lambda value: type(value) is int and value >= least,
        f"a whole number of {least} or more",
    )


def _all_whole(values: Any) -> bool:
    return type(values) is tuple and all(map(_whole(1)[0], values))


_SIZE = (
    lambda value: _all_whole(value) and len(value) == 2,
    "a pair (height, width) of pixels",
)
_FLAG = (lambda value: type(value) is bool, "True or False")

# Field → the condition on its value, and the same in words.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "width": _whole(1),
    "depth": _whole(1),
    "mlp_dim": _whole(1),
    "tokens_mlp_dim": _whole(1),
    "num_heads": _whole(1),
    "patch_size": _SIZE,
    "image_size": _SIZE,
    "num_classes": _whole(0),
    "channels": _whole(1),
    "class_token": _FLAG,
    "class_token_position": _FLAG,
    "registers": _whole(0),
    "prompts": _whole(0),
    "prompts_deep": _FLAG,
    "pre_logits": _whole(0),
    "layernorm_epsilon": (
        lambda value: type(value) is float and 0 < value < 1,
        "a number between 0 and 1",
    ),
    "layer_scale": _FLAG,
    "distillation_token": _FLAG,
    "distillation_head": _FLAG,
    "register_positions": _FLAG,
    "qkv_bias": _FLAG,
    "lora_rank": _whole(0),
    "lora_alpha": (
        lambda value: type(value) is float and 0 <= value < math.inf,
        "a finite number of 0 or more",
    ),
    "lora_targets": (
        lambda value: (
            type(value) is tuple
            and value == tuple(name for name in TARGETS if name in value)
        ),
        f"some of {', '.join(TARGETS)}, in this order",
    ),
    "lora_rank_stabilized": _FLAG,
    "trunk": (
        lambda value: value is None or (_all_whole(value) and len(value) <= 8),
        "None or residual units per stage, such as (3, 4, 9)",
    ),
} | {
    name: (
        lambda value, choices=choices: type(value) is str and value in choices,
        f"one of {', '.join(choices)}",
    )
    for name, choices in CHOICES.items()
}


def _wrong_values(architecture: Any) -> list[str]:
    """Lists fields whose value alone is impossible."""
    return [
        f"{name} is {value!r}, expected {expected}"
        for name in (field.name for field in _fields(architecture))
        for value in [getattr(architecture, name)]
        for holds, expected in [_RULES[name]]
        if not holds(value)
    ]

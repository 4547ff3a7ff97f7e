"""The description in every checkpoint: everything needed to use it but the arrays."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from vit_jax.checkpoints.workdir import normalised
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import (
    Architecture,
    ViTOrMixer,
    abstract_params,
    architecture_from_dict,
)
from vit_jax.models.decoder import DECODER, DecoderFacts, abstract_decoder
from vit_jax.models.outputs import check, of_loss, readable

SCHEMA_VERSION = 1
# The key of an objective's state under which it keeps subtrees of the model that are
# used in place of the trained ones.
MODEL = "model"


@dataclasses.dataclass(frozen=True)
class Description:
    """The metadata that is saved beside the parameters of every checkpoint."""

    architecture: ViTOrMixer
    preprocessing: Preprocessing
    class_names: tuple[str, ...]  # of the data; empty if unknown
    config: dict[str, Any]  # resolved, after a round trip through JSON: no tuples
    step: int  # completed updates, which is also the number of batches consumed
    # Split → number of examples that the run trains or evaluates on.
    examples: dict[str, int] = dataclasses.field(default_factory=dict)
    # Split → `Source.fingerprint` of these examples.
    fingerprints: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    # What the outputs mean, a key of `MEANINGS`; "" = what the config's loss trains.
    outputs: str = ""
    # What identifies the things that the objective read, such as a teacher's checksum.
    objective: dict[str, Any] = dataclasses.field(default_factory=dict)
    # The decoder of a masked autoencoder, whose parameters are then the subtree
    # `DECODER` beside the model's own; None for any other model.
    decoder: DecoderFacts | None = None
    # The pretrained weights whose parameters were frozen: their "source" and their
    # "checksum". Checkpoints of such a run leave these parameters out. {} = none.
    base: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "config", normalised(self.config))
        object.__setattr__(self, "objective", normalised(self.objective))
        outputs = self.outputs or of_loss(self.config.get("loss", ""))
        check(outputs)
        outputs = readable(outputs, self.architecture.num_classes)
        object.__setattr__(self, "outputs", outputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in their order; () if they are not the classes.

        The head of another objective may have one output for data with many classes.
        """
        fit = len(self.class_names) == self.architecture.num_classes
        return self.class_names if fit else ()

    @property
    def param_shapes(self) -> dict[str, Any]:
        """Shapes and dtypes of the parameters that it describes."""
        params = abstract_params(self.architecture)
        if self.decoder is None:
            return params
        assert isinstance(self.architecture, Architecture)
        return params | {DECODER: abstract_decoder(self.architecture, self.decoder)}

    def read_as(self, outputs: str | None) -> Self:
        """Returns the description with another meaning of the outputs; None keeps it.

        Raises:
          UserError: the outputs cannot mean that.
        """
        if outputs is None:
            return self
        try:
            check(outputs, self.architecture.num_classes)
        except ValueError as error:
            raise UserError(str(error)) from error
        return dataclasses.replace(self, outputs=outputs)

    def to_dict(self) -> dict[str, Any]:
        """Converts to JSON values, which `from_dict` reads back as an equal object."""
        return {
            "schema_version": SCHEMA_VERSION,
            "step": self.step,
            "architecture": normalised(self.architecture.to_dict()),
            "preprocessing": normalised(self.preprocessing.to_dict()),
            "class_names": list(self.class_names),
            "config": self.config,
            "examples": self.examples,
            "fingerprints": self.fingerprints,
            "outputs": self.outputs,
            **({"objective": self.objective} if self.objective else {}),
            **({"decoder": self.decoder.to_dict()} if self.decoder else {}),
            **({"base": self.base} if self.base else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Restores a description from the values of `to_dict`.

        Raises:
          UserError: another schema version, unknown or missing keys, impossible values.
        """
        values = dict(values)
        version = values.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise UserError(
                f"the checkpoint's description has schema version {version!r}, but "
                f"this vit_jax reads version {SCHEMA_VERSION}; use the release of "
                "vit_jax that wrote it, or a newer one."
            )
        # Older checkpoints lack these; "objective", "decoder" and "base" are not
        # written when they are empty, so that older releases read all others.
        added: dict[str, Any] = {
            "examples": {},
            "fingerprints": {},
            "outputs": "",
            "objective": {},
            "decoder": None,
            "base": {},
        }
        values = added | values
        names = {field.name for field in dataclasses.fields(cls)}
        if wrong := sorted(names ^ values.keys()):
            raise UserError(
                f"the checkpoint's description is damaged: {wrong} are missing or "
                f"unknown; expected the keys {sorted(names)}."
            )
        try:
            values["architecture"] = architecture_from_dict(values["architecture"])
            values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
            if values["decoder"] is not None:
                values["decoder"] = DecoderFacts.from_dict(values["decoder"])
            if values["outputs"]:
                check(values["outputs"])
            _check_base(values["base"])
        except (ValueError, TypeError) as error:
            raise UserError(
                "the checkpoint's description cannot be read by this release of "
                f"vit_jax: {error}"
            ) from error
        return cls(**values)


def _check_base(base: Any) -> None:
    """Raises ValueError unless a record of a base is empty or complete."""
    texts = isinstance(base, dict) and all(type(x) is str for x in base.values())
    if base != {} and not (texts and base.keys() == {"source", "checksum"}):
        raise ValueError(f"base is {base!r}, expected a source and a checksum")

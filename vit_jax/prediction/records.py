"""The result of one image as it is written: as JSON values, and as a row of a table."""

import itertools
import math
from typing import Any, NamedTuple

from vit_jax.errors import UserError
from vit_jax.prediction.passes import Prediction


class Layout(NamedTuple):
    """The form that all results in one file share.

    Attributes:
      top_k: number of classes of each image.
      value: what is given of each class, "probability" or "value".
    """

    top_k: int
    value: str

    @property
    def columns(self) -> list[str]:
        """The columns of a table: image, error, class_1, probability_1, class_2, …"""
        pairs = ((f"class_{n}", f"{self.value}_{n}") for n in range(1, self.top_k + 1))
        return ["image", "error", *itertools.chain.from_iterable(pairs)]


def to_json(prediction: Prediction, value: str) -> dict[str, Any]:
    """Converts a prediction to JSON values, with "top" or, if it failed, "error".

    Raises:
      UserError: the model does not give finite numbers.
    """
    if prediction.error is not None:
        return {"image": prediction.image, "error": str(prediction.error)}
    if not all(math.isfinite(number) for _, number in prediction.top):
        raise UserError(
            f"{prediction.image}: the model does not give finite numbers, so its "
            "parameters are damaged or diverged; pass another checkpoint"
        )
    top = [{"class": name, value: number} for name, number in prediction.top]
    return {"image": prediction.image, "top": top}


def to_row(record: dict[str, Any], layout: Layout) -> list[Any]:
    """Converts the values of `to_json` to a row of a table; None where it is empty."""
    cells: list[Any] = [text(record["image"]), None]
    if (error := record.get("error")) is not None:
        cells[1] = text(error)
    for each in record.get("top", ()):
        cells += [text(each["class"]), each[layout.value]]
    return cells + [None] * (len(layout.columns) - len(cells))


def text(name: str) -> str:
    """Replaces what UTF-8 cannot hold: bytes of file names that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()

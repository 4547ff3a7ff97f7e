"""Results on standard output: as text, or as one JSON object."""

import json
from typing import Any

from vit_jax.prediction.records import Layout


class Printed:
    """Results as text: the name of an image, then a line for each class."""

    def __init__(self, layout: Layout):
        """Sets what is printed of each class."""
        self._value = layout.value
        # Plain numbers are no shares.
        self._format = "8.2%" if layout.value == "probability" else "12.6g"

    def write(self, record: dict[str, Any]) -> None:
        """Prints the values of `records.to_json`; nothing if the image failed."""
        if "top" not in record:
            return
        print(record["image"])
        for each in record["top"]:
            print(f"  {each[self._value]:{self._format}}  {each['class']}")

    def __enter__(self) -> "Printed":
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class JsonObject:
    """Results as one JSON object on one line, which is written as they come.

    Its "predictions" has the images with results, its "errors" the others.
    """

    def __init__(self, head: dict[str, Any]):
        """Sets the first entries of the object."""
        self._head = head
        self._errors: list[dict[str, Any]] = []
        self._separator = ""

    def write(self, record: dict[str, Any]) -> None:
        """Adds the values of `records.to_json`."""
        if "top" not in record:
            self._errors.append(record)
            return
        print(f"{self._separator}{_json(record)}", end="")
        self._separator = ", "

    def __enter__(self) -> "JsonObject":
        print(f'{_json(self._head)[:-1]}, "predictions": [', end="")
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            print(f'], "errors": {_json(self._errors)}}}')


def _json(values: Any) -> str:
    return json.dumps(values, allow_nan=False)

"""Options of a data set: how its files are read where their layout does not say it."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Self

from vit_jax.errors import UserError
from vit_jax.words import did_you_mean

# Versions of the rules by which files are found, divided into splits, and their classes
# ordered. A run keeps the rules that it began with; see `DataOptions.rules`.
FIRST_RULES, NEWEST_RULES = 1, 2
NO_SPLITS = "none"


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """How the files of a data set are read; the keys of `config.data`.

    Attributes:
      kind: a key of `datasets.KINDS`; "" = recognised from the files.
      splits: the folder, or the value of the split column, of each split, as in
        "train=Training,val=Dev Set"; "none" = there are no splits, every folder is a
        class; "" = recognised by their names.
      hold_out: share of the training data that is held out if no split is for
        evaluation.
      rules: version of the rules for what the files mean: which endings are images,
        which folders are splits, the order of the classes, and what is held out. 1 =
        those of runs begun before there was this option.
      path_column: a table's column of images; "" = recognised by its name.
      label_columns: a table's column of labels; or several columns of zeros and ones,
        one per class, joined by commas, where "finding_*" stands for all that match;
        "" = recognised.
      label_separator: text between several labels in one cell of a table.
      split_column: a table's column of splits; "none" = there is none; "" = recognised.
      group_column: a table's column of groups, such as patients, which held-out images
        do not share with others; "" = none.
      image_root: folder that a table's paths are relative to, itself relative to the
        table's folder; or several, joined by commas or as a pattern ("images_*").
      image_suffix: text to append to a table's paths that have no ending of images; or
        several, joined by commas, of which the first that makes a file is appended.
      white_level: the value that is white in images of more than 8 bits per channel
        whose file does not say it; 0 = the largest of 16 bits. A model is saved with
        the one it was trained with.
    """

    kind: str = ""
    splits: str = ""
    hold_out: float = 0.1
    rules: int = NEWEST_RULES
    path_column: str = ""
    label_columns: str = ""
    label_separator: str = "|"
    split_column: str = ""
    group_column: str = ""
    image_root: str = ""
    image_suffix: str = ""
    white_level: float = 0.0

    def __post_init__(self):
        if not 0 < self.hold_out < 1:
            raise UserError(
                f"data.hold_out={self.hold_out}: expected a share of the training "
                "data, more than 0 and less than 1, such as 0.1"
            )
        if not 0 <= self.white_level < math.inf:
            raise UserError(
                f"data.white_level={self.white_level}: expected the value that is "
                "white, such as 4095, or 0 for the largest of 16 bits"
            )
        if not FIRST_RULES <= self.rules <= NEWEST_RULES:
            raise UserError(
                f"data.rules={self.rules}: this version knows {FIRST_RULES} to "
                f"{NEWEST_RULES}; 0 = those that the run began with, or the newest"
            )
        if not self.label_separator:
            raise UserError(
                "data.label_separator is empty: expected the text between two labels, "
                "such as '|'"
            )
        _ = self.named_splits

    @classmethod
    def from_config(cls, data: Mapping[str, Any] | None) -> Self:
        """Makes the options from `config.data`.

        Args:
          data: names → values; others are ignored. None, or no "rules": the config of
            a run that was begun before they were recorded. Rules 0 are the newest.

        Raises:
          UserError: a value cannot be used.
        """
        given: dict[str, Any] = {"rules": FIRST_RULES, **(data or {})}
        given["rules"] = given["rules"] or NEWEST_RULES
        return cls(**{name: given[name] for name in cls.names() if name in given})

    @classmethod
    def names(cls) -> list[str]:
        """Lists the names of all options."""
        return [field.name for field in dataclasses.fields(cls)]

    def changed(self, given: Mapping[str, Any], called: str = "data.") -> Self:
        """Returns a copy with other values of some options.

        Args:
          given: names → values, of which texts are converted.
          called: what stands before the names in error messages.

        Raises:
          UserError: there is no such option, or a value cannot be used.
        """
        values = {}
        for name, value in given.items():
            if name not in self.names():
                raise UserError(
                    f"{called}{name}: no such option; there are "
                    f"{', '.join(self.names())}{did_you_mean(name, self.names())}"
                )
            kind = type(getattr(self, name))
            try:
                values[name] = kind(value)
            except (TypeError, ValueError):
                expected = {int: "a whole number", float: "a number"}.get(kind, "text")
                raise UserError(
                    f"{called}{name}={value!r}: expected {expected}"
                ) from None
        return dataclasses.replace(self, **values)

    def with_flags(self, texts: Iterable[str]) -> Self:
        """Returns a copy with the values of a command's flags, --data=NAME=VALUE.

        Raises:
          UserError: a flag is not of that form; or see `changed`.
        """
        given = {}
        for text in texts:
            name, equals, given[name] = text.partition("=")
            if not equals:
                raise UserError(
                    f"--data={text}: expected NAME=VALUE, as in "
                    "--data='splits=train=Training,val=Dev Set'; names are "
                    f"{', '.join(self.names())}"
                )
        return self.changed(given, "--data=")

    @property
    def named_splits(self) -> dict[str, str]:
        """Name of a folder, or value of the split column → its split, from `splits`.

        Raises:
          UserError: `splits` is not of its form.
        """
        if self.splits.strip() in ("", NO_SPLITS):
            return {}
        found = {}
        # Other commas are part of a name.
        for part in re.split(r",(?=\s*\w+\s*=)", self.splits):
            split, equals, name = (text.strip() for text in part.partition("="))
            if not (equals and name and split.isidentifier()) or name in found:
                raise UserError(
                    f"data.splits={self.splits!r}: expected SPLIT=NAME for each split, "
                    "joined by commas, with every name once, as in "
                    f"'train=Training,val=Dev Set'; or {NO_SPLITS!r}, if there are "
                    "no splits and every folder is a class"
                )
            found[name] = split
        return found


DEFAULT_OPTIONS = DataOptions()

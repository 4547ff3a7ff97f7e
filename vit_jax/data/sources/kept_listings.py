"""A cache of the listings of large folders, kept from one start to the next.

A listing is valid as long as no directory has changed. Adding, removing or renaming a
file changes the modification time of its directory, so only directories are checked.
"""

import json
import os

import numpy as np

from vit_jax import cache
from vit_jax.data.hashing import stable_hash
from vit_jax.data.sources.listings import Files, Listing, NotForTraining, Ragged
from vit_jax.data.sources.options import DataOptions
from vit_jax.errors import UserError

FORMAT = 4  # increment with every change of the listing's contents or layout
# Listing fewer files is as fast as reading a cached listing.
WORTH_KEEPING = 5_000
# Seconds. A directory that changed more recently may change again without a new
# modification time: the resolution of file systems is up to two seconds (FAT).
SETTLED_AFTER = 3.0


def load(path: str, options: DataOptions) -> Listing | None:
    """Returns the listing that an earlier start kept, if it is still valid."""
    arrays = cache.load_arrays(_file(path, options))
    if arrays is None:
        return None

    def texts(name: str) -> Ragged:
        return Ragged(arrays[f"{name}/flat"], arrays[f"{name}/ends"])

    try:
        directories = texts("directories").texts()
        for directory, time in zip(directories, arrays["modified"], strict=True):
            if os.stat(directory).st_mtime_ns != time:
                return None
        files = {}
        for split in texts("splits").texts():
            labels = arrays[f"{split}/labels"]
            files[split] = Files(texts(f"{split}/paths"), labels, np.ones(len(labels)))
        names = tuple(texts("class_names").texts())
        facts = json.loads(texts("facts").text(0))
        return Listing(
            path,
            f"the folder {path}",
            names,
            files,
            facts["train_split"],
            facts["eval_split"],
            held_out=facts["held_out"],
            left_out=facts["left_out"],
            remarks=tuple(facts["remarks"]),
            problems={
                split: UserError(text) for split, text in facts["problems"].items()
            },
        )
    except (OSError, KeyError, ValueError):  # a directory is gone; the file is damaged
        return None


def keep(
    listing: Listing, options: DataOptions, modified: dict[str, int], listed_at: float
) -> None:
    """Keeps the listing of a folder, if it is large and its directories have settled.

    Args:
      listing: a listing with single labels.
      options: how it was made.
      modified: directory → modification time in ns, read before it was listed.
      listed_at: time when listing began, in s.
    """
    settled = max(modified.values()) < (listed_at - SETTLED_AFTER) * 1e9
    if (
        not settled
        or any(isinstance(one, NotForTraining) for one in listing.problems.values())
        or sum(listing.num_examples.values()) < WORTH_KEEPING
    ):
        return
    facts = {
        "train_split": listing.train_split,
        "eval_split": listing.eval_split,
        "held_out": listing.held_out,
        "left_out": dict(listing.left_out),
        "remarks": listing.remarks,
        "problems": {split: str(one) for split, one in listing.problems.items()},
    }
    columns = {
        "directories": Ragged.of_texts(list(modified)),
        "class_names": Ragged.of_texts(listing.class_names),
        "splits": Ragged.of_texts(list(listing.files)),
        "facts": Ragged.of_texts([json.dumps(facts)]),
    }
    arrays = {"modified": np.array(list(modified.values()), np.int64)}
    for split, files in listing.files.items():
        columns[f"{split}/paths"] = files.paths
        arrays[f"{split}/labels"] = np.asarray(files.labels)
    for name, column in columns.items():
        arrays[f"{name}/flat"], arrays[f"{name}/ends"] = column.flat, column.ends
    cache.store_arrays(_file(listing.path, options), arrays)


def _file(path: str, options: DataOptions) -> str:
    return f"listings/{stable_hash(f'{FORMAT} {options} {path}'):016x}.npz"

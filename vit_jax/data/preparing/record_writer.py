"""Writing of image files as a prepared tensorflow-datasets set, without TensorFlow.

    DATA_DIR/NAME/1.0.0/NAME-SPLIT.array_record-00000-of-00005 …
                        features.json, dataset_info.json, label.labels.txt
                        prepared_from.json     our own: the source and omitted images

The files' bytes are written unchanged, in the order of the listing. The set is written
shard by shard to a hidden folder next to its final one, and moved there when it is
complete. A run that was stopped continues with the first unfinished shard.
"""

import contextlib
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import filelock
import numpy as np

from vit_jax.data.loading.batches import cores
from vit_jax.data.preparing.shards import (
    Shard,
    finished,
    plan,
    write_shard,
)
from vit_jax.data.sources.listings import Listing
from vit_jax.data.sources.options import FIRST_RULES, NEWEST_RULES
from vit_jax.data.sources.tfds_labels import WEIGHT_KEY
from vit_jax.errors import UserError
from vit_jax.files import move_into_place
from vit_jax.words import shortened

VERSION = "1.0.0"  # of every set that this module writes
SHARD_BYTES = 256 * 2**20
FROM_FILE = "prepared_from.json"


class Progress(NamedTuple):
    """The progress of writing a set.

    Attributes:
      done: number of images written or left out.
      total: number of images.
      shard: file of the shard that has just been finished, or "".
    """

    done: int
    total: int
    shard: str


class Written(NamedTuple):
    """A complete set on disk."""

    folder: str
    num_examples: dict[str, int]
    left_out: list[str]


def write_set(
    listing: Listing,
    name: str,
    data_dir: str,
    *,
    max_bad_share: float = 0.01,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[Progress], None] = lambda _: None,
    rules: int = NEWEST_RULES,
) -> Written:
    """Writes all splits of a listing; does nothing if they have been written already.

    Args:
      listing: the images. Those that cannot be read or decoded are left out.
      name: name of the set; adapted to the names that tensorflow-datasets accepts.
      data_dir: the folder that contains the sets.
      max_bad_share: the largest share of images that may be unreadable.
      shard_bytes: approximate size of a file.
      progress: called after each image.
      rules: those that the listing was made by; see `DataOptions`.

    Raises:
      UserError: too many images cannot be read; the folder holds another set or cannot
        be written; or another process is writing it.
    """
    name = set_name(name)
    _check_names(listing)
    folder = pathlib.Path(data_dir) / name
    final, work = folder / VERSION, folder / f".incomplete-{VERSION}"
    try:
        _check_place(folder, final)
        work.mkdir(parents=True, exist_ok=True)
        with _alone(folder), ThreadPoolExecutor(cores()) as pool:
            try:
                shards = plan(listing, name, shard_bytes, pool)
                if final.exists():
                    _check_same(listing, final, shards)
                    shutil.rmtree(work)
                else:
                    notes = _write_shards(
                        listing, shards, work, max_bad_share, progress, pool
                    )
                    _describe(listing, name, work, shards, notes, rules)
                    move_into_place(work, final)
                    for shard in shards:
                        (final / shard.note).unlink()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        found = _source_of(final)
    except (OSError, RuntimeError) as error:  # RuntimeError: ArrayRecord's writer
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder} cannot be written: {reason}. Make room there or pass another "
            "--data_dir; the same command continues where it stopped."
        ) from error
    return Written(str(final), found["num_examples"], found["left_out"])


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Locks the set against other processes that would write it."""
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise UserError(
            f"another process is preparing {folder}. Wait until it ends, or stop it."
        ) from None
    try:
        yield
    finally:
        lock.release()


def recorded_rules(name: str, data_dir: str) -> int | None:
    """Returns the rules by which a set was prepared; None if it was not."""
    final = pathlib.Path(data_dir) / set_name(name) / VERSION
    if not (final / FROM_FILE).exists():
        return None
    return _source_of(final).get("rules", FIRST_RULES)


def set_name(text: str) -> str:
    """Makes a valid name for tensorflow-datasets: letters, digits, underscores."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return name if re.match("[a-z]", name) else f"set_{name}".rstrip("_")


def _check_names(listing: Listing) -> None:
    """Raises UserError if a class name does not fit on one line of a text file."""
    bad = []
    for name in listing.class_names:
        try:
            plain = name == name.strip() and len(name.encode().splitlines()) == 1
        except UnicodeEncodeError:
            plain = False
        if not plain:
            bad.append(name)
    if bad:
        raise UserError(
            f"{listing.name} has {len(bad)} class(es) with names that a prepared set "
            f"cannot hold: {shortened(bad, ascii)}. Rename them: one line of UTF-8 "
            "without leading or trailing space."
        )


def _check_place(folder: pathlib.Path, final: pathlib.Path) -> None:
    """Raises UserError if the folder holds anything that this module did not write."""
    found = sorted(path.name for path in folder.glob("[!.]*"))
    if found and not (found == [final.name] and (final / FROM_FILE).exists()):
        # Another set, or perhaps the source images themselves.
        raise UserError(
            f"the prepared set cannot be written to {folder}, which holds other files "
            f"({found[0]!a}). Pass another --data_dir."
        )


def _check_same(listing: Listing, final: pathlib.Path, shards: list[Shard]) -> None:
    """Raises UserError if the existing set was prepared from other files."""
    found = _source_of(final)
    if found["identity"] != _identity_of_all(shards):
        raise UserError(
            f"{final} was prepared from an earlier state of {found['source']}; now "
            f"{listing.name} has other files. Remove that folder to prepare it again, "
            "or pass another --data_dir."
        )


def _source_of(final: pathlib.Path) -> dict[str, Any]:
    return json.loads((final / FROM_FILE).read_text(encoding="utf-8"))


def _identity_of_all(shards: list[Shard]) -> str:
    text = "\n".join(f"{shard.file} {shard.identity}" for shard in shards)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write_shards(
    listing: Listing,
    shards: list[Shard],
    work: pathlib.Path,
    max_bad_share: float,
    progress: Callable[[Progress], None],
    pool: Executor,
) -> list[dict[str, Any]]:
    """Writes the unfinished shards; returns the note of every shard."""
    expected = {name for shard in shards for name in (shard.file, shard.note)}
    for file in work.iterdir():
        if file.name not in expected:
            file.unlink()
    features = _features(listing)
    total = sum(len(shard.rows) for shard in shards)
    done, left_out, notes = 0, [], []
    for shard in shards:
        note = finished(work, shard)
        if note is None:
            for count, bad in write_shard(listing, shard, work, features, pool):
                left_out += bad
                _check_share(left_out, total, max_bad_share)
                progress(Progress(done + count, total, ""))
            note = finished(work, shard)
            if note is None:
                raise OSError(f"{shard.file} cannot be read back")
        else:
            left_out += note["left_out"]
            _check_share(left_out, total, max_bad_share)
        done += len(shard.rows)
        notes.append(note)
        progress(Progress(done, total, shard.file))
    return notes


def _check_share(left_out: list[str], total: int, max_bad_share: float) -> None:
    if len(left_out) > max_bad_share * total:
        listed = shortened(left_out, separator="\n  ")
        raise UserError(
            f"{len(left_out):,} of {total:,} images cannot be read so far, more than "
            f"--max_bad_share={max_bad_share:g}:\n  {listed}\nRepair or remove them, "
            "or leave them out by allowing a larger share."
        )


def _features(listing: Listing):
    import tensorflow_datasets as tfds

    label: Any = tfds.features.ClassLabel(names=list(listing.class_names))
    features: dict[str, Any] = {"image": tfds.features.Image(shape=(None, None, 3))}
    if listing.multi_label:
        features["labels"] = tfds.features.Sequence(label)
    else:
        features["label"] = label
    if any((files.weights != 1).any() for files in listing.files.values()):
        features[WEIGHT_KEY] = tfds.features.Scalar(np.float64)
    return tfds.features.FeaturesDict(features)


def _describe(
    listing: Listing,
    name: str,
    work: pathlib.Path,
    shards: list[Shard],
    notes: list[dict[str, Any]],
    rules: int,
) -> None:
    """Writes the set's description: features, splits, and where it comes from."""
    _features(listing).save_config(str(work))
    splits, left_out, num_examples = [], [], {}
    for split in listing.files:
        of_split = [n for s, n in zip(shards, notes, strict=True) if s.split == split]
        num_examples[split] = sum(note["examples"] for note in of_split)
        left_out += [problem for note in of_split for problem in note["left_out"]]
        splits.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(sum(note["record_bytes"] for note in of_split)),
                "shardLengths": [str(note["examples"]) for note in of_split],
            }
        )
    source = {
        "source": listing.name,
        "identity": _identity_of_all(shards),
        "rules": rules,
        "num_examples": num_examples,
        "left_out": left_out,
    }
    info = {
        "name": name,
        "version": VERSION,
        "description": f"Images of {listing.name!a}.",
        "fileFormat": "array_record",
        "splits": splits,
    }
    for file, content in ((FROM_FILE, source), ("dataset_info.json", info)):
        (work / file).write_text(json.dumps(content, indent=2), encoding="utf-8")

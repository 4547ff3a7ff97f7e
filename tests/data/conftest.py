"""A fixture that writes small prepared tensorflow-datasets sets without TensorFlow."""

import io
import json

import numpy as np
import pytest
from PIL import Image


def png(value: int, size: int = 4) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def write_set(tmp_path):
    return lambda *args, **options: _write_set(tmp_path / "sets", *args, **options)


def _write_set(root, features: dict, splits: dict[str, list[dict]], shards: int = 1):
    """Writes the set "small"; examples without an image get a grey one."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = root / "small" / "1.0.0"
    folder.mkdir(parents=True)
    image = tfds.features.Image(shape=(None, None, 3))
    every = tfds.features.FeaturesDict({"image": image, **features})
    every.save_config(folder)
    described = []
    for split, examples in splits.items():
        lengths = []
        for shard in range(shards):
            part = examples[shard::shards]
            name = f"small-{split}.array_record-{shard:05d}-of-{shards:05d}"
            writer = ArrayRecordWriter(str(folder / name), "group_size:1")
            for number, example in enumerate(part):
                example = {"image": io.BytesIO(png(number % 256)), **example}
                writer.write(every.serialize_example(every.encode_example(example)))
            writer.close()
            lengths.append(str(len(part)))
        described.append({"name": split, "numBytes": "1", "shardLengths": lengths})
        described[-1]["filepathTemplate"] = (
            "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        )
    facts = {"name": "small", "version": "1.0.0", "splits": described}
    facts["fileFormat"] = "array_record"
    (folder / "dataset_info.json").write_text(json.dumps(facts))
    return folder

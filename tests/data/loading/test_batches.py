"""Tests of batches and masks: the stream does not depend on how it is read."""

import collections
import io
import itertools
import logging
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import resource_tracker

import numpy as np
import pytest
from absl import flags
from PIL import Image

from vit_jax.data.decode import DecodeError
from vit_jax.data.loading import batches as batches_lib
from vit_jax.data.loading.batches import eval_batches, train_batches
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.data.sources.datasets import open_dataset
from vit_jax.data.sources.protocol import Example
from vit_jax.data.transforms.chains import parse_chain
from vit_jax.errors import UserError
from vit_jax.stop_signals import stop_signals

SIZE = (6, 6)
AUGMENTED = parse_chain("inception_crop|flip_lr", SIZE)
AS_THEY_ARE = parse_chain("", SIZE)
EVALUATION = Preprocessing(SIZE)


class Memory:
    """A source of `count` noise images labelled by index; some cannot be decoded."""

    multi_label = False

    def __init__(self, count: int, bad=()):
        self.num_classes = count
        self.class_names = tuple(map(str, range(count)))
        random = np.random.default_rng(count)
        self._examples = []
        for index in range(count):
            pixels = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            image = b"broken" if index in bad else pixels
            self._examples.append(Example(image, index, f"memory/{index}"))

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        return self._examples[index]


def train(source, batch_size=5, start=0, stop=8, transform=AUGMENTED, **options):
    options = {"seed": 3, "num_threads": 2, **options}
    with train_batches(
        source,
        batch_size=batch_size,
        transform=transform,
        start=start,
        stop=stop,
        **options,
    ) as batches:
        return list(batches)


def assert_same(left: list[dict], right: list[dict]):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
            assert a[key].dtype == b[key].dtype


def labels(batches: list[dict]) -> list[int]:
    return np.concatenate([batch["label"] for batch in batches]).tolist()


@pytest.mark.parametrize("batch_size", [5, 40])  # one task per batch, and several
@pytest.mark.parametrize("num_threads", [1, 2, 8])
def test_batches_do_not_depend_on_threads(num_threads, batch_size):
    source = Memory(17)
    expected = train(source, batch_size, stop=4, num_threads=0)
    read = train(source, batch_size, stop=4, num_threads=num_threads)
    assert_same(read, expected)
    assert expected[0]["image"].shape == (batch_size, *SIZE, 3)
    dtypes = {key: value.dtype.name for key, value in expected[0].items()}
    assert dtypes == {
        "image": "uint8",
        "label": "int32",
        "mask": "float32",
        "bad": "int32",
    }


def test_resuming_anywhere_continues_the_same_stream():
    source = Memory(17)
    whole = train(source, stop=40)  # nearly twelve epochs
    for start in np.random.default_rng(0).choice(np.arange(1, 40), 10, replace=False):
        assert_same(train(source, start=int(start), stop=40), whole[start:])


# Functions from the rows of a batch to those of each process. In the last one, the rows
# of a process are not contiguous.
SHARES = [
    lambda rows: np.split(rows, 2),
    lambda rows: np.split(rows, 4),
    lambda rows: [rows[rows // 2 % 2 == process] for process in range(2)],
]


@pytest.mark.parametrize("share", SHARES)
def test_processes_share_every_batch(share):
    source = Memory(17)
    whole = train(source, 40, stop=3)
    order = np.concatenate(share(np.arange(40)))
    whole = [{key: x[order] for key, x in batch.items()} for batch in whole]
    parts = [train(source, 40, stop=3, rows=rows) for rows in share(np.arange(40))]
    joined = [
        {key: np.concatenate([part[key] for part in rows]) for key in rows[0]}
        for rows in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


@pytest.mark.parametrize(("count", "batch_size"), [(17, 5), (12, 4), (3, 8), (1, 2)])
def test_every_epoch_has_every_example_once(count, batch_size):
    stop = 6 * count // batch_size + 1
    seen = labels(train(Memory(count), batch_size, stop=stop))
    for epoch in range(len(seen) // count):
        one = seen[epoch * count : (epoch + 1) * count]
        assert sorted(one) == list(range(count))


def test_order_differs_between_epochs_and_seeds():
    source = Memory(50)
    orders = {}
    for seed in (0, 1, 2):
        seen = labels(train(source, 50, stop=3, seed=seed))
        for epoch in range(3):
            orders[seed, epoch] = tuple(seen[epoch * 50 : (epoch + 1) * 50])
    assert len(set(orders.values())) == 9
    # A shuffle, not a rotation: neighbours rarely stay neighbours.
    order = orders[0, 0]
    kept = sum(b == a + 1 for a, b in itertools.pairwise(order))
    assert kept < 8


def test_augmentation_differs_between_positions_and_seeds():
    source = Memory(1)
    images = np.concatenate([one["image"] for one in train(source, 8, stop=2)])
    assert len({image.tobytes() for image in images}) >= 14
    other = train(source, 8, stop=2, seed=4)
    assert not np.array_equal(other[0]["image"], images[:8])


def test_pixels_match_labels():
    source = Memory(17)
    for batch in train(source, transform=AS_THEY_ARE):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            np.testing.assert_array_equal(image, source[label].image)
        assert batch["mask"].tolist() == [1] * 5


def test_encoded_images_and_channels():
    source = Memory(4)
    for index, example in enumerate(source._examples):
        file = io.BytesIO()
        Image.fromarray(example.image).save(file, "PNG")
        source._examples[index] = example._replace(image=file.getvalue())
    batch = train(source, 4, stop=1, transform=AS_THEY_ARE)[0]
    expected = np.stack([Memory(4)[k].image for k in batch["label"]])
    np.testing.assert_array_equal(batch["image"], expected)
    assert train(source, 4, stop=1, channels=1)[0]["image"].shape == (4, *SIZE, 1)


@pytest.mark.parametrize("num_threads", [0, 4])
def test_bad_image_is_replaced(num_threads, caplog):
    source = Memory(10, bad=(3, 4, 9))
    options = {"transform": AS_THEY_ARE, "num_threads": num_threads}
    good = labels(train(Memory(10), 10, stop=4, **options))
    with caplog.at_level(logging.WARNING, "vit_jax"):
        batches = train(source, 10, stop=4, **options)
    stand_in = {3: 5, 4: 5, 9: 0}
    assert labels(batches) == [stand_in.get(index, index) for index in good]
    bad = np.concatenate([one["bad"] for one in batches])
    assert bad.tolist() == [int(index in stand_in) for index in good]
    assert all(one["mask"].min() == 1 for one in batches)
    image = batches[0]["image"][good.index(9)]
    np.testing.assert_array_equal(image, source[0].image)
    # Each is reported once, with the reason and the consequence.
    said = collections.Counter(record.getMessage() for record in caplog.records)
    assert sorted(message.split()[0] for message in said) == [
        "memory/3",
        "memory/4",
        "memory/9",
    ]
    assert set(said.values()) == {1}
    assert "none of the formats" in next(iter(said))
    assert next(iter(said)).endswith("(replaced by another image)")


def test_bad_image_is_skipped(caplog):
    good = labels(train(Memory(10), 10, stop=2))
    batches = train(Memory(10, bad=(3,)), 10, stop=2, bad_images="skip")
    for batch, expected in zip(batches, (good[:10], good[10:]), strict=True):
        row = expected.index(3)
        assert batch["mask"].tolist() == [float(index != 3) for index in expected]
        assert batch["bad"].tolist() == [int(index == 3) for index in expected]
        assert batch["image"][row].max() == 0
        kept = [k for k in range(10) if k != row]
        assert batch["label"][kept].tolist() == [expected[k] for k in kept]
    assert [record.getMessage()[:8] for record in caplog.records] == ["memory/3"]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_bad_image_raises(num_threads):
    source = Memory(10, bad=(3,))
    with pytest.raises(DecodeError, match=r"^memory/3 cannot be decoded") as error:
        train(source, bad_images="error", num_threads=num_threads)
    assert type(error.value) is DecodeError


def test_only_bad_images_is_an_error():
    with pytest.raises(UserError, match="17 images in a row cannot be read"):
        train(Memory(40, bad=range(40)))


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"), [(7, 4, [4, 3]), (1000, 512, [512, 488])]
)
def test_evaluation_has_every_example_once(count, batch_size, sizes):
    source = Memory(count)
    with eval_batches(
        source, batch_size=batch_size, preprocessing=EVALUATION
    ) as batches:
        seen = list(batches)
    assert [int(batch["mask"].sum()) for batch in seen] == sizes
    assert all(len(batch["image"]) == batch_size for batch in seen)
    index = np.concatenate([batch["index"] for batch in seen])
    mask = np.concatenate([batch["mask"] for batch in seen])
    assert index[mask == 1].tolist() == list(range(count))
    assert set(index[mask == 0].tolist()) == {-1}
    assert index.dtype == np.int32
    assert labels(seen)[:count] == list(range(count))
    last = seen[-1]
    np.testing.assert_array_equal(last["image"][0], source[last["index"][0]].image)


@pytest.mark.parametrize("share", SHARES[:2])
def test_processes_share_the_evaluation(share):
    options = {"batch_size": 8, "preprocessing": EVALUATION}
    parts = []
    for rows in share(np.arange(8)):
        with eval_batches(Memory(9), rows=rows, **options) as batches:
            parts.append(list(batches))
    assert {len(part) for part in parts} == {2}
    joined = [
        {key: np.concatenate([part[key] for part in rows]) for key in rows[0]}
        for rows in zip(*parts, strict=True)
    ]
    with eval_batches(Memory(9), **options) as batches:
        assert_same(joined, list(batches))


def test_evaluation_raises_on_bad_images_unless_skipped(caplog):
    source = Memory(7, bad=(2,))
    with pytest.raises(DecodeError, match="memory/2"):
        list(eval_batches(source, batch_size=4, preprocessing=EVALUATION))
    with eval_batches(
        source, batch_size=4, preprocessing=EVALUATION, bad_images="skip"
    ) as batches:
        seen = list(batches)
    assert seen[0]["mask"].tolist() == [1, 1, 0, 1]
    assert seen[0]["bad"].tolist() == [0, 0, 1, 0]
    assert seen[0]["index"].tolist() == [0, 1, 2, 3]
    assert sum(batch["mask"].sum() for batch in seen) == 6


def started_since(before):
    """Returns the new threads; an unused one may end a moment later."""
    deadline = time.monotonic() + 10
    while (new := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return new


def test_close_ends_threads_and_stream():
    before = set(threading.enumerate())
    batches = train_batches(
        Memory(40),
        batch_size=40,
        transform=AUGMENTED,
        seed=0,
        start=0,
        stop=10_000,
        num_threads=4,
    )
    next(batches)
    assert len(set(threading.enumerate()) - before) >= 1
    batches.close()
    batches.close()
    assert not started_since(before)
    with pytest.raises(StopIteration):
        next(batches)
    train(Memory(10))  # the end of the stream closes, too
    with pytest.raises(DecodeError):
        train(Memory(10, bad=(3,)), bad_images="error")
    assert not started_since(before)


def test_error_in_a_thread_keeps_its_type():
    class Unplugged(Memory):
        def __getitem__(self, index):
            raise ConnectionResetError("the disk went away")

    with pytest.raises(ConnectionResetError, match="the disk went away"):
        train(Unplugged(10), num_threads=2)


def test_waiting_memory_is_bounded():
    read = []

    class Counted(Memory):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    batches = train_batches(
        Counted(40),
        batch_size=64,
        transform=AUGMENTED,
        seed=0,
        start=0,
        stop=1000,
        num_threads=2,
    )
    for _ in range(3):
        next(batches)
    before = -1
    while before != len(read):  # until the threads have nothing left to do
        before = len(read)
        time.sleep(0.3)
    batches.close()
    assert len(read) <= 64 * (3 + batches_lib._PREFETCHED_BATCHES + 1)


def from_processes(stop, **options):
    return train_batches(
        open_dataset("digits").split(),
        batch_size=40,
        transform=parse_chain("inception_crop", SIZE),
        seed=1,
        stop=stop,
        **{"start": 0, "num_threads": 1, "num_processes": 2} | options,
    )


@pytest.fixture
def unparsed_flags():
    """Leaves absl's global flags as they are in our commands and in notebooks."""
    flags.FLAGS.unparse_flags()
    yield
    flags.FLAGS.mark_as_parsed()


@pytest.mark.usefixtures("unparsed_flags")
def test_loading_processes_give_the_same_batches_and_report_death():
    with from_processes(4, num_processes=0, num_threads=0) as batches:
        expected = list(batches)
    with from_processes(100_000, start=1) as batches:
        assert_same(list(itertools.islice(batches, 3)), expected[1:])
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"has died .*code -9.*loader_processes"):
            collections.deque(batches, maxlen=0)
    assert not multiprocessing.active_children()


def test_signals_to_stop_do_not_end_the_tracker_of_shared_memory(monkeypatch):
    at_start = []
    monkeypatch.setattr(
        resource_tracker,
        "ensure_running",
        lambda: at_start.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    from_processes(1).close()
    assert before | set(stop_signals()) <= at_start[0]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_parts_in_memory_shared_with_another_process_are_copied():
    shared = np.ndarray((2, 3), np.uint8, buffer=mmap.mmap(-1, 6))
    shared[:] = np.arange(6).reshape(2, 3)
    parts = [{"image": shared}]
    batch = batches_lib._joined(parts)["image"]  # of one task
    shared[:] = 0  # the other process may use the memory again
    np.testing.assert_array_equal(batch, np.arange(6).reshape(2, 3))


def test_waiting_bytes():
    """Two batches are prefetched, and one is being assembled."""
    row = 6 * 6 * 3 + 4 + 4 + 4
    options = {"transform": AUGMENTED, "seed": 0, "start": 0, "stop": 1}
    for threads, batches in ((2, 3), (0, 2)):
        with train_batches(
            Memory(40), batch_size=64, num_threads=threads, **options
        ) as found:
            assert found.waiting_bytes <= batches * 64 * row
            assert found.waiting_bytes >= 64 * row


@pytest.mark.parametrize("sampling", ["uniform", "weighted"])
def test_weights_count_once(sampling):
    """Weights affect either the mask or the frequency of an example."""

    class Weighted(Memory):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(weight=0.5 + index)

        def weights(self):
            return 0.5 + np.arange(len(self))

    for batch in train(Weighted(17), stop=4, sampling=sampling):
        weights = 0.5 + batch["label"] if sampling == "uniform" else 1
        np.testing.assert_array_equal(batch["mask"], weights * np.ones(5, np.float32))
    preprocessing = Preprocessing(SIZE)
    with eval_batches(
        Weighted(4), batch_size=4, preprocessing=preprocessing
    ) as batches:
        np.testing.assert_array_equal(next(batches)["mask"], np.ones(4))


def test_repeats_are_augmented_differently():
    [batch] = train(Memory(17), 6, stop=1, repeats=2)
    np.testing.assert_array_equal(batch["label"][:3], batch["label"][3:])
    for first, second in itertools.pairwise(batch["image"][[0, 3]]):
        assert (first != second).any()


def test_an_aligned_column_shows_the_same_part_of_the_image():
    # Grey levels say where a pixel was: even blocks, so that sizes can be compared.
    pixels = np.zeros((24, 24, 3), np.uint8)
    pixels[..., 0] = 10 * np.arange(24)[:, None]
    pixels[..., 1] = 10 * np.arange(24)[None]
    source = Memory(3)
    source._examples = [one._replace(image=pixels) for one in source._examples]
    crop = "inception_crop(area_min=0.3)|flip_lr"
    chains = {"image": parse_chain(crop, (8, 8)), "large": parse_chain(crop, (16, 16))}
    alone = train(source, 16, stop=3, transform=chains["image"])
    apart = train(source, 16, stop=3, transform=chains)
    found = train(source, 16, stop=3, transform=chains, aligned=("large",))

    def worst(batches):
        """Returns the largest difference between a view and half of the larger one."""
        halves = [
            batch["large"].reshape(16, 8, 2, 8, 2, 3).mean((2, 4)) for batch in batches
        ]
        pairs = zip(batches, halves, strict=True)
        return max(np.abs(batch["image"] - half).max() for batch, half in pairs)

    assert worst(found) < 12 < 60 < worst(apart)
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    # With draws of its own, the second column does not change the first either.
    for one, other in zip(alone, apart, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 2}, "batch_size=5 must be a multiple of it"),
        ({"bad_images": "ignore"}, "'ignore': expected one of replace, skip, error"),
        ({"batch_size": 0}, "batch size 0: expected"),
        ({"seed": -1}, "seed=-1: expected"),
    ],
)
def test_wrong_arguments_raise(options, message):
    with pytest.raises(UserError, match=message):
        train(Memory(4), **options)


def test_error_of_wrong_size_names_the_image():
    transform = parse_chain("", (7, 7))
    with pytest.raises(UserError, match=r"memory/\d is 6×6 .* the model takes 7×7"):
        train(Memory(4), transform=transform, bad_images="replace")


def test_needs_neither_parsed_flags_nor_jax_nor_tensorflow():
    program = """if True:
        import sys
        import vit_jax.data.loading.batches
        import vit_jax.data.sources.datasets
        heavy = {"jax", "tensorflow", "tensorflow_datasets", "grain", "sklearn"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        from absl import flags
        from vit_jax.data.transforms.chains import parse_chain
        assert not flags.FLAGS.is_parsed()
        batches = vit_jax.data.loading.batches.train_batches(
            vit_jax.data.sources.datasets.open_dataset("digits").split(),
            batch_size=4, seed=0, start=0, stop=2,
            transform=parse_chain("resize", (8, 8)), num_threads=2)
        print([batch["label"].tolist() for batch in batches])
    """
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True
    )
    assert outcome.stderr == ""
    assert len(eval(outcome.stdout)) == 2

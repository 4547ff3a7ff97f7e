import pytest

from vit_jax.weights.formats.labels import from_list, from_tables

NAMES = ("ape", "bat", "cat")
TABLE = {"0": "ape", "1": "bat", "2": "cat"}
INVERSE = {"ape": 0, "bat": 1, "cat": 2}
PLACEHOLDERS = ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": TABLE},
        {"id2label": TABLE, "label2id": INVERSE},
        {"id2label": dict(reversed(TABLE.items())), "label2id": None},
        {"label2id": INVERSE},
        # Left over from before the classes were named.
        {"id2label": TABLE, "label2id": {f"LABEL_{i}": i for i in range(3)}},
    ],
)
def test_names_are_read_in_the_order_of_the_outputs(config):
    assert from_tables(config, 3) == (NAMES, [])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"0": "ape", "1": "bat"}, "2 labels (id2label), 2 of them for the 3 outputs"),
        (TABLE | {"3": "dog"}, "4 labels (id2label), 3 of them for the 3 outputs"),
        ({"1": "ape", "2": "bat", "3": "cat"}, "3 labels (id2label), 2 of them"),
        ({"0": 0, "1": 1, "2": 2}, "are not texts"),
    ],
)
def test_tables_that_do_not_fit_are_ignored(table, words):
    names, [sentence] = from_tables({"id2label": table}, 3)
    assert names == ()
    assert words in sentence


def test_placeholders_are_not_names():
    table = {str(index): name for index, name in enumerate(PLACEHOLDERS)}
    assert from_tables({"id2label": table}, 3) == ((), [])
    # The wrapper of transformers writes them to timm's file.
    assert from_list(PLACEHOLDERS, 3) == ((), [])
    mixed = ("ape", "LABEL_1", "cat")
    assert from_list(mixed, 3) == (mixed, [])
    assert from_list(PLACEHOLDERS[::-1], 3) == (PLACEHOLDERS[::-1], [])


def test_repeated_names_are_reported():
    cranes = {"0": "crane", "1": "bat", "2": "crane"}
    inverse = {"crane": 2, "bat": 1}
    for names, sentences in (
        from_tables({"id2label": cranes, "label2id": inverse}, 3),
        from_list(["crane", "bat", "crane"], 3),
    ):
        assert names == ("crane", "bat", "crane")
        (sentence,) = sentences
        assert sentence.endswith("by their number: 'crane'")


def test_contradictions_are_reported():
    config = {"id2label": TABLE, "label2id": {"ape": 1, "bat": 0, "cat": 2}}
    names, [sentence] = from_tables(config, 3)
    assert names == NAMES
    assert "contradict each other about 'ape', 'bat': used id2label" in sentence


@pytest.mark.parametrize("names", [NAMES, list(NAMES), TABLE])
def test_lists_and_numbered_names(names):
    assert from_list(names, 3) == (NAMES, [])


@pytest.mark.parametrize("names", [NAMES[:2], {"0": "ape", "2": "cat"}, TABLE])
def test_names_for_another_number_of_classes_are_ignored(names):
    found, [sentence] = from_list(names, 4)
    assert found == ()
    assert f"names {len(names)} classes, but the head has 4" in sentence
    assert from_list(names, 0) == ((), [])

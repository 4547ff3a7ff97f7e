"""Tests of rows that contradict each other, repeat, lack labels, or lead nowhere."""

import shutil

import pytest

from vit_jax.data.sources.datasets import open_dataset
from vit_jax.errors import UserError

ALL = {k: "ab"[k % 2] for k in range(12)}


def rows(labels=ALL, split=lambda k: "val" if k < 4 else "train", path="images/{}.png"):
    return [f"{path.format(k)},{label},{split(k)}" for k, label in labels.items()]


def write(path, lines, header="image,label,split"):
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_contradictory_rows_are_named(root, message, opened):
    lines = [*rows(), "images/7.png,a,train", "./images/3.png,c,train"]
    path = write(root / "t.csv", lines)
    found = message(path)
    assert "the table has 2 problem(s)" in found
    assert "images/7.png has several labels: 'b', 'a'" in found
    assert "images/3.png has several labels: 'b', 'c'" in found
    assert "write them in one row, as 'a|b' in a column labels" in found
    # A run that was begun before continues.
    assert opened(path, rules=1)[0].class_names == ("a", "b", "c")


def test_ten_contradictions_are_named_and_all_are_counted(root, message):
    path = write(root / "t.csv", [*rows(), *rows(dict.fromkeys(ALL, "x"))])
    found = message(path)
    assert "the table has 12 problem(s)" in found
    assert found.count("has several labels") == 10
    assert "… and 2 more" in found


def test_several_labels_in_several_rows_contradict_nothing(root, opened):
    lines = [f"images/{k}.png,{'ab'[k % 2]}" for k in range(12)]
    path = write(root / "t.csv", [*lines, "images/0.png,c"], "image,labels")
    assert opened(path)[0].class_names == ("a", "b", "c")


def test_repeated_rows_are_remarked_on(root, opened):
    lines = [*rows(), "images/7.png,b,train", "images//7.png,b,train"]
    lines += ["images/5.png,b,val", "images/2.png,a,test"]
    remarks = opened(write(root / "t.csv", lines))[0].remarks
    assert len(remarks) == 2
    assert remarks[0].startswith(
        "2 image(s) are in more than one split: images/2.png (test, val), "
        "images/5.png (train, val)"
    )
    assert remarks[1] == "1 image(s) occur in several rows of a split: images/7.png"
    assert opened(write(root / "u.csv", rows()))[0].remarks == ()


def test_groups_in_two_splits_are_remarked_on(root, opened):
    lines = [f"{row},p{k % 5 if k else 9}" for k, row in enumerate(rows())]
    path = write(root / "t.csv", lines, "image,label,split,patient")
    (remark,) = opened(path, group_column="patient")[0].remarks
    assert (
        "3 group(s) have images in more than one split: p1 (train, val), p2" in remark
    )


def test_names_that_differ_only_in_case_are_remarked_on(root, opened):
    labels = {k: ("Cat", "cat ", "black_dog", "Black Dog")[k % 4] for k in range(12)}
    (remark,) = opened(write(root / "t.csv", rows(labels)))[0].remarks
    assert "only in case or blanks: 'Black Dog' and 'black_dog', 'Cat' and 'cat'" in (
        remark
    )


def test_names_for_no_value_are_remarked_on(root, opened):
    labels = {k: ("nan", "NULL", "Nanna")[k % 3] for k in range(12)}
    (remark,) = opened(write(root / "t.csv", rows(labels)))[0].remarks
    assert remark == "classes whose names may stand for no label: 'NULL', 'nan'"


@pytest.mark.parametrize("header", ["label", "labels"])
def test_a_test_split_without_labels_is_left_out(root, opened, header):
    lines = rows({k: "" if k < 2 else ALL[k] for k in range(12)}, _three)
    listing, found = opened(write(root / "t.csv", lines, f"image,{header},split"))
    assert {split: set(some) for split, some in found.items()} == {
        "train": set(range(4, 12)),
        "val": {2, 3},
    }
    assert "the split test has no labels: its 2 row(s) are left out" in listing.remarks
    with pytest.raises(UserError, match="test"):
        listing.split("test")


def _three(k):
    return "test" if k < 2 else "val" if k < 4 else "train"


def test_unknown_classes_of_a_split_matter_only_if_it_is_used(root, opened, caplog):
    # -1 is what Hugging Face's sets have where a label is not public.
    labels = {k: "-1" if k < 2 else ALL[k] for k in range(12)}
    path = write(root / "t.csv", rows(labels, _three))
    listing, found = opened(path)
    assert listing.class_names == ("a", "b")
    assert {split: set(some) for split, some in found.items()} == {
        "train": set(range(4, 12)),
        "val": {2, 3},
    }
    assert listing.remarks == (
        "not used: test has classes to evaluate on that are not trained on: '-1'. "
        "Write them the same way in every split, or leave them out.",
    )
    info = open_dataset(str(path)).info
    for splits in (("train", "test"), ("train", "val+test[:1]")):
        with pytest.raises(UserError, match=r"test has classes .* trained on: '-1'"):
            info.with_splits(*splits)
    # Now it is the split for evaluation that has an unknown class.
    labels = {k: "c" if k == 3 else ALL[k] for k in range(12)}
    info = open_dataset(str(write(path, rows(labels, _three)))).info
    assert info.with_splits("", "test").num_examples == {"train": 8, "test": 2}
    with pytest.raises(UserError, match=r"val has classes .* trained on: 'c'"):
        info.with_splits()


@pytest.mark.parametrize("empty", [",", "0,0", " ,nan"])
def test_rows_for_testing_may_have_no_zeros_and_ones(root, opened, message, empty):
    empty = empty.replace("nan", "")
    lines = [
        f"images/{k}.png,{empty if k < 2 else f'{k % 2},{1 - k % 2}'},{_three(k)}"
        for k in range(12)
    ]
    path = write(root / "t.csv", lines, "image,a,b,split")
    listing, found = opened(path)
    assert {split: len(some) for split, some in found.items()} == {"train": 8, "val": 2}
    assert found["train"] == {k: "ba"[k % 2] for k in range(4, 12)}
    assert "the split test has no labels: its 2 row(s) are left out" in listing.remarks
    if "0" not in empty:
        lines[5] = "images/5.png,,,train"
        lines[6] = "images/6.png,1,,train"
        found = message(write(path, lines, "image,a,b,split"))
        assert "line 7: empty label" in found
        assert "line 8: b is '', not 0 or 1" in found


@pytest.mark.parametrize("empty", ["null", "NaN", '" "'])
def test_images_without_a_group_are_in_none(root, opened, empty):
    lines = [
        f'{{"image": "images/{k}.png", "label": {k % 2}, "patient": '
        f"{empty if k < 10 else 7}}}"
        for k in range(12)
    ]
    path = root / "t.jsonl"
    path.write_text("\n".join(lines))
    _, found = opened(path, group_column="patient", hold_out=0.4)
    # As one group, the first ten would be on one side.
    assert {*range(10)} - found["train"].keys()
    assert {*range(10)} - found["val"].keys()
    assert len({split for split, some in found.items() if some.keys() & {10, 11}}) == 1


def test_some_rows_without_a_label_are_problems(root, message):
    labels = {k: "" if k == 1 else ALL[k] for k in range(12)}
    found = message(write(root / "t.csv", rows(labels, _three)))
    assert "t.csv, line 3: empty label" in found
    labels = {k: "" if k in (2, 3) else ALL[k] for k in range(12)}
    found = message(write(root / "t.csv", rows(labels, _three)))
    assert "the table has 2 problem(s)" in found


@pytest.mark.parametrize(
    "path", [r"images\{}.png", r".\images\{}.png", " ./images/{}.png "]
)
def test_paths_of_windows_and_with_blanks(root, opened, path):
    _, found = opened(write(root / "t.csv", rows(path=path)))
    assert found == {
        "train": {k: ALL[k] for k in range(4, 12)},
        "val": {k: ALL[k] for k in range(4)},
    }


def test_labels_with_blanks_are_the_same(root, opened):
    labels = {k: f" {label} " if k % 3 else label for k, label in ALL.items()}
    assert opened(write(root / "t.csv", rows(labels)))[0].class_names == ("a", "b")


def test_whole_numbers_written_as_decimals(root, opened):
    labels = {k: f"{8 + k // 2}.0" for k in range(12)}
    path = write(root / "t.csv", rows(labels, lambda k: "train"))
    assert opened(path)[0].class_names == ("8", "9", "10", "11", "12", "13")
    labels[2] = labels[3] = "9.5"
    path = write(root / "t.csv", rows(labels, lambda k: "train"))
    names = ("10.0", "11.0", "12.0", "13.0", "8.0", "9.5")
    assert opened(path)[0].class_names == names


def test_names_equal_but_for_composed_characters_are_one(root, opened):
    labels = {k: ("Bär", "Ba\u0308r", "Hund")[k % 3] for k in range(12)}
    assert opened(write(root / "t.csv", rows(labels)))[0].class_names == ("Bär", "Hund")


@pytest.mark.parametrize(
    ("folder", "path", "options"),
    [
        ("images", "{}.png", {"image_root": "images"}),
        ("images", "{}", {"image_root": "images", "image_suffix": ".png"}),
        ("images", "images/{}", {"image_suffix": "png"}),
        ("deep/er", "{}", {"image_root": "deep/er", "image_suffix": ".PNG"}),
        ("..", "set/images/{}.png", {"image_root": ".."}),
    ],
)
def test_where_the_images_are(root, opened, message, folder, path, options):
    if folder.startswith("deep"):
        (root / "deep").mkdir()
        (root / "images").rename(root / folder)
        for file in (root / folder).iterdir():
            file.rename(file.with_suffix(".PNG"))
    table = root / "t.csv"
    if folder == "..":
        (root / "set").mkdir()
        (root / "images").rename(root / "set" / "images")
        (root / "set" / "tables").mkdir()
        table = root / "set" / "tables" / "t.csv"
        options = {"image_root": "../.."}
    write(table, rows(path=path))
    found = message(table)
    assert "none of the first 8 images of the table" in found
    for name, value in options.items():
        if (name, value) != ("image_suffix", "png"):
            assert f"data.{name}={value!r}" in found
    assert "12 of the first 12 images exist" in found
    found = opened(table, **options)[1]
    assert found["val"] == {k: ALL[k] for k in range(4)}
    root = options.get("image_root", "")
    absolute = (table.parent / root).resolve()
    assert opened(table, **options | {"image_root": str(absolute)})[1] == found


@pytest.mark.parametrize("given", ["part_1,part_2", "part_*"])
def test_images_in_several_folders(root, opened, message, given):
    for part in (1, 2):
        (root / f"part_{part}").mkdir()
        for k in range(part - 1, 12, 2):
            (root / "images" / f"{k}.png").rename(root / f"part_{part}" / f"{k}.png")
    path = write(root / "t.csv", rows(path="{}"))
    found = message(path)
    assert "data.image_root='part_1,part_2' and data.image_suffix='.png', 12" in found
    options = {"image_root": given, "image_suffix": ".png"}
    found = opened(path, **options)[1]
    assert found["train"] | found["val"] == ALL
    # The same name twice could be either image.
    shutil.copy(root / "part_1" / "4.png", root / "part_2" / "4.png")
    assert "line 6: 4.png is in several folders of data.image_root: part_1, part_2" in (
        message(path, **options)
    )
    assert "there is no folder 'none_*'" in message(path, image_root="none_*")


@pytest.mark.parametrize("path", ["/home/me/data/{}.png", "C:\\data\\images\\{}.png"])
def test_absolute_paths_of_another_machine(root, opened, message, path):
    where = "." if "images" in path else "images"
    table = write(root / "t.csv", rows(path=path))
    assert f"data.image_root={where!r}, 12 of the first 12 images exist" in message(
        table
    )
    listing, found = opened(table, image_root=where)
    assert found["train"] | found["val"] == ALL
    assert listing.files["val"][0][0].startswith(f"{where}/")


def test_an_ending_is_only_given_to_paths_without_one(root, opened):
    shutil.copy(root / "images" / "1.png", root / "images" / "v1.5.png")
    lines = ["images/0.PNG,a,val", "images/v1.5,b,train", "images/2,a,train"]
    (root / "images" / "0.png").rename(root / "images" / "0.PNG")
    path = write(root / "t.csv", lines)
    assert opened(path, image_suffix=".png")[1] == {
        "train": {1: "b", 2: "a"},
        "val": {0: "a"},
    }


def test_without_a_suggestion_the_options_are_named(root, message):
    found = message(write(root / "t.csv", rows(path="C:\\gone\\x{}.png")))
    assert "the first was expected at" in found
    assert "data.image_root" in found
    assert "data.image_suffix" in found


def test_weights_and_splits_of_options_reach_the_listing(root):
    path = write(root / "t.csv", [f"{row},{k}" for k, row in enumerate(rows())],
                 "image,label,split,Weight")  # fmt: skip
    source = open_dataset(str(path)).split("val")
    assert sorted(source.weights()) == [0, 1, 2, 3]


def test_contradictions_between_several_labels_are_named(root, message, opened):
    lines = [f"images/{k}.png,x|{ALL[k]}" for k in range(12)]
    path = write(root / "t.csv", [*lines, "images/7.png,b|x"], "image,labels")
    assert opened(path)[0].multi_label
    write(path, [*lines, "images/7.png,x"], "image,labels")
    found = message(path)
    assert "images/7.png has different labels in different rows: 'b|x', 'x'" in found
    write(path, [*lines, "images/7.png,b"], "image,labels")
    assert "different labels in different rows: 'b|x', 'b'" in message(path)
    lines = [f"images/{k}.png,1,{k % 2},{1 - k % 2}" for k in range(12)]
    write(path, [*lines, "images/7.png,1,0,1"], "image,a,b,c")
    found = message(path)
    assert "images/7.png has different labels in different rows: 'a|b', 'a|c'" in found


def test_rows_of_one_label_each_are_united(root, opened):
    lines = [f"images/{k // 2}.png,{'ab'[k % 2]},{k}" for k in range(24)]
    path = write(root / "t.csv", lines, "image,labels,weight")
    listing, found = opened(path)
    assert found["train"] | found["val"] == dict.fromkeys(range(12), "a|b")
    assert sum(listing.num_examples.values()) == 12
    assert (
        "12 image(s) have one label in each of several rows, which are united"
        in (listing.remarks[0])
    )
    weights = open_dataset(str(path)).split("train+val").weights()
    assert sorted(weights) == list(range(1, 24, 2))


def test_the_same_image_by_its_whole_path_is_the_same(root, message, opened):
    lines = rows(split=lambda k: "train")
    path = write(root / "t.csv", [*lines, f"{root}/images/7.png,a,train"])
    assert "images/7.png has several labels: 'b', 'a'" in message(path)
    write(path, [*lines, f"{root}/images/7.png,b,train", "images/./7.png,b,train"])
    listing, found = opened(path)
    assert "1 image(s) occur in several rows of a split: images/7.png" in (
        listing.remarks
    )
    sides = [
        {listing.files[split][k][0] for k in range(len(listing.files[split]))}
        for split in found
    ]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {f"images/{k}.png" for k in range(12)}
    lines = rows(path="{}.png")
    write(path, [f"{root}/images/7.png,a,train", *lines])
    assert "images/7.png has several labels: 'a', 'b'" in (
        message(path, image_root="images")
    )


@pytest.mark.parametrize(
    ("ending", "cell"),
    [("csv", '"[0, {0}, {1}]"'), ("csv", "0|{0}|{1}"), ("jsonl", "[0, {0}, {1}]")],
)
def test_vectors_of_zeros_and_ones_are_not_read_as_labels(root, message, ending, cell):
    cells = {k: cell.format(k % 2, 1 - k % 2) for k in range(12)}
    path = root / f"t.{ending}"
    lines = [f"images/{k}.png,{one}" for k, one in cells.items()]
    if ending == "jsonl":
        lines = [
            f'{{"image": "images/{k}.png", "labels": {one}}}'
            for k, one in cells.items()
        ]
        path.write_text("\n".join(lines))
    else:
        write(path, lines, "image,labels")
    assert "labels are lists of 3 zeros and ones, such as 0, 0, 1" in message(path)


def test_classes_may_be_called_zero_and_one(root, opened):
    lines = [f"images/{k}.png,{'|'.join('01'[: k % 2 + 1])}" for k in range(12)]
    assert opened(write(root / "t.csv", lines, "image,labels"))[0].multi_label
    lines = [f"images/{k}.png,{k % 2}" for k in range(12)]
    listing, _ = opened(write(root / "t.csv", lines, "image,labels"))
    assert listing.class_names == ("0", "1")


def test_numbers_with_fractions_are_remarked_on(root, opened, message):
    labels = {k: f"{k // 2 / 4}" for k in range(12)}
    listing, _ = opened(write(root / "t.csv", rows(labels, lambda k: "train")))
    assert (
        "the labels are 6 different numbers with fractions, such as '0.25': each is a "
        "class of its own, because amounts cannot be learnt from a table"
    ) in listing.remarks
    labels = {k: f'"{k},5"' for k in range(12)}
    found = message(write(root / "t.csv", rows(labels, lambda k: "train")))
    assert "12 row(s) of 12 classes, too few to hold one out" in found
    assert "12 different numbers with fractions, such as '0,5'" in found
    labels = {k: f"{k // 2}.0" for k in range(12)}
    listing, _ = opened(write(root / "t.csv", rows(labels, lambda k: "train")))
    assert not any("fractions" in remark for remark in listing.remarks)


def test_zeros_in_front_are_remarked_on(root, opened):
    labels = {k: ("01", "1", "2")[k % 3] for k in range(12)}
    listing, _ = opened(write(root / "t.csv", rows(labels)))
    assert "classes that differ only in zeros in front: '01' and '1'" in listing.remarks


def test_missing_images_are_remarked_on(root, opened):
    (root / "images" / "5.png").rename(root / "images" / "5.PNG")
    path = write(root / "t.csv", rows())
    listing = open_dataset(str(path)).contents
    assert listing.remarks == (
        f"1 of the first 8 images do not exist, such as {root}/images/5.png. There is "
        f"{root}/images/5.PNG: the table has to name files in their own case and with "
        "their own ending",
    )


def test_another_ending_of_all_images_is_said(root, message):
    found = message(write(root / "t.csv", rows(path="images/{}.JPEG")))
    assert f"There is {root}/images/4.png: the table has to name files" in found


def test_all_problems_at_once(root, message):
    lines = [f"{k},{label}" for k, label in ALL.items()]
    found = message(write(root / "t.csv", lines, "id,breed"))
    assert "the table has 2 problem(s)" in found
    assert "if it is 'breed', set data.label_columns='breed'" in found
    assert "With data.image_root='images' and data.image_suffix='.png', 12 of" in found


def test_mixed_endings(root, message, opened):
    for k in range(6):
        (root / "images" / f"{k}.png").rename(root / "images" / f"{k}.PNG")
    path = write(root / "t.csv", rows(path="{}"))
    assert "data.image_suffix='.png,.PNG', 12 of the first 12" in message(path)
    options = {"image_root": "images", "image_suffix": ".png, PNG"}
    assert opened(path, **options)[1]["val"] == {k: ALL[k] for k in range(4)}


@pytest.mark.parametrize("start", ["gs://bucket/", "https://x.org/", "file:///home/"])
def test_addresses_are_cut_like_whole_paths(root, message, opened, start):
    path = write(root / "t.csv", rows(path=start + "images/{}.png"))
    assert "data.image_root='.', 12 of the first 12 images exist" in message(path)
    for image_root in (".", "images"):
        found = opened(path, image_root=image_root)[1]
        assert found["val"] == {k: ALL[k] for k in range(4)}


def test_weights_are_remarked_on(root, opened):
    lines = [f"{row},{k + 0.5}" for k, row in enumerate(rows())]
    path = write(root / "t.csv", lines, "image,label,split,weight")
    assert opened(path)[0].remarks == (
        "the column weight gives the weight of each example, from 0.5 to 11.5",
    )


def test_a_class_minus_one_is_remarked_on(root, opened):
    labels = {k: k % 3 - 1 for k in range(12)}
    assert opened(write(root / "t.csv", rows(labels)))[0].remarks == (
        "classes whose names may stand for no label: '-1'",
    )
    labels = {k: k % 2 * 2 - 1 for k in range(12)}
    assert opened(write(root / "t.csv", rows(labels)))[0].remarks == ()


def test_few_rows_without_exactly_one_label_are_named(root, opened):
    lines = [f"images/{k % 12}.png,{k % 2},{1 - k % 2}" for k in range(60)]
    path = write(root / "t.csv", lines, "image,a,b")
    assert not opened(path)[0].multi_label
    write(path, [*lines, "images/x.png,0,0"], "image,a,b")
    listing = open_dataset(str(path)).contents
    assert listing.multi_label
    assert (
        "an image may have any number of labels, only because of 1 of 61 rows, which "
        "have no 1 or several: images/x.png (0)"
    ) in listing.remarks

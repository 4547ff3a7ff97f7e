"""Tests of a table's columns: by usual names, by options, one per class, ambiguous."""

import pytest

ALL = {k: "ab"[k % 2] for k in range(12)}
SPLIT = ({k: ALL[k] for k in range(4, 12)}, {k: ALL[k] for k in range(4)})


def write(path, header, row, numbers=range(12)):
    """Writes one row per number; `row` returns the cells, joined by commas."""
    path.write_text("\n".join([header, *map(row, numbers)]) + "\n")
    return path


def merged(found):
    return {number: label for some in found.values() for number, label in some.items()}


@pytest.mark.parametrize(
    "header",
    [
        "file_name,class", "File Name,Category", "FILEPATH,Target", "image path,LABEL",
        "img,class_name", "image_id,label", "ImageName,category_id", "Image Index,Tag",
        "image_file,class,caption", "fname,class", "filepaths,label,scientific name",
    ],
)  # fmt: skip
def test_usual_names(root, opened, header):
    more = ",x" * (header.count(",") - 1)
    path = write(root / "t.csv", header, lambda k: f"images/{k}.png,{ALL[k]}{more}")
    listing, found = opened(path)
    assert merged(found) == ALL
    assert (listing.class_names, listing.multi_label) == (("a", "b"), False)


def test_more_usual_names_win(root, opened):
    path = write(
        root / "t.csv",
        "id,file_name,image,class,label",
        lambda k: f"{k},{k}.jpg,images/{k}.png,other,{ALL[k]}",
    )
    assert merged(opened(path)[1]) == ALL


def test_two_equally_usual_names_stop_and_name_the_option(root, opened, message):
    path = write(
        root / "t.csv",
        "file_name,img,class,target,set,phase",
        lambda k: f"{k},images/{k}.png,{ALL[k]},x,train,test",
    )
    found = message(path)
    assert "2 columns for the path (file_name, img): set data.path_column" in found
    assert "2 columns for the label (class, target): set data.label_columns" in found
    options = {"path_column": "img", "label_columns": "class", "split_column": "none"}
    assert merged(opened(path, **options)[1]) == ALL


def test_options_name_columns(root, opened, message):
    path = write(
        root / "t.csv",
        "picture of it,what,label,where",
        lambda k: f"images/{k}.png,{ALL[k]},x,{'Dev Set' if k < 4 else 'Training'}",
    )
    options = {
        "path_column": "Picture_of_it",
        "label_columns": "what",
        "split_column": "where",
    }
    listing, found = opened(path, **options)
    assert (found["train"], found["val"]) == SPLIT
    assert not listing.held_out
    assert "no column for data.label_columns='waht'; found 'picture of it'" in message(
        path, **options | {"label_columns": "waht"}
    )
    assert "did you mean 'what'?" in message(path, label_columns="waht")
    assert "no column for data.group_column='who'" in message(
        path, **options | {"group_column": "who"}
    )


@pytest.mark.parametrize("one", ["1", "1.0", "True", "true", " 1 "])
def test_columns_of_zeros_and_ones_are_classes(root, opened, one):
    zero = {"1": "0", "1.0": "0.0", "True": "False", "true": "false", " 1 ": " 0"}[one]
    path = write(
        root / "t.csv",
        "Id,image,Cat,dog,split",
        lambda k: (
            f"{k},images/{k}.png,{(zero, one)[k % 2]},{(one, zero)[k % 2]},"
            f"{'val' if k < 4 else 'train'}"
        ),
    )
    # Id is no class, so they have to be named.
    options = {"label_columns": "Cat,dog"}
    listing, found = opened(path, **options)
    assert (listing.class_names, listing.multi_label) == (("Cat", "dog"), False)
    assert found["val"] == {0: "dog", 1: "Cat", 2: "dog", 3: "Cat"}


def test_several_or_no_ones_make_several_labels(root, opened):
    path = write(
        root / "t.csv",
        "image,sea,sky,tree,weight",
        lambda k: f"images/{k}.png,{k & 1},{k >> 1 & 1},{k >> 2 & 1},1",
    )
    listing, found = opened(path)
    assert (listing.class_names, listing.multi_label) == (("sea", "sky", "tree"), True)
    expected = {
        k: "|".join(
            name for bit, name in enumerate(("sea", "sky", "tree")) if k >> bit & 1
        )
        for k in range(12)
    }
    assert merged(found) == expected


def test_recognised_only_if_all_other_columns_are_zeros_and_ones(root, opened, message):
    def rows(k):
        return f"images/{k}.png,{k % 2},{1 - k % 2}"

    _, found = opened(write(root / "t.csv", "image,a,b", rows))
    assert merged(found) == {k: "ba"[k % 2] for k in range(12)}
    path = write(root / "u.csv", "image,a,b,age", lambda k: f"{rows(k)},{k}")
    found = message(path)
    assert "no column for the label" in found
    assert "a, b hold only zeros and ones" in found
    assert "set data.label_columns='a,b'" in found
    path = write(root / "v.csv", "image,label,b", rows)
    assert opened(path)[0].class_names == ("0", "1")


def test_patterns_of_columns(root, opened, message):
    path = write(
        root / "t.csv",
        "image,is_cat,is_dog,is_cow,cat_age",
        lambda k: f"images/{k}.png,{k % 3 == 0:d},{k % 3 == 1:d},{k % 3 == 2:d},{k}",
    )
    listing, found = opened(path, label_columns="is_*")
    assert listing.class_names == ("is_cat", "is_cow", "is_dog")
    assert not listing.multi_label
    expected = {k: ("is_cat", "is_dog", "is_cow")[k % 3] for k in range(12)}
    assert merged(found) == expected
    assert "no column for data.label_columns='has_*'" in message(
        path, label_columns="has_*"
    )


def test_a_class_without_any_one_is_still_a_class(root, opened):
    path = write(
        root / "t.csv", "image,a,b,c", lambda k: f"images/{k}.png,{k % 2},{1 - k % 2},0"
    )
    assert opened(path)[0].class_names == ("a", "b", "c")


def test_other_cells_than_zeros_and_ones_are_problems(root, message):
    path = write(
        root / "t.csv", "image,a,b", lambda k: f"images/{k}.png,{k - 1},{k % 2 or ''}"
    )
    found = message(path, label_columns="a,b")
    assert "t.csv, line 2: a is '-1', not 0 or 1; b is '', not 0 or 1" in found
    assert "t.csv, line 5: a is '2', not 0 or 1" in found


def test_minus_ones_are_zeros_where_there_are_none(root, opened, message):
    sign = {True: "1", False: "-1"}
    path = write(
        root / "t.csv",
        "image_id,Smiling,Young",
        lambda k: f"images/{k}.png,{sign[k % 2 > 0]},{sign[k % 3 > 0]}",
    )
    listing, found = opened(path)
    assert listing.multi_label
    assert [merged(found)[k] for k in range(4)] == [
        "", "Smiling|Young", "Young", "Smiling",
    ]  # fmt: skip
    assert any("-1 is read as 0" in remark for remark in listing.remarks)
    path = write(
        root / "u.csv", "image,a,b", lambda k: f"images/{k}.png,{k % 3 - 1},{k % 2}"
    )
    assert "line 2: a is '-1', not 0 or 1" in message(path, label_columns="a,b")


def test_a_table_without_a_header_is_explained(root, message):
    path = write(root / "t.csv", "images/0.png,a", lambda k: f"images/{k}.png,a")
    assert "found 'images/0.png', 'a'; the first line has to name the columns" in (
        message(path)
    )


@pytest.mark.parametrize(
    ("header", "options", "several"),
    [
        ("label", {}, False),
        ("labels", {}, True),
        ("tags", {}, True),
        ("class", {}, True),  # because of what the cells say
        ("what", {"label_columns": "what"}, True),
        ("labels", {"label_columns": "labels"}, True),
    ],
)
def test_whether_a_row_may_have_several_labels(root, opened, header, options, several):
    path = write(
        root / "t.csv", f"image,{header}", lambda k: f"images/{k}.png,x | {ALL[k]}"
    )
    listing, _ = opened(path, **options)
    assert listing.multi_label == several
    assert listing.class_names == (("a", "b", "x") if several else ("x | a", "x | b"))


@pytest.mark.parametrize("header", ["class", "labels"])
def test_one_label_per_row_in_a_named_column_excludes_others(root, opened, header):
    path = write(
        root / "t.csv", f"image,{header}", lambda k: f"images/{k}.png,{ALL[k]}"
    )
    assert not opened(path, label_columns=header)[0].multi_label


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("\"['sky', '{}']\"", {}),
        ('"[""sky"", ""{}""]"', {}),
        ('"sky, {}"', {"label_separator": ","}),
        ("sky {}", {"label_separator": " "}),
    ],
)
def test_lists_written_as_text_and_other_separators(root, opened, cell, options):
    path = write(
        root / "t.csv", "image,tags", lambda k: f"images/{k}.png,{cell.format(ALL[k])}"
    )
    listing, found = opened(path, **options)
    assert listing.class_names == ("a", "b", "sky")
    assert {label.replace("|", "") for label in merged(found).values()} == {
        "skya", "skyb",
    }  # fmt: skip


def test_another_separator_is_suspected(root, opened):
    path = write(
        root / "t.csv", "image,labels", lambda k: f'images/{k}.png,"sky, {ALL[k]}"'
    )
    listing, _ = opened(path)
    remark = listing.remarks[0]
    assert "no cell of labels has the separator '|', but 12 have ','" in remark
    assert "data.label_separator=','" in remark


@pytest.mark.parametrize("column", ["split", "Set", "subset", "Data Split", "phase"])
@pytest.mark.parametrize(
    ("train", "val"), [("train", "val"), ("TRAIN", "Dev"), ("Training Set", "valid")]
)
def test_columns_of_splits(root, opened, column, train, val):
    path = write(
        root / "t.csv",
        f"image,label,{column}",
        lambda k: f"images/{k}.png,{ALL[k]}, {val if k < 4 else train} ",
    )
    listing, found = opened(path)
    assert tuple(found.values()) == SPLIT
    assert not listing.held_out
    listing, found = opened(path, split_column="none")
    assert listing.held_out
    assert merged(found) == ALL


def test_values_of_the_split_column_by_option(root, opened, message):
    path = write(
        root / "t.csv",
        "image,label,split",
        lambda k: f"images/{k}.png,{ALL[k]},{'B' if k < 4 else 'A'}",
    )
    assert "unknown split 'A'" in message(path)
    _, found = opened(path, splits="train=A,val=B")
    assert (found["train"], found["val"]) == SPLIT
    assert opened(path, splits="none")[0].held_out


def test_a_column_that_is_not_of_splits_alone_stops(root, opened, message):
    path = write(
        root / "t.csv",
        "image,label,set",
        lambda k: f"images/{k}.png,{ALL[k]},{('train', 'val', 'later')[k % 3]}",
    )
    found = message(path)
    assert "the column set looks like one of splits, but has other values: 'later'" in (
        found
    )
    assert "data.split_column='none'" in found
    assert merged(opened(path, split_column="none")[1]) == ALL
    # Sets of anything else are not splits.
    path = write(
        root / "u.csv", "image,label,set", lambda k: f"images/{k}.png,{ALL[k]},{k % 2}"
    )
    assert opened(path)[0].held_out


def test_the_first_folder_may_be_the_split(root, opened):
    for split, numbers in (("Train", range(4, 12)), ("valid", range(4))):
        (root / split).mkdir()
        for k in numbers:
            (root / "images" / f"{k}.png").rename(root / split / f"{k}.png")
    path = write(
        root / "t.csv",
        "image,label",
        lambda k: f"{'valid' if k < 4 else 'Train'}/{k}.png,{ALL[k]}",
    )
    listing, found = opened(path)
    assert (found["train"], found["valid"]) == SPLIT
    assert "the first folder of each path gives the split" in listing.remarks[0]
    assert opened(path, split_column="none")[0].held_out
    # Runs that were begun before did not look at folders.
    assert opened(path, rules=1)[0].held_out
    assert opened(path, split_column="image")[1] == found


def test_groups_are_held_out_as_a_whole(root, opened):
    path = write(
        root / "t.csv",
        "image,label,patient",
        lambda k: f"images/{k}.png,{ALL[k]},p{k // 2}",
    )
    for share in (0.2, 0.4):
        _, found = opened(path, group_column="patient", hold_out=share)
        sides = [{k // 2 for k in some} for some in found.values()]
        assert not sides[0] & sides[1]
        assert merged(found) == ALL


def test_runs_begun_before_read_the_columns_that_were_known_then(root, opened):
    path = write(
        root / "t.csv",
        "image,label,set",
        lambda k: f"./images/{k}.png,{k % 2}.0,{'val' if k < 4 else 'train'}",
    )
    listing, found = opened(path, rules=1)
    assert listing.held_out
    assert listing.class_names == ("0.0", "1.0")
    assert listing.files["val"][0][0].startswith("./images/")
    listing, found = opened(path)
    assert listing.class_names == ("0", "1")
    assert set(found["val"]) == set(range(4))


@pytest.mark.parametrize("column", ["sex", "Gender", "fold"])
def test_zeros_and_ones_of_another_meaning_are_not_classes(root, message, column):
    path = write(
        root / "t.csv",
        f"image,a,b,{column}",
        lambda k: f"images/{k}.png,{k % 2},{1 - k % 2},{k % 3 == 0:d}",
    )
    assert "if these are the classes, set data.label_columns='a,b'" in message(path)


def test_a_class_may_be_called_no(root, opened):
    path = write(
        root / "t.csv",
        "no,image,yes,maybe",
        lambda k: f"{k % 3 == 0:d},images/{k}.png,{k % 3 == 1:d},{k % 3 == 2:d}",
    )
    listing, found = opened(path)
    assert listing.class_names == ("maybe", "no", "yes")
    assert merged(found) == {k: ("no", "yes", "maybe")[k % 3] for k in range(12)}
    assert (
        "columns of zeros and ones are taken for classes: no, yes, maybe"
        in (listing.remarks[0])
    )
    # A numbering is not a class.
    write(path, "no,image,a,b", lambda k: f"{k},images/{k}.png,{k % 2},{1 - k % 2}")
    assert opened(path)[0].class_names == ("a", "b")


def test_blanks_are_zeros_where_there_are_none(root, opened, message):
    def rows(k):
        return f"images/{k}.png,{k % 2 or ''},{1 if k % 3 else ' '}"

    path = write(root / "t.csv", "image,a,b", rows)
    assert "set data.label_columns='a,b'" in message(path)
    listing, found = opened(path, label_columns="a,b")
    assert [merged(found)[k] for k in range(4)] == ["", "a|b", "b", "a"]
    assert any("blanks are read as 0" in remark for remark in listing.remarks)
    # Beside zeros, a blank may mean that nobody knows.
    path.write_text(path.read_text().replace("0.png,,", "0.png,0,"))
    assert "b is '', not 0 or 1" in message(path, label_columns="a,b")


def test_the_only_other_column_is_suggested(root, opened, message):
    path = write(root / "t.csv", "image,breed", lambda k: f"images/{k}.png,{ALL[k]}")
    assert "if it is 'breed', set data.label_columns='breed'" in message(path)
    assert merged(opened(path, label_columns="breed")[1]) == ALL


def test_one_column_only_is_explained(root, message):
    path = write(root / "t.csv", "image label", lambda k: f"images/{k}.png a")
    assert "expected commas, semicolons, tabs or | between columns" in message(path)

"""Names of splits: which split the name of a folder, a file or a table's cell means.

Known are, in any case, "train", "val", "valid", "validation" and "test", which keep
their names, and

    train   training, trn, trainval
    val     validate, validating, dev, devel, development, eval, evaluation, holdout
    test    testing, tst

with words that say nothing about the split ("Validation Set", "train_images",
"testdata"), numbers ("01_train", "val2017"), and any other words in front of them, such
as the name of a data set ("imagenet-val").
"""

import re
import unicodedata

PLAIN_NAMES = ("train", "val", "valid", "validation", "test")
EVALUATION_NAMES = PLAIN_NAMES[1:]

# Word → the split that it means.
_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating"), "val"),
    **dict.fromkeys(("dev", "devel", "development"), "val"),
    **dict.fromkeys(("eval", "evaluation", "evaluate", "holdout", "heldout"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
# Words beside these that do not change what a name means.
_NEUTRAL = frozenset(
    word
    for line in (
        "all clean color colour copy crop cropped crops data dataset datasets dir",
        "directory example examples file files final folder folders for full image",
        "images img imgs input inputs jpeg jpegs jpg jpgs labeled labelled new of old",
        "orig original originals part partition photo photos pic pics picture pictures",
        "png pngs pool processed raw resized rgb sample samples set sets split splits",
        "subset the x",
    )
    for word in line.split()
)
_TOKEN = re.compile(r"[^\W\d_]+|\d+")


def canonical(name: str) -> str | None:
    """Returns the split that a name means; None if it is not the name of a split.

    The result is "train", "val" or "test", or the name itself in lower case if it is
    one of PLAIN_NAMES.
    """
    plain = name.strip().lower()
    if plain in PLAIN_NAMES:
        return plain
    words = words_of(name)
    found = [at for at, word in enumerate(words) if word in _WORDS]
    if len({_WORDS[words[at]] for at in found}) != 1:
        return None
    # Words before it may be the name of the data set; words after it are part of what
    # is named: "train station", "test tube".
    after = words[found[0] :]
    return _WORDS[after[0]] if all(map(_says_nothing, after)) else None


def is_unmistakable(name: str) -> bool:
    """Returns whether a name means a split and has no word of another meaning."""
    return canonical(name) is not None and all(map(_says_nothing, words_of(name)))


def resembles_split(name: str) -> bool:
    """Returns whether any word of a name is one for a split: "trainA", "test-dogs"."""
    return suggested(name) is not None


def suggested(name: str) -> str | None:
    """Returns the split that the first known word of a name means."""
    return next((_WORDS[word] for word in words_of(name) if word in _WORDS), None)


def role(split: str) -> str:
    """Returns what a split is for: "valid" and "validation" are for the same as "val".

    A name that is not one of PLAIN_NAMES is returned unchanged.
    """
    return _WORDS.get(split, split)


def _says_nothing(word: str) -> bool:
    return word in _WORDS or word in _NEUTRAL or word.isdecimal()


def words_of(name: str) -> list[str]:
    """Divides a name into words in lower case and numbers.

    Words end where the case changes ("trainImages") or where a known word ends
    ("testset"), and "held out" is one word.
    """
    name = unicodedata.normalize("NFKC", name)
    name = re.sub(r"([a-z])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3 \2\4", name)
    words = []
    for token in _TOKEN.findall(re.sub(r"(?i)\b(held|hold)[\W_]+out", r"\1out", name)):
        words += _parts(token.lower())
    return words


def _parts(token: str) -> list[str]:
    if token in _WORDS or token in _NEUTRAL:
        return [token]
    for cut in range(len(token) - 2, 2, -1):
        first, second = token[:cut], token[cut:]
        if (first in _WORDS and second in _NEUTRAL) or (
            first in _NEUTRAL and second in _WORDS
        ):
            return [first, second]
    return [token]

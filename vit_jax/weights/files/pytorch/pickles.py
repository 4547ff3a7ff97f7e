"""An interpreter for the pickles of PyTorch checkpoints, which never unpickles.

It knows tensors and containers; everything else that a pickle mentions stays an inert
name. This module exists because `pickle.Unpickler` is not safe even if `find_class`
accepts a whitelist only. That was tried, and hostile files get past the whitelist:

- A dict with a deeply nested tuple as key crashes Python: hashing it overflows the
  stack of C.
- A file of 10 bytes takes 2 GiB of memory: it stores one value in the memo, at an index
  for which the unpickler makes the memo that large.
- A file of 58 bytes rewrites the defaults of a whitelisted function: BUILD sets any
  attribute of any object on the stack.

tests/weights/files/test_pickles.py has all three files.
"""

import pickle
import pickletools
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from vit_jax.archives.unreadable import Unreadable
from vit_jax.words import quoted

# Both far above those of a checkpoint that includes the optimizer's state.
LONGEST_PICKLE = 4 << 20  # bytes
_MOST_OPERATIONS = 1 << 18


class Global(NamedTuple):
    """The name of a class or function in a pickle, which is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert(NamedTuple):
    """A placeholder for an object that is not needed, with the name of its maker."""

    maker: Global


class Storage(NamedTuple):
    """A reference to the numbers that one or more tensors share.

    Attributes:
      key: its name in the file.
      kind: its class, such as torch.FloatStorage.
      count: its number of elements, or of bytes if the storage is untyped.
    """

    key: str
    kind: Global
    count: int


class Tensor(NamedTuple):
    """A view of a storage, in elements, whose fields are not validated yet."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any
    dtype: Global | None = None  # given if the storage is untyped


class Pickle(NamedTuple):
    """The content of a pickle.

    Attributes:
      value: numbers, strings, bytes, None, lists, tuples, dicts (only items whose keys
        are strings), `Tensor`, `Storage`, `Global`, and `Inert` for all other objects.
      storages: all storages that it mentions, by key.
    """

    value: Any
    storages: dict[str, Storage]


def read_pickle(file: BinaryIO) -> Pickle:
    """Interprets one pickle from the file's current position; executes nothing.

    Raises:
      Unreadable: it is damaged, too large, of protocol 0 or 1, or names a function that
        only an attack needs, such as os.system.
    """
    machine = _Machine()
    bounded = _Bounded(file)
    try:
        for _ in range(_MOST_OPERATIONS):
            code = bounded.read(1)
            if code == pickle.STOP:
                return Pickle(machine.pop(), machine.storages)
            if not code:
                raise ValueError("ends too early")
            if code not in _CODES:
                raise Unreadable(
                    f"its pickle has the opcode {code!r}, which PyTorch never writes"
                )
            # Unknown opcodes are refused first: reading their argument may be costly.
            read_argument, operate = _CODES[code]
            operate(machine, read_argument(bounded))
        raise Unreadable("its pickle is longer than any state dict's")
    # Operations on a damaged pickle's stack can raise any of these.
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OverflowError,
        RecursionError,
        struct.error,
    ) as error:
        raise Unreadable("its pickle is damaged") from error


class _Bounded:
    """A file that raises ValueError after the longest allowed pickle."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._left = LONGEST_PICKLE + 1

    def read(self, count: int) -> bytes:
        self._spend(count)
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        self._spend(len(line))
        return line

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left <= 0:
            raise ValueError("the pickle is too long, or claims to be")


class _Machine:
    """The stack, marks and memo of a pickle's interpreter."""

    def __init__(self):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise ValueError("the stack is empty above the mark")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def pop_many(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    def top(self) -> Any:
        return self.stack[-1]


def _items(values: list[Any]) -> dict[str, Any]:
    # Keys other than strings occur only in optimizer states, which are not read. An
    # attack can make their hashes collide, or recurse until Python crashes.
    pairs = zip(values[::2], values[1::2], strict=True)
    return {key: value for key, value in pairs if isinstance(key, str)}


def _extend(target: Any, values: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)


def _update(target: Any, values: list[Any]) -> None:
    if isinstance(target, dict):
        target |= _items(values)


def _name(module: str, name: str) -> Global:
    """Makes a global; raises Unreadable if no honest checkpoint would mention it."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("the name of a global is not a string")
    found = Global(module, name)
    room = found.module.partition(".")[0]
    if room in _STANDARD_LIBRARY and not (
        room in _HARMLESS_MODULES or found in _HARMLESS
    ):
        raise Unreadable(
            f"its pickle would run {quoted(str(found))}, which no weights need; "
            "it was not run",
            "Do not trust the file: get the weights as .safetensors",
        )
    return found


def _call(function: Any, arguments: Any) -> Any:
    """Returns the result of a call: a tensor, a container, or something inert."""
    inert = _inert(function)
    return _CALLS.get(inert.maker, lambda *_: inert)(*arguments)


def _inert(maker: Any) -> Inert:
    # Checked before it is looked up: a tuple's hash can recurse until Python crashes.
    if not isinstance(maker, Global):
        raise ValueError("it calls something other than a global")
    return Inert(maker)


def _tensor(storage, offset, shape, strides, *_) -> Tensor:
    return Tensor(storage, offset, shape, strides)


def _tensor_of_dtype(storage, offset, shape, strides, _, __, dtype, *___) -> Tensor:
    return Tensor(storage, offset, shape, strides, dtype)


def _tensor_of_type(function, _, arguments, *__) -> Any:
    inert = _inert(function)
    return _REBUILD.get(inert.maker, lambda *_: inert)(*arguments)


_REBUILD: dict[Global, Callable[..., Tensor]] = {
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
}
# The only calls with a result; all others give `Inert`.
_CALLS: dict[Global, Callable[..., Any]] = {
    **_REBUILD,
    Global("torch._tensor", "_rebuild_from_type_v2"): _tensor_of_type,
    Global("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    Global("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    # The argument is not copied: a short pickle could demand many long copies.
    Global("torch", "Size"): lambda sizes: sizes,
    Global("collections", "OrderedDict"): lambda *_: {},
}

# Modules of settings, dates, paths and the like, which honest checkpoints contain
# beside the tensors. They stay inert like all globals. The rest of the standard library
# is refused with a message, because only an attack needs it.
_STANDARD_LIBRARY = sys.stdlib_module_names | {"__builtin__", "commands"}
_HARMLESS_MODULES = {
    "_codecs",
    "argparse",
    "collections",
    "copyreg",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "logging",
    "numbers",
    "pathlib",
    "random",
    "typing",
    "uuid",
}
_HARMLESS = {
    Global(module, name)
    for module in ("builtins", "__builtin__")
    for name in (
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int"),
        *("list", "long", "object", "range", "set", "slice", "str", "tuple", "unicode"),
        *("type", "getattr"),  # used to pickle enumerations
    )
} | {Global("types", "SimpleNamespace"), Global("copy_reg", "_reconstructor")}

_Operation = Callable[[_Machine, Any], Any]
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def _constant(value: Any) -> _Operation:
    return lambda m, _: m.push(value)


def _tuple(count: int) -> _Operation:
    return lambda m, _: m.push(m.pop_many(count))


def _put(m: _Machine, index: int) -> None:
    m.memo[index] = m.top()


def _reduce(m: _Machine, _) -> None:
    function, arguments = m.pop_many(2)
    m.push(_call(function, arguments))


def _reduce_keywords(m: _Machine, _) -> None:
    function, *_ = m.pop_many(3)
    m.push(_inert(function))


def _set_items(m: _Machine, _) -> None:
    values = m.pop_to_mark()
    _update(m.top(), values)


def _append_many(m: _Machine, _) -> None:
    values = m.pop_to_mark()
    _extend(m.top(), values)


def _set_item(m: _Machine, _) -> None:
    values = m.pop_many(2)
    _update(m.top(), list(values))


def _append(m: _Machine, _) -> None:
    value = m.pop()
    _extend(m.top(), [value])


def _nothing(m: _Machine, _) -> None:
    pass


def _storage(m: _Machine, _) -> None:
    # A persistent id: ("storage", class, key, device, count). The format before 1.6
    # appends the position within another storage, used only by PyTorch before 0.4.
    mark, kind, key, _, count, *rest = m.pop()
    honest = mark == "storage" and isinstance(kind, Global) and isinstance(key, str)
    if not honest or type(count) is not int or count < 0 or rest not in ([], [None]):
        raise ValueError("a persistent id does not describe a storage")
    storage = Storage(key, kind, count)
    if m.storages.setdefault(key, storage) != storage:
        raise ValueError("a storage is described in two ways")
    m.push(storage)


# All opcodes of protocols 2 to 5 except extensions and out-of-band buffers.
_OPERATIONS: dict[str, _Operation] = {
    **dict.fromkeys(
        (
            *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
            *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE"),
            *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        ),
        _Machine.push,
    ),
    **{name: _constant(value) for name, value in _CONSTANTS.items()},
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.pop_to_mark(),
    "DUP": lambda m, _: m.push(m.top()),
    "EMPTY_TUPLE": _tuple(0),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_to_mark())),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "LIST": lambda m, _: m.push(m.pop_to_mark()),
    "APPEND": _append,
    "APPENDS": _append_many,
    # Sets are not needed: lists hold their members without hashing them.
    "EMPTY_SET": lambda m, _: m.push([]),
    "ADDITEMS": _append_many,
    "FROZENSET": lambda m, _: m.push(m.pop_to_mark()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "DICT": lambda m, _: m.push(_items(m.pop_to_mark())),
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": lambda m, _: _put(m, len(m.memo)),
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "GLOBAL": lambda m, names: m.push(_name(*names)),
    "STACK_GLOBAL": lambda m, _: m.push(_name(*m.pop_many(2))),
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _reduce_keywords,
    # Drops the state of an object, such as the module versions of a state dict.
    "BUILD": lambda m, _: m.pop(),
    "BINPERSID": _storage,
}
# Opcode byte → (reader of its argument, operation).
_CODES: dict[bytes, tuple[Callable[[Any], Any], _Operation]] = {
    known.code.encode("latin-1"): (
        known.arg.reader if known.arg else lambda _: None,
        _OPERATIONS[known.name],
    )
    for known in pickletools.opcodes
    if known.name in _OPERATIONS
}
# pickletools' own reader unescapes the names, and warns if it cannot.
_CODES[pickle.GLOBAL] = (
    lambda file: [file.readline().decode().removesuffix("\n") for _ in range(2)],
    _OPERATIONS["GLOBAL"],
)

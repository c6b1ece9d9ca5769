"""An unpickler that only makes data: nothing is imported, called or hashed but what its handlers allow.

Python's own unpickler, even with a list of allowed names, runs C code on what a file says: it fills a memo as long as a file asks
for, hashes keys nested a million deep, and lets arrays be built twice. Here a few dozen opcodes make None, numbers, text,
bytes, tuples, lists and dicts with plain keys; names of modules, calls and states go through ``PickleHandlers``.
Opcodes are read by ``pickletools``. What the data means is checked by the caller.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, TypeVar

_VALUES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8",
})  # fmt: skip
_CONSTANTS: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list,
}  # fmt: skip
_MARK = object()


class Opaque:
    """Stands for the result of any name or call: takes items and states, stores none, and is a key by itself."""

    __slots__ = ()

    def append(self, item: object) -> None:
        """Nothing."""

    def extend(self, items: list[object]) -> None:
        """Nothing."""

    def __setitem__(self, key: object, value: object) -> None:
        pass


PlainKey = str | int | float | bytes | Opaque | None
PLAIN_KEYS = (str, int, float, bytes, type(None), Opaque)


class UnsafePickleError(pickle.UnpicklingError):
    """What would bring a reader down: a key that is no text or number, an entry that fills the memory."""


class PickleHandlers:
    """What the caller allows. Every method raises ``pickle.UnpicklingError`` (or the caller's own error) to refuse."""

    def find(self, module: str, name: str) -> object:
        """The stand-in for a name."""
        raise pickle.UnpicklingError(f"{module}.{name}")

    def call(self, what: object, arguments: tuple[object, ...]) -> object:
        """The value of calling, or making an object of, what ``find`` gave."""
        raise pickle.UnpicklingError(f"a call of {type(what).__name__}")

    def build(self, instance: object, state: object) -> None:
        """Give a state to what ``call`` gave."""
        raise pickle.UnpicklingError(f"a state for {type(instance).__name__}")

    def persistent(self, pid: object) -> object:
        """The value of a persistent id."""
        raise pickle.UnpicklingError("a persistent id")


def run(file: IO[bytes], handlers: PickleHandlers) -> object:
    """The value of the pickle that begins at the position of ``file``. Raises pickle.UnpicklingError, ValueError."""
    return SafeUnpickler(handlers).run(file)


Items = TypeVar("Items", list[object], dict[PlainKey, object])


class SafeUnpickler:
    """The stack and the memo of one pickle. ``_OPCODES`` below lists all that it does, besides constants and memo."""

    def __init__(self, handlers: PickleHandlers) -> None:
        self.handlers = handlers
        self.stack: list[object] = []
        self.memo: dict[object, object] = {}

    def run(self, file: IO[bytes]) -> object:
        """See the function ``run``."""
        stack = self.stack
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name in _VALUES:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                self.memo[argument] = self.top()
            elif name == "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                if argument not in self.memo:
                    raise pickle.UnpicklingError("a memo that was never written")
                stack.append(self.memo[argument])
            elif name == "STOP":
                return self.pop()
            elif name not in ("PROTO", "FRAME"):
                step = _OPCODES.get(name)
                if step is None:
                    raise pickle.UnpicklingError(f"the opcode {name}")
                step(self, argument)
        raise pickle.UnpicklingError("no end")

    def top(self) -> object:
        """The last value, left on the stack."""
        if not self.stack or self.stack[-1] is _MARK:
            raise pickle.UnpicklingError("an empty stack")
        return self.stack[-1]

    def pop(self) -> object:
        """The last value."""
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[object]:
        """The values after the last mark, which goes too."""
        position = next((i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is _MARK), None)
        if position is None:
            raise pickle.UnpicklingError("no mark")
        items = self.stack[position + 1 :]
        del self.stack[position:]
        return items

    def container(self, kind: type[Items]) -> Items:
        """The list or dict on top of the stack, or something opaque that takes the same items."""
        top = self.top()
        if not isinstance(top, kind | Opaque):
            raise pickle.UnpicklingError(f"items for {type(top).__name__}")
        return top  # type: ignore[return-value]  # Opaque has the methods that are called

    def set_items(self, items: list[object]) -> None:
        """Keys and values, alternating, into the dict on top."""
        target: dict[PlainKey, object] = self.container(dict)
        if len(items) % 2:
            raise pickle.UnpicklingError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def push_tuple(self, length: int) -> None:
        """The last ``length`` values as a tuple."""
        reversed_items = [self.pop() for _ in range(length)]
        self.stack.append(tuple(reversed(reversed_items)))

    def append(self) -> None:
        """The last value into the list below it."""
        item = self.pop()
        self.container(list).append(item)

    def extend(self, items: list[object]) -> None:
        """Items into the list on top."""
        self.container(list).extend(items)

    def dict_of_items(self) -> None:
        """A new dict of what follows the mark."""
        items = self.pop_to_mark()
        self.stack.append({})
        self.set_items(items)

    def set_item(self) -> None:
        """One key and its value."""
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def push_global(self, module: object, name: object) -> None:
        """The handlers' stand-in for a name."""
        if not isinstance(name, str) or not isinstance(module, str):
            raise pickle.UnpicklingError("a name that is no text")
        self.stack.append(self.handlers.find(module, name))

    def stack_global(self) -> None:
        """A name whose two parts are on the stack."""
        name, module = self.pop(), self.pop()
        self.push_global(module, name)

    def reduce(self) -> None:
        """A call, which only the handlers may answer."""
        arguments, what = self.pop(), self.pop()
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("arguments that are no tuple")
        self.stack.append(self.handlers.call(what, arguments))

    def build(self) -> None:
        """A state for the object below it."""
        state = self.pop()
        self.handlers.build(self.top(), state)


def _global(unpickler: SafeUnpickler, argument: object) -> None:
    module, _, name = str(argument).partition(" ")
    unpickler.push_global(module, name)


_OPCODES: Mapping[str, Callable[[SafeUnpickler, object], object]] = {
    "MARK": lambda unpickler, _: unpickler.stack.append(_MARK),
    "POP": lambda unpickler, _: unpickler.pop(),
    "POP_MARK": lambda unpickler, _: unpickler.pop_to_mark(),
    "DUP": lambda unpickler, _: unpickler.stack.append(unpickler.top()),
    "TUPLE": lambda unpickler, _: unpickler.stack.append(tuple(unpickler.pop_to_mark())),
    "TUPLE1": lambda unpickler, _: unpickler.push_tuple(1),
    "TUPLE2": lambda unpickler, _: unpickler.push_tuple(2),
    "TUPLE3": lambda unpickler, _: unpickler.push_tuple(3),
    "LIST": lambda unpickler, _: unpickler.stack.append(unpickler.pop_to_mark()),
    "APPEND": lambda unpickler, _: unpickler.append(),
    "APPENDS": lambda unpickler, _: unpickler.extend(unpickler.pop_to_mark()),
    "DICT": lambda unpickler, _: unpickler.dict_of_items(),
    "SETITEM": lambda unpickler, _: unpickler.set_item(),
    "SETITEMS": lambda unpickler, _: unpickler.set_items(unpickler.pop_to_mark()),
    # A set would hash its items: a list stands for it.
    "ADDITEMS": lambda unpickler, _: unpickler.extend([_checked_key(item) for item in unpickler.pop_to_mark()]),
    "GLOBAL": _global,
    "STACK_GLOBAL": lambda unpickler, _: unpickler.stack_global(),
    "REDUCE": lambda unpickler, _: unpickler.reduce(),
    "NEWOBJ": lambda unpickler, _: unpickler.reduce(),
    "BUILD": lambda unpickler, _: unpickler.build(),
    "PERSID": lambda unpickler, argument: unpickler.stack.append(unpickler.handlers.persistent(argument)),
    "BINPERSID": lambda unpickler, _: unpickler.stack.append(unpickler.handlers.persistent(unpickler.pop())),
}


def _checked_key(key: object) -> PlainKey:
    if not isinstance(key, PLAIN_KEYS):
        raise UnsafePickleError(f"a key that is no text or number but {type(key).__name__}")
    return key

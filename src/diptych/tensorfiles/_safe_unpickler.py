"""A machine for pickles that only makes data: nothing is imported, called or hashed but what its user hands in.

Python's own unpickler, even with a list of allowed names, runs C code on what a file says: it fills a memo as long as a file asks
for, hashes keys nested a million deep, and lets arrays be built twice. Here a few dozen opcodes make None, numbers, text,
bytes, tuples, lists and dicts with plain keys; names of modules, calls and states go through ``PickleHandlers``.
Reading opcodes is ``pickletools``' work. Not for trust: what the data means is checked by who asked for it.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

_VALUES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8",
})  # fmt: skip
_FRESH: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list,
}  # fmt: skip
_MARK = object()


class Opaque:
    """Stands for whatever a name or a call would give: takes items and states, keeps none, and is a key by itself."""

    __slots__ = ()

    def append(self, item: Any) -> None:
        """Nothing."""

    def extend(self, items: Any) -> None:
        """Nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


PLAIN_KEYS = (str, int, float, bytes, type(None), Opaque)


class UnsafePickleError(pickle.UnpicklingError):
    """What would bring a reader down: a key that is no text or number, an entry that fills the memory."""


class PickleHandlers:
    """What the machine's user allows. Every method raises ``pickle.UnpicklingError`` (or the user's own error) to refuse."""

    def find(self, module: str, name: str) -> Any:
        """What stands for a name."""
        raise pickle.UnpicklingError(f"{module}.{name}")

    def call(self, what: Any, arguments: tuple[Any, ...]) -> Any:
        """The value of calling, or making an object of, what ``find`` gave."""
        raise pickle.UnpicklingError(f"a call of {type(what).__name__}")

    def build(self, made: Any, state: Any) -> None:
        """Give a state to what ``call`` made."""
        raise pickle.UnpicklingError(f"a state for {type(made).__name__}")

    def persistent(self, pid: Any) -> Any:
        """What a persistent id stands for."""
        raise pickle.UnpicklingError("a persistent id")


def run(file: Any, names: PickleHandlers) -> Any:
    """The value of the pickle that begins where ``file`` (of bytes) stands. Raises pickle.UnpicklingError, ValueError."""
    return SafeUnpickler(names).run(file)


class SafeUnpickler:
    def __init__(self, names: PickleHandlers) -> None:
        self.names = names
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: Any) -> Any:
        stack = self.stack
        argument: Any
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name in _VALUES:
                stack.append(argument)
            elif name in _FRESH:
                stack.append(_FRESH[name]())
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                self.memo[argument] = self._top()
            elif name == "MEMOIZE":
                self.memo[len(self.memo)] = self._top()
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                if argument not in self.memo:
                    raise pickle.UnpicklingError("a memo that was never made")
                stack.append(self.memo[argument])
            elif name == "STOP":
                return self._pop()
            elif name not in ("PROTO", "FRAME"):
                step = getattr(self, f"_{name.lower()}", None)
                if step is None:
                    raise pickle.UnpicklingError(f"the opcode {name}")
                step(argument)
        raise pickle.UnpicklingError("no end")

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise pickle.UnpicklingError("an empty stack")
        return self.stack[-1]

    def _pop(self, argument: Any = None) -> Any:
        self._top()
        return self.stack.pop()

    def _marked(self) -> list[Any]:
        place = next((i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is _MARK), None)
        if place is None:
            raise pickle.UnpicklingError("no mark")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop_mark(self, _: Any) -> None:
        self._marked()

    def _dup(self, _: Any) -> None:
        self.stack.append(self._top())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._marked()))

    def _tuple1(self, _: Any) -> None:
        self.stack.append((self._pop(),))

    def _tuple2(self, _: Any) -> None:
        two, one = self._pop(), self._pop()
        self.stack.append((one, two))

    def _tuple3(self, _: Any) -> None:
        three, two, one = self._pop(), self._pop(), self._pop()
        self.stack.append((one, two, three))

    def _list(self, _: Any) -> None:
        self.stack.append(self._marked())

    def _append(self, _: Any) -> None:
        item = self._pop()
        self._of(list).append(item)

    def _appends(self, _: Any) -> None:
        items = self._marked()
        self._of(list).extend(items)

    def _dict(self, _: Any) -> None:
        items = self._marked()
        self.stack.append({})
        self._set(items)

    def _setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _setitems(self, _: Any) -> None:
        self._set(self._marked())

    def _set(self, items: list[Any]) -> None:
        made = self._of(dict)
        if len(items) % 2:
            raise pickle.UnpicklingError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            made[_plain(key)] = value

    def _additems(self, _: Any) -> None:
        items = [_plain(item) for item in self._marked()]  # a set would hash them
        self._of(list).extend(items)

    def _of(self, kind: type) -> Any:
        if not isinstance(self._top(), kind | Opaque):
            raise pickle.UnpicklingError(f"items for {type(self._top()).__name__}")
        return self.stack[-1]

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self.names.find(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise pickle.UnpicklingError("a name that is no text")
        self.stack.append(self.names.find(module, name))

    def _reduce(self, _: Any) -> None:
        arguments, what = self._pop(), self._pop()
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("arguments that are no tuple")
        self.stack.append(self.names.call(what, arguments))

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        state = self._pop()
        self.names.build(self._top(), state)

    def _persid(self, argument: str) -> None:
        self.stack.append(self.names.persistent(argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self.names.persistent(self._pop()))


def _plain(key: Any) -> Any:
    if not isinstance(key, PLAIN_KEYS):
        raise UnsafePickleError(f"a key that is no text or number but {type(key).__name__}")
    return key

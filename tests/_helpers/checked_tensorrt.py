"""TensorRT without TensorRT: objects that know the real bindings' names and signatures only.

Every attribute, method, argument and value that is used is resolved against the bindings: an
unknown name is an ``AttributeError``, a wrong argument a ``TypeError``, as the real library would
raise them. What a method answers is given by the test, or is a default of the declared type.
"""

from __future__ import annotations

import inspect
import re
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_SIGNATURE = re.compile(r"^\s*(?:\d+\. )?(\w*)\((.*)\) -> (.+?)\s*$")


class HostMemory(bytes):
    """What TensorRT serializes into: bytes that can also be a context manager."""

    @property
    def nbytes(self) -> int:
        return len(self)

    def __enter__(self) -> HostMemory:
        return self

    def __exit__(self, *_: object) -> None: ...


class Parameter:
    """One parameter of a signature, such as ``flag: tensorrt.BuilderFlag``."""

    def __init__(self, text: str) -> None:
        name, _, rest = text.partition(":")
        self.required = "=" not in rest
        self.name = name.strip()
        self.type = rest.partition(" = ")[0].strip()


class Signature:
    """One line such as ``set_flag(self: T, flag: BuilderFlag) -> None`` of pybind11."""

    def __init__(self, parameters: str, returns: str) -> None:
        self.parameters = [Parameter(text) for text in split_parameters(parameters)]
        self.returns = returns

    def bind(
        self, world: World, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Arguments by parameter; None when they do not fit."""
        named = {parameter.name: parameter for parameter in self.parameters}
        if len(arguments) > len(named) or not set(keywords) <= set(named):
            return None
        bound = dict(zip(named, arguments, strict=False))
        if set(bound) & set(keywords):
            return None
        bound.update(keywords)
        if any(item.required and item.name not in bound for item in self.parameters):
            return None
        if not all(world.fits(value, named[name].type) for name, value in bound.items()):
            return None
        return bound


def split_parameters(text: str) -> list[str]:
    """Split at the commas that are not within brackets."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    return [part for part in [*parts, current] if part.strip()]


def signatures(member: Any) -> list[Signature]:
    """All overloads of a method, a property's getter, or ``__init__``."""
    found = []
    for line in (member.__doc__ or "").splitlines():
        match = _SIGNATURE.match(line)
        if match is not None and "*args" not in match[2]:
            found.append(Signature(match[2], match[3]))
    return found


class World:
    """The module ``tensorrt`` as the code under test sees it.

    Args:
        bindings: NVIDIA's module ``tensorrt_bindings``.
        answers: What members give, by ``Interface.member``: a value, or a function of the object
            and of the arguments by name.
    """

    MADE = ("Builder", "Runtime", "OnnxParser", "Refitter", "OnnxParserRefitter")

    def __init__(self, bindings: Any, answers: dict[str, Any]) -> None:
        self.bindings = bindings
        self.answers = answers
        self.used: set[str] = set()
        self.flags: list[str] = []

    def module(self) -> types.ModuleType:
        """A module with all of the real one's content but for what needs the native library."""
        module = types.ModuleType("tensorrt")
        vars(module).update(
            {name: value for name, value in vars(self.bindings).items() if name != "__name__"}
        )
        module.__version__ = self.bindings.__version__
        for name in self.MADE:
            setattr(module, name, self._constructor(name))
        return module

    def _constructor(self, interface: str) -> Callable[..., Checked]:
        cls = getattr(self.bindings, interface)

        def make(*arguments: Any, **keywords: Any) -> Checked:
            this = Checked(self, interface)
            self.resolve(f"{interface}()", signatures(cls.__init__), (this, *arguments), keywords)
            return this

        return make

    def resolve(
        self, name: str, overloads: list[Signature], arguments: Any, keywords: dict[str, Any]
    ) -> tuple[dict[str, Any], str]:
        """The arguments by name and the declared result of the overload that fits."""
        self.used.add(name)
        for overload in overloads:
            bound = overload.bind(self, tuple(arguments), keywords)
            if bound is not None:
                return bound, overload.returns
        raise TypeError(f"{name} takes no {arguments[1:]} {keywords}")

    def fits(self, value: Any, declared: str) -> bool:
        """Whether pybind11 would take a value for a declared type."""
        kind = declared.rpartition(".")[2] if "[" not in declared else declared
        plain = {"str": str, "bool": bool, "tuple": tuple, "list": list}
        if kind in plain:
            return isinstance(value, plain[kind])
        if kind in ("int", "SupportsInt"):
            return isinstance(value, int) and not isinstance(value, bool)
        if kind in ("buffer", "Buffer"):
            return isinstance(value, (bytes, bytearray, memoryview))
        if kind == "Dims":
            return isinstance(value, (self.bindings.Dims, tuple, list))
        cls = getattr(self.bindings, kind, None)
        if isinstance(value, Checked):
            return cls is not None and issubclass(value.interface_class(), cls)
        return cls is None or isinstance(value, cls)

    def default(self, declared: str) -> Any:
        """A value of a declared type: an object, an empty list, the first of an enumeration."""
        kind = declared.rpartition(".")[2] if "[" not in declared else "list"
        if kind == "IHostMemory":
            return HostMemory(b"serialized")
        plain: dict[str, Any] = {"int": 0, "bool": True, "str": "", "float": 0.0, "None": None}
        if kind in plain:
            return plain[kind]
        if kind == "list":
            return []
        cls = getattr(self.bindings, kind, None)
        if cls is None:
            return None
        members = getattr(cls, "__members__", None)
        return next(iter(members.values())) if members else Checked(self, kind)


class Checked:
    """An object of one of TensorRT's interfaces.

    Args:
        world: The module that it belongs to.
        interface: Its class.
        facts: What its members give, by name; before the world's answers.
    """

    def __init__(self, world: World, interface: str, **facts: Any) -> None:
        vars(self).update(_world=world, _interface=interface, _facts=facts)

    def interface_class(self) -> Any:
        return getattr(self._world.bindings, self._interface)

    def __repr__(self) -> str:
        return f"<{self._interface}>"

    def __iter__(self) -> Any:
        """A network's layers; nothing else of TensorRT is iterated over."""
        return iter([self.get_layer(index) for index in range(self.num_layers)])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        member = self._member(name)
        if isinstance(member, property):
            self._world.used.add(f"{self._interface}.{name}")
            returns = (signatures(member.fget) or [Signature("", "None")])[0].returns
            return self._answer(name, returns, {})
        method = getattr(self.interface_class(), name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            bound, returns = self._world.resolve(
                f"{self._interface}.{name}", signatures(method), (self, *arguments), keywords
            )
            del bound[next(iter(bound))]
            return self._answer(name, returns, bound)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        member = self._member(name)
        if not isinstance(member, property) or member.fset is None:
            raise AttributeError(f"{self._interface}.{name} cannot be set")
        declared = (signatures(member.fget) or [Signature("", "object")])[0].returns
        if not self._world.fits(value, declared):
            raise TypeError(f"{self._interface}.{name} is a {declared}, not {value!r}")
        self._world.used.add(f"{self._interface}.{name}=")
        self._facts[name] = value

    def _member(self, name: str) -> Any:
        member = inspect.getattr_static(self.interface_class(), name, None)
        if member is None:
            version = self._world.bindings.__version__
            raise AttributeError(f"TensorRT {version} has no {self._interface}.{name}")
        return member

    def _answer(self, name: str, returns: str, bound: dict[str, Any]) -> Any:
        key = f"{self._interface}.{name}"
        if name in self._facts:
            answer = self._facts[name]
        elif key in self._world.answers:
            answer = self._world.answers[key]
        else:
            answer = self._facts[name] = self._world.default(returns)
        if inspect.isfunction(answer):
            return answer(self, **bound)
        return answer

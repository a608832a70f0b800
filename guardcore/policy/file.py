"""Read a YAML policy file into plain data that remembers the line of every field.

The meaning of scalars is that of `yaml.safe_load`; three things are stricter, because a safety policy must not mean
something else than it seems to: a key written twice, a merge key and a tag other than the plain types are mistakes.
Sizes are bounded before and while parsing, so that a hostile file (deep nesting, aliases that expand without end) is a
named mistake, not a crash.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from guardcore.policy.errors import FieldPath, PolicyError, Problem, field_name

MAX_BYTES = 1 << 20  # a policy of 1,000 nouns is about 30 kB
MAX_DEPTH = 16  # a policy nests four levels
MAX_NODES = 10_000  # after aliases are expanded; the most prototypes that a policy may have need about 1,500

_TOO_MANY = f"more than {MAX_NODES:,} values, each alias (*) counted as often as it stands"
_TAG = "tag:yaml.org,2002:"
_SCALARS = frozenset(_TAG + kind for kind in ("str", "int", "float", "bool", "null", "timestamp"))


@dataclass
class Document:
    """A parsed file: plain `data`, `lines` (1-based, by field path) and the `problems` that the text itself has."""

    data: object = None
    lines: dict[FieldPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, line: int, path: FieldPath, message: str) -> None:
        """Note a mistake at a field path."""
        self.problems.append(Problem(line, field_name(path), message))


class _RefusedError(Exception):
    """A mistake after which the rest of the file can't be read."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _BoundedLoader(yaml.SafeLoader):
    """SafeLoader whose composer, recursive in PyYAML, refuses deep nesting and endless lists while they are cheap."""

    depth = 0
    count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH or self.count > MAX_NODES:
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            limit = f"nested deeper than {MAX_DEPTH} levels" if self.depth > MAX_DEPTH else _TOO_MANY
            raise _RefusedError(line, limit)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Reader:
    """Turns a tree of YAML nodes into a `Document`."""

    def __init__(self, loader: _BoundedLoader) -> None:
        self.loader = loader
        self.document = Document()
        self.open: set[int] = set()  # nodes being read: one that holds itself would never end
        self.count = 0

    def read(self, node: yaml.Node, path: FieldPath, line: int) -> object:
        """Convert one node; `line` is that of its key, where people look for it."""
        self._enter(node, line)
        self.document.lines[path] = line
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self.read(item, (*path, i), _line(item)) for i, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self.open.discard(id(node))

    def _enter(self, node: yaml.Node, line: int) -> None:
        self.count += 1
        if id(node) in self.open:
            raise _RefusedError(line, "an alias (*) stands inside the value that it repeats")
        if self.count > MAX_NODES:
            raise _RefusedError(line, _TOO_MANY)
        self.open.add(id(node))

    def _mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, object]:
        result: dict[str, object] = {}
        for key, value in node.value:
            line, name = _line(key), key.value
            where = (*path, name)
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG + "str":
                self.document.add(line, path, _bad_key(key))
            elif name in result:
                first = self.document.lines[where]
                self.document.add(line, where, f"written twice, first on line {first}; keep one")
            else:
                result[name] = self.read(value, where, line)
        return result

    def _scalar(self, node: yaml.Node, path: FieldPath) -> object:
        if node.tag not in _SCALARS or not isinstance(node, yaml.ScalarNode):
            tag = node.tag.replace(_TAG, "!!")
            self.document.add(_line(node), path, f"the YAML tag {tag} is not allowed in a policy")
            return None
        try:
            value: object = self.loader.construct_object(node)
        except (ValueError, ArithmeticError, LookupError, AttributeError):
            # PyYAML lets the builtin converters fail in their own ways on, say, `!!int x` or the date 2026-99-99.
            kind = node.tag.replace(_TAG, "")
            message = f"YAML can't read {node.value[:40]!r} as {kind}; quote it if it is text"
            self.document.add(_line(node), path, message)
            return None
        return value


def read_policy_file(path: str | Path) -> Document:
    """Read a YAML file into a `Document`; raise PolicyError if the file can't be read or isn't YAML at all."""
    source = str(path)
    text = _decode(source, _read_bytes(source))
    try:
        return _parse(text)
    except _RefusedError as error:
        problem = Problem(error.line, "", str(error))
    except yaml.reader.ReaderError as error:
        # The reader decodes as it goes, so `position` counts characters from the start of the text.
        line = text.count("\n", 0, error.position) + 1
        problem = Problem(line, "", f"character U+{int(error.character):04X} is not allowed in YAML")
    except yaml.MarkedYAMLError as error:
        problem = _syntax_problem(error)
    raise PolicyError(source, [problem])


def _parse(text: str) -> Document:
    loader = _BoundedLoader(text)
    try:
        node = loader.get_single_node()
        reader = _Reader(loader)
        if node is not None:
            reader.document.data = reader.read(node, (), _line(node))
        return reader.document
    finally:
        loader.dispose()


def _read_bytes(source: str) -> bytes:
    try:
        with open(source, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the file name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PolicyError(source, [Problem(None, "", f"can't be read: {reason}")]) from error
    if len(data) > MAX_BYTES:
        raise PolicyError(source, [Problem(None, "", f"larger than {MAX_BYTES:,} bytes, the limit of a policy file")])
    return data


def _decode(source: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}; save the file as UTF-8"
        raise PolicyError(source, [Problem(line, "", message)]) from error


def _syntax_problem(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    context = f" ({error.context})" if error.context else ""
    hint = "; indent with spaces, YAML allows no tabs" if "'\\t'" in (error.problem or "") else ""
    return Problem(mark.line + 1 if mark else None, "", f"not valid YAML: {error.problem}{context}{hint}")


def _bad_key(key: yaml.Node) -> str:
    if key.tag == _TAG + "merge":
        return "merge keys (<<) are not read; write the fields out, or repeat one list with an anchor (&) and alias (*)"
    if not isinstance(key, yaml.ScalarNode):
        return "a field's name is text; got a list or mapping"
    return (
        f"a field's name is text; got {key.value!r}, which YAML reads as {key.tag.replace(_TAG, '')}; put it in quotes"
    )


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line
    return line + 1

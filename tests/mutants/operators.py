"""Small faults, put into Python source one at a time: which places a file has for them, and the file with one."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

OTHER_OPERATOR: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Pow: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OTHER_NAME = {
    "sum": "mean", "mean": "sum", "min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all",
    "all": "any", "argmin": "argmax", "argmax": "argmin", "minimum": "maximum", "maximum": "minimum", "floor": "ceil",
    "ceil": "floor", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like", "online": "target",
    "target": "online", "c4": "c5", "c5": "c4", "height": "width", "width": "height", "rows": "columns",
    "columns": "rows",
}  # fmt: skip
# Calls whose result can stand for what they are called on, or called with first.
REMOVABLE = {
    "detach", "float", "double", "long", "abs", "square", "sqrt", "exp", "log", "clamp", "clamp_", "clip", "flip",
    "normalize", "_normalized", "sorted", "reversed", "masked_fill", "masked_fill_", "cumsum", "softmax", "log_softmax",
    "at_least_float", "copy", "clone", "ceil", "floor", "round", "cos", "cosine", "transpose",
}  # fmt: skip
SKIPPED = ("annotation", "returns", "decorator_list")  # not in a function's code
NOT_MUTATED = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)


class Mutant(NamedTuple):
    """One fault: its number within the file, the line, and the innermost statement before and after.

    `scope`: qualified name of the outermost function that holds it; empty for a constant of the module.
    """

    number: int
    line: int
    scope: str
    before: str
    after: str


class Place(NamedTuple):
    """A node that may be changed, where it hangs, and the innermost statement around it."""

    statement: ast.stmt
    parent: ast.AST
    field: str
    index: int | None

    @property
    def node(self) -> ast.AST:
        value = getattr(self.parent, self.field)
        return value if self.index is None else value[self.index]

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant of the functions and module constants of a file, in the order of its lines."""
    found = []
    for number, (scope, place, other) in enumerate(_changes(ast.parse(source))):
        node, before = place.node, _shown(place.statement)
        place.put(other)
        after = _shown(other if place.statement is node else place.statement)
        place.put(node)
        if after != before:
            found.append(Mutant(number, node.lineno, scope, before, after))
    return sorted(found, key=lambda one: one.line)


def mutated(source: str, number: int) -> str:
    """The file with the mutant of that number."""
    tree = ast.parse(source)
    _, place, other = next(islice(_changes(tree), number, None))
    place.put(other)
    return ast.unparse(ast.fix_missing_locations(tree))


def _changes(tree: ast.AST) -> Iterator[tuple[str, Place, ast.AST]]:
    for scope, top in _scopes(tree, ""):
        for place in list(_places(top)):
            for other in _others(place.node):
                yield scope, place, other


def _scopes(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """Outermost functions, methods too, with their qualified names; and assignments of the module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _scopes(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not prefix:
            yield "", ast.Module([node], [])


def _shown(statement: ast.stmt) -> str:
    """A statement without the ones within it."""
    text = ast.unparse(statement).splitlines()
    if not hasattr(statement, "body"):
        return " ".join(line.strip() for line in text)
    decorators = [line for line in text if line.startswith("@")]
    return " ".join([*decorators, text[len(decorators)]])


def _places(top: ast.AST) -> Iterator[Place]:
    """Every node below that may be changed."""

    def below(node: ast.AST, statement: ast.stmt | None) -> Iterator[Place]:
        for field, value in ast.iter_fields(node):
            if field in (
                "annotation",
                "returns",
                "args" if isinstance(node, ast.FunctionDef) else "",
                "decorator_list",
            ):
                continue
            for number, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST) or isinstance(child, NOT_MUTATED) or _is_docstring(child):
                    continue
                inner = child if isinstance(child, ast.stmt) else statement
                if hasattr(child, "lineno") and inner is not None:
                    yield Place(inner, node, field, number)
                yield from below(child, inner)

    yield from below(top, None)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _others(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OTHER_OPERATOR:
        yield _with(node, op=OTHER_OPERATOR[type(node.op)]())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER_OPERATOR:
        yield _with(node, ops=[OTHER_OPERATOR[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, ast.UnaryOp):
        yield node.operand
    if isinstance(node, ast.Constant):
        yield from _other_constants(node)
    if isinstance(node, ast.IfExp):
        yield _with(node, body=node.orelse, orelse=node.body)
    if isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Attribute) and node.attr in OTHER_NAME:
        yield _with(node, attr=OTHER_NAME[node.attr])
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in OTHER_NAME:
        yield _with(node, id=OTHER_NAME[node.id])
    if isinstance(node, ast.Tuple) and len(node.elts) == 2 and not all(isinstance(e, ast.Constant) for e in node.elts):
        yield _with(node, elts=node.elts[::-1])
    if isinstance(node, ast.Call):
        yield from _other_calls(node)
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.copy_location(ast.Pass(), node)
    if isinstance(node, ast.With) and all(item.optional_vars is None for item in node.items):
        yield ast.copy_location(ast.If(ast.Constant(True), node.body, []), node)


def _other_constants(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield _with(node, value=not value)
    elif isinstance(value, int):
        yield _with(node, value={0: 1, 1: 0}.get(value, value + 1))
        if value in (1, 2):
            yield _with(node, value=value + 1 if value == 1 else 1)
    elif isinstance(value, float):
        yield _with(node, value=value * 2 if value else 1.0)


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    """An argument by name left out, neighbours exchanged, or the call replaced by what it is called on."""
    for number in range(len(node.keywords)):
        yield _with(node, keywords=[*node.keywords[:number], *node.keywords[number + 1 :]])
    if not any(isinstance(a, ast.Starred) for a in node.args):
        for number in range(len(node.args) - 1):
            first, second = node.args[number : number + 2]
            yield _with(node, args=[*node.args[:number], second, first, *node.args[number + 2 :]])
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    if name in REMOVABLE:
        is_module = isinstance(node.func, ast.Name) or ast.unparse(node.func.value) in ("F", "torch", "np", "math")
        if not is_module:
            yield node.func.value
        elif node.args:
            yield node.args[0]


def _with(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other

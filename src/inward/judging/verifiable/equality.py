"""Whether two SymPy expressions are equal, in bounded time.

SymPy's own ways (`simplify`, `solve`, exact powers) may take hours on a hostile expression, and a time limit would make a score
depend on how busy the machine is. So two expressions are taken for equal where their values agree, to `TOLERANCE`, at `POINTS`
points: there every symbol has a fixed positive value (the test of Schwartz 1980 and Zippel 1979, here in floating point).
Equations and inequalities are equal where their differences of sides are proportional, by a positive factor for inequalities;
sets, tuples and intervals where their members are equal.
"""

from __future__ import annotations

import cmath
import math
import operator
from collections.abc import Callable, Sequence
from functools import reduce
from random import Random
from typing import Any, Final

POINTS: Final = 3
TOLERANCE: Final = 1e-9
_RELATIONS: Final = {"Equality": "=", "StrictLessThan": "<", "LessThan": "<=", "Unequality": "!="}
_FLIPPED: Final = {"StrictGreaterThan": "<", "GreaterThan": "<="}
_OPERATIONS: Final[dict[str, Callable[..., complex]]] = {
    "Add": lambda *values: sum(values),
    "Mul": lambda *values: reduce(operator.mul, values),
    "Pow": operator.pow,
    "UnevaluatedExpr": lambda value: value,
    "Abs": abs,
    "exp": cmath.exp,
    "log": cmath.log,
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
}
_MEMBERS: Final = ("FiniteSet", "Union", "And")


def equal(reference: Any, expression: Any) -> bool:
    """Say whether two SymPy objects are equal. What only one of them names ("x = 5" beside "5") does not count."""
    if reference == expression:
        return True
    if _is_relation(reference) != _is_relation(expression):
        reference, expression = _value_named(reference), _value_named(expression)
    kinds = _kind(reference), _kind(expression)
    if kinds == ("Interval", "Interval"):
        ends = [(side.left_open, side.right_open) for side in (reference, expression)]
        return bool(ends[0] == ends[1]) and _all_equal(_ends(reference), _ends(expression))
    if kinds[0] in _MEMBERS or kinds[1] in _MEMBERS:
        return kinds[0] == kinds[1] and _equal_members(reference.args, expression.args)
    if kinds == ("Tuple", "Tuple"):
        return _all_equal(reference.args, expression.args)
    if _is_relation(reference):
        return _is_relation(expression) and _equal_relations(_sides(reference), _sides(expression))
    return _equal_values(reference, expression)


def _kind(node: Any) -> str:
    return type(node).__name__


def _is_relation(node: Any) -> bool:
    return _kind(node) in _RELATIONS or _kind(node) in _FLIPPED or (_kind(node) == "And" and all(map(_is_relation, node.args)))


def _value_named(node: Any) -> Any:
    """Return what an equation whose left side is a symbol or a function says that is, and anything else as it is."""
    if _kind(node) == "And" and all(_kind(part) == "Equality" for part in node.args):
        node = node.args[-1]
    return node.rhs if _kind(node) == "Equality" and (node.lhs.is_Symbol or node.lhs.is_Function) else node


def _ends(interval: Any) -> tuple[Any, Any]:
    return interval.start, interval.end


def _all_equal(references: Sequence[Any], expressions: Sequence[Any]) -> bool:
    return len(references) == len(expressions) and all(map(equal, references, expressions))


def _equal_members(references: Sequence[Any], expressions: Sequence[Any]) -> bool:
    """Say whether the members of two sets are equal in some order."""
    left = list(expressions)
    for reference in references:
        index = next((index for index, expression in enumerate(left) if equal(reference, expression)), None)
        if index is None:
            return False
        del left[index]
    return not left


def _sides(relation: Any) -> tuple[str, Any, Any]:
    """Return the sign of a relation and its sides, written with "less than" where it is an inequality."""
    if _kind(relation) in _FLIPPED:
        return _FLIPPED[_kind(relation)], relation.rhs, relation.lhs
    return _RELATIONS[_kind(relation)], relation.lhs, relation.rhs


def _equal_relations(reference: tuple[str, Any, Any], expression: tuple[str, Any, Any]) -> bool:
    """Say whether two relations have the same sign and equal or proportional sides."""
    if reference[0] != expression[0]:
        return False
    if _all_equal(reference[1:], expression[1:]):
        return True
    differences = [
        None if lhs is None or rhs is None else [a - b for a, b in zip(lhs, rhs, strict=True)]
        for lhs, rhs in ((_values(side[1]), _values(side[2])) for side in (reference, expression))
    ]
    if differences[0] is None or differences[1] is None or 0 in differences[0] or 0 in differences[1]:
        return False
    factors = [a / b for a, b in zip(differences[0], differences[1], strict=True)]
    positive = reference[0] in ("=", "!=") or factors[0].real > 0
    return positive and all(cmath.isclose(factors[0], factor, rel_tol=TOLERANCE) for factor in factors)


def _equal_values(reference: Any, expression: Any) -> bool:
    first, second = _values(reference), _values(expression)
    if first is None or second is None:
        return False
    return all(cmath.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in zip(first, second, strict=True))


def _values(node: Any) -> list[complex] | None:
    """Return the values of an expression at all points, or None where it has none that floating point can hold."""
    try:
        values = [_value(node, point) for point in range(POINTS)]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return None if any(math.isnan(value.real) or math.isnan(value.imag) for value in values) else values


def _value(node: Any, point: int) -> complex:
    if node.is_Symbol:
        return complex(Random(f"{node.name} {point}").uniform(0.3, 3.0))
    if not node.args:
        return complex(node)
    return complex(_OPERATIONS[_kind(node)](*(_value(part, point) for part in node.args)))

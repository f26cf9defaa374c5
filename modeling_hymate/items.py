"""Columns and their items, whatever library they come from."""

import math
import re
from collections.abc import Mapping, Sequence, Set
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

NUMBERS = (int, float, np.integer, np.floating)
PLAIN_NUMBER = re.compile(r"\s*([+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|nan)\s*", re.IGNORECASE)


def is_listlike(item: Any) -> bool:
    """Whether something holds items in an order: a list, an array, a column of a frame; no text, and no mapping."""
    is_one = isinstance(item, str | bytes | Mapping | Set) or getattr(item, "ndim", 1) == 0
    return hasattr(item, "__len__") and not is_one


def is_missing(item: Any) -> bool:
    """Whether an item of a column stands for no value: None, NaN, or the NA and NaT of pandas."""
    return item is None or (isinstance(item, float | np.floating) and math.isnan(item)) or str(item) in ("<NA>", "NaT")


def as_number(item: Any) -> float:
    """An item of a column as a number, also where it is the text of one; NaN where it is missing.

    Raises:
        ValueError: for anything else, such as `True`, which may mean something else than 1, and a number too large.
    """
    if type(item) is float:
        return item
    if is_missing(item):
        return math.nan
    if hasattr(item, "item") and getattr(item, "ndim", 1) == 0:
        item = item.item()  # of NumPy or PyTorch
    is_text = isinstance(item, str) and PLAIN_NUMBER.fullmatch(item)
    if not is_text and (isinstance(item, bool) or not isinstance(item, Real | Decimal)):
        raise ValueError(f"{item!r} is not a number")
    try:
        return float(item)
    except OverflowError:
        raise ValueError("the number is too large") from None


def column_of(data: Any, name: str) -> np.ndarray:
    """A column of a frame or mapping as an array, numbers as numbers; ValueError naming it where it holds no items."""
    column = data[name]
    if hasattr(column, "detach"):  # of PyTorch
        try:
            array = column.detach().cpu().numpy()
        except (TypeError, NotImplementedError):
            raise ValueError(f"column {name!r} must hold numbers, got {column.dtype} on {column.device}") from None
    elif isinstance(column, np.ma.MaskedArray):
        array = object_array(column.tolist())  # None where it is masked
    elif hasattr(column, "to_numpy") and not hasattr(column, "to_pylist"):  # an array of PyArrow hands over no nulls
        array = np.asarray(column.to_numpy())
    elif hasattr(column, "__array__"):
        array = np.asarray(column)
    elif not is_listlike(column):
        raise ValueError(f"column {name!r} must hold a list, got {type(column).__name__}")
    else:
        # True would become 1 beside numbers, and numbers text beside text
        all_numbers = all(issubclass(kind, NUMBERS) and kind is not bool for kind in set(map(type, column)))
        array = np.array(column) if all_numbers else object_array(column)
    if array.ndim != 1:
        raise ValueError(f"column {name!r} must hold one item per row, got an array of {array.ndim} dimensions")
    return array


def object_array(items: Sequence) -> np.ndarray:
    return np.fromiter(items, dtype=object, count=len(items))

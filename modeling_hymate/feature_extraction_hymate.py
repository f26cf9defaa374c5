"""Feature extractor: records in clinical units -> standardized, padded tensors, and back."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from transformers import BatchFeature, FeatureExtractionMixin
from transformers.utils import logging

from .events import Events, check_count, parse_events, parse_hours
from .items import as_number, is_listlike, is_missing
from .value_statistics import (
    Counted,
    check_quantiles,
    check_statistics,
    fit_quantiles,
    fit_time_scale,
    fit_values,
    fit_variable,
    is_finite,
    standardize_static,
)

logger = logging.get_logger(__name__)

# The classes that open what is saved here. There is no tokenizer: the feature extractor is all of the processor.
AUTO_MAP = dict.fromkeys(("AutoFeatureExtractor", "AutoProcessor"), "feature_extraction_hymate.HyMaTEFeatureExtractor")


class HyMaTEFeatureExtractor(FeatureExtractionMixin):
    r"""Turns records in clinical units into the tensors HyMaTE models take, and back.

    A value is clipped to its variable's range in the training records (their 0.1 and 99.9 percentiles, or where these
    are one number the minimum and maximum), put on a logarithmic scale where that plainly cut the variable's skew
    there, and standardized. Times are divided by `time_scale`, a power of two where `fit` chose it, so that this
    rounds nothing and an event is at or before a prediction time in the model just where it is in hours. Static
    columns are standardized, or ranked among the training records' quantiles where a few of their numbers are so far
    out that all others would become nearly one, or one-hot encoded, each with an indicator that it is missing.
    Usually made by `fit`, saved beside the model as `preprocessor_config.json`.

    Args:
        variables (`list[str]`): Names of the variables; their positions are the variable ids.
        value_ranges (`list[tuple[float, float]]`): Clipping range of each variable, clinical units.
        value_medians (`list[float | None]`): Median of each variable that is put on a logarithmic scale, else None.
        value_means (`list[float]`): Mean of each variable after clipping and logarithm.
        value_deviations (`list[float]`): Standard deviation after clipping and logarithm.
        static_columns (`list[dict]`): One per static column: `name`; for numbers `range`, `mean`, `deviation` and,
            where their tails are heavy, `quantiles`, ascending; for categories `categories`.
        time_scale (`float`): Hours that one unit of `times` stands for.
        unknown_variables (`"error"` or `"ignore"`, defaults to `"error"`): What to do with events whose variable is
            not among `variables`: refuse them, or drop and count them.
        max_events (`int`, *optional*): Latest events that are kept of longer records, as in the model's training; all
            of them by default.
        trained_hours (`tuple[float, float]`, *optional*): First and last hour at which the model was asked in
            training; None where it was asked at the end of each record alone, and what it says earlier means little.
        units (`dict[str, str]`, *optional*): Units of variables and static columns, where they are known, as reports
            name them. They say what values must be in; nothing is converted.
    """

    model_input_names = [  # noqa: RUF012 - transformers' own convention
        *("values", "times", "variable_ids", "attention_mask", "value_mask", "static_values"),
        *("prediction_times", "prediction_mask"),
    ]

    def __init__(
        self,
        variables: Sequence[str] = (),
        value_ranges: Sequence[Sequence[float]] = (),
        value_medians: Sequence[float | None] = (),
        value_means: Sequence[float] = (),
        value_deviations: Sequence[float] = (),
        static_columns: Sequence[Mapping] = (),
        time_scale: float = 1.0,
        unknown_variables: Literal["error", "ignore"] = "error",
        max_events: int | None = None,
        trained_hours: Sequence[float] | None = None,
        units: Mapping[str, str] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if isinstance(variables, str):
            raise ValueError(f"variables must be a list of names, got {variables!r}")
        self.variables = list(variables)
        self.value_ranges = [list(bounds) for bounds in value_ranges]
        self.value_medians = list(value_medians)
        self.value_means = list(value_means)
        self.value_deviations = list(value_deviations)
        self.static_columns: list[dict] = list(static_columns)  # type: ignore[arg-type]  # once they are checked
        self.time_scale = time_scale
        self.unknown_variables = unknown_variables
        self.max_events = max_events
        self.trained_hours: list[float] | None = trained_hours  # type: ignore[assignment]  # once it is checked
        self.units: dict[str, str] = {} if units is None else units  # type: ignore[assignment]  # the same
        self._check()
        self.static_columns = [dict(column) for column in static_columns]
        self.trained_hours = None if trained_hours is None else [float(hour) for hour in trained_hours]
        self.units = dict(self.units)

    def _check(self):
        """Raises ValueError for what cannot be, or would turn values into NaN or upside down."""
        _check_names("variables", self.variables)
        for name in ("value_ranges", "value_medians", "value_means", "value_deviations"):
            if len(getattr(self, name)) != len(self.variables):
                raise ValueError(
                    f"{name} must have one entry per variable ({len(self.variables)}): {len(getattr(self, name))}"
                )
        for at, variable in enumerate(self.variables):
            statistics = (self.value_ranges[at], self.value_medians[at], self.value_means[at])
            check_statistics("value_", repr(variable), *statistics, self.value_deviations[at])
        _check_static_columns(self.static_columns)
        if self.unknown_variables not in ("error", "ignore"):
            raise ValueError(f"unknown_variables must be 'error' or 'ignore', got {self.unknown_variables!r}")
        if not is_finite(self.time_scale) or self.time_scale <= 0:
            raise ValueError(f"time_scale must be positive, got {self.time_scale!r}")
        if self.max_events is not None:
            check_count("max_events", self.max_events)
        hours = self.trained_hours
        if hours is not None and not (
            is_listlike(hours) and len(hours) == 2 and all(map(is_finite, hours)) and 0 <= hours[0] <= hours[1]
        ):
            raise ValueError(f"trained_hours must be a first and a last hour, got {hours!r}")
        if not isinstance(self.units, Mapping) or not all(isinstance(unit, str) for unit in self.units.values()):
            raise ValueError(f"units must map names to text, got {self.units!r}")
        named = {*self.variables, *(column["name"] for column in self.static_columns)}
        if unnamed := [name for name in self.units if name not in named]:
            raise ValueError(f"units must name variables or static columns, got {unnamed[0]!r}")

    @classmethod
    def fit(
        cls,
        records: Any,
        variables: Sequence[str],
        static: Any = None,
        categorical_columns: Mapping[str, Sequence[str]] | None = None,
        numeric_columns: Sequence[str] = (),
        **kwargs,
    ) -> "HyMaTEFeatureExtractor":
        """Learns the preprocessing from training records.

        Args:
            records: `Events`, or anything `__call__` takes.
            variables: names of all variables, in the order of their ids.
            static: as in `__call__`.
            categorical_columns: static columns that hold a category, with their categories.
            numeric_columns: static columns that hold a number.
            kwargs: further arguments of the constructor.

        Raises:
            ValueError: for bad records, see `__call__`.
        """
        categorical_columns = dict(categorical_columns or {})
        if not isinstance(records, Events):
            names = (*numeric_columns, *categorical_columns)
            records = parse_events(records, variables, static, names, kwargs.get("unknown_variables", "error"))
        statistics: dict[str, Any] = fit_values(records.variable_ids, records.values, len(variables))
        columns: list[dict] = []
        for name in numeric_columns:
            numbers = _static_numbers(records.static[name], name)
            counted = Counted().add(numbers[~np.isnan(numbers)])
            low, high, _, mean, deviation = fit_variable(counted, allow_log=False)
            columns.append({"name": name, "range": [low, high], "mean": mean, "deviation": deviation})
            if (quantiles := fit_quantiles(counted, low, high)) is not None:
                columns[-1]["quantiles"] = quantiles
        columns += [
            {"name": name, "categories": [str(category) for category in found]}
            for name, found in categorical_columns.items()
        ]
        scale = fit_time_scale(records.times)
        return cls(variables, **statistics, static_columns=columns, time_scale=scale, **kwargs)

    @property
    def num_variables(self) -> int:
        return len(self.variables)

    @property
    def static_feature_names(self) -> list[str]:
        """Name of each column of `static_values`."""
        names = []
        for column in self.static_columns:
            name = column["name"]
            names += [f"{name}={category}" for category in column["categories"]] if "categories" in column else [name]
            names.append(f"{name} missing")
        return names

    def __call__(
        self,
        records: Any,
        static: Any = None,
        max_events: int | None = None,
        return_tensors: Literal["pt", "np"] = "pt",
        prediction_times: Sequence | np.ndarray | None = None,
    ) -> BatchFeature:
        """Encodes one record or many.

        Args:
            records: a long-format pandas or polars frame (`time` in hours, `variable`, `value`, and `record_id`
                unless it is one record), one record as a dict of lists, rows or a slice of a prepared data set, or a
                list of single records; see `parse_events`.
            static: static columns where `records` does not hold them: a frame or dict, with `record_id` or in the
                order of the records.
            max_events: keep the latest events of longer records; the feature extractor's own `max_events` by default.
            return_tensors: `"pt"` or `"np"`.
            prediction_times: hours at which the records are asked, in any order: one list for all records, or one list
                for each, in the order in which they come back. Events after a record's last are left out. Times of
                events and predictions are compared in float32, as the model does.

        Returns:
            The arguments of a model's `forward`: `values`, `times`, `variable_ids`, `attention_mask`, `value_mask`,
            all `(batch, length)`; `static_values` `(batch, num_static_features)` where there are any; with prediction
            times `prediction_times` `(batch, predictions)`, and where their number differs `prediction_mask`. Records
            come in the order of their first event in `records`.

        Raises:
            ValueError: for a missing column, an unknown variable, a value that is no number, a time that is negative
                or no number, an unknown category, and without prediction times a record without events; the message
                names what and where.
        """
        events = self.parse(records, static, allow_empty=prediction_times is not None)
        if prediction_times is not None:
            events = self.until(events, prediction_times)
        return self.encode(self.shorten(events, max_events), return_tensors, prediction_times)

    def until(self, events: Events, prediction_times: Sequence | np.ndarray) -> Events:
        """The events at or before each record's last prediction time; argument as in `__call__`."""
        hours, mask = self.parse_prediction_times(prediction_times, events.record_ids)
        last = hours.max(1, where=mask, initial=0).astype(np.float32)
        return events.select(events.times.astype(np.float32) <= last[events.rows])

    def parse_prediction_times(
        self, prediction_times: Sequence | np.ndarray, record_ids: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hours at which each record is asked, padded with 0, and which are real, both `(records, predictions)`;
        argument as in `__call__`.

        Raises:
            ValueError: for another number of lists than records, an empty list, and a time that is negative or no
                finite number.
        """
        if not is_listlike(prediction_times):
            raise ValueError(f"prediction_times must be a list of hours, got {prediction_times!r}")
        given = list(prediction_times)
        nested = [isinstance(item, Sequence | np.ndarray) and not isinstance(item, str) for item in given]
        if any(nested) and len(given) != len(record_ids):
            raise ValueError(
                f"prediction_times must be one list of hours, or one for each of the {len(record_ids)} records: "
                f"got {len(given)}"
            )
        lists = given if any(nested) else [given] * len(record_ids)
        asked = [
            parse_hours(hours, f"prediction_times of record {record_id!r}")
            for record_id, hours in zip(record_ids, lists, strict=True)
        ]
        lengths = np.array([len(hours) for hours in asked])
        mask = np.arange(lengths.max()) < lengths[:, None]
        times = np.zeros(mask.shape)
        times[mask] = np.concatenate(asked)
        return times, mask

    def shorten(self, events: Events, max_events: int | None = None) -> Events:
        """The latest events of longer records: `max_events`, or as many as the feature extractor says."""
        limit = self.max_events if max_events is None else max_events
        return events if limit is None else events.latest(limit)

    def parse(self, records: Any, static: Any = None, allow_empty: bool = False) -> Events:
        """Reads and checks records, still in clinical units; arguments as in `__call__`. `allow_empty` accepts records
        without events, of which a model can speak at a prediction time."""
        names = [column["name"] for column in self.static_columns]
        events = parse_events(records, self.variables, static, names, self.unknown_variables, allow_empty)
        if events.ignored:
            logger.warning(
                "dropped %d events of %d unknown variables: %s",
                events.ignored.total(),
                len(events.ignored),
                ", ".join(name for name, _ in events.ignored.most_common(5)),
            )
        return events

    def encode(
        self,
        events: Events,
        return_tensors: Literal["pt", "np"] = "pt",
        prediction_times: Sequence | np.ndarray | None = None,
    ) -> BatchFeature:
        """Standardizes and pads events that were already read; see `__call__` for arguments and what comes back."""
        if return_tensors not in ("pt", "np"):
            raise ValueError(f"return_tensors must be 'pt' or 'np', got {return_tensors!r}")
        features = self.encode_events(events)
        if self.static_columns:
            features["static_values"] = self.encode_static(events.static, len(events))
        if prediction_times is not None:
            hours, real = self.parse_prediction_times(prediction_times, events.record_ids)
            features["prediction_times"] = (hours / self.time_scale).astype(np.float32)
            if not real.all():
                features["prediction_mask"] = real
        ordered = {name: features[name] for name in self.model_input_names if name in features}
        if return_tensors == "pt":
            return BatchFeature({name: torch.from_numpy(array) for name, array in ordered.items()})
        return BatchFeature(ordered)

    def encode_events(self, events: Events) -> dict[str, np.ndarray]:
        """What `encode` says of the events alone: `values`, `times`, `variable_ids`, `attention_mask` and
        `value_mask`, all `(batch, length)`."""
        standardized = self.standardize(events.variable_ids, events.values)
        has_value = ~np.isnan(standardized)
        lengths = events.lengths
        mask = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
        columns = {
            "values": np.where(has_value, standardized, 0).astype(np.float32),
            "times": (events.times / self.time_scale).astype(np.float32),
            "variable_ids": events.variable_ids.astype(np.int64),
            "value_mask": has_value,
        }
        features: dict[str, np.ndarray] = {"attention_mask": mask}
        places = np.flatnonzero(mask)  # found once for all columns
        for name, column in columns.items():
            features[name] = np.zeros(mask.shape, column.dtype)
            features[name].ravel()[places] = column
        return features

    def pad(self, features: Sequence[Mapping[str, Any]], return_tensors: Literal["pt", "np"] = "pt") -> BatchFeature:
        """Batches what was encoded apart.

        Args:
            features: what `__call__` or `encode` returned, for one record or more each; or single rows of that,
                without the dimension of the batch. Other entries, such as `labels`, are batched as they are.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            One batch, in the order of `features`, padded to the longest record and the most prediction times.

        Raises:
            ValueError: if there are none, or if they do not have the same entries.
        """
        if return_tensors not in ("pt", "np"):
            raise ValueError(f"return_tensors must be 'pt' or 'np', got {return_tensors!r}")
        if not len(features):
            raise ValueError("features is empty: hand over at least one encoded record")
        rows = [_as_batch(item) for item in features]
        names = [name for name in rows[0] if any(name in row for row in rows)]
        for row in rows:
            if set(row) != set(names):
                odd = sorted(set(row) ^ set(names))[0]
                raise ValueError(f"features must all have the same entries, but {odd!r} is in some of them alone")
        padded = {name: _stack([row[name] for row in rows]) for name in names}
        if "prediction_mask" in padded and padded["prediction_mask"].all():
            del padded["prediction_mask"]
        ordered = {name: padded.pop(name) for name in self.model_input_names if name in padded} | padded
        if return_tensors == "pt":
            return BatchFeature({name: torch.from_numpy(array) for name, array in ordered.items()})
        return BatchFeature(ordered)

    def standardize(self, variable_ids: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Values in clinical units -> standardized; both arrays of one shape; NaN stays NaN."""
        low, high, median, mean, deviation = np.take(self._tables, variable_ids, axis=1)
        scaled = np.clip(values, low, high)
        np.log1p((scaled - low) / (median - low), out=scaled, where=~np.isnan(median))
        return (scaled - mean) / deviation

    def destandardize(self, variable_ids: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Standardized values -> clinical units, the inverse of `standardize` inside the clipping range."""
        low, high, median, mean, deviation = self._tables[:, variable_ids]
        raw = values * deviation + mean
        with np.errstate(invalid="ignore", over="ignore"):
            raw = np.where(np.isnan(median), raw, low + np.expm1(raw) * (median - low))
        return np.clip(raw, low, high)

    def decode(self, features: Mapping[str, Any]) -> list[dict[str, list]]:
        """Encoded features -> one dict of lists a record: `time` in hours, `variable` names, `value` in clinical
        units, None where the event carries no number. Padding is left out."""
        arrays = {name: np.asarray(features[name]) for name in self.model_input_names if name in features}
        values = self.destandardize(arrays["variable_ids"], arrays["values"].astype(np.float64))
        mask = arrays.get("attention_mask", np.ones(values.shape, dtype=bool)).astype(bool)
        has_value = arrays.get("value_mask", ~np.isnan(arrays["values"])).astype(bool)
        times = arrays["times"].astype(np.float64) * self.time_scale
        return [
            {
                "time": times[row][keep].tolist(),
                "variable": [self.variables[index] for index in arrays["variable_ids"][row][keep]],
                "value": [
                    value if known else None
                    for value, known in zip(values[row][keep].tolist(), has_value[row][keep], strict=True)
                ],
            }
            for row, keep in enumerate(mask)
        ]

    def encode_static(self, static: Mapping[str, np.ndarray], num_records: int) -> np.ndarray:
        """Static columns in clinical units -> `(num_records, num_static_features)`.

        Raises:
            ValueError: for a number that is none, and for a category that `fit` was not told of.
        """
        features: list[np.ndarray] = [np.zeros((num_records, 0))]
        for column in self.static_columns:
            name = column["name"]
            found = static.get(name, np.full(num_records, None, object))
            if "categories" in column:
                positions = _category_positions(found, column["categories"], name)
                missing = positions < 0
                features.append(positions[:, None] == np.arange(len(column["categories"])))
            else:
                numbers = _static_numbers(found, name)
                missing = np.isnan(numbers)
                features.append(np.where(missing, 0, standardize_static(numbers, column))[:, None])
            features.append(missing[:, None])
        return np.concatenate(features, axis=1).astype(np.float32)

    def count_outside(self, events: Events) -> dict[str, tuple[int, int]]:
        """Of each variable and numeric static column with any number in `events`: how many of its numbers lie outside
        the range that they are clipped to, and how many numbers it has."""
        low, high, *_ = self._tables
        ids, values = events.variable_ids, events.values
        known = np.bincount(ids[~np.isnan(values)], minlength=self.num_variables)
        outside = np.bincount(ids[(values < low[ids]) | (values > high[ids])], minlength=self.num_variables)
        counts = dict(zip(self.variables, zip(outside.tolist(), known.tolist(), strict=True), strict=True))
        for column in self.static_columns:
            if "range" in column:
                numbers = _static_numbers(events.static[column["name"]], column["name"])
                beyond = (numbers < column["range"][0]) | (numbers > column["range"][1])
                counts[column["name"]] = int(beyond.sum()), int((~np.isnan(numbers)).sum())
        return {name: both for name, both in counts.items() if both[1]}

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; the folder opens with `AutoFeatureExtractor` and with `AutoProcessor`.

        Raises:
            ValueError: if an attribute was set to what the constructor refuses.
        """
        self._check()
        self.auto_map = dict(AUTO_MAP)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "_tables"}

    @cached_property
    def _tables(self) -> np.ndarray:
        """Low, high, median (NaN: no logarithm), mean and deviation of each variable, (5, variables)."""
        ranges = np.array(self.value_ranges, dtype=np.float64).reshape(-1, 2)
        medians = np.array([np.nan if median is None else median for median in self.value_medians], dtype=np.float64)
        return np.stack(
            [*ranges.T, medians, np.array(self.value_means, float), np.array(self.value_deviations, float)]
        )


def _check_names(what: str, names: Sequence[Any]):
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{what} must be names, got {name!r}")
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"{what} must not repeat a name, but {repeated[0]!r} occurs again")


def _check_static_columns(columns: Sequence[Any]):
    for column in columns:
        if not isinstance(column, Mapping) or "name" not in column:
            raise ValueError(f"static_columns must each be a dict with a name, got {column!r}")
    _check_names("static_columns", [column["name"] for column in columns])
    for column in columns:
        what = f"static column {column['name']!r}"
        if "categories" in column:
            _check_names(f"categories of {what}", column["categories"])
        elif missing := [name for name in ("range", "mean", "deviation") if name not in column]:
            raise ValueError(f"{what} must have categories, or a range, a mean and a deviation; it lacks {missing[0]}")
        else:
            check_statistics("", what, column["range"], None, column["mean"], column["deviation"])
            check_quantiles(what, column.get("quantiles"))


def _as_batch(features: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Encoded records as arrays with the dimension of the batch, and with all masks."""
    arrays = {name: np.asarray(item) for name, item in features.items()}
    if "values" not in arrays:
        raise ValueError("features must hold 'values', as the feature extractor returns them")
    if arrays["values"].ndim == 1:
        arrays = {name: array[None] for name, array in arrays.items()}
    arrays.setdefault("attention_mask", np.ones(arrays["values"].shape, dtype=bool))
    if "prediction_times" in arrays:
        arrays.setdefault("prediction_mask", np.ones(arrays["prediction_times"].shape, dtype=bool))
    return arrays


def _stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays one after the other along the first dimension, the others filled up with zeros at the end."""
    shape = np.max([part.shape[1:] for part in parts], axis=0).astype(int)
    return np.concatenate(
        [
            np.pad(part, [(0, 0), *((0, size - own) for size, own in zip(shape, part.shape[1:], strict=True))])
            for part in parts
        ]
    )


def _category_positions(column: np.ndarray, categories: Sequence[str], name: str) -> np.ndarray:
    """Index of each item among the categories; -1 where it is missing."""
    index = {category: position for position, category in enumerate(categories) if category != ""}
    positions = np.array([index.get(item, -1) if isinstance(item, str) else -1 for item in column], dtype=np.int64)
    for row in np.flatnonzero(positions < 0):  # missing, or something whose text is a category
        if is_missing(column[row]) or column[row] == "":
            continue
        if str(column[row]) not in index:
            known = ", ".join(map(repr, index))
            raise ValueError(f"static column {name!r}: {column[row]!r} is not one of {known}")
        positions[row] = index[str(column[row])]
    return positions


def _static_numbers(column: np.ndarray, name: str) -> np.ndarray:
    if column.dtype.kind == "f":
        numbers = column.astype(np.float64)
    else:
        try:
            numbers = np.array([as_number(item) for item in column], dtype=np.float64)
        except ValueError:
            raise ValueError(f"static column {name!r} must hold numbers, got {list(column[:3])}") from None
    if np.isinf(numbers).any():
        raise ValueError(f"static column {name!r} must hold finite numbers, or missing ones")
    return numbers


__all__ = ["HyMaTEFeatureExtractor"]

"""A prepared folder of any source -> the same records by concepts: one mechanism for all readers.

The variables of a folder are renamed and converted by rules, which come from the vocabulary (for sources it knows) or
from a map that a person has checked (`read_map`). Variables without a rule are kept out and counted by name, values
outside a concept's plausible range are dropped and counted, and a variable most of whose values lie outside it is
refused: its unit is another.
"""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hymate_training.concepts.vocabulary import LOINC, Concept, Conversion, Vocabulary, load_vocabulary
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS, DatasetInfo, StaticColumn, task_path
from hymate_training.data.writer import PreparedFolderWriter, nest_events

MAP_COLUMNS = ("variable", "unit", "concept", "factor", "confidence", "reason")
MAP_SCHEMA = dict.fromkeys(("variable", "unit", "concept"), pl.String) | dict.fromkeys(
    ("factor", "offset"), pl.Float64
)
OUTSIDE_SHARE = 0.2  # of a variable's values outside the plausible range, above which its unit is not believed
FEWEST_VALUES = 10  # of a variable, below which nothing is said of its unit
SAMPLE = 10_000  # values of a variable that a message is made from
LISTED_DRUG = re.compile(r"^(drug|medication)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Rule:
    """A variable's concept and what brings its values to the concept's unit."""

    concept: Concept
    conversion: Conversion = field(default_factory=Conversion)


Rules = Mapping[str, Rule]  # variable or static column of a folder -> its rule


def with_concepts(
    prepare: Callable[[Path], DatasetInfo | None],
    output: str | Path,
    rules_of: Callable[[DatasetInfo], Rules],
    *,
    overwrite: bool = False,
) -> DatasetInfo:
    """Prepare a source beside `output`, and write its records by concepts to `output`.

    Args:
        prepare: writes a prepared folder to the path it is given.
        output: the prepared folder to make.
        rules_of: the rules for what was prepared.
        overwrite: replace an existing prepared folder.

    Raises:
        ValueError: as `prepare` and `apply_concepts` do, or if `output` may not be replaced.
    """
    output = Path(output).absolute()
    writer = PreparedFolderWriter(output, overwrite=overwrite)  # refuses before the work
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.source-") as scratch:
        by_source = Path(scratch) / "prepared"
        prepare(by_source)
        folder = PreparedFolder(by_source)
        return apply_concepts(folder, writer, rules_of(folder.info))


# ------------------------------------------------------------------------------------------------------------- rules


def rules_from_vocabulary(info: DatasetInfo, source: str, vocabulary: Vocabulary | None = None) -> Rules:
    """The rules for a folder that the reader of `source` made.

    A variable is known by its code in the source (`info.extra["codes"]`) where the reader kept one, else by its name.
    A unit that the vocabulary states wins over the reader's (`info.extra["units"]`).

    Raises:
        ValueError: if no variable of the folder is in the vocabulary.
    """
    vocabulary = vocabulary or load_vocabulary()
    known = vocabulary.variables_of(source)
    codes, units = info.extra.get("codes", {}), info.extra.get("units", {})
    rules = {}
    for name in (*info.variables, *(column.name for column in info.static_columns)):
        if (rule := _vocabulary_rule(codes.get(name, name), units.get(name), known, vocabulary)) is not None:
            rules[name] = rule
    if not rules:
        raise ValueError(
            f"none of the {len(info.variables)} variables of {info.source} is in the vocabulary of concepts; "
            "`hymate concepts suggest` proposes a map for tables of your own"
        )
    return rules


def map_from_vocabulary(keys: Iterable[tuple[str, str]], source: str) -> pl.DataFrame:
    """A map, as `read_map` returns it, of codes of a source in their units (empty where there is none)."""
    vocabulary = load_vocabulary()
    known = vocabulary.variables_of(source)
    rows = []
    for code, unit in keys:
        if (rule := _vocabulary_rule(code, unit, known, vocabulary)) is not None:
            rows.append((code, unit, rule.concept.name, rule.conversion.factor, rule.conversion.offset))
    return pl.DataFrame(rows, schema=MAP_SCHEMA, orient="row")


def _vocabulary_rule(
    code: str, unit: str | None, known: Mapping[str, tuple[Concept, str | float | None]], vocabulary: Vocabulary
) -> Rule | None:
    """The rule of a source's code in a unit; None if no concept means it, or none in that unit."""
    found = _find(code, known, vocabulary)
    if found is None:
        return None
    concept, stated = found
    if isinstance(stated, int | float):
        return Rule(concept, Conversion(float(stated)))
    conversion = vocabulary.conversion(concept, stated or unit)
    return None if conversion is None else Rule(concept, conversion)


def _find(
    code: str, known: Mapping[str, tuple[Concept, str | float | None]], vocabulary: Vocabulary
) -> tuple[Concept, str | float | None] | None:
    """The concept of a source's code: the code itself, a part of it (`LAB//50912//mg/dL`), its LOINC code, or, of a
    drug, an ingredient in its name."""
    parts = [part for part in re.split(r"//|\|", code) if part]
    for candidate in (code, *parts):
        if candidate in known:
            concept, stated = known[candidate]
            unit = parts[-1] if len(parts) > 1 and parts[-1] not in (candidate, "UNK") else None  # LAB//50912//mg/dL
            return concept, unit if stated is None else stated
    for candidate in LOINC.findall(code):
        if candidate in vocabulary.by_loinc:
            return vocabulary.by_loinc[candidate], None
    if LISTED_DRUG.match(code):
        words = set(re.findall(r"[a-z]+", code.lower()))
        for concept in vocabulary.concepts.values():
            if concept.group == "drugs" and any(name in words for name in concept.names):
                return concept, None
    return None


def read_map(path: str | Path, vocabulary: Vocabulary | None = None) -> pl.DataFrame:
    """A map of variables to concepts, as `hymate concepts suggest` proposes and a person edits it.

    Args:
        path: a CSV of `variable, unit, concept, factor` and any other columns. A row without a concept is kept out.
            `factor` multiplies values to the concept's unit; it may also be one of the units that the concept accepts,
            such as [degF], and is that of the row's unit where it is empty.
        vocabulary: the concepts; those of the package where absent.

    Returns:
        `variable, unit, concept, factor, offset`, a row per variable and unit (empty where there is none) with a
        concept.

    Raises:
        ValueError: naming the row that is wrong.
    """
    path, vocabulary = Path(path), vocabulary or load_vocabulary()
    if not path.is_file():
        raise ValueError(f"{path} does not exist; `hymate concepts suggest --output {path}` makes it")
    try:
        rows = pl.read_csv(path, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if missing := [name for name in MAP_COLUMNS[:4] if name not in rows.columns]:
        raise ValueError(f"{path} lacks the column {missing[0]!r}; it has {', '.join(rows.columns)}")
    rows = rows.select(pl.col(MAP_COLUMNS[:4]).str.strip_chars().fill_null(""))
    for column, problem in (("variable", rows["variable"] == ""), ("variable and unit", _twice(rows))):
        if problem.any():
            at = int(problem.arg_max() or 0)
            what = "is missing" if column == "variable" else "occur twice"
            raise ValueError(f"{path}: row {at + 1}: {column} {what}: {rows['variable'][at]!r}")
    found = []
    for number, (variable, unit, name, factor) in enumerate(rows.iter_rows(), start=1):
        if name:
            try:
                conversion = _stated_conversion(vocabulary[name], unit, factor, vocabulary)
            except ValueError as error:
                raise ValueError(f"{path}: row {number}: {variable!r}: {error}") from error
            found.append((variable, unit, name, conversion.factor, conversion.offset))
    if not found:
        raise ValueError(f"{path}: no row has a concept")
    return pl.DataFrame(found, schema=MAP_SCHEMA, orient="row")


def _twice(rows: pl.DataFrame) -> pl.Series:
    return rows.select("variable", "unit").is_duplicated()


def _stated_conversion(concept: Concept, unit: str, factor: str, vocabulary: Vocabulary) -> Conversion:
    if concept.unit is None:
        return Conversion()
    accepted = ", ".join(concept.conversions)
    if factor:
        try:
            number = float(factor)
        except ValueError:
            conversion = vocabulary.conversion(concept, factor)
            if conversion is None:
                raise ValueError(
                    f"factor {factor!r} is neither a number nor a unit of {concept.name}: {accepted}"
                ) from None
            return conversion
        if number == 0 or not math.isfinite(number):
            raise ValueError(f"factor must be a number other than 0, found {factor!r}")
        stated = vocabulary.conversion(concept, unit) if unit else None
        # a unit with an offset cannot be told by a factor: the number that stands for it carries the offset along
        offset = stated.offset if stated is not None and abs(stated.factor - number) < 1e-3 * abs(number) else 0.0
        return Conversion(number, offset)
    conversion = vocabulary.conversion(concept, unit)
    if conversion is None:
        raise ValueError(f"unit {unit!r} is not one of {concept.name}'s ({accepted}); give a factor")
    return conversion


def rules_from_map(info: DatasetInfo, rows: pl.DataFrame, vocabulary: Vocabulary | None = None) -> Rules:
    """The rules of a map, for a folder whose variables have the units `info.extra["units"]`.

    A row of a variable without a unit holds for whatever unit the variable has.

    Raises:
        ValueError: if the map fits no variable of the folder.
    """
    vocabulary = vocabulary or load_vocabulary()
    codes, units = info.extra.get("codes", {}), info.extra.get("units", {})
    rules = {}
    for name in (*info.variables, *(column.name for column in info.static_columns)):
        if (rule := _rule_of(codes.get(name, name), units.get(name, ""), rows, vocabulary)) is not None:
            rules[name] = rule
    if not rules:
        raise ValueError(f"the map fits none of the {len(info.variables)} variables of {info.source}")
    return rules


def _rule_of(variable: str, unit: str, rows: pl.DataFrame, vocabulary: Vocabulary) -> Rule | None:
    """The rule that a map has for a variable in a unit."""
    own = {other: rest for name, other, *rest in rows.iter_rows() if name == variable}
    found = own.get(unit) or own.get("")
    if found is None and not unit and len(own) == 1:  # the map says in which unit a table without units is
        found = next(iter(own.values()))
    return None if found is None else Rule(vocabulary[found[0]], Conversion(*found[1:]))


# -------------------------------------------------------------------------------------------------------- new records


def map_events(events: pl.DataFrame, rows: pl.DataFrame, known: Collection[str]) -> tuple[pl.DataFrame, Counter[str]]:
    """New events by concepts, as those were that a model was trained on.

    Args:
        events: record_id, time, variable, value, unit.
        rows: a map, as `read_map` returns it.
        known: variables that stay as they are, where the map does not have them.

    Returns:
        record_id, time, variable, value of the events of concepts and known variables, and how many events of each
        other variable there were, and of each concept outside its plausible range.
    """
    vocabulary, left = load_vocabulary(), Counter[str]()
    parts = []
    keyed = events.with_columns(pl.col("unit").fill_null(""))
    for (variable, unit), part in keyed.partition_by("variable", "unit", as_dict=True, maintain_order=True).items():
        rule = _rule_of(variable, unit, rows, vocabulary)
        if rule is None:
            if variable in known:
                parts.append(part)
            else:
                left[f"events of {variable!r}, which no concept means"] += part.height
            continue
        concept, value = rule.concept, rule.conversion.apply(part["value"].cast(pl.Float64).to_numpy())
        converted = part.with_columns(
            variable=pl.lit(concept.name), value=pl.Series(value).fill_nan(None) if concept.kind == "number" else None
        )
        believed = converted.filter(pl.col("value").is_null() | pl.col("value").is_between(concept.low, concept.high))
        left[f"values of {variable!r} outside the plausible range of {concept.name}"] += part.height - believed.height
        parts.append(believed)
    columns = ["record_id", "time", "variable", "value"]
    mapped = pl.concat([part.select(columns) for part in parts], how="vertical_relaxed") if parts else None
    return events.select(columns).clear() if mapped is None else mapped, +left


def map_static(static: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """A table of static columns by concepts: those that a map has are renamed and converted, others stay."""
    vocabulary = load_vocabulary()
    found = static
    for name in static.columns:
        rule = _rule_of(name, "", rows, vocabulary)
        if rule is None:
            continue
        column = static[name]
        if rule.concept.kind == "category":
            spelled = {text: key for key, texts in rule.concept.categories.items() for text in texts}
            text = column.cast(pl.String).str.to_lowercase().str.strip_chars()
            column = text.replace_strict(spelled, default=None, return_dtype=pl.String)
        elif column.dtype.is_numeric():
            column = column.cast(pl.Float64) * rule.conversion.factor + rule.conversion.offset
        found = found.drop(name).with_columns(column.alias(rule.concept.name))
    return found


# --------------------------------------------------------------------------------------------------------- the folder


def apply_concepts(folder: PreparedFolder, writer: PreparedFolderWriter, rules: Rules) -> DatasetInfo:
    """Write the records of a prepared folder by concepts.

    Args:
        folder: what a reader prepared.
        writer: of the folder to make.
        rules: variable or static column -> its concept; what has none is kept out and counted.

    Returns:
        What was written. `dropped` counts what was kept out by reason, `extra["concepts"]` holds the vocabulary's
        fingerprint, the map that was applied, and the events of each variable without a concept.

    Raises:
        ValueError: naming the variable whose values do not fit its concept's plausible range, or if nothing is left.
    """
    info = folder.info
    _check_ranges(folder, rules)
    dropped: Counter[str] = Counter(info.dropped)
    table, concepts = _rule_table(info, rules)
    columns = _static_columns(info, rules)
    seen: Counter[str] = Counter()  # variable -> its events, by number
    kept_records: dict[str, pl.DataFrame] = {}
    with writer:
        for split in SPLITS:
            begun = []
            for shard in _shards(folder, split):
                events = shard.select("record_id", "time", "variable", "value").explode("time", "variable", "value")
                counts = events.group_by("variable").len()
                seen.update({info.variables[index]: count for index, count in counts.iter_rows()})
                converted = _convert(events, table, dropped)
                static = shard.select("record_id", *_static_values(info, columns, rules, dropped, shard))
                if converted.height:
                    writer.write_records(split, nest_events(converted, static))
                    begun.append(converted.group_by("record_id").agg(first=pl.col("time").min()))
                dropped["records without an event of a concept"] += shard.height - converted["record_id"].n_unique()
            if begun:
                kept_records[split] = pl.concat(begun)
        _write_tasks(folder, writer, kept_records, dropped)
        unmapped = {name: seen[name] for name in info.variables if name not in rules and seen[name]}
        dropped["events of variables without a concept"] += sum(unmapped.values())
        described = _describe(info, rules, concepts, tuple(columns), unmapped, dropped)
        writer.finish(described)
    return described


def _shards(folder: PreparedFolder, split: str) -> Iterator[pl.DataFrame]:
    """The records of a split, one frame per shard."""
    for path in folder.shards(split):
        yield pl.read_parquet(path, glob=False)


def _rule_table(info: DatasetInfo, rules: Rules) -> tuple[pl.DataFrame, tuple[Concept, ...]]:
    """A row per variable with a concept: its number, the concept's, the conversion and what is believed; and the
    concepts in the vocabulary's order."""
    named = {name: rule.concept for name, rule in rules.items() if name in info.variables}
    used = {concept.name for concept in named.values() if concept.kind != "category"}
    concepts = tuple(concept for concept in load_vocabulary().concepts.values() if concept.name in used)
    position = {concept.name: index for index, concept in enumerate(concepts)}
    rows = [
        (
            index,
            position[rule.concept.name],
            rule.conversion.factor,
            rule.conversion.offset,
            rule.concept.low,
            rule.concept.high,
            rule.concept.kind == "number",
        )
        for index, name in enumerate(info.variables)
        if (rule := rules.get(name)) is not None and rule.concept.name in position
    ]
    kinds = {"variable": pl.Int32, "concept": pl.Int32} | dict.fromkeys(
        ("factor", "offset", "low", "high"), pl.Float64
    )
    return pl.DataFrame(rows, schema={**kinds, "numeric": pl.Boolean}, orient="row"), concepts


def _convert(events: pl.DataFrame, table: pl.DataFrame, dropped: Counter[str]) -> pl.DataFrame:
    """The events of concepts, `variable` the concept's number, in its unit."""
    value = pl.col("value").cast(pl.Float64) * pl.col("factor") + pl.col("offset")
    found = events.join(table, on="variable", how="inner", maintain_order="left")
    happened = found.filter(pl.col("numeric") | pl.col("value").ne_missing(0))
    dropped["events whose value 0 says that they did not happen"] += found.height - happened.height
    found = happened.with_columns(value=pl.when("numeric").then(value.cast(pl.Float32)))
    believed = found.filter(pl.col("value").is_null() | pl.col("value").is_between(_single("low"), _single("high")))
    dropped["values outside their concept's plausible range"] += found.height - believed.height
    return believed.select("record_id", "time", pl.col("concept").alias("variable"), "value")


def _single(bound: str) -> pl.Expr:
    return pl.col(bound).cast(pl.Float32)


def _check_ranges(folder: PreparedFolder, rules: Rules) -> None:
    """Refuses variables too many of whose values lie outside their concept's range."""
    info = folder.info
    table, _ = _rule_table(info, rules)
    counts: list[pl.DataFrame] = []
    samples: dict[int, np.ndarray] = {}
    for split in SPLITS:
        for shard in _shards(folder, split):
            events = shard.select("variable", "value").explode("variable", "value").drop_nulls("value")
            events = events.join(table.filter("numeric"), on="variable")
            value = pl.col("value").cast(pl.Float64) * pl.col("factor") + pl.col("offset")
            outside = ~value.cast(pl.Float32).is_between(_single("low"), _single("high"))
            found = events.group_by("variable").agg(pl.len(), outside.sum().alias("outside"))
            counts.append(found)
            for index in found.filter(~pl.col("variable").is_in(list(samples)))["variable"]:
                samples[index] = events.filter(pl.col("variable") == index)["value"].head(SAMPLE).to_numpy()
    if not counts:
        return
    for index, rows, outside in pl.concat(counts).group_by("variable").sum().sort("variable").iter_rows():
        if rows >= FEWEST_VALUES and outside / rows > OUTSIDE_SHARE:
            name = info.variables[index]
            unit = info.extra.get("units", {}).get(name, "")
            raise _misfit(name, unit, samples[index], outside / rows, rules[name])


def _misfit(name: str, unit: str, values: np.ndarray, outside: float, rule: Rule) -> ValueError:
    concept, conversion = rule.concept, rule.conversion
    fitting = [
        unit
        for unit, other in concept.conversions.items()
        if concept.share_inside(other.apply(values)) > 1 - OUTSIDE_SHARE
    ]
    hint = f"; {' or '.join(fitting)} would fit" if fitting else ""
    offset = f" and offset {conversion.offset:g}" if conversion.offset else ""
    return ValueError(
        f"variable {name!r}{f' in {unit}' if unit else ''}, median {np.median(values):g}, does not fit the concept "
        f"{concept.name}: with factor {conversion.factor:g}{offset}, {outside:.0%} of its values lie outside "
        f"{concept.low:g} to {concept.high:g} {concept.unit}{hint}"
    )


def _static_columns(info: DatasetInfo, rules: Rules) -> dict[str, StaticColumn]:
    """Static column of the folder -> the concept's; the first that means it."""
    columns: dict[str, StaticColumn] = {}
    taken = set()
    for column in info.static_columns:
        rule = rules.get(column.name)
        if rule is None or rule.concept.name in taken:
            continue
        if rule.concept.kind == "category" and column.kind == "categorical":
            columns[column.name] = StaticColumn(rule.concept.name, "categorical", tuple(rule.concept.categories))
        elif rule.concept.kind == "number" and column.kind == "numeric":
            columns[column.name] = StaticColumn(rule.concept.name, "numeric")
        else:
            continue
        taken.add(rule.concept.name)
    return columns


def _static_values(
    info: DatasetInfo,
    columns: Mapping[str, StaticColumn],
    rules: Rules,
    dropped: Counter[str],
    shard: pl.DataFrame,
) -> list[pl.Series]:
    found = []
    for name, column in columns.items():
        concept, conversion = rules[name].concept, rules[name].conversion
        given = shard[name]
        if column.kind == "numeric":
            values = given.cast(pl.Float64) * conversion.factor + conversion.offset
            kept = pl.select(pl.when(values.is_between(concept.low, concept.high)).then(values)).to_series()
        else:
            spelled = {text: key for key, texts in concept.categories.items() for text in texts}
            kept = (
                given.str.to_lowercase()
                .str.strip_chars()
                .replace_strict(spelled, default=None, return_dtype=pl.String)
            )
        dropped[f"{column.name} of a record that is not believed (made unknown)"] += (
            kept.null_count() - given.null_count()
        )
        found.append(kept.alias(column.name))
    return found


def _write_tasks(
    folder: PreparedFolder, writer: PreparedFolderWriter, kept: Mapping[str, pl.DataFrame], dropped: Counter[str]
) -> None:
    for task in folder.info.tasks:
        for split in SPLITS:
            if not task_path(folder.path, task.name, split).is_file():
                continue
            rows = pl.DataFrame(pl.from_arrow(folder.task(task.name, split)))
            if split in kept:
                begun = rows.join(kept[split], on="record_id", how="inner", maintain_order="left")
                asked = begun.filter(pl.col("first") <= pl.col("prediction_time")).drop("first")
            else:
                asked = rows.clear()
            dropped[f"predictions of {task.name} before the record's first event of a concept"] += (
                rows.height - asked.height
            )
            writer.write_task(task, split, asked)


def _map_of(info: DatasetInfo, rules: Rules) -> list[dict[str, Any]]:
    """The rules as rows of a map."""
    codes, units = info.extra.get("codes", {}), info.extra.get("units", {})
    return [
        {
            **{"variable": codes.get(name, name), "unit": units.get(name, ""), "concept": rule.concept.name},
            **{"factor": rule.conversion.factor, "offset": rule.conversion.offset},
        }
        for name, rule in rules.items()
    ]


def _describe(
    info: DatasetInfo,
    rules: Rules,
    concepts: tuple[Concept, ...],
    columns: tuple[str, ...],
    unmapped: Mapping[str, int],
    dropped: Counter[str],
) -> DatasetInfo:
    units = {concept.name: concept.unit for concept in concepts if concept.unit}
    static = _static_columns(info, rules)
    units |= {column.name: unit for name, column in static.items() if (unit := rules[name].concept.unit)}
    extra = {key: value for key, value in info.extra.items() if key not in ("codes", "units")}
    described = f"{extra.get('description', '')}\n\nVariables are concepts of the vocabulary of HyMaTE."
    extra["description"] = described.strip()
    return replace(
        info,
        variables=tuple(concept.name for concept in concepts),
        static_columns=tuple(static[name] for name in columns),
        dropped={reason: count for reason, count in dropped.items() if count},
        extra={
            **extra,
            "units": units,
            "concepts": {
                "vocabulary": load_vocabulary().fingerprint,
                "map": _map_of(info, rules),
                "unmapped": dict(unmapped),
                "unmapped_static": [c.name for c in info.static_columns if c.name not in static],
            },
        },
    )

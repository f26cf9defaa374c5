"""Items of MIMIC-III and MIMIC-IV: their names, the unit they are brought to, the values that are believed."""

from collections import Counter
from typing import NamedTuple

import polars as pl

from hymate_training.readers.store import EventStore

# a unit in lower case -> the unit it is brought to, factor and offset
UNITS = {
    "°f": ("°C", 5 / 9, -160 / 9),
    "lbs": ("kg", 0.45359237, 0.0),
    "lb": ("kg", 0.45359237, 0.0),
    "inch": ("cm", 2.54, 0.0),
    "in": ("cm", 2.54, 0.0),
    "mcg": ("mg", 1e-3, 0.0),
    "grams": ("mg", 1e3, 0.0),
    "gm": ("mg", 1e3, 0.0),
    "l": ("mL", 1e3, 0.0),
    "liters": ("mL", 1e3, 0.0),
    "mcg/hour": ("mg/hour", 1e-3, 0.0),
    "mcg/min": ("mg/hour", 0.06, 0.0),
    "mg/min": ("mg/hour", 60.0, 0.0),
    "grams/hour": ("mg/hour", 1e3, 0.0),
    "grams/min": ("mg/hour", 6e4, 0.0),
    "mcg/kg/hour": ("mcg/kg/min", 1 / 60, 0.0),
    "mg/kg/hour": ("mcg/kg/min", 1e3 / 60, 0.0),
    "mg/kg/min": ("mcg/kg/min", 1e3, 0.0),
    "units/min": ("units/hour", 60.0, 0.0),
    "meq/hour": ("mEq/hour", 1.0, 0.0),
    "hour": ("min", 60.0, 0.0),
    "day": ("min", 1440.0, 0.0),
    "log10 cop/ml": ("log10 copies/mL", 1.0, 0.0),
}
# items that are one variable in two units: item -> the item it joins; the unit is the item's, not always the row's
SAME_AS = {223761: 223762, 226531: 226512, 226707: 226730}
ITEM_UNITS = {223761: "°F", 223762: "°C", 226531: "lbs", 226512: "kg", 226707: "inch", 226730: "cm", 51249: "g/dL"}
PERCENTAGES = (223835, 50816)  # inspired oxygen, sometimes written as a fraction

# what is measured and its unit: items, lowest and highest value believed, after conversion of units. The bounds are
# ours and wide: what lies outside is an error of entry or of the device, not a sick patient.
PLAUSIBLE = {
    "heart rate, bpm": ((211, 220045), 0, 350),
    "systolic pressure, mmHg": ((51, 455, 6701, 220050, 220179, 225309, 227243, 224167), 0, 375),
    "diastolic pressure, mmHg": ((8368, 8441, 8555, 220051, 220180, 225310, 227242, 224643), 0, 375),
    "mean pressure, mmHg": ((52, 456, 6702, 220052, 220181, 225312), 0, 375),
    "central venous pressure, mmHg": ((113, 220074), -20, 100),
    "pulmonary artery pressure, mmHg": ((491, 492, 8448, 220059, 220060, 220061), 0, 200),
    "respiratory rate, 1/min": ((618, 615, 220210, 224690, 224689, 224688), 0, 150),
    "oxygen saturation, %": ((646, 220277, 220227, 50817, 223772), 0, 100),
    "temperature, °C": ((676, 223762, 50825), 14.2, 47),
    "inspired oxygen, %": ((223835, 50816), 20, 100),
    "weight, kg": ((762, 763, 226512, 224639, 226846), 0.5, 500),
    "height, cm": ((226730,), 30, 250),
    "Glasgow coma scale": ((184, 454, 723, 220739, 223900, 223901), 1, 6),
    "tidal volume, mL": ((682, 683, 684, 224684, 224685, 224686, 224421), 0, 3000),
    "minute volume, L/min": ((450, 224687), 0, 100),
    "airway pressure, cmH2O": ((444, 506, 535, 543, 220339, 224695, 224696, 224697, 224700), 0, 120),
    "intracranial pressure, mmHg": ((220765, 227989), -20, 150),
    "cardiac output, L/min": ((220088, 224842, 227543), 0, 30),
    "pH": ((220274, 223830, 50820), 6.3, 8.4),
    "gas pressure, mmHg": ((220224, 220235, 226062, 226063, 50818, 50821), 0, 800),
    "glucose, mg/dL": ((220621, 225664, 226537, 50809, 50931), 0, 3000),
    "sodium, mEq/L": ((220645, 226534, 50824, 50983), 70, 220),
    "potassium, mEq/L": ((227442, 227464, 50822, 50971), 0.5, 20),
    "chloride, mEq/L": ((220602, 226536, 50806, 50902), 50, 200),
    "bicarbonate, mEq/L": ((227443, 50803, 50882), 0, 80),
    "creatinine, mg/dL": ((220615, 50912), 0, 60),
    "urea nitrogen, mg/dL": ((225624, 51006), 0, 350),
    "lactate, mmol/L": ((225668, 50813), 0, 40),
    "haemoglobin, g/dL": ((220228, 50811, 51222), 0, 30),
    "haematocrit, %": ((220545, 50810, 51221), 0, 90),
    "white cells, K/uL": ((220546, 51301), 0, 1000),
    "platelets, K/uL": ((227457, 51265), 0, 3000),
    "bilirubin, mg/dL": ((225690, 50885), 0, 100),
}
BOUNDS = {
    item: (measure.rpartition(", ")[2].lower(), float(low), float(high))
    for measure, (items, low, high) in PLAUSIBLE.items()
    for item in items
}
OUTPUT_BOUND = 20_000.0  # mL in one entry
FILLER = 999_999


def name_items(charted: pl.DataFrame, measured: pl.DataFrame) -> pl.DataFrame:
    """d_items and d_labitems -> itemid, a name no other item has, and the unit d_items gives.

    The name is the label; items that share one get their category behind it, and if that does not tell them apart,
    their number.
    """
    charted = charted.with_columns(where=pl.col("category"))
    measured = measured.with_columns(where=pl.concat_str("fluid", "category", separator=", ", ignore_nulls=True))
    items = pl.concat([charted, measured], how="diagonal").with_columns(
        label=pl.col("label").str.strip_chars().fill_null("item"),
        unitname=pl.col("unitname").replace("None", None),
    )
    shared = pl.col("label").str.to_lowercase().is_duplicated()
    items = items.with_columns(name=pl.when(shared).then(pl.format("{} ({})", "label", "where")).otherwise("label"))
    shared = pl.col("name").str.to_lowercase().is_duplicated() | pl.col("name").is_null()
    numbered = pl.format("{} #{}", pl.coalesce("name", "label"), "itemid")
    return items.select("itemid", pl.when(shared).then(numbered).otherwise("name").alias("name"), "unitname")


class Variable(NamedTuple):
    """What a variable is: its unit ("" where there is none) and the item it comes from."""

    unit: str
    item: int


def resolve_variables(store: EventStore, items: pl.DataFrame) -> tuple[dict[str, Variable], pl.DataFrame]:
    """Every variable that occurs, by name; and how each key becomes one.

    The table has one row per key: `variable` (position among the names), `scale` and `offset` to the variable's unit,
    `low` and `high` (what is believed, in that unit) and `percentage` (a fraction is to be read as a percentage).
    """
    names = dict(items.select("itemid", "name").iter_rows())
    given = dict(items.select("itemid", "unitname").drop_nulls().iter_rows())
    charted: dict[tuple, Counter] = {}  # (table, part, item) -> its units, by number of rows
    for key, (source, part, item, unit) in enumerate(store.keys):
        if unit is not None:
            charted.setdefault((source, part, item), Counter())[unit] += store.rows[key]

    resolved: dict[int, tuple] = {}  # key -> (table, part, item), unit, factor, offset
    for key, (source, part, item, unit) in enumerate(store.keys):
        usual = charted.get((source, part, item))
        written = unit or (usual.most_common(1)[0][0] if usual else given.get(item) if part == "" else None)
        written = ITEM_UNITS.get(item, written)
        resolved[key] = (source, part, SAME_AS.get(item, item)), *UNITS.get(_fold(written), (written, 1.0, 0.0))

    spellings: dict[tuple, Counter] = {}  # mg/dL and mg/dl are one unit; the commoner spelling names it
    for key, (variable, unit, *_) in resolved.items():
        spellings.setdefault((variable, _fold(unit)), Counter())[unit] += store.rows[key]
    number_of_units = Counter(variable for variable, _ in spellings)

    rows, variables = [], {}
    for key, (variable, unit, factor, offset) in resolved.items():
        source, part, item = variable
        spelled = spellings[variable, _fold(unit)].most_common(1)[0][0]
        name = f"{names.get(item, f'item #{item}')}{part}"
        if number_of_units[variable] > 1:
            name += f" [{spelled or 'no unit'}]"
        variables[name] = Variable(spelled or "", item)
        low, high = _bounds(source, item, spelled if number_of_units[variable] > 1 else None)
        rows.append((key, name, factor, offset, low, high, item in PERCENTAGES))
    position = {name: index for index, name in enumerate(sorted(variables))}
    table = pl.DataFrame(
        [(key, position[name], *rest) for key, name, *rest in rows],
        schema={
            "key": pl.UInt32,
            "variable": pl.Int32,
            "scale": pl.Float64,
            "offset": pl.Float64,
            "low": pl.Float64,
            "high": pl.Float64,
            "percentage": pl.Boolean,
        },
        orient="row",
    )
    return {name: variables[name] for name in position}, table


def convert(events: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """Events with a `key` that `table` knows: `variable` and the value in its unit (null: none), if plausible."""
    value = pl.col("value").cast(pl.Float64)
    value = pl.when(pl.col("percentage") & (value > 0) & (value <= 1)).then(value * 100).otherwise(value)
    converted = events.join(table, on="key").with_columns(
        value=(value * pl.col("scale") + pl.col("offset")).fill_nan(None)
    )
    believed = pl.col("value").is_null() | pl.col("value").is_between("low", "high")
    return converted.filter(believed).select("record", "seconds", "variable", "value")


def _fold(unit: str | None) -> str:
    return (unit or "").lower()


def _bounds(source: str, item: int, unit: str | None) -> tuple[float, float]:
    """Lowest and highest value believed; `unit` where the item has several, for `PLAUSIBLE` speaks of one of them."""
    if source in ("chartevents", "labevents"):
        stated, low, high = BOUNDS.get(item, (None, 1.0 - FILLER, FILLER - 1.0))
        return (low, high) if unit is None or _fold(unit) == stated else (1.0 - FILLER, FILLER - 1.0)
    return 0.0, OUTPUT_BOUND if source == "outputevents" else FILLER - 1.0

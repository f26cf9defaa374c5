"""Simulated ICU stays: irregular, sparse, missing not at random, and with known drivers of every outcome.

Each variable follows a latent process on an hourly grid: a level of the stay, a slow autocorrelated course around it,
for vital signs a circadian wave, and for a few variables a mild share in another one's course. Blood samples and
vital signs are taken in panels, so several events share a time stamp; sicker stays are sampled more often, and some
tests are only ordered when something is wrong. Outcomes depend on the latent courses of a few variables over known
hours (`OUTCOME_DRIVERS`) and on nothing else, so what a model attends to can be held against the truth, and the risk
that generated the outcomes gives the best AUROC any model could reach.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from hymate_training.data.schema import SPLITS, SURVIVAL_COLUMNS, DatasetInfo, StaticColumn, TaskInfo
from hymate_training.data.splits import split_at_random
from hymate_training.data.writer import PreparedFolderWriter, nest_events

HOURS = 48
LEVEL_SHARE = 0.35  # of a course's variance that stays the same throughout the stay
AUTOCORRELATION = 0.94  # of the rest, from one hour to the next
BLOCK = 4096  # stays simulated at a time, so that memory does not grow with their number
SPLIT = {"train": 0.70, "validation": 0.15, "test": 0.15}


@dataclass(frozen=True)
class Variable:
    """A measured variable: its distribution in clinical units and the panel it is measured with.

    `log` variables are log-normal with median `center` and `spread` on the log scale; the others normal. `noise` is
    the measurement's, as a share of `spread`; `shares` gives the weight of another variable's course in this one's.
    """

    unit: str
    center: float
    spread: float
    low: float
    high: float
    decimals: int
    panel: str
    log: bool = False
    noise: float = 0.25
    circadian: float = 0.0
    shares: tuple[str, float] | None = None


VARIABLES = {
    "heart_rate": Variable("bpm", 86, 15, 35, 190, 0, "monitor", circadian=0.3, shares=("lactate", 0.25)),
    "mean_arterial_pressure": Variable("mmHg", 79, 11, 35, 140, 0, "monitor", circadian=0.2),
    "respiratory_rate": Variable("breaths/min", 19, 4.5, 6, 50, 0, "monitor"),
    "oxygen_saturation": Variable("%", 96.5, 1.8, 75, 100, 0, "monitor"),
    "temperature": Variable("°C", 37.0, 0.55, 34, 41, 1, "temperature", circadian=0.35),
    "glasgow_coma_scale": Variable("points", 12.0, 2.6, 3, 15, 0, "neurology"),
    "urine_output": Variable("mL/h", 80, 0.55, 0, 800, 0, "urine", log=True, shares=("creatinine", -0.25)),
    "inspired_oxygen_fraction": Variable("fraction", 0.42, 0.25, 0.21, 1.0, 2, "ventilator", log=True),
    "lactate": Variable("mmol/L", 1.7, 0.55, 0.3, 20, 1, "lactate", log=True),
    "arterial_ph": Variable("", 7.38, 0.06, 6.9, 7.65, 2, "blood_gas", shares=("lactate", -0.25)),
    "creatinine": Variable("mg/dL", 1.1, 0.5, 0.2, 15, 1, "chemistry", log=True),
    "blood_urea_nitrogen": Variable("mg/dL", 21, 0.5, 3, 180, 0, "chemistry", log=True, shares=("creatinine", 0.3)),
    "sodium": Variable("mmol/L", 139, 4, 115, 165, 0, "chemistry"),
    "potassium": Variable("mmol/L", 4.1, 0.5, 2.2, 7.5, 1, "chemistry"),
    "bicarbonate": Variable("mmol/L", 24, 3.5, 8, 45, 0, "chemistry", shares=("lactate", -0.25)),
    "glucose": Variable("mg/dL", 132, 0.28, 35, 700, 0, "chemistry", log=True),
    "hemoglobin": Variable("g/dL", 10.8, 1.7, 4.5, 18.5, 1, "blood_count"),
    "platelets": Variable("10^9/L", 200, 0.42, 8, 1000, 0, "blood_count", log=True),
    "white_cell_count": Variable("10^9/L", 10.8, 0.4, 0.4, 80, 1, "blood_count", log=True),
    "albumin": Variable("g/dL", 3.2, 0.5, 1.2, 5.2, 1, "liver"),
    "bilirubin": Variable("mg/dL", 0.9, 0.7, 0.1, 35, 1, "liver", log=True),
    "troponin": Variable("ng/mL", 0.08, 1.1, 0.01, 25, 2, "troponin", log=True),
}
NAMES = tuple(VARIABLES)


@dataclass(frozen=True)
class Panel:
    """Things measured together: samples per hour at rest, and what changes that rate.

    `severity` multiplies the rate by exp(severity * the stay's current risk of death in standard deviations);
    `ordered_when` (variable, slope, threshold) by a logistic in that variable's course: missing where it is normal.
    """

    rate: float
    severity: float = 0.2
    ordered_when: tuple[str, float, float] | None = None


PANELS = {
    "monitor": Panel(0.5, 0.1),
    "temperature": Panel(0.2, 0.0),
    "neurology": Panel(0.22, 0.1),
    "urine": Panel(0.3, 0.0),
    "ventilator": Panel(0.2, 0.1, ("inspired_oxygen_fraction", 2.0, -0.5)),
    "lactate": Panel(0.25, 0.1, ("lactate", 1.5, 0.2)),
    "blood_gas": Panel(0.1, 0.3),
    "chemistry": Panel(0.12),
    "blood_count": Panel(0.08),
    "liver": Panel(0.1, 0.1, ("bilirubin", 2.0, 0.8)),
    "troponin": Panel(0.2, 0.0, ("troponin", 4.0, 1.0)),
}
ADMISSION_PANELS = ("monitor", "neurology", "chemistry", "blood_count")  # taken within the first hour


@dataclass(frozen=True)
class Driver:
    """`weight` times the standardized mean course of `variable` over the hours adds to the logit of `output`."""

    output: str
    variable: str
    direction: str
    start: int
    end: int
    weight: float


def _drivers(output: str, *terms: tuple[str, int, int, float]) -> tuple[Driver, ...]:
    return tuple(
        Driver(output, variable, "high" if weight > 0 else "low", start, end, weight)
        for variable, start, end, weight in terms
    )


MORTALITY_DRIVERS = _drivers(
    "died",
    ("lactate", 24, 48, 1.3),
    ("mean_arterial_pressure", 36, 48, -1.15),
    ("glasgow_coma_scale", 24, 48, -1.15),
    ("creatinine", 0, 48, 1.0),
)
OUTCOME_DRIVERS = {
    "in_hospital_mortality": MORTALITY_DRIVERS,
    "length_of_stay": _drivers(
        "log_days", ("inspired_oxygen_fraction", 24, 48, 0.35), ("albumin", 0, 48, -0.25), ("creatinine", 0, 48, 0.15)
    ),
    "phenotypes": (
        *_drivers("sepsis", ("temperature", 0, 48, 1.5), ("white_cell_count", 0, 48, 1.5)),
        *_drivers("acute_kidney_injury", ("creatinine", 24, 48, 2.5)),
        *_drivers(
            "respiratory_failure", ("oxygen_saturation", 24, 48, -1.8), ("inspired_oxygen_fraction", 24, 48, 1.2)
        ),
        *_drivers("hemorrhage", ("hemoglobin", 24, 48, -2.0), ("heart_rate", 24, 48, 1.0)),
    ),
    "discharge_destination": (
        *_drivers("rehabilitation", ("glasgow_coma_scale", 36, 48, -1.2)),
        *_drivers("nursing_facility", ("albumin", 0, 48, -1.2)),
        *MORTALITY_DRIVERS,
    ),
}
INTERCEPTS = {
    "died": -2.75,
    "log_days": 1.7,
    "sepsis": -1.8,
    "acute_kidney_injury": -1.8,
    "respiratory_failure": -1.6,
    "hemorrhage": -2.2,
    "rehabilitation": -0.6,
    "nursing_facility": -0.8,
}
PHENOTYPES = ("sepsis", "acute_kidney_injury", "respiratory_failure", "hemorrhage")
DESTINATIONS = ("home", "rehabilitation", "nursing_facility", "died")
LOG_DAYS_NOISE = 0.35

TASKS = (
    TaskInfo(
        "in_hospital_mortality",
        "Does the patient die in the hospital? Asked at 48 hours.",
        "binary",
        ("boolean_value",),
        ("survived", "died"),
    ),
    TaskInfo("length_of_stay", "Days in the hospital, asked at 48 hours.", "regression", ("float_value",), ("days",)),
    TaskInfo("phenotypes", "Which acute conditions does the stay show?", "multilabel", PHENOTYPES, PHENOTYPES),
    TaskInfo(
        "discharge_destination",
        "Where does the patient go after the stay?",
        "multiclass",
        ("categorical_value",),
        DESTINATIONS,
    ),
    TaskInfo(
        "time_to_death",
        "When does the patient die in the hospital? Asked at 48 hours; who leaves it alive is censored on leaving.",
        "time_to_event",
        SURVIVAL_COLUMNS,
        ("death",),
    ),
)
STATIC_COLUMNS = (
    StaticColumn("age", "numeric"),
    StaticColumn("sex", "categorical", ("female", "male")),
    StaticColumn("height", "numeric"),
    StaticColumn("unit_type", "categorical", ("medical", "surgical", "cardiac", "trauma")),
)
UNIT_SHARES = (0.4, 0.3, 0.2, 0.1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-records", type=int, default=3000, help="Stays to simulate (default: 3000).")


def prepare(output: str | Path, *, num_records: int = 3000, seed: int = 0, overwrite: bool = False) -> DatasetInfo:
    """Simulate stays into a prepared folder, the same ones for the same seed; splits are 70/15/15 by stay.

    Args:
        output: the prepared folder to make.
        num_records: how many stays.
        seed: of everything drawn.
        overwrite: replace an existing prepared folder.

    Raises:
        ValueError: for fewer than 20 stays, too few to fill the splits, or a negative seed.
    """
    if num_records < 20:
        raise ValueError(f"--num-records must be at least 20 to fill three splits, not {num_records}")
    if seed < 0:
        raise ValueError(f"--seed must not be negative, not {seed}")
    labels: dict[str, list[pl.DataFrame]] = {split: [] for split in SPLITS}
    risks, deaths = [], []
    with PreparedFolderWriter(output, overwrite=overwrite) as writer:
        split_seed, block_seeds = np.random.SeedSequence(seed).spawn(2)
        names = [f"stay-{index:07d}" for index in range(num_records)]
        split_of = split_at_random(names, SPLIT, split_seed)
        starts = range(0, num_records, BLOCK)
        seeds = block_seeds.spawn(len(starts))
        for start, block_seed in zip(
            tqdm(starts, desc="simulating", unit=" blocks", leave=False, disable=None), seeds, strict=True
        ):
            size = min(BLOCK, num_records - start)
            stays = _simulate(size, np.random.default_rng(block_seed))
            ids = pl.Series("record_id", names[start : start + size])
            frame = nest_events(stays.events, stays.static).with_columns(ids)
            outcomes = stays.outcomes.with_columns(ids)
            assigned = ids.replace_strict(split_of, return_dtype=pl.String)
            for split in SPLITS:
                if (members := assigned == split).any():
                    writer.write_records(split, frame.filter(members))
                    labels[split].append(outcomes.filter(members))
            risks.append(stays.risk)
            deaths.append(stays.outcomes["died"].to_numpy())
        for split, frames in labels.items():
            for task, frame in _label_frames(pl.concat(frames)):
                writer.write_task(task, split, frame)
        info = _describe(seed, _auroc(np.concatenate(risks), np.concatenate(deaths)))
        writer.finish(info)
    return info


# --------------------------------------------------------------------------------------------------------- simulation


@dataclass(frozen=True)
class Stays:
    """A block: long events and static columns by `record_id` (0, 1, ...), outcomes, and the logit of each death."""

    events: pl.DataFrame
    static: pl.DataFrame
    outcomes: pl.DataFrame
    risk: np.ndarray


def _simulate(size: int, generator: np.random.Generator) -> Stays:
    courses = _courses(size, generator)
    logits = {output: np.full(size, intercept) for output, intercept in INTERCEPTS.items()}
    severity = np.zeros((size, HOURS), dtype=np.float32)
    for driver in dict.fromkeys(chain(*OUTCOME_DRIVERS.values())):  # death is a destination too: once each
        course = courses[NAMES.index(driver.variable)]
        logits[driver.output] += driver.weight * _mean_course(course, driver.start, driver.end)
        if driver.output == "died":
            severity += driver.weight * course
    severity /= np.sqrt(sum(driver.weight**2 for driver in MORTALITY_DRIVERS))
    return Stays(
        events=_measure(courses, severity, generator),
        static=_demographics(severity.mean(axis=1), generator),
        outcomes=_outcomes(logits, generator),
        risk=logits["died"],
    )


def _courses(size: int, generator: np.random.Generator) -> np.ndarray:
    """Latent courses, each with mean 0 and variance 1 at every hour: (variables, stays, hours)."""
    count = len(NAMES)
    courses = generator.standard_normal((count, size, HOURS), dtype=np.float32)
    fresh = np.float32(np.sqrt(1 - AUTOCORRELATION**2))
    for hour in range(1, HOURS):
        courses[:, :, hour] = AUTOCORRELATION * courses[:, :, hour - 1] + fresh * courses[:, :, hour]
    courses *= np.float32(np.sqrt(1 - LEVEL_SHARE))
    courses += np.float32(np.sqrt(LEVEL_SHARE)) * generator.standard_normal((count, size, 1), dtype=np.float32)
    for index, variable in enumerate(VARIABLES.values()):
        if variable.shares is not None:
            other, share = variable.shares
            courses[index] = share * courses[NAMES.index(other)] + np.sqrt(1 - share**2) * courses[index]
    return courses


def _mean_course(course: np.ndarray, start: int, end: int) -> np.ndarray:
    """Mean over the hours from start to end, divided by its own standard deviation."""
    lag = np.abs(np.subtract.outer(np.arange(start, end), np.arange(start, end)))
    variance = (LEVEL_SHARE + (1 - LEVEL_SHARE) * AUTOCORRELATION**lag).mean()
    return course[:, start:end].mean(axis=1) / np.sqrt(variance)


def _measure(courses: np.ndarray, severity: np.ndarray, generator: np.random.Generator) -> pl.DataFrame:
    """Long events: record_id, time, variable, value in clinical units."""
    size = courses.shape[1]
    admitted_at = generator.uniform(0, 24, (size, 1))
    clock = np.arange(HOURS) + admitted_at
    columns: dict[str, list[np.ndarray]] = {"record_id": [], "time": [], "variable": [], "value": []}
    for name, panel in PANELS.items():
        rate = panel.rate * np.exp(panel.severity * np.clip(severity, -3, 3))
        if panel.ordered_when is not None:
            other, slope, threshold = panel.ordered_when
            rate = rate / (1 + np.exp(-slope * (courses[NAMES.index(other)] - threshold)))
        taken = generator.random((size, HOURS)) < 1 - np.exp(-rate)
        if name in ADMISSION_PANELS:
            taken[:, 0] = True
        stay, hour = np.nonzero(taken)
        time = hour + generator.integers(0, 60, len(hour)) / 60  # charted to the minute
        for index, variable in enumerate(VARIABLES.values()):
            if variable.panel != name:
                continue
            reported = generator.random(len(stay)) < 0.95
            if index == 0:
                reported |= hour == 0  # every stay has at least one event
            at = stay[reported], hour[reported]
            latent = courses[index][at] + variable.noise * generator.standard_normal(len(at[0]))
            latent += variable.circadian * np.sin(2 * np.pi * (clock[at] - 10) / 24)  # highest in the afternoon
            columns["record_id"].append(at[0])
            columns["time"].append(time[reported])
            columns["variable"].append(np.full(len(at[0]), index))
            columns["value"].append(_in_clinical_units(variable, latent))
    return pl.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()})


def _in_clinical_units(variable: Variable, latent: np.ndarray) -> np.ndarray:
    if variable.log:
        value = variable.center * np.exp(variable.spread * latent)
    else:
        value = variable.center + variable.spread * latent
    return np.round(np.clip(value, variable.low, variable.high), variable.decimals)


def _demographics(severity: np.ndarray, generator: np.random.Generator) -> pl.DataFrame:
    """One row per stay; the height of sicker patients is recorded less often. None of it drives an outcome."""
    size = len(severity)
    sex = generator.integers(0, 2, size)
    age = np.round(np.clip(generator.normal(64, 16, size), 18, 95))
    height = np.round(np.clip(generator.normal(163 + 13 * sex, 7), 140, 205))
    units = generator.choice(len(UNIT_SHARES), size, p=UNIT_SHARES)
    unknown = {
        "age": generator.random(size) < 0.02,
        "sex": generator.random(size) < 0.03,
        "height": generator.random(size) < 1 / (1 + np.exp(0.8 - 0.5 * severity)),
    }
    categories = {column.name: np.array(column.categories) for column in STATIC_COLUMNS}
    static = pl.DataFrame(
        {
            "record_id": np.arange(size),
            "age": age,
            "sex": categories["sex"][sex],
            "height": height,
            "unit_type": categories["unit_type"][units],
        }
    )
    return static.with_columns(
        pl.when(pl.Series(~missing)).then(pl.col(name)).alias(name) for name, missing in unknown.items()
    )


def _outcomes(logits: dict[str, np.ndarray], generator: np.random.Generator) -> pl.DataFrame:
    size = len(logits["died"])
    died = generator.random(size) < 1 / (1 + np.exp(-logits["died"]))
    days = 2 + np.exp(logits["log_days"] + LOG_DAYS_NOISE * generator.standard_normal(size))
    alive = np.stack([np.zeros(size), *(logits[name] for name in DESTINATIONS[1:-1])], axis=1)  # home against the rest
    destination = (alive + generator.gumbel(size=alive.shape)).argmax(axis=1)
    destination[died] = DESTINATIONS.index("died")
    return pl.DataFrame(
        {
            "died": died,
            "days": np.round(days, 1),
            "until": np.round(24 * days, 1).clip(HOURS + 0.1),
            "destination": np.array(DESTINATIONS)[destination],
            **{name: generator.random(size) < 1 / (1 + np.exp(-logits[name])) for name in PHENOTYPES},
        }
    )


# ------------------------------------------------------------------------------------------------------------- output


def _label_frames(outcomes: pl.DataFrame) -> Iterator[tuple[TaskInfo, pl.DataFrame]]:
    sources = (("died",), ("days",), PHENOTYPES, ("destination",), ("until", "died"))
    key = ("record_id", pl.lit(HOURS, dtype=pl.Float32).alias("prediction_time"))
    for task, columns in zip(TASKS, sources, strict=True):
        renamed = (pl.col(column).alias(label) for column, label in zip(columns, task.label_columns, strict=True))
        yield task, outcomes.select(*key, *renamed)


def _auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """AUROC of a score without ties; None where one class is absent."""
    positives = int(positive.sum())
    if positives in (0, len(positive)):
        return None
    ranks = np.empty(len(score))
    ranks[np.argsort(score)] = np.arange(1, len(score) + 1)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * (len(score) - positives)))


def _describe(seed: int, best_auroc: float | None) -> DatasetInfo:
    reached = "" if best_auroc is None else f" ({best_auroc:.3f} here)"
    return DatasetInfo(
        source="synthetic ICU stays",
        variables=NAMES,
        static_columns=STATIC_COLUMNS,
        tasks=TASKS,
        dropped={},
        split_description="Split 70/15/15 into train, validation and test at random by stay; a stay is a patient.",
        license="apache-2.0",
        citation="Simulated by `hymate prepare synthetic`; no patient's data went into it.",
        seed=seed,
        extra={
            "description": "Simulated stays of 48 hours. Sicker stays are sampled more often, troponin, bilirubin and "
            "lactate are mostly ordered where they are abnormal, and the height of sicker patients is recorded less "
            "often. Each task depends on the latent courses of the variables listed below, over the hours listed, and "
            "on nothing else: `weight` multiplies the standardized mean course and adds to the logit of `output` (to "
            "the logarithm of the days after the second, for the length of stay). Demographics drive nothing. No "
            f"model can expect a better AUROC for mortality than that of the risk that generated it{reached}.",
            "units": {name: variable.unit for name, variable in VARIABLES.items()} | {"age": "years", "height": "cm"},
            "drivers": {task: [asdict(driver) for driver in drivers] for task, drivers in OUTCOME_DRIVERS.items()},
            "best_possible_auroc": {"in_hospital_mortality": best_auroc},
        },
    )

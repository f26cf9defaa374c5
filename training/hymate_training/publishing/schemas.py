"""What each JSON file of a checkpoint may hold: JSON Schemas that leave nothing open, and the texts allowed in them.

A file passes if every key is known, every number is finite, and every text is a name or prose in which nothing looks
like the identifier of a record. Messages name the place, never the content: it may be a patient's.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import jsonschema

from hymate_training.evaluation.aggregates import KINDS, counts_of
from hymate_training.evaluation.alarms import ESTIMATES
from hymate_training.evaluation.decisions import RATES
from hymate_training.evaluation.gaps import CALIBRATION, GAPS, ODDS
from hymate_training.evaluation.metrics import METRICS, metric_titles
from hymate_training.evaluation.recalibration import INTERCEPT, SLOPE
from hymate_training.evaluation.survival import HORIZON_ESTIMATES
from hymate_training.inference.checkpoints import read_finite_json
from modeling_hymate import HyMaTEConfig
from modeling_hymate.feature_extraction_hymate import AUTO_MAP as EXTRACTOR_AUTO_MAP
from modeling_hymate.modeling_hymate import AUTO_MAP
from modeling_hymate.pipeline_hymate import CUSTOM_PIPELINES
from modeling_hymate.value_statistics import NUM_QUANTILES

IDENTIFIER = r"\w*(?:record|subject|patient|person|stay|hadm|admission|encounter|visit|case)[ _-]?ids?|mrns?"
IDENTIFIER_NAME = re.compile(rf"(?i)(?:{IDENTIFIER})")
# an identifier with something after it, as in `record_id: 7`, `"record_id": [...]`, a table's head or a CSV file's
IDENTIFIED = re.compile(rf"(?i)\b(?:{IDENTIFIER})\b[\"'`*]*(?:\s*[:=|]\s*|,)[\"'`*\[({{]*\w")
NAMED_RECORD = re.compile(r"(?i)\b(?:record|patient|subject|stay)\s+(?:no\.?\s*|#\s*)?\d{4,}\b")
UUID = re.compile(r"(?i)\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
LONG_NUMBER = re.compile(r"\d{5,}")
# long numbers that name no record: grouped or decimal ones, and references to papers, data sets and code
KNOWN_NUMBERS = re.compile(
    r"https?://(?:\w+\.)*(?:doi|arxiv|physionet|github|huggingface|zenodo)\.(?:org|com|co)/\S+|\b10\.\d{4,9}/\S+"
    r"|\b(?:19|20)\d\d;\d+(?:\(\d+\))?:\w+|\b\d{1,3}(?:,\d{3})+\b|\b\d{1,4}\.\d+\b"
)
LONGEST_NAME, LONGEST_PROSE = 200, 5000  # characters
MAX_LABELS, MAX_VARIABLES, MAX_CATEGORIES, MAX_GROUPS, MAX_EPOCHS, MAX_HORIZONS = 1000, 200_000, 200, 20, 2000, 50
MAX_POINTS = 200  # of a curve
MAX_SOURCES = 100


def text_problem(text: str) -> str | None:
    """Why a text may name a record; None if nothing in it looks so."""
    if IDENTIFIED.search(text) or NAMED_RECORD.search(text) or UUID.search(text):
        return "holds what looks like a record's identifier"
    if LONG_NUMBER.search(KNOWN_NUMBERS.sub(" ", text)):
        return "holds a number of five digits or more, which could be an identifier (write counts as 12,345)"
    return None


def _is_name(text: Any) -> bool:
    """One line that is no identifier's name. Numbers may be long: codes of variables are."""
    if not isinstance(text, str):
        return True
    fits = 0 < len(text) <= LONGEST_NAME and text.isprintable()
    return fits and not (IDENTIFIER_NAME.fullmatch(text) or IDENTIFIED.search(text) or NAMED_RECORD.search(text))


def _is_label(text: Any) -> bool:
    return not isinstance(text, str) or (_is_name(text) and text_problem(text) is None)


def _is_prose(text: Any) -> bool:
    return not isinstance(text, str) or (len(text) <= LONGEST_PROSE and text_problem(text) is None)


FORMATS = jsonschema.FormatChecker(formats=())
FORMATS.checks("name")(_is_name)
FORMATS.checks("label")(_is_label)
FORMATS.checks("prose")(_is_prose)


# ------------------------------------------------------------------------------------------------- building blocks

Schema = dict[str, Any]

NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
NAME: Schema = {"type": "string", "format": "name"}
LABEL: Schema = {"type": "string", "format": "label"}
PROSE: Schema = {"type": "string", "format": "prose"}
FINGERPRINT: Schema = {"type": "string", "pattern": "^[0-9a-f]{16}$"}
SPLIT: Schema = {"enum": ["train", "validation", "test"]}
PLOT: Schema = {"type": "string", "pattern": r"^evaluation\w*_[a-z_]+\.png$", "maxLength": 100}


def _optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema, most: int, least: int = 0) -> Schema:
    return {"type": "array", "minItems": least, "maxItems": most, "items": items}  # sizes are looked at first


def _map(values: Schema, keys: Schema = LABEL, most: int = MAX_LABELS) -> Schema:
    return {"type": "object", "maxProperties": most, "propertyNames": keys, "additionalProperties": values}


def _object(properties: Mapping[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
        "required": list(required),
    }


# ---------------------------------------------------------------------------------------------------------- the files

SCALAR: Schema = {"anyOf": [NUMBER, FLAG, LABEL, {"type": "null"}]}
INTERVAL = _list(NUMBER, 2, 2)
METRIC_NAMES = sorted({name for problem_type in METRICS for name in metric_titles(problem_type)})
VERSIONS = _map(_optional(LABEL), LABEL, 20)


def _config_field(field: dataclasses.Field) -> Schema:
    """Numbers and choices; what is a text in a configuration of ours is one word."""
    shapes: dict[str, Schema] = {
        "architectures": _list({"enum": [name.rpartition(".")[2] for name in AUTO_MAP.values()]}, 1),
        "id2label": _optional(_map(LABEL, {"pattern": r"^\d{1,4}$"})),
        "label2id": _optional(_map(COUNT)),
        **dict.fromkeys(("half_lives", "forecast_horizons"), _list(NUMBER, 20, 1)),
        "pos_weight": {"anyOf": [NUMBER, _list(NUMBER, MAX_LABELS), {"type": "null"}]},
        **dict.fromkeys(("half_lives", "forecast_horizons"), _list(NUMBER, MAX_HORIZONS, 1)),
        **dict.fromkeys(("time_bins", "horizons"), _optional(_list(NUMBER, MAX_POINTS, 1))),
        "event": _optional(LABEL),
    }
    word: Schema = {"type": "string", "pattern": r"^[a-z0-9_.]{1,40}$"}
    kinds = [NUMBER, FLAG, word, {"type": "null"}]
    if "list[" in str(field.type) or "tuple[" in str(field.type):
        kinds.append(_list(NUMBER, 32))
    return shapes.get(field.name, {"anyOf": kinds})


CONFIG = _object(
    {
        **{field.name: _config_field(field) for field in dataclasses.fields(HyMaTEConfig)},
        "model_type": {"const": "hymate"},
        "auto_map": {"const": AUTO_MAP},
        "custom_pipelines": {"enum": [CUSTOM_PIPELINES, {}]},
        "transformers_version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+[.a-z0-9]{0,12}$"},
    },
    ("model_type", "architectures", "auto_map"),
)
PREPROCESSOR = _object(
    {
        "auto_map": {"const": EXTRACTOR_AUTO_MAP},
        "feature_extractor_type": {"const": "HyMaTEFeatureExtractor"},
        "max_events": _optional(COUNT),
        "static_columns": _list(
            _object(
                {
                    "name": NAME,
                    "range": INTERVAL,
                    "mean": NUMBER,
                    "deviation": NUMBER,
                    "quantiles": _list(NUMBER, NUM_QUANTILES),
                    "categories": _list(LABEL, MAX_CATEGORIES),
                },
                ("name",),
            ),
            MAX_LABELS,
        ),
        "time_scale": NUMBER,
        "trained_hours": _optional(INTERVAL),
        "units": _map(LABEL, NAME, MAX_VARIABLES),
        "unknown_variables": {"enum": ["error", "ignore"]},
        "value_deviations": _list(NUMBER, MAX_VARIABLES),
        "value_means": _list(NUMBER, MAX_VARIABLES),
        "value_medians": _list(_optional(NUMBER), MAX_VARIABLES),
        "value_ranges": _list(INTERVAL, MAX_VARIABLES),
        "variables": _list(NAME, MAX_VARIABLES),
    },
    ("auto_map", "feature_extractor_type", "variables"),
)

_ESTIMATES: dict[str, Schema] = {
    "problem_type": {"enum": list(METRICS)},
    "n": COUNT,
    "num_records": COUNT,
    "positives": _optional(COUNT),
    "metrics": _map(_optional(NUMBER), {"enum": METRIC_NAMES}),
    "confidence_intervals": _map(_optional(INTERVAL), {"enum": METRIC_NAMES}),
    "undefined": _map(PROSE, {"enum": METRIC_NAMES}),
    "bootstrap": _object(
        {
            "resampled": LABEL,
            "num_samples": COUNT,
            "seed": COUNT,
            "level": NUMBER,
            "undefined_resamples": _map(COUNT, {"enum": METRIC_NAMES}),
        }
    ),
}
# a group of few records is published as one of so many: none
_GROUP = _object(_ESTIMATES | {"num_records": _optional(COUNT)}, ("num_records",))
_REPORT = _ESTIMATES | {"per_label": _map(_GROUP), "split_fingerprint": _optional(FINGERPRINT), "versions": VERSIONS}


def _estimated(names: Sequence[str], value: Schema = NUMBER) -> dict[str, Schema]:
    """Numbers, or what may be missing of them, and an interval of each."""
    intervals = _object(dict.fromkeys(names, _optional(INTERVAL)))
    return {**dict.fromkeys(names, _optional(value)), "confidence_intervals": intervals}


_CURVES = ("model", "treat_all", "treat_none", "baseline", "model_minus_best_default", "model_minus_baseline")
_POINTS = _list(NUMBER, MAX_POINTS)
_INTERVALS = _list(_optional(INTERVAL), MAX_POINTS)
DECISIONS: dict[str, Schema] = {
    "calibration": _object(
        {
            **_estimated((INTERCEPT, SLOPE)),
            "curve": _optional(_object({"predicted": _POINTS, "observed": _POINTS, "intervals": _INTERVALS})),
        }
    ),
    "net_benefit": _object(
        {
            **dict.fromkeys(("thresholds", *_CURVES), _POINTS),
            "confidence_intervals": _object(dict.fromkeys(_CURVES, _INTERVALS)),
        }
    ),
    "decision_threshold": NUMBER,
    "thresholds": _list(_object({"threshold": NUMBER, **_estimated(RATES)}), MAX_POINTS),
    "subgroup_gaps": _map(
        _object(
            {
                "threshold": NUMBER,
                "groups": _map(
                    _object(
                        {
                            "n": COUNT,
                            "num_records": _optional(COUNT),
                            "positives": COUNT,
                            "too_few": FLAG,
                            **_estimated((*ODDS, *CALIBRATION)),
                        },
                        ("num_records",),
                    ),
                    LABEL,
                    MAX_GROUPS,
                ),
                "gaps": _object(
                    dict.fromkeys(
                        GAPS,
                        _optional(
                            _object(
                                {
                                    "value": NUMBER,
                                    "interval": _optional(INTERVAL),
                                    "lowest": LABEL,
                                    "highest": LABEL,
                                }
                            )
                        ),
                    )
                ),
            }
        ),
        NAME,
        100,
    ),
    "alarms": _object(
        {
            "rule": PROSE,
            "snooze_hours": NUMBER,
            "label_lead_hours": _optional(NUMBER),
            "patient_days": NUMBER,
            "num_events": COUNT,
            "by_threshold": _list(
                _object({"threshold": NUMBER, "num_alarms": COUNT, **_estimated(ESTIMATES)}), MAX_POINTS
            ),
        }
    ),
}
_COVERAGE = _object(
    {
        **dict.fromkeys(("level", "coverage", "share_single"), NUMBER),
        "num_records": COUNT,
        "interval": _optional(INTERVAL),
        "mean_size": _optional(NUMBER),
    }
)
CONFORMAL: dict[str, Schema] = {
    "conformal": _object(
        {
            "levels": _list(NUMBER, 10),
            "thresholds": _map(_map(_list(_optional(NUMBER), 10)), NAME, 100),
            "calibrated_on": SPLIT,
            "split_fingerprint": FINGERPRINT,
        }
    ),
    "coverage": _map(_map(_list(_COVERAGE, 10)), NAME, 100),
}
_DIFFERENCE = _object({**dict.fromkeys(("a", "b", "difference"), _optional(NUMBER)), "interval": _optional(INTERVAL)})
_THRESHOLD = _object(
    {
        "value": NUMBER,
        "chosen_for": LABEL,
        "chosen_on": SPLIT,
        "split_fingerprint": FINGERPRINT,
        "share_of_rows_with_alarm": NUMBER,
    }
)
_BASELINE = _object(
    _REPORT
    | {
        "differences": _map(_DIFFERENCE, {"enum": METRIC_NAMES}),
        "settings": _map(NUMBER, LABEL, 20),
        "threshold": _THRESHOLD,
    }
)
EVALUATION = _object(
    {
        **_REPORT,
        "task": _optional(LABEL),
        "split": SPLIT,
        "source": PROSE,
        "subgroups": _map(_map(_GROUP, LABEL, MAX_GROUPS), NAME, 100),
        "by_hour": _map(_GROUP, LABEL, MAX_GROUPS),
        "trained_hours": _optional(INTERVAL),
        "variable_shares": _map(NUMBER, NAME, MAX_VARIABLES),
        "plots": _list(PLOT, 10),
        "baselines": _map(_BASELINE),
        **DECISIONS,
        **CONFORMAL,
        "threshold": _THRESHOLD,
        "horizons": _list(_object({"hours": NUMBER, **_estimated(HORIZON_ESTIMATES)}), MAX_HORIZONS),
    },
    ("problem_type", "n", "num_records", "metrics", "confidence_intervals"),
)

FORECAST_ERRORS = ("forecast_error", "carried_forward_error", "mean_error")
_HISTORY = (
    *("epoch", "step", "train_loss", "seconds", "score", *METRIC_NAMES),
    *FORECAST_ERRORS,
)
_HISTORY_NAME: Schema = {
    "anyOf": [
        {"enum": list(_HISTORY)},
        {"pattern": rf"^({'|'.join(FORECAST_ERRORS)})_(\d{{1,4}}(\.\d{{1,4}})?h|source\d{{1,3}})$"},
    ]
}
_SOURCE: dict[str, Schema] = {
    **dict.fromkeys(("description", "license", "citation", "split_description"), _optional(PROSE)),
    "source": PROSE,
    "dropped": _map(COUNT, PROSE),
}
_FIELD = {"anyOf": [SCALAR, _list(NUMBER, MAX_HORIZONS)]}  # of options, and of the configuration among them
RUN = _object(
    {
        "kind": {"enum": ["pretrain", "finetune"]},
        "command": _optional(PROSE),
        "recipe": _map({"anyOf": [_FIELD, _map(_FIELD)]}, LABEL, 100),
        "seed": COUNT,
        "versions": VERSIONS,
        "hardware": _map(SCALAR, LABEL, 20),
        "parameters": COUNT,
        "epochs": COUNT,
        "best_step": COUNT,
        "best_score": _optional(NUMBER),
        "history": _list(_map(_optional(NUMBER), _HISTORY_NAME), MAX_EPOCHS),
        "checkpoint": _optional(LABEL),
        "transfer": _optional(
            _object(
                dict.fromkeys(("shared", "fresh", "left", "fresh_columns", "left_columns"), _list(NAME, MAX_VARIABLES))
            )
        ),
        "temperature": _optional(NUMBER),
        "logit_shift": _optional(_list(NUMBER, MAX_LABELS)),
        "refit": _object(dict.fromkeys(("epochs", "num_records", "num_examples"), COUNT)),
        "task": _object(
            {
                "name": LABEL,
                "description": PROSE,
                "problem_type": {"enum": list(METRICS)},
                "label_columns": _list(LABEL, MAX_LABELS),
                "label_names": _list(LABEL, MAX_LABELS),
            },
            ("name", "problem_type"),
        ),
        "data": _object(_SOURCE, ("source",)),
        "sources": _list(
            _object(
                {
                    **_SOURCE,
                    "fingerprint": FINGERPRINT,
                    "num_records": _map(COUNT, SPLIT),
                    "share_of_epoch": NUMBER,
                    **dict.fromkeys(("num_variables", "num_shared_variables"), COUNT),
                },
                ("source",),
            ),
            MAX_SOURCES,
        ),
        "split_fingerprints": _map(FINGERPRINT, SPLIT),
        "num_records": _map(COUNT, SPLIT),
        "num_examples": _map(COUNT, SPLIT),
        "preprocessing": _object(
            {
                "num_variables": COUNT,
                "num_logarithmic": COUNT,
                "static_features": _list(NAME, MAX_LABELS * MAX_CATEGORIES),
                "time_scale_hours": NUMBER,
            }
        ),
    },
)
_COUNTS = _list(COUNT, 20, 1)
_SUMMARY: Schema = {
    "anyOf": [
        _object({"categories": _map(COUNT, LABEL, MAX_CATEGORIES)}, ("categories",)),
        _object({"edges": _list(NUMBER, 20, 1), "counts": _COUNTS, "missing": COUNT}, ("edges", "counts")),
    ]
}
MONITORING = _object(
    {
        "task": LABEL,
        "num_records": COUNT | {"minimum": 1},
        "counts": _object(dict.fromkeys(KINDS, _map(_SUMMARY, NAME, MAX_VARIABLES)), KINDS),
    },
    ("task", "num_records", "counts"),
)
FAITHFULNESS = _object(
    {
        "title": PROSE,
        "num_records": COUNT,
        "findings": _list(_object(dict.fromkeys(("method", "verdict", "ranking", "areas"), PROSE)), 10),
    },
    ("title", "num_records", "findings"),
)
# what a Space is told: which checkpoint to show, and as of which commit
SPACE = _object(
    {
        "checkpoint": {"type": "string", "pattern": r"^[\w.-]{1,96}/[\w.-]{1,96}$"},
        "revision": {"type": "string", "pattern": "^[0-9a-f]{40}$"},
    },
    ("checkpoint", "revision"),
)


# ------------------------------------------------------------------------------------------------------------ checking


def read_monitoring(path: Path) -> dict[str, Any]:
    """The aggregates of the training data beside a checkpoint, for use here: names may be any.

    Raises:
        ValueError: naming the file, and the field that is damaged.
    """
    content = read_finite_json(path)
    problem = schema_problem(content, MONITORING, names=None) or monitoring_problem(content)
    if problem is not None:
        raise ValueError(f"{path} is damaged: {problem}")
    return content


def monitoring_problem(content: Mapping[str, Any]) -> str | None:
    """The first of the aggregates that contradicts itself or the number of records; None if there is none."""
    for kind, summaries in content["counts"].items():
        for name, summary in summaries.items():
            place, held = f"counts.{kind}.{_quoted(name)}", int(counts_of(summary).sum())
            edges = [-inf, *summary.get("edges", []), inf]
            if not all(low < high for low, high in pairwise(edges)):
                return f"{place}: its edges do not ascend"
            if "edges" in summary and len(edges) != len(summary["counts"]) + 1:
                return f"{place}: its bins do not fit its counts"
            if not held:
                return f"{place} counts no record"
            if kind != "score" and held > content["num_records"]:  # scores are those of the validation split
                return f"{place} counts {held} records, but num_records is {content['num_records']}"
    return None


def schema_problem(content: Any, schema: Schema, names: jsonschema.FormatChecker | None = FORMATS) -> str | None:
    """The first place at which a content leaves its schema, in words that quote nothing; None if there is none.

    Args:
        content: of a JSON file.
        schema: what it may hold.
        names: which texts are allowed; None for any, in what is not published.
    """
    validator = jsonschema.Draft202012Validator(schema, format_checker=names)
    error = next(validator.iter_errors(content), None)
    if error is None:
        return None
    while error.context:  # of alternatives, the one of the right type says most
        error = next((other for other in error.context if other.validator != "type"), error.context[0])
    place = ".".join(map(_quoted, error.absolute_path)) or "the file"
    return f"{place} {_REASONS.get(str(error.validator), lambda _: 'is not what belongs there')(error)}"


def _quoted(step: str | int) -> str:
    """A step of a path, unless it could be an identifier itself."""
    return str(step) if isinstance(step, int) or _is_label(step) else "…"


_REASONS: dict[str, Callable[[jsonschema.ValidationError], str]] = {
    "additionalProperties": lambda error: (
        "holds an unknown key"
        + "".join(f" {key!r}" for key in set(error.instance) - set(error.schema["properties"]) if _is_label(key))
    ),
    "propertyNames": lambda _: "holds a key that does not belong there",
    "format": lambda _: (
        "holds what looks like an identifier of a record, as numbers of five digits or more do, or is too long"
    ),
    "pattern": lambda _: "is not of the form that belongs there",
    "minimum": lambda error: f"must be at least {error.validator_value}",
    "required": lambda error: "lacks a key: " + ", ".join(sorted(set(error.validator_value) - set(error.instance))),
    "maxItems": lambda _: "is longer than it can be",
    "maxProperties": lambda _: "holds more keys than it can",
}

"""FHIR R4: a Bundle of patients' resources in, a Bundle of RiskAssessments out.

Read as `hymate prepare fhir --concepts` reads: an assessment per encounter, an observation counts from when its result
was there. An encounter need not have ended; a patient without any is assessed from the first event on.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from hymate_training.concepts.mapping import map_events, map_from_vocabulary
from hymate_training.concepts.vocabulary import load_vocabulary
from hymate_training.inference.checkpoints import Checkpoint
from hymate_training.readers.fhir import EVENT_SCHEMA, Reading, Register, read_register, resources_of
from hymate_training.readers.stays import HOUR, YEAR
from hymate_training.serving.messages import MOST_EVENTS
from hymate_training.serving.reading import BadField, Question
from hymate_training.versions import installed_version

MALFORMED = (ValueError, AttributeError, TypeError, KeyError, OverflowError)  # what a bundle that is none ends in
TABLE = {"record_id": pl.String, "time": pl.Float64, "variable": pl.String, "value": pl.Float64, "unit": pl.String}
NOTE = "Not a medical device. The output of a statistical model, to be judged by a clinician."


@dataclass(frozen=True)
class Subject:
    """Who is assessed, and from when on.

    Attributes:
        patient: as `Register` holds it.
        encounter: likewise; None for all that is known of the patient.
        start: seconds since 1970.
        end: likewise; infinite where it has not ended.
    """

    patient: dict[str, Any]
    encounter: dict[str, Any] | None
    start: float
    end: float = float("inf")

    def static(self) -> dict[str, Any]:
        """Static columns, by the names of their concepts."""
        born, age = self.patient["born"], load_vocabulary()["age"]
        years = None if born is None else (self.start - born) / YEAR
        believed = years is not None and age.low <= years <= age.high
        return {"age": years if believed else None, "sex": self.patient["gender"]}

    def references(self) -> dict[str, Any]:
        """How a resource refers to them."""
        found = {"subject": {"reference": f"Patient/{self.patient['id']}"}}
        if self.encounter is not None:
            found["encounter"] = {"reference": f"Encounter/{self.encounter['id']}"}
        return found


@dataclass(frozen=True, eq=False)
class Assessed:
    """What is assessed in a bundle.

    Attributes:
        question: a record per subject.
        subjects: in the same order.
        latest: time of each one's latest event, seconds since 1970.
        left: what was not used, by reason.
    """

    question: Question
    subjects: list[Subject]
    latest: list[float]
    left: Counter[str]


def knows_concepts(checkpoint: Checkpoint) -> bool:
    """Whether a model gives probabilities from concepts, so that it can read what any hospital records."""
    known = set(checkpoint.extractor.variables) <= set(load_vocabulary().concepts)
    return known and checkpoint.model.config.problem_type != "regression"


def read_bundle(checkpoint: Checkpoint, bundle: Any) -> Assessed:
    """The records of a bundle.

    Raises:
        BadField: naming the entry that is no FHIR, or if no event is left that the model knows.
    """
    left: Counter[str] = Counter()
    try:
        resources = list(resources_of(bundle, "bundle"))
        register = read_register(resources, "the bundle")
        reading = Reading(register, "issued", left)
        frames = [frame for _, frame in reading.events(resources)]
    except MALFORMED as error:
        message = str(error) if type(error) is ValueError else "a resource is not of the form that FHIR R4 gives it"
        raise BadField(("entry",), message) from error
    events = pl.concat([pl.DataFrame(schema=EVENT_SCHEMA), *frames])
    if events.height > MOST_EVENTS:
        raise BadField(("entry",), f"a bundle may hold at most {MOST_EVENTS} events")
    variables = [reading.key(kind, code) for kind, code in events.select("kind", "code").iter_rows()]
    events = events.with_columns(variable=pl.Series(variables, dtype=pl.String), unit=pl.col("unit").fill_null(""))
    subjects, located = _locate(register, events, left)
    known = _by_concepts(checkpoint, located, left)
    parts = known.partition_by("record_id", maintain_order=True)
    if not parts:
        raise BadField(("entry",), "no event of a concept that the model knows: " + "; ".join(_counted(left)))
    chosen = [subjects[part["record_id"][0]] for part in parts]
    columns = [column["name"] for column in checkpoint.extractor.static_columns]
    rows = [
        {"record_id": str(at), **part.select("time", "variable", "value").to_dict(as_series=False)}
        | {name: subject.static().get(name) for name in columns}
        for at, (part, subject) in enumerate(zip(parts, chosen, strict=True))
    ]
    try:
        parsed = checkpoint.extractor.parse(rows)
    except ValueError as error:
        raise BadField(("entry",), str(error)) from error
    latest = [subject.start + max(part["time"]) * HOUR for part, subject in zip(parts, chosen, strict=True)]
    return Assessed(Question(parsed, None), chosen, latest, left)


def _locate(register: Register, events: pl.DataFrame, left: Counter[str]) -> tuple[dict[str, Subject], pl.DataFrame]:
    """The subjects by record, and their events in hours since the start: `TABLE`."""
    subjects: dict[str, Subject] = {}
    stays: dict[int, list[tuple[float, str]]] = {}  # of each patient: start and record
    for index, encounter in enumerate(register.encounters):
        person, start = encounter["patient"], encounter["start"]
        if encounter["within"] is None and start is not None and person is not None:
            end = float("inf") if encounter["end"] is None else encounter["end"]
            subjects[f"encounter {index}"] = Subject(register.patients[person], encounter, start, end)
            stays.setdefault(person, []).append((start, f"encounter {index}"))
    timed = events.drop_nulls(["person_id", "seconds"]).sort("seconds", maintain_order=True)
    left["events without a patient or a time"] += events.height - timed.height
    rows = []
    for person, visit, seconds, *event in timed.select(
        "person_id", "visit", "seconds", "variable", "value", "unit"
    ).iter_rows():
        record = f"encounter {visit}"
        if person not in stays:
            record = f"patient {person}"
            subjects.setdefault(record, Subject(register.patients[person], None, seconds))
        elif record not in subjects:
            record = max(((start, name) for start, name in stays[person] if start <= seconds), default=(0.0, ""))[1]
        subject = subjects.get(record)
        if subject is None or not subject.start <= seconds <= subject.end:
            left["events outside any encounter"] += 1
        else:
            rows.append((record, (seconds - subject.start) / HOUR, *event))
    return subjects, pl.DataFrame(rows, schema=TABLE, orient="row")


def _by_concepts(checkpoint: Checkpoint, events: pl.DataFrame, left: Counter[str]) -> pl.DataFrame:
    """The events of concepts that the model knows, in the concepts' units."""
    concepts = load_vocabulary().concepts
    rows = map_from_vocabulary(events.select("variable", "unit").unique(maintain_order=True).iter_rows(), "fhir")
    happening = [code for code, _, concept, *_ in rows.iter_rows() if concepts[concept].kind != "number"]
    happened = events.filter(~(pl.col("variable").is_in(happening) & pl.col("value").eq_missing(0)))
    left["events whose value 0 says that they did not happen"] += events.height - happened.height
    mapped, unused = map_events(happened, rows, ())
    left.update(unused)
    known = mapped.filter(pl.col("variable").is_in(checkpoint.extractor.variables))
    left["events of concepts that the model does not know"] += mapped.height - known.height
    return known


def risk_assessments(assessed: Assessed, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The Bundle that answers: a RiskAssessment per subject, and an OperationOutcome of what was not used."""
    resources: list[dict[str, Any]] = [
        {
            "resourceType": "RiskAssessment",
            "status": "final",
            **subject.references(),
            "occurrenceDateTime": datetime.fromtimestamp(latest, UTC).isoformat(),
            "method": {"text": f"HyMaTE {installed_version('hymate') or ''}".strip()},
            "prediction": [
                {"outcome": {"text": label}, "probabilityDecimal": probability}
                for label, probability in answer["probabilities"].items()
            ],
            "note": [{"text": NOTE}],
        }
        for subject, latest, answer in zip(assessed.subjects, assessed.latest, answers, strict=True)
    ]
    if counted := _counted(assessed.left):
        issues = [{"severity": "information", "code": "informational", "diagnostics": text} for text in counted]
        resources.append({"resourceType": "OperationOutcome", "issue": issues})
    return {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": one} for one in resources]}


def _counted(left: Counter[str]) -> list[str]:
    return [f"{count} {reason}" for reason, count in left.items() if count]

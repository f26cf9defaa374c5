"""FHIR R4: bundles of patients' records and bulk exports, from any hospital's interface.

Reads every `.json` (a bundle, or a resource) and `.ndjson` (a resource per line; also `.jsonl`), packed or not, in a
folder, below it or in a .zip: Patient, Encounter, Observation with its components, Condition,
MedicationAdministration and Procedure. Resources of other types are counted and left: an order (MedicationRequest) is
not what was given.

- A record is an encounter, or with `--records person` all that is known of a patient. Its clock starts with the
  encounter, or with the patient's first event. What is part of another encounter belongs to that.
- An observation counts from the later of `effective` and `issued`, when its result was there; with
  `--event-time effective` from the former. A condition counts from `recordedDate`, without one from the end of its
  encounter: its onset says nothing about when it was known. Administrations and procedures count from their start.
  What has a date alone counts from the end of that day, by the clock of the encounters' times.
- A variable is a code (LOINC before others of an observation, RxNorm of a medication), called by its display.
  Quantities, integers and true/false carry a number, a bound such as `< 5` its value; other results carry none. A code
  reported in several units becomes one variable per unit.
- What was entered in error, cancelled, refuted or not done is left out and counted.
- Static columns are age at the record's start and gender.

Tasks, of encounters that last at least `--observed-hours`: `in_hospital_mortality`, `length_of_stay` and
`readmission_30d`, as the reader `omop` has them. A patient is dead from `deceasedDateTime`, or from the end of an
encounter whose discharge disposition says so; contradictions of the two are decided and counted as there.
"""

import argparse
import gzip
import json
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import polars as pl
from tqdm import tqdm

from hymate_training.data.schema import DatasetInfo
from hymate_training.data.writer import PreparedFolderWriter
from hymate_training.files import regular
from hymate_training.readers.stays import (
    DAY,
    STATIC_COLUMNS,
    Stays,
    add_stay_arguments,
    settle_deaths,
    split_by_outcome,
    units_and_codes,
    write_stays,
)
from hymate_training.readers.store import EventStore, name_with_units

ROWS_AT_ONCE = 200_000
MOST_BYTES = 1 << 30  # of a bundle, or of a line, which is held as a whole
SUFFIXES = (".json", ".ndjson", ".jsonl")
LEFT_OUT = {"entered-in-error", "cancelled", "refuted", "not-done", "not-taken", "unknown", "planned", "stopped-early"}
SYSTEMS = {  # of codings -> how their codes are written here; the first of these wins
    "http://loinc.org": "LOINC",
    "http://www.nlm.nih.gov/research/umls/rxnorm": "RxNorm",
    "http://snomed.info/sct": "SNOMED",
    "http://hl7.org/fhir/sid/icd-10-cm": "ICD10CM",
    "http://hl7.org/fhir/sid/icd-10": "ICD10",
}
Placed = tuple[str, dict[str, Any], str]  # where a resource stands, itself, its address in a bundle ("" without one)
EXPIRED = {"exp", "20", "40", "41", "42"}  # discharge dispositions of HL7 and of billing
CITATION = "HL7. FHIR Release 4, https://hl7.org/fhir/R4/. Cite the data set itself as its publisher asks."
EVENT_SCHEMA = {
    "person_id": pl.Int64,
    "visit": pl.Int64,
    "seconds": pl.Float64,
    "value": pl.Float64,
    "kind": pl.String,
    "code": pl.String,
    "unit": pl.String,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", type=Path, required=True, help="Folder or .zip of bundles (.json) or .ndjson files.")
    add_stay_arguments(parser, "encounter", "patient")
    parser.add_argument(
        "--event-time",
        choices=("issued", "effective"),
        default="issued",
        help="When an observation counts: once its result was there, or at its clinical time (default: issued).",
    )


def prepare(
    raw: str | Path,
    output: str | Path,
    *,
    records: Literal["visit", "person"] = "visit",
    event_time: Literal["issued", "effective"] = "issued",
    observed_hours: float = 24.0,
    min_records: int = 10,
    seed: int = 0,
    overwrite: bool = False,
) -> DatasetInfo:
    """Read the resources in `raw` into the prepared folder `output`.

    Args:
        raw: folder or archive of bundles or bulk files.
        output: the prepared folder to make.
        records: what a record is.
        event_time: when an observation counts.
        observed_hours: of an encounter, after which its tasks are asked.
        min_records: training records that a variable must be met in.
        seed: shuffles the patients.
        overwrite: replace an existing prepared folder.

    Raises:
        ValueError: naming the file, and where it can the line, that is damaged or no FHIR, or the wrong argument.
    """
    if event_time not in ("issued", "effective"):
        raise ValueError(f"--event-time must be 'issued' or 'effective', got {event_time!r}")
    raw, output = Path(raw), Path(output).absolute()
    stays = Stays(records, observed_hours, min_records, "encounter")
    with (
        PreparedFolderWriter(output, overwrite=overwrite) as writer,
        tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.events-") as scratch,
    ):
        dropped: Counter[str] = Counter()
        register = read_register(read_resources(raw), str(raw))
        visits = register.visits(dropped)
        splits = split_by_outcome(visits, seed)
        owners = stays.owners(visits, splits, register.patient_names, register.encounter_names)
        reading = Reading(register, event_time, dropped)
        with EventStore(Path(scratch), owners.height, ("kind", "code", "unit")) as store:
            for resource_type, events in reading.events(read_resources(raw)):
                store.add(stays.locate(events, visits, owners, resource_type, dropped))
        variables = reading.name_variables(store)
        written = write_stays(writer, stays, store, [name for name, *_ in variables], owners, visits, dropped)
        info = DatasetInfo(
            source="FHIR",
            variables=written.variables,
            static_columns=STATIC_COLUMNS,
            tasks=written.tasks,
            dropped={reason: count for reason, count in dropped.items() if count},
            split_description="By patient, those who die in an encounter and the others shuffled apart with seed "
            f"{seed}: 80% train, 10% validation, 10% test.",
            license="other",
            citation=CITATION,
            seed=seed,
            extra={
                "description": f"Records of FHIR R4, one per {'encounter' if records == 'visit' else 'patient'}.",
                "event_time": event_time,
                **units_and_codes(variables, written),
            },
        )
        writer.finish(info)
    return info


# ------------------------------------------------------------------------------------------------------------- files


def read_resources(raw: Path) -> Iterator[Placed]:
    """Every resource of a folder or archive.

    Raises:
        ValueError: naming the file, and the line of an .ndjson, that is damaged or holds something else.
    """
    found = False
    for place, file in _files(raw):
        found = True
        lines = PurePosixPath(place.removesuffix(".gz")).suffix != ".json"
        try:
            parts = iter(partial(file.readline, MOST_BYTES + 1), b"") if lines else [file.read(MOST_BYTES + 1)]
            for number, text in enumerate(parts, start=1):
                if len(text) > MOST_BYTES:
                    raise ValueError(f"{place} holds more than {MOST_BYTES >> 20} MiB in one piece: split it")
                if text.strip():
                    where = f"{place}: line {number}" if lines else place
                    yield from resources_of(json.loads(text), where)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            where = f"{place}: line {number}" if lines else place
            raise ValueError(f"{where} is not JSON: {error}") from error
        except (EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
            raise ValueError(f"{place} is damaged or incomplete ({error}); download it again") from error
    if not found:
        raise ValueError(f"{raw} holds no file of FHIR ({', '.join(SUFFIXES)}, packed as .gz or not)")


def resources_of(content: Any, where: str) -> Iterator[Placed]:
    """The resources of a bundle, or a resource by itself; as `read_resources` hands them on.

    Raises:
        ValueError: naming the place that holds something else.
    """
    if not isinstance(content, dict) or not isinstance(content.get("resourceType"), str):
        raise ValueError(f"{where} is not a FHIR resource: it has no resourceType")
    if content["resourceType"] != "Bundle":
        yield where, content, ""
        return
    for number, entry in enumerate(_list(content, "entry"), start=1):
        if isinstance(entry, dict) and isinstance(resource := entry.get("resource"), dict):
            if not isinstance(resource.get("resourceType"), str):
                raise ValueError(f"{where}: entry {number} is not a FHIR resource: it has no resourceType")
            yield f"{where}: entry {number}", resource, str(entry.get("fullUrl") or "")


def _files(raw: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Name and open content of every file of resources."""
    if raw.is_dir():
        named = [path for path in sorted(raw.rglob("*")) if _is_resources(path.name)]
        paths = [path for path in named if regular(path).is_file()]
        archives = sorted(raw.glob("*.zip"))
        if not paths and len(archives) == 1:
            yield from _files(archives[0])
        for path in tqdm(paths, desc=f"reading {raw.name}", unit=" files", leave=False, disable=None):
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                yield str(path), file  # type: ignore[misc]  # a GzipFile reads like any other
    elif raw.suffix == ".zip" and raw.is_file():
        try:
            with zipfile.ZipFile(raw) as archive:
                members = [name for name in sorted(archive.namelist()) if _is_resources(name)]
                for name in tqdm(members, desc=f"reading {raw.name}", unit=" files", leave=False, disable=None):
                    with archive.open(name) as member:
                        content = gzip.GzipFile(fileobj=member) if name.endswith(".gz") else member
                        yield f"{raw}: {name}", content  # type: ignore[misc]
        except zipfile.BadZipFile as error:
            raise ValueError(f"{raw} is damaged or incomplete ({error}); download it again") from error
    else:
        raise ValueError(f"{raw}: no such folder or .zip; --raw is what holds bundles (.json) or .ndjson files")


def _is_resources(name: str) -> bool:
    path = PurePosixPath(name.removesuffix(".gz"))
    return path.suffix in SUFFIXES and not path.name.startswith(".") and "__MACOSX" not in path.parts


# ------------------------------------------------------------------------------------------- patients and encounters


@dataclass
class Register:
    """Patients and encounters, numbered as they turn up, by every address that refers to them.

    A date has no time zone, but ends with a day of the hospital's: `clock` is how many seconds that is ahead of UTC
    by the times of the encounters, the least of them where they differ, so that no date ends too early.
    """

    patients: list[dict[str, Any]] = field(default_factory=list)
    encounters: list[dict[str, Any]] = field(default_factory=list)
    medications: dict[str, tuple[str, str]] = field(default_factory=dict)
    patient_of: dict[str, int] = field(default_factory=dict)
    encounter_of: dict[str, int] = field(default_factory=dict)
    clock: float = 0.0

    @property
    def patient_names(self) -> list[str]:
        """The id of each patient."""
        return [patient["id"] for patient in self.patients]

    @property
    def encounter_names(self) -> list[str]:
        """The id of each encounter."""
        return [encounter["id"] for encounter in self.encounters]

    def visits(self, dropped: Counter[str]) -> pl.DataFrame:
        """A row per encounter, by start: number, visit, person_id, start, end, born, gender, death (seconds), days."""
        rows = []
        for index, encounter in enumerate(self.encounters):
            if encounter["within"] is not None:
                continue
            if encounter["start"] is None or encounter["end"] is None or encounter["end"] < encounter["start"]:
                dropped["encounters without a start, or an end after it"] += 1
            elif encounter["patient"] is None:
                dropped["encounters of a patient that is not there"] += 1
            else:
                patient = self.patients[encounter["patient"]]
                row = (index, encounter["patient"], encounter["start"], encounter["end"], encounter["expired"])
                rows.append((*row, patient["born"], patient["gender"], patient["death"]))
        if not rows:
            raise ValueError("no encounter has a patient, a start and an end")
        kinds: dict[str, Any] = {"visit": pl.Int64, "person_id": pl.Int64, "start": pl.Float64, "end": pl.Float64}
        kinds |= {"expired": pl.Boolean, "born": pl.Float64, "gender": pl.String, "death": pl.Float64}
        visits = settle_deaths(pl.DataFrame(rows, schema=kinds, orient="row"), dropped, self.clock)
        visits = visits.with_columns(days=(pl.col("end") - pl.col("start")) / DAY)
        return visits.sort("start", "visit").with_row_index("number")

    def resolve(self) -> None:
        """Read the times, and point what is part of another encounter to the outermost one."""
        texts = [text for encounter in self.encounters for text in encounter["period"].values()]
        self.clock = min((ahead for text in texts if (ahead := _ahead(text)) is not None), default=0.0)
        for patient in self.patients:
            where = patient["where"]
            patient["born"] = _seconds(patient["born"], f"{where}: birthDate", end=False, clock=self.clock)
            patient["death"] = _seconds(patient["death"], f"{where}: deceasedDateTime", clock=self.clock)
        for encounter in self.encounters:
            for edge in ("start", "end"):
                where = f"{encounter['where']}: period.{edge}"
                encounter[edge] = _seconds(encounter["period"][edge], where, end=edge == "end", clock=self.clock)
        for encounter in self.encounters:
            seen: set[int] = set()
            outer = self.encounter_of.get(encounter["part_of"] or "")
            while outer is not None and outer not in seen:
                seen.add(outer)
                encounter["within"] = outer
                outer = self.encounter_of.get(self.encounters[outer]["part_of"] or "")
            encounter["patient"] = self.patient_of.get(encounter["subject"])

    def encounter(self, reference: str) -> int | None:
        """The encounter that a reference points to, or the outermost it is part of."""
        index = self.encounter_of.get(reference)
        if index is None:
            return None
        within = self.encounters[index]["within"]
        return index if within is None else within


def read_register(resources: Iterable[Placed], source: str) -> Register:
    """The patients, encounters and medications among resources.

    Raises:
        ValueError: naming the resource that is damaged, or the source if it holds no patient.
    """
    register = Register()
    for where, resource, address in resources:
        kind = resource["resourceType"]
        if kind not in ("Patient", "Encounter", "Medication"):
            continue
        name = resource.get("id") or _tail(address)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where}: the {kind} has no id")
        addresses = {name, _tail(address)} - {""}
        if kind == "Medication":
            register.medications |= dict.fromkeys(addresses, _code(resource.get("code")))
        elif kind == "Patient":
            if name in register.patient_of:
                raise ValueError(f"{where}: patient {name} occurs twice")
            register.patient_of |= dict.fromkeys(addresses, len(register.patients))
            register.patients.append(_patient(resource, name, where))
        elif _status(resource) not in LEFT_OUT:
            if name in register.encounter_of:
                raise ValueError(f"{where}: encounter {name} occurs twice")
            register.encounter_of |= dict.fromkeys(addresses, len(register.encounters))
            register.encounters.append(_encounter(resource, name, where))
    if not register.patients:
        raise ValueError(f"{source} holds no Patient")
    register.resolve()
    return register


def _patient(resource: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    gender = resource.get("gender")
    return {
        "id": name,
        "gender": gender if gender in ("female", "male") else None,
        "born": resource.get("birthDate"),
        "death": resource.get("deceasedDateTime"),
        "where": where,
    }


def _encounter(resource: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    period = _object(resource, "period")
    disposition = _object(_object(resource, "hospitalization"), "dischargeDisposition")
    codings = [coding for coding in _list(disposition, "coding") if isinstance(coding, dict)]
    codes = [code for coding in codings if (code := coding.get("code"))]
    return {
        "id": name,
        "period": {edge: period.get(edge) for edge in ("start", "end")},
        "where": where,
        "subject": _reference(resource, "subject"),
        "part_of": _reference(resource, "partOf"),
        "expired": any(code in EXPIRED for code in codes) if codes else None,
        "within": None,
        "patient": None,
    }


# ------------------------------------------------------------------------------------------------------------ events


@dataclass
class Reading:
    """Reads the resources that are events."""

    register: Register
    event_time: str
    dropped: Counter[str]
    displays: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)

    def events(self, resources: Iterable[Placed]) -> Iterator[tuple[str, pl.DataFrame]]:
        """Resource type and events of it: person_id, visit, seconds, value, kind, code, unit; some at a time."""
        readers = {
            "Observation": self._observation,
            "Condition": self._condition,
            "MedicationAdministration": self._administration,
            "Procedure": self._procedure,
        }
        rows: dict[str, list[tuple]] = {kind: [] for kind in readers}
        for where, resource, _ in resources:
            kind = resource["resourceType"]
            if kind not in readers:
                if kind not in ("Patient", "Encounter", "Medication"):
                    self.dropped[f"resources of the type {kind}, which is not read"] += 1
            elif _status(resource) in LEFT_OUT:
                self.dropped[f"{kind}: entered in error, cancelled, refuted or not done"] += 1
            else:
                rows[kind] += readers[kind](resource, where)
                if len(rows[kind]) >= ROWS_AT_ONCE:
                    yield kind, pl.DataFrame(rows[kind], schema=EVENT_SCHEMA, orient="row")
                    rows[kind] = []
        for kind, rest in rows.items():
            if rest:
                yield kind, pl.DataFrame(rest, schema=EVENT_SCHEMA, orient="row")

    def _row(
        self,
        resource: dict[str, Any],
        seconds: float | None,
        kind: str,
        code: tuple[str, str],
        value: float | None = None,
        unit: str | None = None,
    ) -> tuple:
        """A row of events; its code is called by the display that is met most."""
        name, display = code
        self.displays.setdefault((kind, name), Counter())[display] += 1
        person = self.register.patient_of.get(_reference(resource, "subject"))
        visit = self.register.encounter(_reference(resource, "encounter") or _reference(resource, "context"))
        return person, visit, seconds, value, kind, name, unit if value is not None else None

    def _observation(self, resource: dict[str, Any], where: str) -> Iterator[tuple]:
        moment = _first_time(resource, "effective", where, self.register.clock)
        issued = _seconds(resource.get("issued"), f"{where}: issued", clock=self.register.clock)
        if self.event_time == "issued" and issued is not None:
            moment = issued if moment is None else max(moment, issued)
        parts = [part for part in _list(resource, "component") if isinstance(part, dict)]
        if not parts or any(key.startswith("value") for key in resource):
            parts = [resource, *parts]
        for part in parts:
            value, unit = _value(part, where)
            yield self._row(resource, moment, "observation", _code(part.get("code")), value, unit)

    def _condition(self, resource: dict[str, Any], where: str) -> Iterator[tuple]:
        moment = _seconds(resource.get("recordedDate"), f"{where}: recordedDate", clock=self.register.clock)
        if moment is None:
            encounter = self.register.encounter(_reference(resource, "encounter"))
            moment = None if encounter is None else self.register.encounters[encounter]["end"]
        if moment is None:
            moment = _first_time(resource, "onset", where, self.register.clock)
        yield self._row(resource, moment, "condition", _code(resource.get("code")))

    def _administration(self, resource: dict[str, Any], where: str) -> Iterator[tuple]:
        referred = self.register.medications.get(_reference(resource, "medicationReference"))
        code = referred or _code(resource.get("medicationCodeableConcept"))
        yield self._row(resource, _first_time(resource, "effective", where, self.register.clock), "medication", code)

    def _procedure(self, resource: dict[str, Any], where: str) -> Iterator[tuple]:
        yield self._row(
            resource,
            _first_time(resource, "performed", where, self.register.clock),
            "procedure",
            _code(resource.get("code")),
        )

    def name_variables(self, store: EventStore) -> list[tuple[str, str, str]]:
        """Name, unit ("" where there is none) and code of each key of the store."""
        named = []
        for kind, code, unit in store.keys:
            named.append(((kind, code), self._display(kind, code), unit, self.key(kind, code)))
        return name_with_units(named)

    def key(self, kind: str, code: str) -> str:
        """How the vocabulary of concepts knows a code, which of a medication is told by its name, too."""
        return f"medication//{code.rpartition('//')[2]}//{self._display(kind, code)}" if kind == "medication" else code

    def _display(self, kind: str, code: str) -> str:
        displays = self.displays[kind, code]
        return min(displays, key=lambda text: (-displays[text], text)) or code or f"{kind} without a code"


def _value(part: dict[str, Any], where: str) -> tuple[float | None, str | None]:
    """The number of an observation or component, and its unit."""
    quantity = part.get("valueQuantity")
    if isinstance(quantity, dict):
        unit = quantity.get("code") or quantity.get("unit")
        number = quantity.get("value")
    else:
        unit, number = None, part.get("valueInteger", part.get("valueBoolean"))
    if number is None:
        return None, None
    if isinstance(number, bool | int | float):
        return float(number), None if unit is None else str(unit)
    raise ValueError(f"{where}: a value must be a number, found {number!r}")


# ------------------------------------------------------------------------------------------------ parts of resources


def _status(resource: dict[str, Any]) -> str:
    """The status, or of a condition its verification."""
    for coding in _list(_object(resource, "verificationStatus"), "coding"):
        return str(coding.get("code"))
    return str(resource.get("status") or "")


def _code(concept: Any) -> tuple[str, str]:
    """The code with its system before it, and its display; of several the first of `SYSTEMS`."""
    concept = concept if isinstance(concept, dict) else {}
    codings = [coding for coding in _list(concept, "coding") if isinstance(coding, dict) and coding.get("code")]
    order = list(SYSTEMS)
    codings.sort(key=lambda coding: order.index(coding["system"]) if coding.get("system") in SYSTEMS else len(order))
    text = " ".join(str(concept.get("text") or "").replace("\u200b", "").split())
    if not codings:
        return text, text
    system, code = str(codings[0].get("system") or ""), str(codings[0]["code"])
    display = " ".join(str(codings[0].get("display") or text).replace("\u200b", "").split())
    return f"{SYSTEMS.get(system, system)}//{code}".removeprefix("//"), display


def _reference(resource: dict[str, Any], name: str) -> str:
    return _tail(str(_object(resource, name).get("reference") or ""))


def _tail(address: str) -> str:
    """The id at the end of `Patient/1`, `urn:uuid:1` or an address, without a version."""
    return address.split("/_history/", maxsplit=1)[0].replace(":", "/").rpartition("/")[2]


def _first_time(resource: dict[str, Any], stem: str, where: str, clock: float) -> float | None:
    period = _object(resource, f"{stem}Period")
    for name, text in (
        (f"{stem}DateTime", resource.get(f"{stem}DateTime")),
        (f"{stem}Instant", resource.get(f"{stem}Instant")),
        (f"{stem}Period.start", period.get("start")),
    ):
        if text is not None:
            return _seconds(text, f"{where}: {name}", clock=clock)
    return None


def _ahead(text: Any) -> float | None:
    """Seconds that the clock of a time is ahead of UTC; None where that is not said."""
    try:
        offset = datetime.fromisoformat(text).utcoffset() if "T" in text else None
    except (ValueError, TypeError):
        return None  # is named when it is read
    return None if offset is None else offset.total_seconds()


def _seconds(text: Any, where: str, *, end: bool = True, clock: float = 0.0) -> float | None:
    """Seconds since 1970; a date, month or year stands for its end, or its beginning, by a clock ahead of UTC."""
    if text is None or text == "":
        return None
    try:
        if not isinstance(text, str):
            raise ValueError
        if "T" in text:
            moment = datetime.fromisoformat(text)
            return moment.timestamp() if moment.tzinfo else moment.replace(tzinfo=UTC).timestamp() - clock
        parts = [int(part) for part in text.split("-")]
        year, month, day = (*parts, 1, 1)[:3]
        first = datetime(year, month, day, tzinfo=UTC)
        if not end:
            return first.timestamp() - clock
        if len(parts) == 3:
            after = first + timedelta(days=1)
        else:
            after = datetime(
                *((year + month // 12, month % 12 + 1) if len(parts) == 2 else (year + 1, 1)), 1, tzinfo=UTC
            )
        return after.timestamp() - 1 - clock
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{where} must be a time such as 2024-01-31T08:05:00Z, found {text!r}") from None


def _object(resource: dict[str, Any], name: str) -> dict[str, Any]:
    found = resource.get(name)
    return found if isinstance(found, dict) else {}


def _list(resource: dict[str, Any], name: str) -> list[Any]:
    found = resource.get(name)
    return found if isinstance(found, list) else []

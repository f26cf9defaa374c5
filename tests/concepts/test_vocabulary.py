"""The vocabulary: sound in itself, and true of every source at hand, by medians and ranges."""

import io
import math
import re
import zipfile
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from hymate_training.concepts.mapping import OUTSIDE_SHARE, Rules, rules_from_vocabulary
from hymate_training.concepts.vocabulary import Concept, Conversion, load_vocabulary
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.readers import READERS

VOCABULARY = load_vocabulary()
CONCEPTS = list(VOCABULARY.concepts.values())
# times the typical median. Patients in whom something is measured differ between hospitals, units differ by more
NEAR = 6.0
# what differs for a reason: assays of troponin, the sick to whom a rare test is given (the liver patients of the MIMIC
# demos), and settings of the ventilator
VARYING = {"troponin_t", "troponin_i", "nt_pro_bnp", "brain_natriuretic_peptide", "c_reactive_protein", "bands"}
VARYING |= {"direct_bilirubin", "respiratory_rate_spontaneous"}
FEWEST = 20  # values, below which a median says little
SOURCES = {  # folder of the shared data -> reader and its options
    "physionet2012": ("physionet2012", {}),
    "physionet2019": ("physionet2019", {}),
    "mimic-iii-demo-1.4": ("mimic-iii", {"min_stays": 1}),
    "mimic-iv-demo-2.2": ("mimic-iv", {"min_stays": 1}),
    "mimic-iv-demo-meds": ("meds", {"min_subjects": 1}),
    "eicu-demo": ("eicu", {}),
    "eicu-demo-2.0.1": ("eicu", {}),
}


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_every_concept_is_sound(concept: Concept):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", concept.name)
    assert concept.description.endswith(".")
    assert concept.kind in ("number", "event", "category")
    for code in concept.loinc:
        assert has_check_digit(code), code
    if concept.kind == "number":
        assert concept.unit in VOCABULARY.spellings
        assert concept.conversions[concept.unit] == Conversion()
        assert all(unit in VOCABULARY.spellings for unit in concept.conversions)
        assert all(conversion.factor > 0 for conversion in concept.conversions.values())
        assert concept.low <= concept.median <= concept.high
    else:
        assert concept.unit is None
        assert (concept.kind == "category") == bool(concept.categories)
    for listed in concept.sources.values():
        for stated in listed.values():
            assert stated is None or isinstance(stated, int) or VOCABULARY.conversion(concept, stated) is not None


def has_check_digit(code: str) -> bool:
    """LOINC's last digit is that of Luhn."""
    digits, check = code.split("-")
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return (10 - total % 10) % 10 == int(check)


def test_nothing_means_two_things():
    codes = Counter(code for concept in CONCEPTS for code in concept.loinc)
    assert [code for code, count in codes.items() if count > 1] == []
    for source in VOCABULARY.sources:
        variables = Counter(variable for concept in CONCEPTS for variable in concept.sources.get(source, {}))
        assert [variable for variable, count in variables.items() if count > 1] == [], source


def test_every_part_of_care_and_every_source_is_there():
    assert len(CONCEPTS) >= 120
    assert {concept.group for concept in CONCEPTS} >= {
        *("demographics", "vital signs", "ventilation", "blood gases", "chemistry", "blood count"),
        *("urine", "scores", "fluids", "drugs"),
    }
    for source in ("physionet2012", "physionet2019", "mimic-iii", "mimic-iv", "eicu", "omop", "yaib"):
        assert len(VOCABULARY.variables_of(source)) >= 30, source


@pytest.mark.parametrize(
    ("concept", "unit", "value", "expected"),
    [
        ("body_temperature", "Deg. F", 98.6, 37.0),
        ("body_temperature", "°C", 37.0, 37.0),
        ("creatinine", "µmol/L", 88.4, 1.0),
        ("creatinine", "umol/l", 88.4, 1.0),
        ("glucose", "mmol/L", 5.55, 100.0),
        ("lactate", "mg/dL", 18.02, 2.0),
        ("hemoglobin", "g/L", 130.0, 13.0),
        ("hemoglobin_a1c", "mmol/mol", 42.0, 6.0),
        ("troponin_t", "ng/L", 14.0, 0.014),
        ("troponin_t", "mcg/L", 0.2, 0.2),
        ("white_blood_cells", "/mm3", 8000.0, 8.0),
        ("oxygen_partial_pressure", "kPa", 13.3, 100.0),
        ("fraction_of_inspired_oxygen", "fraction", 0.4, 40.0),
        ("sodium", None, 140.0, 140.0),
    ],
)
def test_units(concept, unit, value, expected):
    conversion = VOCABULARY.conversion(VOCABULARY[concept], unit)
    assert value * conversion.factor + conversion.offset == pytest.approx(expected, rel=0.01)


def test_a_unit_that_does_not_belong_is_none():
    assert VOCABULARY.conversion(VOCABULARY["sodium"], "mm[Hg]") is None
    with pytest.raises(ValueError, match="'pulse' is not a concept"):
        VOCABULARY["pulse"]


@pytest.mark.parametrize("name", SOURCES)
def test_medians_and_ranges_of_every_source(name, shared_data, tmp_path):
    """In the concept's unit each variable lies where the vocabulary says, which no other unit of it would give."""
    source, options = SOURCES[name]
    READERS[source].prepare(shared_data(name), tmp_path / "out", **options)
    folder = PreparedFolder(tmp_path / "out")
    rules = rules_from_vocabulary(folder.info, source)
    values = variable_values(folder)
    problems = [
        problem
        for variable, found in values.items()
        if variable in rules and (problem := judge(variable, found, rules)) is not None
    ]
    assert not problems, "\n".join(problems)
    expected = {"eicu-demo-2.0.1": 3, "mimic-iv-demo-meds": 60}.get(name, 30)
    assert len({rules[v].concept.name for v in values if v in rules}) >= expected


def test_medians_and_ranges_of_the_harmonized_cohort(shared_data):
    """YAIB's variables are in its own units already."""
    frame = pl.read_parquet(shared_data("yaib-eicu-demo") / "los" / "eicu_demo" / "dyn.parquet")
    known = VOCABULARY.variables_of("yaib")
    assert set(frame.columns) - set(known) == {"stay_id", "time"}
    for name in set(frame.columns) - {"stay_id", "time"}:
        concept = known[name][0]
        assert (problem := misfit(name, frame[name].drop_nulls(), Conversion(), concept)) is None, problem


def test_units_of_physionet_are_what_the_medians_say():
    """Both challenges document a magnesium in mmol, and the second a lactate in mg/dL: the values say otherwise."""
    known = VOCABULARY.variables_of("physionet2019")
    assert known["Lactate"][1] == "mmol/L"
    assert known["Magnesium"][1] == "mg/dL"
    assert VOCABULARY.variables_of("physionet2012")["Mg"][1] == "mg/dL"


def test_omop_concepts_are_those_of_their_loinc_codes(shared_data):
    """Where a data set brings OMOP's tables of concepts, both numberings of the vocabulary agree with it."""
    with zipfile.ZipFile(shared_data("synthea27nj-omop-5.4") / "Synthea27NjParquet_5.4.zip") as archive:
        table = pl.read_parquet(io.BytesIO(archive.read("Synthea27NjParquet/concept.parquet")))
    codes = dict(table.filter(pl.col("vocabulary_id") == "LOINC").select("concept_id", "concept_code").iter_rows())
    compared = 0
    for variable, (concept, _) in VOCABULARY.variables_of("omop").items():
        if variable.isdigit() and int(variable) in codes:
            assert codes[int(variable)] in concept.loinc, (concept.name, variable)
            compared += 1
    assert compared > 70
    units = dict(table.filter(pl.col("vocabulary_id") == "UCUM").select("concept_id", "concept_code").iter_rows())
    renamed = {
        "[U]/L": "U/L",
        "[iU]/L": "U/L",
        "10*9/L": "10*3/uL",
        "10*12/L": "10*6/uL",
        "{ratio}": "1",
        "pH": "[pH]",
    }
    renamed |= {"[in_us]": "[in_i]", "[lb_us]": "[lb_av]", "10*-3.eq/L": "meq/L"}
    for number, unit in VOCABULARY.omop_units.items():
        assert renamed.get(units[number], units[number]) == unit


def variable_values(folder: PreparedFolder) -> dict[str, pl.Series]:
    parts = []
    for split in SPLITS:
        if folder.path.joinpath("records", f"{split}-00000.parquet").is_file():
            records = pl.DataFrame(pl.from_arrow(folder.records(split)))
            parts.append(records.select("variable", "value").explode("variable", "value").drop_nulls("value"))
    return {
        folder.info.variables[index]: part["value"].cast(pl.Float64)
        for (index,), part in pl.concat(parts).partition_by("variable", as_dict=True).items()
    }


def judge(variable: str, values: pl.Series, rules: Rules) -> str | None:
    rule = rules[variable]
    return misfit(variable, values, rule.conversion, rule.concept) if rule.concept.kind == "number" else None


def misfit(variable: str, values: pl.Series, conversion: Conversion, concept: Concept) -> str | None:
    """What is wrong with a variable's unit, if anything."""
    converted = values * conversion.factor + conversion.offset
    outside = float((~converted.is_between(concept.low, concept.high)).mean())
    median = float(converted.median())
    shown = f"{variable!r} as {concept.name}: median {median:.4g} {concept.unit}, typical {concept.median:g}"
    if outside > OUTSIDE_SHARE:
        return f"{shown}, {outside:.0%} outside its range"
    if len(values) < FEWEST or concept.name in VARYING or concept.median <= 0 or median <= 0:
        return None
    return None if abs(math.log(median / concept.median)) < math.log(NEAR) else shown


def test_the_check_of_medians_finds_a_wrong_unit():
    glucose, lactate = VOCABULARY["glucose"], VOCABULARY["lactate"]
    in_mmol = pl.Series([5.0, 6.5, 7.2, 9.0] * 10)
    assert misfit("glucose", in_mmol, Conversion(), glucose) is not None
    assert misfit("glucose", in_mmol, glucose.conversions["mmol/L"], glucose) is None
    assert misfit("lactate", in_mmol / 4, lactate.conversions["mg/dL"], lactate) is not None


def test_the_vocabulary_travels_with_the_package():
    folder = Path(__file__).parents[2] / "training" / "hymate_training" / "concepts"
    listed = (Path(__file__).parents[2] / "setup.cfg").read_text(encoding="utf-8")
    assert (folder / "vocabulary.yaml").is_file()
    assert "hymate_training.concepts = vocabulary.yaml" in listed

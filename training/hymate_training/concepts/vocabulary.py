"""The vocabulary of concepts: names, units, plausible values, and the variables of each source that mean them."""

import functools
import importlib.resources
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import yaml

from hymate_training.files import fingerprint

VOCABULARY_FILE = "vocabulary.yaml"
# what sources have in common: MetaVision's item ids and the laboratory's
SHARED_SOURCES = {"mimic-iii": ("mimic",), "mimic-iv": ("mimic",), "meds": ("mimic",)}
LOINC = re.compile(r"(?<![\d-])\d{1,5}-\d(?![\d-])")


@dataclass(frozen=True)
class Conversion:
    """What brings a value to another unit: `value * factor + offset`."""

    factor: float = 1.0
    offset: float = 0.0

    def apply(self, values: np.ndarray) -> np.ndarray:
        """The values in the other unit."""
        return values * self.factor + self.offset


@dataclass(frozen=True)
class Concept:
    """Something that hospitals record, whatever they call it.

    Attributes:
        name: in snake_case, the variable's name in a prepared folder.
        group: what it belongs to, such as "vital signs".
        description: for a reader without the source's manual.
        kind: "number"; "event", which happened and carries no number; or "category", known once.
        loinc: codes that mean it.
        unit: the UCUM unit of its values; None where it carries none.
        conversions: accepted UCUM unit -> what brings a value to `unit`, which is among them.
        low: the smallest value that is believed.
        high: the largest value that is believed.
        median: typical of adults in intensive care; None where it carries no number.
        names: what people call it, in lower case.
        categories: category -> its spellings, in lower case.
        sources: source -> variable -> its unit or factor where the source's own statement is absent or wrong, else
            None.
    """

    name: str
    group: str
    description: str
    kind: Literal["number", "event", "category"] = "number"
    loinc: tuple[str, ...] = ()
    unit: str | None = None
    conversions: Mapping[str, Conversion] = field(default_factory=dict)
    low: float = float("-inf")
    high: float = float("inf")
    median: float | None = None
    names: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, str | float | None]] = field(default_factory=dict)

    def share_inside(self, values: np.ndarray) -> float:
        """The share of values, in the concept's unit, that lie in its plausible range."""
        return float(np.mean((values >= self.low) & (values <= self.high)))


@dataclass(frozen=True)
class Vocabulary:
    """All concepts, by name.

    Attributes:
        concepts: name -> concept, in the order of the file.
        spellings: UCUM unit -> how people write it, folded as `fold_unit` does.
        omop_units: unit concept of OMOP -> UCUM unit.
        abbreviations: a word -> what it is short for.
        fillers: words that say little about what a name means.
        qualifiers: words that make another thing of a name that has them.
        fingerprint: names exactly this vocabulary: 16 hex digits of a SHA-256.
    """

    concepts: Mapping[str, Concept]
    spellings: Mapping[str, frozenset[str]]
    omop_units: Mapping[int, str]
    abbreviations: Mapping[str, str]
    fillers: frozenset[str]
    qualifiers: frozenset[str]
    fingerprint: str

    def __getitem__(self, name: str) -> Concept:
        """The concept of a name.

        Raises:
            ValueError: if there is none.
        """
        if name not in self.concepts:
            raise ValueError(f"{name!r} is not a concept of the vocabulary; `hymate concepts list` shows them")
        return self.concepts[name]

    def conversion(self, concept: Concept, unit: str | None) -> Conversion | None:
        """What brings values of a unit, in any spelling, to the concept's own; None where the unit does not fit.

        Without a unit the values are taken to be in the concept's.
        """
        if concept.unit is None or unit is None or not unit.strip():
            return Conversion()
        if unit in concept.conversions:
            return concept.conversions[unit]
        folded = fold_unit(unit)
        for accepted, conversion in concept.conversions.items():
            if folded == fold_unit(accepted) or folded in self.spellings.get(accepted, frozenset()):
                return conversion
        return None

    def variables_of(self, source: str) -> dict[str, tuple[Concept, str | float | None]]:
        """The variables of a source that mean a concept, each with the concept and its stated unit or factor."""
        return {
            variable: (concept, stated)
            for part in (*SHARED_SOURCES.get(source, ()), source)
            for concept in self.concepts.values()
            for variable, stated in concept.sources.get(part, {}).items()
        }

    @functools.cached_property
    def by_loinc(self) -> dict[str, Concept]:
        """LOINC code -> concept."""
        return {code: concept for concept in self.concepts.values() for code in concept.loinc}

    @functools.cached_property
    def sources(self) -> tuple[str, ...]:
        """The sources that have variables of their own in the vocabulary."""
        return tuple(sorted({source for concept in self.concepts.values() for source in concept.sources}))


@functools.cache
def load_vocabulary() -> Vocabulary:
    """The vocabulary that comes with the package."""
    text = (importlib.resources.files(__package__) / VOCABULARY_FILE).read_bytes()
    content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return Vocabulary(
        concepts={
            name: _concept(name, group, described)
            for group, concepts in content["concepts"].items()
            for name, described in concepts.items()
        },
        spellings={
            unit: frozenset(fold_unit(str(text)) for text in spellings) for unit, spellings in content["units"].items()
        },
        omop_units=content["omop_units"],
        abbreviations=content["words"]["abbreviations"],
        fillers=frozenset(content["words"]["fillers"]),
        qualifiers=frozenset(content["words"]["qualifiers"]),
        fingerprint=fingerprint(text),
    )


def _concept(name: str, group: str, described: Mapping[str, Any]) -> Concept:
    unit = described.get("unit")
    conversions = {} if unit is None else {unit: Conversion()}
    for other, factor in described.get("units", {}).items():
        conversions[other] = Conversion(*(factor if isinstance(factor, list) else [factor]))
    low, high = described.get("range", (float("-inf"), float("inf")))
    return Concept(
        name,
        group,
        described["description"],
        described.get("kind", "number"),
        loinc=tuple(described.get("loinc", ())),
        unit=unit,
        conversions=conversions,
        low=low,
        high=high,
        median=described.get("median"),
        names=tuple(str(text) for text in described.get("names", ())),
        categories={key: tuple(spellings) for key, spellings in described.get("categories", {}).items()},
        sources={source: _variables(listed) for source, listed in described.get("sources", {}).items()},
    )


def _variables(listed: list) -> dict[str, str | float | None]:
    variables: dict[str, str | float | None] = {}
    for entry in listed:
        if isinstance(entry, dict):
            variables |= {str(variable): stated for variable, stated in entry.items()}
        else:
            variables[str(entry)] = None
    return variables


def fold_unit(unit: str) -> str:
    """A unit's spelling without case, blanks around it, signs that look alike, and the "mc" of micro."""
    folded = unicodedata.normalize("NFKC", unit).replace("μ", "u").replace("µ", "u").casefold().strip()
    return re.sub(r"^mc(?=g|l|mol)", "u", re.sub(r"(?<=/)mc(?=g|l|mol)", "u", " ".join(folded.split())))

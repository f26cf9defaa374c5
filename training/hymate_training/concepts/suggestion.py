"""Proposals: which concept each variable of a hospital's table may be, with the reason and how sure it is."""

import functools
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import polars as pl

from hymate_training.concepts.mapping import MAP_COLUMNS, OUTSIDE_SHARE
from hymate_training.concepts.vocabulary import LOINC, Concept, Conversion, Vocabulary, fold_unit, load_vocabulary

PROPOSED_FROM = 0.5  # confidence from which a concept is written into the map
SIMILAR_FROM = 0.86  # of two words' letters, from which they count as one word misspelled
LEAST_LIKENESS = 0.3  # of a name, from which a concept is considered at all
NOT_THE_SAME = 0.98  # the most that a name can be like another without being it
MISSPELLED = 0.9  # what a word counts that is misspelled
FILLER_WEIGHT = 0.1  # what a word counts that says little, such as "serum"
FAR = 4.0  # times its typical median, from which a variable's median speaks against a concept


@dataclass(frozen=True)
class Found:
    """What a table holds of one variable in one unit.

    Attributes:
        variable: its name or code.
        unit: as written; empty where there is none.
        events: how often it occurs.
        values: the numbers it carries, some of them where there are many.
    """

    variable: str
    unit: str
    events: int
    values: np.ndarray


@dataclass(frozen=True)
class Proposal:
    """A concept for a variable, how sure it is (0 to 1), and why."""

    concept: Concept
    conversion: str
    confidence: float
    reason: str


def suggest(events: pl.DataFrame, vocabulary: Vocabulary | None = None) -> pl.DataFrame:
    """A map of the variables of a table, to be checked and edited by a person.

    A variable is compared by its LOINC code or its words, by its unit, and by how its values lie to the concept's
    plausible range and typical median. What stays below a confidence of `PROPOSED_FROM` gets no concept, and the
    reason says what came nearest.

    Args:
        events: `variable`, and where there are such columns `value` and `unit`; a row per event.
        vocabulary: the concepts; those of the package where absent.

    Returns:
        `variable, unit, concept, factor, confidence, reason`, the most frequent variable first.

    Raises:
        ValueError: if the table has no column `variable` or no row.
    """
    vocabulary = vocabulary or load_vocabulary()
    if "variable" not in events.columns:
        raise ValueError(f"the events lack the column 'variable'; they have {', '.join(events.columns) or 'none'}")
    if not events.height:
        raise ValueError("the events have no rows")
    index = _Names(vocabulary)
    rows = []
    for found in _variables(events):
        proposal = propose(found, index, vocabulary)
        if proposal is None:
            rows.append(
                (found.variable, found.unit, "", "", 0.0, "no name, code or unit of the vocabulary is like it")
            )
        elif proposal.confidence < PROPOSED_FROM:
            reason = f"not sure enough: nearest is {proposal.concept.name}, {proposal.reason}"
            rows.append((found.variable, found.unit, "", "", proposal.confidence, reason))
        else:
            rows.append(
                (
                    found.variable,
                    found.unit,
                    proposal.concept.name,
                    proposal.conversion,
                    proposal.confidence,
                    proposal.reason,
                )
            )
    kinds = dict.fromkeys(MAP_COLUMNS, pl.String) | {"confidence": pl.Float64}
    return pl.DataFrame(rows, schema=kinds, orient="row").with_columns(pl.col("confidence").round(2))


def write_map(rows: pl.DataFrame, path: str | Path) -> None:
    """Write a map for `read_map`, refusing to replace one that a person may have edited.

    Raises:
        ValueError: if the file is there already.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists and may have been edited; choose another output, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.write_csv(path)


def propose(found: Found, index: "_Names", vocabulary: Vocabulary) -> Proposal | None:
    """The likeliest concept of a variable; None where nothing is like it."""
    proposals = [
        proposal
        for concept, likeness, reason in index.candidates(found.variable)
        if (proposal := _judge(found, concept, likeness, reason, vocabulary)) is not None
    ]
    # of equals the one with the shorter name says less, and so claims less
    return max(proposals, key=lambda p: (round(p.confidence, 3), -len(p.concept.name)), default=None)


def _variables(events: pl.DataFrame) -> Iterable[Found]:
    unit = pl.col("unit").cast(pl.String).fill_null("") if "unit" in events.columns else pl.lit("")
    value = pl.col("value").cast(pl.Float64, strict=False) if "value" in events.columns else pl.lit(None, pl.Float64)
    rows = events.select(
        pl.col("variable").cast(pl.String).str.strip_chars(),
        unit.str.strip_chars().alias("unit"),
        value.alias("value"),
    ).drop_nulls("variable")
    grouped = rows.group_by("variable", "unit").agg(pl.len(), pl.col("value").drop_nulls().head(10_000))
    for variable, unit_text, events_of, values in grouped.sort(
        ["len", "variable"], descending=[True, False]
    ).iter_rows():
        yield Found(variable, unit_text, events_of, np.array(values, dtype=np.float64))


# -------------------------------------------------------------------------------------------------------------- names


def words_of(text: str, abbreviations: Mapping[str, str]) -> list[str]:
    """The words of a name: camel case, signs and digits apart, without accents, abbreviations spelled out."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    apart = re.sub(r"(?<=[a-z]{3})(?=[A-Z])|(?<=[a-z])(?=[A-Z][a-z]{2})", " ", plain).lower()
    words = re.findall(r"[a-z]+\d*[a-z]*\d*|\d+", apart)
    return [part for word in words for part in abbreviations.get(word, word).split()]


class _Names:
    """The concepts by the words of their names and of the sources' variables, and by LOINC code."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.names: dict[tuple[str, ...], tuple[Concept, str]] = {}
        for concept in vocabulary.concepts.values():
            for name in (concept.name, *concept.names):
                self.names.setdefault(self.words(name), (concept, name))
        for concept in vocabulary.concepts.values():  # what a source calls it comes after what people call it
            for name in sorted({name for listed in concept.sources.values() for name in listed if not name.isdigit()}):
                self.names.setdefault(self.words(name), (concept, name))

    def words(self, text: str) -> tuple[str, ...]:
        """The words of a name, abbreviations spelled out."""
        return tuple(words_of(text, self.vocabulary.abbreviations))

    def candidates(self, variable: str) -> list[tuple[Concept, float, str]]:
        """Concepts with their likeness to a variable's name, from 0 to 1, and what it rests on; the best of each."""
        for code in LOINC.findall(variable):
            if code in self.vocabulary.by_loinc:
                return [(self.vocabulary.by_loinc[code], 1.0, f"LOINC {code}")]
        words = self.words(variable)
        best: dict[str, tuple[Concept, float, str]] = {}
        for own, (concept, name) in self.names.items():
            likeness = self._likeness(words, own)
            if likeness > best.get(concept.name, (concept, LEAST_LIKENESS, ""))[1]:
                how = f"named like {name!r}" if likeness < 1 else f"named {name!r}"
                best[concept.name] = (concept, likeness, how)
        return list(best.values())

    def _likeness(self, words: tuple[str, ...], own: tuple[str, ...]) -> float:
        """1 for the same words, less for each that only one has; fillers weigh little, qualifiers forbid."""
        if words == own:
            return 1.0
        mine, theirs = list(dict.fromkeys(words)), list(dict.fromkeys(own))
        matched, alike = 0.0, 0.0
        for word in list(mine):
            other = next((candidate for candidate in theirs if _same(word, candidate)), None)
            if other is not None:
                mine.remove(word)
                theirs.remove(other)
                matched += self._weight(word)
                alike += self._weight(word) * (1.0 if word == other else MISSPELLED)
        if matched < 1.0 or self.vocabulary.qualifiers & {*mine, *theirs}:
            return 0.0
        return NOT_THE_SAME * alike / (matched + sum(map(self._weight, (*mine, *theirs))))

    def _weight(self, word: str) -> float:
        return FILLER_WEIGHT if word in self.vocabulary.fillers or word.isdigit() else 1.0


@functools.cache
def _same(word: str, other: str) -> bool:
    if word == other or (min(len(word), len(other)) > 3 and word.rstrip("s") == other.rstrip("s")):
        return True
    long = min(len(word), len(other)) > 5
    return long and SequenceMatcher(None, word, other, autojunk=False).ratio() >= SIMILAR_FROM


# ------------------------------------------------------------------------------------------------------ units, values


def _judge(found: Found, concept: Concept, likeness: float, reason: str, vocabulary: Vocabulary) -> Proposal | None:
    """The proposal of a concept whose name is like the variable's, once unit and values have spoken."""
    numbers = found.values[~np.isnan(found.values)]
    if concept.kind == "event":
        against = 0.4 if found.unit and len(numbers) and is_unit(found.unit, vocabulary) else 1.0
        return Proposal(concept, "", likeness * against, f"{reason}; an event without number")
    if concept.kind == "category":
        return Proposal(concept, "", likeness * (0.9 if not len(numbers) else 0.4), reason)
    stated = vocabulary.conversion(concept, found.unit) if found.unit else None
    known = bool(found.unit) and is_unit(found.unit, vocabulary)
    if stated is not None:
        options = {found.unit: stated}
        reason += f"; unit {found.unit}"
    else:
        options = dict(concept.conversions)
    if not len(numbers):
        if known and stated is None:
            return None
        unit = found.unit or concept.unit or ""
        return Proposal(
            concept, _factor(unit, options.get(unit, Conversion())), 0.7 * likeness, f"{reason}; no values"
        )
    scored = {unit: _fit(numbers, conversion, concept) for unit, conversion in options.items()}
    unit = max(scored, key=lambda name: scored[name][0])
    fit, shown = scored[unit]
    confidence = likeness * fit
    if stated is None and unit != concept.unit:
        reason += f"; values as in {unit}"
        if scored[concept.unit or unit][0] > 0.3:  # in range, but far from typical
            confidence, reason = 0.7 * confidence, f"{reason}, though {concept.unit} is possible"
    if known and stated is None:
        confidence, reason = 0.3 * confidence, f"{reason}; unit {found.unit} is not one of its units"
    elif found.unit and stated is None:
        confidence, reason = 0.8 * confidence, f"{reason}; unit {found.unit!r} unknown"
    return Proposal(concept, _factor(unit, options[unit]), confidence, f"{reason}; {shown}")


def is_unit(unit: str, vocabulary: Vocabulary) -> bool:
    """Whether a text is a unit that the vocabulary knows."""
    folded = fold_unit(unit)
    return any(folded == fold_unit(known) or folded in texts for known, texts in vocabulary.spellings.items())


def _factor(unit: str, conversion: Conversion) -> str:
    """The factor, or the unit's name where a number cannot say it."""
    return unit if conversion.offset else f"{conversion.factor:.10g}"


def _fit(values: np.ndarray, conversion: Conversion, concept: Concept) -> tuple[float, str]:
    """How well values lie to a concept's range and typical median, from 0 to 1, and in words."""
    converted = conversion.apply(values)
    inside = concept.share_inside(converted)
    median = float(np.median(converted))
    shown = f"median {median:.3g} {concept.unit} (typical {concept.median:g})"
    if inside < 1 - OUTSIDE_SHARE:
        return 0.2 * inside, f"{1 - inside:.0%} of the values outside {concept.low:g} to {concept.high:g}, {shown}"
    typical = float(concept.median or 0.0)
    if typical > 0 and median > 0:
        distance = abs(math.log(median / typical)) / math.log(FAR)
        return inside * (1.0 if distance < 0.5 else max(0.5, 1.25 - 0.5 * distance)), shown
    near = abs(median - typical) <= 0.25 * (concept.high - concept.low)
    return inside * (1.0 if near else 0.7), shown


def summarize(rows: pl.DataFrame) -> Mapping[str, int]:
    """How many variables got a concept, and how many got none."""
    proposed = rows.filter(pl.col("concept") != "").height
    return {"proposed": proposed, "without a concept": rows.height - proposed}

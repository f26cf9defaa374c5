"""What is to be said of records that were predicted, counted so that parts of them add up to the whole."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hymate_training.inference.records import Records, say_counts, say_of_all
from modeling_hymate import HyMaTEFeatureExtractor

STRANGE_SHARE = 0.2  # of a variable's values outside a range that holds 99.8 % of the training records'
STRANGE_TIME = 1.5  # times what 99 % of the training records' events come before


@dataclass(frozen=True, eq=False)
class Findings:
    """Counts of what a model did not know.

    Attributes:
        num_records: records that were predicted.
        num_predictions: rows of the output.
        unasked: records without a prediction time.
        remarks: how many predictions have each remark.
        ignored: events of unknown variables that were dropped, by name.
        absent_variables: known variables that no record has an event of.
        unknown_columns: static columns that are unknown for all records.
        outside: as `HyMaTEFeatureExtractor.count_outside` returns them.
        latest: time of the last event, hours.
        dropped: what of a hospital's files was dropped before, by reason.
    """

    num_records: int
    num_predictions: int
    unasked: int
    remarks: Counter
    ignored: Counter
    absent_variables: list[str]
    unknown_columns: list[str]
    outside: dict[str, tuple[int, int]]
    latest: float
    dropped: dict[str, int]

    @classmethod
    def of(
        cls,
        extractor: HyMaTEFeatureExtractor,
        records: Records,
        remarks: Sequence[Sequence[str]],
        num_records: int,
        dropped: dict[str, int],
    ) -> "Findings":
        """Those of records of which `num_records` were predicted, with the remarks of each prediction."""
        return cls(
            num_records=num_records,
            num_predictions=len(remarks),
            unasked=len(records.events) - num_records,
            remarks=Counter(text for texts in remarks for text in texts),
            ignored=records.events.ignored,
            absent_variables=records.absent_variables,
            unknown_columns=records.unknown_columns,
            outside=extractor.count_outside(records.events),
            latest=float(records.events.times.max(initial=0)),
            dropped=dropped,
        )

    @classmethod
    def join(cls, parts: Sequence["Findings"]) -> "Findings":
        """Those of all parts together."""
        outside: dict[str, tuple[int, int]] = {}
        for part in parts:
            for name, (beyond, count) in part.outside.items():
                before = outside.get(name, (0, 0))
                outside[name] = before[0] + beyond, before[1] + count
        dropped: Counter = sum((Counter(part.dropped) for part in parts), Counter())
        first, *others = parts
        return cls(
            num_records=sum(part.num_records for part in parts),
            num_predictions=sum(part.num_predictions for part in parts),
            unasked=sum(part.unasked for part in parts),
            remarks=sum((part.remarks for part in parts), Counter()),
            ignored=sum((part.ignored for part in parts), Counter()),
            absent_variables=_in_all(first.absent_variables, [part.absent_variables for part in others]),
            unknown_columns=_in_all(first.unknown_columns, [part.unknown_columns for part in others]),
            outside=outside,
            latest=max(part.latest for part in parts),
            dropped=dict(dropped),
        )

    def sentences(self, extractor: HyMaTEFeatureExtractor) -> list[str]:
        """All of it in words, the most frequent remarks first."""
        unasked = f"{self.unasked} records have no prediction time in the table, and so no prediction"
        return [
            *say_counts(self.remarks, self.num_predictions, "predictions"),
            *([unasked] if self.unasked else []),
            *say_of_all(self.ignored, self.absent_variables, self.unknown_columns),
            *self._unlike_training(extractor),
        ]

    def _unlike_training(self, extractor: HyMaTEFeatureExtractor) -> list[str]:
        """What is so far from the training records that it looks like other units or a longer stay."""
        found = [
            f"{beyond / count:.0%} of the values of {name} lie outside the range of the training records, and are "
            "clipped to it: are its units the same?"
            for name, (beyond, count) in self.outside.items()
            if beyond / count >= STRANGE_SHARE
        ]
        if self.latest > STRANGE_TIME * extractor.time_scale:
            found.append(
                f"events reach {self.latest:g} hours; hardly any of the training records' come after "
                f"{extractor.time_scale:g}"
            )
        return found


def _in_all(names: list[str], others: Sequence[list[str]]) -> list[str]:
    return [name for name in names if all(name in other for other in others)]

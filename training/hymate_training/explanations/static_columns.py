"""What a prediction owes to age and the other static columns, which no event carries."""

from dataclasses import replace

import numpy as np
import polars as pl

from hymate_training.explanations.attribution import Explainer
from modeling_hymate import Events


def static_effects(explainer: Explainer, events: Events) -> pl.DataFrame:
    """By how much each static column moves the scores of records.

    A number is set beside its mean in the training data, a category beside all that the model knows: the effect is the
    score minus the mean of the scores with those in its place.

    Returns:
        `record_id`, `column` and `attribution`, one row per record and column.
    """
    scores = explainer.scores(events)
    frames = []
    for column in explainer.extractor.static_columns:
        name = column["name"]
        others = column["categories"] if "categories" in column else [column["mean"]]
        scores_of_others = [
            explainer.scores(
                replace(events, static={**events.static, name: np.full(len(events), other, dtype=object)})
            )
            for other in others
        ]
        frames.append(
            pl.DataFrame(
                {
                    "record_id": events.record_ids,
                    "column": [name] * len(events),
                    "attribution": scores - np.mean(scores_of_others, axis=0),
                }
            )
        )
    if not frames:
        return pl.DataFrame(schema={"record_id": pl.String, "column": pl.String, "attribution": pl.Float64})
    return pl.concat(frames)


def static_shares(effects: pl.DataFrame, variables: pl.DataFrame) -> pl.DataFrame:
    """Size of each static column's effect over that of all columns and variables of its record.

    Args:
        effects: as `static_effects` returns them.
        variables: of an explanation by occlusion of the same records.

    Returns:
        `record_id`, `column`, `share`.
    """
    sizes = [frame.select("record_id", pl.col("attribution").abs()) for frame in (effects, variables)]
    totals = pl.concat(sizes).group_by("record_id").agg(total=pl.col("attribution").sum())
    shares = effects.join(totals, on="record_id", how="left", maintain_order="left")
    smallest = np.finfo(float).tiny
    return shares.select(
        "record_id", "column", share=pl.col("attribution").abs() / pl.max_horizontal("total", pl.lit(smallest))
    )

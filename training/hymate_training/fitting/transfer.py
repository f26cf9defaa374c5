"""A checkpoint for data with other variables: what both know keeps its weights, what is new starts fresh.

    extractor = merge_extractors(checkpoint_extractor, fit_feature_extractor(folder))
    model = HyMaTEForSequenceClassification(transferred_config(checkpoint_config, extractor, num_labels=2))
    transfer = transfer_weights(model, checkpoint_state, checkpoint_extractor, extractor)
    print(transfer.summary)

Variables and static columns are the same where their names are, which is what the vocabulary of concepts is for.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from modeling_hymate import HyMaTEConfig, HyMaTEFeatureExtractor

STATISTICS = ("value_ranges", "value_medians", "value_means", "value_deviations")  # of each variable
# heads in which the variable is the fastest index of the dimension that depends on their number; elsewhere the slowest
VARIABLES_LAST = ("forecast.",)
NAMED = 5  # variables that a summary names


@dataclass(frozen=True)
class Transfer:
    """What a checkpoint and data with other variables have in common.

    Attributes:
        shared: variables that keep their weights.
        fresh: variables that the checkpoint does not know.
        left: variables of the checkpoint that the data lack.
        fresh_columns: static columns that the checkpoint does not know.
        left_columns: static columns of the checkpoint that the data lack.
    """

    shared: tuple[str, ...]
    fresh: tuple[str, ...]
    left: tuple[str, ...]
    fresh_columns: tuple[str, ...]
    left_columns: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether they differ in anything."""
        return any((self.fresh, self.left, self.fresh_columns, self.left_columns))

    @property
    def summary(self) -> str:
        """One sentence on how many there are of each."""
        parts = [f"variables that keep the checkpoint's weights: {len(self.shared)}"]
        if self.fresh:
            parts.append(f"that start fresh: {len(self.fresh)} ({_named(self.fresh)})")
        if self.left:
            parts.append(f"that the data lack: {len(self.left)} ({_named(self.left)})")
        if self.fresh_columns:
            parts.append(f"static columns that start fresh: {_named(self.fresh_columns)}")
        if self.left_columns:
            parts.append(f"static columns that the data lack: {_named(self.left_columns)}")
        return ", ".join(parts)


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def compare_variables(known: HyMaTEFeatureExtractor, variables: Sequence[str], columns: Sequence[str]) -> Transfer:
    """What the feature extractor of a checkpoint and data have in common.

    Args:
        known: the checkpoint's.
        variables: the data's.
        columns: the names of the data's static columns.

    Raises:
        ValueError: if they share no variable.
    """
    shared = tuple(name for name in variables if name in known.variables)
    if not shared:
        raise ValueError(
            f"the checkpoint shares no variable with the data: it knows {_named(tuple(known.variables))}, they have "
            f"{_named(tuple(variables))}; prepare the data with --concepts for a checkpoint of concepts"
        )
    known_columns = [column["name"] for column in known.static_columns]
    return Transfer(
        shared,
        tuple(name for name in variables if name not in known.variables),
        tuple(name for name in known.variables if name not in variables),
        tuple(name for name in columns if name not in known_columns),
        tuple(name for name in known_columns if name not in columns),
    )


def _compared(known: HyMaTEFeatureExtractor, other: HyMaTEFeatureExtractor) -> Transfer:
    return compare_variables(known, other.variables, [column["name"] for column in other.static_columns])


def merge_extractors(known: HyMaTEFeatureExtractor, fitted: HyMaTEFeatureExtractor) -> HyMaTEFeatureExtractor:
    """The feature extractor for data with other variables than a checkpoint's.

    Args:
        known: the checkpoint's.
        fitted: fitted on the data.

    Returns:
        The data's variables and static columns in their order. What the checkpoint knows keeps the statistics by
        which it was standardized when the weights were learned, and times keep their scale. Data without static
        columns take the checkpoint's, which are unknown for each record.

    Raises:
        ValueError: if they share no variable, or only the data have static columns.
    """
    transfer = _compared(known, fitted)
    if fitted.static_columns and not known.static_columns:
        raise ValueError(
            "the data has static columns and the checkpoint has none, so that patients are represented in another "
            "size; leave them out"
        )
    merged: dict[str, Any] = {name: list(getattr(fitted, name)) for name in STATISTICS}
    for name in transfer.shared:
        place, source = fitted.variables.index(name), known.variables.index(name)
        for statistic in STATISTICS:
            merged[statistic][place] = deepcopy(getattr(known, statistic)[source])
    columns = {column["name"]: column for column in known.static_columns}
    static = [
        _known_column(column, columns.get(column["name"])) if column["name"] in columns else dict(column)
        for column in fitted.static_columns or known.static_columns
    ]
    held = {*fitted.variables, *(column["name"] for column in static)}
    units = {name: unit for name, unit in (fitted.units | known.units).items() if name in held}
    return HyMaTEFeatureExtractor(
        fitted.variables,
        **merged,
        static_columns=static,
        time_scale=known.time_scale,
        unknown_variables=fitted.unknown_variables,
        max_events=fitted.max_events,
        units=units,
    )


def _known_column(column: Mapping[str, Any], known: Mapping[str, Any] | None) -> dict[str, Any]:
    """The checkpoint's column of numbers; of categories the data's, whose features are matched by name."""
    if known is None or "categories" in column or "categories" in known:
        return dict(column)
    return dict(known)


def transferred_config(config: HyMaTEConfig, extractor: HyMaTEFeatureExtractor, **changes: Any) -> HyMaTEConfig:
    """The configuration of a checkpoint for the variables and static columns of another feature extractor."""
    sizes = {
        "num_variables": extractor.num_variables,
        "num_static_features": len(extractor.static_feature_names) if extractor.static_columns else 0,
    }
    return HyMaTEConfig.from_dict(config.to_dict() | sizes | changes)


@torch.no_grad()
def transfer_weights(
    model: PreTrainedModel,
    state: Mapping[str, torch.Tensor],
    known: HyMaTEFeatureExtractor,
    extractor: HyMaTEFeatureExtractor,
) -> Transfer:
    """Copy a checkpoint's weights into a model for other variables.

    Every parameter of equal meaning is copied whole; of those with an entry per variable or static feature, the
    entries of what both know. All others keep their initial values, and so does a head that the checkpoint lacks or
    that has other labels.

    Args:
        model: freshly initialized, for `extractor`.
        state: the checkpoint's parameters by name.
        known: the checkpoint's feature extractor.
        extractor: what `merge_extractors` returned.

    Returns:
        What was shared.

    Raises:
        ValueError: if they share no variable, or a parameter differs in size for another reason.
    """
    transfer = _compared(known, extractor)
    per_variable = _dependent_sizes(model, "num_variables")
    per_feature = _dependent_sizes(model, "num_static_features")
    variables = _places(extractor.variables, known.variables)
    features = _places(extractor.static_feature_names, known.static_feature_names)
    heads = {name for name in model.state_dict() if name.startswith("classifier.")}
    for name, parameter in model.state_dict().items():
        if name not in state or (name in heads and state[name].shape != parameter.shape):
            continue
        source = state[name].to(parameter.device, parameter.dtype)
        if name in per_variable:
            last = any(name.startswith(prefix) for prefix in VARIABLES_LAST)
            _copy_entries(name, parameter, source, per_variable[name], variables, len(known.variables), last)
        elif name in per_feature:
            _copy_entries(
                name, parameter, source, per_feature[name], features, len(known.static_feature_names), last=False
            )
        elif source.shape != parameter.shape:
            raise ValueError(
                f"{name} is {tuple(source.shape)} in the checkpoint and {tuple(parameter.shape)} in the model"
            )
        else:
            parameter.copy_(source)
    return transfer


def _places(names: list[str], known: list[str]) -> tuple[list[int], list[int]]:
    """Where what both have stands in the first list, and where in the second."""
    position = {name: index for index, name in enumerate(known)}
    shared = [(index, position[name]) for index, name in enumerate(names) if name in position]
    return [index for index, _ in shared], [index for _, index in shared]


def _dependent_sizes(model: PreTrainedModel, field: str) -> dict[str, int]:
    """Parameter -> its dimension that grows with a field of the configuration."""
    size = getattr(model.config, field)
    if not size:
        return {}
    build: Callable[[HyMaTEConfig], PreTrainedModel] = type(model)
    larger = type(model.config).from_dict(model.config.to_dict() | {field: size + 1})
    with torch.device("meta"):
        other = build(larger).state_dict()
    found = {}
    for name, parameter in model.state_dict().items():
        grown = [axis for axis, (a, b) in enumerate(zip(parameter.shape, other[name].shape, strict=True)) if a != b]
        if grown:
            found[name] = grown[0]
    return found


def _copy_entries(
    name: str,
    parameter: torch.Tensor,
    source: torch.Tensor,
    axis: int,
    places: tuple[list[int], list[int]],
    size: int,
    last: bool,
) -> None:
    """Copy the entries of what both know along a dimension that holds some per variable."""
    here, there = places
    width, rest = divmod(source.shape[axis], size)
    if rest or source.movedim(axis, 0).shape[1:] != parameter.movedim(axis, 0).shape[1:]:
        raise ValueError(
            f"{name} is {tuple(source.shape)} in the checkpoint and {tuple(parameter.shape)} in the model"
        )
    order = (width, -1) if last else (-1, width)
    target, given = parameter.unflatten(axis, order), source.unflatten(axis, (width, size) if last else (size, width))
    dimension = axis + 1 if last else axis
    index = torch.tensor(here, device=parameter.device)
    chosen = given.index_select(dimension, torch.tensor(there, device=given.device))
    target.index_copy_(dimension, index, chosen)

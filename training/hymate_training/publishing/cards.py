"""Model cards: everything a card says about a model comes from the files that its run left in the folder.

`training_run.json` is the account that pretraining and fine-tuning leave, `evaluation*.json` are the reports of
`hymate evaluate` that lie beside it. A section whose data is missing says so. The text around the numbers is the
template `templates/model_card.md.j2`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import ModelCard
from jinja2 import Environment, StrictUndefined

from hymate_training.evaluation.metrics import METRICS, SMALLEST_GROUP, metric_titles
from hymate_training.files import write_file
from hymate_training.inference.checkpoints import EVALUATION_FILES, RUN_FILE, read_json
from hymate_training.markdown import as_code, as_name, as_prose, fenced
from hymate_training.publishing.card_decisions import coverage, decisions, horizon_lines, recalibration, worst_groups
from hymate_training.publishing.card_facts import GAPS, HEADLINES, facts
from hymate_training.publishing.card_header import card_data
from hymate_training.publishing.card_text import count_text, estimate_text, level_text, number_text, table
from hymate_training.publishing.privacy import (
    FAITHFULNESS_FILE,
    NOTES_FILE,
    check_text,
    is_small,
    public_plots,
    without_folders,
)
from modeling_hymate import HyMaTEConfig, HyMaTEFeatureExtractor
from modeling_hymate.value_statistics import CLIP_PERCENTILES

TEMPLATE = "model_card.md.j2"
# the line of the card's example that names the model; a push puts the repository's name there
PLACE = re.compile(r'^place = ".*"  # the folder of this card$', re.MULTILINE)
HEADER_EDIT = re.compile(r"(license|license_name|license_link|language|base_model): (?!\S*\d{5})[\w./:-]{1,100}")
SHOWN_SUBGROUP_METRICS = {
    "binary": ("auroc", "auprc", "expected_calibration_error"),
    "multiclass": ("accuracy", "auroc_macro"),
    "multilabel": ("auroc_macro", "auprc_macro"),
    "regression": ("mae", "rmse"),
    "time_to_event": ("concordance", "integrated_brier_score"),
}
SHOWN_SHARES = 10
LISTED_VARIABLES = 200
OUTPUTS = {
    "binary": "probabilities of {labels}",
    "multiclass": "probabilities of {labels}, which sum to one",
    "multilabel": "a probability for each of {labels}",
    "regression": "numbers: {labels}",
    "time_to_event": "the risk of {labels} within hours to come",
}


def write_model_card(folder: str | Path) -> Path:
    """Writes README.md into a checkpoint's folder, from what lies in it; returns its path.

    The YAML header holds the metrics in `model-index` form. An earlier card is replaced.

    Raises:
        ValueError: if the folder is no checkpoint, or a file in it is not what it should be.
    """
    folder = Path(folder)
    text = str(model_card(folder))
    write_file(folder / "README.md", text)
    return folder / "README.md"


def model_card(folder: str | Path) -> ModelCard:
    """The card of the checkpoint in `folder`; see `write_model_card`."""
    folder = Path(folder)
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a checkpoint: it lacks {name}")
    config = HyMaTEConfig.from_pretrained(folder)
    extractor = HyMaTEFeatureExtractor.from_pretrained(folder)
    run = read_json(folder / RUN_FILE) if (folder / RUN_FILE).is_file() else {}
    evaluations = [read_json(path) for path in sorted(folder.glob(EVALUATION_FILES))]
    for evaluation in evaluations:
        if "metrics" not in evaluation or evaluation.get("problem_type") not in METRICS:
            raise ValueError(f"{folder}: an {EVALUATION_FILES} is not what `hymate evaluate` writes")
    task, data = run.get("task") or {}, run.get("data") or {}
    problem_type = task.get("problem_type")
    title = _title(task, data)
    labels = ", ".join(map(as_code, task.get("label_names", [])))
    snippet = _snippet(folder.resolve().name, config, extractor, evaluations)
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, autoescape=False
    )
    template = environment.from_string(
        resources.files("hymate_training.publishing").joinpath("templates", TEMPLATE).read_text(encoding="utf-8")
    )
    text = template.render(
        card_data=card_data(title, problem_type, evaluations, run.get("checkpoint")).to_yaml(),
        title=as_name(title),
        size=f", with {run['parameters']:,} parameters" if run.get("parameters") else "",
        purpose=_purpose(task, config),
        facts=facts(run, evaluations, extractor),
        gaps="\n".join(f"- {gap}" + (";" if gap != GAPS[-1] else ".") for gap in GAPS),
        snippet=fenced(snippet, "python"),
        variables=_variables(extractor),
        intended_use=(
            f"Research on {as_code(task['name'])}, a {problem_type} task: benchmarking, method development, and the "
            f"study of what a model attends to. It returns {OUTPUTS[task['problem_type']].format(labels=labels)}."
            if task
            else "A starting point for fine-tuning (`hymate finetune --checkpoint`), and a source of representations "
            "of records for research. It has no head for any clinical question."
        ),
        data=_data(run),
        preprocessing=_preprocessing(extractor, run),
        training=_training(run),
        evaluations=[_evaluation(evaluation, folder, run) for evaluation in evaluations],
        forecast=_forecast(run),
        notes=_notes(folder),
        explanations=_explanations(folder),
        citation=as_prose(data.get("citation") or ""),
    )
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text))


def card_difference(text: str, rendered: str) -> int | None:
    """The first line in which a card differs from the rendered one by more than may be edited; None if in none.

    May be edited: in the header, license, license_name, license_link, language and base_model, one word each; in the
    example, the place of the model.
    """

    def comparable(card: str) -> list[tuple[int, str]]:
        lines = [(number, PLACE.sub("place", line)) for number, line in enumerate(card.splitlines(), start=1)]
        header = next((number for number, line in lines[1:] if line == "---"), 0)
        return [(number, line) for number, line in lines if number > header or not HEADER_EDIT.fullmatch(line)]

    own, expected = comparable(text), comparable(rendered)
    for (number, line), (_, other) in zip(own, expected, strict=False):
        if line != other:
            return number
    if len(own) == len(expected):
        return None
    return own[len(expected)][0] if len(own) > len(expected) else len(text.splitlines()) + 1


# -------------------------------------------------------------------------------------------------------- sections


def _title(task: Mapping, data: Mapping) -> str:
    subject = task.get("name", "pretrained encoder")
    return f"HyMaTE, {subject}" + (f", {data['source']}" if data.get("source") else "")


def _purpose(task: Mapping, config: HyMaTEConfig) -> str:
    if not task:
        is_classifier = "HyMaTEForSequenceClassification" in (config.architectures or [])
        return (
            "How it was trained is not recorded." if is_classifier else "It was pretrained to forecast measurements."
        )
    description = str(task.get("description") or task["name"]).strip()
    return f"It predicts: {as_prose(description[:1].lower() + description[1:].rstrip('.'))}."


def _snippet(
    name: str, config: HyMaTEConfig, extractor: HyMaTEFeatureExtractor, evaluations: Sequence[Mapping]
) -> str:
    """Code that runs on a record made up of the training data's typical values."""
    ranked = [name for evaluation in evaluations[:1] for name in evaluation.get("variable_shares", {})]
    known = [name for name in ranked if name in extractor.variables] or extractor.variables
    ids = [extractor.variables.index(name) for name in known[:3]]
    typical = extractor.destandardize(np.array(ids, dtype=np.int64), np.zeros(len(ids)))
    record = {
        "time": [round(1.5 * at, 1) for at in range(len(ids))],
        "variable": known[:3],
        "value": [_significant(value) for value in typical],
    }
    static = {
        column["name"]: column["categories"][0] if "categories" in column else _significant(column["mean"])
        for column in extractor.static_columns
        if column.get("categories", True)
    }
    lines = [f"    {json.dumps(key)}: {json.dumps(column, ensure_ascii=False)}," for key, column in record.items()]
    example = ["record = {", *lines, "}"]
    if static:
        example.append(f"static = {json.dumps(static, ensure_ascii=False)}")
    arguments = "record, static" if static else "record"
    place = f"place = {json.dumps(name, ensure_ascii=False)}  # the folder of this card"
    if "HyMaTEForSequenceClassification" in (config.architectures or []):
        return "\n".join(
            [
                "from transformers import pipeline",
                "",
                place,
                'classify = pipeline("ehr-classification", model=place, trust_remote_code=True)',
                *example,
                f"result = classify({arguments})",
                'print(result["scores"])  # and "top_events", "top_variables": where the model looked',
            ]
        )
    return "\n".join(
        [
            "from transformers import AutoFeatureExtractor, AutoModel",
            "",
            place,
            "extractor = AutoFeatureExtractor.from_pretrained(place, trust_remote_code=True)",
            "model = AutoModel.from_pretrained(place, trust_remote_code=True).eval()",
            *example,
            f"representation = model(**extractor({arguments})).pooler_output  # (records, width)",
        ]
    )


def _variables(extractor: HyMaTEFeatureExtractor) -> str:
    sentences, units = [], {name: as_name(unit) for name, unit in extractor.units.items()}
    if extractor.variables:
        listed = ", ".join(
            f"{as_code(name)} ({units[name]})" if name in units else as_code(name) for name in extractor.variables
        )
        named = (
            f": {listed}" if len(extractor.variables) <= LISTED_VARIABLES else ", listed in preprocessor_config.json"
        )
        sentences.append(f"The model knows {len(extractor.variables):,} variables{named}.")
    columns = [
        f"{as_code(column['name'])} "
        f"({', '.join(map(as_name, column.get('categories', [units.get(column['name'], 'number')])))})"
        for column in extractor.static_columns
    ]
    if columns:
        sentences.append(f"Static columns: {', '.join(columns)}; each may be unknown.")
    return " ".join(sentences)


def _data(run: Mapping) -> list[str]:
    data = run.get("data") or {}
    if not data:
        return []
    sources = run.get("sources") or []
    paragraphs = _sources(sources, run) if sources else _source(data)
    columns = {
        "records": run.get("num_records") or {},
        "examples": run.get("num_examples") or {},
        "fingerprint": run.get("split_fingerprints") or {},
    }
    columns = {name: column for name, column in columns.items() if column}
    if columns:
        splits = list(dict.fromkeys(split for column in columns.values() for split in column))
        rows = [[split, *(count_text(column.get(split)) for column in columns.values())] for split in splits]
        paragraphs.append(table(["split", *columns], rows))
    if "fingerprint" in columns:
        paragraphs.append(
            "A fingerprint is 16 hex digits of a SHA-256 over a split's predictions and labels: where it is the same, "
            "the split is."
        )
    return paragraphs + _left_out(data)


def _source(data: Mapping) -> list[str]:
    return [
        f"{as_name(data['source'])}. License: {as_code(data.get('license') or 'not recorded')}.",
        *(as_prose(data[name]) for name in ("description", "split_description") if data.get(name)),
    ]


def _left_out(data: Mapping) -> list[str]:
    if not data.get("dropped"):
        return []
    counted = "; ".join(f"{as_name(reason)} ({count:,})" for reason, count in data["dropped"].items())
    return [f"Left out when the data were prepared: {counted}."]


def _sources(sources: Sequence[Mapping], run: Mapping) -> list[str]:
    """Several sources: their sizes and shares, what each shares with the others and how it is forecast; then each."""
    best, errors = _best_forecast(run) or {}, ("forecast_error", "carried_forward_error")
    rows = [
        [
            as_name(source["source"]),
            *(f"{source['num_records'][split]:,}" for split in ("train", "validation")),
            f"{source['share_of_epoch']:.0%}",
            f"{source['num_variables']:,}",
            f"{source['num_shared_variables']:,}",
            *("-" if (error := best.get(f"{name}_source{at}")) is None else number_text(error) for name in errors),
        ]
        for at, source in enumerate(sources, start=1)
    ]
    head = ("source", "training records", "validation records", "share of an epoch", "variables")
    titles = ("error of its forecast", "error of the last value")
    return [
        f"{len(sources)} sources, each prepared with `--concepts`, so that a variable means the same in all of them.",
        table([*head, "of them in another source", *titles], rows),
        *("\n\n".join([*_source(source), *_left_out(source)]) for source in sources),
        "All of them:",
    ]


def _best_forecast(run: Mapping) -> Mapping | None:
    """The metrics of the epoch of a pretraining run whose weights were kept."""
    history = [entry for entry in run.get("history", []) if entry.get("forecast_error") is not None]
    return max(history, key=lambda entry: entry["score"], default=None)


def _preprocessing(extractor: HyMaTEFeatureExtractor, run: Mapping) -> str:
    if not extractor.variables:
        return ""
    fitted_on = "the training split of the pretraining" if run.get("checkpoint") else "the training split"
    logarithmic = sum(median is not None for median in extractor.value_medians)
    return (
        "Values are clipped to their variable's range in the training records (percentiles "
        f"{CLIP_PERCENTILES[0]} to {CLIP_PERCENTILES[1]}), put on a logarithmic scale for {logarithmic} of "
        f"{len(extractor.variables)} variables, whose skew that cuts, and standardized. Times are divided by "
        f"{extractor.time_scale:.4g} hours. Static columns become {len(extractor.static_feature_names)} features, "
        f"indicators of missing values among them. All of it was fitted on {fitted_on} and lies in "
        "`preprocessor_config.json`."
    )


def _training(run: Mapping) -> list[str]:
    if not run:
        return []
    paragraphs = []
    if run.get("command"):
        paragraphs.append(fenced(without_folders(run["command"]), "bash"))
    sentences = []
    if "epochs" in run:
        sentences.append(f"{run['epochs']} epochs with seed {run.get('seed', 'not recorded')}.")
    if run.get("best_step"):
        score, refit = run.get("best_score"), run.get("refit")
        shown = "" if score is None else f" (selection score on the validation split {score:.4f})"
        best = "The best weights were" if refit else "The weights are"
        sentences.append(f"{best} those of step {run['best_step']:,}{shown}.")
        if refit:
            sentences.append(
                f"The published weights were then trained from the start on the training and the validation split "
                f"together ({refit['num_records']:,} records), for as many epochs ({refit['epochs']})."
            )
    if run.get("checkpoint"):
        sentences.append(f"It started from the pretrained weights {as_code(run['checkpoint'])}.")
    elif run.get("kind") == "finetune":
        sentences.append("It started from random weights.")
    if run.get("temperature") not in (None, 1.0):
        shifted = "shifted and " if run.get("logit_shift") else ""
        sentences.append(
            f"Logits are {shifted}divided by a temperature of {run['temperature']:.3g}, fitted on the validation "
            "split, before they become probabilities."
        )
    seconds = [entry["seconds"] for entry in run.get("history", []) if entry.get("seconds") is not None]
    if seconds:
        sentences.append(f"An epoch took {np.mean(seconds):,.1f} s on average.")
    if sentences:
        paragraphs.append(" ".join(sentences))
    for name in ("hardware", "versions"):
        if run.get(name):
            shown = ", ".join(
                f"{as_name(key)} {as_name(value)}" for key, value in run[name].items() if value is not None
            )
            paragraphs.append(f"{name.capitalize()}: {shown}.")
    if run.get("recipe"):
        options = yaml.safe_dump(dict(run["recipe"]), sort_keys=False, allow_unicode=True).strip()
        paragraphs.append(f"<details><summary>Options</summary>\n\n{fenced(options, 'yaml')}\n\n</details>")
    return paragraphs


def _explanations(folder: Path) -> list[str]:
    """Whether explanations of the model are faithful, as far as that was measured."""
    if not (folder / FAITHFULNESS_FILE).is_file():
        return []
    found = read_json(folder / FAITHFULNESS_FILE)
    lines = [
        as_prose(f"- **{finding['method']}: {finding['verdict']}.** It {finding['ranking']}. {finding['areas']}")
        for finding in found["findings"]
    ]
    return [
        "Each method ranks the events of a record. They are removed in that order (deletion), or handed over in it "
        f"(insertion), and the model predicts again, for {found['num_records']:,} records: {as_name(found['title'])}.",
        "\n".join(lines),
    ]


def _notes(folder: Path) -> str:
    """The author's own part of the card; ValueError if it holds what no card may."""
    path = folder / NOTES_FILE
    if not path.is_file():
        return ""
    try:
        return check_text(path).strip()
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def _forecast(run: Mapping) -> str:
    """What a pretraining run measured: its forecast against the two that anyone can make."""
    if (best := _best_forecast(run)) is None:
        return ""
    shown = {
        "forecast": best["forecast_error"],
        "last value carried forward": best.get("carried_forward_error"),
        "the training data's mean": best.get("mean_error"),
    }
    figures = "; ".join(f"{name} {value:.4f}" for name, value in shown.items() if value is not None)
    return (
        "Not evaluated on a clinical task. Masked mean squared error of the forecast on the validation split, in "
        f"standardized units: {figures}."
    )


def _evaluation(evaluation: Mapping, folder: Path, run: Mapping) -> dict[str, Any]:
    problem_type = evaluation["problem_type"]
    parts = [evaluation.get("task"), f"{evaluation['split']} split" if evaluation.get("split") else None]
    title = ", ".join(as_name(part) for part in (*parts, evaluation.get("source")) if part)
    plots = [name for name in public_plots(evaluation) if (folder / name).is_file()]
    images = {name: f"![{_plot_title(name)}]({name})" for name in plots}
    calibration = [image for name, image in images.items() if "reliability" in name]
    error = evaluation["metrics"].get("expected_calibration_error")
    if calibration and error is not None:
        calibration.insert(0, f"Expected calibration error {estimate_text(evaluation, 'expected_calibration_error')}.")
    if sentence := recalibration(evaluation):
        calibration.insert(0, sentence)
    if sentence := coverage(evaluation):
        calibration.append(sentence)
    figures = [_size(evaluation), _metrics_table(evaluation), _method(evaluation), *_differences(evaluation)]
    undefined = [
        f"{metric_titles(problem_type)[name]}: {as_name(reason)}"
        for name, reason in evaluation.get("undefined", {}).items()
    ]
    if undefined:
        figures.append(f"Not defined: {'; '.join(undefined)}.")
    if evaluation.get("split") == "validation" and run.get("best_step"):
        figures.append(
            "This split also chose the weights, so its metrics are somewhat better than those of new records."
        )
    if evaluation.get("split") == "validation" and run.get("refit"):
        figures.append(
            "They were measured with weights that were trained on the training split alone. The published weights "
            "were trained on this split, too."
        )
    if evaluation.get("per_label"):
        figures.append("Each label against the rest:")
        figures.append(_reports_table("label", evaluation["per_label"], "binary"))
    if evaluation.get("horizons"):
        figures += horizon_lines(evaluation["horizons"])
    if evaluation.get("by_hour"):
        figures.append("Asked at each of these hours:")
        figures.append(_reports_table("hour", evaluation["by_hour"], problem_type))
    figures += [
        image for name, image in images.items() if not name.endswith(("reliability.png", "decision_curve.png"))
    ]
    decided = decisions(evaluation)
    decided += [image for name, image in images.items() if name.endswith("decision_curve.png")]
    subgroups = [
        _reports_table(name, groups, problem_type) for name, groups in (evaluation.get("subgroups") or {}).items()
    ]
    if subgroups:
        if line := worst_groups(evaluation):
            subgroups.insert(0, line)
        subgroups.append(
            "Intervals of small groups are wide, and a group in which all outcomes are the same has no ranking metric."
        )
    shares = list(evaluation.get("variable_shares", {}).items())[:SHOWN_SHARES]
    return {
        "title": title or "Metrics",
        "figures": [paragraph for paragraph in figures if paragraph],
        "decisions": decided,
        "calibration": calibration,
        "subgroups": subgroups,
        "shares": shares
        and "Variables by mean share of the attention:\n\n"
        + table(["variable", "share"], [[as_code(name), f"{share:.1%}"] for name, share in shares]),
    }


def _size(report: Mapping) -> str:
    parts = [f"{report['n']:,} examples"]
    if report.get("num_records") not in (None, report["n"]):
        parts[0] += f" of {report['num_records']:,} records"
    if report.get("positives") is not None:
        parts.append(f"{report['positives']:,} positive ({report['positives'] / report['n']:.1%})")
    if report.get("split_fingerprint"):
        parts.append(f"fingerprint {as_code(report['split_fingerprint'])}")
    return ", ".join(parts) + "."


def _metrics_table(evaluation: Mapping) -> str:
    """The model beside its baselines."""
    reports = {"HyMaTE": evaluation, **(evaluation.get("baselines") or {})}
    titles = metric_titles(evaluation["problem_type"])
    rows = [
        [titles[name], *(estimate_text(report, name) for report in reports.values())]
        for name in titles
        if name in evaluation["metrics"]
    ]
    return table(["metric", *map(as_name, reports)], rows)


def _differences(evaluation: Mapping) -> list[str]:
    """A sentence per baseline: the model minus it in the metrics that come first."""
    titles, sentences = metric_titles(evaluation["problem_type"]), []
    for name, found in (evaluation.get("baselines") or {}).items():
        parts = [
            f"{titles[metric]} {one['difference']:+.4f} [{one['interval'][0]:+.4f}, {one['interval'][1]:+.4f}]"
            for metric in HEADLINES[evaluation["problem_type"]]
            if (one := found.get("differences", {}).get(metric)) and one["interval"]
        ]
        if parts:
            sentences.append(f"HyMaTE minus {as_name(name)}, on the same resamples: {', '.join(parts)}.")
    return sentences


def _method(evaluation: Mapping) -> str:
    bootstrap = evaluation.get("bootstrap") or {}
    method = (
        f"In brackets: {level_text(bootstrap)} intervals from {bootstrap['num_samples']:,} bootstrap samples of "
        f"{bootstrap.get('resampled', 'records')}."
        if bootstrap.get("num_samples")
        else ""
    )
    baselines = evaluation.get("baselines") or {}
    tuned = [
        f"{as_name(name)} was tuned by the log-loss of the validation split: "
        f"{', '.join(f'{as_code(key)} {value:g}' for key, value in found['settings'].items())}."
        for name, found in baselines.items()
        if found.get("settings")
    ]
    return " ".join(part for part in (method, *tuned, "" if baselines else "Baselines: not evaluated.") if part)


def _reports_table(heading: str, reports: Mapping[str, Mapping], problem_type: str) -> str:
    """One row per report. Groups of few records are hidden, and the positives with them, which sums would reveal."""
    names = SHOWN_SUBGROUP_METRICS[problem_type]
    hidden = {group for group, report in reports.items() if is_small(report)}
    counted = not hidden and all(report.get("positives") is not None for report in reports.values())
    head = [
        as_name(heading),
        "n",
        *(["positive"] if counted else []),
        *(METRICS[problem_type][name] for name in names),
    ]
    rows = []
    for group, report in reports.items():
        if group in hidden:
            rows.append([as_name(group), f"fewer than {SMALLEST_GROUP} records", *("not shown" for _ in names)])
            continue
        positives = [count_text(report["positives"])] if counted else []
        rows.append([as_name(group), f"{report['n']:,}", *positives, *(estimate_text(report, name) for name in names)])
    return table(head, rows)


def _significant(value: float) -> float:
    return float(f"{float(value):.3g}")


def _plot_title(name: str) -> str:
    return Path(name).stem.replace("_", " ")

"""The transfer table: cells that are run once, folds of a target, and the sources of the released encoder."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.evidence.release import MODEL_CARDS
from experiments.evidence.tables import paired
from experiments.icu import cells, sources, tables
from experiments.icu.cells import Cell, Workplace, run_cell
from experiments.icu.release import NAME, RECIPE, card_notes
from experiments.icu.sources import SOURCES, Source, prepare_sources
from experiments.icu.targets import ARMS, PERCENTAGES, TARGETS, Target
from hymate_training.cli.main import main
from hymate_training.cli.options import read_recipe
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation import trees
from hymate_training.fitting.finetuning import FinetuneOptions
from hymate_training.fitting.pretraining import PretrainOptions
from hymate_training.publishing.privacy import NOTES_FILE, check_text
from hymate_training.readers import READERS, synthetic
from tests.support.runs import TASK

SMALL = {"epochs": 1, "batch_size": 32}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Workplace:
    """Three small sources by concepts, and a target among them."""

    def prepare(names, data, output):
        for seed, name in enumerate(names):
            if not (output / name).is_dir():
                arguments = ["--num-records", "150", "--seed", str(7 * seed + len(name)), "--concepts"]
                assert main(["prepare", "synthetic", *arguments, "--output", str(output / name)]) == 0
        return {name: output / name for name in names}

    target = Target("death", "own", ("train", "validation"), TASK, ("other", "another"), SMALL)

    def in_this_process(command, arguments, output, recipe):
        assert main([command, "--recipe", recipe, *arguments]) == 0

    monkeypatch.setattr(cells, "prepare_sources", prepare)
    monkeypatch.setattr(cells, "hymate", in_this_process)
    monkeypatch.setitem(TARGETS, "own", target)
    monkeypatch.setattr(trees, "ONCE", replace(trees.ONCE, settings=trees.ONCE.settings[:1]))
    return Workplace(tmp_path / "raw", tmp_path / "work", tmp_path / "results", quick=True)


def test_targets_name_what_there_is():
    recipe = read_recipe(RECIPE)
    PretrainOptions(model=recipe["model"], **recipe["pretrain"])
    for target in TARGETS.values():
        assert {target.source, *target.others} <= set(SOURCES)
        assert target.source not in target.others or target.splits == ("test",)  # whose records pretrain nothing
        FinetuneOptions(model=recipe["model"], **recipe["finetune"] | target.finetune)
    assert {source.reader for source in SOURCES.values()} <= set(READERS)


def test_each_arm_is_run_once_and_fills_the_table(place, tmp_path):
    pytest.importorskip("xgboost")
    chosen = [Cell("own", arm, 25, fold) for arm in ARMS for fold in (0, 1)]
    for cell in chosen:
        run_cell(cell, place)
    before = {path: path.stat().st_mtime_ns for path in place.results.iterdir()}
    assert {path.stem for path in before} == {cell.name for cell in chosen}
    for cell in chosen:
        run_cell(cell, place)
    assert {path: path.stat().st_mtime_ns for path in place.results.iterdir()} == before
    # one encoder of the others for all folds, one of the same source for each
    assert {path.name for path in (place.work / "pretrained").iterdir()} == {"own-others", "own-fold0", "own-fold1"}
    others = json.loads((place.work / "pretrained" / "own-others" / "training_run.json").read_text())
    held = [PreparedFolder(place.work / "data" / name).fingerprint for name in ("other", "another")]
    assert [source["fingerprint"] for source in others["sources"]] == held
    test = set(PreparedFolder(place.work / "folds" / "own-25-fold0").record_ids["test"])
    own = PreparedFolder(place.work / "folds" / "own-100-fold0")
    assert not test & set(own.record_ids["train"])  # what the same source's encoder saw
    unit = json.loads((place.results / "own-others-25-fold0.json").read_text())
    assert unit["n"] == len(test)
    assert not set(json.dumps(unit).split('"')) & test  # names no record

    results = tables.read_results(place.results)
    page = tmp_path / "evidence.md"
    page.write_text(f"before\n<!-- begin {tables.MARKER} -->\n<!-- end {tables.MARKER} -->\nafter\n")
    for _ in range(2):
        tables.write_page(results, page)
        text = page.read_text()
        assert text.count("| 25% | 2 |") == 2  # AUROC and AUPRC
        assert text.startswith("before")
        assert text.endswith("after\n")
    others, scratch = (results["own", arm, 25] for arm in ("others", "scratch"))
    assert f"{paired(others, scratch, 'auroc')[0]:+.4f}" in text


def test_a_row_counts_the_folds_that_all_arms_have():
    samples = {name: np.linspace(0.7, 0.9, 21).tolist() for name in ("auroc", "auprc")}
    cell = {"metrics": {"auroc": 0.8, "auprc": 0.8}, "samples": samples}
    results = {("mortality", arm, 5): {0: cell, 1: cell} for arm in ARMS}
    results["mortality", "xgboost", 5] = {1: cell}
    text = tables.transfer_tables(results)
    assert text.count("| 5% | 1 |") == 2
    del results["mortality", "xgboost", 5]
    assert not tables.transfer_tables(results)


def test_the_card_has_room_for_what_other_sources_gain(tmp_path):
    samples = {name: np.linspace(0.7, 0.9, 21).tolist() for name in ("auroc", "auprc")}
    cell = {"metrics": {"auroc": 0.8, "auprc": 0.8}, "samples": samples}
    results = {
        (target, arm, percent): dict.fromkeys(range(5), cell)
        for target in TARGETS
        for arm in ARMS
        for percent in PERCENTAGES
    }
    (tmp_path / NOTES_FILE).write_text(card_notes(results))
    assert check_text(tmp_path / NOTES_FILE).count("| 25% | 5 |") == len(TARGETS)


def test_the_released_card_has_the_gains_of_the_documentation():
    assert card_notes(tables.read_results(tables.RESULTS)) in (MODEL_CARDS / NAME / NOTES_FILE).read_text()


def test_a_source_in_two_folders_takes_each_file_from_the_first(tmp_path, monkeypatch):
    for folder, names in (("whole", ("patient", "vital")), ("part", ("patient", "lab"))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.csv").write_text(folder)
    seen = {}

    def hymate(arguments):
        raw = arguments[arguments.index("--raw") + 1]
        seen.update({path.stem: path.read_text() for path in sources.Path(raw).iterdir()})
        return 0

    monkeypatch.setitem(SOURCES, "two", Source("eicu", ("whole", "part")))
    monkeypatch.setattr(sources, "hymate", hymate)
    folders = prepare_sources(["two"], tmp_path, tmp_path / "out")
    assert seen == {"patient": "whole", "vital": "whole", "lab": "part"}
    assert folders == {"two": tmp_path / "out" / "two"}
    monkeypatch.setattr(sources, "hymate", lambda arguments: 2)
    with pytest.raises(SystemExit):
        prepare_sources(["two"], tmp_path, tmp_path / "out")
    synthetic.prepare(tmp_path / "out" / "two", num_records=20, seed=0)
    prepare_sources(["two"], tmp_path, tmp_path / "out")  # is there

"""Options of the commands: none is lost, recipes hold known ones, and every help text is a sentence."""

import argparse
import importlib
import json
from pathlib import Path

import pytest

from hymate_training.cli import main as cli
from hymate_training.cli.options import add_option_flags, read_options, shipped_recipes
from hymate_training.fitting.finetuning import FinetuneOptions
from hymate_training.fitting.pretraining import PretrainOptions
from hymate_training.readers import READERS

# the options of the first complete command line; later ones may only add to them
EARLIER = json.loads(Path(__file__).with_name("options.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, and of each source of `prepare`, by its name."""
    found = {}
    for name in cli.COMMANDS:
        found[name] = argparse.ArgumentParser(prog=name)
        importlib.import_module(f"hymate_training.cli.{name}").add_arguments(found[name])
    for action in found["prepare"]._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {f"prepare {source}": parser for source, parser in action.choices.items()}
    return found


def options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {
        option: action
        for action in parser._actions
        for option in action.option_strings
        if option not in ("-h", "--help") and not isinstance(action, argparse._HelpAction)
    }


def test_no_option_is_lost(parsers):
    for command, names in EARLIER.items():
        missing = set(names) - set(options(parsers[command]))
        assert not missing, f"{command} lost {missing}"
    assert {f"prepare {name}" for name in READERS} <= set(parsers)


@pytest.mark.parametrize("command", EARLIER)
def test_help_texts_are_sentences(command, parsers):
    texts = [cli.COMMANDS.get(command, "Of a source."), *(one.help for one in options(parsers[command]).values())]
    wrong = [text for text in texts if not text or not text[0].isupper() or text[-1] != "."]
    assert not wrong


def test_recipes_hold_only_known_options():
    for recipe in shipped_recipes():
        arguments = argparse.Namespace(recipe=recipe)
        assert read_options(PretrainOptions, "pretrain", arguments).model["hidden_size"] > 0
        assert read_options(FinetuneOptions, "finetune", arguments).epochs > 0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("finetuen:\n  epochs: 3\n", "sections model, pretrain, finetune, each with named options, not 'finetuen'"),
        ("finetune:\n  epoch: 3\n", "unknown option 'epoch'"),
        ("finetune:\n  epochs: many\n", "option 'epochs' must be int, got 'many'"),
        ("- epochs\n", "must hold the sections"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_recipe_that_says_something_else_is_refused(recipe, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(ValueError, match=message):
        read_options(FinetuneOptions, "finetune", argparse.Namespace(recipe=str(path)))


def test_flags_win_over_the_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model:\n  hidden_size: 8\n  expand: 1\nfinetune:\n  epochs: 3\n  patience: 2\n")
    parser = argparse.ArgumentParser()
    add_option_flags(parser, FinetuneOptions)
    args = parser.parse_args(["--recipe", str(path), "--epochs", "5", "--model", "expand=2", "--pos-weight", "none"])
    found = read_options(FinetuneOptions, "finetune", args)
    assert (found.epochs, found.patience, found.pos_weight) == (5, 2, None)
    assert found.model == {"hidden_size": 8, "expand": 2}


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("hymate ")

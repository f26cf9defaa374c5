"""Options of a command from a recipe file and flags: dataclass fields become flags, flags win over the recipe."""

import argparse
import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

Options = TypeVar("Options")
SECTIONS = ("model", "pretrain", "finetune")


def add_option_flags(parser: argparse.ArgumentParser, options: type) -> None:
    """Adds `--recipe` and one flag per field of the dataclass `options`."""
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help="YAML file of options, or the name of a recipe that comes with the package: "
        f"{', '.join(shipped_recipes())}. Flags win over it.",
    )
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        default = field.default if field.default is not dataclasses.MISSING else None
        text = field.metadata["help"] if default is None else f"{field.metadata['help'][:-1]} (default: {default})."
        flag = f"--{field.name.replace('_', '-')}"
        parse, optional = _parser_of(hints[field.name])
        if parse is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        elif parse is list:
            (kind,) = get_args(hints[field.name])
            parser.add_argument(flag, nargs="+", type=kind, default=argparse.SUPPRESS, help=text)
        elif parse is dict:
            parser.add_argument(flag, nargs="+", metavar="NAME=VALUE", default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(
                flag, type=_or_none(parse) if optional else parse, default=argparse.SUPPRESS, help=text
            )


def read_options(options: type[Options], section: str, args: argparse.Namespace) -> Options:
    """Options of the recipe's `section`, overridden by the flags that were given.

    The recipe's section `model` holds fields of HyMaTEConfig for all commands.

    Raises:
        ValueError: for a recipe that is not there, a section or an option that does not exist, or a value of the
            wrong type.
    """
    hints = get_type_hints(options)
    recipe = read_recipe(args.recipe) if args.recipe else {}
    given = dict(recipe.get(section) or {})
    if recipe.get("model"):
        given["model"] = {**recipe["model"], **given.get("model", {})}
    unknown = sorted(set(given) - set(hints))
    if unknown:
        raise ValueError(f"recipe {args.recipe}, section {section!r}: unknown option {unknown[0]!r}")
    for name, value in given.items():
        given[name] = _checked(name, value, hints[name], args.recipe)
    for name, hint in hints.items():
        if hasattr(args, name):
            value = getattr(args, name)
            given[name] = given.get(name, {}) | _pairs(name, value) if _parser_of(hint)[0] is dict else value
    return options(**given)


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe by file name, or by the name of one that comes with the package.

    Raises:
        ValueError: if there is none, it is not YAML, or it holds something else than known sections of options.
    """
    path = Path(name) if Path(name).is_file() else _recipe_folder() / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"recipe {name!r} is neither a file nor one of {', '.join(shipped_recipes())}")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is not valid YAML: {error}") from error
    named = isinstance(recipe, dict) and all(isinstance(part, dict) for part in recipe.values())
    if not named or not set(recipe) <= set(SECTIONS):
        strange = f", not {next(iter(set(recipe) - set(SECTIONS)))!r}" if named else ""
        raise ValueError(
            f"recipe {path} must hold the sections {', '.join(SECTIONS)}, each with named options{strange}"
        )
    return recipe


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _recipe_folder().glob("*.yaml"))


def _recipe_folder() -> Path:
    return Path(__file__).parent / "recipes"


def _parser_of(hint: Any) -> tuple[type, bool]:
    if isinstance(hint, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return (kinds[0] if len(kinds) == 1 else str), True
    return getattr(hint, "__origin__", hint), False


def _or_none(parse: type) -> Callable[[str], Any]:
    def parse_or_none(text: str) -> Any:
        return None if text.lower() == "none" else parse(text)

    parse_or_none.__name__ = parse.__name__  # argparse names it in its error message
    return parse_or_none


def _checked(name: str, value: Any, hint: Any, recipe: str) -> Any:
    if isinstance(value, list) and _parser_of(hint)[0] is list:
        return [_checked(name, item, get_args(hint)[0], recipe) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and _parser_of(hint)[0] is float:
        return float(value)
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (getattr(hint, "__origin__", hint),)
    if type(value) not in kinds:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"recipe {recipe}: option {name!r} must be {wanted}, got {value!r}")
    return value


def _pairs(name: str, texts: list[str]) -> dict[str, Any]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--{name.replace('_', '-')}: {text!r} must have the form NAME=VALUE")
        try:
            pairs[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag}: {key}={value} is neither a number, a word nor a list") from None
    return pairs

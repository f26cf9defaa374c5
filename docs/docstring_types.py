"""What griffe does not see: transformers' way with types, and `option` fields."""

import ast
import re
from typing import Any

import griffe

TYPE = re.compile(
    r"^(?P<type>`.+?`(?: or `.+?`)*)"
    r"(?:, (?P<optional>\*optional\*))?"
    r"(?:, defaults to (?P<default>.+))?$"
)


class DocstringTypes(griffe.Extension):
    """For the tables of the reference.

    "`int`, defaults to 64" in a docstring becomes a type and a default. A field
    `option(default, description)` becomes an attribute with that description.
    """

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        rewrite(pkg)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        value = attr.value
        if (
            isinstance(value, griffe.ExprCall)
            and str(value.function) == "option"
            and len(value.arguments) == 2
        ):
            default, description = value.arguments
            attr.docstring = griffe.Docstring(
                ast.literal_eval(str(description)), parent=attr
            )
            attr.value = default


def rewrite(owner: griffe.Object) -> None:
    for section in owner.docstring.parsed if owner.docstring else ():
        if section.kind in (
            griffe.DocstringSectionKind.parameters,
            griffe.DocstringSectionKind.attributes,
        ):
            for element in section.value:
                found = TYPE.match(str(element.annotation))
                if found:
                    element.annotation = (
                        found["type"].replace("`", "").replace(" or ", " | ")
                    )
                    if found["optional"] or found["default"]:
                        element.value = (found["default"] or "None").strip("`")
    for member in owner.members.values():
        if not member.is_alias and (
            member.is_class or member.is_function or member.is_module
        ):
            rewrite(member)

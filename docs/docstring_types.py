"""Types as transformers' docstrings have them: "`int`, defaults to 64"."""

import re
from typing import Any

import griffe

TYPE = re.compile(
    r"^(?P<type>`.+?`(?: or `.+?`)*)"
    r"(?:, (?P<optional>\*optional\*))?"
    r"(?:, defaults to (?P<default>.+))?$"
)


class DocstringTypes(griffe.Extension):
    """Splits them into a type and a default, for the tables of the reference."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        rewrite(pkg)


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

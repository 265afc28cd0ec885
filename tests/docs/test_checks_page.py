"""`docs/checks.md` lists the code of every check, and no other."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


HELPERS = ("refuse",)  # make a fault of (found, remedy, code)


def _name(function):
    return getattr(function, "id", getattr(function, "attr", ""))


def codes_and_calls_without():
    """The codes of all `Fault`s that the code makes, and the places of those that name none."""
    codes, without = set(), []
    for path in sorted((ROOT / "stages").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name in HELPERS:
                codes |= {default.value for default in node.args.defaults if isinstance(default, ast.Constant)}
            if isinstance(node, ast.Call) and _name(node.func) in HELPERS:
                codes |= {argument.value for argument in node.args[2:3] if isinstance(argument, ast.Constant)}
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and path.name == "nifti.py":
                codes |= {part.value for part in node.value.elts[2:3] if isinstance(part, ast.Constant)}
            if not (isinstance(node, ast.Call) and _name(node.func) == "Fault"):
                continue
            if any(isinstance(argument, ast.Starred) for argument in node.args):
                continue  # a fault that was kept as it was found
            named = [*node.args[3:4], *(keyword.value for keyword in node.keywords if keyword.arg == "code")]
            if len(named) == 1 and isinstance(named[0], ast.Constant):
                codes.add(named[0].value)
            elif len(named) == 1 and isinstance(named[0], ast.Name) and named[0].id == "code":
                continue  # in a helper, whose calls name it
            else:
                without.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return codes, without


def test_every_fault_names_its_check():
    assert codes_and_calls_without()[1] == []


def test_the_page_of_checks_lists_every_code_and_no_other():
    page = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)

    assert set(listed) == codes_and_calls_without()[0]
    assert len(listed) == len(set(listed))

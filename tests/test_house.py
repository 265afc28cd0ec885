"""Imports point one way: lrls_cli, stages/*.py, planning, then answering and training, methods, generating, parts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = {  # modules that every room may use
    "case_ids", "compute_settings", "config", "cores", "dask_cases", "dask_clusters", "dask_worker", "device",
    "errors", "memory", "processes", "progress", "ranks", "reviewed", "scan_settings", "sections", "seeds", "speed",
    "stopping", "text_files",
}  # fmt: skip
# What a room may import besides itself. The base modules import one another only; parts know none but the errors.
MAY_IMPORT = {
    "lrls_cli": {"stages", "answering", "artifacts", "data", "methods", "planning", "training", "base"},
    "stages": {
        "answering", "planning", "training", "methods", "generating", "parts", "data", "artifacts", "pictures", "base",
        "reporting",
    },
    "planning": {"answering", "training", "methods", "generating", "parts", "data", "artifacts", "base"},
    "training": {"answering", "methods", "generating", "parts", "data", "artifacts", "pictures", "base"},
    "reporting": {"answering", "methods", "parts", "data", "artifacts", "base"},
    "answering": {"methods", "generating", "parts", "data", "artifacts", "pictures", "base"},
    "methods": {"generating", "parts", "artifacts", "base"},
    "generating": {"parts", "artifacts", "pictures", "base"},
    "data": {"parts", "artifacts", "base"},
    "artifacts": {"parts", "base"},
    "pictures": {"parts"},
    "parts": {"errors"},
    "base": set(),
}  # fmt: skip
PARTS_ROOMS = {  # within parts: what learns is built of networks, losses and batches
    "networks": set(),
    "losses": set(),
    "batches": set(),
    "players": {"networks", "losses", "batches"},
}


def room_of(module: str) -> str:
    """The room of a module's dotted name."""
    names = module.split(".")
    if names[0] == "lrls_cli":
        return "lrls_cli"
    if len(names) > 1 and names[1] in BASE:
        return "base"
    return names[1] if len(names) > 1 and names[1] in MAY_IMPORT else "stages"


def imports(path: Path) -> set[str]:
    """Dotted names of our own modules that a file imports, wherever in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("stages", "lrls_cli"):
            assert node.level == 0
            for name in node.names:  # `from stages.data import intake` imports stages.data.intake
                inside = f"{node.module}.{name.name}"
                is_module = (ROOT / inside.replace(".", "/")).with_suffix(".py").exists()
                modules.add(inside if is_module else node.module)
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names if name.name.split(".")[0] in ("stages", "lrls_cli")}
    return modules


def modules() -> list[str]:
    files = [*(ROOT / "stages").rglob("*.py"), *(ROOT / "lrls_cli").rglob("*.py")]
    return sorted(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files)


def path_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    own = [module for module in modules() if room_of(module) == room]
    assert own, f"there is no room {room}"
    against = []
    for module in own:
        for imported in imports(path_of(module)):
            other = room_of(imported)
            allowed = other == room or other in MAY_IMPORT[room]
            allowed |= imported == "stages.errors" and "errors" in MAY_IMPORT[room]
            if not allowed:
                against.append(f"{module} imports {imported}")
    assert against == []


@pytest.mark.parametrize("room", PARTS_ROOMS)
def test_parts_are_filed_by_one_principle(room):
    against = []
    for module in modules():
        if not module.startswith(f"stages.parts.{room}"):
            continue
        for imported in imports(path_of(module)):
            other = imported.split(".")[2] if imported.startswith("stages.parts.") else ""
            if other in PARTS_ROOMS and other != room and other not in PARTS_ROOMS[room]:
                against.append(f"{module} imports {imported}")
    assert against == []


def test_stages_call_no_other_stage_but_by_the_workflow():
    stage_files = {
        "preprocess",
        "train_reg",
        "generate",
        "train_seg",
        "evaluate",
        "predict",
        "compare",
        "suggest_atlas",
    }
    against = []
    for stage in stage_files:
        others = {module.split(".")[1] for module in imports(ROOT / "stages" / f"{stage}.py") if module.count(".") >= 1}
        against += [f"{stage} imports {other}" for other in others & stage_files - {stage}]
    assert against == []


def test_no_stage_file_asks_what_kind_of_data_a_recipe_generates():
    writers = {"PathBank", "WarpedAtlases", "PropagatedLabels", "DrawnScans", "PseudoLabels"}
    against = []
    for module in modules():
        if room_of(module) in ("methods", "generating"):
            continue
        names = {
            node.id
            for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8")))
            if isinstance(node, ast.Name)
        }
        against += [f"{module} names {writer}" for writer in writers & names]
    assert against == []


def test_files_are_short_enough_to_be_read():
    most = {"stages.methods.sst": 450}  # four networks and four phases of training: the longest of the papers
    long = {
        module: lines
        for module in modules()
        if (lines := len(path_of(module).read_text(encoding="utf-8").splitlines())) > most.get(module, 400)
    }
    assert long == {}

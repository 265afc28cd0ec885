"""The folder of a report: `index.html`, and a script and a thumbnail per scan, pictures as files.

index.html            everything but the volumes of scans; styles and scripts stand in it
cases/<number>.js     volumes and rows of a scan; loaded when it is opened
thumbs/<number>.webp  pictures/<number>.webp
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from stages.artifacts.digests import digest_of
from stages.errors import plural
from stages.reporting import charts, summary, words
from stages.reporting.encoding import as_webp, hex_color
from stages.reporting.glossary import GLOSSARY
from stages.reporting.runs import Gathered
from stages.reporting.scans import Reported, flagged

TEMPLATES = Path(__file__).parent / "templates"
GENERATOR = "lrls report"  # by which a folder is known as ours
CODE = re.compile(r"`([^`]+)`")
FEW_STRUCTURES = 8  # up to which two sets of outlines can be told apart
PARTS = {"index.html", "cases", "thumbs", "pictures"}
ENDINGS = {"cases": ".js", "thumbs": ".webp", "pictures": ".webp"}


def strange(out: Path) -> str | None:
    """Why a folder must not be replaced; None: it holds a report and nothing else."""
    if out.is_symlink() or not out.is_dir():
        return "is no folder"
    index = out / "index.html"
    if not index.is_file() or f'content="{GENERATOR}"' not in index.read_text(encoding="utf-8", errors="replace")[:400]:
        return "holds no report"
    for path in out.rglob("*"):
        inside = path.relative_to(out).parts
        ours = inside[0] in PARTS if len(inside) == 1 else len(inside) == 2 and path.suffix == ENDINGS.get(inside[0])
        if path.is_symlink() or not ours:
            return "holds files that no report has, such as saved ratings"
    return None


def write_report(folder: Path, gathered: Gathered, scans: Sequence[Reported], extra: Mapping[str, Any]) -> None:
    """Write the folder.

    Args:
        folder: to write into; it is there or can be made.
        scans: in the order of the part.
        extra: "title"; "comparison": headings and rows; "rounds", "sweeps": charts with titles; "pictures": (group,
            title, file).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(ENDINGS):
        (folder / name).mkdir(exist_ok=True)
    for number, scan in enumerate(scans):
        (folder / "cases" / f"{number}.js").write_text(
            f"lrlsCase({number}, {script_json(scan.script)});\n", encoding="utf-8"
        )
        (folder / "thumbs" / f"{number}.webp").write_bytes(scan.thumbnail)
    pictures = _pictures(folder / "pictures", extra["pictures"])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"coded": coded, "briefly": briefly, "singular": words.singular}
    page = environment.get_template("index.html.j2").render(**_content(gathered, scans, extra, pictures))
    (folder / "index.html").write_text(page, encoding="utf-8")


def script_json(value: Any) -> Markup:
    """A value as JSON that can stand in a script, in HTML or in a file: nothing in it ends a script or a string."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _content(
    gathered: Gathered, scans: Sequence[Reported], extra: Mapping[str, Any], pictures: Mapping[str, Any]
) -> dict[str, Any]:
    names = [run.name for run in gathered.runs]
    rows = words.by_structure(gathered, scans)
    scored = any(len(run.table) for run in gathered.runs)
    dsc = [[scan.numbers.dsc[k] for scan in scans] for k in range(len(names))]
    estimates = [[scan.numbers.estimate[k] for scan in scans] for k in range(len(names))]
    shown, measure = (dsc, "DSC") if scored else (estimates, "estimated DSC")
    cases = [scan.case for scan in scans]
    small = summary.smallest(rows)
    return {
        "generator": GENERATOR,
        "title": extra["title"],
        "part": gathered.part,
        "names": names,
        "chief": gathered.chief,
        "scored": scored,
        "measure": measure,
        "scans": scans,
        "order": _worst_first(shown[gathered.chief]),
        "shown": shown,
        "in_short": summary.in_short(gathered, scans, rows),
        "done": words.done(gathered),
        "missed": summary.missed(gathered.runs) if scored else [],
        "too_few": summary.too_few(len(cases)) if scored and len(extra["comparison"]["rows"]) > 1 else "",
        "has_change": any(i["kind"] == "change" for scan in scans for i in scan.script["images"]),
        "glossary": GLOSSARY,
        "plans": gathered.plans,
        "is_planned": gathered.is_planned,
        "lineage": words.lineage(gathered),
        "versions": words.versions(gathered),
        "flags": flagged(scans),
        "by_structure": rows,
        "smallest": small["structure"] if small else None,
        "comparison": extra["comparison"],
        "registrations": extra["registrations"],
        "ranked": charts.ranked(names, cases, shown, gathered.chief, measure),
        "boxes": charts.boxes(names, list(gathered.structures), [[r["values"] for r in row["runs"]] for row in rows]),
        "against_time": extra["against_time"],
        "curves": extra["curves"],
        "pictures": pictures,
        "few_structures": len(gathered.names) <= FEW_STRUCTURES,
        "rounded": words.rounded,
        "plural": plural,
        "colour": charts.colour_class,
        "data": script_json(
            {
                "id": digest_of([gathered.part, *(m.digest for r in gathered.runs for m in r.manifests), cases])[:16],
                "runs": names,
                "chief": gathered.chief,
                "scored": scored,
                "structures": [
                    {"name": name, "color": hex_color(k)} for k, name in enumerate(gathered.names, start=1)
                ],
                "cases": [
                    {"case": scan.case, "dsc": scan.numbers.dsc, "estimate": scan.numbers.estimate,
                     "flags": scan.numbers.flags, "why": scan.numbers.why}
                    for scan in scans
                ],
            }
        ),
        "css": _asset("report.css"),
        "scripts": [_asset(name) for name in ("volumes.js", "viewer.js", "review.js", "report.js")],
    }  # fmt: skip


def coded(text: str) -> Markup:
    """A text in which names stand in backticks, these as code: a method called `best` is not the best method."""
    return Markup(CODE.sub(r"<code>\1</code>", str(escape(text))))


def briefly(flag: str) -> str:
    """A flag as it stands on a card: at most two names after the colon."""
    kind, colon, names = flag.partition(": ")
    several = names.split(", ")
    return f"{kind}{colon}{', '.join(several[:2])}{f' and {len(several) - 2} more' if several[2:] else ''}"


def _asset(name: str) -> Markup:
    """A style or script of ours, to stand in the page as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _worst_first(values: Sequence[float | None]) -> list[int]:
    return sorted(range(len(values)), key=lambda k: (values[k] is None, values[k] or 0.0, k))


def _pictures(folder: Path, found: Sequence[tuple[str, str, Path]]) -> dict[str, list[dict[str, str]]]:
    groups: dict[str, list[dict[str, str]]] = {}
    for number, (group, title, path) in enumerate(found):
        if data := as_webp(path):
            (folder / f"{number}.webp").write_bytes(data)
            groups.setdefault(group, []).append({"title": title, "file": f"pictures/{number}.webp"})
    return groups

"""Every n-th open, read, write, fsync, rename, mkdir, remove and close of every command fails in turn.

    export PYTHONPATH=.:tests
    python tests/campaigns/faults.py                        a choice of points; --most all: every call
    python tests/campaigns/faults.py predict "export onnx"  of some commands

Promises, of each: one line and exit status 1 (or the fault is made up for, and nothing differs); no artifact and no
file is half-written; the same command without the fault ends as one that was never disturbed, and leaves nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from campaigns.faulty import KINDS, cannot, points, restarted_with_library, working_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="commands or scenarios; default: all")
    parser.add_argument("--most", default="4", help="points a kind of call and command, or 'all'")
    parser.add_argument("--turn", type=int, default=0, help="another one deals the errors out otherwise")
    parser.add_argument("--out", type=Path, help="a JSON file for what was found")
    asked = parser.parse_args()
    if reason := cannot():
        sys.exit(f"no faults can be injected: {reason}.")
    with working_folder() as folder:
        faulty = restarted_with_library(folder)
        from campaigns.scenarios import chosen, missing
        from campaigns.trials import Bench

        if forgotten := missing():
            sys.exit(f"no scenario runs {', '.join(sorted(forgotten))}; add one to tests/campaigns/scenarios.py.")
        scenarios = chosen(asked.names)
        bench, found = Bench(folder, faulty, scenarios), []
        most = None if asked.most == "all" else int(asked.most)
        for scenario in scenarios:
            found.append(campaign(bench, scenario, most, asked.turn))
            if asked.out:
                asked.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found))
    sys.exit(any(row["failed"] for row in found))


def campaign(bench: Any, scenario: Any, most: int | None, turn: int) -> dict[str, Any]:
    """Inject faults into a command; what was injected and which promises were not kept."""
    from campaigns.trials import again_well, ended_well, hinders_removal

    began = time.monotonic()
    undisturbed = bench.undisturbed(scenario)
    injected: Counter[str] = Counter()
    made_up, failed = 0, []
    for fault in points(undisturbed.trace, most, turn):
        bench.fresh(scenario)
        ended = bench.run(scenario.argv, fault=fault)
        if not bench.faulty.fired:
            continue
        injected[fault.kind] += 1
        at = [name for kind, name in undisturbed.trace if kind == fault.kind][fault.nth - 1]
        wrong = ended_well(ended, scenario)
        now, damaged = bench.snapshot()
        wrong += damaged
        told = ended.code == 0 and scenario.told_by_scan and ended.out != undisturbed.out
        if ended.code != 0:
            wrong += undisturbed.halves(now)
        elif not told:
            made_up += 1
            wrong += [f"exit status 0, and not as undisturbed: {name}" for name in undisturbed.differing(now)]
        again = again_well(bench, scenario, undisturbed, refuses=ended.code == 0)
        forgiven = ("left behind: tmp/",) if hinders_removal(fault, at) else ()
        forgiven += ("not as undisturbed",) if told else ()
        wrong += [line for line in again if not line.startswith(forgiven)]
        if wrong:
            failed.append({"fault": str(fault), "at": at, "said": ended.last, "wrong": wrong})
            print(f"{scenario.name}: {fault} ({at})", *wrong, f"said: {ended.last}", sep="\n    ", flush=True)
    row = {
        "command": scenario.name, "calls": undisturbed.calls,
        "points": Counter(kind for kind, _ in undisturbed.trace), "injected": injected, "made_up": made_up,
        "failed": failed, "took_s": round(time.monotonic() - began, 1),
    }  # fmt: skip
    faults = sum(injected.values())
    print(f"{scenario.name}: {faults} faults, {len(failed)} promises broken, {row['took_s']} s", flush=True)
    return row


def table(found: list[dict[str, Any]]) -> str:
    """What was injected, as Markdown."""
    heads = ["command", "points", "faults", *KINDS, "made up for", "promises broken"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    total: Counter[str] = Counter()
    for row in found:
        faults = sum(row["injected"].values())
        cells = [row["calls"], faults, *(row["injected"].get(kind, 0) for kind in KINDS)]
        cells += [row["made_up"], len(row["failed"])]
        total.update(dict(zip(heads[1:], cells, strict=True)))
        lines.append(f"| `{row['command']}` | " + " | ".join(map(str, cells)) + " |")
    lines.append("| all | " + " | ".join(str(total[head]) for head in heads[1:]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Disks that are too small, workspaces that cannot be written, and a clock that goes backwards.

    export PYTHONPATH=.:tests
    python tests/campaigns/disks.py                     every command in all three
    python tests/campaigns/disks.py --only clock eval   one of: clock, small, readonly

Small and read-only ones are mounted, which needs root; without it they are left out, and a line says so. On a disk
that is too small a command ends in one line, and the same command ends as an undisturbed one when there is room.
A workspace that cannot be written serves what only reads, and anything else is refused in one line. A clock that goes
back by a day, or by ten years, in the middle of a command changes nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from campaigns.faulty import Fault, cannot, restarted_with_library, working_folder

DAY_S = 86400
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)  # of what a command writes that there is room for
ROOMY = 64 * 2**20
READ_ONLY = ("init", "check", "predict", "export", "review", "report", "slurm", "methods", "history", "info", "phantom")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="commands or scenarios; default: all")
    parser.add_argument("--only", choices=list(CAMPAIGNS), action="append", help="repeatable; default: all three")
    parser.add_argument("--out", type=Path, help="a JSON file for what was found")
    asked = parser.parse_args()
    if reason := cannot():
        sys.exit(f"no clock can be set back: {reason}.")
    with working_folder() as folder:
        faulty = restarted_with_library(folder)
        from campaigns.scenarios import chosen
        from campaigns.trials import Bench

        scenarios = chosen(asked.names)
        bench, found = Bench(folder, faulty, scenarios), []
        for name in asked.only or CAMPAIGNS:
            if name != "clock" and (why := cannot_mount(folder)):
                print(f"{name}: left out, nothing can be mounted here: {why}")
                continue
            for scenario in scenarios:
                row = {"campaign": name, "command": scenario.name} | CAMPAIGNS[name](bench, scenario)
                found.append(row)
                print(
                    f"{name}, {scenario.name}: {row['trials']} trials, {len(row['failed'])} promises broken", flush=True
                )
                for failed in row["failed"]:
                    print(f"    {failed}", flush=True)
                if asked.out:
                    asked.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found))
    sys.exit(any(row["failed"] for row in found))


def clock(bench: Any, scenario: Any) -> dict[str, Any]:
    undisturbed = bench.undisturbed(scenario)
    failed = []
    moments = ((max(1, undisturbed.calls // 2), DAY_S), (1, 3652 * DAY_S), (max(1, undisturbed.calls // 4), 3600))
    for nth, back_s in moments:
        bench.fresh(scenario)
        fault = Fault("", nth, clock_back_s=back_s)
        ended = bench.run(scenario.argv, fault=fault)
        now, wrong = bench.snapshot()
        if ended.code != 0:
            wrong.append(f"exit status {ended.code}: {ended.last}")
        wrong += [f"not as undisturbed: {name}" for name in undisturbed.differing(now)]
        wrong += _again(bench, scenario, undisturbed)
        failed += [f"{fault}: {each}" for each in wrong]
    return {"trials": len(moments), "failed": failed}


def _again(bench: Any, scenario: Any, undisturbed: Any) -> list[str]:
    """The same command once more, by the right clock: what is finished stays, and what lies there is refused."""
    again = bench.run(scenario.argv)
    now, wrong = bench.snapshot()
    if again.code != 0 and "exist" not in again.last:
        wrong.append(f"again: exit status {again.code}: {again.last}")
    more = {} if "--force" in scenario.argv else undisturbed.differing(now)
    return wrong + [f"again: not as undisturbed: {name}" for name in more]


def small(bench: Any, scenario: Any) -> dict[str, Any]:
    from campaigns.trials import ended_well, resumed_well

    undisturbed = bench.undisturbed(scenario)
    most = _num_bytes(bench.trial)
    bench.fresh(scenario)
    least = _num_bytes(bench.trial)
    shutil.rmtree(bench.trial)
    failed, trials = [], 0
    for share in SHARES:
        with mounted(bench.trial, "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs"):
            _fill(bench, scenario)
            size = int(least + share * max(most - least, 8192)) + 4096
            _mount("-o", f"remount,size={size}", str(bench.trial))
            ended = bench.run(scenario.argv)
            _mount("-o", f"remount,size={ROOMY}", str(bench.trial))
            now, damaged = bench.snapshot()
            wrong = ended_well(ended, scenario) + damaged
            if ended.code == 0:
                wrong += [f"exit status 0, and not as undisturbed: {name}" for name in undisturbed.differing(now)]
            else:
                trials += 1
                wrong += undisturbed.halves(now) + resumed_well(bench, scenario, undisturbed)
            failed += [f"room for {share:.0%}: {each} (said: {ended.last})" for each in wrong]
    return {"trials": trials, "failed": failed}


def readonly(bench: Any, scenario: Any) -> dict[str, Any]:
    from campaigns.trials import ended_well

    undisturbed = bench.undisturbed(scenario)
    bench.fresh(scenario)
    runs = bench.trial / "runs"
    runs.mkdir(exist_ok=True)
    with mounted(runs, "--bind", str(runs)):
        _mount("-o", "remount,bind,ro", str(runs))
        ended = bench.run(scenario.argv)
        now, wrong = bench.snapshot()
        wrong += ended_well(ended, scenario)
        if scenario.command in READ_ONLY:
            wrong += [] if ended.code == 0 else [f"exit status {ended.code}: {ended.last}"]
            wrong += [f"not as undisturbed: {name}" for name in undisturbed.differing(now)]
        else:
            wrong += undisturbed.halves(now)
    return {"trials": 1, "failed": [f"{each} (said: {ended.last})" for each in wrong]}


def _fill(bench: Any, scenario: Any) -> None:
    for each in sorted(bench.workspaces[scenario.level].iterdir()):
        if each.is_dir():
            shutil.copytree(each, bench.trial / each.name, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(each, bench.trial / each.name)
    (bench.trial / "tmp").mkdir(exist_ok=True)


def _num_bytes(folder: Path) -> int:
    """As a tmpfs counts them, in pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def cannot_mount(folder: Path) -> str | None:
    """Why nothing can be mounted; None: it can."""
    if not shutil.which("mount"):
        return "there is no mount"
    place = folder / "mounted"
    try:
        with mounted(place, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
            return None
    except OSError as error:
        return str(error)


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    _mount(*options, str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        with suppress(OSError):
            place.rmdir()


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise OSError(done.stderr.strip() or "mount failed")


def table(found: list[dict[str, Any]]) -> str:
    """How many trials there were, as Markdown."""
    lines = ["| command | " + " | ".join(f"{name}: trials, broken" for name in CAMPAIGNS) + " |"]
    lines.append("|---" * (len(CAMPAIGNS) + 1) + "|")
    for command in dict.fromkeys(row["command"] for row in found):
        cells = []
        for name in CAMPAIGNS:
            own = [row for row in found if row["campaign"] == name and row["command"] == command]
            cells.append(", ".join(f"{row['trials']}, {len(row['failed'])}" for row in own))
        lines.append(f"| `{command}` | {' | '.join(cells)} |")
    return "\n".join(lines)


CAMPAIGNS = {"clock": clock, "small": small, "readonly": readonly}


if __name__ == "__main__":
    main()

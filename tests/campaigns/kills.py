"""kill -9 and SIGTERM at random moments of every command, alone and with Dask workers; the same command then ends as
one that was never disturbed.

    export PYTHONPATH=.:tests
    python tests/campaigns/kills.py                    20 kills of each signal a command
    python tests/campaigns/kills.py --kills 5 predict  fewer, of some commands
    python tests/campaigns/kills.py --dask             commands that work on cases, with two Dask workers

Half of the moments are calls on files, which the library of `faulty.c` counts, the other half are seconds. With Dask a
moment is one of the command, or kill -9 of a worker.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from campaigns.faulty import Fault, cannot, restarted_with_library, working_folder

STOPPED = "lrls: stopped; the same command resumes."
TRIES = 5  # a command may have ended before its moment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="commands or scenarios; default: all")
    parser.add_argument("--kills", type=int, default=20, help="of each signal, a command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dask", action="store_true", help="with two Dask workers")
    parser.add_argument("--out", type=Path, help="a JSON file for what was found")
    asked = parser.parse_args()
    if reason := cannot():
        sys.exit(f"no kills can be counted by calls: {reason}.")
    with working_folder() as folder:
        faulty = restarted_with_library(folder)
        from campaigns.scenarios import ON_DASK, chosen, missing
        from campaigns.trials import Bench

        if forgotten := missing():
            sys.exit(f"no scenario runs {', '.join(sorted(forgotten))}; add one to tests/campaigns/scenarios.py.")
        scenarios = [each for each in ON_DASK if not asked.names or each.command in asked.names]
        scenarios = scenarios if asked.dask else chosen(asked.names)
        bench, found = Bench(folder, faulty, scenarios), []

        def one(scenario: Any, *on_dask: Any) -> None:
            found.append(campaign(bench, scenario, asked.kills, asked.seed, *on_dask))
            if asked.out:
                asked.out.write_text(json.dumps(found, indent=1), encoding="utf-8")

        if not asked.dask:
            for scenario in scenarios:
                one(scenario)
        else:
            sys.path.append(str(Path(__file__).parents[2] / "docs" / "benchmarks"))
            from dask_cases import of_workers, workers

            with workers(folder) as (scheduler, starter):

                def kill_a_worker() -> None:
                    if alive := of_workers(starter):
                        random.choice(alive).kill()

                for scenario in scenarios:
                    one(scenario, scheduler, kill_a_worker)
    print(table(found))
    sys.exit(any(row["failed"] for row in found))


def campaign(
    bench: Any, scenario: Any, kills: int, seed: int, scheduler: Path | None = None,
    kill_a_worker: Callable[[], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Kill a command at random moments; which kills there were, and which promises were not kept.

    Args:
        scheduler: of Dask; what the command then makes is compared with what it makes without.
    """
    from campaigns.trials import again_well

    began, draw = time.monotonic(), random.Random(f"{seed} {scenario.name}")
    alone = bench.trial
    undisturbed = bench.undisturbed(scenario)
    if scheduler:
        scenario = scenario.with_scheduler(scheduler)
        undisturbed = replace(undisturbed, took_s=bench.undisturbed(scenario).took_s)
    done: Counter[str] = Counter()
    failed = []
    ways = ["kill -9", "SIGTERM", *(["kill -9 of a worker"] if kill_a_worker else [])]
    for way in ways:
        for number in range(kills):
            if kill_a_worker:  # which may still write into the last one
                bench.trial = alone.with_name(f"trial-{way.count(' ')}-{number}")
            share, by_call = draw.random(), number % 2 == 0 and not kill_a_worker
            for _ in range(TRIES):
                bench.fresh(scenario)
                ended, moment = _kill(bench, scenario, undisturbed, way, share, by_call, kill_a_worker)
                if was_killed(ended, way):
                    break
                share *= 0.8
            else:
                continue
            done[way] += 1
            now, wrong = bench.snapshot()
            wrong += stopped_well(ended, way) + undisturbed.halves(now)
            wrong += again_well(bench, scenario, undisturbed, refuses=not undisturbed.differing(now))
            if wrong:
                failed.append({"kill": way, "at": moment, "said": ended.last, "wrong": wrong})
                print(f"{scenario.name}: {way} at {moment}", *wrong, f"said: {ended.last}", sep="\n    ", flush=True)
            if kill_a_worker:
                shutil.rmtree(bench.trial, ignore_errors=True)
    bench.trial = alone
    took_s = round(time.monotonic() - began, 1)
    print(f"{scenario.name}: {sum(done.values())} kills, {len(failed)} promises broken, {took_s} s", flush=True)
    name = f"{scenario.name} --scheduler" if scheduler else scenario.name
    return {"command": name, "kills": done, "failed": failed, "took_s": took_s}


def _kill(
    bench: Any, scenario: Any, undisturbed: Any, way: str, share: float, by_call: bool,
    kill_a_worker: Callable[[], None] | None,
) -> tuple[Any, str]:  # fmt: skip
    number = signal.SIGTERM if way == "SIGTERM" else signal.SIGKILL
    if by_call:
        nth = 1 + int(share * undisturbed.calls)
        at = undisturbed.trace[min(nth, len(undisturbed.trace)) - 1]
        return bench.run(scenario.argv, fault=Fault("", nth, signal=number)), f"call {nth}: {' '.join(at)}"
    seconds = share * undisturbed.took_s

    def disturb(pid: int) -> None:
        time.sleep(seconds)
        if way == "kill -9 of a worker" and kill_a_worker:
            kill_a_worker()
        else:
            os.kill(pid, number)

    return bench.run(scenario.argv, disturb=disturb), f"{seconds:.3f} s"


def was_killed(ended: Any, way: str) -> bool:
    """Whether the moment came before the end. A worker that is killed costs the command nothing."""
    return way == "kill -9 of a worker" or ended.code != 0


def stopped_well(ended: Any, way: str) -> list[str]:
    """What is wrong with how a command ended."""
    both = ended.out + ended.err
    wrong = ["a traceback"] if "Traceback" in both or "Exception ignored" in both else []
    if way == "kill -9 of a worker":
        return wrong + ([] if ended.code == 0 else [f"exit status {ended.code}: {ended.last}"])
    if way == "kill -9":
        return wrong if ended.code == -signal.SIGKILL else [*wrong, f"exit status {ended.code}: {ended.last}"]
    if ended.code == -signal.SIGTERM and not both:  # before the program began
        return wrong
    return wrong if ended.code == 75 and ended.last == STOPPED else [*wrong, f"exit status {ended.code}: {ended.last}"]


def table(found: list[dict[str, Any]]) -> str:
    """What was killed, as Markdown."""
    ways = list(dict.fromkeys(way for row in found for way in row["kills"]))
    lines = [f"| command | {' | '.join(ways)} | promises broken |", "|---" * (len(ways) + 2) + "|"]
    total: Counter[str] = Counter()
    for row in found:
        cells = [*(row["kills"].get(way, 0) for way in ways), len(row["failed"])]
        total.update(dict(zip([*ways, "failed"], cells, strict=True)))
        lines.append(f"| `{row['command']}` | " + " | ".join(map(str, cells)) + " |")
    lines.append("| all | " + " | ".join(str(total[key]) for key in [*ways, "failed"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

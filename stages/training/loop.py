"""The one training loop: phases of players. It never asks which method it runs.

Several processes may take its steps together, see `stages.training.sharing`: each on its share of every batch, so that
all hold the same weights after each step. The first one alone writes.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages import ranks
from stages.artifacts.store import Draft
from stages.artifacts.weights_file import load_state, save_state
from stages.config import TrainSettings
from stages.device import Device
from stages.errors import LrlsError
from stages.methods.phases import Phase, Player
from stages.parts.augmentation import AUGMENTATIONS
from stages.parts.batches.drawing import Draw
from stages.parts.batches.scans import Scans
from stages.parts.together import Stream, shared
from stages.progress import Progress, say
from stages.seeds import derive
from stages.stopping import STOP, at_step_ends, is_told, stop
from stages.training.clock import Clock
from stages.training.fitting import Size, told_in_one_line
from stages.training.schedules import learning_rate
from stages.training.sharing import average_gradients, mean_terms, share_weights

LOG_STEPS = 10  # a log record and a look for NaN


@dataclass
class Run:
    """A training run: everything that a checkpoint must hold to end with the same weights."""

    phases: Sequence[Phase]
    networks: Mapping[str, nn.Module]
    data: Scans
    settings: TrainSettings
    device: Device
    seed: int
    draft: Draft
    frozen: Sequence[nn.Module] = ()  # used, never trained
    size: Size | None = None  # for messages about memory
    clock: Clock | None = None  # corrects the steps of the last phase
    generator: Stream = field(init=False)
    log: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = Stream(self.device.torch)
        self.generator.rank, self.generator.ranks = ranks.rank(), ranks.ranks()
        self.generator.manual_seed(self.seed)
        torch.manual_seed(self.seed)  # for code that uses torch's global generator
        for network in (*self.networks.values(), *self.frozen):
            network.to(self.device.torch)


def train(run: Run) -> list[dict[str, Any]]:
    """Train all phases, resuming from the draft's checkpoint if there is one. The networks hold the result.

    Returns:
        The log: a record every `LOG_STEPS` steps, "phase", "step" and the mean of each "player/term" since the last.

    Raises:
        LrlsError: a loss or gradient is not finite; the message names the scans of that batch. Or memory ran out.
    """
    checkpoint = run.draft.resume / "training.pt"
    state = None if ranks.rank() else load_state(checkpoint)
    if state is None and checkpoint.exists() and not ranks.rank():
        say("training: the state that a stopped run left is damaged; training starts over.")
    state = ranks.from_first(state)
    share_weights(run.networks.values())
    if state:
        for name, network in run.networks.items():
            network.load_state_dict(state["networks"][name])
        run.log = json.loads(state["log"])
    first = state["phase"] if state else 0
    for index in range(first, len(run.phases)):
        _train_phase(run, index, checkpoint, state if index == first else None)
    return run.log


def _memory_told(run: Run, phase: Phase) -> AbstractContextManager[None]:
    assert run.settings.batch_size is not None
    if run.size is None:
        return nullcontext()
    return told_in_one_line(run.size, phase.batch_size or run.settings.batch_size, phase.name)


def _train_phase(run: Run, index: int, checkpoint: Path, state: dict[str, Any] | None) -> None:
    phase, settings = run.phases[index], run.settings
    assert settings.steps is not None
    steps = round(settings.steps * phase.share)
    draw = _draw(run, phase)
    optimizers = [_optimizer(player, settings) for player in phase.players]
    averages = [_average(player, settings) for player in phase.players]
    clock = run.clock if index == len(run.phases) - 1 else None
    step = 0
    if state:
        step = state["step"]
        if step and clock:
            steps = state["steps"]  # as corrected
        if step:  # a phase that has just ended leaves no players' state
            for optimizer, average, saved in zip(optimizers, averages, state["players"], strict=True):
                optimizer.load_state_dict(saved["optimizer"])
                average.load(saved["average"])
        _restore(run.generator, state["generator"], derive(run.seed, "resumed", phase.name, step))
        torch.set_rng_state(state["global"])

    watch = _Watch(phase.name)
    with at_step_ends(), Progress(f"train {phase.name}", steps, start=step) as progress, _memory_told(run, phase):
        stops = _told()
        while step < steps and not stops:
            batch = phase.batches(run.data, draw)
            for player, optimizer, average in zip(phase.players, optimizers, averages, strict=True):
                if step % player.every:
                    continue
                rate = learning_rate(
                    player.learning_rate or settings.learning_rate, step, steps, settings, phase.schedule
                )
                fade = min(1.0, 2 * (1 - step / steps)) if phase.fades else 1.0
                for group in optimizer.param_groups:
                    group["lr"] = rate * fade * group["pace"]
                terms = _move(player, optimizer, phase, batch, run.device, step, steps, run.generator)
                average.update()
                watch.see(player.name, terms, step + 1, batch.scans)
            step += 1
            if clock and (corrected := ranks.from_first(clock.steps(step, steps, run.draft.elapsed_s()))) != steps:
                steps = progress.total = corrected
            stops = _told()
            saves = step % settings.checkpoint_steps == 0 or step == steps or stops
            if step % LOG_STEPS == 0 or saves:
                record = watch.record(step)
                run.log.append(record)
                progress.advance(" ".join(f"{key} {value:.3g}" for key, value in record.items() if "/" in key))
            else:
                progress.advance()
            if step == steps:
                for average in averages:
                    average.install()
            if saves and not ranks.rank():
                run.draft.save_elapsed()
                _save(run, checkpoint, index, step, steps, optimizers, averages)


def _told() -> bool:
    """Whether a signal told this process to stop, or another one that takes the same steps: then all stop after one."""
    if told := ranks.any_of(is_told()):
        stop(STOP)  # nothing new where a signal came
    return told


def _restore(generator: torch.Generator, state: Tensor, otherwise: int) -> None:
    """Draw on from a stored state, or from a seed where it is the state of another kind of device's generator."""
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
    else:
        say("training: another kind of device than before; it goes on with other random draws.")
        generator.manual_seed(otherwise)


def step_seconds(
    run: Run, *, warm: int = 1, most: int = 6, patience_s: float = 10.0,
    typical: Callable[[list[float]], float] = statistics.median,
) -> float:  # fmt: skip
    """Seconds that a step of this run takes on this machine, with its phases weighted by their shares.

    Takes a few steps of learning rate 0 in every phase; the run's random draws go on.

    Args:
        warm: first steps of a phase, which do not count.
        most: steps of a phase that count.
        patience_s: measuring a phase ends after this time, with one step at least.
        typical: of the steps that count.
    """
    total = 0.0
    for phase in run.phases:
        draw = _draw(run, phase)
        optimizers = [_optimizer(player, run.settings) for player in phase.players]
        averages = [_average(player, run.settings) for player in phase.players]
        began, times = time.monotonic(), []
        for step in range(warm + most):
            if step > warm and ranks.from_first(time.monotonic() - began > patience_s):
                break
            started, seldom_s = time.monotonic(), 0.0
            with _memory_told(run, phase):
                batch = phase.batches(run.data, draw)
                for player, optimizer, average in zip(phase.players, optimizers, averages, strict=True):
                    turn = time.monotonic() if player.every > 1 else 0.0
                    for group in optimizer.param_groups:
                        group["lr"] = 0.0
                    _move(player, optimizer, phase, batch, run.device, 0, None, run.generator)
                    average.update()
                    if player.every > 1:  # here the player moved in every step
                        seldom_s += (time.monotonic() - turn) * (1 - 1 / player.every)
            if run.device.torch.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.monotonic() - started - seldom_s)
        total += phase.share * typical(times[warm:])
    return total


def _draw(run: Run, phase: Phase) -> Draw:
    assert run.settings.augmentation is not None and run.settings.batch_size is not None
    share = (phase.batch_size or run.settings.batch_size) // ranks.ranks()
    return Draw(share, *AUGMENTATIONS[run.settings.augmentation], run.generator)


def _move(
    player: Player, optimizer: torch.optim.Optimizer, phase: Phase, batch: object, device: Device,
    step: int = 0, of: int | None = None, stream: Stream | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """One optimiser step of a player; the other players' networks stand still.

    Args:
        stream: the batch was drawn from it, by all processes that share it.
    """
    give_turn(player, phase)
    with shared(stream):
        with device.autocast():
            state = player.forward(batch)
        total, terms = player.loss(state, step, of)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
    average_gradients(player.trains)
    norm = nn.utils.get_total_norm([p.grad for p in player.trains.parameters() if p.grad is not None])
    optimizer.step()
    return {name: term.detach() for name, term in terms.items()} | {"total": total.detach(), "gradient": norm}


def give_turn(player: Player, phase: Phase) -> None:
    """Let only this player's parameters get gradients; gradients still pass through the phase's other networks."""
    parameters = {id(parameter) for parameter in player.trains.parameters()}
    for other in phase.players:
        for parameter in other.trains.parameters():
            parameter.requires_grad_(id(parameter) in parameters)


class _Watch:
    """Collects terms on the device and reads them every `LOG_STEPS` steps, so that a GPU does not have to wait."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.seen: dict[str, list[Tensor]] = {}
        self.batches: dict[str, list[tuple[int, list[str]]]] = {}

    def see(self, player: str, terms: dict[str, Tensor], step: int, scans: list[str]) -> None:
        for name, term in terms.items():
            self.seen.setdefault(f"{player}/{name}", []).append(term)
        self.batches.setdefault(player, []).append((step, scans))

    def record(self, step: int) -> dict[str, Any]:
        record: dict[str, Any] = {"phase": self.phase, "step": step}
        for name, terms in self.seen.items():
            values = mean_terms(terms)
            if not bool(values.isfinite().all()):
                bad = int((~values.isfinite()).nonzero()[0])
                player, term = name.split("/")
                at, scans = self.batches[player][bad]
                scans = [scan for share in ranks.from_all(scans) for scan in share]
                where = f"step {at} of {self.phase}, scans {', '.join(dict.fromkeys(scans))}"
                raise LrlsError(
                    f"training stopped: {term} of {player} is {float(values[bad])} at {where}; "
                    "look at these scans, or lower the learning rate; "
                    "the same command resumes at the last checkpoint."
                )
            record[name] = float(values.mean())
        self.seen, self.batches = {}, {}
        return record


def _optimizer(player: Player, settings: TrainSettings) -> torch.optim.Optimizer:
    paces = {id(parameter): pace for part, pace in player.paces for parameter in part.parameters()}
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in player.trains.parameters():
        groups.setdefault(paces.get(id(parameter), 1.0), []).append(parameter)
    parameters = [{"params": group, "pace": pace} for pace, group in groups.items()]
    betas = (player.momentum, 0.999)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=1.0, betas=betas, weight_decay=1e-2, fused=True)
    return torch.optim.Adam(parameters, lr=1.0, betas=betas, weight_decay=player.weight_decay, fused=True)


def _average(player: Player, settings: TrainSettings) -> _Average:
    decay = (settings.ema or 0.0) if player.ema is None else player.ema
    return _Average(player.trains, decay, warms_up=player.ema_warms_up)


class _Average:
    """Exponential moving average of a network's parameters, buffers copied; decay 0 switches it off.

    Args:
        warms_up: early weights are forgotten faster: after n steps the decay is at most n / (n + 9).
    """

    def __init__(self, network: nn.Module, decay: float, *, warms_up: bool = True) -> None:
        self.network, self.decay, self.count, self.warms_up = network, decay, 0, warms_up
        self.averaged = {name for name, _ in network.named_parameters()}
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()} if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        if not self.decay:
            return
        self.count += 1
        decay = min(self.decay, self.count / (self.count + 9)) if self.warms_up else self.decay
        for name, value in self.network.state_dict().items():
            if name in self.averaged:
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    def install(self) -> None:
        if self.decay:
            self.network.load_state_dict(self.state)

    def dump(self) -> dict[str, Any]:
        return {"count": self.count, "state": self.state}

    def load(self, saved: dict[str, Any]) -> None:
        self.count = saved["count"]
        for name, value in saved["state"].items():
            self.state[name].copy_(value)


def _save(
    run: Run, checkpoint: Path, index: int, step: int, steps: int,
    optimizers: list[torch.optim.Optimizer], averages: list[_Average],
) -> None:  # fmt: skip
    ended = step == steps
    (run.draft.folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in run.log))
    save_state(
        {
            "phase": index + ended,
            "step": 0 if ended else step,
            "steps": steps,
            "networks": {name: network.state_dict() for name, network in run.networks.items()},
            "players": [
                {"optimizer": optimizer.state_dict(), "average": average.dump()}
                for optimizer, average in zip(optimizers, averages, strict=True)
            ]
            if not ended
            else [],
            "generator": run.generator.get_state(),
            "global": torch.get_rng_state(),
            "log": json.dumps(run.log),
        },
        checkpoint,
    )

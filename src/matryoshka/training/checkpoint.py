"""Checkpoints: `step_N/` folders with all that a bit-identical continuation needs, and the pointer `latest`.

step_N/state.json                 step, position in the data, best held-out FVU so far
step_N/LABEL.safetensors          a trainee: weights, thresholds, counters, Adam's moments, half-filled averages
latest                            the name of the newest complete folder
"""

import json
import re
import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from matryoshka.coder.io import check_tensors
from matryoshka.data.rowfilter import RowCounts
from matryoshka.data.stream import PLACE
from matryoshka.distributed import World
from matryoshka.errors import MatryoshkaError, first_line
from matryoshka.files import read_json, replaced_folder, write_text
from matryoshka.training.trainee import Trainee

KEPT = 2


class _State(BaseModel):
    """state.json."""

    model_config = ConfigDict(extra="forbid")

    step: NonNegativeInt
    best: dict[str, float]
    """Lowest held-out FVU so far, by coder."""
    stream: dict[str, NonNegativeInt]
    """Where it stands: `ActivationStream.state_dict`."""

    @field_validator("stream")
    @classmethod
    def _whole(cls, stream: dict[str, int]) -> dict[str, int]:
        if stream.keys() != {*PLACE, *RowCounts._fields}:
            raise ValueError(
                f"says {', '.join(stream)} of the stream, expected {', '.join((*PLACE, *RowCounts._fields))}"
            )
        return stream


def save(
    folder: Path,
    step: int,
    trainees: Sequence[Trainee],
    state: dict[str, Any],
    world: World = World(),  # noqa: B008
) -> None:
    """Write `folder/step_N` in one rename, move `latest` to it, prune all but the last two. In a `world` each process
    writes its own trainees, into the folder that the first one makes: all see the same disk."""
    target = folder / f"step_{step}"
    with replaced_folder(target) if world.first else nullcontext(target) as new:
        shared = Path(world.told(str(new)))
        for trainee in trainees:
            tensors = {name: x.contiguous() for name, x in _tensors(trainee).items()}
            save_file(tensors, shared / f"{trainee.plan.label}.safetensors")
        world.barrier()
        if world.first:
            (new / "state.json").write_text(json.dumps({"step": step, **state}, indent=2) + "\n")
    if world.first:
        write_text(folder / "latest", target.name + "\n")
        _prune(folder)


def _prune(folder: Path) -> None:
    """Remove all but the last, and what a kill left of one that was being removed."""
    for old in sorted(_numbers(folder))[:-KEPT]:
        shutil.rmtree(folder / f"step_{old}")


def latest(folder: Path) -> Path:
    """The newest checkpoint. Raises MatryoshkaError if there is none."""
    with suppress(OSError, ValueError):  # there is none, or what it says is no name
        target = folder / (folder / "latest").read_text().strip()
        if (target / "state.json").is_file():
            return target
    if not (numbers := _numbers(folder)):
        raise MatryoshkaError(f"{folder}: no checkpoint to resume from; train anew with --overwrite")
    return folder / f"step_{max(numbers)}"


def load(
    folder: Path,
    trainees: Sequence[Trainee],
    steps: int,
    world: World = World(),  # noqa: B008
) -> dict[str, Any]:
    """Bring `trainees`, all of a run's or some, to the state saved in a `step_N` folder of a run of `steps` steps;
    returns its state.json.

    Raises MatryoshkaError, with the file and what is wrong in it, for a checkpoint that training cannot go on from.
    """
    try:
        state = _State.model_validate(read_json(folder / "state.json")).model_dump()
        if state["step"] > steps:
            raise ValueError(f"state.json: step {state['step']}, but the run has {steps}")
        for trainee in trainees:
            file = folder / f"{trainee.plan.label}.safetensors"
            tensors = load_file(file)  # beside the trainee's own, a GPU might not have room for them
            check_tensors(str(file), _tensors(trainee), tensors)
            for name in ("scaling.scale_in", "scaling.scale_out"):
                if (least := tensors[name].min().item()) <= 0:
                    raise ValueError(f"{file.name}: {name} is {least:g}, expected more than 0")
            with torch.no_grad():
                for name, tensor in _tensors(trainee).items():
                    tensor.copy_(tensors[name])
    except (MatryoshkaError, OSError, ValueError, SafetensorError) as error:
        others = [f"step_{n}" for n in _numbers(folder.parent) if folder.name != f"step_{n}"]
        hint = f"; delete it to go on from {', '.join(others)}" if others else ""
        raise MatryoshkaError(f"{folder}: damaged checkpoint ({first_line(error)}){hint}") from None
    if world.first:
        _prune(folder.parent)
    return state


def _numbers(folder: Path) -> list[int]:
    return [int(m[1]) for path in folder.glob("step_*") if (m := re.fullmatch(r"step_(\d+)", path.name))]


def _tensors(trainee: Trainee) -> dict[str, Tensor]:
    """Every tensor that training changes, by name."""
    adam = {
        f"adam.{name}.{key}": value
        for name, parameter in trainee.coder.named_parameters()
        for key, value in trainee.optimiser.state[parameter].items()
    }
    # buffers that are not saved with the weights are training's own state
    return {**dict(trainee.named_parameters()), **dict(trainee.named_buffers()), **adam}

"""The training loop, the method contract, checkpoints and run directories."""

from robust_core.training.distributed import Processes, start_processes
from robust_core.training.loop import Hooks, LoopSettings, Training
from robust_core.training.machine import Machine, bf16_units, resolve_machine, resolve_precision
from robust_core.training.method import Method, Phase, StepContext, StepResult
from robust_core.training.rundir import RunDirectory, agreed_setting, run_folder
from robust_core.training.schedules import Rate, step_rate

__all__ = [
    "Hooks",
    "LoopSettings",
    "Machine",
    "Method",
    "Phase",
    "Processes",
    "Rate",
    "RunDirectory",
    "StepContext",
    "StepResult",
    "Training",
    "agreed_setting",
    "bf16_units",
    "resolve_machine",
    "resolve_precision",
    "run_folder",
    "start_processes",
    "step_rate",
]

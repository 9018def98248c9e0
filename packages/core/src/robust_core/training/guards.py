"""What the loop refuses: a loss or gradient that is not finite, an optimizer that cannot step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_core.errors import UserError
from robust_core.training.rundir import RunDirectory

__all__ = ["check_optimizer", "refuse_infinite"]


def refuse_infinite(loss: Tensor, model: nn.Module, step: int, run: RunDirectory) -> None:
    """Stop before the optimizer moves if the loss or a gradient of ``model`` is not finite.

    Raises:
        UserError: naming the step and the last good checkpoint of ``run``.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if bool(torch.isfinite(loss) & torch.isfinite(norm)):
        return
    good = run.checkpoints.latest_step()
    where = f"the checkpoint of step {good} is whole" if good else "no checkpoint was written yet"
    raise UserError(
        f"The loss or its gradient became infinite or NaN at step {step + 1} (loss {loss.item():.4g}); "
        f"{where}: lower --lr, then train anew in another --run-dir."
    )


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise ``ValueError`` for a state that torch loads but cannot step with."""
    for group in optimizer.param_groups:
        if any(type(group.get(name)) not in (int, float) for name in ("momentum", "weight_decay")):
            raise ValueError("the optimizer's settings are no numbers")
        for parameter in group["params"]:
            buffer = optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None and buffer.shape != parameter.shape:
                raise ValueError("the optimizer's buffers have other shapes than the weights")

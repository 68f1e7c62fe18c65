"""Every trained parameter gets a gradient in the first step, or the run stops and names it.

A module that the forward pass leaves out, or whose graph is cut, would else be trained by weight decay alone.
"""

from torch import nn

from data_pipeline.errors import ConfigError
from trainer.distributed import World, all_sum

_NAMED = 5


class GradientCheck:
    """Notes which parameters gradients reach, also where ZeRO takes them away at once. A gradient of zeros
    counts: an adapter's first matrix has one as long as its second is zero."""

    def __init__(self, model: nn.Module) -> None:
        self._names = [n for n, p in model.named_parameters() if p.requires_grad]
        self._reached: set[str] = set()
        self._hooks = [
            p.register_post_accumulate_grad_hook(lambda _, name=n: self._reached.add(name))
            for n, p in model.named_parameters()
            if p.requires_grad
        ]

    def check(self, world: World) -> None:
        """After the first backward pass (all ranks); later calls do nothing. Raises ConfigError on every rank
        where any of them saw a parameter without a gradient."""
        if not self._hooks:
            return
        while self._hooks:
            self._hooks.pop().remove()
        missed = all_sum(world, *(float(name not in self._reached) for name in self._names))
        without = [
            f"{name} ({int(ranks)} of {world.size} ranks)"
            for name, ranks in zip(self._names, missed, strict=True)
            if ranks
        ]
        if without:
            more = f" and {len(without) - _NAMED} more" if len(without) > _NAMED else ""
            raise ConfigError(
                f"{len(without)} of {len(self._names)} trained parameters got no gradient in the first step: "
                f"{', '.join(without[:_NAMED])}{more}.\n"
                "  Nothing was updated. Freeze their module, or see why the forward pass leaves them out."
            )

"""Steps of an audit's subject: what training on a single text adds to the silo's adapter."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flower_split.config.sections import SplitConfig
from flower_split.remote import SplitStages
from flower_split.remote.attach import find_slot
from flower_split.segments import Halves
from flower_split.training.accumulation import accumulate
from flower_split.training.stages import mode


class Steps:
    """Optimizer steps of the silo's part of the adapter, each over one text.

    Args:
        client: With a trunk attached.
        config: The run's settings.
        place: Puts a batch where the model is.
    """

    def __init__(
        self,
        client: Any,
        config: SplitConfig,
        place: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    ) -> None:
        self._client = client
        self._rate = config.train.learning_rate
        self._place = place
        self._halves = Halves(client, find_slot(client)[2])

    @property
    def client(self) -> Any:
        """The client model, as PEFT wraps it."""
        return self._client

    def bottom(self, ids: Tensor) -> Tensor:
        """h1 of token ids, (B, T), without a graph: (B, T, H)."""
        with torch.no_grad(), mode(self._client, training=False):
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            return self._halves.first(self._place(given)).hidden

    def gradients(
        self, ids: Tensor, of: Sequence[nn.Parameter], *, training: bool = True
    ) -> list[Tensor]:
        """The gradients of `of` for a step over one text, (T,); `training` is for dropout."""
        self._client.zero_grad(set_to_none=True)
        batch = {
            "input_ids": ids[None],
            "attention_mask": torch.ones_like(ids)[None],
            "labels": ids[None],
        }
        with mode(self._client, training=training):
            accumulate(self._client, [self._place(batch)], stages=SplitStages(self._client))
        return [
            torch.zeros_like(one) if one.grad is None else one.grad.detach().clone() for one in of
        ]

    def begin(self, ids: Tensor) -> None:
        """A first step over one text, (T,), after which no factor is zero."""
        trained = [one for one in self._client.parameters() if one.requires_grad]
        self.gradients(ids, ())
        torch.optim.AdamW(trained, lr=self._rate, weight_decay=0.0).step()

    def trained(self) -> dict[str, Tensor]:
        """What is trained, as it is, by its name in the client model."""
        return {
            name: one.detach().clone()
            for name, one in self._client.named_parameters()
            if one.requires_grad
        }

    def moved(self, ids: Tensor, steps: int, *, training: bool = True) -> dict[str, Tensor]:
        """What `steps` of AdamW over one text, (T,), add to what is trained, which is then as
        it was."""
        before = self.trained()
        named = {n: one for n, one in self._client.named_parameters() if n in before}
        optimizer = torch.optim.AdamW([*named.values()], lr=self._rate, weight_decay=0.0)
        for _ in range(steps):
            self.gradients(ids, (), training=training)
            optimizer.step()
        self._client.zero_grad(set_to_none=True)
        with torch.no_grad():
            added = {name: one.detach() - before[name] for name, one in named.items()}
            for name, one in named.items():
                one.copy_(before[name])
        return added

    def update(self, of: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> list[Tensor]:
        """What a first step of AdamW by `gradients` would add to `of`, as float32 has it."""
        copies = [nn.Parameter(one.detach().clone()) for one in of]
        for one, gradient in zip(copies, gradients, strict=True):
            one.grad = gradient
        torch.optim.AdamW(copies, lr=self._rate, weight_decay=0.0).step()
        return [new.detach() - old.detach() for new, old in zip(copies, of, strict=True)]

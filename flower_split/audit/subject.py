"""The subject: the user's model at a cut, both ends in this process, as a run computes it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flower_split.adapters import load_adapter, resolve_plan, wrap
from flower_split.adapters.notices import without_peft_notices
from flower_split.audit.recording import Recorder, Recording
from flower_split.audit.steps import Steps
from flower_split.audit.texts import Documents
from flower_split.config.model import ModelConfig
from flower_split.config.sections import SplitConfig
from flower_split.config.wire import WireConfig
from flower_split.devices import autocast_dtype, autocasting, resolve_device
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import SplitStages, attach_trunk, session_spec
from flower_split.remote.attach import find_slot
from flower_split.segments import (
    Cuts,
    Halves,
    load_client_model,
    load_skeleton,
    load_trunk,
)
from flower_split.server.engine import TrunkEngine
from flower_split.training.accumulation import accumulate
from flower_split.training.stages import mode
from flower_split.transport.base import TrunkBackend
from flower_split.transport.local import InProcessTransport

Check = Callable[[], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What is audited."""

    config: SplitConfig
    """The run's settings."""
    layers: int
    hidden: int
    adapter: Path | None = None
    """PEFT folder that both ends load; None for the model as it is, which an adapter that begins
    leaves as it is."""
    device: str = "cpu"

    @contextmanager
    def cut(self, bottom: int, top: int, *, trains: bool = False) -> "Iterator[CutModel]":
        """Both ends at a cut, as long as the block lasts.

        Args:
            bottom: Layers of the silo's before the trunk.
            top: Layers of the silo's behind it.
            trains: Whether the silo's part of the adapter can be trained: the one that was given,
                or else one that begins.

        Raises:
            CutError: the cut does not fit the model.
            AdapterError: the adapter does not.
        """
        named = loaded(self.config.model, self.device)
        trunk = load_trunk(bottom_layers=bottom, top_layers=top, **named)
        client = self.client(bottom, top)
        if self.adapter is not None:
            with without_peft_notices():
                client = load_adapter(client, self.adapter)
                trunk = load_adapter(trunk, self.adapter)
        elif trains:
            skeleton = load_skeleton(self.config.model.name, revision=self.config.model.revision)
            client = wrap(client, resolve_plan(skeleton, self.config.lora, self.config.peft))
        client.requires_grad_(False)
        if trains:
            for name, parameter in client.named_parameters():
                parameter.requires_grad_("lora_" in name)
        # What a run trains in the bottom, or in the trunk, has a gradient pass through h1.
        embeddings = client.get_input_embeddings()
        hook = embeddings.register_forward_hook(_with_gradient)
        try:
            yield CutModel(self.config, client, TrunkEngine(trunk))
        finally:
            hook.remove()

    def client(self, bottom_layers: int, top_layers: int) -> Any:
        """The client model at a cut, without an adapter."""
        return load_client_model(
            bottom_layers=bottom_layers,
            top_layers=top_layers,
            **loaded(self.config.model, self.device),
        )

    def check_cut(self, bottom: int, top: int) -> None:
        """Raise `CutError` where the cut does not fit the model."""
        Cuts(bottom_layers=bottom, top_layers=top, num_layers=self.layers)


class CutModel:
    """A client model and its trunk, whose sessions are recorded.

    Args:
        config: The run's settings.
        client: Its weights are frozen.
        engine: The trunk's host.
    """

    def __init__(self, config: SplitConfig, client: Any, engine: TrunkEngine) -> None:
        self._config = config
        self._client = client
        self._engine = engine

    def record(
        self,
        documents: Documents,
        wire: WireConfig,
        *,
        seed: int,
        check: Check = lambda: None,
        between: Callable[[TrunkBackend], TrunkBackend] = lambda backend: backend,
    ) -> Recording:
        """One pass of training over `documents` in their order, without a step.

        Args:
            documents: Texts.
            wire: Between silo and trunk.
            seed: Of dropout.
            check: Called before every step.
            between: Makes of the trunk's host what the silo takes for it.
        """
        recorder = Recorder(between(self._engine))
        train = self._config.train
        rows, groups = list(range(len(documents))), list[tuple[int, int]]()
        with self._attached(recorder, wire), mode(self._client, training=True):
            stages = SplitStages(self._client, autocast=autocast_dtype(train.autocast))
            a_step = train.batch_size * train.accumulation
            for begin in range(0, len(rows), a_step):
                check()
                of_step = rows[begin : begin + a_step]
                batches = [
                    documents.batch(of_step[at : at + train.batch_size])
                    for at in range(0, len(of_step), train.batch_size)
                ]
                accumulate(
                    self._client,
                    batches,
                    stages=stages,
                    seeds=[seed + begin + place for place in range(len(batches))],
                )
                groups.append((begin, begin + len(of_step)))
        return recorder.take(documents.ids.shape[1], groups)

    def record_h1(
        self, documents: Documents, wire: WireConfig, *, seed: int, check: Check = lambda: None
    ) -> Recording:
        """What leaves the bottom for `documents`; the trunk computes nothing."""
        recorder = Recorder()
        size = max(1, 1024 // documents.ids.shape[1])
        with (
            self._attached(recorder, wire),
            mode(self._client, training=True),
            torch.no_grad(),
        ):
            stages = SplitStages(self._client, autocast=autocast_dtype(self._config.train.autocast))
            for begin in range(0, len(documents), size):
                check()
                rows = range(begin, min(begin + size, len(documents)))
                batch = documents.batch(rows)
                del batch["labels"]
                stages.start(self._placed(batch), seed + begin).abandon()
        return recorder.take(documents.ids.shape[1])

    @contextmanager
    def bottoms(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function of whole rows of token ids, (B, T): h1, (B, T, H) float32, as it is before
        codec and transforms.

        With the adapter, as who has the current one computes it.
        """
        with self._attached(Recorder(), WireConfig()), torch.no_grad():
            halves = Halves(self._client, find_slot(self._client)[2])

            def bottom(ids: Tensor) -> Tensor:
                given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                with mode(self._client, training=False):
                    return halves.first(self._placed(given)).hidden.float().cpu()

            yield bottom

    @contextmanager
    def embedded_bottoms(self) -> Iterator[tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]]:
        """What enters the first layer for every token, (V, E), and a function of what enters it,
        (B, T, E), and mask, (B, T): h1, (B, T, H) float32, with a graph.

        As who has the current bottom computes it.
        """
        embeddings = self._client.get_input_embeddings()
        entering = list[Tensor]()

        def enter(module: Any, given: Any, made: Tensor) -> Tensor:
            return entering.pop().to(made.device, made.dtype) if entering else made

        with self._attached(Recorder(), WireConfig()):
            halves = Halves(self._client, find_slot(self._client)[2])
            with torch.no_grad():
                tokens = torch.arange(len(embeddings.weight), device=self.device)
                table = embeddings(tokens).float().cpu()
            hook = embeddings.register_forward_hook(enter)

            def bottom(embedded: Tensor, mask: Tensor) -> Tensor:
                nothing = torch.zeros(mask.shape, dtype=torch.int64)
                given = {"input_ids": nothing, "attention_mask": mask.long()}
                entering.append(embedded)
                with mode(self._client, training=False):
                    return halves.first(self._placed(given)).hidden.float().cpu()

            try:
                yield table, bottom
            finally:
                hook.remove()

    @contextmanager
    def tops(self) -> "Iterator[Callable[[Tensor, Tensor], Tensor]]":
        """A function of h2, (B, T, H), and mask, (B, T): the logits, (B, T, V), with a graph.

        As who has the current top computes it: no token of the text is given to it.
        """
        with self._attached(Recorder(), WireConfig()), mode(self._client, training=False):
            halves = Halves(self._client, find_slot(self._client)[2])

            def top(hidden: Tensor, mask: Tensor) -> Tensor:
                nothing = torch.zeros(mask.shape, dtype=torch.int64, device=self.device)
                given = mask.to(self.device).long()
                with torch.no_grad():
                    pause = halves.first({"input_ids": nothing, "attention_mask": given})
                logits: Tensor = halves.second(pause, hidden.to(self.device, self.dtype)).logits
                return logits.float()

            yield top

    @contextmanager
    def steps(self, wire: WireConfig) -> Iterator[Steps]:
        """Steps of training over single texts; of a model whose adapter can be trained."""
        with self._attached(self._engine, wire):
            yield Steps(self._client, self._config, self._placed)

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        found: torch.device = next(self._client.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Of the silo's weights."""
        return getattr(torch, self._config.model.dtype)  # type: ignore[no-any-return]

    def _placed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    @contextmanager
    def _attached(self, backend: TrunkBackend, wire: WireConfig) -> Iterator[None]:
        spec = session_spec(
            self._client,
            plan=None,
            trunk_adapters="frozen",
            wire=wire,
            optimizer=OptimizerSettings.of_training(self._config.train),
        )
        transport = InProcessTransport(backend, spec)
        transport.limits = self._engine.limits
        attach_trunk(self._client, transport)
        try:
            with autocasting(self.device, autocast_dtype(self._config.train.autocast)):
                yield
        finally:
            transport.close()


def open_subject(
    config: SplitConfig, *, layers: int, hidden: int, adapter: Path | None, device: str
) -> Subject:
    """The subject of `config`, whose cut is checked.

    Raises:
        CutError: the cut does not fit the model.
        ConfigError: there is no such device.
    """
    found = Subject(
        config=config,
        layers=layers,
        hidden=hidden,
        adapter=adapter,
        device=str(resolve_device(device, key="--device")),
    )
    found.check_cut(config.split.bottom_layers, config.split.top_layers)
    return found


def loaded(model: ModelConfig, device: str) -> dict[str, Any]:
    """How both ends load their parts: arguments of `load_client_model` and `load_trunk`."""
    return {
        "source": model.name,
        "revision": model.revision,
        "dtype": model.dtype,
        "attention": model.attention,
        "device": device,
        "quantization": model.quantization,
    }


def _with_gradient(module: Any, given: Any, made: Tensor) -> Tensor:
    if torch.is_grad_enabled() and not made.requires_grad:
        return made.detach().requires_grad_()
    return made

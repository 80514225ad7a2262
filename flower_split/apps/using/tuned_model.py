"""A tuned model that answers through the split."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from flower_split.adapters import load_adapter
from flower_split.adapters.notices import without_peft_notices
from flower_split.apps.using.prompts import PromptForm
from flower_split.apps.using.text_pieces import TextPieces
from flower_split.apps.using.tuned_run import TunedRun
from flower_split.config.address import Address
from flower_split.config.sections import CutConfig, ModelConfig
from flower_split.devices import resolve_device
from flower_split.errors import AdapterError, ModelError, PromptError, WeightsError
from flower_split.remote import attach_trunk, session_spec
from flower_split.segments import load_client_model, load_tokenizer, load_trunk, table_sizes
from flower_split.segments.loading.skeleton import load_skeleton
from flower_split.segments.refusals import context_length
from flower_split.server.local import LocalTransport
from flower_split.tls import ClientTls
from flower_split.transport.base import Transport
from flower_split.transport.grpc.transport import GrpcTransport

Finish: TypeAlias = Literal["stop", "length", "interrupted"]

_BEFORE = 16  # tokens of a prompt that a text which goes on is decoded with


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is made."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the most likely token each time."""
    top_p: float | None = None
    """Share of the likelihood that tokens are drawn from; None as the model's own settings say."""
    seed: int | None = None
    """Of what is drawn; None draws anew each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are no part of it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model answered."""

    text: str
    prompt_tokens: int
    new_tokens: int
    finish: Finish
    """Whether it ended by itself, at the bound of its tokens, or because it was told to."""
    is_full: bool = False
    """Whether prompt and answer fill the model's context."""


@dataclass(frozen=True, kw_only=True)
class TrunkHost:
    """A trunk in another process that has loaded the same adapter."""

    address: Address
    tls: ClientTls | None = None
    """Which trunk is believed; None connects without encryption, to loopback only."""


class TunedModel:
    """A tuned model with its trunk attached; answers one prompt at a time.

    Args:
        model: Client model with adapter and trunk.
        tokenizer: Its own.
        form: How prompts are written.
        context: Tokens that prompt and answer may have together; 0 where nothing bounds them.
        tokens: Rows of the model's embedding table.
        where: Who computes what, in words.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        form: PromptForm,
        *,
        context: int,
        tokens: int,
        where: str,
    ) -> None:
        self.form = form
        self.context = context
        self.where = where
        self._model = model
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._ends = _end_ids(model, tokenizer)

    def check(self, ids: Sequence[int]) -> None:
        """Raise `PromptError` where a prompt of these tokens cannot be answered."""
        if self.context and len(ids) >= self.context:
            raise PromptError(
                f"the conversation has {len(ids)} tokens and the model's context {self.context}, "
                "which leaves no room for an answer: begin a new one, or say it in fewer words"
            )
        if ids and max(ids) >= self._tokens:
            raise PromptError(
                f"the tokenizer makes token {max(ids)} of the prompt, and the model knows "
                f"{self._tokens}: tokenizer and model do not belong together"
            )

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def answer(
        self,
        ids: Sequence[int],
        sampling: Sampling | None = None,
        *,
        on_text: Callable[[str], None] = lambda text: None,
        is_stopped: Callable[[], bool] = lambda: False,
        goes_on: bool = False,
    ) -> Answer:
        """Answer a prompt; greedily the same tokens as stock `generate` of the whole model.

        Args:
            ids: Of the prompt.
            sampling: How; by default greedily.
            on_text: Takes the answer's text piece by piece.
            is_stopped: Asked after each token; whether the answer ends there.
            goes_on: Whether the answer goes on in the midst of the prompt's last line.

        Raises:
            PromptError: there is no room for an answer.
            TrunkError: the trunk is gone, or refuses.
        """
        self.check(ids)
        sampling = sampling or Sampling()
        room = self.context - len(ids) if self.context else sampling.max_new_tokens
        pieces = TextPieces(
            self._decoded, before=ids[-_BEFORE:] if goes_on else (), stop=sampling.stop
        )
        heard = _Heard(pieces, on_text)
        end = _End(lambda: pieces.is_stopped or is_stopped())
        given = torch.tensor([list(ids)], device=next(self._model.parameters()).device)
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            drawn = {"do_sample": True, "temperature": sampling.temperature}
            drawn |= {} if sampling.top_p is None else {"top_p": sampling.top_p}
        seeded = nullcontext() if sampling.seed is None else torch.random.fork_rng()
        with torch.no_grad(), seeded:
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            self._model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=min(sampling.max_new_tokens, room),
                num_beams=1,
                streamer=heard,
                stopping_criteria=StoppingCriteriaList([end]),
                **({"eos_token_id": self._ends} if self._ends else {}),
                **drawn,
            )
        if rest := pieces.end():
            on_text(rest)
        last = heard.ids[-1] if heard.ids else -1
        finish: Finish = "length"
        if last in self._ends or pieces.is_stopped:
            finish = "stop"
        elif is_stopped():
            finish = "interrupted"
        return Answer(
            text=pieces.text,
            prompt_tokens=len(ids),
            new_tokens=len(heard.ids),
            finish=finish,
            is_full=0 < self.context <= len(ids) + len(heard.ids),
        )


@contextmanager
def open_tuned(
    run: TunedRun, *, device: str = "auto", trunk: TrunkHost | None = None
) -> Iterator[TunedModel]:
    """The model of `run`, cut as in the run, as long as the block lasts.

    Args:
        run: What is used.
        device: Where this process computes, as for `resolve_device`.
        trunk: Who holds the trunk; None holds it in this process.

    Raises:
        ModelError: the model cannot be loaded.
        AdapterError: the adapter is another model's.
        PromptError: the prompt format needs what the tokenizer lacks.
        TrunkError: the trunk is not there, or has not loaded the same adapter.
    """
    config = run.config
    model, cuts = config.model, config.split
    try:
        tokenizer = load_tokenizer(model.name, revision=model.revision)
    except WeightsError as error:
        raise ModelError(f"{error}. Where the run's model lies elsewhere, --model names it") from (
            error
        )
    form = PromptForm(run.prompt_format, tokenizer)
    context = context_length(load_skeleton(model.name, revision=model.revision).config)
    tables = table_sizes(model.name, revision=model.revision)
    on = str(resolve_device(device, key="--device"))
    named = _named(model, cuts, on)
    with _fitting(run, model.name):
        client: nn.Module = load_adapter(load_client_model(**named), run.adapter)
    spec = session_spec(client, plan=None, trunk_adapters="frozen", purpose="evaluate")
    transport: Transport
    if trunk is None:
        with _fitting(run, model.name):
            held = load_adapter(load_trunk(**named), run.adapter)
        transport = LocalTransport(held, spec)
        where = f"the trunk is in this process: all of {model.name} is on this machine"
    else:
        transport = GrpcTransport(str(trunk.address), spec, tls=trunk.tls)
        where = f"the trunk is at {trunk.address}"
    try:
        attach_trunk(client, transport)
        yield TunedModel(
            client.eval(), tokenizer, form, context=context, tokens=tables.tokens, where=where
        )
    finally:
        transport.close()


def _named(model: ModelConfig, cuts: CutConfig, device: str) -> dict[str, Any]:
    return {
        "source": model.name,
        "bottom_layers": cuts.bottom_layers,
        "top_layers": cuts.top_layers,
        "revision": model.revision,
        "dtype": model.dtype,
        "attention": model.attention,
        "device": device,
        "quantization": model.quantization,
    }


@contextmanager
def _fitting(run: TunedRun, model: str) -> Iterator[None]:
    """PEFT's warning that tensors are missing, which would leave layers untuned, as an error."""
    with without_peft_notices(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            yield
        except (UserWarning, AdapterError) as error:
            if isinstance(error, AdapterError) and "does not fit" not in str(error):
                raise
            raise AdapterError(
                f"the adapter of {run.name} is not one of {model}: name the model that it was "
                f"trained on with --model ({str(error).splitlines()[0][:200]})"
            ) from error


def _end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the model's own, and the one that the run's texts end with."""
    own = model.generation_config.eos_token_id
    found = [own] if isinstance(own, int) else list(own or ())
    if tokenizer.eos_token_id is not None:
        found.append(int(tokenizer.eos_token_id))
    return list(dict.fromkeys(found))


class _Heard(BaseStreamer):
    """Takes tokens as they are made."""

    def __init__(self, pieces: TextPieces, on_text: Callable[[str], None]) -> None:
        self._pieces = pieces
        self._on_text = on_text
        self._has_prompt = False
        self.ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which comes first, or the next token."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        new = value.flatten().tolist()
        self.ids += new
        if piece := self._pieces.add(new):
            self._on_text(piece)

    def end(self) -> None:
        """Nothing is left to be done."""


class _End(StoppingCriteria):
    def __init__(self, is_ended: Callable[[], bool]) -> None:
        self._is_ended = is_ended

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self._is_ended(), device=input_ids.device)

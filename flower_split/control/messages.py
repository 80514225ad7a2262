"""What a strategy and a trunk service tell each other, as messages and content; checked as read."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from torch import Tensor

from flower_split.adapters import PersonalTensors, SessionState
from flower_split.adapters.plan import plan_from_fields, plan_to_fields
from flower_split.config.checks import one_of
from flower_split.config.trunk import TRUNK_ADAPTERS
from flower_split.control.content import Content
from flower_split.errors import AdapterError, ConfigError, WireError
from flower_split.lowrank import Allowance, Instructions, Scaling
from flower_split.proto import control_pb2 as pb
from flower_split.proto import trunk_pb2 as trunk_pb
from flower_split.server.hosting.layout import RunLayout
from flower_split.server.hosting.run_trunk import Invitee
from flower_split.server.session_states import SiloState
from flower_split.server.ticket_record import SessionOutcome, TrunkStart
from flower_split.transport.messages import QueueUse, SessionSummary, WireBytes
from flower_split.transport.state_tags import LONGEST_SILO_NAME

Read = TypeVar("Read")

_MOMENT, _PERSONAL = "m", "p"


def layout_content(layout: RunLayout) -> Content:
    """A run's layout as content."""
    text = {
        "mode": layout.mode,
        "parameters": layout.parameters,
        "plan": plan_to_fields(layout.plan),
        "trunk": list(layout.trunk_names),
        **({"either": list(layout.either_names)} if layout.either_names else {}),
    }
    return Content(text=text, tensors=layout.initial)


def read_layout(content: Content) -> RunLayout:
    """The layout that `layout_content` told.

    Raises:
        WireError: it is none.
    """

    def read(fields: Mapping[str, Any]) -> RunLayout:
        plan = plan_from_fields(fields["plan"])
        names = tuple(map(str, fields["trunk"]))
        either = tuple(map(str, fields.get("either", ())))
        one_of("mode", fields["mode"], TRUNK_ADAPTERS)
        shapes = {name: tuple(tensor.shape) for name, tensor in content.tensors.items()}
        if shapes != dict(plan.shapes) or not set(either) <= set(names) <= shapes.keys():
            raise ValueError
        return RunLayout(
            mode=str(fields["mode"]),
            plan=plan,
            trunk_names=names,
            either_names=either,
            initial=content.tensors,
            parameters=int(fields["parameters"]),
        )

    return _checked("a run's layout", content.text, read)


def start_text(start: TrunkStart) -> Any:
    """What a session is to do, as JSON; its tensors travel beside it."""
    allowance = None if start.allowance is None else asdict(start.allowance)
    return {"instructions": start.instructions.to_fields(), "allowance": allowance}


def read_start(text: Any, tensors: Mapping[str, Tensor]) -> TrunkStart:
    """The start of a session.

    Raises:
        WireError: it is none.
    """

    def read(fields: Mapping[str, Any]) -> TrunkStart:
        instructions = Instructions.from_fields(dict(fields["instructions"]))
        allowance = fields["allowance"]
        if allowance is not None:
            given = dict(allowance)
            scaling = given.pop("scaling")
            for name in ("ranks", "alphas"):
                given[name] = bool(given[name])
            for name in ("strategy", "takes_ranks", "takes_alphas"):
                given[name] = str(given[name])[:200]
            given["max_r"] = int(given["max_r"])
            allowance = Allowance(scaling=_scaling(scaling), **given)
        return TrunkStart(tensors=tensors, instructions=instructions, allowance=allowance)

    return _checked("a session's start", text, read)


def states_content(states: Iterable[SiloState]) -> Content:
    """Session states as content."""
    text, tensors = list[Any](), dict[str, Tensor]()
    for number, one in enumerate(states):
        scaling = one.state.scaling
        text.append(
            {
                "silo": one.silo,
                "round": one.server_round,
                "tag": one.tag,
                "scale": one.state.personal.scale,
                "scaling": None if scaling is None else asdict(scaling),
                **({} if one.cuts is None else {"cuts": list(one.cuts)}),
            }
        )
        for kind, held in (
            (_MOMENT, one.state.moments),
            (_PERSONAL, one.state.personal.tensors),
        ):
            tensors |= {f"{number} {kind} {name}": tensor for name, tensor in held.items()}
    return Content(text=text, tensors=tensors)


def read_states(content: Content) -> list[SiloState]:
    """The states that `states_content` told.

    Raises:
        WireError: they are none.
    """

    def read(told: list[Any]) -> list[SiloState]:
        held = [{_MOMENT: dict[str, Tensor](), _PERSONAL: dict[str, Tensor]()} for _ in told]
        for key, tensor in content.tensors.items():
            number, kind, name = key.split(" ", 2)
            held[int(number)][kind][name] = tensor
        return [_state(fields, own) for fields, own in zip(told, held, strict=True)]

    return _checked("session states", content.text, read, list)


def _state(fields: Mapping[str, Any], held: Mapping[str, Mapping[str, Tensor]]) -> SiloState:
    silo, scale = str(fields["silo"]), float(fields["scale"])
    if len(silo) > LONGEST_SILO_NAME or not math.isfinite(scale):
        raise ValueError
    cuts = None
    if "cuts" in fields:
        bottom, top = map(int, fields["cuts"])
        cuts = (bottom, top)
    return SiloState(
        silo=silo,
        server_round=int(fields["round"]),
        tag=str(fields["tag"]),
        state=SessionState(
            moments=held[_MOMENT],
            personal=PersonalTensors(tensors=held[_PERSONAL], scale=scale),
            scaling=_scaling(fields["scaling"]),
        ),
        cuts=cuts,
    )


def invite_message(session: bytes, invitee: Invitee, start: int, *, known: bool) -> pb.Invite:
    """Whom a session is for."""
    return pb.Invite(session=session, start=start, known=known, **asdict(invitee))


def read_invitee(message: pb.Invite) -> Invitee:
    """Whom a session is for.

    Raises:
        WireError: its purpose or time is none.
    """
    if message.purpose not in ("train", "evaluate"):
        raise WireError(f"a session is to train or to evaluate, not to {message.purpose[:20]!r}")
    if not (math.isfinite(message.seconds) and message.seconds > 0):
        raise WireError(f"a session of {message.seconds} seconds")
    return Invitee(
        run_id=message.run_id,
        node_id=message.node_id,
        server_round=message.server_round,
        purpose="train" if message.purpose == "train" else "evaluate",
        seconds=message.seconds,
    )


def collected_message(outcome: SessionOutcome) -> pb.Collected:
    """What a finished session leaves, but for its tensors."""
    scaling = outcome.scaling
    return pb.Collected(
        finished=True,
        silo=outcome.silo,
        summary=summary_message(outcome.summary),
        scaling=None if scaling is None else pb.Scaling(**asdict(scaling)),
    )


def read_collected(message: pb.Collected, tensors: Mapping[str, Tensor]) -> SessionOutcome | None:
    """What a session leaves; None unless it was finished.

    Raises:
        WireError: it is malformed.
    """
    if not message.finished:
        return None

    def read(own: pb.Collected) -> SessionOutcome:
        scaling = own.scaling
        given = (
            Scaling(r=scaling.r, alpha=scaling.alpha, rslora=scaling.rslora)
            if own.HasField("scaling")
            else None
        )
        return SessionOutcome(
            tensors=tensors, summary=read_summary(own.summary), scaling=given, silo=own.silo
        )

    return _checked("a session's outcome", message, read, pb.Collected)


def summary_message(summary: SessionSummary) -> trunk_pb.Summary:
    """What was counted in a session."""
    return trunk_pb.Summary(
        steps=summary.steps,
        forwards=summary.forwards,
        backwards=summary.backwards,
        tokens=summary.tokens,
        wire_bytes=trunk_pb.WireBytes(**summary.wire_bytes),
        queue=trunk_pb.QueueUse(**asdict(summary.queue)),
    )


def read_summary(message: trunk_pb.Summary) -> SessionSummary:
    """What was counted in a session."""
    queue = message.queue
    if not (math.isfinite(queue.seconds) and queue.seconds >= 0):
        raise WireError(f"a summary with {queue.seconds} seconds of waiting, expected 0 or more")
    return SessionSummary(
        steps=message.steps,
        forwards=message.forwards,
        backwards=message.backwards,
        tokens=message.tokens,
        wire_bytes=WireBytes(**{name: getattr(message.wire_bytes, name) for name in WireBytes()}),
        queue=QueueUse(
            seconds=queue.seconds,
            length=queue.length,
            rows=queue.rows,
            rows_beside=queue.rows_beside,
        ),
    )


def _scaling(fields: Any) -> Scaling | None:
    if fields is None:
        return None
    return Scaling(r=int(fields["r"]), alpha=float(fields["alpha"]), rslora=bool(fields["rslora"]))


def _checked(what: str, value: Any, read: Callable[[Any], Read], kind: type[Any] = dict) -> Read:
    try:
        if not isinstance(value, kind):
            raise TypeError
        return read(value)
    except (
        *(KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError),
        *(AdapterError, ConfigError),
    ) as error:
        raise WireError(f"{what} is malformed") from error

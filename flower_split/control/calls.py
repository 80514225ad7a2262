"""`RunCalls`: what each kind of call does to a run, at the service's end."""

from collections.abc import Callable, Mapping

from flower_split.control.content import Content
from flower_split.control.messages import (
    collected_message,
    layout_content,
    read_invitee,
    read_start,
    read_states,
    states_content,
    summary_message,
)
from flower_split.control.run_settings import read_settings
from flower_split.control.served_run import ServedRun
from flower_split.control.served_runs import ServedRuns
from flower_split.errors import WireError
from flower_split.proto import control_pb2 as pb
from flower_split.server.hosting.run_trunk import SiloChannel

Answered = tuple[pb.Answer, Content]
_DONE = Content()
_SESSION_BYTES = 16
_MOST_NODES = 1 << 20


class RunCalls:
    """Does calls, one at a time for a run, in a thread that may wait.

    Args:
        runs: Of the service.
        channel: How silos reach it.
    """

    def __init__(self, runs: ServedRuns, channel: SiloChannel) -> None:
        self._runs = runs
        self._channel = channel
        self._kinds: Mapping[str, Callable[[ServedRun, pb.Call, Content], Answered]] = {
            "begin": self._begin,
            "invite": self._invite,
            "look": self._look,
            "collect": self._collect,
            "accept": self._accept,
            "discard": self._discard,
            "connected": self._connected,
            "read_shared": self._read_shared,
            "read_states": self._read_states,
            "load_states": self._load_states,
            "close": self._close,
        }

    def hello(self) -> Answered:
        """What the service has."""
        return pb.Answer(welcome=pb.Welcome(model=str(self._runs.model))), _DONE

    def open(self, content: Content, owner: str) -> Answered:
        """Open a run.

        Raises:
            FlowerSplitError: see `ServedRuns.open`.
        """
        run = self._runs.open(read_settings(content.text), owner, self._channel)
        channel = run.hosted.channel
        opened = pb.Opened(run=run.secret, address=channel.address, tls=channel.tls, ca=channel.ca)
        return pb.Answer(opened=opened), layout_content(run.hosted.layout)

    def do(self, run: ServedRun, call: pb.Call, content: Content) -> Answered:
        """Do a call of a run.

        Raises:
            FlowerSplitError: it cannot be done; says why.
        """
        kind = self._kinds.get(call.WhichOneof("kind") or "")
        if kind is None:
            raise WireError("a call of an unknown kind")
        with run.changing:  # a call may be repeated while its first answer is on its way
            return kind(run, call, content)

    def _begin(self, run: ServedRun, call: pb.Call, content: Content) -> Answered:
        run.hosted.begin(content.tensors)
        return _done()

    def _invite(self, run: ServedRun, call: pb.Call, content: Content) -> Answered:
        self._runs.check_invites()
        asked = call.invite
        start = read_start(content.text, content.tensors)
        made = run.invite(
            _named(asked.session), read_invitee(asked), asked.start, start, known=asked.known
        )
        offer = made.hosted.offer
        invited = pb.Invited(
            token=made.hosted.ticket.token,
            pack="" if offer is None else offer.pack,
            delivery_tokens=[] if offer is None else [one.token for one in offer.tickets],
        )
        return pb.Answer(invited=invited), _DONE

    def _look(self, run: ServedRun, call: pb.Call, content: Content) -> Answered:
        looked = pb.Looked(waiting=run.hosted.waiting, stopping=self._runs.is_draining)
        for name, session in list(run.sessions.items()):
            progress = session.hosted.progress()
            looked.sessions.append(
                pb.Seen(
                    session=name,
                    stage=session.stage.value,
                    silo=session.hosted.silo,
                    progress=None if progress is None else summary_message(progress),
                )
            )
        return pb.Answer(looked=looked), _DONE

    def _collect(self, run: ServedRun, call: pb.Call, content: Content) -> Answered:
        outcome = run.session(_named(call.collect.session)).collect()
        if outcome is None:
            return pb.Answer(collected=pb.Collected()), _DONE
        return pb.Answer(collected=collected_message(outcome)), Content(tensors=outcome.tensors)

    def _accept(self, run: ServedRun, call: pb.Call, content: Content) -> Answered:
        run.session(_named(call.accept.session)).accept()
        return _done()

    def _discard(self, run: ServedRun, call: pb.Call, content: Content) -> Answered:
        run.discard(_named(call.discard.session))
        return _done()

    def _connected(self, run: ServedRun, call: pb.Call, content: Content) -> Answered:
        if len(call.connected.node_ids) > _MOST_NODES:
            raise WireError(f"more than {_MOST_NODES} nodes")
        run.hosted.note_connected(call.connected.node_ids)
        return _done()

    def _read_shared(self, run: ServedRun, call: pb.Call, content: Content) -> Answered:
        return _done(Content(tensors=run.hosted.shared_state()))

    def _read_states(self, run: ServedRun, call: pb.Call, content: Content) -> Answered:
        return _done(states_content(run.hosted.session_states()))

    def _load_states(self, run: ServedRun, call: pb.Call, content: Content) -> Answered:
        run.hosted.load_session_states(read_states(content))
        return _done()

    def _close(self, run: ServedRun, call: pb.Call, content: Content) -> Answered:
        self._runs.close(run)
        return _done()


def _done(content: Content = _DONE) -> Answered:
    return pb.Answer(done=pb.Done()), content


def _named(session: bytes) -> bytes:
    if len(session) != _SESSION_BYTES:
        raise WireError(f"a session is named by {_SESSION_BYTES} bytes, not {len(session)}")
    return session

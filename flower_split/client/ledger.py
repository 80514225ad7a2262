"""The ledger of a silo's sessions: what is noted of everything before it leaves."""

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.app import RecordDict

from flower_split.client.node_config import NodeConfig
from flower_split.client.state.folder import file_name
from flower_split.ledger import Ledger
from flower_split.tensor_digest import tensor_digest
from flower_split.transport.account import LeavingTensor
from flower_split.transport.arrays import read_array
from flower_split.transport.invitation import Invitation
from flower_split.transport.messages import SessionSpec

logger = logging.getLogger(__name__)


class SessionLedger:
    """The account of one session, in the silo's ledger.

    Args:
        ledger: Of the silo.
        begun: What is told of the session itself.

    Raises:
        LedgerError: the ledger cannot be written.
    """

    def __init__(self, ledger: Ledger, begun: Mapping[str, Any]) -> None:
        self._ledger = ledger
        self._session = secrets.token_hex(8)
        self._append({"kind": "session", **begun})

    def note_tensors(self, tensors: Sequence[LeavingTensor]) -> None:
        """Tensors are about to leave for the trunk.

        Raises:
            LedgerError: the ledger cannot be written.
        """
        self._append(
            *(
                {
                    "kind": "tensor",
                    "role": one.role,
                    "dtype": one.dtype,
                    "shape": list(one.shape),
                    "codec": one.codec,
                    "bytes": one.num_bytes,
                    "sha256": one.sha256,
                    **({"again": True} if one.again else {}),
                }
                for one in tensors
            )
        )

    def note_reply(self, content: RecordDict) -> None:
        """A reply is about to leave for the server: its adapter tensors and the names of the rest.

        Raises:
            LedgerError: the ledger cannot be written.
        """
        arrays = [array for one in content.array_records.values() for array in one.items()]
        sent = {name: torch.from_numpy(read_array(name, array)) for name, array in arrays}
        texts = {
            name: len(value.encode())
            for record in content.config_records.values()
            for name, value in record.items()
            if isinstance(value, str)
        }
        self._append(
            {
                "kind": "reply",
                "arrays": len(arrays),
                "bytes": sum(len(array.data) for _, array in arrays),
                "sha256": tensor_digest(sorted(sent.items())),
                "metrics": sorted({n for one in content.metric_records.values() for n in one}),
                "values": sorted({n for one in content.config_records.values() for n in one}),
                "texts": texts,
            }
        )

    def commit(self) -> None:
        """Force the account to the disk, and log the hash of its end.

        Raises:
            LedgerError: the ledger cannot be written.
        """
        logger.info("the ledger in %s ends with %s", self._ledger.folder, self._ledger.commit())

    def _append(self, *entries: Mapping[str, Any]) -> None:
        self._ledger.append([{**entry, "session": self._session} for entry in entries])


def ledger_folder(node: NodeConfig, silo: str) -> Path | None:
    """Where a silo's ledger is; None where it keeps none."""
    return Path(node.ledger_dir) / file_name(silo) if node.ledger_dir else None


@contextmanager
def session_ledger(
    node: NodeConfig,
    silo: str,
    invitation: Invitation,
    spec: SessionSpec,
    adapter: Mapping[str, torch.Tensor],
) -> Iterator[SessionLedger | None]:
    """The account of a session, committed on leaving; None where the silo keeps none.

    Args:
        node: Says where the ledger is.
        silo: The silo's name.
        invitation: Which session it is, and where it leads.
        spec: What it agrees on.
        adapter: What the silo's part of the adapter is at the session's start.

    Raises:
        LedgerError: the ledger cannot be written.
        UnsafeFolderError: its folder is another user's, or others may write into it.
    """
    folder = ledger_folder(node, silo)
    if folder is None:
        yield None
        return
    ledger = Ledger(folder)
    try:
        account = SessionLedger(
            ledger,
            {
                "run": str(invitation.ticket.run_id),
                "round": invitation.ticket.server_round,
                "purpose": invitation.purpose,
                "silo": silo,
                "destination": invitation.address,
                "tls": invitation.tls,
                "transforms": list(spec.wire.transforms),
                "adapter_sha256": tensor_digest(sorted(adapter.items())),
            },
        )
        try:
            yield account
        finally:
            account.commit()
    finally:
        ledger.close()

"""What a silo brings to the handshake, read off its model."""

from torch import nn

from flower_split.adapters import AdapterPlan
from flower_split.adapters.prompts import prefix_tokens
from flower_split.adapters.state import weights_dtype
from flower_split.config.sections import DTYPES
from flower_split.config.wire import WireConfig
from flower_split.errors import ModelError
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy import PrivacySettings
from flower_split.remote.attach import find_slot
from flower_split.transport.messages import Purpose, SessionSpec


def session_spec(
    client_model: nn.Module,
    *,
    plan: AdapterPlan | None,
    trunk_adapters: str,
    purpose: Purpose = "train",
    wire: WireConfig | None = None,
    optimizer: OptimizerSettings | None = None,
    privacy: PrivacySettings | None = None,
    seed: int = 0,
    pack: str = "",
    silo: str = "",
    session_states: tuple[str, ...] = (),
) -> SessionSpec:
    """The specification of a session for `client_model`.

    Args:
        client_model: From `split_model` or `load_client_model`, wrapped by PEFT or not.
        plan: The whole model's adapter plan. With a frozen trunk it may be None, or tells the
            trunk's host only which rank and alpha the silo's own adapter has.
        trunk_adapters: `federated`, `shared` or `frozen`.
        purpose: `train` or `evaluate`.
        wire: Codecs and transforms; float32 and none where not given.
        optimizer: Constants of AdamW and of clipping.
        privacy: Of DP-SGD; without noise where not given.
        seed: Seed of the trunk's dropout.
        pack: Digest of the pack by which the model was delivered; empty for a silo's own.
        silo: The silo's name.
        session_states: Tags of what earlier sessions left, from which the silo can go on.

    Raises:
        ModelError: the model has no place for a trunk, or weights of a dtype that is not sent.
    """
    _, _, slot = find_slot(client_model)
    dtype = str(weights_dtype(client_model)).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ModelError(
            f"the client model's weights are {dtype}, and a trunk computes in one of "
            f"{', '.join(DTYPES)}: load the model so, or convert it before the session is opened"
        )
    return SessionSpec(
        purpose=purpose,
        fingerprint=slot.fingerprint,
        num_layers=slot.cuts.num_layers,
        bottom_layers=slot.cuts.bottom_layers,
        top_layers=slot.cuts.top_layers,
        dtype=dtype,
        trunk_adapters=trunk_adapters,
        adapter="" if plan is None else plan.json,
        wire=wire or WireConfig(),
        optimizer=optimizer or OptimizerSettings(),
        privacy=privacy or PrivacySettings(),
        seed=seed,
        pack=pack,
        silo=silo,
        session_states=session_states,
        loaded_adapter=slot.loaded_adapter,
        prefix_tokens=prefix_tokens(client_model),
    )

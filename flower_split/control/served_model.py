"""`ServedModel`: what a trunk service has loaded, and whether a run asks for the same."""

from dataclasses import dataclass, fields, replace

from flower_split.config.sections import SplitConfig
from flower_split.errors import HandshakeError

_KEYS = {
    "dtype": "trunk.dtype (or model.dtype)",
    "bottom_layers": "split.bottom-layers",
    "top_layers": "split.top-layers",
}


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model and its cuts, by the values of the run-config keys that name them."""

    name: str
    """By which runs name it, wherever this service has its files."""
    revision: str
    task: str
    labels: tuple[str, ...]
    attention: str
    quantization: str
    dtype: str
    """Of the trunk's weights."""
    bottom_layers: int
    top_layers: int

    @classmethod
    def of_run(cls, config: SplitConfig) -> "ServedModel":
        """What a run asks for."""
        model = config.model
        return cls(
            name=model.name,
            revision=model.revision,
            task=model.task,
            labels=model.labels,
            attention=model.attention,
            quantization=model.quantization,
            dtype=config.trunk.dtype or model.dtype,
            bottom_layers=config.split.bottom_layers,
            top_layers=config.split.top_layers,
        )

    def check(self, config: SplitConfig) -> None:
        """Raise `HandshakeError` unless a run of `config` can be served."""
        wanted = ServedModel.of_run(config)
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(wanted, field.name)
            if ours != theirs:
                key = _KEYS.get(field.name, f"model.{field.name}")
                raise HandshakeError(
                    f"{key}: the service has {ours!r}, and the run asks for {theirs!r}. Set the "
                    "run's to the service's, or start a service for it"
                )
        if config.split.leaves_choice and not config.peft.is_plain:
            raise HandshakeError(
                "split.max-bottom-layers and split.max-top-layers: the service lets silos choose "
                f"their cuts with plain LoRA alone, and the run has {config.peft}: leave silos no "
                "choice, or leave trunk.service empty"
            )
        if config.split.leaves_choice and config.model.delivery == "server":
            raise HandshakeError(
                "model.delivery: the service gives silos the layers outside of its own cuts alone, "
                "and the run lets them hold more (split.max-bottom-layers, split.max-top-layers): "
                "set it to 'local', or leave silos no choice"
            )

    def __str__(self) -> str:
        return (
            f"{self.name}, {self.bottom_layers} bottom and {self.top_layers} top layers, "
            f"{self.dtype}"
        )


def located(config: SplitConfig, source: str) -> SplitConfig:
    """`config` with the model named as this machine finds it."""
    return replace(config, model=replace(config.model, name=source))

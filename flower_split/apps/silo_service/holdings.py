"""Holdings: what the service keeps between messages, and gives back."""

import gc
import os
import threading

import psutil
import torch
from flwr.app import Context, Message

from flower_split.client.model_pool import drop_models, held_models, keep_models
from flower_split.client.node_config import NodeConfig
from flower_split.client.silo_data import drop_data, held_data
from flower_split.config.run_config import read_run_config
from flower_split.data.callables import is_reference
from flower_split.devices import give_back_freed_memory
from flower_split.errors import ServiceError
from flower_split.proto.silo_pb2 import HeldData, HeldModel, Status


class Holdings:
    """Models of any run, up to a bound, and the tokenised data of one run.

    Args:
        most_model_bytes: Of the models that are kept between messages, of which the longest unused
            goes first.
    """

    def __init__(self, most_model_bytes: int) -> None:
        self._most_model_bytes = most_model_bytes
        self._run_id: int | None = None
        self._lock = threading.Lock()
        keep_models(most_model_bytes)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held that could be given back."""
        return not held_models() and self._run_id is None

    def check(self, context: Context) -> None:
        """Raise unless a message with `context` can be done here as in a process of its own.

        Raises:
            ServiceError: it needs code that comes with the run.
            ConfigError: its run config or node config is not valid.
        """
        config, node = read_run_config(context.run_config), NodeConfig.read(context.node_config)
        data = node.own_data(config.data)
        for key, path, own in (
            ("data.path", data.path, node.data_path),
            ("data.eval-path", data.eval_path, node.eval_path),
        ):
            if is_reference(path) and path != own:
                raise ServiceError(
                    f"the run's {key} {path!r} is code that comes with the run, which the silo "
                    "service does not load; name it in the node config if it is installed here"
                )

    def begin(self, message: Message, context: Context) -> None:
        """A message begins: what was read for another run is not its own."""
        run_id = message.metadata.run_id
        if self._run_id != run_id:
            drop_data()
        self._run_id = run_id

    def drop(self) -> None:
        """Give all back, the device's memory too."""
        drop_models()
        drop_data()
        self._run_id = None
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        give_back_freed_memory()

    def status(self) -> Status:
        """What is held now."""
        models = [
            HeldModel(
                name=one.name,
                device=one.device,
                bottom_layers=one.bottom_layers,
                top_layers=one.top_layers,
                num_bytes=one.num_bytes,
            )
            for one in held_models()
        ]
        data = [
            HeldData(
                run_id=self._run_id or 0,
                train_examples=one.train.num_examples,
                held_out_examples=one.held_out.num_examples,
            )
            for one in held_data()
        ]
        return Status(
            pid=os.getpid(),
            resident_bytes=psutil.Process().memory_info().rss,
            most_model_bytes=self._most_model_bytes,
            models=models,
            data=data,
        )

"""A subject of an audit: a tiny model cut at 2/1, and texts of its own."""

from pathlib import Path

from tiny_checkpoint import save_texts, save_tiny_model

from flower_split.audit.settings import AuditSettings
from flower_split.audit.subject import Subject, open_subject
from flower_split.audit.texts import AuditTexts, load_texts
from flower_split.config.run_config import read_run_config
from flower_split.segments import load_skeleton, load_tokenizer, table_sizes


def opened(folder: Path, name: str = "", **changed) -> tuple[Subject, AuditTexts]:
    """Ten texts to attack and twenty public ones, of another model where one is named; `changed`
    are keys of the run config."""
    model = name or str(save_tiny_model(folder / "model"))
    data = save_texts(folder / "texts.jsonl", 40)
    values = {"model.name": model, "split.bottom-layers": 2, "train.batch-size": 5, **changed}
    config = read_run_config(values)
    texts = load_texts(
        config,
        AuditSettings(documents=10, tokens=8, public_documents=20),
        load_tokenizer(model),
        table_sizes(model),
        data=str(data),
        public=str(data),
    )
    sizes = load_skeleton(model).config
    subject = open_subject(
        config,
        layers=sizes.num_hidden_layers,
        hidden=sizes.hidden_size,
        adapter=None,
        device="cpu",
    )
    return subject, texts

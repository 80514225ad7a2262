"""An audit by its command: what is audited, and the files that it leaves."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flower_split.adapters.methods import PROMPTS, method_problems
from flower_split.apps.folder.app import App
from flower_split.apps.folder.overrides import parse_overrides
from flower_split.audit import AuditSettings, Budget, Outcome, Policy, run_audit
from flower_split.audit.attacking import Say
from flower_split.audit.page import audit_page
from flower_split.audit.subject import open_subject
from flower_split.audit.texts import load_texts
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import SplitConfig
from flower_split.config.tasks import CAUSAL_LM
from flower_split.errors import ConfigError, ModelError, StateError
from flower_split.private_files import make_folder, write_whole
from flower_split.segments import load_skeleton, load_tokenizer, table_sizes
from flower_split.segments.refusals import context_length

RESULT, PAGE, LOCAL_PAGE = "audit.json", "audit.html", "audit-with-texts.html"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command asks for."""

    target: str
    """Folder of an app, or a model."""
    given: Sequence[str]
    """Overrides, as of `-c`."""
    out: Path
    adapter: Path | None = None
    data: str = ""
    public: str = ""
    device: str = "cpu"
    sweeps: bool = True
    with_texts: bool = False


def audit(
    asked: Asked, policy: Policy, settings: AuditSettings, budget: Budget, say: Say
) -> Outcome:
    """Audit what is asked for, and write the report.

    Raises:
        FlowerSplitError: bad input; no file has been written.
    """
    config = audited_config(asked)
    skeleton = load_skeleton(config.model.name, revision=config.model.revision)
    sizes = skeleton.config.get_text_config(decoder=True)
    length, context = min(settings.tokens, config.train.max_length), context_length(skeleton.config)
    if context and length > context:
        raise ConfigError(
            f"--tokens {length} is more than the {context} tokens of the model's context: set it "
            f"to at most {context}"
        )
    subject = open_subject(
        config,
        layers=int(sizes.num_hidden_layers),
        hidden=int(sizes.hidden_size),
        adapter=asked.adapter,
        device=asked.device,
    )
    folder = _folder(asked.out)
    texts = load_texts(
        config,
        settings,
        load_tokenizer(config.model.name, revision=config.model.revision),
        table_sizes(config.model.name, revision=config.model.revision),
        data=asked.data,
        public=asked.public,
    )
    outcome = run_audit(
        subject,
        texts,
        policy,
        settings=settings,
        budget=budget,
        sweeps=asked.sweeps,
        say=say,
    )
    say("writing the report")
    files = {
        RESULT: json.dumps(outcome.fields, indent=2) + "\n",
        PAGE: audit_page(outcome),
    }
    if asked.with_texts:
        files[LOCAL_PAGE] = audit_page(outcome, texts)
    try:
        for name, content in files.items():
            write_whole(folder / name, content.encode())
    except OSError as error:
        raise StateError(f"the report cannot be written to {folder}: {error.strerror}") from error
    return outcome


def audited_config(asked: Asked) -> SplitConfig:
    """The settings of what is audited.

    Raises:
        ConfigError: a setting is none.
        ModelError: the model is for another task than the audit's attacks are.
    """
    overrides = parse_overrides(asked.given)
    if (Path(asked.target) / "pyproject.toml").is_file():
        values = {**App.read(Path(asked.target)).settings, **overrides}
    else:
        values = {**overrides, "model.name": asked.target}
    config = read_run_config(values, check_method=method_problems)
    if config.model.task != CAUSAL_LM:
        raise ModelError(
            f"the attacks of an audit reconstruct the texts of language models, and model.task is "
            f"{config.model.task!r}: set it to {CAUSAL_LM!r}"
        )
    if config.peft.type in PROMPTS:
        raise ConfigError(
            f"peft.type {config.peft.type!r} puts trained tokens before every text, which the "
            "attacks do not look for: audit the run with LoRA"
        )
    return config


def _folder(out: Path) -> Path:
    """Made for this user alone before hours are spent."""
    try:
        return make_folder(out)
    except OSError as error:
        raise StateError(f"--out {out} cannot be made: {error.strerror}") from error

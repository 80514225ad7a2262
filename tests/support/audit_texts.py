"""Texts of random tokens, and recordings of them, for attacks that are tried without a model."""

import torch
from torch import Tensor

from flower_split.audit.attacks.nearest import Embeddings
from flower_split.audit.recording import Recording
from flower_split.audit.texts import AuditTexts, Documents
from flower_split.data.sequences import Ragged, TokenizedDataset

VOCABULARY, HIDDEN, TOKENS = 61, 24, 10
SPECIAL = 0


class Numbers:
    """A tokenizer whose words are the numbers of tokens."""

    def decode(self, ids, skip_special_tokens):
        return " ".join(str(one) for one in ids if one != SPECIAL)


def documents(count: int, seed: int, *, prompt: int = 1) -> Documents:
    """Texts that begin with a special token, of 6 to 10 tokens, some tokens frequent."""
    generator = torch.Generator().manual_seed(seed)
    often = 0.93 ** torch.arange(VOCABULARY - 1)
    rows = []
    for _ in range(count):
        length = int(torch.randint(5, TOKENS, (), generator=generator))
        picks = often.multinomial(length, replacement=True, generator=generator) + 1
        rows.append([SPECIAL, *picks.tolist()])
    ids = torch.zeros(count, TOKENS, dtype=torch.int64)
    mask = torch.zeros(count, TOKENS, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = True
    learnt = mask & (torch.arange(TOKENS) >= prompt)
    data = TokenizedDataset(sequences=Ragged(rows), prompt_lengths=[prompt] * count, pad_id=SPECIAL)
    scored = mask & (ids != SPECIAL)
    return Documents(data=data, ids=ids, mask=mask, learnt=learnt, scored=scored, origin="a test")


def texts(victims: int = 24, public: int = 200, *, prompt: int = 1) -> AuditTexts:
    """Victims and public texts of the same kind."""
    learned = documents(public, seed=2, prompt=prompt)
    counts = torch.bincount(learned.ids[learned.scored], minlength=VOCABULARY).float() + 1
    special = torch.zeros(VOCABULARY, dtype=torch.bool)
    special[SPECIAL] = True
    return AuditTexts(
        victims=documents(victims, seed=1, prompt=prompt),
        public=learned,
        vocabulary=VOCABULARY,
        content=~special,
        special=special,
        prior=counts / counts.sum(),
        tokenizer=Numbers(),
    )


def table(seed: int = 0) -> Tensor:
    """Random embeddings, (V, H)."""
    return torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(seed))


def known(rows: Tensor) -> Embeddings:
    """Embeddings to which no position adds anything."""
    return Embeddings(table=rows, positions=torch.zeros(TOKENS, HIDDEN))


def recording(of: Documents, rows: Tensor) -> Recording:
    """What a bottom sends that looks tokens up in a table, (V, H)."""
    return Recording(h1=rows[of.ids] * of.mask[..., None], mask=of.mask)


def noise(of: Documents, seed: int = 5) -> Recording:
    """What tells nothing of the texts."""
    generator = torch.Generator().manual_seed(seed)
    return Recording(h1=torch.randn(*of.ids.shape, HIDDEN, generator=generator), mask=of.mask)


def share(found: Tensor, of: Documents) -> float:
    """Of scored tokens that are right."""
    return float((found == of.ids)[of.scored].double().mean())

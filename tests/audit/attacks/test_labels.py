"""Labels are found in the gradient at the top cut, and nothing in another one."""

from dataclasses import replace

import torch
from audit_texts import HIDDEN, noise, table, texts

from flower_split.audit.attacks.labels import find_labels, right_labels
from flower_split.audit.attacks.rows import rows_told, with_loss


def test_labels_of_a_top() -> None:
    given = texts(16, prompt=3)
    victims = given.victims
    generator = torch.Generator().manual_seed(4)
    h2 = torch.randn(*victims.ids.shape, HIDDEN, generator=generator)
    head = table(6)

    def top(hidden, mask):
        return torch.tanh(hidden) @ head.T

    target = with_loss(victims.learnt)
    following = torch.zeros_like(victims.ids)
    following[:, :-1] = victims.ids[:, 1:]
    leaf = h2.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(top(leaf, None)[target], following[target])
    loss.backward()
    assert leaf.grad is not None
    seen = replace(noise(victims), h2=h2, g2=leaf.grad, groups=((0, 16),))

    def shares(of):
        found = find_labels(of, victims, top)
        counts = [right_labels(one, victims) for one in (found.guess, found.one_pass)]
        refined = right_labels(found.refined, victims)
        return [float(right.sum() / of.sum()) for right, of in (*counts, refined)]

    guess, one_pass, refined = shares(seen)
    assert guess < 0.15 and one_pass > 0.6 and refined > 0.95 and refined > one_pass
    order = torch.randperm(16, generator=generator)
    # Other texts' gradients, a hundred times as long.
    strange = replace(seen, g2=100 * leaf.grad[order].flip(1))
    assert max(shares(strange)) < 0.25

    told = rows_told(seen, victims)
    assert told is not None and told.auc == 1 and told.zero_rows == 1
    drowned = torch.randn(*h2.shape, generator=generator)
    told = rows_told(replace(seen, g2=drowned), victims)
    assert told is not None and abs(told.auc - 0.5) < 0.2 and told.zero_rows == 0

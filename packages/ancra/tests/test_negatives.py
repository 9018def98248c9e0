"""The choice of negatives: the official candidate sets and choices, uniformity, several per anchor, gaps."""

from __future__ import annotations

import shutil
from collections import Counter

import golden
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ancra.negatives import (
    FIRST_STRATEGY_EPOCH,
    STRATEGIES,
    Draws,
    candidates,
    draw,
    pick_negatives,
    random_negatives,
)
from robust_core.errors import UserError

CLASSES = 10


def batch():
    arrays = golden.load("ancra", "pick_neg.npz")
    return torch.from_numpy(arrays["labels"]), torch.from_numpy(arrays["logits"])


def numbers(count, seed=0, classes=1, images=1):
    return draw(count, torch.Generator().manual_seed(seed), classes=classes, images=images)


def pick(strategy, labels, logits, draws, rows=slice(None)):
    return pick_negatives(strategy, labels, logits, draws, num_classes=logits.shape[1], rows=rows)


@pytest.mark.golden
@pytest.mark.parametrize("strategy", ["soft", "hard", "easy"])
def test_candidates_and_choices_are_the_official_ones(strategy):
    reference = golden.load("ancra", "pick_neg.npz")
    labels, logits = batch()
    predictions = logits.argmax(dim=1)
    assert (predictions.numpy() == reference["pred"]).all()
    allowed = candidates(strategy, labels, predictions, labels, predictions)
    assert (allowed.numpy() == reference[f"{strategy}_candidates"]).all()
    chosen = pick(strategy, labels, logits, numbers(len(labels)))
    certain = reference[f"{strategy}_deterministic"]
    assert (chosen.indices[:, 0].numpy() == reference[f"{strategy}_neg_id"])[certain].all()
    assert (labels[chosen.indices[:, 0]].numpy() == reference[f"{strategy}_neg_gt"])[certain].all()
    assert chosen.found.all()
    assert bool((labels[chosen.indices[:, 0]] != labels).all())


@pytest.mark.golden
def test_random_choices_have_the_official_probabilities():
    reference = golden.load("ancra", "pick_neg.npz")
    labels, _ = batch()
    count, repeats = len(labels), 4000
    histogram = np.zeros((count, count))
    for seed in range(repeats // 100):
        many = numbers(count * 100, seed)
        chosen = random_negatives(labels.repeat(100), labels, many, num_classes=CLASSES).indices[:, 0].numpy()
        np.add.at(histogram, (np.tile(np.arange(count), 100), chosen), 1)
    expected = reference["random_prob"]
    assert (histogram[expected == 0] == 0).all()
    deviation = (histogram - repeats * expected) / np.sqrt(
        repeats * expected * (1 - expected) + (expected == 0)
    )
    assert np.abs(deviation).max() < 5  # of a normal quantity, 576 of them
    assert int(reference["first_strategy_epoch"]) == FIRST_STRATEGY_EPOCH


@pytest.mark.golden
def test_attacked_negatives_are_chosen_as_officially():
    reference = golden.load("ancra", "pick_neg.npz")
    labels, logits = torch.from_numpy(reference["adv_labels"]), torch.from_numpy(reference["adv_logits_f64"])
    predictions = logits.argmax(dim=1)
    allowed = candidates("hard", labels, predictions, labels, predictions)
    assert (allowed.numpy() == reference["adv_candidates"]).all()
    chosen = pick("hard", labels, logits, numbers(len(labels))).indices[:, 0]
    certain = reference["adv_candidates"].any(axis=1)
    assert (chosen.numpy() == reference["adv_neg_id"])[certain].all()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(STRATEGIES),
    st.lists(st.integers(0, 4), min_size=1, max_size=14),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
def test_negatives_are_of_other_classes_and_distinct(strategy, labels, classes, images, seed):
    labels = torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(labels), 5, generator=generator)
    chosen = pick(strategy, labels, logits, numbers(len(labels), seed, classes, images))
    assert chosen.indices.shape == chosen.found.shape == (len(labels), classes * images)
    predictions = logits.argmax(dim=1)
    for anchor, (indices, found) in enumerate(zip(chosen.indices, chosen.found, strict=True)):
        own = int(labels[anchor])
        taken = indices[found].tolist()
        assert all(int(labels[index]) != own for index in taken)
        members = [int((labels == other).sum()) for other in range(5) if other != own]
        possible = min(classes, sum(count >= images for count in members))
        if strategy == "random":
            assert len(taken) == len(set(taken)) == possible * images
            assert len({int(labels[index]) for index in taken}) == possible
            continue
        allowed = candidates(strategy, labels, predictions, labels, predictions)[anchor]
        best = logits[:, own].masked_fill(~allowed, -torch.inf).sort(descending=True).indices
        assert len(taken) == len(set(taken))
        expected = min(int(allowed.sum()), classes * images)
        assert taken[:expected] == best[:expected].tolist()


def test_a_batch_of_one_class_has_no_negatives():
    labels = torch.zeros(4, dtype=torch.int64)
    for strategy in STRATEGIES:
        assert not pick(strategy, labels, torch.randn(4, 3), numbers(4)).found.any()


def test_anchors_of_one_process_choose_from_the_global_batch():
    labels, logits = batch()
    draws = numbers(len(labels))
    for strategy in STRATEGIES:
        whole = pick(strategy, labels, logits, draws)
        rows = slice(5, 11)
        part = pick(strategy, labels, logits, Draws(*(entry[rows] for entry in draws)), rows=rows)
        assert torch.equal(part.indices, whole.indices[rows])


def test_images_and_classes_are_drawn_alike_when_there_are_several():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])  # class 3 has too few
    repeats = 6000
    draws = numbers(repeats, classes=1, images=2)
    anchors = torch.zeros(repeats, dtype=torch.int64)
    chosen = random_negatives(anchors, labels, draws, num_classes=4)
    assert chosen.found.all()
    pairs = Counter(tuple(sorted(pair)) for pair in chosen.indices.tolist())
    expected = {(4, 5): 1 / 6, (4, 6): 1 / 6, (5, 6): 1 / 6, (7, 8): 1 / 2}
    assert set(pairs) == set(expected)
    for pair, share in expected.items():
        assert abs(pairs[pair] - repeats * share) < 5 * (repeats * share * (1 - share)) ** 0.5
    # an anchor whose own class has too few has all the others
    both = random_negatives(anchors + 3, labels, numbers(repeats, classes=2), num_classes=4)
    classes = Counter(tuple(sorted(pair)) for pair in labels[both.indices].tolist())
    assert set(classes) == {(0, 1), (0, 2), (1, 2)}
    assert all(abs(count - repeats / 3) < 5 * (repeats * 2 / 9) ** 0.5 for count in classes.values())


def compiled(strategy, draws, **options):
    return torch.compile(
        lambda labels, logits: pick(strategy, labels, logits, draws), fullgraph=True, **options
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_is_one_graph_given_its_numbers(strategy):
    labels, logits = batch()
    draws = numbers(len(labels), classes=2, images=2)
    found = compiled(strategy, draws, backend="eager")(labels, logits)
    expected = pick(strategy, labels, logits, draws)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.found, expected.found)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.slow
def test_compiled_it_chooses_the_same():
    torch.compiler.reset()
    labels, logits = batch()
    draws = numbers(len(labels))
    found = compiled("easy", draws)(labels, logits)  # falls back to the random rule, too
    expected = pick("easy", labels, logits, draws)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.found, expected.found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_never_waits_for_the_device(strategy):
    labels, logits = batch()
    draws = numbers(len(labels), classes=2, images=2)
    expected = pick(strategy, labels, logits, draws)
    there = labels.cuda(), logits.cuda(), Draws(*(entry.cuda() for entry in draws))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = pick(strategy, *there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.indices.cpu()[expected.found], expected.indices[expected.found])
    assert torch.equal(found.found.cpu(), expected.found)


def test_mistakes_are_named():
    labels, logits = batch()
    with pytest.raises(UserError, match="did you mean 'soft'"):
        pick("sof", labels, logits, numbers(len(labels)))
    with pytest.raises(UserError, match="chooses by logits"):
        pick_negatives("hard", labels, None, numbers(len(labels)), num_classes=CLASSES)

"""Mixup and CutMix against timm and against numbers by hand; several heads, and no labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor
from torch.nn import functional

from pipeline.learner import Answer
from pipeline.mixing import Mix, draw_mix, mix_clips
from pipeline.objective import LABELS_ONLY, NO_LABEL, Batch, Method, cross_entropy, loss_terms
from pipeline.optimising import make_optimiser, start_training
from pipeline.training import train, train_step
from training_making import learner_of, make_batch, make_network, make_recipe


def random_clips(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_mixup_blends_the_batch_with_its_reverse() -> None:
    clips = random_clips(3, 3, 2, 4, 4)
    mixed = mix_clips(clips, Mix(0.7))
    for row, partner in ((0, 2), (1, 1), (2, 0)):
        torch.testing.assert_close(mixed[row], 0.7 * clips[row] + 0.3 * clips[partner])


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0)])
def test_clips_and_targets_are_those_of_timm(
    alphas: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timm mixes images: the frames of a clip are its channels here."""
    clips, labels = random_clips(4, 3, 5, 16, 16), torch.tensor([0, 2, 1, 2])
    mix = draw_mix(np.random.default_rng(5), mixup=alphas[0], cutmix=alphas[1], size=16)
    assert 0.05 < mix.share < 0.95  # a draw that tells something
    timm = Mixup(*alphas, label_smoothing=0.1, num_classes=3)
    monkeypatch.setattr(timm, "_params_per_batch", lambda: (mix.share, mix.box is not None))
    if mix.box is not None:
        top, bottom, left, right = (round(16 * side) for side in mix.box)
        monkeypatch.setattr(
            "timm.data.mixup.cutmix_bbox_and_lam",
            lambda *_, **__: (
                (top, bottom, left, right),
                1 - (bottom - top) * (right - left) / 256,
            ),
        )
    images, target = timm(clips.clone().flatten(1, 2), labels)
    torch.testing.assert_close(mix_clips(clips, mix).flatten(1, 2), images)
    logits = random_clips(4, 3)
    expected = functional.cross_entropy(logits, target)
    torch.testing.assert_close(cross_entropy(logits, labels, 0.1, mix), expected)
    torch.testing.assert_close(mixup_target(labels, 3, mix.share, 0.1), target)


def test_the_target_by_hand() -> None:
    # Equal logits of 4 classes: any target costs ln 4. Then a sure answer: softmax (1 - 3e, e, …).
    labels = torch.tensor([1, 3])
    flat = cross_entropy(torch.zeros(2, 4), labels, 0.0, Mix(0.25))
    assert flat.item() == pytest.approx(np.log(4))
    p = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    got = cross_entropy(torch.tensor(np.log(p)), labels, 0.0, Mix(0.25))
    by_hand = -(0.25 * np.log(0.2) + 0.75 * np.log(0.4) + 0.25 * np.log(0.1) + 0.75 * np.log(0.3))
    assert got.item() == pytest.approx(by_hand / 2)


def test_labels_that_are_not_there_add_nothing() -> None:
    p = np.array([[0.1, 0.9], [0.6, 0.4], [0.7, 0.3]])
    logits = torch.tensor(np.log(p))
    labels = torch.tensor([1, NO_LABEL, 0])
    plain = cross_entropy(logits, labels, 0.0, None)
    assert plain.item() == pytest.approx(-(np.log(0.9) + np.log(0.7)) / 2)
    # Rows 0 and 2 are partners: 0.8 of each its own label, 0.2 the other's; row 1 has none.
    mixed = cross_entropy(logits, labels, 0.0, Mix(0.8))
    first = -(0.8 * np.log(0.9) + 0.2 * np.log(0.1))
    last = -(0.8 * np.log(0.7) + 0.2 * np.log(0.3))
    assert mixed.item() == pytest.approx((first + last) / 2)
    # A partner without a label: what is left counts by its share.
    lone = cross_entropy(logits, torch.tensor([1, 0, NO_LABEL]), 0.0, Mix(0.8))
    own = -(0.8 * np.log(0.9) + np.log(0.6) + 0.2 * np.log(0.3))  # row 2 shows 0.2 of row 0
    assert lone.item() == pytest.approx(own / 2)
    nothing = logits.requires_grad_()
    for mix in (None, Mix(0.8)):
        none = cross_entropy(nothing, torch.full((3,), NO_LABEL), 0.0, mix)
        assert none.item() == 0.0
        none.backward()  # type: ignore[no-untyped-call]


def test_a_step_mixes_clips_and_the_labels_of_every_head() -> None:
    batch, mix = make_batch(4), Mix(0.3)
    mixed = Batch(batch.names, batch.clips, batch.labels, mix=mix)
    model, _ = make_network()
    inputs = (batch.clips.permute(0, 4, 1, 2, 3).float() / 255 - 0.45) / 0.225
    answer = model.train().features(0.3 * inputs + 0.7 * inputs.flip(0))
    expected = torch.stack(
        [
            functional.cross_entropy(logits, mixup_target(batch.labels[head], logits.shape[1], 0.3))
            for head, logits in answer.logits.items()
        ]
    ).mean()
    terms, _ = loss_terms(Answer(answer, {}), mixed, Method(LABELS_ONLY))
    torch.testing.assert_close(terms["ce"], expected)
    model, _ = make_network()
    learner = learner_of(model)
    optimiser = make_optimiser(learner, make_recipe())
    (outcome,) = train_step(learner.train(), mixed, Method(LABELS_ONLY), optimiser, 1.0)
    torch.testing.assert_close(outcome.terms["loss"], expected, rtol=1e-4, atol=1e-5)


def test_accuracy_counts_labelled_samples_by_the_greater_share() -> None:
    model, _ = make_network()
    batch = make_batch(4)
    verbs = torch.tensor([0, NO_LABEL, 2, 3])
    none = torch.full((4,), NO_LABEL)
    with torch.no_grad():  # the network answers verb 3, whatever it sees
        model.net.blocks[-1].proj.weight.zero_()
        model.net.blocks[-1].proj.bias.zero_()[3] = 5.0
    for share in (0.9, 0.1):
        given = Batch(batch.names, batch.clips, {"verb": verbs, "noun": none}, mix=Mix(share))
        recipe = make_recipe(epochs=1, learning_rate=1e-9)
        (log,) = train(
            start_training(learner_of(model), recipe, 1),
            recipe=recipe,
            method=Method(LABELS_ONLY),
            batches=lambda *_, given=given: [given],  # type: ignore[misc]
        )
        assert log.record["accuracy/verb"] == pytest.approx(1 / 3)
        assert log.record["accuracy/noun"] == 0.0
    assert Mix(0.6).main(verbs) is verbs
    assert Mix(0.4).main(verbs).tolist() == [3, 2, NO_LABEL, 0]


def test_draws_are_decided_by_the_generator_and_spread_as_beta() -> None:
    def draws(seed: int, mixup: float, cutmix: float, count: int = 2000) -> list[Mix]:
        generator = np.random.default_rng(seed)
        return [draw_mix(generator, mixup=mixup, cutmix=cutmix, size=40) for _ in range(count)]

    assert draws(0, 0.3, 0.3, 20) == draws(0, 0.3, 0.3, 20) != draws(1, 0.3, 0.3, 20)
    blends = draws(0, 0.4, 0.0)
    assert all(mix.box is None for mix in blends)
    shares = np.array([mix.share for mix in blends])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(0.25 / (2 * 0.4 + 1), rel=0.1)  # of Beta(α, α)
    cuts = draws(0, 0.0, 1.0)
    assert all(mix.box is not None for mix in cuts)
    both = [mix.box is None for mix in draws(0, 0.4, 1.0)]
    assert np.mean(both) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="both 0"):
        draws(0, 0.0, 0.0)


def test_the_share_of_a_cut_clip_is_what_the_box_leaves() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = torch.zeros(1, 1, 2, 40, 40), torch.ones(1, 1, 2, 40, 40)
    for _ in range(50):
        mix = draw_mix(generator, mixup=0.0, cutmix=1.0, size=40)
        mixed = mix_clips(torch.cat([ours, theirs]), mix)
        assert mixed[0].mean().item() == pytest.approx(1 - mix.share, abs=1e-6)
        assert mixed[1].mean().item() == pytest.approx(mix.share, abs=1e-6)
        assert torch.equal(mixed[:, :, 0], mixed[:, :, 1])  # the same box in every frame

"""Metrics and losses of the ready-made tasks are those of other libraries and of slow formulas."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from support.tasks import boxes_of, detections_of, measured, whole
from torch import nn
from torch.nn import functional

from amc_compress.learners import Call, make_task
from amc_compress.learners.tasks.ready.shared import pair_ranking
from amc_env.errors import InputDataError, TrainingDivergedError


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_regression_measures_what_torchmetrics_does():
    from torchmetrics.functional import mean_absolute_error, mean_squared_error

    outputs, targets = numbers(14, 3), numbers(14, 3, seed=1)
    found = measured(make_task("regression"), outputs, targets)
    assert found["mse"] == pytest.approx(float(mean_squared_error(outputs, targets)))
    assert found["mae"] == pytest.approx(float(mean_absolute_error(outputs, targets)))
    assert found["rmse"] == pytest.approx(found["mse"] ** 0.5)
    loss = make_task("regression").loss(outputs, targets)
    assert float(loss) == pytest.approx(found["mse"])


def test_one_number_may_be_a_column_or_not():
    task = make_task("regression")
    column, row = numbers(14, 1), numbers(14, seed=1)
    task.check(column, row)
    task.check(row, column)
    expected = float((column.squeeze(1) - row).square().mean())
    assert measured(task, column, row)["mse"] == pytest.approx(expected)
    assert float(task.loss(column, row)) == pytest.approx(expected)
    assert float(task.loss(row, column)) == pytest.approx(expected)


def test_multilabel_measures_what_scikit_learn_does():
    outputs, targets = 30 * numbers(14, 5), whole(2, 14, 5, seed=3)
    targets[:, 2] = 0  # a label that does not occur
    found = measured(make_task("multilabel"), outputs, targets)
    occur = [0, 1, 3, 4]
    expected = average_precision_score(targets[:, occur], outputs[:, occur], average="macro")
    assert found["average_precision"] == pytest.approx(expected)
    assert found["f1"] == pytest.approx(f1_score(targets, outputs > 0, average="micro"))
    assert found["accuracy"] == pytest.approx(float(((outputs > 0) == targets).double().mean()))
    loss = make_task("multilabel").loss(outputs, targets)
    signs = outputs.double() * (2 * targets - 1)
    slow = (1 + (-signs).exp()).log().mean()
    assert float(loss) == pytest.approx(float(slow), rel=1e-5)


def slow_mean_iou(outputs, masks, ignored=255):
    predicted, shares = outputs.argmax(1), []
    for k in range(outputs.shape[1]):
        of_output = (predicted == k) & (masks != ignored)
        of_mask = masks == k
        if (union := int((of_output | of_mask).sum())) > 0:
            shares.append(int((of_output & of_mask).sum()) / union)
    return sum(shares) / len(shares)


@pytest.mark.parametrize("shape", [(6, 7), (9,), (3, 4, 5)])
def test_segmentation_measures_intersection_over_union_of_all_pixels(shape):
    from torchmetrics.functional.classification import multiclass_jaccard_index

    outputs, masks = numbers(14, 6, *shape), whole(5, 14, *shape, seed=2)
    outputs[:, 5] = -9.0  # a class in neither
    masks[masks == 3] = 255
    found = measured(make_task("segmentation"), outputs, masks)
    assert found["mean_iou"] == pytest.approx(slow_mean_iou(outputs, masks))
    theirs = multiclass_jaccard_index(outputs, masks, num_classes=6, ignore_index=255)
    assert found["mean_iou"] == pytest.approx(float(theirs))
    right = (outputs.argmax(1) == masks)[masks != 255]
    assert found["pixel_accuracy"] == pytest.approx(float(right.double().mean()))
    loss = make_task("segmentation").loss(outputs, masks)
    assert float(loss) == pytest.approx(
        float(functional.cross_entropy(outputs, masks, ignore_index=255))
    )


def test_a_mask_that_is_ignored_has_no_loss():
    masks = torch.full((2, 4, 4), 255)
    outputs = numbers(2, 3, 4, 4).requires_grad_()
    loss = make_task("segmentation").loss(outputs, masks)
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert not outputs.grad.any()


def test_one_channel_is_binary_segmentation():
    task = make_task("segmentation")
    raw, masks = numbers(14, 1, 6, 6), whole(2, 14, 1, 6, 6, seed=4).bool()
    _, targets = task.split((numbers(14, 3, 6, 6), masks))
    outputs = task.outputs(raw)
    expected = functional.binary_cross_entropy_with_logits(raw, masks.float())
    assert float(task.loss(outputs, targets)) == pytest.approx(float(expected))
    assert measured(task, outputs, targets)["pixel_accuracy"] == pytest.approx(
        float(((raw > 0) == masks).double().mean())
    )


def masked_ids():
    ids = whole(11, 14, 6, seed=5)
    mask = torch.ones_like(ids)
    for row in range(14):
        mask[row, 6 - row % 4 :] = 0
    return ids, mask


def test_language_modelling_measures_perplexity_of_the_next_token():
    from torchmetrics.functional.text import perplexity

    task = make_task("language-modelling")
    ids, mask = masked_ids()
    logits = numbers(14, 6, 11)
    inputs, targets = task.split({"input_ids": ids, "attention_mask": mask})
    assert isinstance(inputs, Call)
    assert set(inputs.kwargs) == {"input_ids", "attention_mask"}
    found = measured(task, logits, targets)
    total = count = right = 0
    for row in range(14):
        for place in range(5):
            if mask[row, place + 1]:
                word = int(ids[row, place + 1])
                total -= float(logits[row, place].double().log_softmax(0)[word])
                right += int(logits[row, place].argmax()) == word
                count += 1
    assert found["perplexity"] == pytest.approx(math.exp(total / count))
    assert found["accuracy"] == pytest.approx(right / count)
    labels = ids.where(mask == 1, -100)
    theirs = perplexity(logits[:, :-1], labels[:, 1:], ignore_index=-100)
    assert found["perplexity"] == pytest.approx(float(theirs), rel=1e-5)
    assert float(task.loss(logits, targets)) == pytest.approx(total / count, rel=1e-5)
    assert task.score(found) == -found["perplexity"]


def test_labels_are_shifted_once_however_they_come():
    task = make_task("language-modelling")
    ids, mask = masked_ids()
    _, expected = task.split({"input_ids": ids, "attention_mask": mask})
    labels = ids.where(mask == 1, -100)
    follow = torch.cat([labels[:, 1:], labels.new_full((14, 1), -100)], 1)
    for batch in (
        {"input_ids": ids, "attention_mask": mask, "labels": labels},
        {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()},
        (ids, labels),
        (ids, follow),
        (ids, mask, labels),
    ):
        assert torch.equal(task.split(batch)[1], expected)
    _, unpadded = task.split(ids)
    assert torch.equal(unpadded[:, :-1], ids[:, 1:])
    decoder = {"input_ids": ids, "decoder_input_ids": ids[:, :4], "labels": ids[:, 1:5]}
    assert torch.equal(task.split(decoder)[1], ids[:, 1:5])
    with pytest.raises(InputDataError, match="token-classification"):
        task.split((ids, (ids + 1) % 11))


def test_a_very_wrong_language_model_has_a_finite_perplexity():
    task = make_task("language-modelling")
    logits = torch.zeros(2, 3, 4)
    logits[..., 0] = 200.0
    targets = torch.full((2, 3), 1)
    meter = task.meter()
    meter.update(logits, targets)
    assert task.score(meter.compute()) == pytest.approx(-math.exp(200.0))


def test_tokens_that_are_ignored_or_padded_do_not_count():
    task = make_task("token-classification")
    ids, mask = masked_ids()
    labels = whole(5, 14, 6, seed=8)
    labels[:, 0] = -100
    logits = numbers(14, 6, 5)
    _, targets = task.split({"input_ids": ids, "attention_mask": mask, "labels": labels})
    counted = (labels != -100) & (mask == 1)
    right = (logits.argmax(-1) == labels)[counted]
    found = measured(task, logits, targets)
    assert found["accuracy"] == pytest.approx(float(right.double().mean()))
    assert found["perplexity"] == pytest.approx(math.exp(found["cross_entropy"]))
    loss = functional.cross_entropy(logits[counted], labels[counted])
    assert float(task.loss(logits, targets)) == pytest.approx(float(loss), rel=1e-5)


class Pooled(nn.Module):
    """Hidden states in an object, as transformers return them."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, input_ids, attention_mask=None):
        hidden = torch.sin(input_ids[:, :, None] * torch.arange(1.0, 5.0)) + self.shift
        return SimpleNamespace(last_hidden_state=hidden, pooler_output=hidden[:, 0])


def test_embedding_offers_the_rank_correlation_of_pairs(monkeypatch):
    from scipy.stats import spearmanr
    from sklearn.metrics.pairwise import cosine_similarity

    monkeypatch.setattr(pair_ranking, "MOST", 12)
    task = make_task("embedding", metric="ranking")
    outputs, targets = numbers(14, 5), numbers(14, 5, seed=1)
    outputs += targets  # alike, but not equal
    pairs = np.triu_indices(12, 1)  # of the first twelve, whatever the batches
    expected = spearmanr(*(cosine_similarity(x[:12])[pairs] for x in (outputs, targets)))
    found = measured(task, outputs, targets)
    assert list(found) == ["ranking", "cosine"]
    assert found["ranking"] == pytest.approx(float(expected.statistic))
    assert task.best_score == 1.0
    assert measured(task, targets, targets)["ranking"] == pytest.approx(1.0)
    assert measured(task, torch.ones(14, 5), targets)["ranking"] == 0.0
    with pytest.raises(InputDataError, match="Expected the metric 'ranking' among those measured"):
        measured(task, outputs[:2], targets[:2], sizes=(2,))


def test_embedding_measures_the_cosine_of_means_over_tokens():
    ids, mask = masked_ids()
    task = make_task("embedding").bind(Pooled().eval(), "cpu")
    inputs, none = task.split({"input_ids": ids, "attention_mask": mask, "labels": ids[:, 0]})
    assert none is None
    targets = task.complete(inputs, none)
    outputs = task.outputs(task.ask(Pooled(0.5), inputs)).detach()
    cosines = []
    for row in range(14):
        kept = mask[row] == 1
        ours, theirs = (x[row][kept].mean(0) for x in (outputs, targets["embeddings"]))
        cosines.append(float(ours @ theirs / (ours.norm() * theirs.norm())))
    meter = task.meter()
    meter.update(outputs, targets)
    assert meter.compute()["cosine"] == pytest.approx(np.mean(cosines), rel=1e-5)
    assert float(task.loss(outputs, targets)) == pytest.approx(1 - np.mean(cosines), rel=1e-4)


def test_agreement_of_logits_is_the_share_of_equal_classes():
    task = make_task("agreement")
    ours, theirs = numbers(14, 7), numbers(14, 7, seed=1)
    found = measured(task, ours, theirs)
    equal = (ours.argmax(1) == theirs.argmax(1)).double().mean()
    assert found["agreement"] == pytest.approx(float(equal))
    a, b = (torch.distributions.Categorical(logits=x) for x in (theirs, ours))
    divergence = float(torch.distributions.kl_divergence(a, b).mean())
    assert found["divergence"] == pytest.approx(divergence, rel=1e-5)
    assert float(task.loss(ours, theirs)) == pytest.approx(divergence, rel=1e-5)
    expected = functional.cosine_similarity(ours, theirs).mean()
    assert found["cosine"] == pytest.approx(float(expected), rel=1e-5)


def test_agreement_of_numbers_sees_their_size_as_well_as_their_direction():
    task = make_task("agreement")
    theirs = numbers(14, 2, 5)
    assert task.agreement(theirs, theirs) == 1.0
    assert task.agreement(2 * theirs, theirs) == pytest.approx(0.8)  # 1 - 1 / 5
    assert task.agreement(-theirs, theirs) == 0.0
    meter = task.meter(reported=True)
    meter.update(2 * theirs, theirs)
    assert meter.compute()["cosine"] == pytest.approx(1.0)


def test_agreement_takes_whatever_a_network_returns():
    task = make_task("agreement")
    logits, maps, ids = numbers(4, 6, 9), numbers(4, 3, 5, 5), whole(9, 4, 6, seed=0)
    raw = {"head": maps, "more": [maps, (ids,)], "loss": torch.tensor(1.0), "cache": None}
    found = task.outputs(raw)
    assert found == {"head": maps, "more": (maps, (ids,))}
    task.check(found, found)
    assert task.agreement(found, found) == 1.0
    other = {"head": maps, "more": (maps, ((ids + 1) % 9,))}
    assert task.agreement(other, found) == pytest.approx(2 / 3)
    tokens = task.outputs(SimpleNamespace(logits=logits, hidden_states=(maps,)))
    assert list(tokens) == ["logits"]
    turned = {"logits": logits.flip(-1)}
    same = (logits.flip(-1).argmax(-1) == logits.argmax(-1)).double().mean()
    assert task.agreement(turned, tokens) == pytest.approx(float(same))
    boxes = task.outputs(detections_of(boxes_of(3, 0), 1))
    assert task.agreement(boxes, boxes) == pytest.approx(1.0)
    with pytest.raises(InputDataError, match="'detection'"):
        task.loss(boxes, boxes)


def test_a_metric_that_is_not_finite_or_out_of_its_range_is_rejected():
    task = make_task("regression")
    with pytest.raises(TrainingDivergedError, match="finite mse, got nan"):
        task.score({"mse": math.nan})
    with pytest.raises(InputDataError, match=r"mean_iou to be 1 at best, got 73\.2"):
        make_task("segmentation").score({"mean_iou": 73.2})
    with pytest.raises(InputDataError, match=r"mse to be 0 at best, got -0\.5"):
        task.score({"mse": -0.5})


@pytest.mark.parametrize("name", ["segmentation", "token-classification", "language-modelling"])
def test_nothing_that_counts_is_said(name):
    task = make_task(name)
    meter = task.meter()
    outputs = numbers(2, 3, 4, 4) if name == "segmentation" else numbers(2, 4, 3)
    targets = torch.full((2, 4, 4) if name == "segmentation" else (2, 4), task.ignored)
    meter.update(outputs, targets)
    with pytest.raises(InputDataError, match=r"at least one (pixel|token)"):
        meter.compute()


@pytest.mark.parametrize("name", ["embedding", "agreement", "agreement of logits"])
def test_gradients_without_labels_are_the_curvature_at_the_original(name):
    task = make_task(name.partition(" ")[0])
    theirs = numbers(1, 5) if "logits" in name else numbers(1, 2, 3)
    targets = theirs.expand(20_000, *theirs.shape[1:])
    outputs = targets.clone().requires_grad_()
    task.summed_loss(outputs, task.drawn(targets)).backward()
    found = outputs.grad.flatten(1).T @ outputs.grad.flatten(1) / len(targets)
    hessian = torch.autograd.functional.hessian(
        lambda x: task.loss(x.view(theirs.shape), theirs), theirs.flatten()
    )
    assert task.drawn(targets).equal(task.drawn(targets))
    scale = float(hessian.trace() / found.trace())
    assert "logits" not in name or scale == pytest.approx(1.0, rel=0.03)
    torch.testing.assert_close(scale * found, hessian, atol=0.03 * float(hessian.max()), rtol=0.0)

"""The loss against PyTorch's, its values and its gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from showtell.models.linear import empty_aligned
from showtell.training.loss import cross_entropy_


def numerical(loss: Callable[[torch.Tensor], torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
    """Central differences; ``gradcheck`` would go backwards twice through one graph."""
    step, given = 1e-6, scores.detach().clone()
    found = torch.empty_like(given)
    for place in range(given.numel()):
        shift = torch.zeros_like(given)
        shift.view(-1)[place] = step
        found.view(-1)[place] = (loss(given + shift) - loss(given - shift)) / (2 * step)
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_value_and_gradient_are_those_of_pytorch(smoothing: float, scale: float) -> None:
    torch.manual_seed(0)
    scores = (scale * torch.randn(40, 31)).requires_grad_()
    targets = torch.randint(31, (40,))
    own = cross_entropy_(scores.clone(), targets, label_smoothing=smoothing)
    theirs = F.cross_entropy(scores, targets, label_smoothing=smoothing)
    torch.testing.assert_close(own, theirs, atol=1e-6, rtol=1e-6)
    gradients = [torch.autograd.grad(3.0 * loss, scores)[0] for loss in (own, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_gradients_are_the_numerical_ones_and_layout_does_not_matter() -> None:
    torch.manual_seed(0)
    plain = torch.randn(5, 7, dtype=torch.double)
    first = plain.clone()
    aligned = empty_aligned(plain, 5, 7).copy_(plain)
    assert aligned.stride() == (16, 1)
    targets, results = torch.tensor([0, 6, 3, 3, 1]), []
    for scores in (plain.requires_grad_(), aligned.requires_grad_()):
        loss = cross_entropy_(scores, targets, label_smoothing=0.2)
        (gradient,) = torch.autograd.grad(loss, scores)
        assert not gradient.requires_grad
        results.append((loss, gradient))
    torch.testing.assert_close(*results, atol=0, rtol=1e-15)
    expected = numerical(lambda scores: cross_entropy_(scores, targets, label_smoothing=0.2), first)
    torch.testing.assert_close(results[0][1], expected, atol=1e-8, rtol=1e-6)


def test_logits_are_overwritten_and_a_second_backward_pass_is_refused() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4, 7, dtype=torch.double, requires_grad=True)
    logits, targets = 2.0 * scores, torch.tensor([0, 6, 3, 3])
    memory = logits.data_ptr()
    loss = cross_entropy_(logits, targets, label_smoothing=0.0)
    expected = torch.autograd.grad(F.cross_entropy(2.0 * scores, targets), scores)[0]
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(scores.grad, expected)
    assert logits.data_ptr() == memory
    torch.testing.assert_close(2.0 * logits.detach(), expected)  # their gradient is there now
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_scores_too_large_for_exp_are_no_matter_and_infinite_ones_show() -> None:
    targets = torch.tensor([1])
    large = torch.tensor([[1000.0, 1000.0]])
    assert cross_entropy_(large, targets, label_smoothing=0.0).item() == pytest.approx(0.6931472)
    infinite = torch.tensor([[0.0, torch.inf]])
    assert not torch.isfinite(cross_entropy_(infinite, targets, label_smoothing=0.1))


def test_weights_count_a_position_more_less_or_against() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4, 7, dtype=torch.double, requires_grad=True)
    targets, weights = torch.tensor([0, 6, 3, 3]), torch.tensor([1.0, 0.0, -2.5, 3.0]).double()

    def weighed(scores: torch.Tensor) -> torch.Tensor:
        return cross_entropy_(scores, targets, label_smoothing=0.2, weights=weights)

    losses = F.cross_entropy(scores, targets, label_smoothing=0.2, reduction="none")
    theirs, own = (losses * weights).sum() / 4, weighed(scores.clone())
    torch.testing.assert_close(own, theirs)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (own, theirs)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(gradients[0], numerical(weighed, scores), atol=1e-8, rtol=1e-6)

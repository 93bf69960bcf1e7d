"""The recurrence of our own against PyTorch's LSTM, its cell, and numerical gradients."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from showtell.models.embedding import WordEmbedding
from showtell.models.positions import PackedOrder, RealPositions
from showtell.models.recurrence import (
    fast_tanh,
    run_lstm,
    run_lstm_on_words,
    run_lstm_with_cells,
    run_steps,
    update_cell,
)

LENGTHS = [torch.tensor(lengths) for lengths in ([4, 1, 6, 2, 4], [1], [1, 1], [3, 3], [1, 5])]
E, H = 3, 4


def batch(lengths: Tensor) -> tuple[nn.LSTM, Tensor, tuple[Tensor, Tensor]]:
    """A layer, inputs (P, E) and initial states (N, H), in double precision."""
    torch.manual_seed(0)
    lstm = nn.LSTM(E, H, batch_first=True).double()
    initial = torch.randn(2, len(lengths), H, dtype=torch.double, requires_grad=True)
    inputs = torch.randn(int(lengths.sum()), E, dtype=torch.double, requires_grad=True)
    return lstm, inputs, (initial[0], initial[1])


def by_cell(
    lstm: nn.LSTM, inputs: Tensor, lengths: Tensor, initial: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Outputs and cells, row by row and word by word with PyTorch's cell."""
    cell = nn.LSTMCell(E, H).double()
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in lstm.state_dict().items()})
    states = []
    for row, words in enumerate(inputs.split(lengths.tolist())):
        state = initial[0][row], initial[1][row]
        for word in words:
            state = cell(word, state)
            states.append(state)
    outputs, cells = (torch.stack(part) for part in zip(*states, strict=True))
    return outputs, cells


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_it_is_the_cell_row_by_row(lengths: Tensor) -> None:
    lstm, inputs, initial = batch(lengths)
    outputs, cells = by_cell(lstm, inputs, lengths, initial)
    torch.testing.assert_close(run_lstm(lstm, inputs, lengths, initial), outputs)
    found = run_lstm_with_cells(lstm, inputs, lengths, initial)
    torch.testing.assert_close(found, (outputs, cells))
    zeros = torch.zeros(len(lengths), H, dtype=torch.double)
    from_zero = run_lstm(lstm, inputs, lengths, None)
    torch.testing.assert_close(from_zero, by_cell(lstm, inputs, lengths, (zeros, zeros))[0])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_its_gradients_are_the_numerical_ones(lengths: Tensor) -> None:
    lstm, inputs, (hidden, cell) = batch(lengths)
    weights = list(lstm.parameters())

    def outputs(inputs: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor) -> Tensor:
        return run_lstm(lstm, inputs, lengths, (hidden, cell))

    assert torch.autograd.gradcheck(outputs, (inputs, hidden, cell, *weights))


@pytest.mark.parametrize("part", [0, 1])
def test_gradients_through_outputs_or_cells_alone_are_the_numerical_ones(part: int) -> None:
    lengths = LENGTHS[0]
    lstm, inputs, (hidden, cell) = batch(lengths)

    def states(inputs: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor) -> Tensor:
        return run_lstm_with_cells(lstm, inputs, lengths, (hidden, cell))[part]

    assert torch.autograd.gradcheck(states, (inputs, hidden, cell, *lstm.parameters()))


def test_pytorch_computes_the_same_where_it_takes_over() -> None:
    """Under autocast PyTorch's LSTM runs, in float32 all the same; for cells a loop does."""
    lengths = LENGTHS[0]
    lstm, inputs, initial = batch(lengths)
    own = run_lstm_with_cells(lstm, inputs, lengths, initial)
    lstm.float()
    small = inputs.float(), (initial[0].float(), initial[1].float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = run_lstm(lstm, small[0], lengths, small[1])
        states = run_lstm_with_cells(lstm, small[0], lengths, small[1])
    for theirs, ours in zip((outputs, *states), (own[0], *own), strict=True):
        torch.testing.assert_close(theirs.double(), ours, atol=1e-5, rtol=0)


def test_steps_take_the_rows_still_going_on_and_put_them_back() -> None:
    """Each row counts its positions, and adds up what it read."""
    lengths = torch.tensor([2, 1, 3])
    order = PackedOrder.of(lengths, torch.device("cpu"))
    sizes = []

    def advance(read: Tensor, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        sizes.append(len(read))
        return rows[0] + 1, rows[1] + read

    zeros = torch.zeros(3)
    read = torch.tensor([1.0, 2.0, 5.0, 10.0, 20.0, 30.0])
    counts, sums = run_steps(read, order, (zeros, zeros), advance)
    assert sizes == [3, 2, 1]
    assert counts.tolist() == [1, 2, 1, 1, 2, 3]
    assert sums.tolist() == [1, 3, 5, 10, 30, 60]


def gradients(run: Callable[[], Tensor], lstm: nn.LSTM, inputs: Tensor) -> list[Tensor]:
    outputs = run()
    upstream = torch.linspace(-1, 1, outputs.numel()).view_as(outputs)
    return list(torch.autograd.grad(outputs, [inputs, *lstm.parameters()], upstream))


def test_gradients_are_those_of_pytorch_at_a_real_size() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(1, 18, (20,))
    lstm = nn.LSTM(30, 50, batch_first=True)
    inputs = torch.randn(int(lengths.sum()), 30, requires_grad=True)
    positions = RealPositions.of(lengths, inputs.device)
    padded = torch.zeros(20, 18, 30).index_put((positions.rows, positions.times), inputs)
    own = gradients(lambda: run_lstm(lstm, inputs, lengths, None), lstm, inputs)
    theirs = gradients(lambda: lstm(padded)[0][positions.rows, positions.times], lstm, inputs)
    for a, b in zip(own, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [None, E])
@pytest.mark.parametrize("learned", [True, False])
def test_words_pass_the_projection_as_layer_by_layer(width: int | None, learned: bool) -> None:
    """With all gradients; frozen word vectors get none."""
    torch.manual_seed(0)
    lengths, vector_width = LENGTHS[0], 2 if width else E
    embedding = WordEmbedding(vocabulary_size=9, vector_width=vector_width, width=width).double()
    lstm, inputs, initial = batch(lengths)
    embedding.train_vectors(learned)
    ids = torch.randint(9, (len(inputs),))
    found = run_lstm_on_words(lstm, embedding, embedding.look_up(ids), lengths, initial)
    expected = run_lstm(lstm, embedding(ids), lengths, initial)
    torch.testing.assert_close(found, expected)
    weights = [p for p in (*embedding.parameters(), *lstm.parameters()) if p.requires_grad]
    assert len(weights) == 4 + learned + 2 * (width is not None)
    upstream = torch.randn_like(expected)
    gradients = (torch.autograd.grad(outputs, weights, upstream) for outputs in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_positions_stand_row_by_row_and_time_by_time(lengths: Tensor) -> None:
    here = torch.device("cpu")
    positions, order = RealPositions.of(lengths, here), PackedOrder.of(lengths, here)
    each = [(row, time) for row, n in enumerate(lengths.tolist()) for time in range(n)]
    found = list(zip(positions.rows.tolist(), positions.times.tolist(), strict=True))
    assert (found, positions.row_count) == (each, len(lengths))
    in_time = [each[place] for place in order.from_rows.tolist()]
    ranks = {row: rank for rank, row in enumerate(order.longest_first.tolist())}
    assert in_time == sorted(each, key=lambda place: (place[1], ranks[place[0]]))
    assert all(lengths[a] >= lengths[b] for a, b in pairwise(order.longest_first.tolist()))
    assert [in_time[place] for place in order.to_rows.tolist()] == each
    assert order.sizes == [sum(t == time for _, t in each) for time in range(int(lengths.max()))]


def test_without_gradients_a_cell_is_the_same_by_way_of_sigmoids() -> None:
    torch.manual_seed(0)
    gates, cell = 4 * torch.randn(6, 4 * 5), torch.randn(6, 5)
    expected = update_cell(gates, cell)
    with torch.no_grad():
        found = update_cell(gates.clone(), cell)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    values = torch.linspace(-200.0, 200.0, 4001)
    with torch.no_grad():
        torch.testing.assert_close(fast_tanh(values), torch.tanh(values), atol=1e-6, rtol=0)


def test_a_cell_stays_single_where_its_gates_are_half() -> None:
    """As under autocast on a CPU."""
    gates, cell = torch.randn(3, 8, dtype=torch.bfloat16), torch.randn(3, 2)
    expected = update_cell(gates.clone().requires_grad_(), cell)
    with torch.no_grad():
        hidden, next_cell = update_cell(gates.clone(), cell)
    assert next_cell.dtype == hidden.dtype == torch.float32
    torch.testing.assert_close(next_cell, expected[1], atol=2e-2, rtol=0)

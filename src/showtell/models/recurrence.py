"""The LSTM over the words of many captions at once, without computing padding.

On a CPU without autocast the recurrence is our own: PyTorch's backward pass computes the weights'
gradient with a product and an addition per step, where one product over all steps is enough.
Elsewhere PyTorch's is used, or its operators step by step where cells are needed.

Dimension key: N rows, T positions, P real positions, W word-vector width, E input, H hidden, G
gates (4H), in PyTorch's order: input, forget, cell, output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence

from showtell.models.embedding import WordEmbedding
from showtell.models.linear import aligned_product
from showtell.models.positions import PackedOrder

HiddenAndCell = tuple[Tensor, Tensor]
# The state of n rows, tensors (n, ...); and a step: (input (n, ...), state) -> next state.
Rows = tuple[Tensor, ...]
Advance = Callable[[Tensor, Rows], Rows]


def run_lstm(
    lstm: nn.LSTM, inputs: Tensor, lengths: Tensor, initial: HiddenAndCell | None
) -> Tensor:
    """Outputs (P, H) of ``lstm`` at the real positions, row by row.

    Args:
        lstm: a single layer with biases.
        inputs: (P, E), row by row, left to right.
        lengths: (N,) on the CPU, each at least 1, with sum P.
        initial: hidden and cell state, each (N, H); None for zeros.
    """
    order = PackedOrder.of(lengths, inputs.device)
    if initial is None:
        zeros_NH = inputs.new_zeros(len(lengths), lstm.hidden_size)
        initial = zeros_NH, zeros_NH
    if _is_ours(inputs):
        outputs: Tensor
        outputs, _ = _Recurrence.apply(inputs, *lstm.all_weights[0], *initial, order)
        return outputs
    return _run_packed(lstm, inputs, order, initial)


def run_lstm_on_words(
    lstm: nn.LSTM,
    embedding: WordEmbedding,
    token_ids: Tensor,
    lengths: Tensor,
    initial: HiddenAndCell,
) -> Tensor:
    """Outputs (P, H) over the embeddings of ``token_ids`` (P,), without dropout.

    Without gradients on a CPU the projection of word vectors is merged into the LSTM's input
    weights, as in `fold_lstm`, which saves a sixth of the time for the validation loss.
    """
    if not (_is_ours(initial[0]) and _is_quick(initial[0])):
        return run_lstm(lstm, embedding(token_ids), lengths, initial)
    input_weight, hidden_weight, input_bias, hidden_bias = lstm.all_weights[0]
    weight, bias = embedding.fold(input_weight, input_bias + hidden_bias)
    words, none = embedding.look_up(token_ids), torch.zeros_like(bias)
    order = PackedOrder.of(lengths, words.device)
    outputs: Tensor
    outputs, _ = _Recurrence.apply(words, weight, hidden_weight, bias, none, *initial, order)
    return outputs


def run_lstm_with_cells(
    lstm: nn.LSTM, inputs: Tensor, lengths: Tensor, initial: HiddenAndCell
) -> HiddenAndCell:
    """Like ``run_lstm``, but returns outputs and cells, each (P, H)."""
    order = PackedOrder.of(lengths, inputs.device)
    if _is_ours(inputs):
        outputs, cells = _Recurrence.apply(inputs, *lstm.all_weights[0], *initial, order)
        return outputs, cells
    return _run_by_steps(lstm, inputs, order, initial)


def run_steps(inputs: Tensor, order: PackedOrder, rows: Rows, advance: Advance) -> Rows:
    """Apply a recurrence step by step; return the states at all positions, row by row (P, ...).

    Args:
        inputs: (P, ...), row by row, left to right.
        order: the time order of these positions.
        rows: the initial state, tensors (N, ...), longest rows first.
        advance: one step for the first n rows, those not yet finished.
    """
    history = []
    for now in torch.split(inputs.index_select(0, order.from_rows), order.sizes):
        rows = advance(now, tuple(row[: len(now)] for row in rows))
        history.append(rows)
    return tuple(
        torch.cat(part).index_select(0, order.to_rows) for part in zip(*history, strict=True)
    )


def _is_ours(inputs: Tensor) -> bool:
    return inputs.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _run_by_steps(
    lstm: nn.LSTM, inputs: Tensor, order: PackedOrder, initial: HiddenAndCell
) -> HiddenAndCell:
    """Outputs and cells step by step in float32, because PyTorch's LSTM does not return cells."""
    input_weight, hidden_weight, input_bias, hidden_bias = lstm.all_weights[0]

    def advance(gates: Tensor, rows: Rows) -> Rows:
        hidden, cell = rows
        return update_cell(torch.addmm(gates, hidden, hidden_weight.t()), cell)

    with torch.autocast(inputs.device.type, enabled=False):
        gates_PG = F.linear(inputs.float(), input_weight, input_bias + hidden_bias)
        rows = tuple(state.float().index_select(0, order.longest_first) for state in initial)
        outputs, cells = run_steps(gates_PG, order, rows, advance)
    return outputs, cells


def _run_packed(
    lstm: nn.LSTM, inputs: Tensor, order: PackedOrder, initial: HiddenAndCell
) -> Tensor:
    """Outputs (P, H) by PyTorch's LSTM, in float32.

    Autocast would run it in float16 whatever its dtype, which needs loss scaling.
    """
    packed = PackedSequence(
        inputs.float().index_select(0, order.from_rows),
        torch.tensor(order.sizes),
        order.longest_first,
        order.longest_first.argsort(),
    )
    state = (initial[0].float().unsqueeze(0), initial[1].float().unsqueeze(0))
    with torch.autocast(inputs.device.type, enabled=False):
        outputs, _ = lstm(packed, state)
    outputs_PH: Tensor = outputs.data.index_select(0, order.to_rows)
    return outputs_PH


class _Recurrence(torch.autograd.Function):
    """An LSTM with inputs and outputs in row order that computes in time order.

    Each step, forward or backward, is one matrix product over the unfinished rows and a few
    elementwise passes; everything that does not depend on another step is computed at once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        input_weight: Tensor,
        hidden_weight: Tensor,
        input_bias: Tensor,
        hidden_bias: Tensor,
        hidden: Tensor,
        cell: Tensor,
        order: PackedOrder,
    ) -> HiddenAndCell:
        rows, width = hidden.shape
        inputs = inputs.index_select(0, order.from_rows)
        # On a CPU tanh takes four times as long as a sigmoid, and tanh(x) = 2 sigmoid(2x) - 1:
        # with the cell gate's inputs doubled, one sigmoid serves all four gates.
        doubled = inputs.new_tensor([1.0, 1.0, 2.0, 1.0]).repeat_interleave(width)
        bias = (input_bias + hidden_bias) * doubled
        gates = torch.addmm(bias, inputs, (input_weight * doubled.unsqueeze(1)).t())
        recurrent = (hidden_weight * doubled.unsqueeze(1)).t()
        hiddens = inputs.new_empty(rows + len(inputs), width)
        cells, tanh_cells = torch.empty_like(hiddens), torch.empty_like(hiddens)
        hiddens[:rows], cells[:rows] = hidden[order.longest_first], cell[order.longest_first]
        last, now = 0, rows  # where the states of the previous and of this step begin
        for size in order.sizes:
            before, after = slice(last, last + size), slice(now, now + size)
            gates_now = gates[now - rows : now - rows + size]
            gates_now.addmm_(hiddens[before], recurrent).sigmoid_()
            by_gate = gates_now.view(size, 4, width)
            input_gate, forget_gate, cell_gate, output_gate = by_gate.unbind(1)
            cell_gate.mul_(2.0).sub_(1.0)
            torch.mul(forget_gate, cells[before], out=cells[after]).addcmul_(input_gate, cell_gate)
            torch.mul(cells[after], 2.0, out=tanh_cells[after]).sigmoid_().mul_(2.0).sub_(1.0)
            torch.mul(output_gate, tanh_cells[after], out=hiddens[after])
            last, now = now, now + size
        ctx.order = order
        ctx.set_materialize_grads(False)  # most models do not use the cells
        ctx.save_for_backward(
            inputs, input_weight, hidden_weight, gates, hiddens, cells, tanh_cells
        )
        places = order.to_rows + rows
        return hiddens.index_select(0, places), cells.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor | None, of_cells: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        order = ctx.order
        inputs, input_weight, hidden_weight, gates, hiddens, cells, tanh_cells = ctx.saved_tensors
        rows, width = len(order.longest_first), hiddens.shape[1]
        gradient = _in_time(gradient, order)
        of_cells = _in_time(of_cells, order)
        gates = gates.view(-1, 4, width)
        through_gates, through_cell = _slopes(gates, cells[order.before], tanh_cells[rows:])
        hidden, cell = gates.new_zeros(2, rows, width)
        last = len(inputs)
        for size in reversed(order.sizes):
            now = slice(last - size, last)
            hidden_now, cell_now = hidden[:size], cell[:size]
            if gradient is not None:
                hidden_now.add_(gradient[now])
            if of_cells is not None:
                cell_now.add_(of_cells[now])
            cell_now.addcmul_(hidden_now, through_cell[now])
            through_gates[now, :3].mul_(cell_now.unsqueeze(1))
            through_gates[now, 3].mul_(hidden_now)
            cell_now.mul_(gates[now, 1])
            torch.mm(through_gates[now].flatten(1), hidden_weight, out=hidden_now)
            last -= size
        gates_gradient = through_gates.flatten(1)
        bias_gradient = gates_gradient.sum(0)
        place = order.longest_first.argsort()
        return (
            aligned_product(gates_gradient, input_weight).index_select(0, order.to_rows),
            aligned_product(gates_gradient.t(), inputs),
            gates_gradient.t() @ hiddens[order.before],
            bias_gradient,
            bias_gradient,
            hidden[place],
            cell[place],
            None,
        )


def _in_time(gradient: Tensor | None, order: PackedOrder) -> Tensor | None:
    return None if gradient is None else gradient.index_select(0, order.from_rows)


def _slopes(gates: Tensor, cells_before: Tensor, tanh_cells: Tensor) -> tuple[Tensor, Tensor]:
    """The local derivatives of all steps.

    Returns:
        (P, 4, H), the derivatives of the cell with respect to the preactivations of the input,
        forget and cell gates, and of the output with respect to that of the output gate; and
        (P, H), the derivative of the output with respect to the cell.
    """
    input_gate, _, cell_gate, output_gate = gates.unbind(1)
    slopes = torch.addcmul(gates, gates, gates, value=-1.0)  # sigmoid' = s - s^2
    slopes[:, 0].mul_(cell_gate)
    slopes[:, 1].mul_(cells_before)
    torch.addcmul(input_gate, input_gate, cell_gate.square(), value=-1.0, out=slopes[:, 2])
    slopes[:, 3].mul_(tanh_cells)
    return slopes, torch.addcmul(output_gate, output_gate, tanh_cells.square(), value=-1.0)


def fold_lstm(lstm: nn.LSTM, embedding: WordEmbedding) -> tuple[Tensor, Tensor]:
    """Merged weights for ``step_lstm``: weight (W + H, 4H) and bias (4H,).

    They combine all products of a step: the projection of the word vectors, the input weights and
    the hidden weights. With an extended embedding W is E, the width of ``look_up``.
    """
    input_weight, hidden_weight, input_bias, hidden_bias = lstm.all_weights[0]
    word_weight, bias = embedding.fold(input_weight, input_bias + hidden_bias)
    return torch.cat([word_weight, hidden_weight], dim=1).t(), bias


def step_lstm(
    words: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """One LSTM step: words from ``look_up`` (N, W), hidden and cell (N, H) -> the next two."""
    gates = torch.addmm(bias, torch.cat([words, hidden], dim=1), weight)
    return update_cell(gates, cell)


def update_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The next hidden and cell state (N, H), from the gates' preactivations (N, 4H).

    ``gates`` may be overwritten.
    """
    if _is_quick(gates):
        # One sigmoid for all four gates: see `fast_tanh`.
        input_gate, forget_gate, cell_gate, output_gate = gates.chunk(4, dim=1)
        cell_gate.mul_(2.0)
        gates.sigmoid_()
        cell_gate.mul_(2.0).sub_(1.0)
        cell = torch.mul(forget_gate, cell).addcmul_(input_gate, cell_gate)
        return fast_tanh(cell).mul_(output_gate), cell
    input_gate, forget_gate, cell_gate, output_gate = gates.chunk(4, dim=1)
    cell = torch.sigmoid(forget_gate) * cell + torch.sigmoid(input_gate) * torch.tanh(cell_gate)
    return torch.sigmoid(output_gate) * torch.tanh(cell), cell


def fast_tanh(values: Tensor) -> Tensor:
    """``torch.tanh``; without gradients on a CPU, computed as 2 sigmoid(2x) - 1.

    A sigmoid takes a tenth of the time of ``torch.tanh``.
    """
    if not _is_quick(values):
        return torch.tanh(values)
    return torch.mul(values, 2.0).sigmoid_().mul_(2.0).sub_(1.0)


def _is_quick(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.is_grad_enabled()

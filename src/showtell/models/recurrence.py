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
from showtell.models.linear import aligned_product, empty_aligned
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
    initial = initial or _zeros(lstm, inputs, lengths)
    if _is_ours(inputs):
        return _run_ours(_weights(lstm), inputs, lengths, initial)
    return _run_packed(lstm, inputs, PackedOrder.of(lengths, inputs.device), initial)


def run_lstm_on_words(
    lstm: nn.LSTM,
    embedding: WordEmbedding,
    words: Tensor,
    lengths: Tensor,
    initial: HiddenAndCell | None,
) -> Tensor:
    """Like ``run_lstm`` on the projection of ``words`` (P, W), as ``embedding.look_up`` gives them.

    On a CPU the projection, if there is one, is merged into the LSTM's input weights, as in
    `fold_lstm`: a position then takes W x 4H multiplications instead of W x E + E x 4H, and so do
    its gradients.
    """
    if not _is_ours(words):
        return run_lstm(lstm, embedding.projection(words), lengths, initial)
    initial = initial or _zeros(lstm, words, lengths)
    return _run_ours(_folded_weights(lstm, embedding), words, lengths, initial)


def run_lstm_with_cells(
    lstm: nn.LSTM, inputs: Tensor, lengths: Tensor, initial: HiddenAndCell
) -> HiddenAndCell:
    """Like ``run_lstm``, but returns outputs and cells, each (P, H)."""
    order = PackedOrder.of(lengths, inputs.device)
    if _is_ours(inputs):
        outputs, cells = _Recurrence.apply(inputs, *_weights(lstm), *initial, order, True)
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


def _weights(lstm: nn.LSTM) -> tuple[Tensor, Tensor, Tensor]:
    """Input weight (4H, E), hidden weight (4H, H) and the sum of the two biases (4H,)."""
    input_weight, hidden_weight, input_bias, hidden_bias = lstm.all_weights[0]
    return input_weight, hidden_weight, input_bias + hidden_bias


def _folded_weights(lstm: nn.LSTM, embedding: WordEmbedding) -> tuple[Tensor, Tensor, Tensor]:
    """Like ``_weights``, with the embedding's projection merged in: input weight (4H, W)."""
    input_weight, hidden_weight, bias = _weights(lstm)
    folded_weight, folded_bias = embedding.fold(input_weight, bias)
    return folded_weight, hidden_weight, folded_bias


def _zeros(lstm: nn.LSTM, inputs: Tensor, lengths: Tensor) -> HiddenAndCell:
    zeros_NH = inputs.new_zeros(len(lengths), lstm.hidden_size)
    return zeros_NH, zeros_NH


def _is_ours(inputs: Tensor) -> bool:
    return inputs.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _run_ours(
    weights: tuple[Tensor, Tensor, Tensor], inputs: Tensor, lengths: Tensor, initial: HiddenAndCell
) -> Tensor:
    """Outputs (P, H) by our recurrence."""
    order = PackedOrder.of(lengths, inputs.device)
    outputs: Tensor
    outputs, _ = _Recurrence.apply(inputs, *weights, *initial, order, False)
    return outputs


def _run_by_steps(
    lstm: nn.LSTM, inputs: Tensor, order: PackedOrder, initial: HiddenAndCell
) -> HiddenAndCell:
    """Outputs and cells step by step in float32, because PyTorch's LSTM does not return cells."""
    input_weight, hidden_weight, bias = _weights(lstm)

    def advance(gates: Tensor, rows: Rows) -> Rows:
        hidden, cell = rows
        return update_cell(torch.addmm(gates, hidden, hidden_weight.t()), cell)

    with torch.autocast(inputs.device.type, enabled=False):
        gates_PG = F.linear(inputs.float(), input_weight, bias)
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

    A step reads one matrix, whose columns are the inputs of the unfinished rows, a one for the
    bias, and their hidden states. So forward it is one product and a few elementwise passes,
    backward it is another, and the gradient of all weights is one product over all steps.

    The names of the literature: gates i, f, g, o, hidden state h, cell c, and t = tanh c.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        input_weight: Tensor,
        hidden_weight: Tensor,
        bias: Tensor,
        hidden: Tensor,
        cell: Tensor,
        order: PackedOrder,
        with_cells: bool,
    ) -> tuple[Tensor, Tensor | None]:
        positions, width = len(inputs), hidden.shape[1]
        # On some CPUs tanh takes four times as long as a sigmoid, and tanh(x) = 2 sigmoid(2x) - 1:
        # with the cell gate's inputs doubled, one sigmoid serves all four gates.
        factors = inputs.new_tensor([1.0, 1.0, 2.0, 1.0]).repeat_interleave(width).unsqueeze(1)
        weight = torch.cat([input_weight, bias.unsqueeze(1), hidden_weight], dim=1) * factors
        operand = empty_aligned(inputs, positions, weight.shape[1])
        operand[:, : -width - 1] = inputs.index_select(0, order.from_rows)
        operand[:, -width - 1] = 1.0
        gates = inputs.new_empty(positions, 4 * width)
        hiddens, cells, tanh_cells = inputs.new_empty(3, positions, width)
        first_cell, minus_one = cell[order.longest_first], inputs.new_tensor(-1.0)
        h_before, c_before = hidden[order.longest_first], first_cell
        for operand_now, gates_now, i, f, g, o, h, c, t in _by_step(
            order, operand, gates, *gates.chunk(4, dim=1), hiddens, cells, tanh_cells
        ):
            operand_now[:, -width:] = h_before[: len(h)]
            torch.mm(operand_now, weight.t(), out=gates_now).sigmoid_()
            torch.add(minus_one, g, alpha=2.0, out=g)
            torch.mul(f, c_before[: len(c)], out=c).addcmul_(i, g)
            torch.mul(c, 2.0, out=t).sigmoid_()
            torch.add(minus_one, t, alpha=2.0, out=t)
            torch.mul(o, t, out=h)
            h_before, c_before = h, c
        ctx.order = order
        ctx.set_materialize_grads(False)  # cells that are not returned have none
        ctx.save_for_backward(
            input_weight, hidden_weight, first_cell, operand, gates, hiddens, cells, tanh_cells
        )
        outputs = hiddens.index_select(0, order.to_rows)
        return outputs, cells.index_select(0, order.to_rows) if with_cells else None

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor | None, of_cells: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        order = ctx.order
        input_weight, hidden_weight, first_cell, operand, *states = ctx.saved_tensors
        gates, hiddens, cells, tanh_cells = states
        gradient, of_cells = _in_time(gradient, order), _in_time(of_cells, order)
        to_gates = torch.empty_like(gates)
        steps = zip(
            _by_step(order, to_gates, *to_gates.chunk(4, dim=1), gradient, of_cells),
            _by_step(order, *gates.chunk(4, dim=1), hiddens, tanh_cells),
            (first_cell, *torch.split(cells, order.sizes)[:-1]),
            strict=True,
        )
        to_hidden, to_cell = gates.new_zeros(2, *first_cell.shape)
        for gradients, (i, f, g, o, h, t), c_before in reversed(list(steps)):
            to_gates_now, to_i, to_f, to_g, to_o, from_output, from_cell = gradients
            to_h, to_c = to_hidden[: len(h)], to_cell[: len(h)]
            if from_output is not None:
                to_h.add_(from_output)
            if from_cell is not None:
                to_c.add_(from_cell)
            # h = o t and t' = 1 - t^2.
            to_c.addcmul_(to_h, torch.addcmul(o, h, t, value=-1.0))
            through_o = to_h * h
            # c = f c_before + i g. A sigmoid's derivative is s (1 - s); that of g, 1 - g^2.
            through_g = to_c * i
            through_i = through_g * g
            through_f = to_c.mul_(f) * c_before[: len(h)]
            torch.addcmul(through_i, through_i, i, value=-1.0, out=to_i)
            torch.addcmul(through_f, through_f, f, value=-1.0, out=to_f)
            torch.addcmul(through_g, through_i, g, value=-1.0, out=to_g)
            torch.addcmul(through_o, through_o, o, value=-1.0, out=to_o)
            torch.mm(to_gates_now, hidden_weight, out=to_h)
        to_inputs = None
        if ctx.needs_input_grad[0]:  # frozen word vectors need none
            in_time = aligned_product(to_gates, input_weight)
            to_inputs = in_time.index_select(0, order.to_rows)
        width = hiddens.shape[1]
        to_weights = aligned_product(to_gates.t(), operand)
        place = order.longest_first.argsort()
        return (
            to_inputs,
            to_weights[:, : -width - 1],
            to_weights[:, -width:],
            to_weights[:, -width - 1],
            to_hidden[place],
            to_cell[place],
            None,
            None,
        )


def _in_time(gradient: Tensor | None, order: PackedOrder) -> Tensor | None:
    return None if gradient is None else gradient.index_select(0, order.from_rows)


def _by_step(order: PackedOrder, *tensors: Tensor | None) -> list[tuple[Any, ...]]:
    """For each step its parts of ``tensors``, which are (P, ...) in time order, or None."""
    none = (None,) * len(order.sizes)
    parts = (none if tensor is None else torch.split(tensor, order.sizes) for tensor in tensors)
    return list(zip(*parts, strict=True))


def fold_lstm(lstm: nn.LSTM, embedding: WordEmbedding) -> tuple[Tensor, Tensor]:
    """Merged weights for ``step_lstm``: weight (W + H, 4H) and bias (4H,).

    They combine all products of a step: the projection of the word vectors, the input weights and
    the hidden weights. With an extended embedding W is E, the width of ``look_up``.
    """
    word_weight, hidden_weight, bias = _folded_weights(lstm, embedding)
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

    On some CPUs a sigmoid takes a tenth of the time of ``torch.tanh``.
    """
    if not _is_quick(values):
        return torch.tanh(values)
    return torch.mul(values, 2.0).sigmoid_().mul_(2.0).sub_(1.0)


def _is_quick(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.is_grad_enabled()

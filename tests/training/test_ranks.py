"""Two processes train as one would, agree on everything, and only the first writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from small_training import build_training, pictures, weights
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two

from showtell.decoding.beam import Hypothesis
from showtell.errors import UserError
from showtell.runs import BEST_WEIGHTS, LAST_CHECKPOINT
from showtell.text.tokenizer import tokenize
from showtell.text.vocabulary import Vocabulary
from showtell.tracking import CsvCurves
from showtell.training import ranks
from showtell.training.checkpoints import AtomicCheckpointIO
from showtell.training.module import combine_ranks
from showtell.training.objectives import BatchLoss
from showtell.training.validation import GeneratedCaptions


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A forked process cannot use the threads that PyTorch had before."""
    torch.set_num_threads(1)


SHORT = {"max_epochs": 1}


def numbers(file: Path) -> list[list[float]]:
    """The rows of a metrics.csv; what is empty is -1."""
    lines = file.read_text().splitlines()[1:]
    return [[float(cell or -1) for cell in line.split(",")] for line in lines]


# 8 images: in threes the shares are 2 and 1 of each batch, in sevens one process has none of the
# last. Word vectors thaw after the first of three epochs.
@pytest.mark.parametrize("batch_size", [3, 7])
def test_two_processes_learn_what_one_does(tmp_path: Path, batch_size: int) -> None:
    def fit(folder: Path) -> dict[str, Any]:
        run = build_training(folder, dropout=0.0, trainer={"batch_size": batch_size})
        run.fit()
        kept = {name: t.numpy() for name, t in weights(run).items()}
        return kept | {"caption": run.module.generated.captions()}

    alone = fit(tmp_path / "alone")
    both = in_two(lambda: fit(tmp_path / "both"))
    for learned in both:
        assert learned.pop("caption") == alone["caption"]
        for name, value in learned.items():
            np.testing.assert_allclose(value, alone[name], atol=1e-5, err_msg=name)
    assert all(np.array_equal(both[0][name], both[1][name]) for name in both[0])
    curves = [numbers(tmp_path / each / "metrics.csv") for each in ("alone", "both")]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)


def test_a_broken_training_of_two_goes_on_exactly(tmp_path: Path) -> None:
    class Break(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if trainer.global_step == 2:
                raise UserError("plug pulled")

    in_two(lambda: build_training(tmp_path / "unbroken", dropout=0.3, trainer=SHORT).fit())
    broken = tmp_path / "broken"
    raised = in_two(
        lambda: build_training(broken, callbacks=[Break()], dropout=0.3, trainer=SHORT).fit()
    )
    assert raised == ["UserError: plug pulled"] * 2

    def go_on() -> None:
        run = build_training(broken, dropout=0.3, trainer=SHORT)
        checkpoint = broken / LAST_CHECKPOINT
        run.curves.rewind(AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"])
        run.fit(checkpoint)

    in_two(go_on)
    for name in (BEST_WEIGHTS, "metrics.csv"):
        expected = (tmp_path / "unbroken" / name).read_bytes()
        assert (broken / name).read_bytes() == expected, name


def test_each_process_drops_out_other_numbers(tmp_path: Path) -> None:
    def draw() -> float:
        drawn = []

        class Draw(Callback):
            def on_train_batch_start(self, *_: Any) -> None:
                drawn.append(float(torch.rand(1)))

        build_training(tmp_path, callbacks=[Draw()], trainer=SHORT).fit()
        return drawn[0]

    first, second = in_two(draw)
    assert first != second


def test_unequal_shares_have_the_gradient_of_the_whole() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])

    def gradient(counted: Sequence[int]) -> list[float]:
        """d/dw of the mean of w x over positions of which the processes have 4 and 1."""
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(model.weight)
        parallel = DistributedDataParallel(model)
        share = values[:4] if ranks.rank() == 0 else values[4:]
        loss = parallel(share.unsqueeze(1)).mean()
        own = BatchLoss(loss, loss.detach(), len(share), len(share))
        whole = combine_ranks(own, counts=ranks.rank() in counted)
        whole.loss.backward()
        return [model.weight.grad.item(), float(whole.measure), whole.weight, whole.positions]  # type: ignore[union-attr]

    assert in_two(lambda: gradient([0, 1])) == [pytest.approx([6.2, 6.2, 5, 5])] * 2
    assert in_two(lambda: gradient([0])) == [pytest.approx([3.75, 3.75, 4, 4])] * 2


def test_all_stop_when_the_loss_of_one_is_not_finite(tmp_path: Path) -> None:
    def fit() -> None:
        run = build_training(tmp_path, trainer={"batch_size": 8})

        def spoil(module: Any, inputs: Any, scores: torch.Tensor) -> torch.Tensor:
            return scores * torch.nan if ranks.rank() else scores

        run.module.decoder.register_forward_hook(spoil)
        run.fit()

    for error in in_two(fit):
        assert error.startswith("NonFiniteLossError: ")
        assert all(picture.image_id in error for picture in pictures())


def test_every_process_knows_all_captions(tmp_path: Path) -> None:
    references = {picture.image_id: picture.captions for picture in pictures()[:3]}
    vocabulary = Vocabulary.from_captions(
        (tokenize(c) for captions in references.values() for c in captions), min_count=1
    )

    def generate() -> tuple[dict[str, str], dict[str, float]]:
        generated = GeneratedCaptions(references, vocabulary, max_length=12, metrics=["BLEU"])
        own = list(references) if ranks.rank() else []
        for image_id in own:
            words = vocabulary.encode(tokenize(references[image_id][0]))
            generated.update([image_id], [Hypothesis(tuple(words), 0.0, ended=True)])
        generated.gather()
        return generated.captions(), {n: float(v) for n, v in generated.compute().items()}

    one, other = in_two(generate)
    assert one == other
    assert list(one[0]) == list(references)
    assert one[1]["BLEU-4"] == pytest.approx(1.0)


def test_the_first_decides_for_all() -> None:
    assert in_two(lambda: ranks.from_first(lambda: ranks.rank() + 5)) == [5, 5]
    assert in_two(lambda: ranks.gathered(ranks.rank())) == [[0, 1]] * 2
    assert ranks.from_first(lambda: 5) == 5
    assert ranks.gathered(3) == [3]


def test_only_the_first_speaks_and_writes_curves(tmp_path: Path) -> None:
    def speak() -> int:
        CsvCurves(tmp_path / "metrics.csv").log_metrics({"rank": ranks.rank()}, step=0)
        return len("spoken") if print("spoken") is None else 0

    in_two(speak)
    assert numbers(tmp_path / "metrics.csv") == [[-1.0, 0.0, 0.0]]


def test_another_number_of_processes_than_configured_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def join(processes: int) -> None:
        with ranks.joined_process_group(processes, on_gpus=False):
            pytest.fail("joined")

    with pytest.raises(UserError, match="is 4, but 1 process was started: ask torchrun or srun"):
        join(4)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "3", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="is 4, but 3 processes were started"):
        join(4)

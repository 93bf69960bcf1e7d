"""The LightningModule: trains a decoder on an objective, validates freely generated captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from showtell.data.batches import Batch
from showtell.decoding.search import Search
from showtell.errors import UserError
from showtell.models.decoder import Decoder
from showtell.text.settings import TextSettings
from showtell.training.loss import cross_entropy_
from showtell.training.objectives import BatchLoss, Objective
from showtell.training.optimization import Optimization, clip_gradients
from showtell.training.ranks import gathered, summed, world_size
from showtell.training.validation import GeneratedCaptions
from showtell.vision.encoder import Encoder
from showtell.vision.finetuning import TrainableStages
from showtell.vision.pictures import OnTheFlyFeatures

# Optimizer steps between two rows of the step loss in the learning curves.
STEPS_PER_ROW = 10
# One of this many validation batches counts for the loss, always the same ones: captions are what
# validation is for, and it should cost little beside an epoch of training.
BATCHES_PER_LOSS = 2


class NonFiniteLossError(UserError):
    """The loss is infinite or NaN; raised before the weights are updated."""

    def __init__(self, loss: float, image_ids: Sequence[str], step: int) -> None:
        super().__init__(
            f"The loss is {loss} at step {step}, before the update, on the images "
            f"{', '.join(image_ids)}; look at these, lower optim.lr, or set optim.gradient_clip"
        )


class NonFiniteGradientError(UserError):
    """The gradient is infinite or NaN; raised before the weights are updated."""

    def __init__(self, norm: float, step: int) -> None:
        super().__init__(
            f"The norm of the gradient is {norm} at step {step}, before the update, though the "
            "loss is finite; lower optim.lr"
        )


def combine_ranks(own: BatchLoss, *, counts: bool) -> BatchLoss:
    """Combine the losses of all processes, whose shares of the batch may be unequal.

    DDP averages the gradients of W processes. With each loss scaled by W * own positions / all
    positions, that average is the gradient of the mean over all positions.

    Args:
        own: the loss of this process's share of the batch.
        counts: whether the share counts; a filler does not.
    """
    if world_size() == 1:
        return own
    positions, weight = (own.positions, own.weight) if counts else (0, 0)
    terms = [own.loss * positions, own.measure * weight]
    ones = own.loss.new_ones(())
    sums = summed(torch.stack([*terms, ones * positions, ones * weight]).double())
    loss_sum, measure_sum, all_positions, all_weight = sums
    # The difference is 0, or NaN where any process's loss is not finite, so that all stop together.
    loss = (
        own.loss * (world_size() * positions / all_positions).float()
        + (loss_sum - loss_sum).float()
    )
    return BatchLoss(loss, (measure_sum / all_weight).float(), int(all_weight), int(all_positions))


class CaptioningModule(LightningModule):
    """Trains ``decoder`` on an objective and validates it on freely generated captions.

    Validation decodes every image once with ``search`` and scores the captions over the corpus;
    teacher forcing is used for the loss alone, never for a score.

    If an ``encoder`` is trained too, training batches hold pixels in place of features, and
    ``validation`` is given the current encoder before each validation.
    """

    def __init__(
        self,
        decoder: nn.Module,
        search: Search,
        generated: GeneratedCaptions,
        *,
        objective: Objective,
        optimization: Optimization,
        text: TextSettings,
        steps_per_epoch: int,
        max_epochs: int,
        encoder: TrainableStages | None = None,
        validation: OnTheFlyFeatures | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.averaged = optimization.averaged(decoder)
        self.encoder = encoder
        self.averaged_encoder = None if encoder is None else optimization.averaged(encoder)
        self._validation = validation
        self.generated = generated
        self.objective = objective
        self._search = search
        self._optimization = optimization
        self._text = text
        self._steps_per_epoch = steps_per_epoch
        self._max_epochs = max_epochs
        # Persistent: a run resumed in mid-epoch reports the mean over the whole epoch.
        # Not synced: every process already gets values combined over all.
        self.train_mean = MeanMetric(sync_on_compute=False)
        self.train_mean.persistent(True)
        self.val_loss = MeanMetric()

    @property
    def typed_decoder(self) -> Decoder:
        """The decoder, typed as the protocol that searches use."""
        return cast(Decoder, self.decoder)

    @property
    def validated(self) -> nn.Module:
        """The decoder that is validated, and saved if it is the best: the EMA if there is one."""
        return self.decoder if self.averaged is None else self.averaged.module

    @property
    def validated_encoder(self) -> Encoder | None:
        """The encoder used by the latest validation; None if the encoder is frozen."""
        return None if self._validation is None else self._validation.encoder

    def on_fit_start(self) -> None:
        """Compile the encoder's frozen stages, now on their device with their final weights."""
        if self.encoder is not None:
            self._frozen_stages = self.encoder.frozen_stages(self.device)

    def on_train_start(self) -> None:
        """Run the epoch's start, which Lightning skips for a run resumed within the epoch."""
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Freeze or unfreeze the word vectors, by the epoch alone, so that a resume agrees."""
        self.typed_decoder.embedding.train_vectors(self._text.learn_at(self.current_epoch))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective's loss of the batch."""
        if self.encoder is not None:
            features = self.encoder(self._frozen_stages(batch.features))
            batch = replace(batch, features=features)
        progress = self.global_step / (self._steps_per_epoch * self._max_epochs)
        own = self.objective(self.decoder, batch, min(1.0, progress))
        loss, measure, weight, _ = combine_ranks(own, counts=not batch.is_filler)
        if not torch.isfinite(loss):
            image_ids = [image_id for share in gathered(batch.image_ids) for image_id in share]
            raise NonFiniteLossError(loss.item(), image_ids, self.global_step)
        self.train_mean.update(measure, weight=weight)
        name, images = self.objective.measure, len(batch.image_ids)
        self.log(name, measure, prog_bar=True, logger=False, batch_size=images)
        if self.global_step % STEPS_PER_ROW == 0:
            self._record(
                {f"train/step_{name}": measure.item(), "train/lr": self._rate()}, self.global_step
            )
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip decoder and encoder separately, so that neither's gradients scale the other's steps.

        Lightning refuses to clip for a fused optimizer under mixed precision, because that would
        unscale the gradients itself. Clipping here is safe: bf16-mixed does not scale gradients,
        and 16-mixed gets no fused optimizer.
        """
        if gradient_clip_val is None:
            return
        own = [[p for group in optimizer.param_groups for p in group["params"]]]
        if self.encoder is not None:
            own = [list(part.parameters()) for part in (self.decoder, self.encoder)]
        for parameters in own:
            norm = clip_gradients(parameters, gradient_clip_val)
            # On a GPU to look would wait for it: there the next loss tells.
            if norm.device.type == "cpu" and not norm.isfinite():
                raise NonFiniteGradientError(norm.item(), self.global_step)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then their EMA, before any checkpoint of the step is saved."""
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None:
            self.averaged.update_parameters(self.decoder)
        if self.averaged_encoder is not None and self.encoder is not None:
            self.averaged_encoder.update_parameters(self.encoder)

    def on_train_epoch_end(self) -> None:
        """Record the epoch's mean loss or reward; every real token or every caption counts once."""
        name = f"train/{self.objective.measure}"
        self._record({name: self.train_mean.compute().item()}, self.global_step - 1)
        self.train_mean.reset()

    def on_validation_epoch_start(self) -> None:
        """Discard the previous captions, which callbacks could read until now.

        A trained encoder is validated as it would be saved, rounded to half precision.
        """
        self.generated.reset()
        if self.encoder is not None and self._validation is not None:
            averaged = self.averaged_encoder
            learned = self.encoder if averaged is None else cast(TrainableStages, averaged.module)
            self._validation.encoder = learned.rounded()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Generate a caption per image; compute the loss on every `BATCHES_PER_LOSS`-th batch."""
        if batch.is_filler:
            return
        if batch_idx % BATCHES_PER_LOSS == 0:
            loss = cross_entropy_(self._teacher_forced(batch), batch.targets, label_smoothing=0.0)
            self.val_loss.update(loss, weight=batch.targets.numel())
        hypotheses = self._search(cast(Decoder, self.validated), batch.features)
        self.generated.update(batch.image_ids, hypotheses)

    def on_validation_epoch_end(self) -> None:
        """Log loss and corpus scores, the same in every process."""
        self.generated.gather()
        metrics = {f"val/{name}": score.item() for name, score in self.generated.compute().items()}
        metrics["val/loss"] = self.val_loss.compute().item()
        self.log_dict(metrics, logger=False)  # what callbacks monitor
        self._record(metrics, self.global_step - 1)
        self.val_loss.reset()

    def configure_optimizers(self) -> Any:
        """AdamW and its learning-rate schedule, stepped after every batch."""
        optimizer = self._optimization.optimizer(self.decoder, self.encoder)
        scheduler = self._optimization.scheduler(
            optimizer, steps_per_epoch=self._steps_per_epoch, epochs=self._max_epochs
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _teacher_forced(self, batch: Batch) -> Tensor:
        decoder = cast(Decoder, self.validated)
        return decoder(batch.features, batch.tokens, batch.lengths, batch.image_of_row)

    def _record(self, metrics: dict[str, float], step: int) -> None:
        """Write a row of the learning curves at once.

        Lightning would write it only after the checkpoint of the step is saved; a kill between
        the two would then lose the row for good.
        """
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **metrics}, step=step)

    def _rate(self) -> float:
        rate: float = self.trainer.optimizers[0].param_groups[0]["lr"]
        return rate

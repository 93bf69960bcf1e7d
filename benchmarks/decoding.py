"""Writing captions from features: our search, one image at a time, and `generate`.

    python benchmarks/decoding.py [--models lstm_glove ...] [--images 1000] [--run RUN]

Decoders of the configured sizes have random weights, and every caption has eleven words, the mean
of Flickr8k, so that all methods take the same steps. With ``--run`` a trained run is measured too,
whose captions end by themselves. Ours captions all images in one call. "One image at a time" is
what tutorials do, with the same decoder. `generate` of Hugging Face transformers runs a GPT-2 of
similar size with cross attention to the same features, at its fastest batch size.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from measure import (
    Figure,
    Report,
    Timing,
    Work,
    in_plain_pytorch,
    matrix_product,
    memory_triad,
    parser,
    prepare,
    products_of,
    ratio,
    time_in_turns,
)
from plain_decoding import search_one_image
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    logging,
)
from transformers.modeling_outputs import BaseModelOutput

from showtell.caption import load_run
from showtell.config import build, compose
from showtell.cpu_matmul import pytorch_matmul
from showtell.decoding.beam import BeamSearch, batching_for
from showtell.text.vocabulary import BEGIN, END, PAD

# Flickr8k with GloVe 6B of 50 numbers and EfficientNet-Lite2: its vocabulary, its features.
VOCABULARY, VECTOR_WIDTH, FEATURE_SIZE, REGIONS = 2543, 50, 1280, 81
MODELS = ("lstm_glove", "attention_glove")
WORDS = 11
BEAMS = (5, 3, 1)
ALONE, GENERATE, PEAK = "one image at a time", "generate", "limit: product 2048^3"
# Methods whose time is proportional to the number of images are measured on fewer.
ALONE_IMAGES, GENERATE_IMAGES = 40, 100
GENERATE_BATCHES = (25, 50, 100)


@dataclass(frozen=True)
class Case:
    """A decoder, how its captions are searched, and the features to caption."""

    name: str
    decoder: Any
    search: BeamSearch
    features: Tensor

    def with_beam(self, beam_size: int) -> Case:
        """The same case with another beam size."""
        return replace(self, search=replace(self.search, beam_size=beam_size))

    def ours(self) -> list[tuple[int, ...]]:
        """Captions of all images in one call."""
        return [h.token_ids for h in self.search(self.decoder, self.features)]

    def alone(self, images: int) -> list[tuple[int, ...]]:
        """Captions of the first images, one at a time."""
        each = torch.split(self.features[:images], 1)
        return [search_one_image(self.decoder, features, self.search) for features in each]


class Generate:
    """`generate` of a GPT-2 that attends to given features."""

    def __init__(self, features: Tensor, layers: int = 4, width: int = 256) -> None:
        logging.set_verbosity_error()
        decoder = GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=64,
            n_embd=width,
            n_layer=layers,
            n_head=4,
            bos_token_id=BEGIN,
            eos_token_id=END,
            pad_token_id=PAD,
        )
        # The encoder is never run; its width only declares that of the features.
        encoder = ViTConfig(
            hidden_size=features.shape[-1],
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=32,
        )
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        self._model = VisionEncoderDecoderModel(config).eval()
        self._features = features if features.dim() == 3 else features.unsqueeze(1)

    @property
    def parameters(self) -> int:
        """Number of parameters in use: the decoder's and the feature projection's."""
        parts: list[nn.Module] = [self._model.decoder, self._model.enc_to_dec_proj]
        return sum(p.numel() for part in parts for p in part.parameters())

    @cached_property
    def batch_size(self) -> int:
        """The batch that takes the least time per image."""
        return min(GENERATE_BATCHES, key=self._seconds_per_image)

    @torch.inference_mode()
    def __call__(self, beam_size: int, batch_size: int) -> None:
        """Caption all images in batches of ``batch_size``."""
        for batch in torch.split(self._features, batch_size):
            self._model.generate(
                encoder_outputs=BaseModelOutput(batch),
                num_beams=beam_size,
                do_sample=False,
                use_cache=True,
                min_new_tokens=WORDS + 1,
                max_new_tokens=WORDS + 1,
                length_penalty=0.7,
                decoder_start_token_id=BEGIN,
                eos_token_id=END,
                pad_token_id=PAD,
            )

    def _seconds_per_image(self, batch_size: int) -> float:
        with pytorch_matmul():
            start = time.perf_counter()
            self(BEAMS[0], batch_size)
            return (time.perf_counter() - start) / len(self._features)


def made_case(model: str, images: int) -> Case:
    """A decoder as configured, with random weights, and random features."""
    config = compose([f"model={model}", "decoding=beam5"])
    decoder: nn.Module = build(
        "model",
        config["model"],
        vocabulary_size=VOCABULARY,
        vector_width=VECTOR_WIDTH,
        feature_size=FEATURE_SIZE,
    )
    # Untrained scores are nearly flat; spread them, so that the best words stand out clearly.
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2.0)
    search: BeamSearch = build("decoding", config["decoding"])
    search = replace(search, min_length=WORDS, max_length=WORDS, bad_endings=())
    return Case(model, decoder.eval(), search, made_features(decoder, images))


def trained_case(folder: Path, images: int, device: str) -> Case:
    """A trained run with its own search, and random features."""
    run = load_run(folder, accelerator=torch.device(device).type)
    search = replace(run.search, beam_size=BEAMS[0])
    return Case("trained", run.decoder, search, made_features(run.decoder, images))


def made_features(decoder: Any, images: int) -> Tensor:
    """Random features of the kind that the decoder reads; fewer images of grids, 415 KB each."""
    if decoder.feature_kind == "pooled":
        return torch.rand(images, FEATURE_SIZE)
    return torch.rand(max(1, images // 4), REGIONS, FEATURE_SIZE)


def works_of(case: Case) -> dict[str, Work]:
    """Ours at every beam size, one image at a time, and the matrix products of a step alone."""
    images, greedy = len(case.features), case.with_beam(1)
    works = {}
    for beam_size in BEAMS:
        work = case.with_beam(beam_size).ours
        units = {"images": images, "FLOP": products_of(work).flop}
        works[f"{case.name}, beam {beam_size}"] = Work(work, units)
    alone = min(images, ALONE_IMAGES)
    for name, beams in ((f"{case.name}, {ALONE}", case), (f"{case.name}, beam 1, {ALONE}", greedy)):
        work = Work(partial(beams.alone, alone), {"images": alone})
        works[name] = in_plain_pytorch(work)
    works[f"limit: products of {case.name}"] = step_products(case)
    return works


def step_products(case: Case) -> Work:
    """The limit at these sizes: the matrix products of one step, with as many rows as ours."""
    images = batching_for(case.features.device).rows // case.search.beam_size
    tokens = torch.full((images * case.search.beam_size,), BEGIN)
    with torch.inference_mode():
        state = case.decoder.start(case.features[:1].expand(images, *case.features.shape[1:]))
        state = state.select(torch.arange(images).repeat_interleave(case.search.beam_size))
        products = products_of(case.decoder.step, tokens, state)
    pairs = [(torch.rand(m, k), torch.rand(k, n)) for m, k, n in products.sizes]
    results = [torch.empty(len(left), right.shape[1]) for left, right in pairs]

    def multiply() -> None:
        for (left, right), result in zip(pairs, results, strict=True):
            torch.mm(left, right, out=result)

    return Work(multiply, {"FLOP": products.flop})


def figures_of(case: Case, timings: Mapping[str, Timing]) -> list[Figure]:
    """The figures of each decoder, with their targets."""
    beam = timings[f"{case.name}, beam {BEAMS[0]}"]
    greedy = timings[f"{case.name}, beam 1"]
    alone = timings[f"{case.name}, {ALONE}"]
    greedy_alone = timings[f"{case.name}, beam 1, {ALONE}"]
    peak, products = timings[PEAK], timings[f"limit: products of {case.name}"]
    figures = [
        ratio(f"{case.name}, beam 5 over {ALONE}", beam, alone, "images", target=4),
        ratio(f"{case.name}, greedy over {ALONE}", greedy, greedy_alone, "images", target=4),
        ratio(f"{case.name}, beam 5, share of the peak", beam, peak, "FLOP", target=0.5),
        ratio(f"{case.name}, beam 5, share of its products alone", beam, products, "FLOP"),
    ]
    generate = timings.get(f"{GENERATE}, {case.decoder.feature_kind}")
    if generate and case.name != "trained":
        figures.append(
            ratio(f"{case.name}, beam 5 over {GENERATE}", beam, generate, "images", target=3)
        )
    return figures


def generate_works(cases: Sequence[Case]) -> tuple[dict[str, Work], dict[str, Any]]:
    """`generate` on each kind of features that the cases have, and facts about it."""
    works: dict[str, Work] = {}
    facts: dict[str, Any] = {}
    kinds = {case.decoder.feature_kind: case.features for case in cases}
    for kind, features in kinds.items():
        generate = Generate(features[:GENERATE_IMAGES])
        call = partial(generate, BEAMS[0], generate.batch_size)
        units = {"images": len(features[:GENERATE_IMAGES]), "FLOP": products_of(call).flop}
        works[f"{GENERATE}, {kind}"] = in_plain_pytorch(Work(call, units))
        facts[f"{GENERATE}, {kind}"] = {
            "parameters": generate.parameters,
            "batch_size": generate.batch_size,
        }
    return works, facts


def agreement(case: Case) -> float:
    """Share of images for which ours and one at a time give the same caption."""
    alone = case.alone(ALONE_IMAGES)
    return sum(a == b for a, b in zip(case.ours(), alone, strict=False)) / len(alone)


def main() -> None:
    """Measure, print and write ``decoding.json``."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=MODELS, help="names in conf/model")
    options.add_argument("--run", type=Path, help="a trained run with pooled features as well")
    options.add_argument("--images", type=int, default=1000, help="(%(default)s)")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = options.parse_args()
    prepare(chosen)
    torch.set_default_device(chosen.device)
    images = 60 if chosen.quick else chosen.images
    cases = [made_case(model, images) for model in chosen.models]
    if chosen.run:
        cases.append(trained_case(chosen.run, images, chosen.device))
    works = {name: work for case in cases for name, work in works_of(case).items()}
    generating, facts = generate_works(cases)
    works |= generating | {
        PEAK: matrix_product(2048, 2048, 2048, chosen.device),
        "limit: memory": memory_triad(device=chosen.device),
    }
    facts |= {
        case.name: {
            "parameters": sum(p.numel() for p in case.decoder.parameters()),
            "same captions": agreement(case),
        }
        for case in cases
    }
    timings = time_in_turns(works, turns=chosen.turns)
    figures = [figure for case in cases for figure in figures_of(case, timings)]
    report = Report("decoding", timings, figures, facts)
    report.show()
    for name, each in facts.items():
        print(name, each)
    report.save(chosen.output)


if __name__ == "__main__":
    main()

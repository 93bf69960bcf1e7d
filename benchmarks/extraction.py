"""Pictures to stored features, beside the eager loop and the compiled network alone.

    python benchmarks/extraction.py [FOLDER] [--images 1024] [--encoder NAME] [--set KEY=VALUE]

Without a folder the pictures are built-in scenes. The eager loops are what is usually written:
decode, preprocess, forward, keep, one after the other with PyTorch's own threads, nothing written
to disk, the network in the memory format that libraries give it; our eager encoder, in channels
last, is measured beside them. "ours" is ``ensure_features`` into a new store each time, its encoder
converted before, as for all but the first images of a data set; the conversion has a line of its
own. The limit is our network alone on pictures in memory: on a CPU the same compiled network in
OpenVINO's own asynchronous queue, two pictures a core; on a GPU the same in half precision. Beside
it, on a CPU, is the network as OpenVINO's manual runs it, with the throughput hint and as many
pictures at once as OpenVINO chooses: one a core, which then waits for each next one.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Report, Timing, Work, parser, prepare, rate, ratio, time_in_turns
from PIL import Image
from torch import nn

from showtell.config import build, compose
from showtell.data.image_folders import is_image_name
from showtell.data.scenes.files import scenes
from showtell.vision.encoder import Encoder, EncoderOutput
from showtell.vision.engines import (
    OpenVINOEngine,
    Pixels,
    TorchEngine,
    compiled_encoder,
    engine_for,
)
from showtell.vision.extract import IMAGES_PER_SHARD, ensure_features
from showtell.vision.features import Features, FeatureStore
from showtell.vision.images import load_image

BATCH_SIZE = 32
# The eager loops and image decoders are timed on this many images: their rate is steady.
FEW = 64
LOOP = "an eager loop, one image at a time"
BATCHES = f"an eager loop, batches of {BATCH_SIZE}"
OUR_EAGER = f"our eager encoder, batches of {BATCH_SIZE}"
MANUAL = "network as in OpenVINO's manual"
SIDES = (224, 500)


def main() -> None:
    """Measure, print and write ``extraction.json``."""
    options = parser(__doc__)
    options.add_argument("folder", type=Path, nargs="?", help="pictures (default: scenes)")
    options.add_argument("--images", type=int, default=1024, help="how many (%(default)s)")
    options.add_argument("--encoder", default="efficientnet_lite2", help="of conf/encoder")
    options.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE"
    )
    options.add_argument("--kind", choices=("pooled", "grid"), default="grid")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = options.parse_args()
    prepare(chosen)
    settings = compose([f"encoder={chosen.encoder}", *chosen.overrides])
    encoder: Encoder = build("encoder", settings["encoder"])
    with tempfile.TemporaryDirectory() as made:
        pictures = find(chosen.folder, 32 if chosen.quick else chosen.images, Path(made))
        timings = time_in_turns(works(encoder, pictures, chosen, Path(made)), turns=chosen.turns)
        found = facts(encoder, pictures, chosen)
    report = Report("extraction", timings, figures(timings), found)
    report.show()
    report.save(chosen.output)


def find(folder: Path | None, count: int, made: Path) -> list[Path]:
    """The first ``count`` images of the folder, or ``count`` scenes."""
    if folder is None:
        sizes = {"train_images": count, "val_images": 1, "test_images": 1}
        data = scenes(root=str(made), seed=0, skip_rejected=False, **sizes)
        return [image.path for image in data.images][:count]
    return sorted(path for path in folder.iterdir() if is_image_name(path.name))[:count]


def works(
    encoder: Encoder, pictures: Sequence[Path], chosen: argparse.Namespace, made: Path
) -> dict[str, Work]:
    """The works to time, in this order within a turn."""
    device = torch.device(chosen.device)
    few = pictures[: 4 if chosen.quick else FEW]
    in_memory = [encoder.preprocessing.pixels(load_image(path)) for path in few]
    plain = PlainEncoder(encoder).to(device)
    ours = partial(extract, encoder, pictures, chosen.kind, device, made)
    ours()  # converts the encoder, and keeps OpenVINO from sending telemetry
    on_gpu = device.type == "cuda"
    jobs = 2 * torch.get_num_threads()
    on_cpu = partial(network_on_cpu, compiled_encoder, jobs=jobs)
    alone: Callable[..., Callable[[], None]] = network_on_gpu if on_gpu else on_cpu
    found = {
        LOOP: (partial(eager, plain, few, 1, device), len(few)),
        BATCHES: (partial(eager, plain, few, BATCH_SIZE, device), len(few)),
        OUR_EAGER: (partial(eager, encoder, few, BATCH_SIZE, device), len(few)),
        "ours": (ours, len(pictures)),
        "network alone": (alone(encoder, in_memory, len(pictures)), len(pictures)),
        "writing alone": (partial(write, encoder, chosen.kind, made), IMAGES_PER_SHARD),
    }
    for side in SIDES:
        files = resized(few, side, made / str(side))
        for name, decode in decoders().items():
            work = partial(decode, encoder, files)
            found[f"{name}, {side} px, one thread"] = (work, len(files))
    if not on_gpu:
        count = max(1, len(pictures) // 4)
        manual = network_on_cpu(compiled_as_in_manual, encoder, in_memory, count, jobs=0)
        found[MANUAL] = (manual, count)
    named = {
        name: Work(work, {"images": count}, own_clock=work is ours)
        for name, (work, count) in found.items()
    }
    if not on_gpu:
        convert = partial(OpenVINOEngine, encoder, threads=torch.get_num_threads())
        named["conversion"] = Work(convert, {"encoders": 1})
    return named


def eager(
    encoder: Encoder | PlainEncoder, pictures: Sequence[Path], size: int, device: torch.device
) -> dict[Path, Features]:
    """The eager loop: decode, forward, keep. Returns the grid (R, D) of each image."""
    features: dict[Path, Features] = {}
    for start in range(0, len(pictures), size):
        batch = pictures[start : start + size]
        images = torch.stack([encoder.preprocessing(load_image(path)) for path in batch])
        grid = encoder(images.to(device)).grid.cpu().numpy().astype(np.float16)
        features.update(zip(batch, grid, strict=True))
    return features


class PlainEncoder(nn.Module):
    """The network as a library gives it, with the preprocessing that the loop needs."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.preprocessing = encoder.preprocessing
        self.body = copy.deepcopy(encoder.body).to(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> EncoderOutput:
        """Pooled features (B, D) and the grid (B, R, D)."""
        grid = self.body(images).flatten(2).transpose(1, 2)
        return EncoderOutput(grid.mean(dim=1), grid)


def extract(
    encoder: Encoder, pictures: Sequence[Path], kind: Any, device: torch.device, made: Path
) -> float:
    """Our extraction, from image files to a new store on disk; its seconds, without deleting it."""
    with tempfile.TemporaryDirectory(dir=made) as root:
        start = time.perf_counter()
        ensure_features(
            [(path.name, path) for path in pictures],
            encoder,
            [kind],
            root=Path(root),
            batch_size=BATCH_SIZE,
            device=device,
            progress=False,
        )
        return time.perf_counter() - start


def network_on_cpu(
    compiled: Callable[..., Any],
    encoder: Encoder,
    pictures: Sequence[Pixels],
    count: int,
    *,
    jobs: int,
) -> Callable[[], None]:
    """OpenVINO's queue of ``jobs`` (0: its own choice) for ``count`` pictures.

    ``compiled`` gives the network for an encoder and a number of threads.
    """
    import openvino

    network = compiled(encoder, threads=torch.get_num_threads())
    queue = openvino.AsyncInferQueue(network, jobs)
    as_pixels = network.input(0).get_element_type() == openvino.Type.u8
    inputs = [
        each[None] if as_pixels else encoder.preprocessing.normalised(each)[None].numpy()
        for each in pictures
    ]

    def run() -> None:
        for each in itertools.islice(itertools.cycle(inputs), count):
            queue.start_async([each], share_inputs=True)
        queue.wait_all()

    return run


def compiled_as_in_manual(encoder: Encoder, *, threads: int) -> Any:
    """The module as OpenVINO's manual compiles it: normalised images (1, 3, S, S) to features."""
    import openvino

    shape = [1, 3, encoder.preprocessing.size, encoder.preprocessing.size]
    model = openvino.convert_model(encoder, example_input=torch.zeros(shape), input=shape)
    properties = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # as ours: some processors would take bfloat16
    }
    return openvino.Core().compile_model(model, "CPU", properties)


def network_on_gpu(encoder: Encoder, pictures: Sequence[Pixels], count: int) -> Callable[[], None]:
    """Our network in half precision, on ``count`` images in the GPU's memory."""
    device = torch.device("cuda")
    size = encoder.preprocessing.size
    example = np.full((size, size, 3), 127, dtype=np.uint8)
    engine = engine_for(encoder, example, images=count, batch_size=BATCH_SIZE, device=device)
    assert isinstance(engine, TorchEngine)
    images = [encoder.preprocessing.normalised(each) for each in pictures[:BATCH_SIZE]]
    batch = torch.stack(images).to(device, engine.dtype)

    def run() -> None:
        for _ in range(0, count, BATCH_SIZE):
            engine.network(batch)

    return run


def write(encoder: Encoder, kind: Any, made: Path) -> None:
    """Write one shard, flushed to disk."""
    shape = getattr(encoder.identity, f"{kind}_shape")
    rows = np.ones((IMAGES_PER_SHARD, *shape), dtype=np.float16)
    names = [str(number) for number in range(IMAGES_PER_SHARD)]
    with tempfile.TemporaryDirectory(dir=made) as root:
        FeatureStore.open(Path(root), encoder.identity, kind).write(names, names, rows)


def resized(pictures: Sequence[Path], side: int, folder: Path) -> list[Path]:
    """Copies of the images as JPEG files whose longer side has ``side`` pixels."""
    folder.mkdir()
    files = []
    for path in pictures:
        image = load_image(path)
        scale = side / max(image.size)
        width, height = (max(1, round(edge * scale)) for edge in image.size)
        files.append(folder / f"{path.stem}.jpg")
        image.resize((width, height), Image.Resampling.LANCZOS).save(files[-1], quality=90)
    return files


def decoders() -> dict[str, Callable[[Encoder, Sequence[Path]], None]]:
    """Ways from a file to the network's input; TurboJPEG's only if simplejpeg is installed."""
    found = {"Pillow": with_pillow, "torchvision": with_torchvision}
    if importlib.util.find_spec("simplejpeg"):
        found["TurboJPEG"] = with_turbojpeg
    return found


def with_pillow(encoder: Encoder, files: Sequence[Path]) -> None:
    """The project's own path from a file to the network's input."""
    for file in files:
        encoder.preprocessing(load_image(file))


def with_torchvision(encoder: Encoder, files: Sequence[Path]) -> None:
    """torchvision's decoder and resizing, which give nearly the same pixels."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    rule = encoder.preprocessing
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for file in files:
        pixels = decode_image(str(file), mode=ImageReadMode.RGB)
        pixels = F.resize(pixels, [rule.size] * 2, InterpolationMode(rule.interpolation))
        F.normalize(pixels / 255, list(rule.mean), list(rule.std))
    torch.set_num_threads(threads)


def with_turbojpeg(encoder: Encoder, files: Sequence[Path]) -> None:
    """TurboJPEG's decoder by simplejpeg, then the project's own path."""
    import simplejpeg

    for file in files:
        pixels = simplejpeg.decode_jpeg(file.read_bytes(), colorspace="RGB")
        encoder.preprocessing(Image.fromarray(pixels))


def figures(timings: dict[str, Timing]) -> list[Any]:
    """Figures: ours over the eager loops, as a share of the limit, and gains of other decoders."""
    ours, alone = timings["ours"], timings["network alone"]
    found = [
        ratio(f"ours over {LOOP}", ours, timings[LOOP], "images", target=4),
        ratio(f"ours over {BATCHES}", ours, timings[BATCHES], "images", target=4),
        ratio(f"ours over {OUR_EAGER}", ours, timings[OUR_EAGER], "images"),
        ratio("ours, share of the network alone", ours, alone, "images", target=0.9),
        rate("ours", ours, "images"),
    ]
    if manual := timings.get(MANUAL):
        found.append(ratio("network alone over OpenVINO's manual", alone, manual, "images"))
    for side in SIDES:
        pillow = timings[f"Pillow, {side} px, one thread"]
        for name in ("torchvision", "TurboJPEG"):
            if other := timings.get(f"{name}, {side} px, one thread"):
                found.append(ratio(f"{name} over Pillow, {side} px", other, pillow, "images"))
        found.append(ratio(f"one thread of Pillow, {side} px, over ours", pillow, ours, "images"))
    return found


def facts(encoder: Encoder, pictures: Sequence[Path], chosen: argparse.Namespace) -> dict[str, Any]:
    """What was encoded, on what, and the peak memory."""
    megapixels = [np.prod(load_image(path).size) / 1e6 for path in itertools.islice(pictures, 64)]
    return {
        "network": encoder.identity.network,
        "images": len(pictures),
        "megapixels": round(float(np.median(megapixels)), 3),
        "kind": chosen.kind,
        "device": chosen.device,
        "peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    main()

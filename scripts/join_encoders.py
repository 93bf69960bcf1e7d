"""Put tuned networks into one file: ``python scripts/join_encoders.py FILE FILE --output FILE``.

`showtell tune encoder=joined` tunes its networks one after the other. Tuned separately, on several
cores or machines, they take the time of one and may have different settings, except for the size of
their images. The output is for ``encoder=joined``, with ``encoder.networks`` in the order of the
files:

    showtell tune encoder=efficientnet_lite1 encoder.preprocessing.size=260 --output one.safetensors
    showtell tune encoder=efficientnet_lite2 --output two.safetensors
    python scripts/join_encoders.py one.safetensors two.safetensors --output both.safetensors
    python train.py encoder=joined encoder.weights=both.safetensors ...
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from showtell.errors import UserError
from showtell.files import write_atomically
from showtell.training.tuning import TUNED_BY, tuned_by_of
from showtell.vision.weights import facts_of, load_state


def join(files: Sequence[Path], output: Path) -> list[str]:
    """Write the weights of all ``files``, and how each was tuned, to ``output``.

    Return the overrides that use it; empty if a file is too old to name its network.

    Raises:
        UserError: fewer than two files, one that is not of ``showtell tune`` for a single network,
            two that were tuned to pictures of different sizes, or an ``output`` that exists.
    """
    if len(files) < 2:
        raise UserError("one file alone is encoder.weights as it is: name at least two")
    if output.suffix != ".safetensors" or output.exists():
        raise UserError(f"--output {output}: name a .safetensors file that does not exist yet")
    weights: dict[str, Tensor] = {}
    tuned_by: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        state, tunings = load_state(file), tuned_by_of(file)
        is_tuned = len(tunings) == 1 and TUNED_BY in facts_of(file)  # and learned nothing since
        if not is_tuned or any(name.startswith("networks.") for name in state):
            raise UserError(
                f"{file}: not a single network as `showtell tune` writes it; name a file that it "
                "wrote of one network, such as encoder=efficientnet_lite1"
            )
        weights |= {f"networks.{number}.{name}": tensor for name, tensor in state.items()}
        tuned_by += tunings
    known = {file: t for file, t in zip(files, tuned_by, strict=True) if "network" in t}
    sizes = [facts["size"] for facts in known.values()]
    if len(set(sizes)) > 1:
        told = ", ".join(f"{file} to {size} px" for file, size in zip(known, sizes, strict=True))
        raise UserError(
            f"{told}: networks side by side see pictures of one size; tune all of them with the "
            "same encoder.preprocessing.size"
        )
    write_atomically(output, save(weights, metadata={TUNED_BY: json.dumps(tuned_by)}))
    if not all("network" in facts for facts in tuned_by):
        return []
    networks = ",".join(facts["network"] for facts in tuned_by)
    named = f"encoder.networks=[{networks}]", f"encoder.preprocessing.size={sizes[0]}"
    return ["encoder=joined", *named, f"encoder.weights={output}"]


def main() -> None:
    """Join the files; a `UserError` becomes one sentence and status 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    try:
        taken_with = join(options.files, options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"weights: {options.output}")
    if taken_with:
        print(f"taken with: {shlex.join(taken_with)}")


if __name__ == "__main__":
    main()

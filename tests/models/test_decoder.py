"""What making a decoder costs."""

import subprocess
import sys

MAKE_ONE = """
import sys
import torch
from lite_llama.app.bench.shapes import shape_config
from lite_llama.kernels.operators import reference_operators
from lite_llama.models.config import ModelConfig
from lite_llama.models.decoder import Decoder

with torch.device("meta"):
    Decoder(ModelConfig.from_dict(shape_config("SmolLM2-135M")[1]), reference_operators())
assert "torch._dynamo" not in sys.modules
"""


def test_a_decoder_is_made_without_pytorchs_compiler():
    """Drawing weights on the meta device, as nn.Embedding does, would import it: a second at every start."""
    subprocess.run([sys.executable, "-c", MAKE_ONE], check=True)

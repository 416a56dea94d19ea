"""The same logits as Llama in `transformers`, with the weights copied.

Runs by `make test-peer`, in an environment with the extra `peer`; skipped elsewhere.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from osgd_jax import nets
from tests.nets.small_nets import randomise

torch = pytest.importorskip("torch")

VOCAB, WIDTH, HEADS, DEPTH = 11, 16, 2, 3


def state_of(net):
    """The weights of the trunk and the last head, by the names that Llama has for them."""
    layers = [layer for stage in net.stages for layer in stage.layers]
    last = net.stages[-1].head
    named = {
        "model.embed_tokens": net.stages[0].embedding.table[...],
        "model.norm": last.norm.scale[...],
        "lm_head": last.product.kernel[...].T,
    }
    for i, layer in enumerate(layers):
        attention, mlp = layer.attention, layer.mlp
        parts = jnp.split(attention.project.kernel[...], 3, axis=1)
        gate, up = jnp.split(mlp.project.kernel[...], 2, axis=1)
        named |= {
            f"model.layers.{i}.input_layernorm": attention.norm.scale[...],
            f"model.layers.{i}.post_attention_layernorm": mlp.norm.scale[...],
            f"model.layers.{i}.self_attn.o_proj": attention.out.kernel[...].T,
            f"model.layers.{i}.mlp.gate_proj": gate.T,
            f"model.layers.{i}.mlp.up_proj": up.T,
            f"model.layers.{i}.mlp.down_proj": mlp.out.kernel[...].T,
        } | {
            f"model.layers.{i}.self_attn.{name}_proj": part.T
            for name, part in zip("qkv", parts, strict=True)
        }
    return {f"{name}.weight": torch.tensor(np.array(value)) for name, value in named.items()}


@pytest.mark.filterwarnings("ignore")
def test_the_last_output_of_the_branched_net_is_llamas():
    transformers = pytest.importorskip("transformers")
    sizes = {"width": WIDTH, "num_heads": HEADS, "depth": DEPTH}
    net = nets.BranchedTransformer(vocab_size=VOCAB, num_outputs=2, **sizes, rngs=nnx.Rngs(0))
    randomise(net)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=net.stages[0].layers[0].mlp.out.kernel.shape[0],
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        rms_norm_eps=1e-6,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    llama.load_state_dict(state_of(net))
    x = np.random.default_rng(0).integers(0, VOCAB, (3, 20))
    with torch.no_grad():
        expected = llama(torch.tensor(x)).logits.numpy()
    np.testing.assert_allclose(net(jnp.asarray(x))[-1], expected, rtol=1e-4, atol=1e-4)

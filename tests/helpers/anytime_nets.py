"""A tiny net with all that a predictor must cope with, and a clock that a test controls."""

import jax.numpy as jnp
import numpy as np
from flax import nnx


class Steps(nnx.Module):
    """K linear outputs from growing features, with batch normalisation and dropout in each stage.

    The input is `[batch, length, channels]`; every stage reads the input, which the carry hands on.
    """

    in_channels = 2
    spatial_dims = 1

    def __init__(self, num_outputs=3, num_classes=4, length=3, seed=0, sharpness=3.0):
        rngs = nnx.Rngs(seed)
        size = self.in_channels * length
        self.num_outputs = num_outputs
        self.sharpness = sharpness
        self.layers = nnx.List(nnx.Linear(size + 5 * k, 5, rngs=rngs) for k in range(num_outputs))
        self.norms = nnx.List(nnx.BatchNorm(5, rngs=rngs) for _ in range(num_outputs))
        self.heads = nnx.List(
            nnx.Linear(5 * (k + 1), num_classes, rngs=rngs) for k in range(num_outputs)
        )
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def start(self, x):
        return {"x": x, "features": x.reshape(x.shape[0], -1)[:, :0]}

    def advance(self, k, carry):
        x, features = carry["x"], carry["features"]
        joined = nnx.relu(
            self.layers[k](jnp.concatenate([x.reshape(x.shape[0], -1), features], axis=1))
        )
        features = jnp.concatenate([features, self.dropout(self.norms[k](joined))], axis=1)
        return self.sharpness * self.heads[k](features), {"x": x, "features": features}

    def __call__(self, x):
        carry, outputs = self.start(x), []
        for k in range(self.num_outputs):
            logits, carry = self.advance(k, carry)
            outputs.append(logits)
        return tuple(outputs)


class Given(nnx.Module):
    """Output k is `x[:, k]`: a test says what the logits are."""

    def __init__(self, num_outputs=3):
        self.num_outputs = num_outputs

    def start(self, x):
        return x

    def advance(self, k, carry):
        return carry[:, k], carry


class Tokens(nnx.Module):
    """K outputs for each token id of a sequence, `[batch, length, vocabulary]`."""

    def __init__(self, num_outputs=2, vocabulary=11):
        rngs = nnx.Rngs(0)
        self.num_outputs = num_outputs
        self.embed = nnx.Embed(vocabulary, 4, rngs=rngs)
        self.heads = nnx.List(nnx.Linear(4, vocabulary, rngs=rngs) for _ in range(num_outputs))

    def start(self, ids):
        return self.embed(ids)

    def advance(self, k, carry):
        return self.heads[k](carry), jnp.tanh(2 * carry)

    def __call__(self, ids):
        carry, outputs = self.start(ids), []
        for k in range(self.num_outputs):
            logits, carry = self.advance(k, carry)
            outputs.append(logits)
        return tuple(outputs)


class ScriptedClock:
    """Stands still but for `durations`: reading k + 1 comes durations[k] seconds after reading k.

    Attributes:
      readings: how often it was read.
    """

    def __init__(self, durations=()):
        self.time = 0.0
        self.readings = 0
        self.durations = list(durations)

    def __call__(self):
        if self.readings:
            self.time += self.durations[self.readings - 1]
        self.readings += 1
        return self.time


def inputs(batch=8, seed=0, length=3):
    """Examples for `Steps`."""
    shape = (batch, length, Steps.in_channels)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def evaluated(net, x):
    """The logits of all outputs in evaluation mode, computed at once."""
    view = nnx.view(net, raise_if_not_found=False, deterministic=True, use_running_average=True)
    return [np.asarray(logits) for logits in view(x)]

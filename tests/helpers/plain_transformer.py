"""A Transformer written out with dense matrices, for NumPy or jax.numpy: what the nets must equal.

Its matrices are those of a net with stripes put in their places, zero where a stripe does not read.
"""

from typing import Any


def rms_norm(np: Any, x: Any, scale: Any, stripes: tuple[int, ...]) -> Any:
    """Each stripe of channels divided by its own root mean square."""
    parts, start = [], 0
    for size in stripes:
        part = x[..., start : start + size]
        parts.append(part / np.sqrt((part**2).mean(-1, keepdims=True) + 1e-6))
        start += size
    return np.concatenate(parts, -1) * scale


def rotation(np: Any, length: int, head_dim: int) -> Any:
    """For each position the matrix that rotates a head, `[length, head_dim, head_dim]`."""
    half = head_dim // 2
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(half) / half)
    turned = []
    for angle in angles:
        cos, sin = np.diag(np.cos(angle)), np.diag(np.sin(angle))
        rows = [np.concatenate(row, 1) for row in ((cos, -sin), (sin, cos))]
        turned.append(np.concatenate(rows))
    return np.stack(turned)


def attention(np: Any, layer: dict[str, Any], x: Any, stripes: tuple[int, ...]) -> Any:
    """Return what the attention of a layer adds to the state, `[batch, length, channels]`."""
    normed = rms_norm(np, x, layer["norm_1"], stripes)
    heads = [np.einsum("blc,chd->blhd", normed, layer[name]) for name in ("q", "k", "v")]
    return np.einsum("blhd,hdc->blc", read_earlier(np, *heads), layer["o"])


def read_earlier(np: Any, queries: Any, keys: Any, values: Any) -> Any:
    """Return what each position reads so far, `[batch, length, heads, head_dim]`."""
    length, head_dim = queries.shape[1], queries.shape[-1]
    turn = rotation(np, length, head_dim)
    q, k = (np.einsum("lde,blhe->blhd", turn, each) for each in (queries, keys))
    scores = np.einsum("bthd,bshd->bhts", q, k) / head_dim**0.5
    allowed = np.tril(np.ones((length, length)))
    powers = np.exp(scores) * allowed
    return np.einsum("bhts,bshd->bthd", powers / powers.sum(-1, keepdims=True), values)


def mlp(np: Any, layer: dict[str, Any], x: Any, stripes: tuple[int, ...]) -> Any:
    """Return what the gated MLP of a layer adds to the state."""
    normed = rms_norm(np, x, layer["norm_2"], stripes)
    gate = normed @ layer["gate"]
    return (gate / (1 + np.exp(-gate)) * (normed @ layer["up"])) @ layer["down"]


def increment(np: Any, layer: dict[str, Any], x: Any, stripes: tuple[int, ...]) -> Any:
    """Return the sum of both."""
    first = attention(np, layer, x, stripes)
    return first + mlp(np, layer, x + first, stripes)


def head(np: Any, parts: dict[str, Any], x: Any, stripes: tuple[int, ...]) -> Any:
    """Logits of a state."""
    return rms_norm(np, x, parts["norm"], stripes) @ parts["product"]


def dense_layer(np: Any, stripes: list[Any]) -> dict[str, Any]:
    """The stripes of a layer, or one whole layer, as dense matrices.

    Args:
      np: NumPy or jax.numpy.
      stripes: `TransformerLayer`s.
    """
    head_dim = stripes[0].attention.head_dim

    def columns(kind: str, name: str, parts: int) -> list[Any]:
        kernels = [np.asarray(getattr(getattr(each, kind), name).kernel[...]) for each in stripes]
        rows = max(len(kernel) for kernel in kernels)
        split = [np.split(below(np, kernel, rows), parts, axis=1) for kernel in kernels]
        return [np.concatenate(part, 1) for part in zip(*split, strict=True)]

    def scales(kind: str) -> Any:
        return np.concatenate([np.asarray(getattr(each, kind).norm.scale[...]) for each in stripes])

    q, k, v = (each.reshape(len(each), -1, head_dim) for each in columns("attention", "project", 3))
    (o,), (down,) = columns("attention", "out", 1), columns("mlp", "out", 1)
    gate, up = columns("mlp", "project", 2)
    return {
        "q": q,
        "k": k,
        "v": v,
        "o": o.reshape(-1, head_dim, o.shape[1]),
        "gate": gate,
        "up": up,
        "down": down,
        "norm_1": scales("attention"),
        "norm_2": scales("mlp"),
    }


def below(np: Any, kernel: Any, rows: int) -> Any:
    """The kernel with zeros for the rows that it does not read."""
    return np.concatenate([kernel, np.zeros((rows - kernel.shape[0], kernel.shape[1]))])


def dense_head(np: Any, heads: list[Any]) -> dict[str, Any]:
    """The stripes of a head, or a whole one."""
    return {
        "norm": np.concatenate([np.asarray(each.norm.scale[...]) for each in heads]),
        "product": np.concatenate([np.asarray(each.product.kernel[...]) for each in heads]),
    }

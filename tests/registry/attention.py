"""Attention in its forms; inputs that are not floats are made from floats, as the laws draw."""

import functools

import jax.numpy as jnp

import fdl
from registry.cases import LayerCase


def _every_option():
    return fdl.attention(
        heads=4,
        features=5,
        head_features=2,
        kv_heads=2,
        causal=True,
        window=3,
        rotary=functools.partial(fdl.rotary, base=100.0, interleaved=True),
        qk_norm=True,
        scale=0.8,
        soft_cap=3.0,
        b_init=fdl.initializers.normal(0.5),
    )


def _packed_in_chunks():
    def forward(f, x, *, context):
        steps = jnp.arange(x.shape[-2])
        seen = {"mask": context > -0.5, "bias": context}
        return f.attend(x, **seen, segments=steps // 3, positions=steps % 3)

    attend = fdl.attention(2, causal=True, rotary=True, alibi=True, bias=False, chunk=2)
    return fdl.network(forward, attend=attend)


# Without a rotation or norm between, softmax cannot see the bias of the keys: its gradient is 0,
# and a law on relative errors would compare roundings. So plain entries are without bias.
LAYERS = {
    "attention": LayerCase(lambda: fdl.attention(2, bias=False), (2, 3, 4)),
    "attention_every_option": LayerCase(_every_option, (2, 5, 6)),
    "attention_packed_in_chunks": LayerCase(
        _packed_in_chunks, (2, 5, 4), inputs={"context": (2, 2, 5, 5)}
    ),
    "attention_across": LayerCase(
        lambda: fdl.attention(2, cross=True, kv_heads=1, bias=False),
        (2, 3, 4),
        inputs={"context": (2, 5, 3)},
    ),
}

"""The vocabulary of deep learning, one term after the other, on real handwritten digits.

The network and the training of the first part are written in `jax.numpy` and `jax.grad`; the second
part does the same in fdl. Both must give the same parameters. Read this file from top to bottom.
Every number that it prints is computed here.
"""

import argparse

import jax
import jax.numpy as jnp

import fdl
from fdl.look import difference

STEP_SIZE = 0.1
BATCH = 32
STEPS = 400
SEED = 0


def options(arguments=None):
    return argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)


def main(arguments=None):
    options(arguments)
    # All numbers are float64. In float32, rounding can decide whether an input of ReLU is positive,
    # and the two parts would differ.
    with jax.enable_x64(True):
        walk()


def walk():
    (images, labels), (test_images, test_labels) = fdl.data.digits()
    x, y = pixels(images), jnp.asarray(labels)
    x_test, y_test = pixels(test_images), jnp.asarray(test_labels)
    print(f"Data: {len(x)} scans of digits, each {x.shape[1]} numbers between 0 and 1.\n")

    initial, by_hand = with_jax_alone(x, y, x_test, y_test)
    with_fdl(initial, by_hand, x, y, x_test, y_test)


def pixels(images):
    return jnp.asarray(images, jnp.float64).reshape(len(images), -1) / 16


# ---------------------------------------------------------------------------- jax.numpy, jax.grad


def relu(z):
    return jnp.maximum(z, 0)


def forward(weights, x):
    """Depth 2: the hidden layer's output is a representation of x, which the next layer uses."""
    hidden = relu(jnp.dot(x, weights["W1"]) + weights["b1"])  # relu(dot(W, input) + b)
    return jnp.dot(hidden, weights["W2"]) + weights["b2"]


def loss(weights, x, y):
    """Loss function: minus the log of the probability that y_pred gives to the right digit."""
    y_pred = forward(weights, x)
    log_probability = y_pred - jax.nn.logsumexp(y_pred, axis=1, keepdims=True)
    return -log_probability[jnp.arange(len(y)), y].mean()


def accuracy(weights, x, y):
    return float((forward(weights, x).argmax(1) == y).mean())


def with_jax_alone(x, y, x_test, y_test):
    print("-- With jax.numpy and jax.grad --")

    # Random initialization: W and b are filled with small random values to begin with.
    key_1, key_2 = jax.random.split(jax.random.key(SEED))
    initial = weights = {
        "W1": jax.random.normal(key_1, (64, 32)) * (2 / 64) ** 0.5,
        "b1": jnp.zeros(32),
        "W2": jax.random.normal(key_2, (32, 10)) * (1 / 32) ** 0.5,
        "b2": jnp.zeros(10),
    }
    print(f"Random weights read {accuracy(weights, x_test, y_test):.1%} right; chance is 10%.")

    # Derivative: the rate of change of the loss when one weight changes and all else stays.
    def loss_of_one_weight(w):
        return loss({**weights, "W2": weights["W2"].at[0, 3].set(w)}, x[:BATCH], y[:BATCH])

    at, h = weights["W2"][0, 3], 0.005
    rate = (loss_of_one_weight(at + h) - loss_of_one_weight(at - h)) / (2 * h)

    # Gradient: the derivatives for all weights, computed together by the backward pass.
    gradient = jax.grad(loss)(weights, x[:BATCH], y[:BATCH])
    print(f"dloss/dW2[0,3]: {rate:.6f} by differences, {gradient['W2'][0, 3]:.6f} by jax.grad.")

    # The examples in the batch of each step. Any shuffled order would work; this is the order
    # that fdl uses below, so that the two ways can be compared.
    draw = jax.vmap(lambda step: fdl.data.stream(SEED, step, BATCH, len(x)))
    batches = jax.jit(draw)(jnp.arange(STEPS))

    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    for step in range(STEPS):
        # Training loop.
        batch_x, batch_y = x[batches[step]], y[batches[step]]  # 1 draw a batch of x and y
        # 2 forward pass and 3 loss, and the gradient of the loss for all weights
        score, gradient = value_and_gradient(weights, batch_x, batch_y)
        # 4 update all weights so that the loss on this batch falls slightly
        before = weights
        weights = {name: W - STEP_SIZE * gradient[name] for name, W in weights.items()}
        if step == 0:
            after = loss(weights, batch_x, batch_y)
            print(f"Step 1: the loss on its batch falls from {score:.4f} to {after:.4f}.")
            moved = before["W1"] - STEP_SIZE * gradient["W1"]
            assert jnp.array_equal(weights["W1"], moved)  # W -= step * gradient

    print(f"After {STEPS} steps they read {accuracy(weights, x_test, y_test):.1%}: learning.\n")
    return initial, weights


# ------------------------------------------------------------------------------------------- fdl


def with_fdl(initial, by_hand, x, y, x_test, y_test):
    print("-- The same in fdl --")

    # Machine learning: a space of possibilities (a model), a search (an optimizer), and a feedback
    # signal (a loss). Each is a value.
    model = fdl.chain(hidden=fdl.dense(32), relu=fdl.relu, output=fdl.dense(10))
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    optimizer = fdl.sgd(STEP_SIZE)

    # Weights: a plain dict of arrays, separate from the functions that use them.
    params, state = model.init(jax.random.key(SEED), x)  # random, from a key
    print(f"Weights: {', '.join(fdl.paths.leaves(params))}. Depth: {fdl.depth(params)} layers.")
    params = {
        "hidden": {"w": initial["W1"], "b": initial["b1"]},  # here: the same as above
        "output": {"w": initial["W2"], "b": initial["b2"]},
    }

    # ReLU layer: the expression relu(dot(W, input) + b).
    hidden = fdl.capture(model, "relu")(params, state, x)["relu"]
    assert jnp.allclose(hidden, relu(jnp.dot(x, initial["W1"]) + initial["b1"]), atol=1e-6)

    # Derivative and gradient, checked against each other for every parameter.
    run = fdl.start(params, optimizer, state=state, seed=SEED)
    batch = fdl.draw_batch((x, y), run.seed, run.step, BATCH)
    tanh_model = fdl.chain(fdl.dense(32), fdl.tanh, fdl.dense(10))  # smooth, unlike ReLU
    smooth = fdl.supervised(tanh_model, fdl.softmax_cross_entropy)
    smooth_params, _ = tanh_model.init(jax.random.key(SEED), x)
    errors = fdl.check_gradient(lambda p: smooth(p, {}, batch, None)[0], smooth_params)
    print(f"Gradient check: largest relative error {max(errors.values()):.1e}.")

    # Training loop: its four parts, called one by one.
    batch_x, batch_y = fdl.draw_batch((x, y), run.seed, run.step, BATCH)  # 1
    y_pred, _ = objective.forward(params, state, batch_x, None)  # 2
    score = objective.score(y_pred, batch_y)["loss"].value()  # 3
    gradient = jax.grad(lambda p: objective(p, state, (batch_x, batch_y), None)[0])(params)
    after = fdl.update_weights(optimizer, run, gradient)  # 4: W -= step * gradient
    new_score = objective(after.params, state, (batch_x, batch_y), None)[0]
    print(f"Step 1: the loss on its batch falls from {score:.4f} to {new_score:.4f}.")
    assert new_score < score

    # Training the system: all steps in one compiled program; one value contains the whole run.
    result = fdl.fit(objective, optimizer, run, (x, y), batch_size=BATCH, steps=STEPS)
    scores = fdl.evaluate(objective, result.run.params, (x_test, y_test))
    print(f"After {STEPS} steps they read {scores['accuracy']:.1%}.")

    # Transformation of data: layers learn successive representations, each more useful.
    print("A linear readout of each representation, before and after training:")
    for when, each in (("before", params), ("after", result.run.params)):
        look = fdl.capture(model, "hidden", "relu", "output")
        seen, seen_test = look(each, {}, x), look(each, {}, x_test)
        useful = {
            path: fdl.linear_readout((seen[path], y), (seen_test[path], y_test), 10)
            for path in seen
        }
        print(f"  {when:6}", "  ".join(f"{path} {value:.3f}" for path, value in useful.items()))

    # Both ways gave the same parameters.
    mine = result.run.params
    theirs = {
        "hidden": {"w": by_hand["W1"], "b": by_hand["b1"]},
        "output": {"w": by_hand["W2"], "b": by_hand["b2"]},
    }
    apart = difference(mine, theirs)
    print(f"\nBy hand and in fdl: the largest difference of any weight is {apart.absolute:.1e}.")
    assert apart.absolute < 1e-10


if __name__ == "__main__":
    fdl.use_compilation_cache()
    main()

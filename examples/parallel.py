"""One program on one, two and eight devices, and on two processes with two devices each.

A small GPT learns a text character by character: the source code of Python's standard library. The
devices are parts of this machine's CPU, so more of them are not faster. The table shows that the
losses are the same, what each device keeps, and what the devices send each other.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time

import char_gpt
import jax

import fdl
from fdl import distributed

CASES = {
    "1 device": ("one", 1, 1),
    "8 devices, data parallel": ("data", 8, 1),
    "8 devices, fsdp": ("fsdp", 8, 1),
    "2 devices, tensor parallel": ("tensor", 2, 1),
    "8 devices, fsdp and tensor": ("both", 8, 1),
    "2 processes x 2 devices, fsdp": ("fsdp", 2, 2),
}


def main():
    given = options()
    if given.layout:
        print(json.dumps(trained(given)))
        return
    print(f"{'':30} {'loss':>9} {'params':>9} {'optimizer':>9} {'sent':>9} {'step':>8}")
    print(f"{'':30} {'':>9} {'kB each':>9} {'kB each':>9} {'kB each':>9} {'ms':>8}")
    for name, case in CASES.items():
        found = run_case(*case, given.steps)
        kilobytes = [found[part] / 1000 for part in ("params", "optimizer", "sent")]
        numbers = " ".join(f"{number:9,.1f}" for number in kilobytes)
        print(f"{name:30} {found['loss']:9.6f} {numbers} {found['milliseconds']:8.1f}")
        for kind, size in found["collectives"].items():
            print(f"{'':30} {kind} {size / 1000:,.1f} kB")


def options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--layout", help="train here, with this layout, and print JSON")
    parser.add_argument("--address", help="of the first process")
    parser.add_argument("--process", type=int, help="number of this process")
    return parser.parse_args()


def run_case(layout, devices, processes, steps):
    """Starts processes with some devices each, and returns what the first one prints."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for process in range(processes):
        command = [sys.executable, __file__, "--layout", layout, "--steps", str(steps)]
        if processes > 1:
            command += ["--address", address, "--process", str(process)]
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
    outputs = [each.communicate()[0] for each in started]
    if any(each.returncode for each in started):
        raise SystemExit(f"{layout}: expected the run to finish, got an error; see above")
    return json.loads(outputs[0].splitlines()[-1])


def trained(given):
    """Trains with a layout. Only `distributed.start` and `place` depend on the devices."""
    if given.address:
        distributed.start(given.address, processes=2, process=given.process)
    text, _, alphabet = char_gpt.text_of(None)
    data = fdl.data.windows(text[:100_000], 32, stride=32)
    model = fdl.gpt(len(alphabet), 32, layers=2, heads=4, features=64)
    params, state = model.init(jax.random.key(0), data[0][:1])
    objective = fdl.supervised(model, fdl.softmax_cross_entropy)
    optimizer = fdl.adamw(1e-3)
    run = fdl.start(params, optimizer, state=state)
    if given.layout != "one":
        run = distributed.place(run, layout_of(given.layout, run))
    how = {"batch_size": 16}
    report = distributed.report(objective, optimizer, run, data, **how)
    fdl.fit(objective, optimizer, run, data, steps=1, **how)  # compiles
    begun = time.perf_counter()
    result = fdl.fit(objective, optimizer, run, data, steps=given.steps, **how)
    seconds = time.perf_counter() - begun
    sent = {each.kind: report.sent(each.kind) for each in report.collectives}
    return {
        "loss": result.history[-1]["loss"],
        "params": report.params,
        "optimizer": report.optimizer,
        "sent": report.sent(),
        "collectives": sent,
        "milliseconds": seconds / given.steps * 1000,
    }


def layout_of(name, run):
    devices = jax.device_count()
    if name == "data":
        return distributed.data_parallel(distributed.mesh(data=devices))
    if name == "fsdp":
        return distributed.fsdp(distributed.mesh(data=devices), run)
    if name == "tensor":
        return distributed.tensor_parallel(distributed.mesh(model=devices), run)
    mesh = distributed.mesh(data=devices // 2, model=2)
    return distributed.fsdp(mesh, run, beside=distributed.tensor_parallel(mesh, run))


if __name__ == "__main__":
    main()

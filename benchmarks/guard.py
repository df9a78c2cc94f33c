"""Fails if a step of fdl became slower compared with the same step written by hand in plain JAX.

    python -m benchmarks.guard           compares with results/guard.json; two minutes or less
    python -m benchmarks.guard --store   adds to that file; run it on an idle machine

Both programs run in this process, in turn, and so does a second session of fdl: the ratio of its
time to that of the first session shows the noise. A row is the median of the ratios of all rounds.
It is too slow if it is above the stored ratio times 1.15 times the noise, and its lower quartile is
above the stored ratio times 1.15. A row that is too slow is measured up to two more times, and
fails only if it is too slow each time. A slow measurement does not count if other programs kept the
machine busy. The guard decides nothing on a kind of machine, or with a version of JAX, for which
the file has no ratios, because ratios differ: an LSTM took 0.60, 0.75 and 0.85 of the step by hand
on three generations of processors with one name.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure
from benchmarks.peers import Session
from benchmarks.work import WORK, Work, of, text, vectors

FILE = Path(__file__).parent / "results" / "guard.json"
ALLOWED = 1.15
TRIES = 3
ROUNDS, SECONDS = 15, 0.15  # of each of the three programs
BUSY = 0.25  # cores that other programs may use during a measurement
PAUSE = 5.0  # seconds before a row is measured again

# Most are smaller than in WORK, so that all of them take two minutes.
GUARDED: dict[str, Work] = {
    "perceptron": WORK["perceptron-512"],
    "lenet": dataclasses.replace(WORK["lenet"], batch=16, data=of(vectors, (28, 28, 1), count=256)),
    "lstm": dataclasses.replace(WORK["lstm"], data=of(vectors, (32, 64), count=512)),
    "gpt": dataclasses.replace(
        WORK["gpt"],
        sizes={"vocabulary": 65, "length": 64, "layers": 2, "heads": 4, "features": 64},
        data=of(text, 65, 64, count=256),
    ),
}


class Row(NamedTuple):
    """One measurement.

    Args:
      ratio: the time of fdl's step divided by that of the step by hand; the median of all rounds.
      low, high: the quartiles of the ratios.
      itself: the time of fdl's second session divided by that of the first.
      busy: the number of cores that other programs used.
    """

    work: str
    ratio: float
    low: float
    high: float
    itself: float
    busy: float


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument(
        "--store", action="store_true", help="add the ratios of this machine to the file"
    )
    parser.add_argument("--work", nargs="+", choices=GUARDED, default=list(GUARDED))
    given = parser.parse_args()
    stored = json.loads(FILE.read_text()) if FILE.exists() else []
    here = _of_machine(measure.machine())
    alike = [each for each in stored if _of_machine(each["machine"]) == here]
    before = {row["work"]: row for each in alike for row in each["rows"]}
    known = {work: row["ratio"] for work, row in before.items()}
    rows, failed, open_rows = [], [], []
    for name in given.work:
        programs = sessions(GUARDED[name])
        row = measured(name, programs)
        limit = None if given.store else known.get(name)
        _print(row, known.get(name))
        if limit is not None:
            verdict = decided(row, limit, lambda: _again(name, programs, known[name]))
            failed += [name] * (verdict is False)
            open_rows += [name] * (verdict is None)
        rows.append(row._asdict())
    if given.store:
        kept = before | {row["work"]: row for row in rows}
        entry = {"machine": measure.machine(), "rows": list(kept.values())}
        others = [each for each in stored if each not in alike]
        FILE.write_text(json.dumps([*others, entry], indent=2) + "\n")
    elif missing := [name for name in given.work if name not in known]:
        print(
            f"not decided: {FILE.name} has no {', '.join(missing)} for {here}; --store adds what "
            "was measured"
        )
    for name in open_rows:
        print(f"not decided: {name}, because other programs kept the machine busy")
    if failed:
        raise SystemExit(
            f"benchmarks.guard: expected ratios within {ALLOWED - 1:.0%} of those in {FILE.name}, "
            f"got more for {', '.join(failed)}; find what became slow, or accept it with --store"
        )


def decided(row: Row, limit: float, again: Any) -> bool | None:
    """True if a row is fast enough in any try, False if it is too slow in each try.

    None if it is too slow in each try, but the machine was busy in one of them.

    Args:
      row: the first measurement.
      limit: the stored ratio.
      again: measures once more, and returns a Row.
    """
    slow = 0
    for number in range(TRIES):
        row = again() if number else row
        if not too_slow(row, limit):
            return True
        slow += row.busy <= BUSY
    return False if slow == TRIES else None


def too_slow(row: Row, limit: float) -> bool:
    """Whether a row exceeds the stored ratio by more than the noise and ALLOWED permit."""
    noise = max(row.itself, 1 / row.itself)
    return row.ratio > limit * ALLOWED * noise and row.low > limit * ALLOWED


def sessions(work: Work) -> list[Session]:
    """Sessions of fdl, of the step by hand, and of fdl again, after their first steps."""
    from benchmarks.peers import fdl, plain_jax

    data = work.data(np.random.default_rng(0))
    made = [peer.training(work, *data) for peer in (fdl, plain_jax, fdl)]
    for session in made:
        session.steps(2)
    return made


def measured(name: str, programs: list[Session]) -> Row:
    counts = [_count(session) for session in programs]
    with measure.OthersBusy() as others:
        rounds = []
        for number in range(ROUNDS):
            times = [0.0] * len(programs)
            for place in np.roll(range(len(programs)), number):
                times[place] = _ms(programs[place], counts[place])
            rounds.append(times)
    ratios = [ours / by_hand for ours, by_hand, _ in rounds]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    itself = statistics.median(again / ours for ours, _, again in rounds)
    return Row(name, ratio, low, high, itself, others.cores)


def _again(name: str, programs: list[Session], limit: float) -> Row:
    time.sleep(PAUSE)
    row = measured(name, programs)
    _print(row, limit)
    return row


def _count(session: Session) -> int:
    """The number of steps that take about SECONDS."""
    session.steps(2)
    return max(1, round(SECONDS * 1e3 / _ms(session, max(1, round(20 / _ms(session, 2))))))


def _ms(session: Session, count: int) -> float:
    begun = time.perf_counter()
    block = session.steps(count)
    seconds = time.perf_counter() - begun if block.seconds is None else block.seconds
    return seconds / count * 1e3


def _of_machine(facts: dict[str, Any] | None) -> dict[str, Any]:
    return {
        key: (facts or {}).get(key)
        for key in ("processor", "generation", "cores", "backend", "jax")
    }


def _print(row: Row, limit: float | None) -> None:
    stored = "nothing stored" if limit is None else f"stored {limit:.3f}"
    print(
        f"{row.work:>12}  fdl / by hand {row.ratio:.3f} ({row.low:.3f} to {row.high:.3f})  {stored}"
        f"  fdl / itself {row.itself:.3f}  others used {row.busy:.2f} cores",
        flush=True,
    )


if __name__ == "__main__":
    main()
